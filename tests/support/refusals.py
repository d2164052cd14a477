"""Starts that fail, and the one sentence that inx gives as the reason."""

import re
from subprocess import CompletedProcess

from support.incus import Incus

MARK = " inx - "


def start(incus: Incus, name: str) -> int:
    """The exit status of a start that came as far as the hooks.

    Incus itself refuses a start while the sidecar writes a status, and while the last start is
    still being put away. Then the start is tried again.
    """
    done: list[CompletedProcess[str]] = []

    def tried() -> bool:
        done.append(incus.start(name, check=False))
        # Incus 7 calls the program forklxc, Incus 6.0 forkstart.
        came = re.search(r"incusd fork(lxc|start) ", done[-1].stderr)
        return done[-1].returncode == 0 or came is not None

    incus.eventually(tried, lambda: done[-1].stderr)
    return done[-1].returncode


def sentence(incus: Incus, name: str) -> str:
    """The only line of inx in the log that Incus shows."""
    said: list[str] = []

    def logged() -> bool:
        # While LXC still takes the container down, Incus may answer "Invalid PID" instead.
        said[:] = [line for line in incus.log(name).split("\n") if MARK in line]
        return said != []

    incus.eventually(logged, lambda: f"the log of {name} is {incus.log(name)!r}")
    assert len(said) == 1 and said[0].isprintable() and len(said[0]) < 1200, said
    assert f"ERROR   {MARK}" in said[0], said
    return said[0].partition(MARK)[2].strip()


def refused(incus: Incus, name: str) -> str:
    """Start the instance, which has to fail: the sentence."""
    assert incus.start(name, check=False).returncode != 0
    return sentence(incus, name)


def refusal(incus: Incus, name: str) -> str:
    """The sentence, once the status has it too.

    After that, no write of the status disturbs a later request.
    """
    text = sentence(incus, name)
    incus.eventually(
        lambda: incus.status(name).startswith(f"failed: {text}"[:300].strip()),
        lambda: f"{text!r} is not the status, but {incus.status(name)!r}",
    )
    return text
