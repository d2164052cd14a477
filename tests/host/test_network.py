"""Static addresses, `user.inx.net.NIC.*`: as a NixOS container's, from before PID 1 to the end."""

import json
import re
from collections.abc import Callable, Iterator

import pytest
from support.disposable import Host
from support.incus import Incus

pytestmark = pytest.mark.life

# The wire that NixOS' manual gives a container.
HERE = {"host_address": "10.233.1.1,fc00::1", "address": "10.233.1.2,fc00::2"}
OURS = r"10\.233\.|fc00:"


@pytest.fixture(scope="module")
def system(host: Host) -> str:
    """A system that is there already: starts build nothing. It records what it finds at first."""
    return built(
        host,
        """import ./system.nix {
            inherit deps; name = "net";
            activate = "{ ip address; ip route; ip -6 route; } >/etc/found 2>&1";
        }""",
    )


def built(host: Host, text: str) -> str:
    """A link to a system of the given text; the host keeps it."""
    Incus(host, "net").flake_text(f"net = {text};", "/srv/net")
    options = ["--extra-experimental-features", "nix-command flakes", "--out-link", "/srv/system"]
    host.run(["nix", "build", *options, "path:/srv/net#net"])
    return "/srv/system"


@pytest.fixture(autouse=True)
def nothing_is_left(host: Host, incus: Incus) -> Iterator[None]:
    yield
    incus.clean_up()
    incus.eventually(lambda: traces(host) == "", lambda: traces(host))


def traces(host: Host) -> str:
    """What the host has of the addresses in these tests."""
    script = "ip -o address; ip route show table all; ip -6 route show table all"
    lines = host.sh(script).stdout.splitlines()
    return "\n".join(line for line in lines if re.search(OURS, line))


def keys(device: str = "eth0", **values: str) -> list[str]:
    return [f"user.inx.net.{device}.{what}={value}" for what, value in values.items()]


def made(incus: Incus, system: str, suffix: str = "", *options: str, **values: str) -> str:
    """An instance with a wire to the host as its only NIC."""
    given = [word for pair in keys(**values) for word in ("-c", pair)]
    name = incus.init(*given, *options, name=incus.name(suffix), system=system)
    device(incus, name, "eth0", "nictype=p2p", "name=eth0")
    return name


def device(incus: Incus, name: str, which: str, *values: str) -> None:
    incus("config", "device", "add", name, which, "nic", *values)


def up(incus: Incus, *names: str) -> None:
    for name in names:
        incus.start(name)
    for name in names:
        incus.wait_inside(name)


def refused(incus: Incus, name: str, pattern: str) -> None:
    """The start fails, and the same sentence stands where the operator looks."""
    assert incus.start(name, check=False).returncode, f"{name} runs, and not: {pattern}"
    status = incus.wait_status(name, f"failed: .*{pattern}")
    assert status.removeprefix("failed: ") in incus.log(name)
    assert status.isprintable() and not status.endswith(".")
    incus.wait_state(name, "STOPPED")


def ip(incus: Incus, name: str, words: str) -> str:
    """What `ip` says in the network of the instance, asked from outside."""
    pid = str(incus.pid(name))
    return incus.host.run(["nsenter", "-t", pid, "-n", "ip", *words.split()]).stdout


def addresses(incus: Incus, name: str, interface: str = "eth0") -> set[str]:
    """Those that were given to it: neither the kernel's own, nor a router's."""
    found = json.loads(ip(incus, name, f"-j address show dev {interface} scope global permanent"))
    given = [of for link in found for of in link["addr_info"] if of]
    return {f"{of['local']}/{of['prefixlen']}" for of in given}


def routes(incus: Incus, name: str) -> set[str]:
    """Those with a gateway; a router may tell of more."""
    found = json.loads(ip(incus, name, "-j -4 route")) + json.loads(ip(incus, name, "-j -6 route"))
    given = [of for of in found if "gateway" in of and of.get("protocol") != "ra"]
    return {f"{of['dst']} {of['gateway']} {of['dev']}" for of in given}


def reaches(incus: Incus, name: str, *targets: str) -> bool:
    """Whether all targets answer to the instance."""
    return all(
        answers(incus.host, target, "nsenter", "-t", str(incus.pid(name)), "-n")
        for target in targets
    )


def answers(host: Host, target: str, *enter: str) -> bool:
    argv = [*enter, "ping", "-c", "3", "-i", "0.2", "-W", "2", "-w", "3", target]
    return host.run(argv, check=False).returncode == 0


def works(incus: Incus, name: str) -> None:
    """The wire is complete, once, and leads both ways."""
    assert addresses(incus, name) == {"10.233.1.2/32", "fc00::2/128"}
    assert routes(incus, name) == {"default 10.233.1.1 eth0", "default fc00::1 eth0"}
    assert reaches(incus, name, "10.233.1.1", "fc00::1")
    assert answers(incus.host, "10.233.1.2") and answers(incus.host, "fc00::2")
    assert traces(incus.host).count(" 10.233.1.1/32 ") == 1, traces(incus.host)


def returns(incus: Incus, name: str, act: Callable[[], object]) -> None:
    """`act` stops the instance, and with it the wire and all that the host had for it; then it
    starts again, once Incus has seen that it may."""
    wire = incus.get(name, "volatile.eth0.host_name")
    assert wire in links(incus.host)
    act()
    incus.wait_state(name, "STOPPED")
    incus.eventually(
        lambda: traces(incus.host) == "" and wire not in links(incus.host),
        lambda: f"{wire} of {links(incus.host)}\n{traces(incus.host)}",
    )
    incus.eventually(lambda: incus.start(name, check=False).returncode == 0, incus.story)
    incus.wait_inside(name)
    works(incus, name)


def links(host: Host) -> set[str]:
    return {link["ifname"] for link in json.loads(host.run(["ip", "-j", "link"]).stdout)}


def anew(incus: Incus, name: str, act: Callable[[], object]) -> None:
    """`act` makes the instance boot again."""
    before = incus.pid(name)
    act()
    incus.eventually(lambda: incus.pid(name) not in (0, before), incus.story)
    incus.wait_inside(name)


def crash(host: Host) -> None:
    host.run(["systemctl", "kill", "-s", "KILL", "inx-sidecar"])


def kill(incus: Incus, name: str) -> None:
    incus.host.run(["kill", "-9", str(incus.pid(name))])


def test_a_wire_to_the_host_as_nixos_containers_have_it_lasts_from_start_to_stop(
    incus: Incus, host: Host, system: str
) -> None:
    name = made(incus, system, **HERE)
    up(incus, name)
    incus.sh(
        name,
        """grep -q 'inet 10.233.1.2/32' /etc/found; grep -q 'inet6 fc00::2/128' /etc/found
        grep -q 'default via 10.233.1.1' /etc/found; grep -q 'default via fc00::1' /etc/found
        ! grep -q tentative.*fc00 /etc/found""",
    )
    works(incus, name)
    crash(host)
    works(incus, name)
    anew(incus, name, lambda: incus("restart", name))
    works(incus, name)
    anew(incus, name, lambda: incus("restart", "-f", name))
    works(incus, name)
    for reboot in ["reboot"], ["busybox", "reboot", "-f"]:
        anew(incus, name, lambda argv=reboot: incus.run(name, *argv, check=False))  # type: ignore[misc]
        works(incus, name)
    returns(incus, name, lambda: incus("stop", name))
    returns(incus, name, lambda: incus("stop", "-f", name))
    returns(incus, name, lambda: kill(incus, name))
    crash(host)
    returns(incus, name, lambda: incus("stop", "-f", name))
    host.run(["systemctl", "stop", "inx-sidecar.service"])
    returns(incus, name, lambda: kill(incus, name))


def test_who_waits_for_a_build_has_its_addresses_already(incus: Incus, host: Host) -> None:
    """Whatever runs there, the system is not the first to come."""
    flake = incus.flake_text(
        """nixosConfigurations.web.config.system.build.toplevel = derivation {
            name = "endless"; system = deps.system;
            builder = "${deps.busybox}/bin/sh"; args = [ "-c" "while :; do :; done" ];
        };""",
        f"/srv/{incus.prefix}",
    )
    name = incus.init(flake=f"{flake}#web")
    device(incus, name, "eth0", "nictype=p2p", "name=eth0")
    incus.set(name, *keys(**HERE))
    incus.start(name)
    works(incus, name)
    crash(host)
    incus.wait_status(name, "building")
    works(incus, name)


def test_systemd_leaves_the_addresses_alone(incus: Incus, host: Host) -> None:
    given = [word for pair in keys(**HERE) for word in ("-c", pair)]
    name = incus.init(*given, flake="/etc/nixos#systemd")
    device(incus, name, "eth0", "nictype=p2p", "name=eth0")
    up(incus, name)
    incus.eventually(
        lambda: incus.inside(name, "systemctl is-system-running --wait"),
        lambda: incus.console(name),
    )
    works(incus, name)
    incus.run(name, "systemctl", "restart", "systemd-networkd")
    incus.eventually(
        lambda: incus.inside(name, "systemctl is-active systemd-networkd"),
        lambda: incus.console(name),
    )
    works(incus, name)
    anew(incus, name, lambda: incus.run(name, "systemctl", "reboot", check=False))
    works(incus, name)


def test_an_address_belongs_to_one_that_runs(incus: Incus, host: Host, system: str) -> None:
    """Copies, snapshots and other names of an instance; the host's end may be the same for all."""
    one = made(incus, system, **HERE)
    up(incus, one)
    incus("snapshot", "create", one, "before")
    two = incus.adopt(incus.name("copy"))
    incus("copy", one, two)
    refused(incus, two, f"10.233.1.2 of '{two}' is a static address of '{one}', which runs")
    works(incus, one)
    anew(incus, one, lambda: incus("snapshot", "restore", one, "before"))
    works(incus, one)
    incus("stop", "-f", one)
    up(incus, two)
    works(incus, two)
    refused(incus, one, f"static address of '{two}'")
    incus("stop", "-f", two)
    other = incus.adopt(incus.name("other"))
    incus("rename", two, other)
    up(incus, other)
    refused(incus, one, f"static address of '{other}'")
    works(incus, other)
    incus.set(one, *keys(address="10.233.1.3,fc00::3"))
    up(incus, one)
    assert answers(host, "10.233.1.3") and answers(host, "fc00::3")
    assert reaches(incus, one, "10.233.1.1", "fc00::1", "10.233.1.2", "fc00::2")
    incus("stop", "-f", other)
    incus.eventually(lambda: "10.233.1.2" not in traces(host), lambda: traces(host))
    assert answers(host, "10.233.1.3") and answers(host, "fc00::3")
    assert reaches(incus, one, "10.233.1.1", "fc00::1")


def test_one_of_many_that_start_at_once_gets_the_address(
    incus: Incus, host: Host, system: str
) -> None:
    names = [made(incus, system, f"n{number}", **HERE) for number in range(5)]
    at_once = 'for name; do incus start "$name" </dev/null & done; wait'
    host.run(["bash", "-uc", at_once, "at-once", *names])
    (one,) = [name for name in names if incus.pid(name)]
    incus.wait_inside(one)
    works(incus, one)
    for name in set(names) - {one}:
        incus.wait_status(name, f"failed: .* is a static address of '{one}', which runs")
    host.run(["systemctl", "restart", "inx-sidecar"])
    for name in set(names) - {one}:
        refused(incus, name, f"static address of '{one}'")
    works(incus, one)


@pytest.fixture
def lans(incus: Incus) -> Iterator[list[str]]:
    """Two bridges that are alike but for the host's own addresses."""
    names = ["inxlan1", "inxlan2"]
    for number, name in enumerate(names, 1):
        options = [f"ipv4.address=10.233.{number}0.1/24", f"ipv6.address=fc00:{number}::1/64"]
        incus("network", "create", name, *options, "ipv4.dhcp=false", "ipv4.nat=false")
    yield names
    incus.clean_up()
    for name in names:
        incus("network", "delete", name)


def test_static_addresses_on_bridges(
    incus: Incus, host: Host, system: str, lans: list[str]
) -> None:
    """Several addresses, IPv6 alone, a gateway, NICs that Incus names, macvlan, privileged."""
    one, same, far, macvlan = (
        incus.init(name=incus.name(suffix), system=system)
        for suffix in ("one", "same", "far", "mac")
    )
    device(incus, one, "eth0", f"network={lans[0]}", "name=eth0")
    device(incus, one, "other", f"network={lans[1]}")
    mine = {"address": "10.233.10.7/24,10.233.10.8/24,fc00:1::7/64", "gateway": "10.233.10.1"}
    incus.set(one, *keys(**mine), *keys("other", address="fc00:2::7/64"))
    device(incus, same, "eth0", "nictype=bridged", f"parent={lans[0]}", "name=eth0")
    incus.set(same, *keys(address="10.233.10.8"))
    device(incus, far, "eth0", f"network={lans[1]}", "name=lan")
    far_keys = {"address": "10.233.10.7,fc00:2::9/64", "gateway": "10.233.20.1,fe80::1"}
    incus.set(far, "security.privileged=true", *keys(**far_keys))
    device(incus, macvlan, "eth0", "nictype=macvlan", f"parent={lans[0]}", "name=eth0")
    incus.set(macvlan, *keys(address="10.233.10.7/24"))

    up(incus, one, far)
    assert addresses(incus, one) == set(mine["address"].split(","))
    assert addresses(incus, one, "eth1") == {"fc00:2::7/64"}
    assert routes(incus, one) == {"default 10.233.10.1 eth0"}
    assert answers(host, "10.233.10.7") and answers(host, "10.233.10.8")
    assert answers(host, "fc00:2::7") and answers(host, "fc00:1::7")
    assert addresses(incus, far, "lan") == {"10.233.10.7/32", "fc00:2::9/64"}
    assert routes(incus, far) == {"default 10.233.20.1 lan", "default fe80::1 lan"}
    assert reaches(incus, far, "fc00:2::7")

    refused(incus, same, f"10.233.10.8 of '{same}' is a static address of '{one}', which runs")
    refused(incus, macvlan, f"10.233.10.7 of '{macvlan}' is a static address of '{one}'")
    incus.set(macvlan, *keys(address="10.233.10.1/24"))
    refused(incus, macvlan, f"this host's own address on {lans[0]}; change one")
    incus.set(macvlan, *keys(address="10.233.10.9/24"))
    incus.set(same, *keys(address="10.233.10.1"))
    refused(incus, same, f"10.233.10.1 in .* is this host's own address on {lans[0]}")
    up(incus, macvlan)
    assert addresses(incus, macvlan) == {"10.233.10.9/24"}
    assert reaches(incus, macvlan, "10.233.10.7")


def test_nics_beside_others(incus: Incus, host: Host, system: str) -> None:
    """A wire beside the bridge, as extraVeths, is no way out, whatever its NIC is called."""
    name = incus.init("-c", "security.privileged=true", system=system)
    device(incus, name, "ve1", "nictype=p2p", "name=wire")
    device(incus, name, "ve2", "nictype=p2p")
    first = keys("ve1", host_address="10.233.2.1/24", address="10.233.2.2/24")
    second = keys("ve2", host_address="fc00:3::1", address="fc00:3::2,fc00:3::3")
    incus.set(name, *first, *second)
    up(incus, name)
    assert addresses(incus, name, "wire") == {"10.233.2.2/24"}
    assert addresses(incus, name, "eth1") == {"fc00:3::2/128", "fc00:3::3/128"}
    assert not [way for way in routes(incus, name) if way.startswith("default 10.233.")]
    assert not [way for way in routes(incus, name) if way.startswith("default fc00:")]
    assert reaches(incus, name, "10.233.2.1", "fc00:3::1")
    assert answers(host, "10.233.2.2") and answers(host, "fc00:3::3")
    incus("stop", "-f", name)
    incus.set(name, *keys("ve1", gateway="10.233.2.1"))
    up(incus, name)
    incus.sh(name, "grep -q 'default via 10.233.2.1 dev wire' /etc/found")


def test_keys_of_a_profile_and_of_what_runs_count_at_the_next_start(
    incus: Incus, host: Host, system: str
) -> None:
    profile = f"{incus.prefix}-net"
    incus("profile", "create", profile)
    incus("profile", "device", "add", profile, "eth0", "nic", "nictype=p2p", "name=eth0")
    incus("profile", "set", profile, *keys(**HERE))
    name = incus.init("--profile", profile, system=system)
    up(incus, name)
    works(incus, name)
    before = incus.pid(name)

    incus("profile", "set", profile, *keys(address="10.233.1.9,fc00::9"))
    incus.set(name, *keys(gateway="10.233.1.777"))
    said = incus.wait_status(name, "failed: user.inx.net.eth0.gateway is '10.233.1.777'")
    assert said.isprintable()
    works(incus, name)
    crash(host)
    works(incus, name)
    assert incus.pid(name) == before
    incus("config", "unset", name, "user.inx.net.eth0.gateway")
    incus.wait_status(name, "ready")
    works(incus, name)
    incus("restart", "-f", name)
    incus.wait_inside(name)
    assert addresses(incus, name) == {"10.233.1.9/32", "fc00::9/128"}

    for key in "address", "host_address":
        incus("profile", "unset", profile, f"user.inx.net.eth0.{key}")
    assert addresses(incus, name) == {"10.233.1.9/32", "fc00::9/128"}
    incus("restart", "-f", name)
    incus.wait_inside(name)
    assert addresses(incus, name) == set()
    assert not re.search(r"10\.233|fc00:", traces(host))
    incus.clean_up()
    incus("profile", "delete", profile)


def test_bad_values_are_refused_in_one_sentence_and_do_nothing(
    incus: Incus, host: Host, system: str
) -> None:
    name = made(incus, system, **HERE)
    for key, value in {
        "address": "10.233.1.2;id",
        "host_address": "10.233.1.1\nwarning: all is well",
        "gateway": "10.233.1.٣",
    }.items():
        incus.set(name, *keys(**{key: value}))
        refused(incus, name, rf"user\.inx\.net\.eth0\.{key} is .*allowed: ")
        incus.set(name, *keys(**{key: HERE.get(key, "")}))
    for key, value, said in [
        ("user.inx.net.eth1.address", "10.233.1.3", "a NIC that .* does not have .it has eth0."),
        ("user.inx.net.root.address", "10.233.1.3", "'user.inx.net.root' names a NIC that"),
        ("user.inx.net.eth0.netmask", "24", "unknown key 'user.inx.net.eth0.netmask'"),
    ]:
        incus.set(name, f"{key}={value}")
        refused(incus, name, said)
        incus("config", "unset", name, key)
    device(incus, name, "eth9", "network=incusbr0")
    incus.set(name, "user.inx.net.eth9.host_address=10.233.9.1")
    refused(incus, name, "host_address goes with a NIC of nictype=p2p")
    assert traces(host) == ""


@pytest.fixture
def route(host: Host) -> Iterator[None]:
    host.run("ip route add blackhole 10.233.7.2/32".split())
    yield
    host.run("ip route del blackhole 10.233.7.2/32".split())


@pytest.mark.usefixtures("route")
def test_what_the_host_has_is_not_taken_from_it(incus: Incus, host: Host, system: str) -> None:
    """Refused before there is a container: nothing was added that would have to be taken back."""
    bridge = host.sh("ip -4 -o address show dev incusbr0 | awk '{ print $4 }'").stdout.strip()
    own, bits = bridge.split("/")
    beside = own.rpartition(".")[0] + ".77"
    name = made(incus, system)
    for values, said in [
        ({"address": own}, f"{own} in .*eth0.address .* is this host's own address on incusbr0"),
        ({"host_address": f"{beside}/{bits}"}, rf"overlaps with {bridge} on incusbr0; leave out /"),
        ({"address": "10.233.7.2"}, "10.233.7.2/32 of .* is already routed to elsewhere"),
    ]:
        incus.set(name, *keys(**({"address": "", "host_address": ""} | values)))
        before = incus.host.sh("ip -o address; ip route").stdout
        refused(incus, name, said)
        assert incus.host.sh("ip -o address; ip route").stdout == before


def test_an_address_in_a_network_of_the_host_is_refused(
    incus: Incus, host: Host, system: str
) -> None:
    """Routed to a wire, it would be lost to who has it, or gets it, on that network."""
    own = host.sh("ip -4 -o address show dev incusbr0 | awk '{ print $4 }'").stdout.strip()
    beside = own.rpartition(".")[0] + ".77"
    name = made(incus, system, address=beside, host_address="10.233.1.1")
    refused(incus, name, beside)


def test_the_hosts_end_takes_no_address_of_an_instance(
    incus: Incus, host: Host, system: str
) -> None:
    """The host would answer itself, and no longer reach the instance."""
    one = made(incus, system, **HERE)
    two = made(incus, system, "b", host_address="10.233.1.2", address="10.233.1.9")
    up(incus, one)
    refused(incus, two, "10.233.1.2")
    works(incus, one)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("10.233.3.1/24", "10.233.3.2/24"), ("10.233.3.3/24", "10.233.3.4/24")),
        (("10.233.3.1", "10.233.3.2"), ("10.233.3.2", "10.233.3.4")),
    ],
)
def test_wires_of_one_instance_do_not_collide(
    incus: Incus, system: str, first: tuple[str, str], second: tuple[str, str]
) -> None:
    name = made(incus, system, host_address=first[0], address=first[1])
    device(incus, name, "ve1", "nictype=p2p", "name=ve1")
    incus.set(name, *keys("ve1", host_address=second[0], address=second[1]))
    refused(incus, name, "10.233.3.")


HOSTILE = """
    ip link set eth0 down; ip link set eth0 name stolen
    ip link add eth0 type bridge; ip address add 10.233.1.77/24 dev eth0; ip link set eth0 up
    ip address add 10.233.1.3/32 dev stolen; ip address add 10.233.1.1/32 dev stolen
    ip link set stolen up
    ip route add 10.233.0.0/16 dev stolen
"""


def test_root_inside_reaches_nothing_of_the_host_or_of_others(
    incus: Incus, host: Host, system: str
) -> None:
    """It may do what it likes to its own end; the next boot sets it right."""
    hostile = made(incus, system, **HERE)
    other = made(incus, system, "b", host_address="10.233.1.1", address="10.233.1.3")
    up(incus, hostile, other)
    before = traces(host)
    incus.sh(hostile, HOSTILE)
    assert sorted(without_states(traces(host))) == sorted(without_states(before))
    assert answers(host, "10.233.1.3") and reaches(incus, other, "10.233.1.1")
    anew(incus, hostile, lambda: incus.run(hostile, "busybox", "reboot", "-f", check=False))
    assert addresses(incus, hostile) == {"10.233.1.2/32", "fc00::2/128"}
    assert "stolen" not in ip(incus, hostile, "-o link")
    incus.sh(hostile, "ip link del eth0")
    incus.eventually(lambda: "10.233.1.2" not in traces(host), lambda: traces(host))
    assert answers(host, "10.233.1.3") and reaches(incus, other, "10.233.1.1")
    anew(incus, hostile, lambda: incus.run(hostile, "busybox", "reboot", "-f", check=False))
    assert addresses(incus, hostile) == {"10.233.1.2/32", "fc00::2/128"}
    assert answers(host, "10.233.1.2") and answers(host, "10.233.1.3")
    assert reaches(incus, hostile, "10.233.1.1", "10.233.1.3")


def without_states(lines: str) -> set[str]:
    """A wire may be up or down at the far end; what the host has of it stays."""
    return {
        re.sub(r"<.*?>| state \w+| (linkdown|tentative)\b", "", line) for line in lines.splitlines()
    }


def test_the_journal_knows_whom_each_line_is_about(incus: Incus, host: Host) -> None:
    """A start, a refusal, and the build of an instance that runs."""
    source = incus.flake("web", greeting="one")
    one = incus.launch(flake=f"{source}#web")
    two = incus.launch(name=incus.name("b"), flake=f"{source}#web")
    three = incus.init(*["-c", *keys(address="x")], name=incus.name("c"), flake=f"{source}#web")
    refused(incus, three, "user.inx.net.eth0.address")
    incus.flake("web", greeting=f"never built before: {one}")
    incus.set(one, "user.inx.update=2")
    incus.wait_generation(one, "2")
    asked = ["journalctl", "-q", "--no-pager", "-o", "json", "_SYSTEMD_UNIT=inx-sidecar.service"]
    lines = [json.loads(line) for line in host.run(asked).stdout.splitlines()]
    for name in one, two, three:
        text = host.run(["journalctl", "-q", "--no-pager", "-o", "cat", f"INX_INSTANCE={name}"])
        shown = text.stdout.splitlines()
        assert shown and all(line.startswith(f"{name}: ") for line in shown), shown
        about = [line for line in lines if str(line["MESSAGE"]).startswith(f"{name}: ")]
        assert {line.get("INX_INSTANCE") for line in about} == {name}
        assert any("net.eth0" in line for line in shown) == (name == three)
        assert any("build" in line for line in shown) == (name != three)
    assert len([m for m in lines if re.match(f"{one}: .*building", str(m["MESSAGE"]))]) > 1
