"""`user.inx.check`: what has to succeed inside an instance after an update."""

import re
from typing import Final

from inx_sidecar.base import paths

_UNIT: Final = re.compile(
    r"[A-Za-z0-9:_.\\@-]{1,200}\.(?:service|socket|target|timer|mount|automount|swap|path|slice|scope)"
)
_PROGRAM: Final = re.compile(r"/[!%+,./0-9:=@A-Z_a-z~-]{0,1023}")
# No quotes and no backslash: no shell takes them away.
_ARGUMENT: Final = re.compile(r"[!#$%&()*+,./0-9:;<=>?@A-Z\[\]^_a-z{|}~-]{1,1023}")
_MOST: Final = 2000
_SHOWN_MAX: Final = 100
ALLOWED: Final = (
    "the name of a unit, as nginx.service, or the absolute path of a program inside and its "
    "arguments, with one blank between and without quotes"
)
# As PID 1 is the systemd of the system that was booted, so is its client.
_SYSTEMCTL: Final = f"/{paths.RUN_INSIDE}/booted-system/sw/bin/systemctl"


def is_check(text: str) -> bool:
    """Whether `text` may be the value of the key."""
    program, *arguments = text.split(" ")
    if _UNIT.fullmatch(text) and not text.startswith("-"):
        return True
    return (
        len(text) <= _MOST
        and _PROGRAM.fullmatch(program) is not None
        and all(_ARGUMENT.fullmatch(argument) for argument in arguments)
    )


def command_of(check: str) -> list[str]:
    """The program, with its arguments, that succeeds inside if all is well."""
    return check.split(" ") if check.startswith("/") else [_SYSTEMCTL, "is-active", "--", check]


def name_of(check: str) -> str:
    """The unit or the program, for a status: arguments may be secret."""
    return check.partition(" ")[0][:_SHOWN_MAX]
