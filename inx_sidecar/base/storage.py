"""A file system of the host takes no more files: one sentence says which one, and what to do."""

import errno
import functools
import os
from collections.abc import Callable, Coroutine
from typing import Any, Final, ParamSpec, TypeVar

from inx_sidecar.base import paths
from inx_sidecar.base.errors import UnsupportedError

P = ParamSpec("P")
T = TypeVar("T")

_REFUSED: Final = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
# Where inx writes on the host.
_PLACES: Final = (paths.STATE, paths.RUN, paths.LOG, paths.HOST_GCROOTS)


def storage_error(error: BaseException) -> UnsupportedError | None:
    """What `error` means if a file system of the host refused a file; else None."""
    if not isinstance(error, OSError) or error.errno not in _REFUSED:
        return None
    place = error.filename if isinstance(error.filename, str) else ""
    where = place or next(filter(_takes_no_files, _PLACES), " or ".join(_PLACES))
    return UnsupportedError(f"cannot write {where} ({error.strerror}): {remedy(error, where)}")


def remedy(error: OSError, place: str) -> str:
    """What to do about `error` if the file system of `place`, on the host, refused a file; else
    empty."""
    if error.errno not in _REFUSED:
        return ""
    if error.errno == errno.EROFS:
        return "mount it writable, and try again"
    if _lacks_inodes(place):
        return "its file system has no inodes left, so remove files there, and try again"
    return "make space there, and try again"


def names_full_storage(
    function: Callable[P, Coroutine[Any, Any, T]],
) -> Callable[P, Coroutine[Any, Any, T]]:
    """`function`, with UnsupportedError in place of an OSError that a full, or read-only, file
    system of the host causes."""

    @functools.wraps(function)
    async def named(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await function(*args, **kwargs)
        except OSError as error:
            if (known := storage_error(error)) is not None:
                raise known from None
            raise

    return named


def _lacks_inodes(place: str) -> bool:
    """Whether there is space, but no new file can be made at `place`, which may not exist."""
    while place != "/" and not os.path.lexists(place):
        place = os.path.dirname(place)
    try:
        status = os.statvfs(place)
    except OSError:
        return False
    return status.f_bavail > 0 and status.f_files > 0 and status.f_ffree == 0


def _takes_no_files(place: str) -> bool:
    try:
        status = os.statvfs(place)
    except OSError:
        return False
    # btrfs has no limit of files, and says 0 of 0.
    no_files = status.f_files > 0 and status.f_ffree == 0
    return status.f_bavail == 0 or no_files or bool(status.f_flag & os.ST_RDONLY)
