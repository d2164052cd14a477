"""`inx-sidecar check`: does this host have what inx needs? One finding per line."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

from inx_sidecar.base.errors import InxError, sentence_of
from inx_sidecar.checks import host, incus, installation, nix, storage
from inx_sidecar.checks.finding import Finding

_SLOW_SECONDS: Final = 1.0


async def run_checks(tell: Callable[[str], None]) -> AsyncIterator[Finding]:
    """All findings, in the order in which problems are best solved.

    `tell` gets what is looked at, if that takes longer than a second.
    """
    for check in _CHECKS:
        subject = check.__name__.replace("_", " ")
        task = asyncio.ensure_future(check())
        done, _ = await asyncio.wait({task}, timeout=_SLOW_SECONDS)
        if not done:
            tell(f"looking at: {subject}")
        try:
            findings = await task
        except (InxError, OSError) as error:
            findings = [Finding(subject, sentence_of(error))]
        for finding in findings:
            yield finding


_CHECKS: Final[tuple[Callable[[], Awaitable[list[Finding]]], ...]] = (
    host.kernel, host.cgroups, nix.nix, nix.owner, host.owners_mapped, host.isolated_store,
    host.own_store,
    host.busybox, installation.settings, storage.directories, nix.nix_daemon, storage.build_home,
    installation.hooks, installation.sidecar, installation.barrier, installation.guard, host.leases,
    incus.incus, incus.profile, incus.docker, incus.instances, incus.members,
)  # fmt: skip
