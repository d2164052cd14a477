"""A directory with far too many registrations is exchanged for one with those that are kept."""

import asyncio
import os
from pathlib import Path

import pytest
from support.registrations import WEB, mirror, names

from inx_sidecar.base import paths
from inx_sidecar.links import indirect_roots
from inx_sidecar.roots import registration_limit
from inx_sidecar.roots.registration_limit import overfull_at

pytestmark = [pytest.mark.gc, pytest.mark.usefixtures("registrations")]

MOST = 20


def register(*texts: str) -> None:
    for text in texts:
        indirect_roots.put(WEB, text)


def many(prefix: str) -> list[str]:
    return [f"/{prefix}/{number}" for number in range(overfull_at(MOST) + 1)]


def await_tick() -> None:
    """Return when the file system gives new files a later time."""
    place = Path(paths.STATE)
    begin = time_of(place / "tick")
    while time_of(place / "tick") == begin:
        pass


def time_of(path: Path) -> int:
    path.unlink(missing_ok=True)
    path.touch()
    return path.stat().st_ctime_ns


def present() -> set[str]:
    return set(os.listdir(paths.auto_dir(WEB)))


def test_those_that_were_looked_at_stay_then_the_oldest() -> None:
    one = mirror(most=MOST)
    known = [f"/known/{number}" for number in range(MOST - 5)]

    async def main() -> None:
        register(*known)
        await one.add_registered(names(*known))
        old = [f"/old/{number}" for number in range(5)]
        register(*old)
        await_tick()
        register(*many("flood"))
        register(*known)  # again, so that these are the newest
        await one.compare(None)
        assert present() == names(*known, *old)

    asyncio.run(main())


def test_what_has_a_root_stays_after_the_sidecar_was_restarted() -> None:
    path = f"/nix/store/{'0' * 32}-x"

    async def main() -> None:
        register(*many("flood"), "/rooted")
        name = indirect_roots.name_of("/rooted")
        links = Path(paths.GCROOTS) / f"web.{WEB}" / "links"
        links.mkdir(parents=True)
        (links / f"{name}.{'0' * 32}").symlink_to(path)
        await mirror(most=MOST).compare(None)
        assert name in present() and len(present()) == MOST

    asyncio.run(main())


def test_nothing_of_the_full_directory_is_left_over() -> None:
    register(*many("flood"))
    asyncio.run(mirror(most=MOST).compare(None))
    assert os.listdir(f"{paths.STATE}/{WEB}") == ["auto"]


def test_an_exchange_that_was_cut_short_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The child of a former sidecar ended right before the exchange."""
    register(*many("flood"))
    before = present()

    def end(one: str, other: str) -> None:
        raise OSError

    with monkeypatch.context() as patch:
        patch.setattr(registration_limit, "exchange", end)
        with pytest.raises(OSError):
            registration_limit._replace_directory(WEB, [], MOST)
    assert present() == before
    asyncio.run(mirror(most=MOST).compare(None))
    assert len(present()) == MOST and os.listdir(f"{paths.STATE}/{WEB}") == ["auto"]
