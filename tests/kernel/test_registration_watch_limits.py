"""Registrations are added beyond the limits of inotify, up to the limit of the instance."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from support.containers import apart
from support.registrations import NEVER, SHOP, WEB, mirror, names, watching
from support.waiting import until

from inx_sidecar.base import paths
from inx_sidecar.kernel.syscalls import CLONE_NEWUSER, unshare
from inx_sidecar.links import indirect_roots
from inx_sidecar.roots import registration_watch

pytestmark = [pytest.mark.gc, pytest.mark.usefixtures("registrations")]


def limited(watches: int | None, instances: int | None, body: Callable[[], None]) -> None:
    """Call `body` in a user namespace with a limit of inotify watches or inotify instances."""

    def inside() -> None:
        unshare(CLONE_NEWUSER)
        Path("/proc/self/uid_map").write_text("0 0 1")
        for name, limit in (("watches", watches), ("instances", instances)):
            if limit is not None:
                Path(f"/proc/sys/user/max_inotify_{name}").write_text(f"{limit}")
        body()

    apart(inside)


def test_beyond_the_limit_of_watches_registrations_are_listed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(registration_watch, "_POLL_SECONDS", 0.05)

    async def main() -> None:
        async with watching(mirror(WEB), mirror(SHOP)) as (watched, added):
            assert "raise fs.inotify.max_user_watches" in caplog.text
            for number in range(3):
                indirect_roots.put(WEB, f"/{number}")
                indirect_roots.put(SHOP, f"/{number}")
                await until(added.has(f"/{number}", WEB))
                await until(added.has(f"/{number}", SHOP))
            caplog.clear()
            # One instance ends, so there is room for a watch of the other.
            watched.end(WEB)
            await until(lambda: watched._polling is None)
            monkeypatch.setattr(registration_watch, "_POLL_SECONDS", NEVER)
            indirect_roots.put(SHOP, "/later")
            await until(added.has("/later", SHOP))

    limited(1, None, lambda: asyncio.run(main()))


def test_drain_lists_registrations_beyond_the_limit_of_watches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        async with watching(mirror(WEB), mirror(SHOP)) as (watched, added):
            for number in range(5):
                indirect_roots.put(SHOP, f"/{number}")
                await watched.drain()
                assert names(f"/{number}") <= added.of(SHOP)

    limited(1, None, lambda: asyncio.run(main()))


def test_without_inotify_registrations_are_listed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(registration_watch, "_POLL_SECONDS", 0.05)

    async def main() -> None:
        async with watching(mirror()) as (watched, added):
            assert caplog.text.count("max_user_instances") == 1
            watched.watch_directory(paths.STATE, lambda: None)
            indirect_roots.put(WEB, "/one")
            await until(lambda: added.of() == names("/one"))
            indirect_roots.put(WEB, "/two")
            await watched.drain()
            assert added.of() == names("/one", "/two")
            watched.end(WEB)
            await until(lambda: watched._polling is None)

    limited(None, 0, lambda: asyncio.run(main()))


def test_the_limit_is_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(registration_watch, "_POLL_SECONDS", 0.01)

    async def main() -> None:
        async with watching(mirror(WEB), mirror(SHOP)) as (_, added):
            for number in range(20):
                indirect_roots.put(SHOP, f"/{number}")
                await until(added.has(f"/{number}", SHOP))
            assert caplog.text.count("max_user_watches") == 1

    limited(1, None, lambda: asyncio.run(main()))


def test_an_instance_beyond_its_limit_keeps_its_first_registrations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(registration_watch, "_POLL_SECONDS", 0.05)

    async def main() -> None:
        one = mirror(WEB, most=10)
        async with watching(one, mirror(SHOP)) as (watched, added):
            for number in range(10):
                indirect_roots.put(WEB, f"/first/{number}")
            await watched.drain()
            for number in range(200):
                indirect_roots.put(WEB, f"/flood/{number}")
            indirect_roots.put(SHOP, "/one")
            await asyncio.wait_for(watched.drain(), 20)
            first = names(*(f"/first/{number}" for number in range(10)))
            assert set(os.listdir(paths.auto_dir(WEB))) == first
            assert added.of(SHOP) == names("/one")
            assert "max_roots_per_instance" in one.status()
            # After its first registrations are gone, new registrations are added again.
            indirect_roots.forget(WEB, first)
            await one.compare(None)
            indirect_roots.put(WEB, "/again")
            await until(added.has("/again"))

    asyncio.run(main())
