"""What inx itself has on the host: settings, hooks and services."""

import os

from inx_sidecar.base import paths
from inx_sidecar.base.process import run
from inx_sidecar.checks.finding import Finding
from inx_sidecar.config.settings import load_settings
from inx_sidecar.nix import store_locks
from inx_sidecar.roots import barrier as roots_barrier


async def settings() -> list[Finding]:
    load_settings()
    return [Finding(f"settings in {paths.CONFIG}")]


async def hooks() -> list[Finding]:
    findings = []
    for name in ("pre-start", "mount", "stop", "init"):
        path = f"{paths.HOOKS}/{name}"
        advice = "" if os.access(path, os.X_OK) else "cannot be run; install inx again"
        findings.append(Finding(path, advice))
    return findings


async def sidecar() -> list[Finding]:
    done = await run(["systemctl", "is-active", "inx-sidecar.socket"])
    advice = "" if done.status == 0 else "run 'systemctl enable --now inx-sidecar.socket'"
    return [Finding("inx-sidecar.socket is active", advice)]


async def barrier() -> list[Finding]:
    done = await run(["systemctl", "is-active", "inx-barrier.service"])
    subject = "inx-barrier.service: collections wait until all roots stand"
    if done.status == 0:
        return [Finding(subject)]
    roots_barrier.probe()
    return [Finding(subject, "run 'systemctl enable --now inx-barrier.service'")]


async def guard() -> list[Finding]:
    done = await run(["systemctl", "is-active", "inx-guard.service"])
    subject = "inx-guard.service: containers cannot lock what Nix locks"
    if done.status == 0:
        return [Finding(subject)]
    store_locks.probe()
    return [Finding(subject, "run 'systemctl enable --now inx-guard.service'")]
