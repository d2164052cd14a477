"""Each option of `containers.NAME` of NixOS has a way of incus, by the table of
docs/coming-from.md: carried out, and looked at."""

import re
import subprocess
from collections.abc import Iterator

import pytest
from support.disposable import Host
from support.incus import Incus
from support.parity import (
    SECOND,
    Checks,
    Row,
    Web,
    make_sources,
    on_the_host,
    started_with_incus,
    updated_to_another_source,
    with_an_address,
    with_nixpkgs,
    words,
)

pytestmark = pytest.mark.life

OPTIONS = (
    "config path flake nixpkgs specialArgs pkgs bindMounts hostPath isReadOnly tmpfs ephemeral "
    "autoStart allowedDevices additionalCapabilities enableTun interfaces macvlans extraVeths "
    "forwardPorts privateNetwork hostAddress hostAddress6 localAddress localAddress6 "
    "localMacAddress hostBridge privateUsers timeoutStartSec restartIfChanged networkNamespace "
    "extraFlags copyResolvConf"
).split()
CHECKS = Checks(
    "Options of containers.NAME",
    reasons={
        "pkgs = ...": "stands in the source",
        'timeoutStartSec = "1min"': "Incus has no such key",
    },
)
shows = CHECKS.shows


@pytest.fixture(scope="module", autouse=True)
def sources(host: Host) -> Iterator[None]:
    make_sources(host)
    with with_nixpkgs(host):
        yield


@shows("nixpkgs = /srv/nixpkgs")
def _with_another_nixpkgs(web: Web) -> None:
    web.create(module="/srv/module.nix")
    web.carry_out()
    web.start()
    web.says(SECOND)


@shows('specialArgs = { greeting = "hello"; }')
def _with_arguments(web: Web) -> None:
    web.create(config="{ greeting, ... }: { environment.etc.greeting.text = greeting; }")
    web.carry_out()
    web.start()
    web.says("hello")


@shows('hostBridge = "br0", localAddress = "10.7.0.2/24"')
def _on_a_bridge_with_an_address(web: Web) -> None:
    make = "ip link add br0 type bridge; ip address add 10.7.0.1/24 dev br0; ip link set br0 up"
    with on_the_host(web.host, make, "ip link delete br0"):
        web.launch_as_told()
        web.answers("10.7.0.2")


@shows('forwardPorts = [ { protocol = "udp"; hostPort = 5300; containerPort = 53; } ]')
def _with_a_forwarded_udp_port(web: Web) -> None:
    web.launch_as_told()
    echo = """import socket
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("127.0.0.1", 53))
print("bound", flush=True)
text, sender = server.recvfrom(99)
server.sendto(text.upper(), sender)"""
    ask = """import socket
client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
client.settimeout(20)
client.connect(("127.0.0.1", 5300))
client.send(b"hello")
print(client.recv(99).decode())"""
    inside = ["nsenter", "--net", f"--target={web.incus.pid('web')}"]
    argv = web.host.enter([*inside, "python3", "-c", echo])
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout and server.stdout.readline() == b"bound\n"
            assert web.host.run(["python3", "-c", ask]).stdout == "HELLO\n"
        finally:
            server.kill()


@shows('hostAddress6 = "fc00::1", localAddress6 = "fc00::2"')
def _with_an_ipv6_address(web: Web) -> None:
    web.launch_as_told()
    web.answers("fc00::2")
    assert "default via fc00::1 dev eth0" in web.network("ip", "-6", "route")


@shows('extraVeths.ve1 = { hostAddress = "10.233.2.1"; localAddress = "10.233.2.2"; }')
def _with_a_second_wire(web: Web) -> None:
    web.launch_as_told()
    web.answers("10.233.2.2")
    web.holds("[ -e /sys/class/net/eth0 ]")
    assert "default via 10.233.2.1" not in web.network("ip", "route")


@shows("config = { ... }")
def _configured(web: Web) -> None:
    web.create(flake="/etc/nixos#second")
    web.carry_out()
    web.start()
    assert "nixos-system-web" in web.incus.get("web", "user.inx.status.system")


@shows('path = "/srv/system"')
def _configured_by_a_path(web: Web) -> None:
    web.create(flake="/etc/nixos#second")
    web.carry_out()
    web.start()
    system = web.host.run(["readlink", "-f", "/srv/system"]).stdout.strip()
    assert web.incus.get("web", "user.inx.status.system") == system


@shows("restartIfChanged = false")
def _left_as_it_is(web: Web) -> None:
    web.launch(flake=web.flake("one"))
    web.carry_out()
    web.flake("two")
    web.incus.set("web", "user.inx.update=2")
    there = ["test", "-L", "/nix/var/nix/profiles/system-2-link"]
    web.incus.eventually(
        lambda: web.incus.run("web", *there, check=False).returncode == 0, web.incus.story
    )
    web.says("one")
    web.restart()
    web.says("two")


@shows("ephemeral = true, kept")
def _emptied(web: Web) -> None:
    web.launch()
    web.holds("touch /root/written")
    web.incus("stop", "-f", "web")
    web.carry_out()
    web.start()
    web.holds("[ ! -e /root/written ]")
    assert web.incus.get("web", "user.inx.status.generation") == "1"


@shows("ephemeral = true, gone when it stops")
def _gone(web: Web) -> None:
    web.carry_out()
    web.ready()
    web.incus("stop", "-f", "web")
    web.incus.wait_state("web", "")


# Where the machine's own file system is overlayfs, nothing on it can be shown with other owners.
DATA = "mkdir -p /srv/data; mount -t tmpfs none /srv/data; echo hello >/srv/data/file"


@shows('bindMounts."/data" = { hostPath = "/srv/data"; }')
def _with_a_directory_to_read(web: Web) -> None:
    with on_the_host(web.host, DATA, "umount --lazy /srv/data"):
        web.launch_as_told()
        web.holds(
            "[ $(cat /data/file) = hello ]; [ $(stat -c %u /data/file) = 0 ]; ! touch /data/x"
        )


@shows('bindMounts."/data" = { hostPath = "/srv/data"; isReadOnly = false; }')
def _with_a_directory_to_write(web: Web) -> None:
    with on_the_host(web.host, DATA, "umount --lazy /srv/data"):
        web.launch_as_told()
        web.holds("echo there >/data/file; touch /data/own; chown 1000 /data/own")
        script = "cat /srv/data/file; stat -c %u /srv/data/file /srv/data/own"
        assert web.host.sh(script).stdout == "there\n0\n1000\n"


@shows('tmpfs = [ "/scratch" ]')
def _with_a_tmpfs(web: Web) -> None:
    web.launch_as_told()
    web.holds("grep -q ' /scratch tmpfs ' /proc/mounts; touch /scratch/file")
    web.restart()
    web.holds("[ ! -e /scratch/file ]")


@shows('extraFlags = [ "--drop-capability=CAP_SYS_CHROOT" ]')
def _without_a_capability(web: Web) -> None:
    web.launch()
    web.holds("chroot / true")
    web.carry_out()
    web.restart()
    web.holds("! chroot / true")


@shows('additionalCapabilities = [ "CAP_NET_ADMIN" ]')
def _with_all_capabilities(web: Web) -> None:
    web.launch()
    web.holds("ip address add 192.0.2.1/32 dev lo")
    text = web.host.run(["cat", f"/proc/{web.incus.pid('web')}/status"]).stdout
    last = int(web.host.run(["cat", "/proc/sys/kernel/cap_last_cap"]).stdout)
    effective = re.search(r"^CapEff:\s+(\w+)", text, re.MULTILINE)
    assert effective and int(effective[1], 16) == (1 << last + 1) - 1


@shows("enableTun = true")
def _with_a_tunnel(web: Web) -> None:
    web.launch()
    web.holds("tunctl -t tap0; [ -e /sys/class/net/tap0 ]; : <>/dev/fuse")


@shows('allowedDevices = [ { node = "/dev/ttyUSB0"; modifier = "rw"; } ]')
def _with_a_device(web: Web) -> None:
    """It is /dev/full by another name."""
    with on_the_host(web.host, "mknod /dev/ttyUSB0 c 1 7", "rm /dev/ttyUSB0"):
        web.launch_as_told()
        web.holds("head -c 1 /dev/ttyUSB0 | xxd | grep -q ' 00 '; ! echo x >/dev/ttyUSB0")


@shows('privateUsers = "pick"')
def _with_ids_of_its_own(web: Web) -> None:
    web.launch_as_told()
    isolated = ("-c", "security.idmap.isolated=true")
    other = web.incus.launch(*isolated, name="other", system="/srv/system")
    text = web.host.run(["cat", f"/proc/{web.incus.pid(other)}/uid_map"]).stdout.split()
    ((inside, first, many),) = web.ids()
    assert inside == 0 and many == 65536
    assert abs(first - int(text[1])) >= many


@shows("privateUsers = 2000000")
def _with_chosen_ids(web: Web) -> None:
    """Incus before 7.0.2 needs one key more, as the remark says."""
    more = ["-c", "security.idmap.isolated=true"] if web.incus.version < (7, 0, 2) else []
    web.create(*more)
    web.carry_out()
    web.start()
    assert web.ids() == [[0, 2000000, 65536]]


@shows('privateUsers = "identity"')
def _with_the_ids_of_the_host(web: Web) -> None:
    web.launch_as_told()
    assert web.ids()[0] == [0, 0, 65536]
    web.holds("touch /root/file; [ $(stat -c %u /nix/store) = 0 ]")


@shows('privateUsers = "no"')
def _privileged(web: Web) -> None:
    web.launch_as_told()
    assert web.ids() == [[0, 0, 2**32 - 1]]


@shows("privateNetwork = true")
def _with_a_network(web: Web) -> None:
    web.launch()
    web.holds("[ -e /sys/class/net/eth0 ] && [ ! -e /sys/class/net/incusbr0 ]")


@shows("privateNetwork = false")
def _not_in_the_network_of_the_host(web: Web) -> None:
    raw = "raw.lxc=lxc.net.0.type = none"
    # Incus 7 takes it, and LXC then fails as for the line below.
    refused = web.incus("create", "--empty", "web", "-c", raw, check=False)
    assert "Only interface-specific" in refused.stderr or web.incus.version >= (7,)
    web.incus("delete", "web", check=False)
    web.refuses_to_start_with("lxc.namespace.keep = net\n")


@shows('networkNamespace = "/run/netns/vpn"')
def _not_in_a_network_that_is_there(web: Web) -> None:
    with on_the_host(web.host, "ip netns add vpn", "ip netns delete vpn"):
        share = "lxc.namespace.share.net = /run/netns/vpn\n"
        web.create_with(share, "-c", "security.privileged=true")
        web.start()
        where = ["/run/netns/vpn", f"/proc/{web.incus.pid('web')}/ns/net"]
        there, own = web.host.run(["stat", "-L", "-c", "%i", *where]).stdout.split()
        assert own == there
        web.incus("delete", "-f", "web")
        web.refuses_to_start_with(share)


@shows('localMacAddress = "de:b7:73:01:10:90"')
def _with_a_hardware_address(web: Web) -> None:
    web.launch_as_told()
    web.holds("[ $(cat /sys/class/net/eth0/address) = de:b7:73:01:10:90 ]")


WIRE = "ip link add eth7 type veth peer name eth7-end"


@shows('interfaces = [ "eth7" ]')
def _with_an_interface_of_the_host(web: Web) -> None:
    with on_the_host(web.host, WIRE, "ip link delete eth7-end"):
        address = web.host.run(["cat", "/sys/class/net/eth7/address"]).stdout.strip()
        web.launch_as_told()
        web.holds(f"[ $(cat /sys/class/net/eth7/address) = {address} ]")
        assert web.host.run(["test", "-e", "/sys/class/net/eth7"], check=False).returncode == 1
        web.incus("stop", "-f", "web")
        web.host.run(["test", "-e", "/sys/class/net/eth7"])


@shows('macvlans = [ "eth7" ]')
def _with_a_macvlan(web: Web) -> None:
    with on_the_host(web.host, WIRE, "ip link delete eth7-end"):
        web.launch_as_told()
        assert "macvlan" in web.network("ip", "-d", "link", "show", "dev", "mv-eth7")


@shows("copyResolvConf = true")
def _with_the_name_servers_of_the_host(web: Web) -> None:
    make = "[ ! -e /etc/resolv.conf ]; echo nameserver 192.0.2.53 >/etc/resolv.conf"
    with on_the_host(web.host, make, "rm /etc/resolv.conf"):
        web.create()
        web.incus("config", "device", "add", "web", "eth0", "none")  # nobody else writes it
        web.start()
        web.carry_out()
        web.holds('[ "$(cat /etc/resolv.conf)" = "nameserver 192.0.2.53" ]')


shows("autoStart = true")(started_with_incus)
shows('hostAddress = "10.233.1.1", localAddress = "10.233.1.2"')(with_an_address)
shows('flake = "/etc/nixos#second"')(updated_to_another_source)


ON_SID = ["privateUsers = 2000000"]
ROWS = [
    pytest.param(row, marks=[pytest.mark.sid] if row.name in ON_SID else [])
    for row in CHECKS.to_run
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_row_does_what_it_says(row: Row, incus: Incus, host: Host) -> None:
    CHECKS.run(row, incus, host)


def test_every_row_has_a_check_and_every_check_a_row() -> None:
    CHECKS.are_complete()


def test_the_table_names_everything() -> None:
    missing = set(OPTIONS) - words(CHECKS.rows)
    assert not missing, missing


@pytest.mark.sid
def test_a_disk_of_tmpfs_came_with_incus_6_0_6(incus: Incus) -> None:
    """So the row needs LXC for older versions."""
    name = incus.init(system="/srv/system")
    device = ["config", "device", "add", name, "scratch", "disk", "source=tmpfs:", "path=/scratch"]
    added = incus(*device, check=False)
    if incus.version < (6, 0, 6):
        assert "must be absolute" in added.stderr
        return
    incus.start(name)
    incus.wait_ready(name)
    incus.sh(name, "grep -q ' /scratch tmpfs ' /proc/mounts; touch /scratch/file")


def test_a_file_system_of_the_configuration_is_mounted(incus: Incus) -> None:
    """As the table has it for tmpfs: NixOS writes them into /etc/fstab."""
    flake = incus.flake_text(
        """nixosConfigurations.web.config.system.build.toplevel = import ./systemd.nix {
            inherit deps; name = "web"; extra.fstab = "none /scratch tmpfs size=1M 0 0\\n";
        };""",
        f"/srv/{incus.prefix}",
    )
    name = incus.launch(flake=f"{flake}#web")
    mounted = ["grep", "-q", " /scratch tmpfs .*size=1024k", "/proc/mounts"]
    incus.eventually(lambda: incus.run(name, *mounted, check=False).returncode == 0, incus.story)
