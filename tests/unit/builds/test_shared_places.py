"""What Incus says of instances, profiles and pools, as directories that they share."""

import time
from typing import Any

import pytest

from inx_sidecar.builds.shared_places import ALWAYS, describe, places_of
from inx_sidecar.kernel.mount_table import Place, parse_mounts

pytestmark = pytest.mark.main


def shared(
    *, instances: list[Any] | None = None, profiles: list[Any] | None = None,
    pools: list[Any] | None = None,
) -> dict[str | None, str]:  # fmt: skip
    return {each.source: each.by for each in describe(instances or [], profiles or [], pools or [])}


def disk(source: str, **more: str) -> dict[str, str]:
    return {"type": "disk", "source": source, **more}


def test_what_others_cause_to_be_written_is_always_shared() -> None:
    found = shared()
    assert list(found)[:2] == ["/nix/store", "/var/lib/incus"]
    assert {"/var/log", "/run", "/var/lib/inx", "/proc", "/sys", "/dev"} < set(found)
    assert found["/var/log"].startswith("programs of root write the text of others below /var/log")


def test_disk_devices_of_instances_and_profiles_are_named() -> None:
    devices = {
        "data": disk("/srv/data"), "vm": disk("/srv/vm", readonly="true"),
        "root": {"type": "disk", "pool": "default", "path": "/"},
        "volume": disk("name", pool="default"), "tmp": disk("tmpfs:"),
        "eth0": {"type": "nic", "source": "/not/a/disk"},
    }  # fmt: skip
    found = shared(
        instances=[{"name": "web", "project": "p", "expanded_devices": devices}],
        profiles=[{"name": "x", "project": "default", "devices": {"d": disk("/srv/profile")}}],
    )
    assert (
        found["/srv/data"]
        == "the disk device 'data' of the instance 'web' in the project 'p' shares"
    )
    assert found["/srv/profile"] == "the disk device 'd' of the profile 'x' shares"
    assert set(found) - {each.source for each in ALWAYS} == {"/srv/data", "/srv/vm", "/srv/profile"}


def test_the_pools_of_incus_are_named() -> None:
    pools = [{"name": "p", "config": {"source": "/srv/pool"}}, {"name": "q", "config": {}}]
    assert shared(pools=pools)["/srv/pool"] == "the storage pool 'p' has"


def test_mounts_of_raw_lxc_are_read() -> None:
    raw = """lxc.mount.auto = proc
lxc.mount.entry = /srv/a srv none bind 0 0
  lxc.mount.entry=/srv/b\\040c srv/x none bind,create=dir
lxc.mount.entry = overlay x overlay lowerdir=/srv/l:/srv/m,upperdir=/srv/u,workdir=/srv/w 0 0
lxc.mount.entry = none tmp tmpfs rw"""
    instance = {"name": "web", "expanded_config": {"raw.lxc": raw}}
    wanted = ["/srv/a", "/srv/b c", "/srv/l", "/srv/m", "/srv/u", "/srv/w"]
    assert list(shared(instances=[instance]))[len(ALWAYS) :] == wanted


@pytest.mark.parametrize("line", ["", "  ", "lxc.mount.entry", "lxc.mount.entry =", "lxc.mount"])
def test_many_lines_of_raw_lxc_take_no_more_than_linear_time(line: str) -> None:
    def seconds(lines: int) -> float:
        instance = {"name": "web", "expanded_config": {"raw.lxc": f"{line}\n" * lines}}
        best = 1e9
        for _ in range(3):
            start = time.process_time()
            shared(instances=[instance])
            best = min(best, time.process_time() - start)
        return best

    assert seconds(200_000) < 3 * seconds(100_000)


@pytest.mark.parametrize("key", ["lxc.mount.fstab", "lxc.mount", "lxc.include"])
def test_files_that_raw_lxc_names_are_not_known(key: str) -> None:
    instance = {"name": "web", "expanded_config": {"raw.lxc": f"{key} = /srv/more"}}
    assert "raw.lxc of the instance 'web'" in shared(instances=[instance])[None]


def test_volumes_of_a_dataset_or_a_group_are_found_where_they_are_mounted() -> None:
    mounts = parse_mounts(
        "1 0 0:50 / /mnt/a rw - zfs tank/incus/containers/web rw\n"
        "2 0 0:51 / /mnt/b rw - zfs tank/incus-else rw\n"
        "3 0 253:7 /sub /mnt/c rw shared:1 - ext4 /dev/mapper/my--vg-containers_web rw\n"
    )
    assert places_of(mounts, "tank/incus") == [Place("0:50", "/")]
    assert places_of(mounts, "my-vg") == [Place("253:7", "/sub")]
