"""Whether the change time (ctime) of a directory distinguishes its next change from its last one.

A change time that is too new does not:

- The kernel takes it from a clock that stands still between two ticks, which are 10 ms or less
  apart, and longer if the processor that moves the clock is late. So the present time is read from
  the same clock.
- ext2, ext3, and ext4 with inodes of 128 bytes keep whole seconds.
- A change sets the time first, and may wait for the disk before others see it (ext4_rename in
  fs/ext4/namei.c; d_move follows in vfs_rename).

Nobody can set a change time. If the clock of the host is set back, a time in the future is too new;
another change at exactly an old time, within a tick or a second, would not be seen.
"""

import time
from typing import Final

_CLOCK_REALTIME_COARSE: Final = 5  # include/uapi/linux/time.h
_MARGIN_NS: Final = 3_000_000_000


def newest_settled() -> int:
    """In nanoseconds since the epoch: what changed later may change again at the same time."""
    return time.clock_gettime_ns(_CLOCK_REALTIME_COARSE) - _MARGIN_NS
