"""GC roots of an instance on the host: `gcroots/inx/NAME.UUID/ROOT -> /nix/store/...`

These links are direct roots outside `auto/`: Nix never removes them, and only the host's root may
write them. The name of a root may have one directory: `links/...`, `snapshots/...`, `copied/...`.
"""

import asyncio
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from inx_sidecar.base import paths
from inx_sidecar.base.errors import RootError
from inx_sidecar.base.storage import remedy
from inx_sidecar.kernel import forked
from inx_sidecar.nix.gc_client import GcClient

_FORMER: Final = "former."
# After so many links other tasks of the event loop get a turn.
_STEP: Final = 200
_REMOVAL_SECONDS: Final = 120.0


def directory(lxc_name: str, uuid: str) -> str:
    """The name is for readers of `nix-store --gc --print-roots`; the uuid makes it unique."""
    return f"{paths.GCROOTS}/{lxc_name}.{uuid}"


def owners() -> set[tuple[str, str]]:
    """The name and uuid of every instance that has roots."""
    try:
        names = os.listdir(paths.GCROOTS)
    except FileNotFoundError:
        return set()
    return {(name[:-37], name[-36:]) for name in names if name[-37:-36] == "."}


def read(root_directory: str, within: str = "") -> dict[str, str]:
    """Root names, such as `system-1` or `links/...`, and the store paths that they hold.

    With `within`, such as "links/" or "snapshots/before/", only the roots in that directory.
    """
    return dict(_each(root_directory, within, below=True))


def read_top(root_directory: str) -> dict[str, str]:
    """As `read`, without the roots in directories."""
    return dict(_each(root_directory, "", below=False))


async def read_in_turns(root_directory: str, within: str = "") -> dict[str, str]:
    """As `read`, but other tasks get turns: a container may have any number of roots."""
    found: dict[str, str] = {}
    for count, (name, path) in enumerate(_each(root_directory, within, below=True)):
        if count % _STEP == _STEP - 1:
            await asyncio.sleep(0)
        found[name] = path
    return found


def names(lxc_name: str, uuid: str, within: str) -> list[str]:
    """The names of the roots in the directory `within`, such as "links/"."""
    try:
        return [within + name for name in os.listdir(f"{directory(lxc_name, uuid)}/{within}")]
    except FileNotFoundError:
        return []


def _each(root_directory: str, within: str, *, below: bool) -> Iterator[tuple[str, str]]:
    try:
        entries = list(os.scandir(f"{root_directory}/{within}"))
    except FileNotFoundError:
        return
    for entry in entries:
        name = within + entry.name
        if entry.is_symlink():
            try:
                yield name, os.readlink(f"{root_directory}/{name}")
            except FileNotFoundError:
                continue  # it was dropped meanwhile
        elif below and entry.is_dir(follow_symlinks=False):
            yield from _each(root_directory, f"{name}/", below=True)


def path_of(lxc_name: str, uuid: str, name: str) -> str | None:
    """The store path that the root `name` holds; None if there is no such root."""
    try:
        return os.readlink(f"{directory(lxc_name, uuid)}/{name}")
    except OSError:
        return None


async def add(gc: GcClient, lxc_name: str, uuid: str, wanted: Mapping[str, str]) -> dict[str, str]:
    """Make `wanted` (root name to store path) roots of the instance; returns the new ones.

    After that no collection, not even one that runs, deletes a path that was valid before. Nothing
    is dropped: if a name held another path, that path gets a root `former.HASH`. RootError if a
    root cannot be made.
    """
    place = directory(lxc_name, uuid)
    new: dict[str, str] = {}
    path = ""
    try:
        for count, (name, path) in enumerate(wanted.items()):
            if count % _STEP == _STEP - 1:
                await asyncio.sleep(0)
            if _set(place, name, path):
                new[name] = path
    except OSError as error:
        raise RootError(
            f"cannot keep {path} for {lxc_name!r} in {place}: {_reason(error, place)}"
        ) from None
    finally:
        await gc.add_temp_roots(new.values())
    return new


def make_directory(lxc_name: str, uuid: str, within: str) -> None:
    """Make the directory `within` that of the instance, for roots to come."""
    place = f"{directory(lxc_name, uuid)}/{within}"
    try:
        os.makedirs(place, exist_ok=True)
    except OSError as error:
        raise RootError(f"cannot make {place}: {_reason(error, place)}") from None


def drop(lxc_name: str, uuid: str, unwanted: Iterable[str]) -> None:
    place = directory(lxc_name, uuid)
    try:
        for name in unwanted:
            os.unlink(f"{place}/{name}")
    except OSError as error:
        what = f"the root {name} of {lxc_name!r} in {place}"
        raise RootError(f"cannot drop {what}: {error.strerror}") from None


async def drop_in_turns(lxc_name: str, uuid: str, unwanted: Sequence[str]) -> None:
    """As `drop`, but other tasks get turns."""
    for start in range(0, len(unwanted), _STEP):
        drop(lxc_name, uuid, unwanted[start : start + _STEP])
        await asyncio.sleep(0)


def drop_if_there(lxc_name: str, uuid: str, name: str) -> None:
    if os.path.lexists(f"{directory(lxc_name, uuid)}/{name}"):
        drop(lxc_name, uuid, [name])


async def remove(lxc_name: str, uuid: str, within: str = "") -> None:
    """Remove all roots of an instance, or those `within` one directory of it."""
    place = f"{directory(lxc_name, uuid)}/{within}".rstrip("/")

    def remove_tree() -> forked.Result:
        try:
            shutil.rmtree(place)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise RootError(f"cannot remove {place}: {error.strerror}") from None
        return None, []

    # A container may have any number of links, and a snapshot of it as many roots.
    await forked.run_in_child(remove_tree, f"removing {place}", _REMOVAL_SECONDS)


def _reason(error: OSError, place: str) -> str:
    reason, way_out = str(error.strerror or error), remedy(error, place)
    return f"{reason}; {way_out}" if way_out else reason


def _set(place: str, name: str, path: str) -> bool:
    """True if the root is new, or held another path."""
    target = f"{place}/{name}"
    try:
        before = os.readlink(target)
    except FileNotFoundError:
        before = None
    if before == path:
        return False
    if before is not None:
        _write(f"{place}/{_FORMER}{os.path.basename(before)[:32]}", before)
    _write(target, path)
    return True


def _write(target: str, path: str) -> None:
    """Make a complete link and rename it into place, as Nix does.

    An OSError names `target`, never the temporary link, so that a repeated failure has the same
    text.
    """
    temporary = f"{os.path.dirname(target)}/.{secrets.token_hex(8)}"
    try:
        try:
            os.symlink(path, temporary)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(target), mode=0o755, exist_ok=True)
            os.symlink(path, temporary)
        try:
            os.rename(temporary, target)
        except OSError:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, target) from None
