"""The instance's lxc.log, which `incus info NAME --show-log` prints: why a start failed.

LXC opens the file for appending (lxc src/lxc/log.c), and Incus rotates it before the hooks run.
The hooks import this module, so it imports nothing heavy.
"""

import time


def append(config: str, lxc_name: str, message: str) -> str:
    """Append `message` in LXC's own format to the log that `config`, an lxc.conf, names.

    Returns the line. The line is not written if the log is missing, as for a deleted instance.
    """
    now = time.time()
    stamp = time.strftime("%Y%m%d%H%M%S", time.gmtime(now)) + f".{int(now * 1000) % 1000:03d}"
    line = f"lxc {lxc_name} {stamp} ERROR    inx - {message}\n"
    try:
        with open(_log_file(config), "r+", errors="surrogateescape") as log:
            log.seek(0, 2)
            log.write(line)
    except OSError:
        pass
    return line


def _log_file(config: str) -> str:
    with open(config, errors="surrogateescape") as lines:
        for line in lines:
            key, _, value = line.partition("=")
            if key.strip() == "lxc.log.file":
                return value.strip()
    raise FileNotFoundError(config)
