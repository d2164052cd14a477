"""`inx-sidecar check`: does this host have what inx needs? One finding per line."""

from collections.abc import Awaitable, Callable
from typing import Final

from inx_sidecar.base.errors import InxError, sentence_of
from inx_sidecar.checks import host, incus, installation, nix
from inx_sidecar.checks.finding import Finding


async def run_checks() -> list[Finding]:
    """All findings, in the order in which problems are best solved."""
    findings: list[Finding] = []
    for check in _CHECKS:
        try:
            findings += await check()
        except (InxError, OSError) as error:
            subject = check.__name__.replace("_", " ")
            findings.append(Finding(subject, sentence_of(error)))
    return findings


_CHECKS: Final[tuple[Callable[[], Awaitable[list[Finding]]], ...]] = (
    host.kernel, host.cgroups, nix.nix, nix.owner, host.owners_mapped, host.isolated_store,
    host.busybox, installation.settings, nix.nix_daemon, installation.hooks, installation.sidecar,
    installation.barrier, installation.guard, host.leases, incus.incus, incus.profile, incus.docker,
    incus.instances, incus.members,
)  # fmt: skip
