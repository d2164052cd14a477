"""Send a request to the sidecar: what the barrier and the administrator's commands do."""

import asyncio
from typing import Final

from inx_sidecar.base import paths
from inx_sidecar.base.errors import UnreachableError

SYNC: Final = "sync"
DRAIN: Final = "drain"

RETRY_SECONDS: Final = 0.05


async def ask(word: str) -> tuple[int, str]:
    """The exit status and the sentence that the sidecar answers to `word`.

    systemd starts a sidecar if none runs. If a sidecar ends before it answers, the next one is
    asked. UnreachableError if the socket cannot be used.
    """
    while (answer := await ask_once(word)) is None:
        await asyncio.sleep(RETRY_SECONDS)
    return answer


async def ask_once(word: str) -> tuple[int, str] | None:
    """As `ask`, but None if the sidecar ends before it answers."""
    try:
        reader, writer = await asyncio.open_unix_connection(paths.SOCKET)
    except PermissionError:
        raise UnreachableError("only root may ask the inx sidecar") from None
    except OSError:
        raise UnreachableError(
            "the inx sidecar is not reachable; run 'systemctl start inx-sidecar.socket'"
        ) from None
    try:
        writer.write(word.encode())
        writer.write_eof()
        answer = await reader.read()
    except OSError:
        return None
    finally:
        writer.close()
    status, _, sentence = answer.decode(errors="replace").partition("\n")
    return (int(status), sentence) if status else None
