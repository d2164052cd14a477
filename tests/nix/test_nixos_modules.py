"""The NixOS modules, the flake and the package, as far as tests can check them without NixOS.

The tests use the real Nix, and the library of nixpkgs that INX_NIXPKGS_LIB names (a directory that
has lib/, such as a checkout of nixpkgs). tests/nix/nixpkgs has stand-ins for the options of NixOS
that the modules set.
"""

import dataclasses
import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import pages
from support.disposable import REPO, Host, project_files
from support.incus import Incus
from support.services import PROGRAM, state_of

from inx_sidecar.config.keys import parse_spec
from inx_sidecar.config.settings import Settings
from inx_sidecar.declared.declaration_file import read_declaration

pytestmark = pytest.mark.nixos

PROJECT = "/root/inx"
NIXPKGS = "/root/nixpkgs"
PACKAGE = "/nix/store/00000000000000000000000000000000-inx"
PROFILE = yaml.safe_load((REPO / "profiles/inx.yaml").read_text())
# JSON has no tuples, so the values are compared after a round trip.
DEFAULTS = json.loads(json.dumps(dataclasses.asdict(Settings())))
WRONG_HOST = [
    "set virtualisation.incus.enable = true.",
    "needs Incus 6.0 or newer; virtualisation.incus.package is 0.6.",
    "set networking.nftables.enable = true.",
    "set nix.enable = true.",
    "needs Nix 2.18 or newer; nix.package is 2.3.18.",
    'set nix.daemonUser = "root".',
    'the group inx-build, which may not use Nix: add "@inx-build" to nix.settings.allowed-users.',
    "set virtualisation.inx.createPool = false.",
    "set virtualisation.inx.createNetwork = false.",
    "give yours in virtualisation.incus.preseed another name, and use both.",
]
WRONG_CONTAINERS = {
    "under_score": "the name of an instance has letters, digits and, between them, '-'",
    "two-sources": "set one of system, flake alone.",
    "two-kinds": "set one of config, file alone.",
    "two-modules": "set one of file, configText alone: only a flake can be extended",
    "two-ways": "set one of config, configFile alone: only a flake can be extended",
    "arguments": "specialArgs goes with config; set _module.args in configText.",
    "two-nixpkgs": "nixpkgs and flake exclude each other",
    "attr": "attr goes with file",
    "hooks": "would replace the hooks; add lines by the option lxc.",
    "isolated": "a Nix daemon shows every path of the store.",
    "own": "the container has a Nix daemon of its own.",
    "kinds-of-store": 'isolated and store = "own" exclude each other; set store alone.',
    "gone": "requireMounts and ephemeral exclude each other",
    "bridge": "hostAddress is the host's end of a veth pair for this container alone",
}
NEEDING = "mounted"
NEEDING_UNIT = f"inx-container-{NEEDING}.service"
NEEDED_MOUNT = "srv-needed.mount"
UNITS = "/run/systemd/system"
DECLARED = "/etc/inx/instances.json"
NEEDS_MOUNT = f"""{{
    virtualisation.inx.enable = true;
    virtualisation.inx.containers.{NEEDING} = {{
        flake = "/etc/nixos#web";
        autoStart = true;
        requireMounts = true;
        bindMounts."/data".hostPath = "/srv/needed";
    }};
}}"""
# Options of `containers.NAME` that inx does not have, and a part of the message for each.
REPLACED_OPTIONS = {
    "additionalCapabilities": "root inside has all capabilities",
    "copyResolvConf": "networking.nameservers",
    "enableTun": "/dev/net/tun",
    "extraFlags": "by the option lxc",
    "networkNamespace": "interfaces",
    "pkgs": "nixpkgs.pkgs",
    "privateNetwork": "forwardPorts, macvlans or interfaces",
    "timeoutStartSec": "build_timeout",
}


def expression(host: Host, text: str, *options: str) -> Any:
    argv = ["nix-instantiate", "--eval", "--strict", "--json", *options]
    return json.loads(host.run([*argv, "--expr", text]).stdout)


@pytest.fixture(scope="session")
def nixpkgs(host: Host) -> str:
    """The value of -I that names the library of nixpkgs."""
    directory = os.environ.get("INX_NIXPKGS_LIB")
    if not directory:
        pytest.skip("INX_NIXPKGS_LIB names no nixpkgs, whose library evaluates the modules")
    host.push(Path(directory), ["lib"], NIXPKGS)
    return f"nixpkgs={NIXPKGS}"


@pytest.fixture
def evaluate(host: Host, nixpkgs: str) -> Any:
    """Evaluate a configuration of cases.nix with the modules."""

    def evaluated(name: str, case: str = "") -> dict[str, Any]:
        given = f"case = {case};" if case else ""
        text = f'import {PROJECT}/tests/nix/evaluate.nix {{ name = "{name}"; {given} }}'
        return dict(expression(host, text, "-I", nixpkgs))

    return evaluated


def instances(evaluated: dict[str, Any]) -> dict[str, dict[str, Any]]:
    declared = evaluated["etc"]["inx/instances.json"]["instances"]
    return {one["name"]: one for one in declared}


# --- With Nix alone ---------------------------------------------------------------------------


def test_nix_can_parse_every_nix_file(host: Host) -> None:
    files = [f"{PROJECT}/{name}" for name in project_files() if name.endswith(".nix")]
    assert len(files) > 15
    host.run(["nix-instantiate", "--parse", *files])


def test_the_profile_is_equal_to_profiles_inx_yaml(host: Host) -> None:
    assert expression(host, f"import {PROJECT}/nix/profile.nix {{ }}") == PROFILE
    other = expression(host, f'import {PROJECT}/nix/profile.nix {{ pool = "a"; network = "b"; }}')
    assert (other["devices"]["root"]["pool"], other["devices"]["eth0"]["network"]) == ("a", "b")


def test_the_settings_are_equal_to_those_of_the_sidecar_and_of_docs(host: Host) -> None:
    lib = """{
        mkOption = option: option;
        types = { str = 1; bool = 1; listOf = _: 1; strMatching = _: 1;
            ints = { positive = 1; unsigned = 1; between = _: _: 1; }; };
    }"""
    options = expression(host, f"import {PROJECT}/nix/settings.nix {{ lib = {lib}; }}")
    assert {name: option["default"] for name, option in options.items()} == DEFAULTS
    for name, option in options.items():
        (row,) = re.findall(rf"^\| `{name}` \| (.*?) \|", pages.read("docs/keys.md"), re.MULTILINE)
        description = " ".join(option["description"].lower().split()).rstrip(".")
        assert row.lower().startswith(description), name


def test_nix_can_parse_the_blocks_of_the_pages(host: Host) -> None:
    assert len(blocks()) == 4
    for block in blocks():
        host.run(["nix-instantiate", "--parse", "-"], input=f"{{ inx }}: {block}")


def blocks() -> list[str]:
    """The Nix blocks of the pages: a flake, a container, a host that declares two containers."""
    shown = [
        block for page in pages.PAGES for block in pages.blocks(page) if block.language == "nix"
    ]
    return [block.text for block in shown]


# --- Hosts ------------------------------------------------------------------------------------


def test_without_enable_the_module_sets_nothing(evaluate: Any) -> None:
    nothing = evaluate("nothing")
    assert not any(value for value in nothing.values())


def test_enable_sets_up_the_whole_host(evaluate: Any) -> None:
    plain = evaluate("plain")
    assert plain["wrong"] == plain["warnings"] == []
    assert plain["enable"] is True
    assert plain["preseed"] == {
        "profiles": [PROFILE],
        "storage_pools": [{"name": "default", "driver": "dir"}],
        "networks": [{"name": "incusbr0", "type": "bridge"}],
    }
    assert plain["etc"]["inx/profile.yaml"] == PROFILE
    assert plain["etc"]["inx/hooks"] == f"{PACKAGE}/share/inx/hooks"
    nixpkgs = {"nixpkgs": f"{PROJECT}/tests/nix/nixpkgs"}
    assert plain["etc"]["inx/config.toml"] == DEFAULTS | nixpkgs
    nothing = {"version": 1, "dropped": "keep", "instances": []}
    assert plain["etc"]["inx/instances.json"] == nothing, (
        "converge has to see that all containers were dropped"
    )
    assert plain["firewall"]["incusbr0"]["allowedUDPPorts"] == [53, 67, 547]
    assert plain["users"] == ["inx-build"]


def test_the_nixpkgs_of_instances_is_that_of_the_host(evaluate: Any) -> None:
    """With flakes, it is a string with the store path as its context; a setting goes first."""
    found = {
        case: evaluate("", f"{{ virtualisation.inx.enable = true; {case} }}")
        for case in (
            'nixpkgs.flake.source = "/nix/store/x-source";',
            'virtualisation.inx.settings.nixpkgs = "nixos-26.05";',
        )
    }
    named = [one["etc"]["inx/config.toml"]["nixpkgs"] for one in found.values()]
    assert named == ["/nix/store/x-source", "nixos-26.05"]


def test_members_read_the_stores_of_each_other(evaluate: Any) -> None:
    """As the commands of docs/cluster.md, which a test runs, do on Debian."""
    page = pages.section("docs/cluster.md", "Members as caches")
    found = evaluate("members")
    assert found["wrong"] == []
    key = "ssh-ed25519 AAAAtwo"
    assert found["ssh"]["serve"] == {
        "enable": True, "keys": [key], "protocol": "ssh", "write": False
    }  # fmt: skip
    assert found["ssh"]["knownHosts"] == {"inx-host2": {"publicKey": key}}
    (url,) = found["ssh"]["caches"]
    assert url.replace("host2", "host1") in page
    lines = found["ssh"]["extraConfig"].replace("host2", "host1").replace("192.0.2.2", "192.0.2.1")
    assert {line.strip() for line in lines.splitlines()} <= {
        line.strip() for line in page.splitlines()
    }
    stranger = "(import /root/inx/tests/nix/cases.nix { lib = import <nixpkgs/lib>; }).members"
    (wrong,) = evaluate("", f'{stranger} // {{ networking.hostName = "host3"; }}')["wrong"]
    assert wrong.startswith("virtualisation.inx.members has no host3, which is the networking.hos")


def test_the_units_of_the_package_are_started_and_restarted_in_place(evaluate: Any) -> None:
    plain = evaluate("plain")
    assert plain["packages"] == [PACKAGE]
    services, sockets = plain["services"], plain["sockets"]
    shipped = {path.name for path in (REPO / "systemd").iterdir() if "conf" not in path.suffix}
    named = {f"{name}.service" for name in services} | {f"{name}.socket" for name in sockets}
    assert named <= shipped
    wanted = {}
    for unit in REPO.glob("systemd/*.*"):
        for target in re.findall(r"^WantedBy=(\S+)$", unit.read_text(), re.MULTILINE):
            wanted[unit.name] = [target]
    found = {f"{name}.service": of.get("wantedBy") for name, of in services.items()}
    found |= {f"{name}.socket": of.get("wantedBy") for name, of in sockets.items()}
    assert {name: targets for name, targets in found.items() if targets} == wanted
    for name in "inx-sidecar", "inx-barrier", "inx-guard", "inx-instances":
        assert services[name]["stopIfChanged"] is False
    path = [package["name"] for package in services["inx-sidecar"]["path"]]
    assert {"nix", "systemd", "git"} <= set(path)
    assert services["inx-sidecar"]["environment"]["NIX_PATH"] == "nixpkgs=/etc/nixpkgs"
    assert services["inx-nix-daemon@"]["restartIfChanged"] is False
    (trigger,) = services["inx-instances"]["restartTriggers"]
    assert trigger == plain["etc"]["inx/instances.json"]
    made = {line.split()[1] for line in plain["tmpfiles"]}
    shipped_rules = (REPO / "systemd/inx.tmpfiles.conf").read_text().splitlines()
    assert made == {line.split()[1] for line in shipped_rules}
    lines = (REPO / "systemd/inx.sysctl.conf").read_text().splitlines()
    values = dict(line.split(" = ") for line in lines if not line.startswith("#"))
    assert {key: str(value) for key, value in plain["sysctl"].items()} == values


def test_the_host_may_keep_leases(evaluate: Any) -> None:
    assert evaluate("tuned")["sysctl"] == {"fs.leases-enable": 1}


def test_a_pool_and_a_network_of_the_host_are_used(evaluate: Any) -> None:
    tuned = evaluate("tuned")
    assert tuned["wrong"] == []
    profile, small = tuned["preseed"]["profiles"]
    assert small == {"name": "small"}
    assert profile["devices"]["root"]["pool"] == "fast"
    assert profile["devices"]["eth0"]["network"] == "lan"
    assert tuned["preseed"]["storage_pools"] == [{"name": "fast", "driver": "zfs"}]
    assert "networks" not in tuned["preseed"] and tuned["firewall"] == {}
    settings = tuned["etc"]["inx/config.toml"]
    assert (settings["max_builds"], settings["build_user"]) == (4, "builder")
    assert settings["allowed_flakes"] == ["/etc/nixos"] and settings["build_timeout"] == 7200
    assert tuned["users"] == ["builder"]
    assert any(line.endswith(" 0700 builder builder -") for line in tuned["tmpfiles"])


def test_each_error_of_a_host_has_a_message(evaluate: Any) -> None:
    wrong = evaluate("wrong-host")
    assert len(wrong["wrong"]) == len(WRONG_HOST)
    for message, end in zip(wrong["wrong"], WRONG_HOST, strict=True):
        assert message.endswith(end) and "\n" not in message
    (warning,) = wrong["warnings"]
    assert "use 6.0.6 or newer" in warning


# --- Declared containers ----------------------------------------------------------------------


def test_the_example_gives_the_declaration_that_host_tests_use(
    evaluate: Any, tmp_path: Path
) -> None:
    example = evaluate("example")
    assert example["wrong"] == []
    path = REPO / "tests/nix/example.json"
    assert json.loads(path.read_text()) == example["etc"]["inx/instances.json"]
    assert [one.name for one in read_declaration(str(path)).instances] == ["db", "vault", "web"]


def test_the_option_config_becomes_the_system_of_the_instance(evaluate: Any) -> None:
    modules = evaluate("modules")
    systems = {
        name: one["config"]["user.inx.system"].partition("-nixos-system-")[2]
        for name, one in instances(modules).items()
    }
    assert systems == {"one": "called-one", "two": ""}, "without a name of its own"


def test_modules_that_inx_evaluates_become_keys(evaluate: Any, tmp_path: Path) -> None:
    texts = evaluate("texts")
    assert texts["wrong"] == []
    found = {
        name: {
            key.removeprefix("user.inx."): value
            for key, value in one["config"].items()
            if key.startswith("user.inx.") and ".net." not in key
        }
        for name, one in instances(texts).items()
    }
    copied = found["literal"].pop("module")
    assert re.fullmatch(r"/nix/store/[0-9a-z]{32}-cases\.nix", copied)
    assert found == {
        "text": {
            "config": "services.nginx.enable = true;",
            "config.static-addresses": "virtualisation.inx.container.dhcp = mkDefault [ ];",
        },
        "file": {"module": "/etc/nixos/web.nix", "nixpkgs": "/srv/nixpkgs"},
        "literal": {},
        "empty": {"config": "{ }"},
        "both": {"flake": "/etc/nixos#web", "config": 'networking.hostName = "both";'},
    }
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(texts["etc"]["inx/instances.json"]))
    for one in read_declaration(str(path)).instances:
        parse_spec({k: str(v) for k, v in one.config.items()}, one.name, "/etc/nixos")


def test_every_option_becomes_keys_and_devices_of_incus(evaluate: Any, tmp_path: Path) -> None:
    everything = evaluate("everything")
    assert everything["wrong"] == []
    found = instances(everything)
    whole = found["all"]
    assert whole["profiles"] == ["small", "inx"] and whole["project"] == "work"
    assert whole["description"] == "all of it" and whole["start"] is False
    assert whole["config"] == {
        "boot.autostart": True,
        "raw.lxc": PROFILE["config"]["raw.lxc"]
        + "lxc.mount.entry = tmpfs scratch tmpfs create=dir 0 0\n"
        + "lxc.mount.entry = tmpfs var/tmp tmpfs create=dir 0 0\n"
        + "lxc.cap.drop = sys_chroot\n",
        "security.idmap.base": 2000000,
        "security.idmap.isolated": True,
        "user.inx.attr": "all",
        "user.inx.daemon": False,
        "user.inx.file": "/srv/all.nix",
        "user.inx.keep": 10,
        "user.inx.net.eth0.address": "10.7.0.2/24,fd07::2/64",
        "user.inx.net.ve1.address": "10.233.2.2",
        "user.inx.net.ve1.host_address": "10.233.2.1,fd02::1",
    }
    nic = {"type": "nic"}
    proxy = {"type": "proxy"}
    assert whole["devices"] == {
        "bind-data": {"type": "disk", "source": "/srv/data", "path": "/elsewhere", "shift": True},
        "bind-srv": {
            "type": "disk", "source": "/srv", "path": "/srv", "readonly": True, "shift": True
        },
        "dev-dev-ttyUSB0": {"type": "unix-char", "source": "/dev/ttyUSB0", "path": "/dev/ttyUSB0"},
        "eth0": nic | {
            "name": "eth0", "nictype": "bridged", "parent": "br0", "hwaddr": "de:b7:73:01:10:90"
        },
        "eth7": nic | {"name": "eth7", "nictype": "physical", "parent": "eth7"},
        "gpu": {"type": "gpu"},
        "mv-eth8": nic | {"name": "mv-eth8", "nictype": "macvlan", "parent": "eth8"},
        "port-tcp-22": proxy | {"listen": "tcp:0.0.0.0:22", "connect": "tcp:127.0.0.1:22"},
        "port-udp-5300": proxy | {"listen": "udp:0.0.0.0:5300", "connect": "udp:127.0.0.1:53"},
        "ve1": nic | {"name": "ve1", "nictype": "p2p"},
        "ve2": nic | {"name": "ve2", "nictype": "bridged", "parent": "br1"},
    }  # fmt: skip
    privileged = found["privileged"]
    assert privileged["config"]["security.privileged"] is True
    assert "shift" not in privileged["devices"]["bind-data"]
    assert privileged["devices"]["eth0"]["network"] == "incusbr0"
    assert found["same"]["config"]["raw.idmap"] == "both 0-65535 0-65535"
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(everything["etc"]["inx/instances.json"]))
    assert len(read_declaration(str(path)).instances) == 3, (
        "converge reads the file that the module writes"
    )


@pytest.mark.parametrize(
    ("version", "isolated"),
    [("6.0.6", True), ("7.0.1", True), ("7.0.2", False), ("7.3.0", True), ("7.4.0", False)],
)
def test_chosen_ids_are_those_keys_that_the_version_of_incus_takes(
    evaluate: Any, version: str, isolated: bool
) -> None:
    """Since 7.0.2 and 7.4, Incus refuses to isolate a chosen range (lxc/incus#4048)."""
    case = f"""{{
        virtualisation.inx.enable = true;
        virtualisation.incus.package.version = "{version}";
        virtualisation.inx.containers.web = {{ system = "/srv/system"; privateUsers = 2000000; }};
    }}"""
    config = instances(evaluate("ids", case))["web"]["config"]
    found = {key: config[key] for key in config if key.startswith("security.idmap.")}
    also = {"security.idmap.isolated": True} if isolated else {}
    assert found == {"security.idmap.base": 2000000} | also


def test_the_examples_of_the_page_give_what_the_page_says(evaluate: Any) -> None:
    _, members, container, declared = blocks()
    host = '{ virtualisation.inx.enable = true; networking.hostName = "host1"; }'
    cluster = evaluate("page", f"{{ imports = [ ({members}) {host} ]; }}")
    assert cluster["wrong"] == [] and len(cluster["ssh"]["serve"]["keys"]) == 1
    inside = evaluate("inside", f"let inx.nixosModules.container = {{ }}; in {container}")
    assert inside["wrong"] == []
    enabled = f"{{ imports = [ ({declared}) {{ virtualisation.inx.enable = true; }} ]; }}"
    found = evaluate("page", enabled)
    assert found["wrong"] == []
    web, db = (instances(found)[name] for name in ("web", "db"))
    assert set(web["devices"]) == {"bind-data", "port-tcp-8080"} and web["start"]
    assert "nixos-system" in web["config"]["user.inx.system"]
    assert db["devices"]["backup"]["path"] == "/backup"
    assert db["config"]["user.inx.store"] == "isolated"
    assert db["config"]["user.inx.net.eth0.gateway"] == "10.231.136.1"


def test_a_unit_starts_a_container_after_the_mounts_that_it_needs(evaluate: Any) -> None:
    mounts = evaluate("mounts")
    assert mounts["wrong"] == []
    found = instances(mounts)
    assert found["web"]["start"] is False and found["web"]["config"]["boot.autostart"] is False
    assert found["web"]["config"]["security.protection.delete"] is True
    services = mounts["services"]
    assert "inx-container-plain" not in services
    web, by_hand = services["inx-container-web"], services["inx-container-by-hand"]
    instances_unit = services["inx-instances"]["unitConfig"]
    assert instances_unit == {"WantsMountsFor": ["/srv/data", "/srv/same"]}
    assert web["unitConfig"] == {"RequiresMountsFor": ["/srv/data", "/srv/same"]}
    assert {"incus.service", "inx-instances.service"} <= set(web["after"])
    assert web["wantedBy"] == ["multi-user.target"] and by_hand["wantedBy"] == []
    assert web["restartIfChanged"] is False
    state = "incus list --project work --format csv --columns s '^web$'"
    assert web["script"] == f'[ "$({state})" = RUNNING ] || incus start --project work web\n'
    assert web["preStop"].startswith(f'[ "$({state})" != RUNNING ] || incus stop --project work ')


def put(host: Host, path: str, text: str) -> None:
    host.sh('cat >"$P"', env={"P": path}, input=text)


@pytest.fixture
def unit(host: Host, evaluate: Any) -> Iterator[Incus]:
    """A host with the declared container, its unit, and a mount unit that is not started."""
    found = evaluate("live", NEEDS_MOUNT)
    service = found["services"][f"inx-container-{NEEDING}"]
    [needed] = service["unitConfig"]["RequiresMountsFor"]
    put(host, DECLARED, json.dumps(found["etc"]["inx/instances.json"]))
    put(host, f"{UNITS}/{NEEDED_MOUNT}", "[Mount]\nWhat=tmpfs\nWhere=/srv/needed\nType=tmpfs\n")
    for verb in "script", "preStop":
        put(host, f"/root/{verb}", service[verb])
    lines = [
        "[Unit]", f"RequiresMountsFor={needed}", f"After={' '.join(service['after'])}",
        "[Service]", *(f"{key}={value}" for key, value in service["serviceConfig"].items()),
        "ExecStart=sh -e /root/script", "ExecStop=sh -e /root/preStop",
    ]  # fmt: skip
    put(host, f"{UNITS}/{NEEDING_UNIT}", "\n".join(lines).replace("=True", "=yes") + "\n")
    host.run(["systemctl", "daemon-reload"])
    host.run(["mkdir", "-p", needed])
    yield Incus(host, NEEDING)
    host.sh(
        f"""systemctl stop {NEEDING_UNIT} {NEEDED_MOUNT} || :
            incus delete -f {NEEDING} </dev/null || :
            rm -f {DECLARED} /root/script /root/preStop
            rm -f {UNITS}/{NEEDING_UNIT} {UNITS}/{NEEDED_MOUNT}
            systemctl daemon-reload"""
    )


def test_the_mount_comes_before_the_container_and_takes_it_along(unit: Incus) -> None:
    host = unit.host
    host.run([PROGRAM, "converge"])
    assert unit.state(NEEDING) == "STOPPED" and state_of(host, NEEDED_MOUNT) == "inactive"
    host.run(["systemctl", "start", NEEDING_UNIT])
    assert state_of(host, NEEDED_MOUNT) == "active"
    unit.wait_ready(NEEDING)
    host.sh("echo text >/srv/needed/file")
    assert unit.inside(NEEDING, '[ "$(cat /data/file)" = text ]')
    host.run(["systemctl", "stop", NEEDED_MOUNT])
    assert unit.state(NEEDING) == "STOPPED" and state_of(host, NEEDING_UNIT) == "inactive"
    # One that runs already is left as it is.
    host.run(["systemctl", "start", NEEDED_MOUNT])
    unit.start(NEEDING)
    host.run(["systemctl", "start", NEEDING_UNIT])
    assert unit.state(NEEDING) == "RUNNING"


def test_the_host_knows_the_addresses_that_are_declared_by_name(evaluate: Any) -> None:
    assert evaluate("mounts")["hosts"] == "10.1.2.3 web.containers\n"
    assert evaluate("everything")["hosts"].splitlines() == [
        "10.7.0.2 all.containers", "fd07::2 all.containers", "10.7.0.3 privileged.containers",
    ]  # fmt: skip
    assert evaluate("example")["hosts"] == "10.231.136.2 db.containers\n"


def test_dropped_containers_are_deleted_with_the_option(evaluate: Any) -> None:
    assert evaluate("dropped")["etc"]["inx/instances.json"]["dropped"] == "delete"


def test_each_error_of_a_container_has_a_message_with_its_name(evaluate: Any) -> None:
    messages = evaluate("wrong-containers")["wrong"]
    assert len(messages) == len(WRONG_CONTAINERS)
    for name, part in WRONG_CONTAINERS.items():
        (message,) = [m for m in messages if m.startswith(f"virtualisation.inx.containers.{name}:")]
        assert part in message


def test_an_option_of_nixos_that_inx_lacks_has_a_message(evaluate: Any) -> None:
    messages = evaluate("replaced-options")["wrong"]
    assert len(messages) == len(REPLACED_OPTIONS)
    for option, part in REPLACED_OPTIONS.items():
        (message,) = [m for m in messages if f"`{option}'" in m]
        assert message.startswith("virtualisation.inx.containers.web: ") and part in message


# --- Containers -------------------------------------------------------------------------------


def test_the_container_module_adapts_nixos(evaluate: Any) -> None:
    inside = evaluate("inside")
    assert inside["wrong"] == [] and inside["isContainer"] is True
    assert inside["nix"]["settings"]["store"] == "daemon"
    assert not inside["nix"]["gc"] and not inside["nix"]["optimise"]
    assert inside["services"]["nix-daemon"]["enable"] is False
    assert inside["sockets"]["nix-daemon"]["enable"] is False
    assert inside["services"]["console-getty"]["enable"] is True
    assert inside["packages"] == []  # nixpkgs' lxc-container.nix has a package of the same files
    assert inside["hostName"] == "" and inside["useNetworkd"] and not inside["useDHCP"]
    (network,) = inside["networks"].values()
    assert network["matchConfig"] == {"Name": "eth0"}
    assert network["networkConfig"] == {"DHCP": "yes", "KeepConfiguration": "static"}
    assert network["dhcpV4Config"] == {"ClientIdentifier": "mac", "UseHostname": False}
    assert inside["waits"] is True
    assert inside["sysctl"] == {"net.ipv4.ping_group_range": "0 65534"}
    assert inside["settings"] == {"zz-inx": {"/var/empty": {"h": {"argument": "-i"}}}}


def test_nix_works_in_a_container_with_a_store_of_its_own(evaluate: Any) -> None:
    inside = evaluate("inside-with-a-store-of-its-own")
    assert inside["wrong"] == []
    assert "store" not in inside["nix"]["settings"]
    assert inside["nix"]["gc"] and not inside["nix"]["optimise"]
    for units in ("services", "sockets"):
        assert inside[units].get("nix-daemon", {}).get("enable", True) is True


def test_a_declared_container_has_a_store_of_its_own(evaluate: Any) -> None:
    case = """{
        virtualisation.inx.enable = true;
        virtualisation.inx.containers.web = { system = "/srv/system"; store = "own"; };
        virtualisation.inx.containers.db = { system = "/srv/system"; };
        virtualisation.inx.containers.text = { configText = "{ }"; store = "own"; };
        virtualisation.inx.containers.both = { flake = "/"; configText = "{ }"; store = "own"; };
        virtualisation.inx.containers.built = { store = "own"; config = { config, ... }: {
            networking.hostName = toString config.virtualisation.inx.container.ownStore;
        }; };
    }"""
    found = {name: one["config"] for name, one in instances(evaluate("own", case)).items()}
    assert found["web"]["user.inx.store"] == "own"
    assert "user.inx.store" not in found["db"]
    told = "virtualisation.inx.container.ownStore = mkDefault true;"
    keys = {name: config.get("user.inx.config.own-store") for name, config in found.items()}
    assert keys == dict.fromkeys(found) | {"text": told}
    assert found["built"]["user.inx.system"].endswith("-nixos-system-1"), "true"


@pytest.mark.parametrize(("enabled", "adapted"), [("Y\n", True), ("N\n", False), (None, False)])
def test_sandboxing_is_taken_from_services_only_on_hosts_with_apparmor(
    evaluate: Any, tmp_path: Path, enabled: str | None, adapted: bool
) -> None:
    parameter, generator = tmp_path / "enabled", tmp_path / "lib/systemd/system-generators/lxc"
    if enabled is not None:
        parameter.write_text(enabled)
    generator.parent.mkdir(parents=True)
    generator.write_text(f"#!/bin/sh\necho $* >{tmp_path}/called\n")
    generator.chmod(0o755)
    text = evaluate("inside")["generators"]["inx-apparmor"]
    for path, here in ("/sys/module/apparmor/parameters/enabled", parameter), (
        "/distrobuilder", tmp_path,
    ):  # fmt: skip
        assert path in text
        text = text.replace(path, str(here))
    argv = ["bash", "-c", text, "generator", "normal", "early", "late"]
    assert subprocess.run(argv, check=True, capture_output=True).stderr == b""
    called = tmp_path / "called"
    assert called.exists() == adapted
    assert not adapted or called.read_text() == "normal early late\n"


def test_the_container_module_overrides_options_of_other_machines(evaluate: Any) -> None:
    inside = evaluate("inside-with-options-of-other-machines")
    assert inside["hostName"] == "fixed" and inside["networks"] == {} and not inside["waits"]
    assert not inside["nix"]["gc"] and not inside["nix"]["optimise"]
    assert not inside["etcOverlay"] and not inside["nixosInit"]
    assert inside["services"]["nix-daemon"]["enable"] is False
    users = [line for line in inside["tmpfiles"] if "alice" in line]
    assert users == [
        "d /nix/var/nix/profiles/per-user/alice 0755 alice root -",
        "d /nix/var/nix/gcroots/per-user/alice 0755 alice root -",
    ]
    assert not any("nginx" in line for line in inside["tmpfiles"])


# --- Flake and package ------------------------------------------------------------------------


def test_the_flake_has_all_outputs(host: Host, nixpkgs: str) -> None:
    text = f"import {PROJECT}/tests/nix/outputs.nix {{ }}"
    found = expression(host, text, "--read-write-mode", "-I", nixpkgs)
    assert found["outputs"] == [
        "checks", "devShells", "formatter", "nixosModules", "overlays", "packages", "templates"
    ]  # fmt: skip
    assert found["modules"] == {
        "container": "container.nix", "default": "host.nix", "host": "host.nix"
    }  # fmt: skip
    assert found["template"] is True
    assert found["checks"]["by-hand"] == {"name": "inx-by-hand", "nodes": ["host"]}
    assert found["checks"]["declared"] == {"name": "inx-declared", "nodes": ["host"]}
    package = found["package"]
    assert package["pname"] == "inx"
    assert package["dependencies"] == [
        "click", "h11", "inotify-simple", "jeepney", "logging-journald", "pyroute2", "pyyaml"
    ]  # fmt: skip
    assert package["files"] == [
        "LICENSE", "README.md", "hooks", "inx_sidecar", "nix", "profiles", "pyproject.toml",
        "systemd",
    ]  # fmt: skip
