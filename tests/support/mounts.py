"""The mount table of the machine, beside disposable hosts that others boot and end."""

from pathlib import Path

from support.disposable import HOSTS


def mount_table() -> list[str]:
    """The mounts of this mount namespace, without those of disposable hosts."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line for line in lines if f" {HOSTS}/" not in line]
