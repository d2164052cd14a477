"""Directories of the host that tell names of instances, or paths inside them: root alone enters."""

import asyncio
import contextlib
import os
import re
import shutil
import stat
from typing import Final

from inx_sidecar.base import paths
from inx_sidecar.base.process import run

_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def make_private(uuid: str) -> None:
    """Make the directories of one instance, before anything is put there."""
    for directory in (paths.state_dir(uuid), paths.run_dir(uuid)):
        os.makedirs(directory, mode=0o700, exist_ok=True)


async def make_all_private() -> None:
    """Do so for all directories that exist: earlier versions let every user of the host enter.

    Earlier versions also built in a directory in that of the instance. A user of the host can enter
    no directory there any more, so what is left of such builds is removed.
    """
    os.makedirs(paths.GCROOTS, mode=0o700, exist_ok=True)
    _close(paths.GCROOTS)
    os.makedirs(paths.BUILDS, mode=0o711, exist_ok=True)
    for parent in (paths.STATE, paths.RUN):
        for name in filter(_UUID.fullmatch, os.listdir(parent)):
            with contextlib.suppress(FileNotFoundError):
                _close(f"{parent}/{name}")
    former = [
        f"{paths.state_dir(name)}/build"
        for name in filter(_UUID.fullmatch, os.listdir(paths.STATE))
    ]
    former = [directory for directory in former if os.path.lexists(directory)]
    if former:
        await run(["rm", "-rf", "--one-file-system", "--", *former])


async def remove_run_directory(uuid: str) -> None:
    """Remove what is kept of an instance while it runs.

    A thread removes it: what a store of its own shows has an entry for each path.
    """
    await asyncio.to_thread(shutil.rmtree, paths.run_dir(uuid), ignore_errors=True)


async def remove_directories(uuid: str) -> None:
    """Remove the directories of one instance, which was deleted."""
    await remove_run_directory(uuid)
    # A program of its own: an instance may have registered any number of roots.
    await run(["rm", "-rf", "--one-file-system", "--", paths.state_dir(uuid)])


def _close(directory: str) -> None:
    """Nothing is written if nobody else can enter: the file system may be read-only by now."""
    if stat.S_IMODE(os.stat(directory).st_mode) != 0o700:
        os.chmod(directory, 0o700)
