"""What inx needs of Nix, its daemon and its store."""

import os
from typing import Final

from inx_sidecar.base import paths
from inx_sidecar.base.errors import ConfigError
from inx_sidecar.base.process import run
from inx_sidecar.builds.build_user import build_user
from inx_sidecar.builds.daemon_access import refusal_of_daemon
from inx_sidecar.builds.failure_reason import failure_reason
from inx_sidecar.checks.finding import Finding, at_least
from inx_sidecar.config.settings import load_settings
from inx_sidecar.nix.store_paths import valid_paths

_NIX: Final = (2, 18)


async def nix() -> list[Finding]:
    done = await run(["nix", "--version"])
    if done.status:
        return [Finding("Nix", f"it does not run: {failure_reason(done)}; correct that")]
    valid_paths({f"{paths.STORE}/{'0' * 32}-none"})
    return [at_least("Nix", done.output.split()[-1], _NIX, "daemon --force-untrusted is needed")]


async def owner() -> list[Finding]:
    return [store_owner(os.stat(paths.STORE).st_uid)]


def store_owner(uid: int) -> Finding:
    """A Nix daemon that is not root owns the store (Nix 2.34, `nix.daemonUser` of NixOS). Its
    collector cannot enter the directories of roots, which only root may read, and goes on."""
    subject = f"{paths.STORE} belongs to the user {uid}"
    if uid == 0:
        return Finding(f"{paths.STORE} belongs to root")
    return Finding(
        subject,
        "a collector that is not root does not see the roots of instances; "
        "run the Nix daemon as root",
    )


async def nix_daemon() -> list[Finding]:
    if (await run(["nix", "--version"])).status:
        return []  # _nix says why
    try:
        user = build_user(load_settings())
    except ConfigError:
        return []  # _settings says why
    return [Finding(f"the Nix daemon serves {user.name}", await refusal_of_daemon(user))]
