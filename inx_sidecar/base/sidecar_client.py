"""Ask the sidecar: for the barrier, and for an administrator."""

import asyncio
from typing import Final

from inx_sidecar.base import paths
from inx_sidecar.base.errors import UnreachableError

SYNC: Final = "sync"
DRAIN: Final = "drain"

PAUSE: Final = 0.05


async def ask(word: str) -> tuple[int, str]:
    """Exit status and sentence; the socket starts a sidecar that does not run, and one that ends
    before it answers is asked again."""
    while (answer := await ask_once(word)) is None:
        await asyncio.sleep(PAUSE)
    return answer


async def ask_once(word: str) -> tuple[int, str] | None:
    """The same; None if the sidecar ended before it answered."""
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
