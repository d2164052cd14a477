"""A storage pool is full: instances that run keep their roots, and are told what is missing."""

from collections.abc import Iterator

import pytest
from support.disposable import Host
from support.gc import (
    add_to_store,
    assert_gone,
    assert_kept,
    journal,
    journal_end,
    make_roots,
    unlink,
    wait_gone,
)
from support.health import is_healthy
from support.incus import Incus
from support.services import check, is_active, restart_sidecar, sync
from support.sources import slow, start_building
from support.storage import SmallPool, small_pool

pytestmark = pytest.mark.gc


@pytest.fixture
def pool(incus: Incus) -> Iterator[SmallPool]:
    with small_pool(incus) as pool:
        yield pool


def test_a_new_sidecar_takes_over_an_instance_without_backup_yaml(
    incus: Incus, host: Host, pool: SmallPool
) -> None:
    name = incus.launch("-s", pool.name, flake="/etc/nixos#web")
    incus.sh(name, "mkdir /root/volume; mount -t tmpfs tmpfs /root/volume")
    before, after, gone = (add_to_store(incus, each) for each in ("before", "after", "gone"))
    make_roots(incus, name, {"/root/volume/before": before})
    pool.lose_backup(name)
    restart_sidecar(host)

    make_roots(incus, name, {"/root/volume/after": after, "/root/volume/gone": gone})
    unlink(incus, name, "/root/volume/gone")
    sync(host)
    assert_gone(incus, gone)
    assert_kept(incus, before, after)
    is_healthy(incus, name)
    said = incus.wait_status(name, r"ready \(.*/backup\.yaml")
    assert "make space" in said
    status, faults = check(host)
    assert status and [line for line in faults if name in line and "backup.yaml" in line], faults

    seen = journal_end(host)
    pool.empty()
    incus.set(name, "user.pad=")
    incus.wait_status(name, "ready$")
    assert check(host) == (0, [])
    assert journal(host, seen) == ""


def test_an_instance_without_backup_yaml_stops_wholly(
    incus: Incus, host: Host, pool: SmallPool
) -> None:
    name = incus.launch("-s", pool.name, flake="/etc/nixos#web")
    uuid, late = incus.uuid(name), add_to_store(incus, "late")
    is_healthy(incus, name)
    pool.lose_backup(name)
    make_roots(incus, name, {"/root/late": late})
    incus("stop", "-f", name)
    assert uuid not in host.run(["ls", "/run/inx"]).stdout
    incus.eventually(lambda: not is_active(host, f"inx-nix-daemon@{uuid}.socket"), incus.story)
    assert_kept(incus, late)
    pool.empty()
    incus.start(name)
    incus.wait_ready(name)
    incus.sh(name, "rm /root/late")
    sync(host)
    wait_gone(incus, late)


def test_a_new_sidecar_boots_an_init_that_waits_without_backup_yaml(
    incus: Incus, host: Host, pool: SmallPool
) -> None:
    name = start_building(incus, slow(incus, 3), "-s", pool.name)
    pool.lose_backup(name)
    restart_sidecar(host)
    pool.empty()
    incus.wait_inside(name)
    incus.run(name, "test", "-e", "/etc/slow")
    incus.wait_status(name, "ready")
