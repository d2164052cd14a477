"""What can go wrong in the operator's words: each kind of error has its own exit status.

The status is what LXC logs ("Script exited with status N"), the text is what the hook adds to
that log. README.md lists the statuses; a test keeps the two in step.
"""

from typing import ClassVar


class InxError(Exception):
    """An expected failure; its text is the whole message: one sentence, no full stop."""

    status: ClassVar[int] = 1

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class ConfigError(InxError):
    """A `user.inx.*` key or a host setting has a value that is not allowed."""

    status = 20


class SystemMissingError(InxError):
    """The wanted system or generation does not exist, or is not a NixOS system."""

    status = 21


class InstanceError(InxError):
    """The instance's files cannot be used: something stands in the way, or cannot be read."""

    status = 22


class MountError(InxError):
    """The kernel refused a mount."""

    status = 23


class BuildError(InxError):
    """The system could not be built."""

    status = 24


class UnreachableError(InxError):
    """The sidecar does not answer."""

    status = 25


class RootError(InxError):
    """A store path cannot be kept from the garbage collector."""

    status = 26


class UnsupportedError(InxError):
    """This host lacks something that inx needs."""

    status = 27


def one_line(text: str) -> str:
    """`text` as one printable line of at most 1000 characters: it goes to logs and terminals."""
    flat = " ".join(text.split())
    return "".join(c if c.isprintable() else "?" for c in flat)[:1000]
