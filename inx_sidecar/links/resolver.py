"""Find what the registered paths of a container lead to now.

A forked child looks. In a running container, the child has become the container's root. In a root
file system that is not in use, the child keeps the rights of the host's root. In both cases the
kernel keeps the child below the root directory (openat2 with RESOLVE_IN_ROOT, no magic links). A
child that waits for ever on a file system of the container is left behind. As for Nix, a root is a
path whose last component is a link with the text of a store path.
"""

import asyncio
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

from inx_sidecar.base.errors import InstanceError, InxError
from inx_sidecar.base.paths import GCROOTS_INSIDE
from inx_sidecar.container.namespaces import Container
from inx_sidecar.kernel import forked
from inx_sidecar.kernel.syscalls import opened
from inx_sidecar.links.cached_rights import cache_rights
from inx_sidecar.links.link_lookup import look_up
from inx_sidecar.links.link_state import LinkState, look_at
from inx_sidecar.links.registration_copy import write_copy
from inx_sidecar.links.root_directories import INIT, RootDirectory, root_directories_of

# After so many seconds a file system counts as one that does not answer: what was found there
# before is kept.
_SECONDS: Final = 4.0
# The event loop, and children for hooks, come first: roots are made before a child looks. Only
# processes of this service are compared, so no container gets ahead by that (sched(7), cgroups).
_NICENESS: Final = 10
# The child writes it before each answer. JSON takes it for white space.
_ANSWER_BEGINS: Final = b" "
_COPY_INCOMPLETE: Final = "copies and snapshots lack roots"
_MAX_FOUND: Final = 4
_MAX_TARGETS: Final = 64

# What a child says at its end: what went wrong, and the fields of a LinkState, if there is one.
_Word = tuple[list[str], list[Any] | None]


@dataclass(frozen=True, slots=True)
class ResolvedLink:
    """What is at one registered path, below all root directories of the container.

    `targets`: the store paths that the link leads to. The value is True if the link lies on the
    root file system as init sees it, which always exists.
    `found` and `missing`: places that have such a link, at most _MAX_FOUND, and places that
    certainly have none. A place is a root directory, and the component of the path at which a mount
    begins there.
    `sure`: False if an error may hide a link.
    """

    targets: Mapping[str, bool] = field(default_factory=dict)
    found: frozenset[str] = frozenset()
    missing: frozenset[str] = frozenset()
    sure: bool = True


@dataclass(frozen=True)
class InitProcess:
    """A container's init; `started` (see Running) distinguishes it from a later process."""

    pid: int
    started: int


@dataclass(frozen=True)
class Resolution:
    """The links up to the first path whose file system did not answer, which is `unanswered`.

    `problem` is one sentence on what else went wrong. If a child did not end in time,
    `child_exited` is done when it has. As long as `state` is the present one, the answer would be
    the same; None if that cannot be known, or was not asked for.
    """

    links: Mapping[str, ResolvedLink]
    unanswered: str | None = None
    problem: str = ""
    child_exited: asyncio.Future[None] | None = None
    state: LinkState | None = None


async def resolve_links(
    name: str,
    process: InitProcess,
    texts: Sequence[str],
    last_found: Mapping[str, frozenset[str]] | None = None,
) -> Resolution:
    """Resolve the paths `texts` in the running container `name`, and complete the copy of them that
    the container itself keeps.

    With `last_found`, the places where each path was found before, only these count as missing, and
    the state is looked at, too: so asks a comparison. Without, links are only to be added.
    InstanceError if the container has ended, TookTooLongError if no path was resolved in time.
    """

    def inside(answers: int) -> _Word:
        roots, complete = _become_root(name, process)
        state = None if last_found is None else look_at(roots, texts, cached=True)
        present = [
            text
            for text in texts
            if _answer(answers, text, roots, complete, (last_found or {}).get(text))["targets"]
        ]
        problem = _keep_copy(roots[0].fd, name, add=present)
        many = f"{name!r} has too many processes to look at: no root is dropped"
        problems = [text for text in (problem, "" if complete else many) if text]
        # Only now it is known what is missing. A way may also have led elsewhere meanwhile.
        if problems or state is None or state != look_at(roots, texts, cached=False):
            return problems, None
        cache_rights(roots, state.directories)
        return problems, [state.directories, sorted(state.mounts), state.digest]

    return await _resolve_in_child(inside, texts, f"looking into {name!r}", name)


async def resolve_links_offline(name: str, rootfs: str, texts: Sequence[str]) -> Resolution:
    """Resolve the paths `texts` in the root file system of a container that does not run; nothing
    is written. TookTooLongError if no path was resolved in time."""

    def inside(answers: int) -> _Word:
        root = RootDirectory.at(rootfs)
        for text in texts:
            _answer(answers, text, [root], True)
        return [], None

    return await _resolve_in_child(inside, texts, f"looking into {rootfs} of {name!r}", name)


async def remove_registrations_inside(
    name: str, process: InitProcess, texts: Sequence[str]
) -> None:
    """Remove the paths `texts` from the container's own copy; errors as for `resolve_links`."""

    def inside() -> forked.Result:
        roots, _ = _become_root(name, process)
        return _keep_copy(roots[0].fd, name, remove=texts), []

    await forked.run_in_child(inside, f"looking into {name!r}", _SECONDS, instance=name)


async def _resolve_in_child(
    inside: Callable[[int], _Word], texts: Sequence[str], action: str, name: str
) -> Resolution:
    """Run `inside` in a child. The child writes each answer at once, so that a path that does not
    answer hides none before it."""

    def look() -> forked.Result:
        os.nice(_NICENESS)
        return inside(answers), []

    with opened(os.memfd_create("answers", os.MFD_CLOEXEC)) as answers:
        try:
            (problems, state), _ = await forked.run_in_child(
                look, action, _SECONDS, fds=[answers], instance=name
            )
        except forked.TookTooLongError as error:
            if not os.fstat(answers).st_size:
                raise
            links = _read_answers(texts, answers)
            if len(links) == len(texts):
                problem = f"{_COPY_INCOMPLETE}: {error}"
                return Resolution(links, problem=problem, child_exited=error.ended)
            return Resolution(links, texts[len(links)], child_exited=error.ended)
        links = _read_answers(texts, answers)
        return Resolution(links, problem="; ".join(problems), state=_parse_state(state))


def _parse_state(word: Any) -> LinkState | None:
    if word is None:
        return None
    directories, mounts, digest = word
    return LinkState(tuple(directories), frozenset(mounts), digest)


def _become_root(name: str, process: InitProcess) -> tuple[list[RootDirectory], bool]:
    """In the child: all root directories, and whether they are complete."""
    with Container(process.pid, name) as container:
        try:
            roots = root_directories_of(process.pid, process.started)
        except (FileNotFoundError, ProcessLookupError):
            raise InstanceError(f"process {process.pid} of {name!r} is gone") from None
        container.become_root()
    return roots


def _keep_copy(root: int, name: str, add: Iterable[str] = (), remove: Iterable[str] = ()) -> str:
    """In the child: change the container's own copy; one sentence if that fails."""
    try:
        write_copy(root, name, add, remove)
    except InxError as error:
        return f"{_COPY_INCOMPLETE}: {error}"
    except OSError as error:
        place = f"/{GCROOTS_INSIDE}/auto of {name!r}"
        return f"{_COPY_INCOMPLETE}: {place} cannot be written: {error.strerror}"
    return ""


def _answer(
    answers: int,
    text: str,
    roots: Sequence[RootDirectory],
    complete: bool,
    last_found: frozenset[str] | None = None,
) -> dict[str, Any]:
    os.write(answers, _ANSWER_BEGINS)
    answer = look_up(text, roots, complete)
    # A container may have any number of places.
    answer["found"] = sorted(answer["found"], key=_init_first)[:_MAX_FOUND]
    if len(answer["targets"]) > _MAX_TARGETS:
        answer["targets"] = dict(islice(answer["targets"].items(), _MAX_TARGETS))
        answer["sure"] = False
    if last_found is not None:
        answer["missing"] = [place for place in answer["missing"] if place in last_found]
    os.write(answers, json.dumps(answer).encode() + b"\n")
    return answer


def _init_first(place: str) -> tuple[bool, str]:
    return not place.startswith(INIT), place


def _read_answers(texts: Sequence[str], answers: int) -> dict[str, ResolvedLink]:
    """The links of the paths, from the first, that have a complete answer."""
    os.lseek(answers, 0, os.SEEK_SET)
    with open(answers, "rb", closefd=False) as file:
        complete = [json.loads(line) for line in file if line.endswith(b"\n")]
    # Most links lie at the same places. There may be many links of many instances at once.
    known: dict[frozenset[str], frozenset[str]] = {}

    def places(answer: Iterable[str]) -> frozenset[str]:
        found = frozenset(answer)
        return known.setdefault(found, found)

    return {
        text: ResolvedLink(
            targets=answer["targets"],
            found=places(answer["found"]),
            missing=places(answer["missing"]),
            sure=answer["sure"],
        )
        for text, answer in zip(texts, complete, strict=False)
    }
