"""/run/inx/UUID/status.json: the status that was given last, for the sidecar that comes next."""

import json
import os
from collections.abc import Mapping

from inx_sidecar.base import paths


def save(uuid: str, config: dict[str, str]) -> None:
    """Save the keys of a status; nothing is saved before the directory of the instance is made."""
    path = f"{paths.run_dir(uuid)}/status.json"
    try:
        with open(f"{path}.new", "w") as file:
            json.dump(config, file)
        os.rename(f"{path}.new", path)
    except FileNotFoundError:
        pass  # the start was refused before the instance's directory was made


def load(uuid: str) -> dict[str, str] | None:
    try:
        with open(f"{paths.run_dir(uuid)}/status.json") as file:
            return dict(json.load(file))
    except (OSError, ValueError):
        return None


def drop(uuid: str, written: Mapping[str, str]) -> None:
    """Save no longer what is `written`."""
    saved = load(uuid) or {}
    left = {key: value for key, value in saved.items() if written.get(key) != value}
    if left != saved:
        save(uuid, left)
