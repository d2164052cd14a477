"""The settings of Nix on the host, as Nix itself reads them."""

import asyncio
import os
import re
from collections.abc import Mapping
from typing import Final

from inx_sidecar.base.errors import UnsupportedError
from inx_sidecar.base.process import run

_SECONDS: Final = 10.0
_LINE: Final = re.compile(r"([a-z0-9-]+) = (.*)")
_NIX: Final = ("nix", "--extra-experimental-features", "nix-command")
# Nix before 2.20 has only the second name.
_COMMANDS: Final = (("config", "show"), ("show-config",))


async def read() -> Mapping[str, str]:
    """Each setting with its text; UnsupportedError if Nix does not tell them."""
    settings: dict[str, str] = {}

    def take(line: str) -> None:
        if match := _LINE.fullmatch(line):
            settings[match[1]] = match[2]

    try:
        async with asyncio.timeout(_SECONDS):
            for command in _COMMANDS:
                settings.clear()
                done = await run([*_NIX, *command], on_line=take)
                if done.status == 0 and settings:
                    return settings
    except TimeoutError:
        raise UnsupportedError(f"'nix config show' took over {_SECONDS:.0f} s") from None
    raise UnsupportedError(f"'{done.command}' failed: {done.output}")


def certificates(settings: Mapping[str, str]) -> str:
    """The file with the certificates of authorities that Nix trusts."""
    given = settings.get("ssl-cert-file") or os.environ.get("NIX_SSL_CERT_FILE")
    return given or "/etc/ssl/certs/ca-certificates.crt"
