"""The way out if the user who evaluates may not read or write a file, or there is no space."""

import re
import shlex
from typing import Final

from inx_sidecar.builds.builder import PLAIN_PATH, Builder
from inx_sidecar.config.sources import Flake

_PATH: Final = r"[\"']?(?P<path>/[^\"'\n]{1,600}?)[\"']?"
# As Nix and the C++ library say it.
_REFUSED: Final = re.compile(
    rf"(?P<act>[a-z][a-z ]{{1,40}}?) {_PATH}: (?P<why>Permission denied|Read-only file system)"
    r"|filesystem error: [a-z_ ]{1,60}: (?P<why2>Permission denied) "
    r"\[(?P<path2>/[^\]\n]{1,600})\]"
)
_LOCK_WRITTEN: Final = re.compile(r"^warning: (?:creating|updating) lock file ", re.MULTILINE)
_FULL: Final = re.compile(
    r"(?:writing|creating|opening|cannot|executing|committing|adding|getting) .*"
    r"(?:No space left on device|database or disk is full.*|Disk quota exceeded)\"?"
)
_NIX_LOCK: Final = "nix --extra-experimental-features 'nix-command flakes' flake lock"


def file_advice(reason: str, output: str, builder: Builder) -> str:
    """A sentence in place of `reason`; empty if nothing is known.

    Nobody is told to open a file that lies outside the source: the source may ask for any.
    """
    if _FULL.fullmatch(reason):
        return (
            f"{reason}; make space: 'df -h /nix /tmp' shows where, and 'nix-collect-garbage' "
            "removes what nothing needs"
        )
    found = _REFUSED.fullmatch(reason)
    if found is None:
        return ""
    path = re.sub("^/+", "/", found["path"] or found["path2"])
    why = found["why"] or found["why2"]
    own = builder.own(path)
    if own.endswith("/flake.lock") and _LOCK_WRITTEN.search(output):
        return _lock_advice(own, why, builder)
    if why != "Permission denied":
        return ""
    name, home = builder.name, builder.home
    if not builder.alone and f"{path}/".startswith(f"{home}/") and found["act"] and not own:
        if found["act"].startswith(("creating", "opening lock")):
            return f"{name} cannot write {path}: let {name} own its home directory, {home}"
    if not own:
        if not builder.directory:
            return ""
        return (
            f"{_reader(builder)} may not read {path}, which is not in {builder.directory}: change "
            "what the source reads"
        )
    look = f"; 'namei -l {shlex.quote(own)}' shows who may" if PLAIN_PATH.fullmatch(own) else ""
    return f"{_reader(builder)} may not read {own}: {_permit(builder)}{look}"


def _reader(builder: Builder) -> str:
    return "a user without rights" if builder.alone else builder.name


def _permit(builder: Builder) -> str:
    if builder.alone:
        return (
            f"let one user alone own and write the source, or let all users or a group of "
            f"{builder.name} enter each directory on the way and read the files"
        )
    return f"let {builder.name} enter each directory on the way and read the files"


def _lock_advice(lock: str, why: str, builder: Builder) -> str:
    """Nix completes the lock file of a flake, as the user who evaluates."""
    directory = lock.removesuffix("/flake.lock")
    lacks = f"{lock} lacks inputs, and {builder.name} cannot write it ({why})"
    if not PLAIN_PATH.fullmatch(directory) or not isinstance(builder.source, Flake):
        return f"{lacks}: let {builder.name} own it"
    command = f"{_NIX_LOCK} {shlex.quote(directory)}"
    if why != "Permission denied":
        return f'{lacks}: make it where it can be written, by "{command}"'
    if builder.repository:  # git refuses root there
        return f"{lacks}: let {builder.name} own it and its directory"
    return f'{lacks}: let {builder.name} own it and its directory, or run "{command}" as root'
