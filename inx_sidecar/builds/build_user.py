"""The user who evaluates the configuration of an instance.

An evaluation of Nix code reads files and runs git with the rights of its user. So a source on this
host is evaluated as the one user who owns all of it, provided that nobody else, beside root, could
have put it there: not by the rights on its files, and not from inside an instance. Every other
source on this host is evaluated as a user that exists for this build alone, in the groups of
`build_user`. A source that Nix fetches is evaluated as `build_user`, whose caches stay.
"""

import asyncio
import os
import pwd
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from inx_sidecar.base import paths
from inx_sidecar.base.errors import BuildError, MountError, UnsupportedError, one_line
from inx_sidecar.builds import local_source, shared_places
from inx_sidecar.builds.build_slots import TRUSTED
from inx_sidecar.builds.local_source import LocalSource
from inx_sidecar.builds.shared_places import Shared
from inx_sidecar.config.settings import Settings
from inx_sidecar.config.sources import Flake, NixFile, Source, System
from inx_sidecar.incus.request import IncusError
from inx_sidecar.kernel.forked import run_in_child
from inx_sidecar.kernel.mount_table import Place, read_mounts

# A file system that does not answer must not hold a build for ever.
SECONDS: Final = 10.0
_SHARED: Final = "the look at the disk devices of instances"
FILE_SCHEMES: Final = ("file:", "hg+file:", "tarball+file:", "file+file:")


@dataclass(frozen=True)
class BuildUser:
    """A user of the host, as passwd(5) describes one."""

    name: str
    uid: int
    gid: int
    home: str


@dataclass(frozen=True)
class Evaluator:
    """`source` is what Nix is given.

    `is_owner`: `user` alone has made the source. `doubt` says why nobody is its owner, though it
    lies on this host. Then `user` lends only its groups to a user of this build alone, and git may
    use `repositories`, which are somebody else's. `directory` is the highest directory on this host
    that is read, or empty, and `owner` the name of the user to whom it belongs, or empty.
    """

    user: BuildUser
    source: Source
    is_owner: bool = False
    doubt: str = ""
    repositories: tuple[str, ...] = ()
    directory: str = ""
    owner: str = ""


def slot_owner(evaluator: Evaluator, project: str) -> str:
    """Whose builds wait for one another if there are too many; TRUSTED if nobody's do.

    That is the user who alone has made the source, or else those who chose it: whoever may edit one
    instance of a project may edit all of them.
    """
    if isinstance(evaluator.source, System) or (evaluator.is_owner and evaluator.user.uid == 0):
        return TRUSTED
    return f"user {evaluator.user.name}" if evaluator.is_owner else f"project {project}"


@dataclass(frozen=True)
class SharedPlaces:
    """Where the files lie that `by` can write from inside; `error` if that is not known."""

    by: str
    places: tuple[Place, ...]
    error: str = ""


async def evaluator_of(source: Source, settings: Settings, instance: str) -> Evaluator:
    """Who evaluates `source` of `instance`, by a look at its files and at what instances share now.

    BuildError if the source does not exist, UnsupportedError if the user does not exist.
    """
    if isinstance(source, Flake) and source.ref.startswith(FILE_SCHEMES):
        doubt = "inx does not know who can change what its scheme leads to"
        return Evaluator(build_user(settings), source, doubt=doubt)
    if not isinstance(source, NixFile) and not (isinstance(source, Flake) and source.local()):
        return Evaluator(build_user(settings), source)
    local_source.check_path(source)
    looked, shared = await asyncio.gather(_look(source, instance), _shared_places())
    return evaluator_for(source, looked, shared, settings)


def evaluator_for(
    source: Flake | NixFile,
    looked: LocalSource,
    shared: Sequence[SharedPlaces] | str,
    settings: Settings,
) -> Evaluator:
    """Who evaluates a source on this host. UnsupportedError if the user does not exist."""
    owner, doubt = choose_owner(looked, shared)
    doubt = one_line(doubt)  # with names of files, which may be any bytes
    if isinstance(source, Flake):
        source = replace(source, ref=looked.ref)
    else:
        source = replace(source, path=looked.ref)
    if owner is None:
        user = build_user(settings)
        return Evaluator(
            user,
            source,
            doubt=doubt,
            repositories=looked.repositories,
            directory=looked.directory,
            owner=_name_of(looked.directory_owner),
        )
    try:
        user = _user(pwd.getpwuid(owner))
        return Evaluator(user, source, is_owner=True, directory=looked.directory)
    except KeyError:
        raise UnsupportedError(
            one_line(
                f"there is no user {owner}, who owns {looked.directory}, to build as: give the "
                "directory to a user of this host"
            )
        ) from None


def choose_owner(
    looked: LocalSource, shared: Sequence[SharedPlaces] | str
) -> tuple[int | None, str]:
    """The id of the user who evaluates a source, or None, and why there is none.

    `shared` is a text if it is not known what instances can write: the reason.
    """
    if looked.owner is None:
        return None, looked.doubt
    if isinstance(shared, str):
        return None, shared
    for each in shared:
        if each.error:
            return None, f"{each.by} {each.error}"
        for place in each.places:
            if any(step.is_within(place) for step in looked.steps) or any(
                tree.is_within(place) or place.is_within(tree) for tree in looked.trees
            ):
                return None, f"{each.by} files of {looked.directory}"
    return looked.owner, ""


async def _look(source: Flake | NixFile, instance: str) -> LocalSource:
    """BuildError if the source does not exist, or its file system does not answer."""
    try:
        value, _ = await run_in_child(
            lambda: (local_source.look_at(source).to_json(), []),
            f"the look at {source}",
            SECONDS,
            instance=instance,
        )
    except (BuildError, MountError) as error:
        raise BuildError(one_line(str(error))) from None
    return LocalSource.from_json(value)


async def _shared_places() -> list[SharedPlaces] | str:
    """The places of everything that instances share; the reason if they are not known."""
    try:
        shared = await shared_places.ask_incus()
        value, _ = await run_in_child(
            lambda: (_find_places(shared), []), _SHARED, SECONDS, group=_SHARED
        )
    except (IncusError, MountError) as error:
        return f"it is not known which directories instances can write: {error}"
    return [
        SharedPlaces(each["by"], tuple(Place(*place) for place in each["places"]), each["error"])
        for each in value
    ]


def _find_places(shared: Iterable[Shared]) -> list[Mapping[str, Any]]:
    mounts = read_mounts()
    found: list[Mapping[str, Any]] = []
    for each in shared:
        places, error = list[Place](), ""
        if each.source is None:
            error = "the files of the host"
        else:
            try:
                places = shared_places.places_of(mounts, each.source)
            except OSError as reason:
                error = f"{each.source}, and it is not known where that lies ({reason.strerror})"
        texts = [(place.device, place.path) for place in places]
        found.append({"by": each.by, "places": texts, "error": error})
    return found


def build_user(settings: Settings) -> BuildUser:
    """The user of the setting `build_user`. UnsupportedError if there is none."""
    try:
        return _user(pwd.getpwnam(settings.build_user))
    except KeyError:
        raise UnsupportedError(
            f"there is no user {settings.build_user}, to build as: make the user, or change "
            f"build_user in {paths.CONFIG}"
        ) from None


def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return ""


def _user(entry: pwd.struct_passwd) -> BuildUser:
    return BuildUser(entry.pw_name, entry.pw_uid, entry.pw_gid, entry.pw_dir)


def groups_of(user: BuildUser) -> list[int]:
    """The ids of the supplementary groups of `user`."""
    return [group for group in os.getgrouplist(user.name, user.gid) if group != user.gid]
