"""GC roots of an instance on the host: `gcroots/inx/NAME.UUID/ROOT -> /nix/store/...`

They are direct roots outside `auto/`, which Nix never removes by itself, and are written by host
root alone. A collection that runs at that moment is told of every new one by Nix's own rule
(libstore/gc.cc, addTempRoot): if gc.lock cannot be taken shared, a collector holds it, and listens
on gc-socket for paths to spare, answering each with "1".
"""

import asyncio
import fcntl
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from inx_sidecar import paths
from inx_sidecar.errors import RootError

_COLLECTOR_SECONDS = 10.0
_COLLECTOR_PAUSE = 0.01


@dataclass(frozen=True)
class Change:
    """What turns the present roots into the wanted ones."""

    add: Mapping[str, str]
    drop: tuple[str, ...]


def reconcile(wanted: Mapping[str, str], present: Mapping[str, str]) -> Change:
    return Change(
        add={name: path for name, path in wanted.items() if present.get(name) != path},
        drop=tuple(sorted(present.keys() - wanted.keys())),
    )


def directory(lxc_name: str, uuid: str) -> str:
    """Named for the reader of `nix-store --gc --print-roots`; the uuid makes it unique."""
    return f"{paths.GCROOTS}/{lxc_name}.{uuid}"


def read(root_directory: str) -> dict[str, str]:
    try:
        names = os.listdir(root_directory)
    except FileNotFoundError:
        return {}
    return {name: os.readlink(f"{root_directory}/{name}") for name in names}


async def keep(lxc_name: str, uuid: str, wanted: Mapping[str, str], *, drop: bool = True) -> None:
    """Make `wanted` (root name to store path) the roots of the instance; adds come first.

    When this returns, no collection, not even one that runs, deletes a path that was valid before.
    Without `drop`, what is there and not wanted stays.
    """
    root_directory = directory(lxc_name, uuid)
    try:
        change = reconcile(wanted, read(root_directory))
        if change.add:
            os.makedirs(root_directory, mode=0o755, exist_ok=True)
        for name, path in change.add.items():
            temporary = f"{root_directory}/.{secrets.token_hex(8)}"
            os.symlink(path, temporary)
            os.rename(temporary, f"{root_directory}/{name}")
        await _tell_collector(tuple(change.add.values()))
        for name in change.drop if drop else ():
            os.unlink(f"{root_directory}/{name}")
    except OSError as error:
        raise RootError(
            f"cannot keep the system of {lxc_name!r} in {root_directory}: {error.strerror or error}"
        ) from None
    for other in former_directories(lxc_name, uuid) if drop else ():
        shutil.rmtree(other)


def former_directories(lxc_name: str, uuid: str) -> list[str]:
    """Directories of the same instance under names that it had before.

    An import may have the same uuid as the instance it was exported from: what still bears the
    former name keeps its roots.
    """
    try:
        names = os.listdir(paths.GCROOTS)
    except FileNotFoundError:
        return []
    return [
        f"{paths.GCROOTS}/{name}"
        for name in names
        if name.endswith(f".{uuid}")
        and name != f"{lxc_name}.{uuid}"
        and not os.path.lexists(f"{paths.INCUS_CONTAINERS}/{name.removesuffix(f'.{uuid}')}")
    ]


async def _tell_collector(store_paths: Sequence[str]) -> None:
    try:
        async with asyncio.timeout(_COLLECTOR_SECONDS):
            while store_paths and not _no_collector() and not await _spare(store_paths):
                # It opens its socket after it takes the lock, and closes it before it lets go:
                # a moment without an event to wait for.
                await asyncio.sleep(_COLLECTOR_PAUSE)
    except TimeoutError:
        raise RootError(f"the garbage collector did not confirm {store_paths[0]}") from None


def _no_collector() -> bool:
    lock = os.open(paths.GC_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
    return True


async def _spare(store_paths: Sequence[str]) -> bool:
    """Ask the running collector to spare them; False if nobody answers.

    All over one connection: one that is closed at once can abort the collection (NixOS/nix#15962).
    """
    try:
        reader, writer = await asyncio.open_unix_connection(paths.GC_SOCKET)
        try:
            for path in store_paths:
                writer.write(path.encode() + b"\n")
                await writer.drain()
                if await reader.read(1) != b"1":
                    return False
            return True
        finally:
            writer.close()
    except (FileNotFoundError, ConnectionError):
        return False
