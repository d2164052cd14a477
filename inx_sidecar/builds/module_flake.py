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
from typing import Any, Final

from inx_sidecar.base.errors import UnsupportedError
from inx_sidecar.config.credentials import redact
from inx_sidecar.config.locks import Lock
from inx_sidecar.config.sources import Modules

# Beside this module in the installed package; nix/ in the repository has them.
NIX_FILES: Final = f"{os.path.dirname(__file__)}/nix"
COPIED: Final = ("modules.nix", "container.nix")
# Names of nodes are free; no other one has this.
_BASE: Final = "the flake of the instance"
_ORIGINAL: Final = {"type": "indirect", "id": "source"}
_BODY: Final = "{ config, lib, pkgs, ... }: with lib; {"
Nodes = Mapping[str, Mapping[str, Any]]
# The names that Nix has for what the kernel calls a machine.
_MACHINES: Final = {"arm64": "aarch64", "ppc64le": "powerpc64le", "i386": "i686", "i586": "i686"}


def flake_files(
    source: Modules, bodies: frozenset[str], lock: Lock | None, base: Nodes | None = None
) -> dict[str, str]:
    """The files of the flake, by name, without those that are copied.

    `source` has the references and paths that the build sees, `bodies` are the keys whose text is
    the body of a module. `lock` is nixpkgs, if Nix fetches that; `base` has the nodes of a
    flake.lock, if Nix fetches the flake that is extended.
    """
    files = {"flake.nix": _flake_text(source, lock)}
    if lock is not None:
        files["flake.lock"] = _lock_text(_nodes_of(lock))
    if base is not None:
        files["flake.lock"] = _lock_text(base)
    for key, text in source.texts:
        files[key] = body_text(text) if key in bodies else text
    return files


def nodes_of_base(told: Mapping[str, Any]) -> Nodes:
    """The nodes of a flake.lock whose only input is the flake that 'nix flake metadata --json' has
    `told` of, with all that this flake has locked. KeyError, TypeError or AttributeError if that is
    not what Nix says."""
    nodes = dict(told["locks"]["nodes"])
    root = nodes.pop(told["locks"]["root"])
    # Nix tells "__final" of what it has fetched, and refuses it in a lock (Nix 2.26).
    locked = {name: value for name, value in told["locked"].items() if name[:1] != "_"}
    of_base = {"locked": locked, "original": _ORIGINAL, "inputs": root.get("inputs", {})}
    moved = {name: _moved(node) for name, node in nodes.items()}
    return moved | {_BASE: _moved(of_base), "root": {"inputs": {"source": _BASE}}}


def _moved(node: Mapping[str, Any]) -> Mapping[str, Any]:
    """`node` of the lock of a flake that is an input now. An input that follows another one has the
    way to that from the root (nix3-flake, Lock files)."""
    inputs = {
        name: ["source", *value] if isinstance(value, list) else value
        for name, value in node.get("inputs", {}).items()
    }
    return {**node, "inputs": inputs} if inputs else node


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


def fetches_base(source: Modules) -> bool:
    """Whether the flake that is extended is something that Nix fetches."""
    return source.base is not None and source.base.local() is None


def platform(machine: str) -> str:
    """The platform of a `machine`, as uname(2) names it, for nixpkgs.hostPlatform."""
    if re.fullmatch(r"armv[67]l?|[a-z0-9_]+", machine):
        return f"{_MACHINES.get(machine, machine)}-linux"
    raise UnsupportedError(f"inx does not know the platform {machine!r}")


def _nodes_of(lock: Lock) -> Nodes:
    node = {"flake": False, "locked": dict(lock.attributes), "original": _ORIGINAL}
    return {"source": node, "root": {"inputs": {"source": "source"}}}


def _lock_text(nodes: Nodes) -> str:
    return json.dumps({"nodes": nodes, "root": "root", "version": 7}, indent=2) + "\n"


def _flake_text(source: Modules, lock: Lock | None) -> str:
    function = "configuration" if source.base is None else "extended"
    lines = [
        f"# The configuration of {source.attr}. To look around in it: 'nix repl path:' and this",
        "# directory.",
        "{",
        *_input(source, lock),
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


def _input(source: Modules, lock: Lock | None) -> list[str]:
    if lock is not None:
        return ['  inputs.source = { url = "flake:source"; flake = false; };']
    return ['  inputs.source.url = "flake:source";'] if fetches_base(source) else []


def _arguments(source: Modules, lock: Lock | None) -> Mapping[str, str]:
    if (base := source.base) is not None:
        local = f"builtins.getFlake {_string(base.ref)}"
        flake = "inputs.source" if fetches_base(source) else local
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
