"""What a start of an instance has to do: a pure function of spec, generations and store."""

from collections.abc import Callable, Set
from dataclasses import dataclass

from inx_sidecar.base.errors import SystemMissingError
from inx_sidecar.config.sources import System
from inx_sidecar.config.spec import InstanceSpec
from inx_sidecar.nix.generation_changes import Append, Select
from inx_sidecar.nix.generations import Generations


@dataclass(frozen=True)
class Boot:
    """The system is in the store: boot it, after `change`, if any, is written to the profile.

    `fallback_reason` says why this is not the system that the spec asks for; empty if it is.
    `fallback` is a generation that can be booted if `change` cannot be written.
    """

    system: str
    change: Select | Append | None = None
    fallback_reason: str = ""
    fallback: Select | None = None

    def describe(self) -> str:
        return f"boot {self.system}"


@dataclass(frozen=True)
class Build:
    """The system has to be built or fetched first; PID 1 waits for it.

    `missing` is a store path of the system that is not valid: a fetch is tried before a build.
    `fallback` is a generation that can be booted if the build fails.
    `choice` is the generation whose system `missing` is: then nothing is built, and this generation
    is booted.
    """

    fingerprint: str
    missing: str | None = None
    fallback: Select | None = None
    choice: Select | None = None

    def describe(self) -> str:
        return f"fetch {self.missing}" if self.missing else "build"


Plan = Boot | Build


def choose_plan(
    spec: InstanceSpec,
    present: Generations,
    instance: str,
    valid: Callable[[Set[str]], Set[str]],
    resolve: Callable[[str, str], str],
    *,
    keep_current: bool = False,
    tried: str | None = None,
) -> Plan:
    """What a start of `instance` has to do; SystemMissingError if it cannot start at all.

    `valid` selects the store paths that are valid; `resolve` gives the store path that a System
    leads to. With `keep_current`, a current generation that can be booted is booted, whatever the
    source is now. `tried` is the system that was tried for this spec: it is not built again.
    """
    if keep_current and spec.only_tries and present.current is not None:
        runs = present.links[present.current]
        if runs in valid({runs}):
            return Boot(runs)
    if spec.generation is not None:
        return _plan_pinned(spec.generation, present, instance, valid)
    current = present.newest if present.pinned else present.current
    bootable = valid({*present.links.values(), *([tried] if tried else [])})
    tried = tried if tried in bootable else None
    system = None if current is None else present.links[current]
    usable = system in bootable
    order = ([] if current is None else [current]) + sorted(present.links, reverse=True)
    fallback = next((Select(n, pinned=False) for n in order if present.links[n] in bootable), None)

    if keep_current and usable and fallback is not None:
        return _boot_generation(fallback, present)
    if isinstance(spec.source, System):
        try:
            target = tried or resolve(spec.source.path, instance)
        except SystemMissingError as error:
            if fallback is None:
                raise
            return _boot_generation(fallback, present, fallback_reason=str(error))
        fingerprint = spec.fingerprint(target)
        if fingerprint != present.fingerprint or not usable:
            if target not in valid({target}):
                return Build(fingerprint, missing=target, fallback=fallback)
            return Boot(target, Append(target, fingerprint, spec.keep), fallback=fallback)
    else:
        fingerprint = spec.fingerprint()
        if fingerprint != present.fingerprint and tried is not None:
            return Boot(tried, Append(tried, fingerprint, spec.keep), fallback=fallback)
        if fingerprint != present.fingerprint:
            return Build(fingerprint, fallback=fallback)
        if not usable:
            return Build(fingerprint, missing=system, fallback=fallback)
    assert fallback is not None and fallback.number == current
    return _boot_generation(fallback, present)


def _boot_generation(choice: Select, present: Generations, fallback_reason: str = "") -> Boot:
    """Boot a generation that exists; its links are written only if they differ from `choice`."""
    unchanged = present.current == choice.number and present.pinned == choice.pinned
    return Boot(present.links[choice.number], None if unchanged else choice, fallback_reason)


def boot_fallback(boot: Boot, present: Generations, reason: str) -> Boot | None:
    """What to boot if the change of `boot` cannot be written, for `reason`, as on a full disk; None
    if there is nothing else."""
    if boot.fallback is None:
        return None
    return _boot_generation(boot.fallback, present, fallback_reason=reason)


def _plan_pinned(
    number: int, present: Generations, instance: str, valid: Callable[[Set[str]], Set[str]]
) -> Plan:
    system = present.links.get(number)
    if system is None:
        have = ", ".join(map(str, sorted(present.links))) or "none"
        raise SystemMissingError(
            f"user.inx.generation is {number}, but {instance!r} has no such generation (it has "
            f"{have}); unset the key to start the newest"
        )
    choice = Select(number, pinned=True)
    if system not in valid({system}):
        return Build("", missing=system, choice=choice)
    return _boot_generation(choice, present)
