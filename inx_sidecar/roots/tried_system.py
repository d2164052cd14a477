"""The system that was tried last for an instance: for which spec, and the root that keeps it.

Both are needed from the try until the system is made current, or something else is asked for.
"""

import contextlib
import json
import os
from dataclasses import asdict, dataclass
from typing import Final

from inx_sidecar.base import paths
from inx_sidecar.base.errors import RootError
from inx_sidecar.nix.gc_client import GcClient
from inx_sidecar.nix.store_paths import STORE_PATH
from inx_sidecar.roots import direct_roots

TRIED: Final = "tried-system"


@dataclass(frozen=True)
class Tried:
    """`wish` is that of the spec for which `system` was built (config/spec)."""

    wish: str
    system: str


def read(uuid: str) -> Tried | None:
    """The system that was tried last for the instance `uuid`; None if there is none."""
    try:
        with open(_path(uuid)) as file:
            tried = Tried(**json.load(file))
            return tried if STORE_PATH.fullmatch(tried.system) else None
    except (OSError, ValueError, TypeError):
        return None


async def keep(gc: GcClient, lxc_name: str, uuid: str, tried: Tried) -> None:
    """Keep `tried` instead of what was tried before. RootError if that is not possible."""
    await direct_roots.add(gc, lxc_name, uuid, {TRIED: tried.system})
    path = _path(uuid)
    try:
        with open(f"{path}.new", "w") as file:
            json.dump(asdict(tried), file)
        os.rename(f"{path}.new", path)
    except OSError as error:
        raise RootError(f"cannot write {path}: {error.strerror}") from None


def forget(lxc_name: str, uuid: str) -> None:
    """Let go what was tried, if anything was. RootError if its root cannot be dropped."""
    with contextlib.suppress(OSError):
        os.unlink(_path(uuid))
    direct_roots.drop_if_there(lxc_name, uuid, TRIED)


def _path(uuid: str) -> str:
    return f"{paths.state_dir(uuid)}/tried.json"
