"""The instance's lxc.log: what `incus info NAME --show-log` prints, and so where reasons belong.

LXC opens it for appending (lxc src/lxc/log.c) and Incus turns it over before the hooks run.
Imported by the hooks: keep it light.
"""

import time


def append(config: str, lxc_name: str, message: str) -> str:
    """Add one line in LXC's own form to the log that `config`, an lxc.conf, names; the line.

    Nothing is written if there is no such log any more, as of an instance that is gone.
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
