"""The client of the sidecar asks again, with pauses, and tells an operator why it cannot ask."""

import asyncio
import os
import socket

import pytest
from support.containers import apart
from support.sidecar import Sidecar

from inx_sidecar.base import paths, sidecar_client
from inx_sidecar.base.errors import InxError, UnreachableError

pytestmark = [pytest.mark.gc, pytest.mark.usefixtures("sidecar_socket")]


def test_a_sidecar_that_ends_again_and_again_is_asked_with_pauses() -> None:
    async def main() -> None:
        sidecar = Sidecar()
        sidecar.closing = 1_000_000
        async with sidecar.running():
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(sidecar_client.ask(sidecar_client.SYNC), 1)
        assert 1 < len(sidecar.asked) < 200

    asyncio.run(main())


def test_a_user_who_may_not_ask_gets_an_error() -> None:
    def ask() -> str:
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        try:
            asyncio.run(sidecar_client.ask(sidecar_client.SYNC))
        except InxError as error:
            return str(error)
        return ""

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(paths.SOCKET)
        listener.listen()
        os.chmod(paths.SOCKET, 0o600)
        assert apart(ask)


def test_without_a_socket_the_error_names_the_command_that_starts_it() -> None:
    with pytest.raises(UnreachableError, match=r"systemctl start inx-sidecar\.socket"):
        asyncio.run(sidecar_client.ask(sidecar_client.SYNC))
