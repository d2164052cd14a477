"""Make the instances that the host declares what they are declared to be, by Incus' API.

Run by hand, at boot and when the declaration changes; doing it again does nothing. What one
instance refuses keeps no other from its turn.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

from inx_sidecar import incus
from inx_sidecar.declared import (
    SETTABLE,
    Change,
    Create,
    Declaration,
    Declared,
    Delete,
    Leave,
    Mark,
    Start,
    Step,
)
from inx_sidecar.incus import IncusError

_AT_ONCE: Final = 4
_STOP_SECONDS: Final = 60
# The sidecar and others write too, and Incus does one thing at a time to an instance.
_PATIENCE_SECONDS: Final = 60.0
_AGAIN_SECONDS: Final = 0.2
_CHANGED_MEANWHILE: Final = 412
_VOLATILE: Final = "volatile."
_BUSY: Final = "busy running"  # internal/server/instance/operationlock
# Of Incus' deviceStart and deviceStop (internal/server/instance/drivers/driver_lxc.go).
_TAKES_A_RESTART: Final = "when instance is running"


async def converge(declaration: Declaration, say: Callable[[str], None]) -> list[str]:
    """Carry out what it takes; what did not work, a sentence each. `say` gets a line a step."""
    wrong: list[str] = []
    turns = asyncio.Semaphore(_AT_ONCE)

    async def carry_out(step: Step) -> None:
        async with turns:
            try:
                await _execute(step)
            except IncusError as error:
                wrong.append(_sentence(step, error))
                return
        if isinstance(step, Leave) and step.wrong:
            wrong.append(step.describe())
        else:
            say(step.describe())

    steps = declaration.steps(await incus.instances())
    for some in _in_turn(steps):
        await asyncio.gather(*(carry_out(step) for step in some))
    return wrong


def _in_turn(steps: Sequence[Step]) -> list[list[Step]]:
    """Together what is of one kind: what is freed by one kind may be taken by the next."""
    groups: list[list[Step]] = []
    for step in steps:
        if groups and (type(groups[-1][-1]) is type(step) or isinstance(step, Leave)):
            groups[-1].append(step)
        else:
            groups.append([step])
    return groups


async def _execute(step: Step) -> None:
    match step:
        case Create(declared):
            await incus.create(declared.project, declared.new())
        case Change(declared):
            await _patiently(lambda: _change(declared))
        case Start(declared):
            await _patiently(lambda: _start(declared))
        case Delete(name, project):
            await _patiently(lambda: _delete(project, name))


async def _change(one: Declared) -> None:
    found, etag = await incus.instance_now(one.project, one.name)
    wanted = one.changed(found)
    if wanted is None or Mark.of(found) is None:
        return
    try:
        await incus.replace(one.project, one.name, wanted, etag)
    except IncusError as error:
        if _TAKES_A_RESTART not in str(error):
            raise
        if not one.restart:
            raise IncusError(f"{error}; restart it yourself, and this again", error.code) from None
        await _restart_with(one, found)


async def _restart_with(one: Declared, former: Mapping[str, Any]) -> None:
    """Change it while it is stopped, and start it again: as it was, if it does not start so."""
    await _stop(one.project, one.name)
    try:
        if former["ephemeral"]:
            await incus.create(one.project, one.new())
        else:
            await _patiently(lambda: _change(one))
        await _patiently(lambda: _start(one))
    except IncusError as error:
        await _put_back(one, former)
        raise IncusError(f"{error}; it runs as before", error.code) from None


async def _put_back(one: Declared, former: Mapping[str, Any]) -> None:
    """What was running runs again; what Incus itself noted meanwhile stays."""
    config = {k: v for k, v in former["config"].items() if not k.startswith(_VOLATILE)}
    body = {key: former[key] for key in SETTABLE} | {"config": config}

    async def replace() -> None:
        found, etag = await incus.instance_now(one.project, one.name)
        noted = {k: v for k, v in found["config"].items() if k.startswith(_VOLATILE)}
        whole = {**body, "config": {**config, **noted}}
        await incus.replace(one.project, one.name, whole, etag)

    async def create() -> None:
        with contextlib.suppress(IncusError):  # it may be gone, as it failed to start
            await incus.delete(one.project, one.name)
        await incus.create(one.project, {**one.new(), **body})

    await _patiently(create if former["ephemeral"] else replace)
    await _patiently(lambda: _start(one))


async def _delete(project: str, name: str) -> None:
    found, _ = await incus.instance_now(project, name)
    if Mark.of(found) is None:
        return  # it has just been made somebody's own
    await _stop(project, name)
    if not found["ephemeral"]:  # that one is gone by now
        await incus.delete(project, name)


async def _start(one: Declared) -> None:
    found, _ = await incus.instance_now(one.project, one.name)
    if found["status"] == "Stopped":
        await incus.start(one.project, one.name)


async def _stop(project: str, name: str) -> None:
    """In order, and by force if that takes too long."""
    found, _ = await incus.instance_now(project, name)
    if found["status"] == "Stopped":
        return
    try:
        await incus.stop(project, name, _STOP_SECONDS)
    except IncusError:
        await incus.stop(project, name, _STOP_SECONDS, force=True)


async def _patiently(act: Callable[[], Awaitable[None]]) -> None:
    """Again and again while Incus is at something else with the instance, or it was changed."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            return await act()
        except IncusError as error:
            passes = error.code == _CHANGED_MEANWHILE or _BUSY in str(error)
            if not passes or time.monotonic() > deadline:
                raise
        await asyncio.sleep(_AGAIN_SECONDS)


def _sentence(step: Step, error: IncusError) -> str:
    match step:
        case Create(one):
            return f"cannot create {one.name!r}: {error}"
        case Change(one):
            return f"cannot change {one.name!r}: {error}"
        case Start(one):
            return f"cannot start {one.name!r}: {error}"
        case Delete(name) | Leave(name):
            return f"cannot delete {name!r}: {error}"
