"""Expected failures, in the operator's words: each kind of error has its own exit status.

LXC logs the exit status of a hook ("Script exited with status N"); the hook adds the text to that
log. The documentation lists the statuses, and a test compares that list with this module.
"""

from typing import ClassVar, Final

_LONG_WORD: Final = 300
_KEY_MAX: Final = 200


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
    """The kernel refused a mount, or a child that works inside a container failed or took too
    long."""

    status = 23


class BuildError(InxError):
    """The system could not be built."""

    status = 24


class UnreachableError(InxError):
    """The sidecar does not answer."""

    status = 25


class RootError(InxError):
    """A store path cannot be kept from the garbage collector, or not all roots could be
    compared."""

    status = 26


class UnsupportedError(InxError):
    """This host lacks something that inx needs."""

    status = 27


class ActivationError(InxError):
    """A system could not be activated in a running instance."""

    status = 29


class NetworkError(InxError):
    """The addresses of an instance cannot be set up as its configuration says."""

    status = 30


class DeclarationError(InxError):
    """Instances that the host declares could not be made what they are declared to be."""

    status = 31


def reason_of(error: Exception) -> str:
    """What `error` says, without the number of a system call's error."""
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)


def sentence_of(error: Exception) -> str:
    """`reason_of`, with the file that an OSError concerns, if it names one."""
    file = error.filename if isinstance(error, OSError) else None
    return f"cannot use {file}: {reason_of(error)}" if file else reason_of(error)


def quoted(text: str, most: int = 200) -> str:
    """`text`, which may be anything, in quotes and cut to `most` characters."""
    return repr(text if len(text) <= most else text[:most] + "...")


def not_allowed(key: str, value: str, allowed: str) -> ConfigError:
    """The error for a `value` of `key` that is not what `allowed` describes."""
    key = key if len(key) <= _KEY_MAX else key[:_KEY_MAX] + "..."
    return ConfigError(f"{key} is {quoted(value)}; allowed: {allowed}")


def one_line(text: str, most: int = 1000) -> str:
    """`text` as one printable line of at most `most` characters, for logs and terminals.

    A line that is too long is cut between two words: nix.store_paths.redact_store_paths would not
    recognise a part of a store path. Only a word longer than any store path is cut itself.
    """
    flat = " ".join(text.split())
    line = "".join(c if c.isprintable() else "?" for c in flat)
    if len(line) <= most:
        return line
    head, _, last = line[:most].rpartition(" ")
    return head if head and len(last) < _LONG_WORD else line[:most]
