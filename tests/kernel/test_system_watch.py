"""A change of the profile or of /run/current-system inside is seen soon, and a flood is not."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from pathlib import Path

import pytest
from inotify_simple import INotify
from support.containers import MNT_DETACH, Sandbox, umount
from support.waiting import until

from inx_sidecar.container.current_system import read_current_system
from inx_sidecar.container.namespaces import Container
from inx_sidecar.incus.instance import Instance, LxcFacts
from inx_sidecar.instances import system_watch
from inx_sidecar.instances.system_look import Look
from inx_sidecar.instances.system_watch import SystemWatch
from inx_sidecar.kernel.syscalls import mount

pytestmark = pytest.mark.life

ONE, TWO = (f"/nix/store/{digit * 32}-system" for digit in "01")


@dataclass
class Looks:
    """What was found, in the order of the looks. `change` is what a look tells of the status."""

    found: list[str] = field(default_factory=list)
    changed: bool = False


def latest_is(looks: Looks, system: str) -> bool:
    return looks.found[-1] == system


def more_than(looks: Looks, count: int) -> bool:
    return len(looks.found) > count


@pytest.fixture(autouse=True)
def early(monkeypatch: pytest.MonkeyPatch) -> None:
    """The looks after a start come at once; those after a change have their pauses."""
    monkeypatch.setattr(system_watch, "_BOOT_SECONDS", (0.0,))


@asynccontextmanager
async def watching(sandbox: Sandbox) -> AsyncIterator[tuple[SystemWatch, Looks]]:
    """The container is watched, and was looked at once."""
    looks = Looks()
    facts = LxcFacts("web", str(sandbox.rootfs), "")
    instance = Instance("web", "default", "uuid", facts, privileged=False, config={})

    async def look(_: Instance, inotify: INotify | None) -> Look:
        with Container(sandbox.pid, "web") as container:
            system, watch = await read_current_system(container, inotify)
        looks.found.append(system)
        return Look(looks.changed, bool(system), watch)

    watch = SystemWatch(look)
    watch.open()
    watch.begin(instance)
    await until(lambda: looks.found)
    try:
        yield watch, looks
    finally:
        await watch.close()


def link(text: str) -> Callable[[], None]:
    """Make /run/current-system this link, as switch-to-configuration does."""

    def make() -> None:
        os.makedirs("/run", exist_ok=True)
        os.symlink(text, "/run/new")
        os.rename("/run/new", "/run/current-system")

    return make


def profile(sandbox: Sandbox) -> Path:
    directory = sandbox.rootfs / "nix/var/nix/profiles"
    directory.mkdir(parents=True)
    return directory


def test_a_change_is_seen_soon_each_time(sandbox: Sandbox) -> None:
    directory = profile(sandbox)
    sandbox.inside(link(ONE))

    async def main() -> None:
        async with watching(sandbox) as (_, looks):
            assert looks.found == [ONE]
            for system in (TWO, ONE):
                sandbox.inside(link(system))
                await until(partial(latest_is, looks, system))
            count = len(looks.found)
            (directory / "system-1-link").symlink_to(ONE)
            await until(lambda: len(looks.found) > count)

    asyncio.run(main())


def test_a_file_system_that_is_mounted_at_run_is_watched(unprivileged: Sandbox) -> None:
    profile(unprivileged)
    unprivileged.inside(link(ONE))

    def cover() -> None:
        mount("tmpfs", "/run", "tmpfs", 0)
        link(TWO)()

    async def main() -> None:
        async with watching(unprivileged) as (watch, looks):
            unprivileged.inside(cover)
            watch.ask("uuid")
            await until(lambda: looks.found[-1] == TWO)
            unprivileged.inside(link(ONE))
            await until(lambda: looks.found[-1] == ONE)
            unprivileged.inside(lambda: umount("/run", MNT_DETACH))
            # The end of the mount is an event.
            count = len(looks.found)
            await until(lambda: len(looks.found) > count)
            assert len(watch._uuids) <= 2

    asyncio.run(main())


@pytest.mark.parametrize("text", ["/etc", "relative", f"{ONE}/sw", "/nix/store/..", "x" * 4000])
def test_only_a_store_path_counts_as_a_system(unprivileged: Sandbox, text: str) -> None:
    unprivileged.inside(link(text))

    async def main() -> None:
        async with watching(unprivileged) as (_, looks):
            assert looks.found == [""]

    asyncio.run(main())


def test_no_directory_and_a_link_in_its_place_are_no_error(unprivileged: Sandbox) -> None:
    async def main() -> None:
        async with watching(unprivileged) as (_, looks):
            assert looks.found == [""]

    asyncio.run(main())
    unprivileged.inside(lambda: os.symlink("/proc/self/root/dev", "/run"))
    asyncio.run(main())


def test_a_collection_waits_for_the_look_that_is_due(unprivileged: Sandbox) -> None:
    unprivileged.inside(link(ONE))

    async def main() -> None:
        async with watching(unprivileged) as (watch, looks):
            loop = asyncio.get_running_loop()
            watch._watched["uuid"].not_before = loop.time() + 600
            begin = loop.time()
            await watch.settle()
            assert looks.found == [ONE], "nothing has changed"
            unprivileged.inside(link(TWO))
            await watch.settle()
            assert looks.found == [ONE, TWO]
            assert loop.time() - begin < 300

    asyncio.run(main())


def test_a_collection_looks_at_an_instance_that_boots(
    unprivileged: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    unprivileged.inside(link(ONE))

    async def main() -> None:
        async with watching(unprivileged) as (watch, looks):
            instance = watch._watched["uuid"].instance
            monkeypatch.setattr(system_watch, "_BOOT_SECONDS", (60.0,))
            watch.begin(instance)
            unprivileged.inside(link(TWO))
            await watch.settle()
            assert looks.found == [ONE, TWO]

    asyncio.run(main())


def test_a_flood_causes_few_looks(unprivileged: Sandbox) -> None:
    """Each pause is longer than the one before: 0.3, 0.6 and 1.2 s."""
    directory = profile(unprivileged)
    unprivileged.inside(link(ONE))

    async def main() -> None:
        async with watching(unprivileged) as (_, looks):
            loop = asyncio.get_running_loop()
            before, flips, begin = len(looks.found), 0, loop.time()
            while loop.time() < begin + 1.5 or len(looks.found) == before:
                for number in range(100):
                    (directory / "new").symlink_to(f"{number}")
                    (directory / "new").rename(directory / "system")
                flips += 100
                await asyncio.sleep(0)
            assert flips > 200
            pauses = accumulate((0.0, 0.3, 0.6, 1.2, *[2.0] * 100))
            most = sum(1 for pause in pauses if pause <= loop.time() - begin)
            assert 1 <= len(looks.found) - before <= most

    asyncio.run(main())


def test_changes_of_the_status_have_longer_pauses(
    unprivileged: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pauses between looks are short here, so that only those after changes count."""
    monkeypatch.setattr(system_watch, "_LONGEST_SECONDS", 0.0)
    directory = profile(unprivileged)
    unprivileged.inside(link(ONE))

    async def main() -> None:
        async with watching(unprivileged) as (_, looks):
            looks.changed = True
            times = []
            for number in range(3):
                count = len(looks.found)
                (directory / "new").symlink_to(f"{number}")
                (directory / "new").rename(directory / "system")
                await until(partial(more_than, looks, count))
                times.append(asyncio.get_running_loop().time())
            assert times[1] - times[0] >= 0.3
            assert times[2] - times[1] >= 0.6

    asyncio.run(main())


def test_a_system_that_boots_slowly_is_looked_at_until_it_is_there(
    unprivileged: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No event tells that /run was mounted, however late."""
    monkeypatch.setattr(system_watch, "_NOT_BOOTED_SECONDS", 0.1)

    def cover() -> None:
        os.makedirs("/run", exist_ok=True)
        mount("tmpfs", "/run", "tmpfs", 0)
        link(ONE)()

    async def main() -> None:
        async with watching(unprivileged) as (_, looks):
            await until(partial(more_than, looks, 2))
            assert set(looks.found) == {""}
            unprivileged.inside(cover)
            await until(partial(latest_is, looks, ONE))

    asyncio.run(main())
