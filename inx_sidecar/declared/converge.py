"""Carry out the steps that make instances what the host declares, through Incus' API.

Started by hand, at boot and when the declaration changes. A second run does nothing. An instance
that cannot be changed does not keep the others from being changed.
"""

import asyncio
import contextlib
import itertools
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

from inx_sidecar.declared.declaration import (
    SETTABLE,
    Declaration,
    DeclaredInstance,
    is_protected,
    without_volatile,
)
from inx_sidecar.declared.steps import (
    PROTECTED,
    Change,
    Create,
    Delete,
    Leave,
    Start,
    Step,
    plan_steps,
)
from inx_sidecar.incus import api as incus
from inx_sidecar.incus.request import IncusError

_MAX_PARALLEL: Final = 4
_STOP_SECONDS: Final = 60
# The sidecar and users write too, and Incus runs one operation per instance at a time.
_BUSY_SECONDS: Final = 60.0
_RETRY_SECONDS: Final = 0.2
_NOT_FOUND: Final = 404
_PRECONDITION_FAILED: Final = 412
# Texts of Incus' internal/server/instance/operationlock.
_BUSY: Final = ("busy running", "non-reusable operation")
# Text of Incus' deviceAdd, deviceStart and deviceStop (internal/server/instance/drivers).
_NEEDS_RESTART: Final = "when instance is running"


async def converge(declaration: Declaration, report: Callable[[str], None]) -> list[str]:
    """Make the instances as `declaration` says; returns one sentence for each failure.

    `report` gets a line for each step that was carried out.
    """
    failures: dict[Step, str] = {}
    slots = asyncio.Semaphore(_MAX_PARALLEL)

    async def carry_out(step: Step) -> None:
        if isinstance(step, Start) and Create(step.declared) in failures:
            return
        async with slots:
            try:
                await _execute(step)
            except IncusError as error:
                failures[step] = f"cannot {step.verb} {str(step.declared)!r}: {error}{_hint(step)}"
                return
        failures.pop(step, None)
        if isinstance(step, Leave) and step.wrong:
            failures[step] = step.describe()
        else:
            report(step.describe())

    async def carry_out_all(steps: Sequence[Step]) -> None:
        """Every step runs to its end, even if another one raises."""
        ends = await asyncio.gather(*map(carry_out, steps), return_exceptions=True)
        for end in ends:
            if end is not None:
                raise end

    # One kind of step after the other: a step may take what steps of an earlier kind free.
    steps = plan_steps(declaration, await incus.list_instances())
    for _, group in itertools.groupby(steps, type):
        same_kind = list(group)
        await carry_out_all(same_kind)
        # A change may have needed a port or an address that another change freed only later.
        refused = [step for step in same_kind if isinstance(step, Change) and step in failures]
        await carry_out_all(refused)
    return list(failures.values())


def _hint(step: Step) -> str:
    """Where the reason is of a start that a hook refused: Incus itself does not tell it."""
    if not isinstance(step, Start):
        return ""
    project = step.declared.project
    where = "" if project == "default" else f" --project {project}"
    return f"; see 'incus info {step.declared.name} --show-log{where}'"


async def _execute(step: Step) -> None:
    declared = step.declared
    match step:
        case Create():
            await incus.create(declared.project, declared.creation_request(), declared.target)
        case Change():
            await _retry_while_busy(lambda: _change(declared))
        case Start():
            await _retry_while_busy(lambda: _start(declared))
        case Delete():
            await _retry_while_busy(lambda: _delete(declared))
        case Leave():
            pass


async def _get(declared: DeclaredInstance) -> tuple[Mapping[str, Any], str]:
    return await incus.get_instance_with_etag(declared.project, declared.name)


async def _replace(declared: DeclaredInstance, instance: Mapping[str, Any], etag: str) -> None:
    await incus.replace(declared.project, declared.name, instance, etag)


async def _change(declared: DeclaredInstance) -> None:
    found, etag = await _get(declared)
    wanted = declared.update_request(found)
    if wanted is None or not declared.owns(found):
        return
    try:
        await _replace(declared, wanted, etag)
    except IncusError as error:
        name = declared.name
        if _NEEDS_RESTART in str(error) and declared.restart:
            await _restart_with(declared, found)
            return
        if _NEEDS_RESTART in str(error):
            advice = f"; run 'inx-sidecar converge' between 'incus stop {name}' and its start"
        elif found["status"] == "Running" and _loses_devices(found, wanted):
            # Incus removes the old devices first (devicesUpdate), and does not add them again.
            advice = "; devices that it changes may be missing until it is restarted"
        else:
            raise
        raise IncusError(f"{error}{advice}", error.code) from None


def _loses_devices(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    after = wanted["devices"]
    return any(after.get(name) != device for name, device in found["devices"].items())


async def _restart_with(declared: DeclaredInstance, former: Mapping[str, Any]) -> None:
    """Stop the instance, change it and start it again; restore `former` if it does not start.

    An ephemeral instance is gone when it has stopped, so it is created again.
    """
    body = _settable(former)
    recreate = bool(former["ephemeral"]) and declared.ephemeral
    try:
        if former["ephemeral"] and not recreate:
            await _retry_while_busy(lambda: _make_persistent(declared))
        await _retry_while_busy(lambda: _stop(declared))
        if recreate:
            changed = declared.update_request(former) or body
            request = {**declared.creation_request(), **without_volatile(changed)}
            await incus.create(declared.project, request, declared.target_of(former))
        else:
            await _retry_while_busy(lambda: _change(declared))
        await _retry_while_busy(lambda: _start(declared))
    except IncusError as error:
        try:
            await _restore(declared, former, recreate=recreate)
        except IncusError as another:
            text = (
                f"{error}; and it cannot be put back: {another}; "
                f"look at 'incus info {declared.name}'"
            )
            raise IncusError(text, error.code) from None
        raise IncusError(f"{error}; it runs as before", error.code) from None


async def _make_persistent(declared: DeclaredInstance) -> None:
    found, etag = await _get(declared)
    await _replace(declared, {**_settable(found), "ephemeral": False}, etag)


def _settable(found: Mapping[str, Any]) -> dict[str, Any]:
    return {key: found[key] for key in (*SETTABLE, "config")}


async def _restore(declared: DeclaredInstance, was: Mapping[str, Any], *, recreate: bool) -> None:
    """Make the instance run as it `was`; volatile keys that Incus has written since stay."""
    body = _settable(was)

    async def replace() -> None:
        found, etag = await _get(declared)
        former = without_volatile(body)
        volatile = found["config"].keys() - without_volatile(found)["config"].keys()
        config = former["config"] | {key: found["config"][key] for key in volatile}
        await _replace(declared, {**former, "config": config}, etag)

    async def create() -> None:
        # An ephemeral instance that failed to start may be gone.
        with contextlib.suppress(IncusError):
            await incus.delete(declared.project, declared.name)
        request = {**declared.creation_request(), **without_volatile(body)}
        await incus.create(declared.project, request, declared.target_of(was))

    await _retry_while_busy(create if recreate else replace)
    await _retry_while_busy(lambda: _start(declared))


async def _start(declared: DeclaredInstance) -> None:
    found, _ = await _get(declared)
    if found["status"] == "Stopped" and declared.owns(found):
        await incus.start(declared.project, declared.name)


async def _delete(declared: DeclaredInstance) -> None:
    try:
        found, _ = await _get(declared)
        if not declared.owns(found):
            return  # somebody has taken the instance out of the declaration just now
        if is_protected(found):
            raise IncusError(PROTECTED)
        await _stop(declared)
        await incus.delete(declared.project, declared.name)
    except IncusError as error:
        if error.code != _NOT_FOUND:  # an ephemeral instance is gone when it has stopped
            raise


async def _stop(declared: DeclaredInstance) -> None:
    """Shut the instance down; by force if that takes over _STOP_SECONDS."""
    if await _is_stopped(declared):
        return
    try:
        await incus.stop(declared.project, declared.name, _STOP_SECONDS)
    except IncusError as error:
        if _is_temporary(error):
            raise
        if not await _is_stopped(declared):
            await incus.stop(declared.project, declared.name, _STOP_SECONDS, force=True)


async def _is_stopped(declared: DeclaredInstance) -> bool:
    try:
        found, _ = await _get(declared)
    except IncusError as error:
        if error.code == _NOT_FOUND:
            return True
        raise
    return bool(found["status"] == "Stopped")


async def _retry_while_busy(act: Callable[[], Awaitable[None]]) -> None:
    """Repeat `act` while Incus runs another operation on the instance, or it was just changed."""
    deadline = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            return await act()
        except IncusError as error:
            if not _is_temporary(error) or time.monotonic() > deadline:
                raise
        await asyncio.sleep(_RETRY_SECONDS)


def _is_temporary(error: IncusError) -> bool:
    busy = any(words in str(error) for words in _BUSY)
    return error.code == _PRECONDITION_FAILED or busy
