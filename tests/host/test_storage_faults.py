"""A file system of an instance cannot be written: what is there starts, and all is told once."""

import contextlib
from collections.abc import Callable, Iterator

import pytest
from support.disposable import Host
from support.gc import journal, journal_end
from support.incus import Incus
from support.refusals import refused
from support.running import PROFILES, says, wait_truth
from support.services import check, wait_build
from support.sources import bump, endless, launched, source, start_building
from support.storage import small_pool
from support.store import build_system

pytestmark = pytest.mark.life

INODES = "size=8m,nr_inodes=400"


@contextlib.contextmanager
def read_only_profile(incus: Incus) -> Iterator[tuple[str, Callable[[], object]]]:
    """Root inside makes the profile read-only."""
    name = launched(incus)
    incus.sh(name, f"mount -o remount,bind,ro {PROFILES}")
    yield name, lambda: incus.sh(name, f"mount -o remount,bind,rw {PROFILES}")


@contextlib.contextmanager
def no_inodes(incus: Incus) -> Iterator[tuple[str, Callable[[], object]]]:
    """The file system of the instance has room for no further file."""
    with small_pool(incus, INODES) as pool:
        name = launched(incus, "one", "-s", pool.name)
        pool.fill_inodes()
        yield name, pool.empty


@pytest.mark.parametrize("broken", [read_only_profile, no_inodes])
def test_a_profile_that_cannot_be_written_is_told_once(
    incus: Incus,
    host: Host,
    broken: Callable[[Incus], contextlib.AbstractContextManager[tuple[str, Callable[[], object]]]],
) -> None:
    with broken(incus) as (name, repair):
        seen = journal_end(host)
        source(incus, "two")
        bump(incus, name)
        incus.wait_status(name, r"failed: /nix/var/nix/profiles/system.* cannot be used")
        incus.set(name, "user.note=1")  # lets the sidecar look again
        wait_truth(incus, name, "failed: .*; generation 1 runs on$", "one", 1)
        repair()
        bump(incus, name, "3")
        wait_truth(incus, name, "ready$", "two", 2)
        lines = [line for line in journal(host, seen).splitlines() if "cannot be used" in line]
        assert len(lines) == 1, lines
        assert ".inx-" not in lines[0]


def test_an_instance_whose_new_generation_has_no_room_starts_the_present_one(
    incus: Incus, host: Host
) -> None:
    with small_pool(incus, INODES) as pool:
        name = launched(incus, "one", "-s", pool.name)
        incus("stop", name)
        source(incus, "two")
        bump(incus, name)
        pool.fill_inodes()
        incus.start(name)
        told = incus.wait_status(name, r"failed: .*started generation 1$")
        assert "No space left on device" in told
        assert says(incus, name, "one") and incus.state(name) == "RUNNING"

        incus("stop", "-f", name)
        system = build_system(host, f"/srv/{incus.prefix}", f"/srv/{name}-system")
        incus("config", "unset", name, "user.inx.flake")
        incus.set(name, f"user.inx.system={system}")
        incus.start(name)
        incus.wait_status(name, r"failed: .*started generation 1$")
        assert says(incus, name, "one")

        pool.empty()
        incus("restart", "-f", name)
        wait_truth(incus, name, "ready$", "two", 2)


def test_nothing_is_called_building_that_has_stopped(incus: Incus, host: Host) -> None:
    name = start_building(incus, endless(incus))
    incus("stop", "-f", name)
    incus.wait_status(name, "failed: it stopped while its system was built")

    raw = incus.get(name, "raw.lxc") or incus("profile", "get", "inx", "raw.lxc").stdout
    incus.set(name, f"raw.lxc={raw}\nlxc.hook.start = /bin/false")
    assert incus.start(name, check=False).returncode
    incus.wait_status(name, "failed: it stopped while its system was built")
    assert not host.run(["ls", f"/run/inx/{incus.uuid(name)}"], check=False).stdout


def test_an_update_that_a_stop_ended_is_not_called_building(incus: Incus) -> None:
    name = launched(incus)
    endless(incus)
    bump(incus, name)
    wait_build(incus, name)
    incus.wait_status(name, "building")
    incus("stop", "-f", name)
    incus.wait_status(name, "failed: it stopped while its system was built")
    assert incus.get(name, "user.inx.status.generation") == "1"


def test_a_volume_over_the_profile_is_refused(incus: Incus, host: Host) -> None:
    name = incus.init(flake="/etc/nixos#web")
    volume = incus.name("volume")
    incus("storage", "volume", "create", "default", volume)
    try:
        device = ["pool=default", f"source={volume}", f"path={PROFILES}"]
        incus("config", "device", "add", name, "data", "disk", *device)
        said = f"the disk device 'data' is mounted at {PROFILES}, which would hide the system"
        assert said in refused(incus, name)
        incus.wait_status(name, f"failed: '{name}': {said}")
        status, faults = check(host)
        assert status and [fault for fault in faults if name in fault and said in fault], faults

        incus("config", "device", "set", name, "data", "path=/data")
        incus.start(name)
        incus.wait_ready(name)
        # A device that is added while the instance runs hides the directories at once.
        incus("config", "device", "add", name, "tmp", "disk", "source=/tmp", "path=/nix/var")
        incus.wait_status(name, f"failed: '{name}': the disk device 'tmp' is mounted at /nix/var")
        incus("config", "device", "remove", name, "tmp")
        incus.wait_status(name, "ready$")
    finally:
        incus("delete", "-f", name)
        incus("storage", "volume", "delete", "default", volume)
