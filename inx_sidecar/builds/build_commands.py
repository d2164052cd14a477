"""The commands of Nix that build or fetch the system of an instance."""

from collections.abc import Iterable
from typing import Final

from inx_sidecar.config.sources import Flake, NixFile, Source

_LOG_FORMAT: Final = ("--log-format", "internal-json")


def commands(
    source: Source,
    missing: str | None,
    link: str,
    options: Iterable[str] = (),
    *,
    write_lock: bool = True,
) -> list[list[str]]:
    """The commands to try, in order, to make `link` lead to the system. `options` are for a
    fetch.

    Without `write_lock`, Nix does not complete the lock file of a flake: it would follow a link
    that somebody put in the place of that file, and call git.
    """
    lock = [] if write_lock else ["--no-write-lock-file"]
    attempts = []
    if missing is not None:
        fetch = ["nix-store", "--realise", *_LOG_FORMAT, *options, "--add-root", link]
        attempts.append([*fetch, "--", missing])
    match source:
        case Flake():
            attempts.append(
                ["nix", "--extra-experimental-features", "nix-command flakes",
                 "build", *_LOG_FORMAT, "--no-accept-flake-config",
                 *lock, "--out-link", link, "--", source.installable()]
            )  # fmt: skip
        case NixFile():
            attempts.append(
                ["nix-build", *_LOG_FORMAT, "--out-link", link,
                 "--attr", source.attr, "--", source.path]
            )  # fmt: skip
    return attempts
