"""Fetch store paths from the substituters of the host, in a transient systemd service."""

import asyncio
import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Final
from urllib.parse import urlsplit

from inx_sidecar.base import paths
from inx_sidecar.base.errors import UnsupportedError
from inx_sidecar.base.process import find_program, run
from inx_sidecar.builds.build_service import SANDBOX
from inx_sidecar.builds.build_user import build_user
from inx_sidecar.builds.failure_reason import failure_reason
from inx_sidecar.config.settings import Settings
from inx_sidecar.nix import host_settings

# Nix takes a store path without "^" for the path itself, also that of a derivation: it fetches the
# path, and builds nothing (libcmd/installable-derived-path.cc, InstallableDerivedPath::parse).
_COMMAND: Final = (
    "nix", "--extra-experimental-features", "nix-command", "build", "--no-link", "--keep-going",
    "--log-format", "raw",
)  # fmt: skip

# The last line of Nix, after the reasons.
_SUMMARY: Final = re.compile(r"(?m)^error: build of .* failed$")


async def fetch(uuid: str, wanted: Iterable[str], settings: Settings) -> str:
    """Let the Nix daemon fetch those of the store paths `wanted` that a substituter has. Which ones
    came, the store tells; the result is one reason why not all did.

    Nix keeps a path that was fetched from a collection that runs until this returns. When the task
    is cancelled, the fetch is stopped. UnsupportedError if the build user does not exist.
    """
    user = build_user(settings)
    properties = [
        *SANDBOX,
        f"User={user.uid}",
        f"Group={user.gid}",
        f"MemoryMax={settings.build_memory_max}",
        f"RuntimeMaxSec={settings.build_timeout}",
        "KillSignal=SIGKILL",
    ]
    variables = {
        "HOME": user.home, "LANG": "C.UTF-8", "NIX_REMOTE": "daemon", "NO_COLOR": "1",
        "TERM": "dumb",
    }  # fmt: skip
    command = [
        "systemd-run", "--quiet", "--wait", "--pipe", "--collect", "--slice=inx-build.slice",
        f"--unit={paths.fetch_unit(uuid)}",
        *(f"--property={text}" for text in properties),
        *(f"--setenv={name}={value}" for name, value in variables.items()),
        "--", find_program(_COMMAND[0]), *_COMMAND[1:],
        # systemd takes "$" for a variable and "$$" for "$".
        *(word.replace("$", "$$") for word in await fetch_options()), "--", *wanted,
    ]  # fmt: skip
    try:
        done = await run(command)
    except asyncio.CancelledError:
        await run(["systemctl", "stop", "--quiet", paths.fetch_unit(uuid)])
        raise
    if done.status == 0:
        return ""
    return failure_reason(replace(done, output=_SUMMARY.sub("", done.output)))


async def fetch_options() -> list[str]:
    """The options of a Nix client that let it ask all substituters; see `options_for`."""
    try:
        return options_for((await host_settings.read()).get("trusted-substituters", ""))
    except UnsupportedError:
        return options_for("")


def options_for(trusted: str) -> list[str]:
    """As `fetch_options`, for the setting trusted-substituters.

    Nix asks these only if a client says so, and so no build waits for one that is away, such as
    another member of a cluster. One that does not answer is passed over (--fallback). Every user
    sees a command line: so a URL with a password is left out.
    """
    urls = " ".join(url for url in trusted.split() if not _has_password(url))
    return ["--fallback", *(["--option", "extra-substituters", urls] if urls else [])]


def _has_password(url: str) -> bool:
    """Whether the URL of a store may have a password or a token: ssh://USER@HOST has none."""
    try:
        parts = urlsplit(url)
        return parts.password is not None or (
            "@" in parts.netloc and parts.scheme not in ("ssh", "ssh-ng")
        )
    except ValueError:
        return True
