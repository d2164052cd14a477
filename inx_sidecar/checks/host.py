"""What inx needs of the kernel and of the host."""

import os
import platform
from collections.abc import Callable
from typing import Final

from inx_sidecar.base import paths
from inx_sidecar.base.errors import InxError
from inx_sidecar.base.process import run
from inx_sidecar.checks.finding import Finding, at_least
from inx_sidecar.container.trial_mounts import (
    try_isolated_store,
    try_mapping_owners,
    try_own_store,
)
from inx_sidecar.kernel import forked

_KERNEL: Final = (5, 12)


async def kernel() -> list[Finding]:
    release = platform.release()
    return [at_least("Linux", release, _KERNEL, "idmapped mounts came with 5.12")]


async def cgroups() -> list[Finding]:
    """inx finds an instance's processes, and their mount namespaces, by the instance's cgroup."""
    unified = os.path.exists("/sys/fs/cgroup/cgroup.controllers")
    unified = unified or os.path.isdir("/sys/fs/cgroup/unified")
    advice = "" if unified else "not mounted: GC roots of instances are never dropped"
    return [Finding("unified cgroup hierarchy", advice)]


async def owners_mapped() -> list[Finding]:
    subject = f"{paths.STORE} on a file system that can map owners"
    consequence = "unprivileged containers see it owned by nobody"
    return [await _try(subject, try_mapping_owners, "mapping owners", consequence)]


async def isolated_store() -> list[Finding]:
    subject = f"a part of {paths.STORE} can be shown alone"
    consequence = "instances with user.inx.store=isolated do not start"
    return [await _try(subject, try_isolated_store, "mounting", consequence)]


async def own_store() -> list[Finding]:
    subject = f"a writable overlay over a part of {paths.STORE}"
    consequence = "instances with user.inx.store=own do not start"
    found = await _try(subject, try_own_store, "mounting", consequence)
    return [Finding(subject, warning=found.advice)]


async def _try(
    subject: str, attempt: Callable[[], forked.Result], action: str, consequence: str
) -> Finding:
    """Run `attempt` in a child; `consequence` says what follows if it fails."""
    try:
        await forked.run_in_child(attempt, action)
    except InxError as error:
        return Finding(subject, f"{error}; {consequence}")
    return Finding(subject)


async def busybox() -> list[Finding]:
    done = await run(["busybox", "true"])
    advice = "" if done.status == 0 else "install a static busybox"
    return [Finding("static busybox", advice)]


async def leases() -> list[Finding]:
    with open("/proc/sys/fs/leases-enable") as file:
        enabled = file.read().strip() != "0"
    subject = "fs.leases-enable"
    if not enabled:
        return [Finding(f"{subject} is 0: containers cannot delay the host by leases")]
    warning = (
        "it is on, so root of a container with a shared store can let the host wait 45 s for a "
        "file of the store; set fs.leases-enable = 0 unless Samba or the NFS server needs leases"
    )
    return [Finding(subject, warning=warning)]
