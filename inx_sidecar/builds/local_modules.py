"""A look at what the modules of an instance name on this host: module files, nixpkgs, a flake.

The look follows links and may wait for a file system, so a child takes it.
"""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from inx_sidecar.base import paths
from inx_sidecar.base.errors import BuildError
from inx_sidecar.builds.local_source import check_path, look_at
from inx_sidecar.config.module_keys import NIXPKGS, nixpkgs_reference
from inx_sidecar.config.references import PATH
from inx_sidecar.config.sources import Flake, Modules, NixFile
from inx_sidecar.nix.store_paths import store_path_of

_EVAL_CONFIG: Final = "nixos/lib/eval-config.nix"


@dataclass(frozen=True)
class LocalModules:
    """`base` and `nixpkgs` are the references that Nix is given, without a link or a choice; empty
    if there is none. A `nixpkgs` that begins with "/" is read where it is. `below` is where nixpkgs
    lies in what the reference names. `files` are the paths of modules that Nix is given.
    `repositories` are directories of git that are read.
    """

    base: str = ""
    files: tuple[str, ...] = ()
    nixpkgs: str = ""
    below: str = ""
    repositories: tuple[str, ...] = ()

    def to_json(self) -> Mapping[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "LocalModules":
        lists = {name: tuple(value[name]) for name in ("files", "repositories")}
        return cls(**value | lists)


def check_paths(source: Modules, nixpkgs: str) -> None:
    """BuildError if a path shows that a look could wait for an instance for ever."""
    for _, path in source.files:
        check_path(NixFile(path, "", attr_given=False))
    for flake in filter(None, (source.base, _flake_of(nixpkgs))):
        check_path(flake)


def look_at_modules(source: Modules, nixpkgs: str, setting: str) -> LocalModules:
    """`nixpkgs` is the reference in use, and `setting` where the operator wrote it.

    BuildError if something is missing.
    """
    for key, path in source.files:
        _check_module(key, path)
    files = tuple(_given(path) for _, path in source.files)
    found = LocalModules(files=files)
    if source.base is not None:
        if source.base.local() is None:
            return replace(found, base=source.base.ref)
        looked = look_at(source.base)
        return replace(found, base=looked.ref, repositories=looked.repositories)
    flake = _flake_of(nixpkgs)
    local = flake.local() if flake is not None else None
    if flake is None or local is None:
        return replace(found, nixpkgs=nixpkgs_reference(nixpkgs))
    if local.scheme == "git+file":
        looked = look_at(flake)
        return replace(found, nixpkgs=looked.ref, repositories=looked.repositories)
    directory = flake.directory() or ""
    if not os.path.exists(f"{directory}/{_EVAL_CONFIG}"):
        raise BuildError(
            f"{setting} is {nixpkgs}, but there is no {directory}/{_EVAL_CONFIG}: name a directory "
            "that has nixpkgs"
        )
    real = os.path.realpath(directory)
    if in_store := store_path_of(real):
        return replace(found, nixpkgs=f"path:{in_store}", below=real.removeprefix(in_store))
    return replace(found, nixpkgs=real)


def setting_of(source: Modules) -> str:
    """Where the operator wrote which nixpkgs `source` has."""
    return NIXPKGS if source.nixpkgs else f"nixpkgs in {paths.CONFIG}"


def _flake_of(nixpkgs: str) -> Flake | None:
    return Flake(nixpkgs, "", attr_given=False) if nixpkgs else None


def _check_module(key: str, path: str) -> None:
    if not os.path.exists(path):
        raise BuildError(f"there is no {path}: correct {key}")
    if os.path.isdir(path) and not os.path.exists(f"{path}/default.nix"):
        raise BuildError(f"there is no {path}/default.nix: name a module in {key}")
    if not os.path.samefile(path, os.path.realpath(path)):
        raise BuildError(f"{path} is not {os.path.realpath(path)}, where its links lead")


def _given(path: str) -> str:
    """The path of a module that Nix is given: an evaluation has other names for the directories of
    temporary files (builds/build_service.py), so a link into them leads nowhere."""
    real = os.path.realpath(path)
    is_temporary = real.startswith((f"{paths.TMP}/", f"{paths.VAR_TMP}/"))
    return real if is_temporary and PATH.fullmatch(real) else path
