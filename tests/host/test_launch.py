"""From `incus launch` to a running system, for every source that user.inx.* can name."""

import pytest
from support.disposable import Host
from support.incus import Incus
from support.services import stopped_nix_daemon
from support.store import build_system, collect

pytestmark = pytest.mark.main


def test_launch_with_the_default_flake_and_the_instances_name(incus: Incus) -> None:
    name = incus.init(name="web")
    assert incus.start(name).stderr == ""
    incus.wait_ready(name)
    system = incus.said(name, "readlink", "/run/current-system").strip()
    assert "-nixos-system-web-" in system
    assert incus.get(name, "user.inx.status.system") == system
    assert incus.get(name, "user.inx.status.generation") == "1"


@pytest.mark.sid
def test_launch_from_a_flake_with_an_attribute(incus: Incus) -> None:
    flake = incus.flake("some.name", greeting="from an attribute")
    name = incus.launch(flake=f"{flake}#some.name")
    assert incus.said(name, "cat", "/etc/greeting") == "from an attribute"


def test_launch_from_a_flake_by_url(incus: Incus) -> None:
    name = incus.launch(flake=f"path:{incus.flake(incus.name())}")
    assert incus.state(name) == "RUNNING"


def test_launch_from_a_file(incus: Incus) -> None:
    directory = incus.flake()
    path = f"{directory}/systems.nix"
    text = """let
      gathered = builtins.fromJSON (builtins.readFile ./deps.json);
      deps = builtins.mapAttrs (n: v: if n == "system" then v else builtins.storePath v) gathered;
    in { %s = import ./system.nix { name = "by-file"; inherit deps; }; }
    """
    incus.host.sh('cat >"$P"', env={"P": path}, input=text % incus.prefix)
    name = incus.launch(file=path)
    assert "by-file" in incus.said(name, "readlink", "/run/current-system")
    other = incus.launch(name=incus.name("b"), file=path, attr=incus.prefix)
    assert incus.get(other, "user.inx.status.system") == incus.get(name, "user.inx.status.system")


def built(incus: Incus, greeting: str) -> str:
    """A link on the host to a system that the host has built."""
    link = f"/srv/{incus.prefix}-result"
    build_system(incus.host, incus.flake("built", greeting=greeting), link, "built")
    return link


def test_launch_from_a_store_path(incus: Incus) -> None:
    system = incus.host.run(["readlink", built(incus, "path")]).stdout.strip()
    name = incus.launch(system=system)
    assert incus.said(name, "readlink", "/run/current-system").strip() == system


def test_launch_from_a_link_follows_the_link_at_every_start(incus: Incus) -> None:
    link = built(incus, "first")
    name = incus.launch(system=link)
    assert incus.said(name, "cat", "/etc/greeting") == "first"
    built(incus, "second")
    incus.restart_into(name, generation=2)
    assert incus.said(name, "cat", "/etc/greeting") == "second"


def test_launch_the_empty_image(incus: Incus) -> None:
    """Some clients need the name of an image."""
    name = incus.adopt(incus.name())
    flake = incus.flake(name)
    incus("launch", "inx", name, "--profile", "inx", "-c", f"user.inx.flake={flake}")
    incus.wait_ready(name)
    images = incus.json("image", "list", "--format", "json")
    assert next(image["size"] for image in images if image["aliases"][0]["name"] == "inx") < 2000


def test_a_start_without_a_change_evaluates_nothing(incus: Incus, host: Host) -> None:
    flake = incus.flake()
    name = incus.launch(flake=f"{flake}#web")
    incus("stop", name)
    host.run(["rm", "-r", flake])
    with stopped_nix_daemon(host):
        incus.start(name)
        incus.wait_inside(name)
        assert incus.run(name, "cat", "/etc/NIXOS").returncode == 0
        incus.wait_status(name, "ready$")


def test_a_start_needs_no_python_and_a_refusal_tells_its_reason_by_it(
    incus: Incus, host: Host
) -> None:
    name = incus.launch(flake="/etc/nixos#web")
    incus("stop", name)
    hook = "/opt/inx/libexec/inx/hook"
    host.run(["mv", hook, f"{hook}.away"])
    try:
        incus.start(name)
    finally:
        host.run(["mv", f"{hook}.away", hook])
    incus("stop", "-f", name)
    incus("config", "set", name, "user.inx.keep=none")
    assert incus.start(name, check=False).returncode != 0
    log = incus("info", name, "--show-log").stdout
    assert log.count("inx - user.inx.keep") == 1, log
    assert host.sh("ls /run/inx/hooks/in").stdout == ""


def test_a_changed_source_is_built_at_the_next_start(incus: Incus) -> None:
    flake = incus.flake("one", "two")
    name = incus.launch(flake=f"{flake}#one")
    incus.set(name, f"user.inx.flake={flake}#two")
    incus.restart_into(name, generation=2)
    assert "-two-" in incus.said(name, "readlink", "/run/current-system")


def test_a_new_update_value_builds_the_same_source_again(incus: Incus) -> None:
    name = incus.launch(flake=f"{incus.flake(greeting='old')}#web")
    incus.flake(greeting="new")
    incus.restart_into(name, generation=1)
    assert incus.said(name, "cat", "/etc/greeting") == "old"
    incus.set(name, "user.inx.update=2")
    incus.restart_into(name, generation=2)
    assert incus.said(name, "cat", "/etc/greeting") == "new"


@pytest.mark.sid
def test_a_failed_rebuild_starts_the_last_good_generation_and_says_so(incus: Incus) -> None:
    name = incus.launch(flake=f"{incus.flake()}#web")
    incus("stop", name)
    incus.set(name, "user.inx.flake=/srv/gone#web")
    incus.start(name)
    status = incus.wait_status(name, "failed: ")
    assert "started generation 1" in status and "/srv/gone" in status
    incus.wait_inside(name)
    assert "/srv/gone" in incus.console(name)


def test_a_rebuild_that_gives_the_same_system_is_no_new_generation(incus: Incus) -> None:
    name = incus.launch(flake=f"{incus.flake()}#web")
    incus.set(name, "user.inx.update=again")
    incus.restart_into(name, generation=1)
    links = incus.said(name, "sh", "-euc", "ls /nix/var/nix/profiles").split()
    assert links == ["system", "system-1-link", "system-1-seal", "system-source"]


def test_old_generations_are_pruned_to_keep(incus: Incus) -> None:
    name = incus.launch(flake=f"{incus.flake(greeting='0')}#web", keep="2")
    for number in range(2, 5):
        incus.flake(greeting=str(number))
        incus.set(name, f"user.inx.update={number}")
        incus.restart_into(name, generation=number)
    links = incus.said(name, "sh", "-euc", "ls /nix/var/nix/profiles").split()
    assert [link for link in links if link.endswith("-link")] == ["system-3-link", "system-4-link"]
    root = f"/nix/var/nix/gcroots/inx/{name}.{incus.uuid(name)}"
    kept = ["booted-system", "links", "system-3", "system-4"]
    incus.eventually(
        lambda: incus.host.run(["ls", root]).stdout.split() == kept,
        lambda: incus.host.run(["ls", "-l", root]).stdout,
    )


def test_a_generation_can_be_pinned_and_released(incus: Incus) -> None:
    name = incus.launch(flake=f"{incus.flake(greeting='one')}#web")
    incus.flake(greeting="two")
    incus.set(name, "user.inx.update=2")
    incus.restart_into(name, generation=2)
    incus.set(name, "user.inx.generation=1")
    incus.restart_into(name, generation=1)
    assert incus.said(name, "cat", "/etc/greeting") == "one"
    incus.set(name, "user.inx.generation=")
    incus.restart_into(name, generation=2)
    assert incus.said(name, "cat", "/etc/greeting") == "two"
    incus("stop", name)
    incus.set(name, "user.inx.generation=7")
    assert incus.start(name, check=False).returncode != 0
    incus.wait_log(name, "user.inx.generation is 7")
    assert incus.wait_status(name, "failed: user.inx.generation is 7")


@pytest.mark.sid
def test_running_and_stopped_systems_survive_a_collection(incus: Incus, host: Host) -> None:
    running = incus.launch(flake=f"{incus.flake(greeting='keep me')}#web")
    stopped = incus.launch(name=incus.name("s"), flake=f"/srv/{incus.prefix}#web", update="1")
    incus("stop", stopped)
    collect(host)
    assert incus.said(running, "cat", "/etc/greeting") == "keep me"
    incus.start(stopped)
    incus.wait_inside(stopped)
    assert incus.said(stopped, "cat", "/etc/greeting") == "keep me"


def test_a_switch_inside_is_respected_by_the_next_start(incus: Incus) -> None:
    """As nixos-rebuild does: a new generation by nix-env, then switch-to-configuration."""
    name = incus.launch(flake=f"{incus.flake(greeting='mine')}#web")
    other = incus.launch(name=incus.name("b"), flake="/etc/nixos#second")
    system = incus.get(other, "user.inx.status.system")
    incus.run(name, "nix-env", "--profile", "/nix/var/nix/profiles/system", "--set", system)
    incus.run(name, f"{system}/bin/switch-to-configuration", "switch")
    assert (
        "2   "
        in incus.sh(name, "nix-env --list-generations -p /nix/var/nix/profiles/system").stdout
    )
    incus.restart_into(name, generation=2)
    assert incus.said(name, "readlink", "/run/current-system").strip() == system
    incus.sh(name, "nix-env --rollback -p /nix/var/nix/profiles/system")
    incus.restart_into(name, generation=1)
    assert incus.said(name, "cat", "/etc/greeting") == "mine"


def test_a_collected_system_is_built_again(incus: Incus) -> None:
    """The same happens after an import on a host that never had the system."""
    name = incus.launch(flake=f"{incus.flake(greeting='again')}#web")
    incus("stop", name)
    system = incus.get(name, "user.inx.status.system")
    incus.lose(system, f"/nix/var/nix/gcroots/inx/{name}.{incus.uuid(name)}")
    incus.start(name)
    incus.wait_inside(name)
    incus.wait_ready(name)
    assert incus.said(name, "cat", "/etc/greeting") == "again"
    assert incus.get(name, "user.inx.status.generation") == "1"
