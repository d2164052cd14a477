"""`inx-sidecar check`: does this host have what inx needs? One finding per line."""

import os
import platform
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from inx_sidecar.base import paths
from inx_sidecar.base.errors import ConfigError, InxError, reason_of
from inx_sidecar.base.process import run
from inx_sidecar.builds.build_user import build_user
from inx_sidecar.builds.daemon_access import refusal_of_daemon
from inx_sidecar.builds.failure_reason import failure_reason
from inx_sidecar.config.settings import load_settings
from inx_sidecar.container.forwarding import bridges_dropped_by_docker
from inx_sidecar.container.trial_mounts import try_isolated_store, try_mapping_owners
from inx_sidecar.incus import api as incus
from inx_sidecar.incus import members
from inx_sidecar.instances.missing_hooks import (
    has_hooks,
    may_use_inx,
    missing_lines,
    problem_of,
    shipped_raw_lxc,
)
from inx_sidecar.kernel import forked
from inx_sidecar.nix import store_locks
from inx_sidecar.nix.store_paths import valid_paths
from inx_sidecar.roots import barrier

_KERNEL: Final = (5, 12)
_INCUS: Final = (6, 0)
_NIX: Final = (2, 18)


@dataclass(frozen=True)
class Finding:
    """The result of one check; `advice` says what to do, and is empty if all is well.

    `warning` says what follows from a choice that the operator may have made.
    """

    subject: str
    advice: str = ""
    warning: str = ""

    @property
    def ok(self) -> bool:
        return not self.advice

    def describe(self) -> str:
        if self.advice:
            return f"FAIL  {self.subject}: {self.advice}"
        return f"warn  {self.subject}: {self.warning}" if self.warning else f"ok    {self.subject}"


async def run_checks() -> list[Finding]:
    """All findings, in the order in which problems are best solved."""
    findings: list[Finding] = []
    for check in _CHECKS:
        try:
            findings += await check()
        except (InxError, OSError) as error:
            file = getattr(error, "filename", None)
            place = f"cannot use {file}: " if file else ""
            subject = check.__name__.strip("_").replace("_", " ")
            findings.append(Finding(subject, place + reason_of(error)))
    return findings


async def _kernel() -> list[Finding]:
    release = platform.release()
    return [_at_least("Linux", release, _KERNEL, "idmapped mounts came with 5.12")]


async def _cgroups() -> list[Finding]:
    """inx finds an instance's processes, and their mount namespaces, by the instance's cgroup."""
    unified = os.path.exists("/sys/fs/cgroup/cgroup.controllers")
    unified = unified or os.path.isdir("/sys/fs/cgroup/unified")
    advice = "" if unified else "not mounted: GC roots of instances are never dropped"
    return [Finding("unified cgroup hierarchy", advice)]


async def _owners_mapped() -> list[Finding]:
    subject = f"{paths.STORE} on a file system that can map owners"
    consequence = "unprivileged containers see it owned by nobody"
    return [await _try(subject, try_mapping_owners, "mapping owners", consequence)]


async def _isolated_store() -> list[Finding]:
    subject = f"a part of {paths.STORE} can be shown alone"
    consequence = "instances with user.inx.store=isolated do not start"
    return [await _try(subject, try_isolated_store, "mounting", consequence)]


async def _try(
    subject: str, attempt: Callable[[], forked.Result], action: str, consequence: str
) -> Finding:
    """Run `attempt` in a child; `consequence` says what follows if it fails."""
    try:
        await forked.run_in_child(attempt, action)
    except InxError as error:
        return Finding(subject, f"{error}; {consequence}")
    return Finding(subject)


async def _nix() -> list[Finding]:
    done = await run(["nix", "--version"])
    if done.status:
        return [Finding("Nix", f"it does not run: {failure_reason(done)}; correct that")]
    valid_paths({f"{paths.STORE}/{'0' * 32}-none"})
    return [_at_least("Nix", done.output.split()[-1], _NIX, "daemon --force-untrusted is needed")]


async def _store_owner() -> list[Finding]:
    return [store_owner(os.stat(paths.STORE).st_uid)]


def store_owner(uid: int) -> Finding:
    """A Nix daemon that is not root owns the store (Nix 2.34, `nix.daemonUser` of NixOS). Its
    collector cannot enter the directories of roots, which only root may read, and goes on."""
    subject = f"{paths.STORE} belongs to the user {uid}"
    if uid == 0:
        return Finding(f"{paths.STORE} belongs to root")
    return Finding(
        subject,
        "a collector that is not root does not see the roots of instances; "
        "run the Nix daemon as root",
    )


async def _busybox() -> list[Finding]:
    done = await run(["busybox", "true"])
    advice = "" if done.status == 0 else "install a static busybox"
    return [Finding("static busybox", advice)]


async def _settings() -> list[Finding]:
    load_settings()
    return [Finding(f"settings in {paths.CONFIG}")]


async def _nix_daemon() -> list[Finding]:
    if (await run(["nix", "--version"])).status:
        return []  # _nix says why
    try:
        user = build_user(load_settings())
    except ConfigError:
        return []  # _settings says why
    return [Finding(f"the Nix daemon serves {user.name}", await refusal_of_daemon(user))]


async def _hooks() -> list[Finding]:
    findings = []
    for name in ("pre-start", "mount", "stop", "init"):
        path = f"{paths.HOOKS}/{name}"
        advice = "" if os.access(path, os.X_OK) else "cannot be run; install inx again"
        findings.append(Finding(path, advice))
    return findings


async def _sidecar() -> list[Finding]:
    done = await run(["systemctl", "is-active", "inx-sidecar.socket"])
    advice = "" if done.status == 0 else "run 'systemctl enable --now inx-sidecar.socket'"
    return [Finding("inx-sidecar.socket is active", advice)]


async def _barrier() -> list[Finding]:
    done = await run(["systemctl", "is-active", "inx-barrier.service"])
    subject = "inx-barrier.service: collections wait until all roots stand"
    if done.status == 0:
        return [Finding(subject)]
    barrier.probe()
    return [Finding(subject, "run 'systemctl enable --now inx-barrier.service'")]


async def _guard() -> list[Finding]:
    done = await run(["systemctl", "is-active", "inx-guard.service"])
    subject = "inx-guard.service: containers cannot lock what Nix locks"
    if done.status == 0:
        return [Finding(subject)]
    store_locks.probe()
    return [Finding(subject, "run 'systemctl enable --now inx-guard.service'")]


async def _leases() -> list[Finding]:
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


async def _incus() -> list[Finding]:
    version = str((await incus.get_server())["environment"]["server_version"])
    return [_at_least("Incus", version, _INCUS, "the 6.0 series or newer")]


async def _profile() -> list[Finding]:
    wanted = shipped_raw_lxc()
    found = [profile for profile in await incus.list_profiles() if has_hooks(profile)]
    if not found:
        advice = f"missing; run 'incus profile create inx < {paths.PROFILE}'"
        return [Finding("profile with the hooks", advice)]
    return [
        Finding(
            f"profile {profile['name']!r} of project {profile.get('project', 'default')!r}",
            _to_add(missing_lines(wanted, profile["config"].get("raw.lxc", ""))),
        )
        for profile in found
    ]


async def _members() -> list[Finding]:
    """In a cluster, one finding for each other member with instances that use inx."""
    member = await members.this_member()
    if not member:
        return []
    with_inx = await members.members_with_inx()
    profiles = {profile["name"] for profile in await incus.list_profiles() if has_hooks(profile)}
    elsewhere: dict[str, list[str]] = {}
    for instance in await incus.list_instances():
        used = profiles & set(instance.get("profiles") or ())  # not known of a member that is away
        if used and not members.is_here(instance, member):
            elsewhere.setdefault(str(instance["location"]), []).append(str(instance["name"]))
    return [
        Finding(
            f"member {where!r} of the cluster has inx {with_inx.get(where, '')}".rstrip(),
            "" if where in with_inx else advice_for_member(names),
        )
        for where, names in sorted(elsewhere.items())
    ]


def advice_for_member(names: list[str]) -> str:
    """What to do about the instances `names` on a member without inx."""
    names = sorted(names)
    return (
        f"it has not, so {', '.join(names[:5])}{' and others' if names[5:] else ''} cannot start "
        f"there; install inx there, or run 'incus move {names[0]} --target MEMBER'"
    )


async def _docker() -> list[Finding]:
    """A warning for each bridge of a profile with the hooks that Docker cuts off."""
    nics = [
        device
        for profile in await incus.list_profiles()
        if has_hooks(profile)
        for device in profile["devices"].values()
        if device["type"] == "nic"
    ]
    bridges = {nic.get("network") or nic.get("parent", "") for nic in nics}
    present = sorted(b for b in bridges if b and os.path.isdir(f"/sys/class/net/{b}/bridge"))
    return [
        Finding(
            f"packets that {bridge} forwards",
            warning=(
                "Docker drops them, so containers reach no other network; run 'iptables -I "
                f"DOCKER-USER -i {bridge} -j ACCEPT' and 'iptables -I DOCKER-USER -o {bridge} -m "
                "conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT' at each boot"
            ),
        )
        for bridge in await bridges_dropped_by_docker(present)
    ]


def _to_add(missing: list[str]) -> str:
    """Advice for a profile whose raw.lxc lacks the lines `missing`; "" if it lacks none."""
    if not missing:
        return ""
    return f"raw.lxc lacks {', '.join(map(repr, missing))}; add to it, do not replace it"


async def _instances() -> list[Finding]:
    """One finding for each container that uses inx: without the hooks it does not start."""
    wanted, profiles = shipped_raw_lxc(), await incus.list_profiles()
    names = {profile["name"] for profile in profiles if has_hooks(profile)}
    findings = []
    for instance in await members.list_own_instances():
        if may_use_inx(instance) or names & set(instance["profiles"]):
            subject = f"instance {instance['name']!r} of project {instance['project']!r}"
            findings.append(Finding(subject, problem_of(instance, profiles, wanted)))
    return findings


def _at_least(program: str, version: str, wanted: tuple[int, int], why: str) -> Finding:
    match = re.match(r"(\d+)\.(\d+)", version)
    enough = match is not None and (int(match[1]), int(match[2])) >= wanted
    advice = "" if enough else f"{wanted[0]}.{wanted[1]} or newer is needed: {why}"
    return Finding(f"{program} {version}", advice)


_CHECKS: Final[tuple[Callable[[], Awaitable[list[Finding]]], ...]] = (
    _kernel, _cgroups, _nix, _store_owner, _owners_mapped, _isolated_store, _busybox, _settings,
    _hooks, _sidecar, _barrier, _guard, _leases, _incus, _profile, _instances, _members,
    _nix_daemon, _docker,
)  # fmt: skip
