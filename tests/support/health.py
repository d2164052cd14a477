"""Whether an instance works after something has gone wrong on the host."""

from support.incus import Incus


def is_healthy(incus: Incus, name: str) -> None:
    """The system answers, the store is there, and the Nix daemon answers too."""
    incus.wait_inside(name)
    incus.sh(name, "nix store ping && ! touch /nix/var/nix/planted /nix/store/planted")


def stop_and_start(incus: Incus, name: str) -> None:
    incus("stop", name)
    incus.start(name)
    is_healthy(incus, name)
