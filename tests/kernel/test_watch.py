"""Every registration is taken, whatever the kernel tells of it or has no room to tell."""

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
from support.containers import apart

from inx_sidecar.base import paths
from inx_sidecar.kernel.syscalls import CLONE_NEWUSER, unshare
from inx_sidecar.links import indirect_roots
from inx_sidecar.links.backoff import Backoff
from inx_sidecar.nix.gc_client import GcClient
from inx_sidecar.roots import watch
from inx_sidecar.roots.mirror import Mirror
from inx_sidecar.roots.watch import RegistrationWatch

pytestmark = pytest.mark.gc

WEB = "11111111-2222-3333-4444-555555555555"
SHOP = "21111111-2222-3333-4444-555555555555"
NEVER = 3600.0


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without polling, unless a test wants it."""
    for name in ("STATE", "RUN", "GCROOTS"):
        monkeypatch.setattr(paths, name, str(tmp_path / name))
    for name in ("GC_LOCK", "GC_SOCKET"):
        monkeypatch.setattr(paths, name, str(tmp_path / name))
    monkeypatch.setattr(paths, "NIX_DB", str(tmp_path / "db.sqlite"))
    with closing(sqlite3.connect(paths.NIX_DB)) as db:
        db.execute("create table ValidPaths (path text unique not null)")
    (tmp_path / "rootfs").mkdir()
    for uuid in (WEB, SHOP):
        os.makedirs(paths.auto_dir(uuid))
        os.makedirs(paths.run_dir(uuid))
    monkeypatch.setattr(watch, "_POLL_SECONDS", NEVER)


def mirror(uuid: str = WEB, most: int = 100_000) -> Mirror:
    """One that does not run: what is registered is looked up in an empty root file system."""
    rootfs = str(Path(paths.STATE).parent / "rootfs")
    return Mirror("web", uuid, rootfs, None, most, GcClient())


def names(*texts: str) -> set[str]:
    return {indirect_roots.name_of(text) for text in texts}


class Taken:
    """What was taken, by uuid; `hold` keeps it waiting."""

    def __init__(self) -> None:
        self.names: dict[str, set[str]] = {}
        self.turns: list[str] = []
        self.go = asyncio.Event()
        self.go.set()

    async def __call__(self, mirror: Mirror, some: set[str]) -> None:
        await self.go.wait()
        await mirror.add_registered(some)
        self.names.setdefault(mirror.uuid, set()).update(some)
        self.turns.append(mirror.uuid)

    def of(self, uuid: str = WEB) -> set[str]:
        return self.names.get(uuid, set())

    def has(self, text: str, uuid: str = WEB) -> Callable[[], bool]:
        return lambda: names(text) <= self.of(uuid)


@asynccontextmanager
async def watching(*mirrors: Mirror) -> AsyncIterator[tuple[RegistrationWatch, Taken]]:
    taken = Taken()
    watched = RegistrationWatch(taken)
    watched.open()
    try:
        for one in mirrors:
            watched.begin(one)
        yield watched, taken
    finally:
        taken.go.set()
        await watched.close()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


def test_what_is_registered_is_taken_by_itself() -> None:
    async def main() -> None:
        async with watching(mirror(WEB), mirror(SHOP)) as (_, taken):
            indirect_roots.put(WEB, "/one")
            await until(lambda: taken.of() == names("/one"))
            indirect_roots.put(WEB, "/two")
            indirect_roots.put(SHOP, "/three")
            await until(lambda: taken.of() == names("/one", "/two"))
            await until(lambda: taken.of(SHOP) == names("/three"))

    asyncio.run(main())


def test_what_is_registered_again_is_taken_again() -> None:
    async def main() -> None:
        async with watching(mirror()) as (watched, taken):
            for count in range(1, 6):
                indirect_roots.put(WEB, "/one")
                await watched.drain()
                assert len(taken.turns) == count

    asyncio.run(main())


def test_what_was_there_before_is_taken() -> None:
    indirect_roots.put(WEB, "/one")

    async def main() -> None:
        async with watching(mirror()) as (watched, taken):
            await watched.drain()
            assert taken.of() == names("/one")

    asyncio.run(main())


def test_what_is_no_registration_is_not_taken() -> None:
    async def main() -> None:
        async with watching(mirror()) as (watched, taken):
            place = Path(paths.auto_dir(WEB))
            for name in (".0123", "x", "e" * 32, f"{'0' * 32}.tmp"):
                os.symlink("/x", place / "other")
                os.rename(place / "other", place / name)
            indirect_roots.put(WEB, "/one")
            indirect_roots.forget(WEB, names("/one"))
            indirect_roots.put(WEB, "/two")
            await watched.drain()
            assert taken.of() == names("/one", "/two")

    asyncio.run(main())


def test_who_drains_has_all_that_was_registered_before() -> None:
    """With not one turn of the loop between."""

    async def main() -> None:
        async with watching(mirror(WEB), mirror(SHOP)) as (watched, taken):
            for number in range(200):
                texts = [f"/{number}/{digit}" for digit in range(number % 5)]
                for text in texts:
                    indirect_roots.put(WEB if number % 2 else SHOP, text)
                await watched.drain()
                assert names(*texts) <= taken.of(WEB if number % 2 else SHOP)

    asyncio.run(main())


def test_who_drains_has_what_came_while_others_were_taken() -> None:
    async def main() -> None:
        async with watching(mirror()) as (watched, taken):
            taken.go.clear()
            indirect_roots.put(WEB, "/one")
            first = asyncio.create_task(watched.drain())
            await asyncio.sleep(0.05)
            indirect_roots.put(WEB, "/two")
            second = asyncio.create_task(watched.drain())
            await asyncio.sleep(0.05)
            assert not first.done() and not second.done()
            taken.go.set()
            await asyncio.wait_for(second, 20)
            assert taken.of() == names("/one", "/two")
            await asyncio.wait_for(first, 20)

    asyncio.run(main())


def test_who_drains_does_not_wait_for_what_comes_later() -> None:
    """An instance that registers without end keeps no collection waiting."""

    async def flood() -> None:
        while True:
            indirect_roots.put(WEB, "/flood")
            await asyncio.sleep(0)

    async def main() -> None:
        async with watching(mirror(), mirror(SHOP)) as (watched, taken):
            flooding = asyncio.create_task(flood())
            await until(lambda: len(taken.turns) > 3)
            indirect_roots.put(WEB, "/one")
            indirect_roots.put(SHOP, "/one")
            try:
                await asyncio.wait_for(watched.drain(), 10)
                assert names("/one") <= taken.of(WEB) and taken.of(SHOP) == names("/one")
            finally:
                flooding.cancel()

    asyncio.run(main())


def test_an_instance_that_is_slow_is_not_waited_for() -> None:
    async def main() -> None:
        one = mirror()
        async with watching(one, mirror(SHOP)) as (watched, taken):
            taken.go.clear()
            indirect_roots.put(WEB, "/one")
            await asyncio.sleep(0.05)
            one.resolver._backoff = Backoff().longer(asyncio.get_running_loop().create_future())
            await asyncio.wait_for(watched.drain(), 10)
            assert taken.of() == set()
            taken.go.set()
            indirect_roots.put(SHOP, "/two")
            await watched.drain()
            assert taken.of(SHOP) == names("/two")

    asyncio.run(main())


def test_one_instance_has_one_turn_at_a_time() -> None:
    running: list[str] = []

    async def take(mirror: Mirror, some: set[str]) -> None:
        assert mirror.uuid not in running
        running.append(mirror.uuid)
        await asyncio.sleep(0.002)
        await mirror.add_registered(some)
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
            assert one.changed() == set()
        await watched.close()

    asyncio.run(main())


def test_what_ended_is_not_watched() -> None:
    async def main() -> None:
        async with watching(mirror(WEB), mirror(SHOP)) as (watched, taken):
            watched.end(WEB)
            watched.end("none")
            assert watched.get(WEB) is None and [m.uuid for m in watched.mirrors] == [SHOP]
            indirect_roots.put(WEB, "/one")
            indirect_roots.put(SHOP, "/two")
            await watched.drain()
            await until(lambda: taken.of(SHOP))
            assert taken.of(WEB) == set()
            watched.begin(mirror(WEB))
            await watched.drain()
            assert taken.of(WEB) == names("/one")

    asyncio.run(main())


def test_one_that_begins_again_is_watched_once() -> None:
    async def main() -> None:
        async with watching(mirror()) as (watched, taken):
            for _ in range(3):
                watched.begin(mirror())
            indirect_roots.put(WEB, "/one")
            await watched.drain()
            assert taken.turns == [WEB]

    asyncio.run(main())


def test_nothing_is_left_when_it_is_closed() -> None:
    before = os.listdir("/proc/self/fd")

    async def main() -> None:
        async with watching(mirror()) as (_, taken):
            taken.go.clear()
            indirect_roots.put(WEB, "/one")
            await asyncio.sleep(0.05)
        assert {task for task in asyncio.all_tasks() if task is not asyncio.current_task()} == set()

    asyncio.run(main())
    assert os.listdir("/proc/self/fd") == before


def test_more_than_the_kernel_can_queue_is_taken() -> None:
    """The loop had no turn meanwhile."""
    queue = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    texts = [f"/{number}" for number in range(queue + 500)]
    place = paths.auto_dir(WEB)

    async def main() -> None:
        async with watching(mirror(WEB), mirror(SHOP)) as (watched, taken):
            for text in texts:
                indirect_roots.put(WEB, text)
            indirect_roots.put(SHOP, "/lost")
            await asyncio.wait_for(watched.drain(), 120)
            assert taken.of() == set(os.listdir(place)) == names(*texts)
            assert taken.of(SHOP) == names("/lost"), "its event had no room"
            indirect_roots.put(SHOP, "/later")
            await watched.drain()
            assert taken.of(SHOP) == names("/lost", "/later")

    asyncio.run(main())


def test_a_watched_directory_tells_when_something_comes_or_goes(tmp_path: Path) -> None:
    place = tmp_path / "containers"
    place.mkdir()
    changes: list[str] = []

    async def main() -> None:
        async with watching(mirror()) as (watched, taken):
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
            await until(lambda: taken.of() == names("/one"))
            assert "none" not in changes

    asyncio.run(main())


def test_a_directory_that_is_made_again_is_watched_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_POLL_SECONDS", 0.05)

    async def main() -> None:
        async with watching(mirror()) as (watched, taken):
            for number in range(3):
                place = Path(paths.auto_dir(WEB))
                place.rename(place.with_name(f"former-{number}"))
                Path(place.with_name(f"former-{number}")).rmdir()
                await watched.drain()
                place.mkdir()
                indirect_roots.put(WEB, f"/{number}")
                await until(taken.has(f"/{number}"))
                indirect_roots.forget(WEB, names(f"/{number}"))

            def quiet() -> bool:
                return watched._polling is None

            await until(quiet)
            monkeypatch.setattr(watch, "_POLL_SECONDS", NEVER)
            indirect_roots.put(WEB, "/later")
            await until(taken.has("/later"))

    asyncio.run(main())


def limited(watches: int | None, instances: int | None, body: Callable[[], None]) -> None:
    """Do `body` in a user namespace that may have so many watches, or instances, of inotify."""

    def inside() -> None:
        unshare(CLONE_NEWUSER)
        Path("/proc/self/uid_map").write_text("0 0 1")
        for name, limit in (("watches", watches), ("instances", instances)):
            if limit is not None:
                Path(f"/proc/sys/user/max_inotify_{name}").write_text(f"{limit}")
        body()

    apart(inside)


def test_beyond_the_limit_of_watches_it_is_looked_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(watch, "_POLL_SECONDS", 0.05)

    async def main() -> None:
        async with watching(mirror(WEB), mirror(SHOP)) as (watched, taken):
            assert "raise fs.inotify.max_user_watches" in caplog.text
            for number in range(3):
                indirect_roots.put(WEB, f"/{number}")
                indirect_roots.put(SHOP, f"/{number}")
                await until(taken.has(f"/{number}", WEB))
                await until(taken.has(f"/{number}", SHOP))
            caplog.clear()
            # One ends: there is room for the other.
            watched.end(WEB)
            await until(lambda: watched._polling is None)
            monkeypatch.setattr(watch, "_POLL_SECONDS", NEVER)
            indirect_roots.put(SHOP, "/later")
            await until(taken.has("/later", SHOP))

    limited(1, None, lambda: asyncio.run(main()))


def test_who_drains_has_what_is_beyond_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with watching(mirror(WEB), mirror(SHOP)) as (watched, taken):
            for number in range(5):
                indirect_roots.put(SHOP, f"/{number}")
                await watched.drain()
                assert names(f"/{number}") <= taken.of(SHOP)

    limited(1, None, lambda: asyncio.run(main()))


def test_without_inotify_it_is_looked_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(watch, "_POLL_SECONDS", 0.05)

    async def main() -> None:
        async with watching(mirror()) as (watched, taken):
            assert caplog.text.count("max_user_instances") == 1
            watched.watch_directory(paths.STATE, lambda: None)
            indirect_roots.put(WEB, "/one")
            await until(lambda: taken.of() == names("/one"))
            indirect_roots.put(WEB, "/two")
            await watched.drain()
            assert taken.of() == names("/one", "/two")
            watched.end(WEB)
            await until(lambda: watched._polling is None)

    limited(None, 0, lambda: asyncio.run(main()))


def test_the_limit_is_complained_of_once_and_not_at_every_look(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(watch, "_POLL_SECONDS", 0.01)

    async def main() -> None:
        async with watching(mirror(WEB), mirror(SHOP)) as (_, taken):
            for number in range(20):
                indirect_roots.put(SHOP, f"/{number}")
                await until(taken.has(f"/{number}", SHOP))
            assert caplog.text.count("max_user_watches") == 1

    limited(1, None, lambda: asyncio.run(main()))


def test_an_instance_that_registers_too_much_keeps_what_was_there_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watch, "_POLL_SECONDS", 0.05)

    async def main() -> None:
        one = mirror(WEB, most=10)
        async with watching(one, mirror(SHOP)) as (watched, taken):
            for number in range(10):
                indirect_roots.put(WEB, f"/first/{number}")
            await watched.drain()
            for number in range(200):
                indirect_roots.put(WEB, f"/flood/{number}")
            indirect_roots.put(SHOP, "/one")
            await asyncio.wait_for(watched.drain(), 20)
            first = names(*(f"/first/{number}" for number in range(10)))
            assert set(os.listdir(paths.auto_dir(WEB))) == first
            assert taken.of(SHOP) == names("/one")
            assert "max_roots_per_instance" in one.status()
            # When there is room again, it is taken again.
            indirect_roots.forget(WEB, first)
            await one.compare(None)
            indirect_roots.put(WEB, "/again")
            await until(taken.has("/again"))

    asyncio.run(main())
