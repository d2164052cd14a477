"""Instances register roots and collections run, both without pause: nothing may be lost."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from support.disposable import REPO, Host
from support.gc import BARRIER, SIDECAR, journal, journal_end
from support.gc_stages import restore_units
from support.gcstress import KINDS
from support.incus import Incus

pytestmark = pytest.mark.gc


@pytest.fixture(scope="module")
def instances(host: Host) -> Iterator[list[str]]:
    """NAME.UUID of four instances that register, beside a fifth one that does not."""
    incus = Incus(host, "stress")
    names = [incus.launch(name=incus.name(s), flake="/etc/nixos#web") for s in "abcde"]
    host.push(REPO / "tests", ["support"], "/root/stress")
    yield [f"{name}.{incus.uuid(name)}" for name in names[:4]]
    incus.clean_up()


@pytest.fixture(autouse=True)
def units(host: Host) -> Iterator[None]:
    """Sidecar and barrier run again after each test."""
    yield
    restore_units(host)


@pytest.mark.parametrize("kill_after", [0, 2], ids=["sidecar-lives", "sidecar-killed"])
def test_no_path_is_lost_while_instances_register_and_collections_run(
    host: Host, instances: list[str], kill_after: int
) -> None:
    """With `kill_after`, the sidecar is killed so many seconds after each of its starts."""
    since = journal_end(host)
    options = f"--seconds 15 --at-least 1300 --kill-after {kill_after}".split()
    argv = ["env", "-C/root/stress", "python3", "-m", "support.gcstress", *options, *instances]
    figures: dict[str, Any] = json.loads(host.run(argv, timeout=280).stdout)
    figures["let through"] = journal(host, since, BARRIER).count("goes on")
    print({key: len(value) if isinstance(value, list) else value for key, value in figures.items()})
    assert figures["lost"] == []
    assert figures["errors"] == []
    assert "root lost" not in journal(host, since, SIDECAR)
    assert figures["registered"] == figures["verified"] >= 1300
    assert figures["deleted"] > 50 and figures["kept"] == 0
    # With kills, a collection may wait for one sidecar after the other: not every kind gets a turn.
    assert set(figures["collections"]) == KINDS or kill_after
    assert sum(figures["collections"].values()) > 5
    # These failures are Nix's own: its server of new roots can end a collection
    # (NixOS/nix#15962). If a daemon collects, its client only learns that the daemon is gone.
    crashed = "terminate called" in journal(host, since, "nix-daemon")
    own = ["terminate called", *(["daemon disconnected unexpectedly"] if crashed else [])]
    assert [text for text in figures["failed"] if not any(end in text for end in own)] == []
    assert (figures["kills"] > 3) == bool(kill_after)
