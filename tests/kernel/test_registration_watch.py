"""Every registration is added, whatever events the kernel sends or loses."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from support.descriptors import open_descriptors
from support.registrations import NEVER, SHOP, WEB, mirror, names, watching
from support.waiting import until

from inx_sidecar.base import paths
from inx_sidecar.links import indirect_roots
from inx_sidecar.links.backoff import Backoff
from inx_sidecar.roots import registration_watch
from inx_sidecar.roots.mirror import Mirror
from inx_sidecar.roots.registration_watch import RegistrationWatch

pytestmark = [pytest.mark.gc, pytest.mark.usefixtures("registrations")]


def test_a_registration_is_added_without_a_request() -> None:
    async def main() -> None:
        async with watching(mirror(WEB), mirror(SHOP)) as (_, added):
            indirect_roots.put(WEB, "/one")
            await until(lambda: added.of() == names("/one"))
            indirect_roots.put(WEB, "/two")
            indirect_roots.put(SHOP, "/three")
            await until(lambda: added.of() == names("/one", "/two"))
            await until(lambda: added.of(SHOP) == names("/three"))

    asyncio.run(main())


def test_a_repeated_registration_is_added_again() -> None:
    async def main() -> None:
        async with watching(mirror()) as (watched, added):
            for count in range(1, 6):
                indirect_roots.put(WEB, "/one")
                await watched.drain()
                assert len(added.turns) == count

    asyncio.run(main())


def test_a_registration_before_the_watch_is_added() -> None:
    indirect_roots.put(WEB, "/one")

    async def main() -> None:
        async with watching(mirror()) as (watched, added):
            await watched.drain()
            assert added.of() == names("/one")

    asyncio.run(main())


def test_only_registrations_are_added() -> None:
    async def main() -> None:
        async with watching(mirror()) as (watched, added):
            place = Path(paths.auto_dir(WEB))
            for name in (".0123", "x", "e" * 32, f"{'0' * 32}.tmp"):
                os.symlink("/x", place / "other")
                os.rename(place / "other", place / name)
            indirect_roots.put(WEB, "/one")
            indirect_roots.forget(WEB, names("/one"))
            indirect_roots.put(WEB, "/two")
            await watched.drain()
            assert added.of() == names("/one", "/two")

    asyncio.run(main())


def test_drain_returns_when_all_earlier_registrations_are_added() -> None:
    """The event loop has no turn between a registration and the call of drain."""

    async def main() -> None:
        async with watching(mirror(WEB), mirror(SHOP)) as (watched, added):
            for number in range(200):
                texts = [f"/{number}/{digit}" for digit in range(number % 5)]
                for text in texts:
                    indirect_roots.put(WEB if number % 2 else SHOP, text)
                await watched.drain()
                assert names(*texts) <= added.of(WEB if number % 2 else SHOP)

    asyncio.run(main())


def test_drain_waits_for_registrations_that_came_during_another_call() -> None:
    async def main() -> None:
        async with watching(mirror()) as (watched, added):
            added.go.clear()
            indirect_roots.put(WEB, "/one")
            first = asyncio.create_task(watched.drain())
            await asyncio.sleep(0.05)
            indirect_roots.put(WEB, "/two")
            second = asyncio.create_task(watched.drain())
            await asyncio.sleep(0.05)
            assert not first.done() and not second.done()
            added.go.set()
            await asyncio.wait_for(second, 20)
            assert added.of() == names("/one", "/two")
            await asyncio.wait_for(first, 20)

    asyncio.run(main())


def test_drain_does_not_wait_for_later_registrations() -> None:
    """A collection does not wait for an instance that registers without end."""

    async def flood() -> None:
        while True:
            indirect_roots.put(WEB, "/flood")
            await asyncio.sleep(0)

    async def main() -> None:
        async with watching(mirror(), mirror(SHOP)) as (watched, added):
            flooding = asyncio.create_task(flood())
            await until(lambda: len(added.turns) > 3)
            indirect_roots.put(WEB, "/one")
            indirect_roots.put(SHOP, "/one")
            try:
                await asyncio.wait_for(watched.drain(), 10)
                assert names("/one") <= added.of(WEB) and added.of(SHOP) == names("/one")
            finally:
                flooding.cancel()

    asyncio.run(main())


def test_drain_does_not_wait_for_an_instance_in_backoff() -> None:
    async def main() -> None:
        one = mirror()
        async with watching(one, mirror(SHOP)) as (watched, added):
            await watched.drain()
            added.go.clear()
            indirect_roots.put(WEB, "/one")
            await asyncio.sleep(0.05)
            one.resolver._backoff = Backoff().longer(asyncio.get_running_loop().create_future())
            await asyncio.wait_for(watched.drain(), 10)
            assert added.of() == set()
            added.go.set()
            indirect_roots.put(SHOP, "/two")
            await watched.drain()
            assert added.of(SHOP) == names("/two")

    asyncio.run(main())


def test_one_instance_has_one_call_at_a_time() -> None:
    running: list[str] = []

    async def take(mirror: Mirror, some: set[str], list_all: bool) -> None:
        assert mirror.uuid not in running
        running.append(mirror.uuid)
        await asyncio.sleep(0.002)
        await mirror.add_registered(some | await mirror.changed() if list_all else some)
        running.remove(mirror.uuid)

    async def main() -> None:
        watched = RegistrationWatch(take)
        watched.open()
        watched.begin(mirror(WEB))
        watched.begin(mirror(SHOP))
        for number in range(50):
            indirect_roots.put(WEB, f"/{number}")
            indirect_roots.put(SHOP, f"/{number}")
            await asyncio.sleep(0.001)
        await asyncio.wait_for(watched.drain(), 20)
        for one in watched.mirrors:
            assert await one.changed() == set()
        await watched.close()

    asyncio.run(main())


def test_an_instance_that_has_ended_is_not_watched() -> None:
    async def main() -> None:
        async with watching(mirror(WEB), mirror(SHOP)) as (watched, added):
            watched.end(WEB)
            watched.end("none")
            assert watched.get(WEB) is None and [m.uuid for m in watched.mirrors] == [SHOP]
            indirect_roots.put(WEB, "/one")
            indirect_roots.put(SHOP, "/two")
            await watched.drain()
            await until(lambda: added.of(SHOP))
            assert added.of(WEB) == set()
            watched.begin(mirror(WEB))
            await watched.drain()
            assert added.of(WEB) == names("/one")

    asyncio.run(main())


def test_an_instance_that_begins_again_is_watched_once() -> None:
    async def main() -> None:
        async with watching(mirror()) as (watched, added):
            for _ in range(3):
                watched.begin(mirror())
            indirect_roots.put(WEB, "/one")
            await watched.drain()
            assert added.turns == [WEB]

    asyncio.run(main())


def test_a_closed_watch_leaves_no_descriptor_and_no_task() -> None:
    before = open_descriptors()

    async def main() -> None:
        async with watching(mirror()) as (_, added):
            added.go.clear()
            indirect_roots.put(WEB, "/one")
            await asyncio.sleep(0.05)
        assert {task for task in asyncio.all_tasks() if task is not asyncio.current_task()} == set()

    asyncio.run(main())
    assert open_descriptors() == before


def test_registrations_beyond_the_event_queue_are_added() -> None:
    """The event loop has no turn during the registrations."""
    queue = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    texts = [f"/{number}" for number in range(queue + 500)]
    place = paths.auto_dir(WEB)

    async def main() -> None:
        async with watching(mirror(WEB), mirror(SHOP)) as (watched, added):
            for text in texts:
                indirect_roots.put(WEB, text)
            indirect_roots.put(SHOP, "/lost")
            await asyncio.wait_for(watched.drain(), 120)
            assert added.of() == set(os.listdir(place)) == names(*texts)
            assert added.of(SHOP) == names("/lost"), "the queue had no room for its event"
            indirect_roots.put(SHOP, "/later")
            await watched.drain()
            assert added.of(SHOP) == names("/lost", "/later")

    asyncio.run(main())


def test_a_change_of_a_watched_directory_is_reported(tmp_path: Path) -> None:
    place = tmp_path / "containers"
    place.mkdir()
    changes: list[str] = []

    async def main() -> None:
        async with watching(mirror()) as (watched, added):
            watched.watch_directory(str(place), lambda: changes.append("x"))
            watched.watch_directory(str(tmp_path / "none"), lambda: changes.append("none"))
            steps: list[Callable[[], object]] = [
                (place / "web").mkdir,
                lambda: (place / "web").rename(place / "other"),
                (place / "other").rmdir,
                lambda: (place / "link").symlink_to("x"),
            ]
            for step in steps:
                changes.clear()
                step()
                await until(lambda: changes)
            indirect_roots.put(WEB, "/one")
            await until(lambda: added.of() == names("/one"))
            assert "none" not in changes

    asyncio.run(main())


def test_a_directory_that_is_made_again_is_watched_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registration_watch, "_POLL_SECONDS", 0.05)

    async def main() -> None:
        async with watching(mirror()) as (watched, added):
            for number in range(3):
                place = Path(paths.auto_dir(WEB))
                place.rename(place.with_name(f"former-{number}"))
                Path(place.with_name(f"former-{number}")).rmdir()
                await watched.drain()
                place.mkdir()
                indirect_roots.put(WEB, f"/{number}")
                await until(added.has(f"/{number}"))
                indirect_roots.forget(WEB, names(f"/{number}"))

            def quiet() -> bool:
                return watched._polling is None

            await until(quiet)
            monkeypatch.setattr(registration_watch, "_POLL_SECONDS", NEVER)
            indirect_roots.put(WEB, "/later")
            await until(added.has("/later"))

    asyncio.run(main())
