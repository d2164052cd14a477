"""The likeliest mistake: the source has no attribute of the name that was asked for.

Which names it has is asked only then, by an evaluation of its own. The source decides about the
names: what is repeated here are a few short ones of plain characters, below the reference and the
attribute of the operator. The others are counted.
"""

import re
from typing import Final

from inx_sidecar.config.credentials import redact
from inx_sidecar.config.sources import Flake, NixFile, Source

# An evaluation of names alone is short.
SECONDS: Final = 30
# Nix prints at most this many names, in lines that base.process neither cuts nor drops.
_ASKED: Final = 1000
_IN_LINE: Final = 50
_SHOWN: Final = 6
_MARK: Final = "inx-names"
_COUNT_MARK: Final = "inx-count"
_COUNT: Final = re.compile(rf"^{_COUNT_MARK} ([0-9]{{1,9}})$", re.MULTILINE)
# Names that a NixOS module has, and hardly any set of systems.
_OF_MODULE: Final = {"imports", "environment", "fileSystems", "boot"}
_LINE: Final = re.compile(rf"^{_MARK} (.+)$", re.MULTILINE)
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,63}")
_OF_FLAKE: Final = re.compile(r"^flake '.*' does not provide attribute '")
_OF_FILE: Final = re.compile(r"^attribute '([^']*)' in selection path '([^']*)' not found")
_NAMES: Final = f"""value: let
  set = if builtins.isFunction value then value {{ }} else value;
  plain = builtins.filter
    (name: builtins.stringLength name < 65 && builtins.match "[A-Za-z0-9._+-]+" name != null)
    (builtins.attrNames set);
  count = builtins.length plain;
  begins = i: if i / {_IN_LINE} * {_IN_LINE} == i then "\\n{_MARK} " else " ";
in "\\n{_COUNT_MARK} ${{toString (builtins.length (builtins.attrNames set))}}"
  + builtins.concatStringsSep "" (builtins.genList
  (i: begins i + builtins.elemAt plain i) (if count < {_ASKED} then count else {_ASKED})) + "\\n"
"""


def is_missing(source: Source, reason: str) -> bool:
    """Whether `reason`, an error of Nix, says that `source` lacks the attribute that was asked
    for. The source may say the same of any other one."""
    match source:
        case Flake():
            return bool(_OF_FLAKE.search(reason))
        case NixFile():
            found = _OF_FILE.fullmatch(reason)
            return found is not None and found[2] == source.attr
    return False


def names_command(source: Source, reason: str) -> list[str]:
    """The command that prints the names which stand where the missing attribute would."""
    begin = ["nix", "--extra-experimental-features", "nix-command flakes", "eval", "--raw",
             "--apply", _NAMES]  # fmt: skip
    match source:
        case Flake():
            more = ["--no-accept-flake-config", "--no-write-lock-file", "--"]
            return [*begin, *more, f"{source.ref}#nixosConfigurations"]
        case NixFile():
            return [*begin, "--file", source.path, "--", _parent(source, reason)]
    raise AssertionError(source)


def missing_text(source: Source, reason: str, printed: str) -> str:
    """`reason` with the names that are there, as the command of `names_command` has printed them.

    The reference of `source` is that of the operator.
    """
    from difflib import get_close_matches  # only here: the sidecar keeps it in memory from then on

    words = " ".join(_LINE.findall(printed)).split()
    names = [word for word in words if _NAME.fullmatch(word)]
    count = max([len(names), *map(int, _COUNT.findall(printed)[:1])])
    match source:
        case Flake():
            ref, wanted = redact(source.ref), source.attr
            if wanted in names:
                return (
                    f"nixosConfigurations.{wanted} of {ref} has no config.system.build.toplevel: "
                    f"make it by nixpkgs.lib.nixosSystem {{ modules = [ ... ]; }}"
                )
            has_no, key, prefix = f"{ref} has no nixosConfigurations", f"user.inx.flake={ref}#", ""
            define = f"define nixosConfigurations.{wanted} in its outputs, or name another flake"
            if not names and "does not provide attribute" in printed:
                return f"{has_no}: {define}"
            has_no += f".{wanted}"
            if _COUNT.findall(printed)[:1] == ["0"]:
                return f"{has_no}, and no other one: {define}"
        case NixFile():
            parent, wanted = _parent(source, reason), source.attr.strip('"').rpartition(".")[2]
            prefix = f"{parent}." if parent else ""
            has_no, key = f"{source.path} has no {source.attr}", "user.inx.attr="
            if not parent and (other := _other_kind(source.path, names)):
                return f"{has_no}: {other}"
        case _:
            return reason
    if not names:
        return f"{has_no}, and its names could not be read; correct {key}NAME"
    wanted = wanted.removesuffix(".config.system.build.toplevel")
    near = [name for name in names if name.lower() == wanted.lower()]
    near += [name for name in get_close_matches(wanted, names, _SHOWN) if name not in near]
    ordered = near + [name for name in names if name not in near]
    shown = ", ".join(prefix + name for name in ordered[:_SHOWN])
    left = count - len(ordered[:_SHOWN])
    more = f" and {left} more" if left > 0 else ""
    choice = prefix + near[0] if near else "NAME"
    return f"{has_no}; it has {shown}{more}; set {key}{choice}"


def _other_kind(path: str, names: list[str]) -> str:
    """What to do with a Nix file that has no systems, but these `names`; empty if that is not
    known."""
    if not _OF_MODULE & set(names):
        return ""
    return (
        f"it has {', '.join(names[:_SHOWN])}, as a NixOS module; name a file with systems, such as "
        f"{{ web = {system_of(path)}; }}"
    )


def system_of(path: str) -> str:
    """A Nix expression of the system that has the module at `path`."""
    return f"(import <nixpkgs/nixos> {{ configuration = {path}; }}).system"


def _parent(source: NixFile, reason: str) -> str:
    """The attribute path, in a Nix file, of the set that lacks an attribute."""
    found = _OF_FILE.search(reason)
    if found is None or '"' in source.attr:
        return ""
    steps = source.attr.split(".")
    return ".".join(steps[: steps.index(found[1])]) if found[1] in steps else ""
