"""A static address exists once on a network that all members have."""

import json
from collections.abc import Iterator

import pytest
from support.cluster import Cluster
from support.incus import Incus
from support.services import SERVICE

pytestmark = pytest.mark.cluster

KEY = "user.inx.addresses"


@pytest.fixture
def lan(members: list[Incus]) -> Iterator[str]:
    """A managed network to which the members connect NICs by macvlan, on the network between them.

    The instances of the test have to be gone before it is.
    """
    name = f"lan{members[0].prefix}"
    for incus in members:
        incus("network", "create", name, "--type=macvlan", "parent=cluster0",
              "--target", incus.host.name)  # fmt: skip
    members[0]("network", "create", name, "--type=macvlan")
    yield name
    for incus in members:
        incus.clean_up()
    members[0]("network", "delete", name)


def init(incus: Incus, suffix: str, *device: str, address: str = "10.5.0.7/24") -> str:
    name = incus.init(
        "--target", incus.host.name, name=incus.name(suffix), flake="/etc/nixos#web",
        net_lan0_address=address,
    )  # fmt: skip
    incus("config", "device", "add", name, "lan0", "nic", *device)
    return name


def told(incus: Incus) -> list[dict[str, object]]:
    """The addresses that the member tells the others."""
    config = incus.info_of_member(incus.host.name)["config"]
    return list(json.loads(config.get(KEY, "[]")))


def launch(incus: Incus, suffix: str, *device: str, address: str = "10.5.0.7/24") -> str:
    name = init(incus, suffix, *device, address=address)
    incus.start(name)
    incus.wait_ready(name)
    return name


def wait_told(by: Incus, names: list[str]) -> None:
    by.eventually(lambda: [one["instance"] for one in told(by)] == names, lambda: str(told(by)))


def test_an_address_of_another_member_is_refused_until_it_is_free(
    cluster: Cluster, members: list[Incus], lan: str
) -> None:
    a, b, _ = members
    one = launch(a, "one", f"network={lan}")
    wait_told(a, [one])
    other = init(b, "other", f"network={lan}")
    reason = f"10.5.0.7 of '{other}' is a static address of '{one}' on the member '{a.host.name}'"
    while b.start(other, check=False).returncode == 0:  # until that member has read it
        b("stop", "-f", other)
    b.wait_log(other, reason)
    b.wait_status(other, f"failed: {reason}, which runs; change one of the two$")
    # An instance that does not run has no claim, and one that was moved has none of its own.
    a("stop", "-f", one)
    wait_told(a, [])
    b.start(other)
    b.wait_ready(other)
    wait_told(b, [other])
    b("stop", "-f", other)
    b("move", other, "--target", a.host.name)
    a.start(other)
    a.wait_status(other, "ready$")
    # What a member told last counts while it is away.
    wait_told(a, [other])
    with cluster.cut_off(a.host):
        last = init(b, "last", f"network={lan}")
        assert b.start(last, check=False).returncode != 0
        b.wait_log(last, f"static address of '{other}'")


def test_two_starts_at_the_same_moment_are_told_to_both(members: list[Incus], lan: str) -> None:
    """The sidecar of the second one does not know of the first one yet: it has just been started,
    by the hook."""
    a, b, _ = members
    one, other = launch(a, "one", f"network={lan}"), init(b, "other", f"network={lan}")
    wait_told(a, [one])
    b.host.run(["systemctl", "stop", SERVICE])
    b.start(other)
    for name, twin, where in (one, other, b), (other, one, a):
        said = f"10.5.0.7 is a static address of '{twin}' on the member '{where.host.name}', too"
        a.wait_status(name, rf"ready \({said}; change one of the two\)$")
    a("stop", "-f", one)
    for name in one, other:
        a.wait_status(name, "ready$")


def test_an_address_on_a_network_of_each_member_s_own_is_free_on_the_others(
    members: list[Incus],
) -> None:
    """Incus gives each member a bridge of its own, and the host routes to NICs of the type p2p. A
    bridge of the host may lead to a network that others are on, which Incus does not know."""
    a, b, _ = members
    for incus in a, b:
        launch(incus, f"p2p-{incus.host.name[-1]}", "nictype=p2p", address="10.8.0.7/24")
        incus.host.sh("ip link add site0 type bridge; ip link set site0 up")
    one = launch(a, "one", "nictype=bridged", "parent=site0", address="10.6.0.7/24")
    wait_told(a, [one])
    other = launch(b, "other", "nictype=bridged", "parent=site0", address="10.6.0.7/24")
    for name, twin in (one, other), (other, one):
        said = rf"ready \(10.6.0.7 is a static address of '{twin}' on the member .*, too; "
        a.wait_status(name, f"{said}change one of the two if site0 is one network on both members")
    for incus in a, b:
        assert [claim["shared"] for claim in told(incus)] == [False]
    a("stop", "-f", one)
    b.wait_status(other, "ready$")
