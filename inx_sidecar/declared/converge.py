"""Make the instances that the host declares what they are declared to be, by Incus' API.

Run by hand, at boot and when the declaration changes; doing it again does nothing. What one
instance refuses keeps no other from its turn.
"""

import asyncio
import contextlib
import itertools
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

from inx_sidecar.declared.declaration import (
    PROTECTED,
    SETTABLE,
    Change,
    Create,
    Declaration,
    Declared,
    Delete,
    Leave,
    Start,
    Step,
    is_protected,
    without_volatile,
)
from inx_sidecar.incus import api as incus
from inx_sidecar.incus.api import IncusError

_AT_ONCE: Final = 4
_STOP_SECONDS: Final = 60
# The sidecar and others write too, and Incus does one thing at a time to an instance.
_PATIENCE_SECONDS: Final = 60.0
_AGAIN_SECONDS: Final = 0.2
_GONE: Final = 404
_CHANGED_MEANWHILE: Final = 412
# Of Incus' internal/server/instance/operationlock.
_AT_SOMETHING_ELSE: Final = ("busy running", "non-reusable operation")
# Of its deviceAdd, deviceStart and deviceStop (internal/server/instance/drivers).
_TAKES_A_RESTART: Final = "when instance is running"


async def converge(declaration: Declaration, say: Callable[[str], None]) -> list[str]:
    """Carry out what it takes; what did not work, a sentence each. `say` gets a line a step."""
    wrong: dict[Step, str] = {}
    turns = asyncio.Semaphore(_AT_ONCE)

    async def carry_out(step: Step) -> None:
        if isinstance(step, Start) and Create(step.declared) in wrong:
            return
        async with turns:
            try:
                await _execute(step)
            except IncusError as error:
                wrong[step] = f"cannot {step.verb} {str(step.declared)!r}: {error}"
                return
        wrong.pop(step, None)
        if isinstance(step, Leave) and step.wrong:
            wrong[step] = step.describe()
        else:
            say(step.describe())

    async def together(steps: Sequence[Step]) -> None:
        """All of them, whatever comes of one."""
        ends = await asyncio.gather(*map(carry_out, steps), return_exceptions=True)
        for end in ends:
            if end is not None:
                raise end

    # What is freed by one kind of them may be taken by the next.
    for _, kind in itertools.groupby(declaration.steps(await incus.instances()), type):
        some = list(kind)
        await together(some)
        # A port or an address may have passed from one to another of them.
        await together([step for step in some if isinstance(step, Change) and step in wrong])
    return list(wrong.values())


async def _execute(step: Step) -> None:
    match step:
        case Create(one):
            await incus.create(one.project, one.new())
        case Change(one):
            await _patiently(lambda: _change(one))
        case Start(one):
            await _patiently(lambda: _start(one))
        case Delete(of):
            await _patiently(lambda: _delete(of))
        case Leave():
            pass


async def _change(one: Declared) -> None:
    found, etag = await incus.instance_now(one.project, one.name)
    wanted = one.changed(found)
    if wanted is None or not one.owns(found):
        return
    try:
        await incus.replace(one.project, one.name, wanted, etag)
    except IncusError as error:
        if _TAKES_A_RESTART in str(error) and one.restart:
            await _restart_with(one, found)
            return
        if _TAKES_A_RESTART in str(error):
            advice = f"; run 'inx-sidecar converge' between 'incus stop {one.name}' and its start"
        elif found["status"] == "Running" and _loses_devices(found, wanted):
            # Incus takes away the old ones first (devicesUpdate), and does not bring them back.
            advice = "; devices that it changes may be missing until it is restarted"
        else:
            raise
        raise IncusError(f"{error}{advice}", error.code) from None


def _loses_devices(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    after = wanted["devices"]
    return any(after.get(name) != device for name, device in found["devices"].items())


async def _restart_with(one: Declared, former: Mapping[str, Any]) -> None:
    """Change it while it is stopped, and start it again: as it was, if it does not start so."""
    body = _settable(former)
    anew = bool(former["ephemeral"]) and one.ephemeral
    try:
        if former["ephemeral"] and not anew:
            await _patiently(lambda: _make_last(one))
        await _patiently(lambda: _stop(one))
        if anew:
            changed = one.changed(former) or body
            await incus.create(one.project, {**one.new(), **without_volatile(changed)})
        else:
            await _patiently(lambda: _change(one))
        await _patiently(lambda: _start(one))
    except IncusError as error:
        try:
            await _put_back(one, body, anew=anew)
        except IncusError as another:
            text = f"{error}; and it cannot be put back: {another}; look at 'incus info {one.name}'"
            raise IncusError(text, error.code) from None
        raise IncusError(f"{error}; it runs as before", error.code) from None


async def _make_last(one: Declared) -> None:
    """An ephemeral one would be gone when it has stopped."""
    found, etag = await incus.instance_now(one.project, one.name)
    wanted = {**_settable(found), "ephemeral": False}
    await incus.replace(one.project, one.name, wanted, etag)


def _settable(found: Mapping[str, Any]) -> dict[str, Any]:
    return {key: found[key] for key in (*SETTABLE, "config")}


async def _put_back(one: Declared, body: Mapping[str, Any], *, anew: bool) -> None:
    """What was running runs again; what Incus itself noted meanwhile stays."""

    async def replace() -> None:
        found, etag = await incus.instance_now(one.project, one.name)
        former = without_volatile(body)
        noted = found["config"].keys() - without_volatile(found)["config"].keys()
        config = former["config"] | {key: found["config"][key] for key in noted}
        await incus.replace(one.project, one.name, {**former, "config": config}, etag)

    async def create() -> None:
        with contextlib.suppress(IncusError):  # it may be gone, as it failed to start
            await incus.delete(one.project, one.name)
        await incus.create(one.project, {**one.new(), **without_volatile(body)})

    await _patiently(create if anew else replace)
    await _patiently(lambda: _start(one))


async def _start(one: Declared) -> None:
    found, _ = await incus.instance_now(one.project, one.name)
    if found["status"] == "Stopped" and one.owns(found):
        await incus.start(one.project, one.name)


async def _delete(one: Declared) -> None:
    try:
        found, _ = await incus.instance_now(one.project, one.name)
        if not one.owns(found):
            return  # it has just been made somebody's own
        if is_protected(found):
            raise IncusError(PROTECTED)
        await _stop(one)
        await incus.delete(one.project, one.name)
    except IncusError as error:
        if error.code != _GONE:  # as an ephemeral one is when it has stopped
            raise


async def _stop(one: Declared) -> None:
    """In order, and by force if that takes too long."""
    if await _is_stopped(one):
        return
    try:
        await incus.stop(one.project, one.name, _STOP_SECONDS)
    except IncusError as error:
        if _passes(error):
            raise
        if not await _is_stopped(one):
            await incus.stop(one.project, one.name, _STOP_SECONDS, force=True)


async def _is_stopped(one: Declared) -> bool:
    try:
        found, _ = await incus.instance_now(one.project, one.name)
    except IncusError as error:
        if error.code == _GONE:
            return True
        raise
    return bool(found["status"] == "Stopped")


async def _patiently(act: Callable[[], Awaitable[None]]) -> None:
    """Again and again while Incus is at something else with the instance, or it was changed."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            return await act()
        except IncusError as error:
            if not _passes(error) or time.monotonic() > deadline:
                raise
        await asyncio.sleep(_AGAIN_SECONDS)


def _passes(error: IncusError) -> bool:
    at_something_else = any(words in str(error) for words in _AT_SOMETHING_ELSE)
    return error.code == _CHANGED_MEANWHILE or at_something_else
