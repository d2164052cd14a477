"""Look where registered paths of a container lead now.

The container's root, not the host's, reads them, in a forked child that may hang and is then left
behind, and finds no way out of the container's root directory (openat2 with RESOLVE_IN_ROOT, no
magic links). As for Nix, a root is a path whose last step is a link with the text of a store path.
"""

import asyncio
import errno
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from inx_sidecar.base.errors import InstanceError, InxError
from inx_sidecar.base.paths import GCROOTS_INSIDE
from inx_sidecar.container.mounts import Container
from inx_sidecar.kernel import forked
from inx_sidecar.kernel.syscalls import (
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    mount_id,
    openat2,
    opened,
)
from inx_sidecar.links import indirect_roots
from inx_sidecar.links.process_roots import View, of_container
from inx_sidecar.nix.store import store_path_of

# A file system that does not answer for so long keeps what was found there before.
_SECONDS: Final = 4.0
# These answers are final; others may be due to the moment, or to a right that root lacks.
_NO_SUCH_LINK: Final = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}
# Before each answer; JSON takes it for white space.
_BEGUN: Final = b" "
_LACKING: Final = "copies and snapshots lack roots"
_RESOLVE: Final = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS


@dataclass(frozen=True)
class Sight:
    """What was seen at one path, over all views.

    `targets`: the store paths found; True if found on the root file system in the view of init,
    which is always there. `found` and `missing`: the places that have such a link, or surely have
    none; a place is a view, and the step of the path at which a mount begins there. `sure`: nothing
    kept us from looking.
    """

    targets: Mapping[str, bool] = field(default_factory=dict)
    found: frozenset[str] = frozenset()
    missing: frozenset[str] = frozenset()
    sure: bool = True


@dataclass(frozen=True)
class Process:
    """A container's init, told from a later process by when it began (`running.started`)."""

    pid: int
    started: int


@dataclass(frozen=True)
class Looked:
    """What was seen, up to the path at which a file system did not answer, if any; `trouble` is one
    sentence on what else went wrong. If something did not answer in time, `late` is done when
    whoever waited for it has ended."""

    sights: Mapping[str, Sight]
    hung: str | None = None
    trouble: str = ""
    late: asyncio.Future[None] | None = None


async def look(name: str, process: Process, texts: Sequence[str]) -> Looked:
    """What is at the paths `texts` of a running container, whose own copy of them is completed.

    InstanceError if the container has ended, TookTooLongError if it cannot be looked into in time.
    """

    def inside(progress: int) -> list[str]:
        views, complete = _become(name, process)
        there = [text for text in texts if _tell(progress, text, views, complete)["targets"]]
        trouble = _note(views[0].root, name, add=there)
        few = "" if complete else f"{name!r} has too many processes to look at: no root is dropped"
        return [trouble, few]

    return await _looked(inside, texts, f"looking into {name!r}")


async def look_below(name: str, rootfs: str, texts: Sequence[str]) -> Looked:
    """The same for the root file system of a container that does not run; nothing is written."""

    def inside(progress: int) -> list[str]:
        view = View.at(rootfs)
        for text in texts:
            _tell(progress, text, [view], True)
        return []

    return await _looked(inside, texts, f"looking into {rootfs} of {name!r}")


async def _looked(inside: Callable[[int], list[str]], texts: Sequence[str], what: str) -> Looked:
    """Run `inside` in a child, which writes each answer as it has it: a path that does not answer
    keeps nobody from those before it."""
    with opened(os.memfd_create("sights", os.MFD_CLOEXEC)) as progress:
        try:
            troubles, _ = await forked.call(lambda: (inside(progress), []), what, _SECONDS)
        except forked.TookTooLongError as error:
            if not os.fstat(progress).st_size:
                raise
            sights = _sights(texts, progress)
            if len(sights) == len(texts):
                return Looked(sights, trouble=f"{_LACKING}: {error}", late=error.ended)
            return Looked(sights, hung=texts[len(sights)], late=error.ended)
        return Looked(_sights(texts, progress), trouble="; ".join(filter(None, troubles)))


def _tell(progress: int, text: str, views: Sequence[View], complete: bool) -> dict[str, Any]:
    os.write(progress, _BEGUN)
    answer = _look(text, views, complete)
    os.write(progress, json.dumps(answer).encode() + b"\n")
    return answer


async def forget_inside(name: str, process: Process, texts: Sequence[str]) -> None:
    """Remove `texts` from the container's own copy; errors as for `look`."""

    def inside() -> forked.Result:
        views, _ = _become(name, process)
        return _note(views[0].root, name, remove=texts), []

    await forked.call(inside, f"looking into {name!r}", _SECONDS)


def _become(name: str, process: Process) -> tuple[list[View], bool]:
    with Container(process.pid, name) as container:
        try:
            views = of_container(process.pid, process.started)
        except (FileNotFoundError, ProcessLookupError):
            raise InstanceError(f"process {process.pid} of {name!r} is gone") from None
        container.become_its_root()
    return views


def _note(root: int, name: str, add: Iterable[str] = (), remove: Iterable[str] = ()) -> str:
    try:
        indirect_roots.write_inside(root, name, add, remove)
    except InxError as error:
        return f"{_LACKING}: {error}"
    except OSError as error:
        place = f"/{GCROOTS_INSIDE}/auto of {name!r}"
        return f"{_LACKING}: {place} cannot be written: {error.strerror}"
    return ""


def _look(text: str, views: Sequence[View], complete: bool) -> dict[str, Any]:
    """As Sight, of what JSON can carry."""
    targets: dict[str, bool] = {}
    found, missing = [], []
    sure = complete
    for number, view in enumerate(views):
        try:
            target, mount = _read(view.root, text)
        except OSError as error:
            if error.errno not in _NO_SUCH_LINK:
                sure = False
                continue
            target, mount = "", _mount_of(view.root, text)
        path = store_path_of(target)
        if path is not None:
            home = number == 0 and mount == view.mount
            targets[path] = targets.get(path, False) or home
            found.append(_place(view, text, mount))
        else:
            missing.append(_place(view, text, mount))
    return {"targets": targets, "found": found, "missing": missing, "sure": sure}


def _place(view: View, text: str, mount: int) -> str:
    """The view, and at which step of `text` the file system `mount` begins, if not at its root."""
    if mount == view.mount:
        return view.identity
    steps = [step for step in text.split("/") if step]
    first: int | None = None
    for count in range(len(steps) - 1, -1, -1):
        try:
            above = "/".join(steps[:count]) or "."
            with opened(openat2(view.root, above, os.O_PATH | os.O_DIRECTORY, _RESOLVE)) as place:
                if mount_id(place) == mount:
                    first = count
                elif first is not None:
                    break
        except OSError:
            continue
    return f"{view.identity}@{first}"


def _read(root: int, text: str) -> tuple[str, int]:
    """The text of the link at the path `text`, "" if it is none, and the mount it lies on."""
    flags = os.O_PATH | os.O_NOFOLLOW
    with opened(openat2(root, text.lstrip("/"), flags, _RESOLVE)) as link:
        mount = mount_id(link)
        try:
            return os.readlink("", dir_fd=link), mount
        except FileNotFoundError:
            return "", mount  # readlink(2): an empty path that is no link


def _mount_of(root: int, text: str) -> int:
    """The mount of the deepest directory above `text` that is there."""
    steps = [step for step in text.split("/") if step]
    low, high = 0, len(steps)
    deepest = mount_id(root)
    while low < high:
        middle = (low + high) // 2
        above = "/".join(steps[:middle]) or "."
        try:
            with opened(openat2(root, above, os.O_PATH | os.O_DIRECTORY, _RESOLVE)) as directory:
                deepest = mount_id(directory)
            low = middle + 1
        except OSError:
            high = middle
    return deepest


def _sights(texts: Sequence[str], progress: int) -> dict[str, Sight]:
    """Of those paths, from the first, that have an answer."""
    os.lseek(progress, 0, os.SEEK_SET)
    with open(progress, "rb", closefd=False) as file:
        answers = [json.loads(line) for line in file if line.endswith(b"\n")]
    return {
        text: Sight(
            targets=answer["targets"],
            found=frozenset(answer["found"]),
            missing=frozenset(answer["missing"]),
            sure=answer["sure"],
        )
        for text, answer in zip(texts, answers, strict=False)
    }
