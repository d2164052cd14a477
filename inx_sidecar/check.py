"""`inx-sidecar check`: does this host have what inx needs? One finding per line."""

import os
import platform
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import yaml

from inx_sidecar.base import paths
from inx_sidecar.base.errors import InxError, MountError
from inx_sidecar.base.process import run
from inx_sidecar.config.settings import load
from inx_sidecar.container.overlay import show_only
from inx_sidecar.incus import api as incus
from inx_sidecar.kernel import forked
from inx_sidecar.kernel.syscalls import (
    AT_FDCWD,
    CLONE_NEWNS,
    CLONE_NEWUSER,
    MOUNT_ATTR_IDMAP,
    MS_PRIVATE,
    MS_REC,
    mount,
    mount_setattr,
    open_tree,
    opened,
    unshare,
)
from inx_sidecar.nix.store import valid_paths
from inx_sidecar.roots import barrier

_KERNEL: Final = (5, 12)
_INCUS: Final = (6, 0)
_NIX: Final = (2, 18)
_FIRST_ID: Final = 1_000_000


@dataclass(frozen=True)
class Finding:
    """What was looked at; `advice` says what to do and is empty if all is well."""

    subject: str
    advice: str = ""

    @property
    def ok(self) -> bool:
        return not self.advice

    def describe(self) -> str:
        return f"ok    {self.subject}" if self.ok else f"FAIL  {self.subject}: {self.advice}"


async def everything() -> list[Finding]:
    """All findings, in the order in which problems are best solved."""
    findings: list[Finding] = []
    for look in _LOOKS:
        try:
            findings += await look()
        except (InxError, OSError) as error:
            findings.append(Finding(look.__name__.strip("_").replace("_", " "), str(error)))
    return findings


async def _kernel() -> list[Finding]:
    release = platform.release()
    return [_at_least("Linux", release, _KERNEL, "idmapped mounts came with 5.12")]


async def _cgroups() -> list[Finding]:
    """By them the processes of an instance are found, and so its mount namespaces."""
    unified = os.path.exists("/sys/fs/cgroup/cgroup.controllers")
    unified = unified or os.path.isdir("/sys/fs/cgroup/unified")
    advice = "" if unified else "not mounted: GC roots of instances are never dropped"
    return [Finding("unified cgroup hierarchy", advice)]


async def _owners_mapped() -> list[Finding]:
    subject = f"{paths.STORE} on a file system that can map owners"
    without = "unprivileged containers see it owned by nobody"
    return [await _tried(subject, _try_idmap, "mapping owners", without)]


async def _isolated_store() -> list[Finding]:
    subject = f"a part of {paths.STORE} can be shown alone"
    without = "instances with user.inx.store=isolated do not start"
    return [await _tried(subject, _try_overlay, "mounting", without)]


async def _tried(
    subject: str, attempt: Callable[[], forked.Result], what: str, without: str
) -> Finding:
    """Whether `attempt` succeeds in a child; `without` says what follows if not."""
    try:
        await forked.call(attempt, what)
    except InxError as error:
        return Finding(subject, f"{error}; {without}")
    return Finding(subject)


def _try_idmap() -> forked.Result:
    """In a child: map the owners of the store."""
    with opened(open_tree(AT_FDCWD, paths.STORE)) as store, _user_namespace() as user:
        mount_setattr(store, MOUNT_ATTR_IDMAP, userns_fd=user)
    return None, []


def _try_overlay() -> forked.Result:
    """In a child: show nothing but two entries of the store."""
    unshare(CLONE_NEWNS)
    mount("none", "/", "", MS_REC | MS_PRIVATE)
    mount("inx", paths.RUN, "tmpfs", 0, "mode=755")
    names = frozenset(sorted(os.listdir(paths.STORE))[:2])
    with opened(open_tree(AT_FDCWD, paths.STORE)) as store, _user_namespace() as user:
        try:
            mount_setattr(store, MOUNT_ATTR_IDMAP, userns_fd=user)
        except OSError:
            pass  # as the start of an instance does; a finding of its own
        with opened(
            show_only(names, store, (_FIRST_ID, _FIRST_ID), f"{paths.RUN}/layers")
        ) as shown:
            with opened(os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=shown)) as directory:
                seen = os.listdir(directory)
    if set(seen) != names:
        raise MountError(f"it shows {seen} instead of {sorted(names)}")
    return None, []


@contextmanager
def _user_namespace() -> Iterator[int]:
    """One made for the purpose, as an unprivileged container has."""
    go, done = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        unshare(CLONE_NEWUSER)
        os.write(done[1], b"1")
        os.read(go[0], 1)
        os._exit(0)
    try:
        os.read(done[0], 1)
        for kind in ("uid_map", "gid_map"):
            with open(f"/proc/{pid}/{kind}", "w") as file:
                file.write(f"0 {_FIRST_ID} 65536")
        with opened(os.open(f"/proc/{pid}/ns/user", os.O_RDONLY)) as user:
            yield user
    finally:
        os.write(go[1], b"1")
        os.waitpid(pid, 0)


async def _nix() -> list[Finding]:
    done = await run(["nix", "--version"])
    valid_paths({f"{paths.STORE}/{'0' * 32}-none"})
    return [_at_least("Nix", done.output.split()[-1], _NIX, "daemon --force-untrusted is needed")]


async def _busybox() -> list[Finding]:
    done = await run(["busybox", "true"])
    advice = "" if done.status == 0 else "install a static busybox"
    return [Finding("static busybox", advice)]


async def _settings() -> list[Finding]:
    load()
    return [Finding(f"settings in {paths.CONFIG}")]


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


async def _incus() -> list[Finding]:
    return [_at_least("Incus", await incus.server_version(), _INCUS, "the 6.0 series or newer")]


async def _profile() -> list[Finding]:
    wanted = _wanted()
    found = await _profiles_of_inx()
    if not found:
        advice = f"missing; run 'incus profile create inx < {paths.PROFILE}'"
        return [Finding("profile with the hooks", advice)]
    return [
        Finding(
            f"profile {profile['name']!r} of project {profile.get('project', 'default')!r}",
            missing_lines(wanted, profile["config"].get("raw.lxc", "")),
        )
        for profile in found
    ]


async def _instances() -> list[Finding]:
    """Instances that look like inx's but whose raw.lxc lost the hooks, and so would not start."""
    wanted = _wanted()
    findings = []
    names = {profile["name"] for profile in await _profiles_of_inx()}
    for instance in await incus.instances():
        config = instance["expanded_config"]
        if names & set(instance["profiles"]) or any(k.startswith("user.inx.") for k in config):
            advice = missing_lines(wanted, config.get("raw.lxc", ""))
            subject = f"instance {instance['name']!r} of project {instance['project']!r}"
            findings.append(Finding(subject, advice))
    return findings


def _wanted() -> str:
    """The raw.lxc that is shipped."""
    with open(paths.PROFILE, "rb") as file:
        return str(yaml.safe_load(file)["config"]["raw.lxc"])


async def _profiles_of_inx() -> list[Mapping[str, Any]]:
    """Those called inx, and others that name the hooks."""
    return [
        profile
        for profile in await incus.profiles()
        if profile["name"] == "inx" or f"{paths.HOOKS}/" in profile["config"].get("raw.lxc", "")
    ]


def missing_lines(wanted: str, present: str) -> str:
    """Advice if `present`, a raw.lxc, lacks lines of `wanted`: setting it replaces, never adds."""
    have = {"".join(line.split()) for line in present.splitlines()}
    have |= {line.replace(f"{paths.HOOKS}/start-host", f"{paths.HOOKS}/mount") for line in have}
    lost = [line for line in wanted.splitlines() if line and "".join(line.split()) not in have]
    if not lost:
        return ""
    return f"raw.lxc lacks {', '.join(repr(line) for line in lost)}; add to it, do not replace it"


def _at_least(what: str, text: str, wanted: tuple[int, int], why: str) -> Finding:
    match = re.match(r"(\d+)\.(\d+)", text)
    enough = match is not None and (int(match[1]), int(match[2])) >= wanted
    advice = "" if enough else f"{wanted[0]}.{wanted[1]} or newer is needed: {why}"
    return Finding(f"{what} {text}", advice)


_LOOKS: Final[tuple[Callable[[], Awaitable[list[Finding]]], ...]] = (
    _kernel, _cgroups, _nix, _owners_mapped, _isolated_store, _busybox, _settings, _hooks,
    _sidecar, _barrier, _incus, _profile, _instances,
)  # fmt: skip
