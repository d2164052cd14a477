"""The commands of Nix that build or fetch the system of an instance."""

from collections.abc import Iterable
from typing import Final

from inx_sidecar.config.sources import Flake, NixFile

EXPERIMENTAL: Final = ("nix", "--extra-experimental-features", "nix-command flakes")
LOG_FORMAT: Final = ("--log-format", "internal-json")


def fetch_command(missing: str, link: str, options: Iterable[str] = ()) -> list[str]:
    """What fetches the store path `missing`, and makes `link` lead to it."""
    return ["nix-store", "--realise", *LOG_FORMAT, *options, "--add-root", link, "--", missing]


def build_command(source: Flake | NixFile, link: str, *, write_lock: bool = True) -> list[str]:
    """What builds `source`, and makes `link` lead to the system.

    Without `write_lock`, Nix does not complete the lock file of a flake: it would follow a link
    that somebody put in the place of that file, and call git.
    """
    if isinstance(source, NixFile):
        return ["nix-build", *LOG_FORMAT, "--out-link", link,
                "--attr", source.attr, "--", source.path]  # fmt: skip
    lock = [] if write_lock else ["--no-write-lock-file"]
    return [*EXPERIMENTAL, "build", *LOG_FORMAT, "--no-accept-flake-config", *lock,
            "--out-link", link, "--", source.installable()]  # fmt: skip
