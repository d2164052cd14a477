"""A service tells systemd its state; outside a service nothing is sent."""

import asyncio
import socket
from pathlib import Path

import pytest

from inx_sidecar.base.systemd_notify import notify, send_keep_alives

pytestmark = pytest.mark.main


@pytest.mark.parametrize("abstract", [False, True])
def test_a_state_reaches_the_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool
) -> None:
    address = f"{'@' if abstract else ''}{tmp_path}/notify"
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(address.replace("@", "\0"))
        systemd.settimeout(5)
        notify("READY=1")
        assert systemd.recv(100) == b"READY=1"


def test_outside_a_service_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    notify("READY=1")
    asyncio.run(asyncio.wait_for(send_keep_alives(), 5))


def test_keep_alives_come_more_often_than_the_watchdog_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", f"{tmp_path}/notify")
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            raise asyncio.CancelledError

    monkeypatch.setattr(asyncio, "sleep", sleep)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(f"{tmp_path}/notify")
        systemd.settimeout(5)
        with pytest.raises(asyncio.CancelledError):
            asyncio.run(send_keep_alives())
        assert [systemd.recv(100) for _ in range(3)] == [b"WATCHDOG=1"] * 3
    assert pauses == [10.0] * 3, "a third of the watchdog's time"
