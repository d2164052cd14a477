"""Decide what a start does: a pure function of the spec, the generations and the store."""

from collections.abc import Callable, Set
from dataclasses import dataclass

from inx_sidecar.base.errors import SystemMissingError
from inx_sidecar.config.keys import InstanceSpec, System
from inx_sidecar.nix.generations import Append, Generations, Select


@dataclass(frozen=True)
class Boot:
    """The system is in the store: start it, after writing `change` to the profile, if any.

    `trouble` says why it is not the one that was wished for.
    """

    system: str
    change: Select | Append | None = None
    trouble: str = ""

    def describe(self) -> str:
        return f"boot {self.system}"


@dataclass(frozen=True)
class Build:
    """The system has to be built or fetched first; PID 1 waits for it.

    `missing` is a store path that is wanted but gone: fetching it is tried before a build.
    `fallback` is a generation that can be started if all fails.
    """

    fingerprint: str
    missing: str | None = None
    fallback: Select | None = None

    def describe(self) -> str:
        return f"fetch {self.missing}" if self.missing else "build"


Plan = Boot | Build


def decide(
    spec: InstanceSpec,
    present: Generations,
    instance: str,
    valid: Callable[[Set[str]], Set[str]],
    resolve: Callable[[str, str], str],
    *,
    keep: bool = False,
) -> Plan:
    """What starting `instance` takes; SystemMissingError if it cannot start at all.

    `valid` tells which store paths are complete, `resolve` where a System leads. With `keep` a
    current generation that can be started is, whatever the source is now.
    """
    if spec.generation is not None:
        return _pinned(spec.generation, spec, present, instance, valid)
    current = present.newest if present.pinned else present.current
    good = valid(set(present.links.values()))
    system = None if current is None else present.links[current]
    usable = system in good
    order = ([] if current is None else [current]) + sorted(present.links, reverse=True)
    fallback = next((Select(n, pinned=False) for n in order if present.links[n] in good), None)

    if keep and usable and fallback is not None:
        return _boot(fallback, present)
    if isinstance(spec.source, System):
        try:
            target = resolve(spec.source.path, instance)
        except SystemMissingError as error:
            if fallback is None:
                raise
            return _boot(fallback, present, trouble=str(error))
        fingerprint = spec.fingerprint(target)
        if fingerprint != present.fingerprint or not usable:
            if target not in valid({target}):
                return Build(fingerprint, missing=target, fallback=fallback)
            return Boot(target, Append(target, fingerprint, spec.keep))
    else:
        fingerprint = spec.fingerprint()
        if fingerprint != present.fingerprint:
            return Build(fingerprint, fallback=fallback)
        if not usable:
            return Build(fingerprint, missing=system, fallback=fallback)
    assert fallback is not None and fallback.number == current
    return _boot(fallback, present)


def _boot(choice: Select, present: Generations, trouble: str = "") -> Boot:
    """Boot a generation that is there; the links are written only if they say something else."""
    settled = present.current == choice.number and present.pinned == choice.pinned
    return Boot(present.links[choice.number], None if settled else choice, trouble)


def _pinned(
    number: int,
    spec: InstanceSpec,
    present: Generations,
    instance: str,
    valid: Callable[[Set[str]], Set[str]],
) -> Plan:
    system = present.links.get(number)
    if system is None:
        have = ", ".join(map(str, sorted(present.links))) or "none"
        raise SystemMissingError(
            f"user.inx.generation is {number}, but {instance!r} has no such generation (it has "
            f"{have}); unset the key to start the newest"
        )
    if system not in valid({system}):
        raise SystemMissingError(
            f"generation {number} of {instance!r} is {system}, which is not in the store; fetch "
            f"it, as by 'nix-store --realise {system}', or unset user.inx.generation"
        )
    return _boot(Select(number, pinned=True), present)
