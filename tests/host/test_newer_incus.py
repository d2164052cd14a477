"""What Incus has since 6.0.6, and what inx makes of it. Older versions refuse it."""

from collections.abc import Iterator

import pytest
from support.incus import Incus
from support.network import add_nic, add_wire, addresses, keys, recording_system, start

pytestmark = [pytest.mark.life, pytest.mark.sid]

OLDEST = (6, 0, 6)
OWN, PEER = "10.233.7.2", "10.233.7.1"


def test_a_nic_gets_its_addresses_when_it_is_attached(incus: Incus) -> None:
    """Without an interface there is nothing to set up, and no reason to refuse the start."""
    name = incus.init(system=recording_system(incus.host))
    nic = ["nictype=p2p", "name=wire", "attached=false"]
    if incus.version < OLDEST:
        wrong = incus("config", "device", "add", name, "wire", "nic", *nic, check=False)
        assert 'Invalid device option "attached"' in wrong.stderr
        return
    add_nic(incus, name, "wire", *nic)
    incus.set(name, *keys("wire", address=OWN, host_address=PEER))
    # An address of a NIC that is not attached is free for others.
    other = incus.init(name=incus.name("b"), system=recording_system(incus.host))
    add_wire(incus, other, "wire")
    incus.set(other, *keys("wire", address=OWN, host_address=PEER))
    start(incus, name, other)
    assert not incus.inside(name, "test -e /sys/class/net/wire")
    assert addresses(incus, other, "wire") == {f"{OWN}/32"}
    incus("stop", "-f", other)
    incus("config", "device", "set", name, "wire", "attached=true")
    incus("restart", "-f", name)
    incus.wait_inside(name)
    assert addresses(incus, name, "wire") == {f"{OWN}/32"}


@pytest.fixture
def moved_logs(incus: Incus) -> Iterator[None]:
    """The logs of Incus are on a volume since a moment when the sidecar ran."""
    incus("storage", "volume", "create", "default", "logs")
    moved = incus("config", "set", "storage.logs_volume=default/logs", check=False)
    assert (moved.returncode == 0) == (incus.version >= OLDEST), moved.stderr
    yield
    incus.clean_up()
    if moved.returncode == 0:
        incus("config", "unset", "storage.logs_volume")
    incus("storage", "volume", "delete", "default", "logs")


def test_a_reason_is_in_the_log_wherever_incus_keeps_it(incus: Incus, moved_logs: None) -> None:
    """The sidecar writes it: when the build fails, the hooks have ended."""
    name = incus.init(flake="/etc/nixos#nosuch")
    incus.start(name)
    reason = incus.wait_status(name, "failed: ").removeprefix("failed: ")
    incus.eventually(lambda: f"inx - {reason}" in incus.log(name), lambda: incus.log(name))


def test_an_export_is_imported_beside_its_source(incus: Incus) -> None:
    """As docs/limits.md says: Incus starts no two instances with one address."""
    name = incus.launch(system=recording_system(incus.host))
    other, file = incus.adopt(incus.name("b")), f"/root/{name}.tar"
    incus("export", name, file, "--compression=none")
    new = "11111111-2222-4333-8444-555555555555"
    imported = incus(
        *("import", file, other, "-c", f"volatile.uuid={new}", "-c", "volatile.eth0.hwaddr="),
        check=False,
    )
    if incus.version < OLDEST:
        assert "unknown shorthand flag" in imported.stderr
        return
    incus.start(other)
    incus.wait_ready(other)
    assert incus.uuid(other) == new and incus.state(name) == "RUNNING"
