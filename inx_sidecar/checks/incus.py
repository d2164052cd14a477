"""What Incus has: profiles with the hooks, instances that use inx, members of a cluster."""

import os
from typing import Final

from inx_sidecar.base import paths
from inx_sidecar.checks.finding import Finding, at_least
from inx_sidecar.config.disk_paths import disk_problem
from inx_sidecar.container.forwarding import bridges_dropped_by_docker
from inx_sidecar.incus import api, last_known
from inx_sidecar.incus import members as cluster
from inx_sidecar.incus.running_record import Running
from inx_sidecar.instances import takeover
from inx_sidecar.instances.missing_hooks import (
    has_hooks,
    may_use_inx,
    missing_lines,
    problem_of,
    shipped_raw_lxc,
)

_INCUS: Final = (6, 0)


async def incus() -> list[Finding]:
    version = str((await api.get_server())["environment"]["server_version"])
    return [at_least("Incus", version, _INCUS, "the 6.0 series or newer")]


async def profile() -> list[Finding]:
    wanted = shipped_raw_lxc()
    found = [profile for profile in await api.list_profiles() if has_hooks(profile)]
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


async def docker() -> list[Finding]:
    """A warning for each bridge of a profile with the hooks that Docker cuts off."""
    nics = [
        device
        for profile in await api.list_profiles()
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


async def instances() -> list[Finding]:
    """One finding for each container that uses inx: without the hooks it does not start."""
    wanted, profiles = shipped_raw_lxc(), await api.list_profiles()
    names = {profile["name"] for profile in profiles if has_hooks(profile)}
    findings = []
    for instance in await cluster.list_own_instances():
        if may_use_inx(instance) or names & set(instance["profiles"]):
            subject = f"instance {instance['name']!r} of project {instance['project']!r}"
            problem = problem_of(instance, profiles, wanted)
            uuid = instance["expanded_config"].get("volatile.uuid", "")
            own = instance["expanded_config"].get("user.inx.store") == "own"
            problem = problem or disk_problem(instance["expanded_devices"] or {}, own=own)
            findings.append(Finding(subject, problem or _running_problem(uuid)))
    return findings


def _running_problem(uuid: str) -> str:
    """What the sidecar lacks to look after the instance `uuid`; empty if all is well."""
    running = Running.load(uuid) if uuid else None
    if running is None:
        return ""
    problem = takeover.problem_of(uuid)
    return f"not taken over: {problem}" if problem else last_known.problem_of(running.facts)


async def members() -> list[Finding]:
    """In a cluster, one finding for each other member with instances that use inx."""
    member = await cluster.this_member()
    if not member:
        return []
    with_inx = await cluster.members_with_inx()
    profiles = {profile["name"] for profile in await api.list_profiles() if has_hooks(profile)}
    elsewhere: dict[str, list[str]] = {}
    for instance in await api.list_instances():
        used = profiles & set(instance.get("profiles") or ())  # not known of a member that is away
        if used and not cluster.is_here(instance, member):
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
