"""The flake that inx writes for an instance whose configuration consists of modules.

    {
      inputs.source = { url = "flake:source"; flake = false; };
      outputs = inputs: {
        nixosConfigurations."web" = (import ./modules.nix).configuration {
          nixpkgs = inputs.source;
          pieces = [ { name = "user.inx.config"; value = import (./. + "/user.inx.config"); } ];
        };
      };
    }

Its flake.lock says what `source` is. Nix takes that from the store or a server, and asks no
registry: it would look for an input in the global one alone (Nix 2.34). Nix evaluates the flake
without access to files of the host. Only what lies on the host, and not in the store, needs an
evaluation that may read it (`is_impure`).
"""

import json
import os
import re
from collections.abc import Mapping
from typing import Final

from inx_sidecar.base.errors import UnsupportedError
from inx_sidecar.config.credentials import redact
from inx_sidecar.config.locks import Lock
from inx_sidecar.config.sources import Modules

# Beside this module in the installed package; nix/ in the repository has them.
NIX_FILES: Final = f"{os.path.dirname(__file__)}/nix"
COPIED: Final = ("modules.nix", "container.nix")
_BODY: Final = "{ config, lib, pkgs, ... }: with lib; {"
# The names that Nix has for what the kernel calls a machine.
_MACHINES: Final = {"arm64": "aarch64", "ppc64le": "powerpc64le", "i386": "i686", "i586": "i686"}


def flake_files(source: Modules, bodies: frozenset[str], lock: Lock | None) -> dict[str, str]:
    """The files of the flake, by name, without those that are copied.

    `source` has the references and paths that the build sees, `bodies` are the keys whose text is
    the body of a module. `lock` is nixpkgs, if Nix fetches that.
    """
    files = {"flake.nix": _flake_text(source, lock)}
    if lock is not None:
        files["flake.lock"] = _lock_text(lock)
    for key, text in source.texts:
        files[key] = body_text(text) if key in bodies else text
    return files


def body_text(text: str) -> str:
    """A module with the body `text`, whose lines keep their numbers."""
    return f"{_BODY}{text}\n}}\n"


def bindings_text(text: str) -> str:
    """An expression that Nix can parse only if `text` is a list of bindings: together with
    `body_text` this shows that no brace in it ends the body."""
    return f"{{ config, lib, pkgs, ... }}: with lib; let {text}\nin null\n"


def is_impure(source: Modules) -> bool:
    """Whether an evaluation needs files of the host."""
    local_base = source.base is not None and source.base.local() is not None
    return bool(source.files) or local_base or source.nixpkgs.startswith("/")


def fetches_nixpkgs(source: Modules) -> bool:
    """Whether nixpkgs is something that Nix fetches."""
    return source.base is None and not source.nixpkgs.startswith("/")


def platform(machine: str) -> str:
    """The platform of a `machine`, as uname(2) names it, for nixpkgs.hostPlatform."""
    if re.fullmatch(r"armv[67]l?|[a-z0-9_]+", machine):
        return f"{_MACHINES.get(machine, machine)}-linux"
    raise UnsupportedError(f"inx does not know the platform {machine!r}")


def _lock_text(lock: Lock) -> str:
    original = {"type": "indirect", "id": "source"}
    node = {"flake": False, "locked": dict(lock.attributes), "original": original}
    nodes = {"source": node, "root": {"inputs": {"source": "source"}}}
    return json.dumps({"nodes": nodes, "root": "root", "version": 7}, indent=2) + "\n"


def _flake_text(source: Modules, lock: Lock | None) -> str:
    function = "configuration" if source.base is None else "extended"
    lines = [
        f"# The configuration of {source.attr}. To look around in it: 'nix repl path:' and this",
        "# directory.",
        "{",
        *(['  inputs.source = { url = "flake:source"; flake = false; };'] if lock else []),
        "  outputs = inputs: {",
        f"    nixosConfigurations.{_string(source.attr)} = (import ./modules.nix).{function} {{",
        *(f"      {name} = {value};" for name, value in _arguments(source, lock).items()),
        "      pieces = [",
        *(
            f"        {{ name = {_string(name)}; value = {value}; }}"
            for name, value in _pieces(source).items()
        ),
        "      ];",
        "    };",
    ]
    if source.base is None:
        nixpkgs, shown = _nixpkgs(source, lock), _string(source.nixpkgs)
        lines.append(f"    inx = (import ./modules.nix).factsOf ({nixpkgs}) {shown};")
    return "\n".join([*lines, "  };", "}", ""])


def _arguments(source: Modules, lock: Lock | None) -> Mapping[str, str]:
    if (base := source.base) is not None:
        flake = f"builtins.getFlake {_string(base.ref)}"
        return {"flake": flake, "shown": _string(redact(base.ref)), "attr": _string(base.attr)}
    arguments = {
        "nixpkgs": _nixpkgs(source, lock),
        "shown": _string(source.nixpkgs),
        "hostPlatform": _string(platform(os.uname().machine)),
        "stateVersion": _string(source.state_version) if source.state_version else "null",
    }
    return arguments | ({"source": "inputs.source"} if lock is not None else {})


def _nixpkgs(source: Modules, lock: Lock | None) -> str:
    if lock is None:
        return f"/. + {_string(source.nixpkgs)}"
    return f"inputs.source + {_string(lock.below)}" if lock.below else "inputs.source"


def _pieces(source: Modules) -> Mapping[str, str]:
    return {key: f"import (./. + {_string('/' + key)})" for key, _ in source.texts} | {
        path: f"/. + {_string(path)}" for _, path in source.files
    }


def _string(text: str) -> str:
    r"""`text` as a string of Nix, in which a backslash, a quote and "${" need a backslash."""
    escaped = re.sub(r'["\\]|\$(?=\{)', r"\\\g<0>", text)
    return f'"{escaped}"'
