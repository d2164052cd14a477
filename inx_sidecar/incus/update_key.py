"""What a status says of the key user.inx.update: the value that was dealt with last."""

import hashlib
from collections.abc import Mapping
from typing import Final

ASKED: Final = "user.inx.update"
DEALT_WITH: Final = "user.inx.status.update"
_MOST: Final = 200
# How the status begins as long as inx has not dealt with what it is asked for.
PENDING: Final = ("building", "queued", "starting")


def shown(value: str) -> str:
    """`value` as the status has it: a value that is long or no printable line as its digest."""
    if len(value) <= _MOST and value.isprintable() and value == value.strip():
        return value
    return f"sha256:{hashlib.sha256(value.encode(errors='surrogateescape')).hexdigest()}"


def asked_now(config: Mapping[str, str]) -> str:
    """What `config` asks for, as the status shows it once it is dealt with."""
    return shown(config.get(ASKED, ""))
