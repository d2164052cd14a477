"""Each row of README.md's tables for users of nixos-container is carried out and looked at.

A row is known by its first cell. Its commands are the code of its second one; a row without has a
check too, which shows why, or a reason here.
"""

import contextlib
import itertools
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from support.disposable import REPO, Host
from support.incus import Incus

pytestmark = pytest.mark.life

SUBCOMMANDS = (
    "create destroy start stop terminate restart status list update login root-login run show-ip "
    "show-host-key"
).split()
CREATE_OPTIONS = (
    "nixos-path system-path config config-file flake ensure-unique-name auto-start bridge port "
    "host-address local-address"
).split()
IN_ADDITION = (
    "exists state list-generations delete-generations switch-generation rollback"
).split()
OPTIONS = (
    "config path flake nixpkgs specialArgs pkgs bindMounts hostPath isReadOnly tmpfs ephemeral "
    "autoStart allowedDevices additionalCapabilities enableTun interfaces macvlans extraVeths "
    "forwardPorts privateNetwork hostAddress hostAddress6 localAddress localAddress6 "
    "localMacAddress hostBridge privateUsers timeoutStartSec restartIfChanged networkNamespace "
    "extraFlags copyResolvConf"
).split()


@dataclass(frozen=True)
class Row:
    name: str
    answer: str

    @property
    def commands(self) -> list[str]:
        return re.findall(r"`([^`]+)`", self.answer)


def section() -> str:
    text = (REPO / "README.md").read_text()
    (found,) = re.findall(r"^## Coming from nixos-container\n(.*?)^## ", text, re.M | re.S)
    return str(found)


def tables() -> list[list[Row]]:
    """The rows of each table, without its head."""
    blocks = re.findall(r"^\|.*\n\|[-|]+\n((?:\|.*\n)+)", section(), re.MULTILINE)
    return [
        [
            Row(first.replace("`", ""), second)
            for first, second, _ in (
                [cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()
            )
        ]
        for block in blocks
    ]


@dataclass
class Web:
    """The container that the rows speak of."""

    incus: Incus
    host: Host
    row: Row

    def create(self, *args: str, **config: str) -> None:
        self.incus.init(*args, name="web", **(config or {"system": "/srv/system"}))

    def carry_out(self, **options: str) -> str:
        """What the commands of the row print."""
        assert self.row.commands
        return "".join(self.host.sh(line, **options).stdout for line in self.row.commands)

    def start(self) -> None:
        self.incus.start("web")
        self.ready()

    def ready(self) -> None:
        self.incus.wait_ready("web")

    def launch(self, *args: str, **config: str) -> None:
        self.create(*args, **config)
        self.start()

    def restart(self) -> None:
        self.incus("restart", "-f", "web")
        self.ready()

    def launch_as_told(self) -> None:
        """The row says how an instance is to be before it starts."""
        self.create()
        self.carry_out()
        self.start()

    def holds(self, script: str) -> None:
        self.incus.sh("web", script)

    def says(self, greeting: str) -> None:
        """/etc/greeting inside."""
        self.incus.eventually(
            lambda: (
                self.incus.run(
                    "web",
                    *("sh", "-c", f'[ "$(cat /etc/greeting)" = "{greeting}" ]'),
                    check=False,
                ).returncode
                == 0
            ),
            self.incus.story,
        )

    def flake(self, greeting: str) -> str:
        return self.incus.flake(greeting=greeting) + "#web"

    def generations(self, *greetings: str) -> None:
        """A running instance that was updated to each of `greetings` in turn."""
        first, *others = greetings
        self.launch(flake=self.flake(first))
        for number, greeting in enumerate(others, start=2):
            self.flake(greeting)
            self.incus.set("web", f"user.inx.update={number}")
            self.incus.wait_generation("web", str(number))

    def answers(self, address: str) -> None:
        """To a ping; an IPv6 address is tentative at first."""
        ping = ["ping", "-c1", "-W1", address]
        self.incus.eventually(
            lambda: self.host.run(ping, check=False).returncode == 0,
            lambda: self.host.sh("ip address; ip route").stdout,
        )

    def network(self, *argv: str) -> str:
        """What a program of the host says in the network of the container."""
        return self.host.run(
            ["nsenter", "--net", f"--target={self.incus.pid('web')}", *argv]
        ).stdout

    def ids(self) -> list[list[int]]:
        """First id inside, first on the host, how many."""
        text = self.host.run(["cat", f"/proc/{self.incus.pid('web')}/uid_map"]).stdout
        return [[int(word) for word in line.split()] for line in text.splitlines()]

    def create_with(self, raw: str, *args: str) -> None:
        """With more for LXC, and no NIC."""
        text = self.incus("profile", "get", "inx", "raw.lxc").stdout + raw
        self.create("-c", f"raw.lxc={text}", *args)
        self.incus("config", "device", "add", "web", "eth0", "none")

    def refuses_to_start_with(self, raw: str) -> None:
        self.create_with(raw)
        assert self.incus.start("web", check=False).returncode != 0
        self.incus.eventually(
            lambda: "Failed to setup first automatic mounts" in self.incus.log("web"),
            lambda: self.incus.log("web"),
        )


Check = Callable[[Web], None]
CHECKS: dict[str, Check] = {}
# There is nothing that could be run.
REASONS = {
    "create web --config TEXT": "a source is a flake or a file, not a text",
    "create web --nixos-path PATH": "stands in the source",
    "create web --override-input NAME FLAKE": "no key passes flags on to Nix",
    "nixpkgs = ..., specialArgs = ...": "stands in the source",
    "pkgs = ...": "stands in the source",
    "timeoutStartSec = \"1min\"": "Incus has no such key",
}  # fmt: skip


def shows(*rows: str) -> Callable[[Check], Check]:
    def decorate(check: Check) -> Check:
        CHECKS.update(dict.fromkeys(rows, check))
        return check

    return decorate


@pytest.fixture(scope="module", autouse=True)
def sources(host: Host) -> None:
    """What the tables name: a system and a file."""
    host.sh(
        """
        nix --extra-experimental-features 'nix-command flakes' build -o /srv/system \\
            '/etc/nixos#nixosConfigurations.web.config.system.build.toplevel'
        echo '{ web = (import /etc/nixos).second; }' >/srv/web.nix
        """
    )


@contextlib.contextmanager
def on_the_host(host: Host, make: str, remove: str) -> Iterator[None]:
    host.sh(make)
    try:
        yield
    finally:
        host.sh(remove)


SECOND = "hello from the second system"


@shows("create web --flake /etc/nixos#web")
def _created_from_a_flake(web: Web) -> None:
    web.carry_out()
    assert web.incus.state("web") == "STOPPED"
    web.start()
    web.holds("[ $(readlink -f /run/current-system) = $(readlink -f /run/booted-system) ]")
    assert "nixos-system-web" in web.incus.get("web", "user.inx.status.system")


@shows("create web --config-file FILE")
def _created_from_a_file(web: Web) -> None:
    web.carry_out()
    web.start()
    web.says(SECOND)


@shows("create web --system-path PATH")
def _created_from_a_system(web: Web) -> None:
    web.carry_out()
    web.start()
    system = web.host.run(["readlink", "-f", "/srv/system"]).stdout.strip()
    assert web.incus.get("web", "user.inx.status.system") == system


@shows("create web --ensure-unique-name")
def _created_with_a_new_name(web: Web) -> None:
    names = re.findall(r"Instance name is: (\S+)", web.carry_out() + web.carry_out())
    assert len(set(names)) == 2
    for name in names:
        web.incus.adopt(name)
        assert web.incus.state(name) == "STOPPED"


@shows("create web --auto-start", "autoStart = true")
def _started_with_incus(web: Web) -> None:
    web.create()
    web.carry_out()
    web.host.run(["systemctl", "restart", "incus"])
    web.incus.wait_state("web", "RUNNING")
    web.ready()


@shows("create web --bridge br0")
def _on_a_bridge(web: Web) -> None:
    with on_the_host(web.host, "ip link add br0 type bridge", "ip link delete br0"):
        web.launch_as_told()
        members = web.host.run(["ls", "/sys/class/net/br0/brif"]).stdout.split()
        assert members == [web.incus.get("web", "volatile.eth0.host_name")]
        web.holds("[ -e /sys/class/net/eth0 ]")


@shows('hostBridge = "br0", localAddress = "10.7.0.2/24"')
def _on_a_bridge_with_an_address(web: Web) -> None:
    make = "ip link add br0 type bridge; ip address add 10.7.0.1/24 dev br0; ip link set br0 up"
    with on_the_host(web.host, make, "ip link delete br0"):
        web.launch_as_told()
        web.answers("10.7.0.2")


@shows("create web --port tcp:8080:80")
def _with_a_forwarded_port(web: Web) -> None:
    web.launch_as_told()
    web.holds("httpd -p 80 -h /run/current-system")
    assert web.host.run(["curl", "-sf", "http://127.0.0.1:8080/nixos-version"]).stdout == "1"


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


@shows(
    "create web --host-address 10.233.1.1 --local-address 10.233.1.2",
    'hostAddress = "10.233.1.1", localAddress = "10.233.1.2"',
)
def _with_an_address(web: Web) -> None:
    web.launch_as_told()
    web.answers("10.233.1.2")
    assert "default via 10.233.1.1 dev eth0" in web.network("ip", "route")
    assert web.host.run(["ip", "route", "show", "10.233.1.2"]).stdout
    web.network("ping", "-c1", "-W5", "10.233.1.1")


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


@shows("start web")
def _started(web: Web) -> None:
    web.create()
    web.carry_out()
    web.ready()


@shows("stop web", "terminate web")
def _stopped(web: Web) -> None:
    web.launch()
    web.carry_out()
    assert web.incus.state("web") == "STOPPED"


@shows("restart web")
def _restarted(web: Web) -> None:
    web.launch()
    before = web.incus.pid("web")
    web.carry_out()
    web.ready()
    assert web.incus.pid("web") not in (0, before)


@shows("status web", "state web")
def _with_a_state(web: Web) -> None:
    web.create()
    web.incus.init(name="web2")
    assert web.carry_out() == "STOPPED\n"
    web.start()
    assert web.carry_out() == "RUNNING\n"


@shows("nixos-container list")
def _listed(web: Web) -> None:
    web.create()
    web.incus.init(name="other")
    assert {"web", "other"} <= set(web.carry_out().split())


@shows("update web")
def _updated(web: Web) -> None:
    web.launch(flake=web.flake("one"))
    before = web.incus.pid("web")
    web.flake("two")
    web.carry_out()
    web.says("two")
    assert web.incus.pid("web") == before


@shows(
    "update web --flake /etc/nixos#second",
    "update web --config-file FILE",
    'flake = "/etc/nixos#second"',
)
def _updated_to_another_source(web: Web) -> None:
    web.launch(flake="/etc/nixos#web")
    before = web.incus.pid("web")
    web.carry_out()
    web.says(SECOND)
    assert web.incus.pid("web") == before


@shows("login web")
def _with_a_console(web: Web) -> None:
    """Keys are pressed again and again: the first ones may come before the console is there."""
    web.launch()
    web.holds('(read line; echo "$line" >/root/typed) </dev/console >/dev/null 2>&1 &')
    (command,) = web.row.commands
    argv = web.host.enter(["script", "-qec", command, "/dev/null"], {"TERM": "xterm"})
    with subprocess.Popen(
        argv, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
    ) as console:

        def press(keys: Iterator[bytes]) -> None:
            assert console.stdin
            with contextlib.suppress(BrokenPipeError):
                console.stdin.write(next(keys))

        def arrived() -> bool:
            press(hello)
            argv = ["grep", "-qx", "hello", "/root/typed"]
            return web.incus.run("web", *argv, check=False).returncode == 0

        def left() -> bool:
            press(leave)
            return console.poll() is not None

        hello, leave = itertools.repeat(b"hello\r"), itertools.cycle([b"\x01", b"q"])
        try:
            web.incus.eventually(arrived, lambda: "nothing came in")
            web.incus.eventually(left, lambda: "it is still there")
            assert console.returncode == 0
        finally:
            console.kill()


@shows("root-login web")
def _with_a_shell(web: Web) -> None:
    web.launch()
    (command,) = web.row.commands
    web.host.sh(command, input="echo $(id -u) $HOME $(pwd) >/root/who\n")
    web.holds('[ "$(cat /root/who)" = "0 /root /root" ]')


@shows("run web -- uname -n")
def _with_a_program(web: Web) -> None:
    web.launch()
    web.incus.eventually(lambda: web.carry_out() == "web\n", lambda: "no output")
    (command,) = web.row.commands
    failing = command.replace("uname -n", "sh -c 'exit 7'")
    assert web.host.sh(failing, check=False).returncode == 7


@shows("show-ip web")
def _with_addresses_that_are_shown(web: Web) -> None:
    web.launch()
    web.incus.eventually(
        lambda: (
            re.search(r"[0-9.]{7,} \(eth0\).*[0-9a-f:]{7,} \(eth0\)", web.carry_out(), re.S)
            is not None
        ),
        lambda: web.carry_out(),
    )


@shows("show-host-key web")
def _with_a_host_key(web: Web) -> None:
    web.launch()
    web.holds("mkdir -p /etc/ssh; echo ssh-ed25519 >/etc/ssh/ssh_host_ed25519_key.pub")
    assert web.carry_out() == "ssh-ed25519\n"
    web.incus("stop", "-f", "web")
    assert web.carry_out() == "ssh-ed25519\n"


@shows("destroy web")
def _destroyed(web: Web) -> None:
    web.launch()
    roots = f"/nix/var/nix/gcroots/inx/web.{web.incus.uuid('web')}"
    web.host.run(["test", "-e", roots])
    web.carry_out()
    assert web.incus.state("web") == ""
    web.incus.eventually(
        lambda: web.host.run(["test", "-e", roots], check=False).returncode == 1,
        web.incus.story,
    )


@shows("exists web")
def _existing(web: Web) -> None:
    (command,) = web.row.commands
    assert web.host.sh(command, check=False).returncode != 0
    web.create()
    web.carry_out()


@shows("list-generations web")
def _with_listed_generations(web: Web) -> None:
    web.generations("one", "two")
    pattern = r"^ +1 .*\n +2 .*\(current\)"
    web.incus.eventually(lambda: re.match(pattern, web.carry_out()) is not None, web.incus.story)


@shows("delete-generations web 1")
def _without_a_generation(web: Web) -> None:
    web.generations("one", "two")
    web.carry_out()
    web.holds("cd /nix/var/nix/profiles; [ ! -L system-1-link ] && [ -L system-2-link ]")


@shows("switch-generation web 1")
def _switched_back(web: Web) -> None:
    web.generations("one", "two")
    web.carry_out()
    web.says("one")
    web.restart()
    web.says("one")


@shows("rollback web")
def _rolled_back(web: Web) -> None:
    web.generations("one", "two", "three")
    before = web.incus.pid("web")
    web.carry_out()
    web.says("two")
    assert web.incus.pid("web") == before
    web.restart()
    web.says("two")


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
    web.launch_as_told()
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
    refused = web.incus("create", "--empty", "web", "-c", raw, check=False)
    assert "Only interface-specific" in refused.stderr
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


ROWS = [row for table in tables() for row in table]


@pytest.mark.parametrize(
    "row", [row for row in ROWS if row.name not in REASONS], ids=lambda row: row.name
)
def test_a_row_does_what_it_says(row: Row, incus: Incus, host: Host) -> None:
    incus.adopt("web")
    CHECKS[row.name](Web(incus, host, row))


def test_every_row_has_a_check_and_every_check_a_row() -> None:
    names = [row.name for row in ROWS]
    assert len(names) == len(set(names))
    assert not set(CHECKS) & set(REASONS)
    assert set(names) == set(CHECKS) | set(REASONS)


def test_a_row_has_commands_of_incus_or_says_that_it_has_none() -> None:
    for row in ROWS:
        if row.commands:
            assert all(command.startswith("incus ") for command in row.commands), row
        else:
            assert row.answer in ("*none*", "**no**"), row
    assert {row.name for row in ROWS if row.answer == "**no**"} >= set(REASONS)


def test_the_tables_name_everything() -> None:
    commands, more, options = (" ".join(row.name for row in table) for table in tables())
    for text, names in (
        (commands, [*SUBCOMMANDS, *(f"--{option}" for option in CREATE_OPTIONS)]),
        (more, IN_ADDITION),
        (options, OPTIONS),
    ):
        words = set(re.split(r"[\s.,;{}\[\]()]+", text))
        assert not set(names) - words, set(names) - words


def test_incus_6_0_has_no_disk_of_tmpfs(incus: Incus) -> None:
    """So the row needs LXC. The newer `source=tmpfs:` would be simpler."""
    name = incus.init()
    device = ["config", "device", "add", name, "scratch", "disk", "source=tmpfs:", "path=/scratch"]
    assert "must be absolute" in incus(*device, check=False).stderr


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
