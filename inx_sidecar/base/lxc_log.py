"""The instance's lxc.log, which `incus info NAME --show-log` prints: why a start failed.

LXC opens the file for appending (lxc src/lxc/log.c), and Incus rotates it before the hooks run.
The hooks import this module, so it imports nothing heavy.
"""

import errno
import os
import time


def append(config: str, lxc_name: str, message: str) -> str:
    """Append `message` in LXC's own format to the log that `config`, an lxc.conf, names.

    Returns the line. The line is not written if the log is missing, as for a deleted instance.
    """
    now = time.time()
    stamp = time.strftime("%Y%m%d%H%M%S", time.gmtime(now)) + f".{int(now * 1000) % 1000:03d}"
    line = f"lxc {lxc_name} {stamp} ERROR    inx - {message}\n"
    try:
        _append(_log_file(config), line)
    except OSError:
        pass
    return line


def _append(path: str, line: str) -> None:
    """Append `line` to an existing file. OSError if that fails.

    In the mount namespace of the sidecar, `path` is read-only: the sidecar does not know where the
    logs are, and `storage.logs_volume` moves them while the sidecar runs. Through the root
    directory of PID 1, the file is as the host sees it. A link in `path` would lead back, so it is
    followed first.
    """
    try:
        log = open(path, "r+", errors="surrogateescape")
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
        log = open(f"/proc/1/root{os.path.realpath(path)}", "r+", errors="surrogateescape")
    with log:
        log.seek(0, 2)
        log.write(line)


def _log_file(config: str) -> str:
    with open(config, errors="surrogateescape") as lines:
        for line in lines:
            key, _, value = line.partition("=")
            if key.strip() == "lxc.log.file":
                return value.strip()
    raise FileNotFoundError(config)
