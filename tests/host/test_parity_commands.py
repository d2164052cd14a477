"""Each command of nixos-container, extra-container, nixcloud-container, nixos-nspawn and
inx-container has one of incus, by the tables of docs/coming-from.md: carried out, and looked at."""

import contextlib
import itertools
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
    configured_by_modules,
    make_sources,
    on_the_host,
    started_with_incus,
    table,
    updated_to_another_source,
    with_an_address,
    with_nixpkgs,
    words,
)
from support.store import closure

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
# Of extra-container 0.14: subcommands, options, and options of its containers.
OF_EXTRA_CONTAINER = (
    "create build shell list restart destroy --attr --nixpkgs-path --nixos-path --start "
    "--update-changed --restart-changed --ssh --build-args --expr -E STORE_PATH --run --all "
    "extra addressPrefix enableWAN"
).split()
OF_NIXOS_NSPAWN = "create update --config --flake --system --profile --strategy".split()
# Of inx-container 0.0.3: subcommands, options, profile and devices.
OF_INX_CONTAINER = (
    "create update help --flake --verbose -v VERBOSE=1 nixstore nixsocket nixdb nixprofiles "
    "localtime /nix/var/nix/profiles/inx-container/web/system"
).split()
CHECKS = Checks(
    "nixos-container",
    "extra-container",
    "nixcloud-container",
    "nixos-nspawn",
    "inx-container",
    "nix-store-fs",
    "nixos-rebuild",
    reasons={
        "--system aarch64-linux": "builds are those of the host",
        "extra-container create FILE --attr ATTR": "a module file may import another file",
        "--build-args ARGS": "no key passes flags on to Nix",
        "create web --override-input NAME FLAKE": "no key passes flags on to Nix",
    },
)
shows = CHECKS.shows


@pytest.fixture(scope="module", autouse=True)
def sources(host: Host) -> Iterator[None]:
    make_sources(host)
    with with_nixpkgs(host):
        yield


@shows(
    "create web --flake /etc/nixos#web",
    "inx-container create web",
    "inx-container create web --flake /etc/nixos",
    "nixos-nspawn create web --flake /etc/nixos#web",
)
def _created_from_a_flake(web: Web) -> None:
    web.carry_out()
    assert web.incus.state("web") == "STOPPED"
    web.start()
    web.holds("[ $(readlink -f /run/current-system) = $(readlink -f /run/booted-system) ]")
    assert "nixos-system-web" in web.incus.get("web", "user.inx.status.system")


@shows("nix-store-fs SYSTEM MOUNTPOINT, privateStore = true")
def _created_with_a_view(web: Web) -> None:
    web.carry_out()
    web.start()
    shown = web.incus.said("web", "ls", "/nix/store").split()
    assert {f"/nix/store/{name}" for name in shown} == closure(
        web.host, web.incus.get("web", "user.inx.status.system")
    )


@shows("privateStore = true, with Nix inside")
def _created_with_a_store_of_its_own(web: Web) -> None:
    web.carry_out()
    web.start()
    known = web.incus.said("web", "nix", "path-info", "--all").split()
    assert set(known) == closure(web.host, web.incus.get("web", "user.inx.status.system"))
    added = web.incus.said("web", "nix-store", "--add", "/etc/passwd").strip()
    web.holds(f"nix-store --verify-path {added}")


@shows("create --start <<EOF")
def _launched_from_yaml(web: Web) -> None:
    web.carry_out()
    web.ready()
    web.says(SECOND)


@shows("create --expr EXPR, -E EXPR")
def _created_from_a_function(web: Web) -> None:
    web.carry_out()
    web.start()
    web.holds("hello | grep -q Hello")


@shows("--nixpkgs-path EXPR, --nixos-path PATH")
def _with_another_nixpkgs(web: Web) -> None:
    web.create(module="/srv/module.nix")
    web.carry_out()
    web.start()
    web.holds("[ $(cat /etc/published) = one ]")


@shows("update web --config TEXT", "--update-changed, -u")
def _updated_to_another_text(web: Web) -> None:
    web.launch(module="/srv/module.nix")
    before = web.incus.pid("web")
    web.incus.set("web", "user.inx.module=")
    web.carry_out()
    web.says("hello")
    assert web.incus.pid("web") == before


@shows("--restart-changed, -r")
def _restarted_with_another_text(web: Web) -> None:
    web.launch(module="/srv/module.nix")
    web.incus.set("web", "user.inx.module=")
    web.carry_out()
    web.ready()
    web.says("hello")


@shows("nixos-nspawn update web --profile PATH")
def _updated_to_a_system(web: Web) -> None:
    web.launch(flake="/etc/nixos#second")
    web.carry_out()
    system = web.host.run(["readlink", "-f", "/srv/system"]).stdout.strip()
    web.incus.eventually(
        lambda: web.incus.get("web", "user.inx.status.system") == system, web.incus.story
    )


@shows("nixos-nspawn update web --strategy restart")
def _updated_by_a_restart(web: Web) -> None:
    web.launch(flake=web.flake("one"))
    web.flake("two")
    web.carry_out()
    web.ready()
    web.says("two")


@shows("extra-container shell -E EXPR")
def _in_a_shell_and_gone(web: Web) -> None:
    launch, wait, shell, delete = web.row.commands
    web.host.sh(launch)
    web.host.sh(wait)
    web.host.sh(shell, input="[ $(cat /etc/greeting) = hello ] && touch /root/seen\n")
    web.holds("[ -e /root/seen ]")
    web.host.sh(delete)
    assert web.incus.state("web") == ""


@shows("extra-container destroy --all")
def _all_destroyed(web: Web) -> None:
    web.create()
    web.carry_out()
    assert web.incus("list", "-f", "csv").stdout == ""


@shows("extra.enableWAN = true")
def _with_a_network_by_itself(web: Web) -> None:
    web.launch()
    web.incus.eventually(lambda: "default via" in web.network("ip", "route"), web.incus.story)


@shows("create web --system-path PATH", "create STORE_PATH")
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


@shows("create web --bridge br0")
def _on_a_bridge(web: Web) -> None:
    with on_the_host(web.host, "ip link add br0 type bridge", "ip link delete br0"):
        web.launch_as_told()
        members = web.host.run(["ls", "/sys/class/net/br0/brif"]).stdout.split()
        assert members == [web.incus.get("web", "volatile.eth0.host_name")]
        web.holds("[ -e /sys/class/net/eth0 ]")


@shows("create web --port tcp:8080:80")
def _with_a_forwarded_port(web: Web) -> None:
    web.launch_as_told()
    web.holds("httpd -p 80 -h /run/current-system")
    assert web.host.run(["curl", "-sf", "http://127.0.0.1:8080/nixos-version"]).stdout == "1"


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


@shows("restart web", "extra-container restart web")
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


@shows("nixos-container list", "extra-container list")
def _listed(web: Web) -> None:
    web.create()
    web.incus.init(name="other")
    assert {"web", "other"} <= set(web.carry_out().split())


@shows("update web", "inx-container update web --flake /etc/nixos")
def _updated(web: Web) -> None:
    web.launch(flake=web.flake("one"))
    before = web.incus.pid("web")
    web.flake("two")
    web.carry_out()
    web.says("two")
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


@shows("root-login web", "--ssh")
def _with_a_shell(web: Web) -> None:
    web.launch()
    (command,) = web.row.commands
    web.host.sh(command, input="echo $(id -u) $HOME $(pwd) >/root/who\n")
    web.holds('[ "$(cat /root/who)" = "0 /root /root" ]')


@shows("run web -- uname -n", "extra-container shell --run c uname -n")
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


@shows("destroy web", "extra-container destroy web")
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


@shows(
    "switch-generation web 1",
    "nix-env -p /nix/var/nix/profiles/inx-container/web/system --switch-generation 1",
)
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


@shows("inx-container create web --flake /etc/nixos#second")
def _created_from_another_attribute(web: Web) -> None:
    web.carry_out()
    web.start()
    web.says(SECOND)


@shows("--verbose, -v, VERBOSE=1")
def _with_the_log_of_its_build(web: Web) -> None:
    """A console that runs shows each part only once."""
    web.launch(flake="/etc/nixos#web")
    shown: list[str] = []

    def told() -> bool:
        shown.append(web.carry_out())
        return "inx: building the system of 'web' from /etc/nixos#web" in "".join(shown)

    web.incus.eventually(told, lambda: "".join(shown))


@shows("inx-container help")
def _with_help(web: Web) -> None:
    assert "Usage:" in web.carry_out()


@shows("/nix/var/nix/profiles/inx-container/web/system")
def _with_a_profile_inside(web: Web) -> None:
    web.launch()
    system = web.incus.get("web", "user.inx.status.system")
    web.incus.eventually(lambda: web.carry_out().strip() == system, web.incus.story)


@shows("devices nixstore, nixsocket, nixdb, nixprofiles")
def _with_a_store(web: Web) -> None:
    web.launch()
    web.holds("grep -q ' /nix/store ' /proc/mounts; [ -S /nix/var/nix/daemon-socket/socket ]")
    web.holds("nix-env --list-generations -p /nix/var/nix/profiles/system")


@shows("device localtime")
def _with_the_time_of_the_host(web: Web) -> None:
    """On a file system that can show other owners."""
    make = """[ -e /etc/localtime ] || touch /etc/localtime
        echo here >/var/lib/incus/localtime; mount --bind /var/lib/incus/localtime /etc/localtime"""
    with on_the_host(web.host, make, "umount --lazy /etc/localtime; rm /var/lib/incus/localtime"):
        web.launch_as_told()
        web.holds("[ $(cat /etc/localtime) = here ]")


@shows("nixos-rebuild build", "nixos-rebuild dry-activate", "extra-container build FILE")
def _tried(web: Web) -> None:
    web.launch(flake=web.flake("one"))
    web.flake("two")
    web.carry_out()
    web.incus.wait_status("web", r"ready \(tried: ")
    web.says("one")
    web.incus.set("web", "user.inx.activate=switch")
    web.incus.wait_generation("web", "2")
    web.says("two")


shows("create web --auto-start")(started_with_incus)
shows(
    "create web --host-address 10.233.1.1 --local-address 10.233.1.2",
    'extra.addressPrefix = "10.233.1"',
)(with_an_address)
shows(
    "create web --config TEXT",
    "create web --config-file FILE",
    "create web --nixos-path PATH",
    "extra-container create FILE",
    "nixos-nspawn create web --config FILE",
)(configured_by_modules)
shows(
    "update web --flake /etc/nixos#second",
    "update web --config-file FILE",
    "inx-container update web --flake /etc/nixos#second",
)(updated_to_another_source)


@pytest.mark.parametrize("row", CHECKS.to_run, ids=lambda row: row.name)
def test_a_row_does_what_it_says(row: Row, incus: Incus, host: Host) -> None:
    CHECKS.run(row, incus, host)


def test_every_row_has_a_check_and_every_check_a_row() -> None:
    CHECKS.are_complete()


def test_the_tables_name_everything() -> None:
    options = [f"--{option}" for option in CREATE_OPTIONS]
    for heading, names in (
        ("nixos-container", [*SUBCOMMANDS, *options]),
        ("extra-container", OF_EXTRA_CONTAINER),
        ("nixcloud-container", IN_ADDITION),
        ("nixos-nspawn", OF_NIXOS_NSPAWN),
        ("inx-container", OF_INX_CONTAINER),
        ("nix-store-fs", ("nix-store-fs", "privateStore")),
        ("nixos-rebuild", ("build", "dry-activate")),
    ):
        missing = set(names) - words(table(heading))
        assert not missing, missing
