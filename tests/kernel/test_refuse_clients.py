"""An instance without a daemon gets a socket that nobody listens on; systemd is asked to stop the
units of a daemon only if they may be active."""

import asyncio
import os
import socket
import tempfile
from collections.abc import Iterator

import pytest

from inx_sidecar.base import paths
from inx_sidecar.base.errors import UnsupportedError
from inx_sidecar.nix import daemon
from inx_sidecar.nix.daemon import NixDaemon

pytestmark = pytest.mark.life

UUID = "11111111-2222-3333-4444-555555555555"
START = ["start"]
STOP = ["stop", "stop"]


class Asked:
    """What systemd is asked for; tests/host/test_units.py has the real one."""

    def __init__(self) -> None:
        self.verbs: list[str] = []
        self.fails = False

    async def start(self, *units: str) -> None:
        self.verbs += ["start" for _ in units]

    async def stop(self, *units: str) -> None:
        await asyncio.sleep(0)
        if self.fails:
            raise UnsupportedError("systemd does not answer")
        self.verbs += ["stop" for _ in units]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[Asked]:
    # The path of a socket has at most 107 bytes (unix(7)), and that of a test may have more.
    with tempfile.TemporaryDirectory() as place:
        monkeypatch.setattr(paths, "RUN", place)
        monkeypatch.setattr(paths, "NIX_BUILDS", f"{place}/builds")
        os.makedirs(paths.daemon_socket_dir(UUID))
        asked = Asked()
        monkeypatch.setattr(daemon, "_UNITS", asked)
        yield asked


async def refuse(one: NixDaemon) -> None:
    await one.refuse_clients(3)
    with socket.socket(socket.AF_UNIX) as client, pytest.raises(ConnectionRefusedError):
        client.connect(f"{paths.daemon_socket_dir(UUID)}/socket")


def test_units_that_this_process_has_stopped_are_not_stopped_again(asked: Asked) -> None:
    async def main() -> None:
        one = NixDaemon(UUID)
        await refuse(one)
        assert asked.verbs == STOP, "they may be left from before this process"
        await refuse(one)
        one.begin_stop()  # as the hook stop does
        await one.wait_until_done()
        await refuse(one)
        assert asked.verbs == STOP + STOP

    asyncio.run(main())


def test_a_socket_that_was_started_is_stopped_before_another_one_is_made(asked: Asked) -> None:
    """systemd removes the file of a socket that it stops."""

    async def main() -> None:
        one = NixDaemon(UUID)
        await refuse(one)
        one.begin_stop()
        one.begin_start()
        one.begin_end()
        await one.wait_until_done()
        await refuse(one)
        assert asked.verbs == STOP + STOP + START + ["stop"] + STOP
        one.begin_start()
        await refuse(one)
        assert asked.verbs[-3:] == START + STOP

    asyncio.run(main())


def test_units_that_could_not_be_stopped_are_stopped_again(asked: Asked) -> None:
    async def main() -> None:
        one = NixDaemon(UUID)
        one.begin_start()
        asked.fails = True
        one.begin_stop()
        await one.wait_until_done()
        asked.fails = False
        await refuse(one)
        assert asked.verbs == START + STOP

    asyncio.run(main())
