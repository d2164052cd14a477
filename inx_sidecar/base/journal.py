"""Log messages go to the journal; a field names the instance that a message is about.

`journalctl INX_INSTANCE=web` shows all messages about the instance web.
"""

import logging
import sys
from collections.abc import MutableMapping
from typing import Any, Final

from logging_journald import JournaldTransport

_FIELD: Final = "INX_INSTANCE"
_LEVELS: Final = {logging.ERROR: 3, logging.WARNING: 4, logging.INFO: 6}
_DEBUG: Final = 7

_log = logging.getLogger("inx_sidecar")


class _InstanceLog(logging.LoggerAdapter[logging.Logger]):
    def __init__(self, instance: str) -> None:
        super().__init__(_log)
        self._instance = instance

    def process(
        self, msg: object, kwargs: MutableMapping[str, Any]
    ) -> tuple[object, MutableMapping[str, Any]]:
        return f"{self._instance}: {msg}", {**kwargs, "extra": {_FIELD: self._instance}}


def instance_log(instance: str) -> _InstanceLog:
    """A logger for messages about `instance`, which has the name that LXC gives it."""
    return _InstanceLog(instance)


class _Journal(logging.Handler):
    """Sends records by the journal's own protocol (systemd.journal-fields(7)).

    Without a journal, each line goes to stderr with its level as a prefix (sd-daemon(3)).
    """

    def __init__(self, transport: JournaldTransport | None) -> None:
        super().__init__()
        self._transport = transport

    def emit(self, record: logging.LogRecord) -> None:
        text, level = self.format(record), _LEVELS.get(record.levelno, _DEBUG)
        try:
            if self._transport is None:
                raise OSError
            fields = {"MESSAGE": text, "PRIORITY": level, "SYSLOG_IDENTIFIER": "inx-sidecar"}
            instance = getattr(record, _FIELD, None)
            if instance is not None:
                fields[_FIELD] = instance
            self._transport.send(fields.items())
        except OSError:
            sys.stderr.write("".join(f"<{level}>{line}\n" for line in text.splitlines()))


def log_to_journal() -> None:
    """Send all messages of this process from level INFO up to the journal."""
    try:
        handler = _Journal(JournaldTransport())
    except OSError:
        handler = _Journal(None)  # journald does not run
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[handler])
