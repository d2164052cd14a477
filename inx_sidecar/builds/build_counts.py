"""How many builds of each instance ended since the sidecar began, and how many of them failed."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from inx_sidecar.base.errors import InxError

# By the uuid of the instance. Only operators ask for builds, so the number of entries is bounded.
ended: Final[Counter[str]] = Counter()
failed: Final[Counter[str]] = Counter()


@contextmanager
def counted(uuid: str) -> Iterator[None]:
    """Count the build that runs in the block. A build that is cancelled has not ended."""
    try:
        yield
    except InxError:
        ended[uuid] += 1
        failed[uuid] += 1
        raise
    ended[uuid] += 1


def forget(uuid: str) -> None:
    """The instance was deleted."""
    ended.pop(uuid, None)
    failed.pop(uuid, None)
