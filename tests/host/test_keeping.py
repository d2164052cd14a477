"""An instance still starts after its system, its uuid or its Nix daemon got lost or mixed up."""

import pytest
from support.disposable import Host
from support.gc import CONFIG, SIDECAR, collect, root_directory
from support.incus import Incus

pytestmark = pytest.mark.main

COLLECT = ["nix-collect-garbage"]


def set_system_inside(incus: Incus, name: str) -> str:
    """Set a second generation inside as nixos-rebuild does. Only this instance holds its system."""
    donor = incus.launch(name=incus.name("donor"), flake=f"{incus.flake(greeting='inside')}#web")
    system = incus.get(donor, "user.inx.status.system")
    incus.run(name, "nix-env", "-p", "/nix/var/nix/profiles/system", "--set", system)
    incus("stop", "-f", donor)
    incus.host.run(["rm", "-r", root_directory(incus, donor)])
    return system


def test_a_system_made_inside_outlives_the_stop(incus: Incus, host: Host) -> None:
    name = incus.launch(flake="/etc/nixos#web")
    system = set_system_inside(incus, name)
    incus("stop", "-f", name)
    collect(host, COLLECT)
    incus.start(name)
    incus.wait_inside(name)
    assert incus.said(name, "readlink", "/run/current-system").strip() == system
    incus.eventually(
        lambda: (
            incus.get(name, "user.inx.status.generation") == "2"
            and incus.get(name, "user.inx.status.system") == system
        ),
        incus.story,
    )


def test_an_older_generation_starts_if_the_current_one_is_gone(incus: Incus, host: Host) -> None:
    flake = incus.flake(greeting="old")
    name = incus.launch(flake=f"{flake}#web")
    incus.flake(greeting="new")
    incus.set(name, "user.inx.update=2")
    incus.restart_into(name, generation=2)
    gone = incus.get(name, "user.inx.status.system")
    incus("stop", "-f", name)
    root = root_directory(incus, name)
    host.run(["rm", "-r", flake])
    incus.lose(gone, f"{root}/system-2", f"{root}/booted-system")
    incus.start(name)
    status = incus.wait_status(name, "failed: ")
    assert "flake.nix" in status and status.endswith("; started generation 1")
    incus.wait_inside(name)
    assert incus.said(name, "cat", "/etc/greeting") == "old"


def test_if_the_link_to_a_system_is_gone_the_system_still_starts(incus: Incus, host: Host) -> None:
    donor = incus.launch(name=incus.name("donor"), flake="/etc/nixos#web")
    link = f"/srv/{incus.prefix}-link"
    host.run(["ln", "-s", incus.get(donor, "user.inx.status.system"), link])
    name = incus.launch(system=link)
    host.run(["rm", link])
    incus("restart", "-f", name)
    status = incus.wait_status(name, "failed: ")
    assert link in status and status.endswith("; started generation 1")
    incus.wait_inside(name)
    assert link in incus.console(name)


def test_an_import_does_not_start_beside_its_original(incus: Incus, host: Host) -> None:
    """Incus gives the import the uuid of the instance that was exported."""
    name = incus.launch(flake="/etc/nixos#web")
    incus("export", name, f"/srv/{name}.tar.gz")
    other = incus.adopt(incus.name("import"))
    incus("import", f"/srv/{name}.tar.gz", other)
    incus("config", "unset", other, "volatile.eth0.hwaddr")
    assert incus.uuid(other) == incus.uuid(name), "this test needs equal ones"
    refused = incus.start(other, check=False)
    assert refused.returncode != 0
    incus.eventually(lambda: f"volatile.uuid of '{name}'" in incus.log(other), incus.story)
    # The original has lost nothing.
    assert "Store URL: daemon" in incus.run(name, "nix", "store", "info").stderr
    assert incus.said(name, "ls", "/dev/.inx") != ""
    roots = host.run(["ls", root_directory(incus, name)])
    assert roots.stdout.split() == ["booted-system", "links", "system-1"]
    # The command that the log advises helps.
    command = incus.log(other).partition("as by '")[2].partition("'")[0]
    host.sh(command.replace("$(uuidgen)", "$(cat /proc/sys/kernel/random/uuid)"))
    incus.eventually(lambda: incus.start(other, check=False).returncode == 0, incus.story)
    incus.wait_ready(other)
    incus.run(name, "true")


def test_without_gc_socket_no_daemon_of_an_instance_starts(incus: Incus, host: Host) -> None:
    """Such a daemon could collect garbage in the host's store without knowing the host's roots."""
    name = incus.launch(flake="/etc/nixos#web")
    host.run(["rm", "-rf", "/nix/var/nix/gc-socket"])
    assert incus.run(name, "nix", "store", "info", check=False, timeout=60).returncode != 0

    def works_again() -> bool:
        # systemd stops a socket for a while if its service fails again and again.
        incus("restart", "-f", name)
        incus.wait_inside(name)
        return incus.run(name, "nix", "store", "info", check=False).returncode == 0

    incus.eventually(works_again, incus.story)
    refused = incus.run(name, "nix-store", "--gc", check=False)
    assert "cannot bind to socket" in refused.stderr


def test_a_flakes_own_nix_configuration_is_not_accepted(incus: Incus, host: Host) -> None:
    """This is so even if the host's nix.conf accepts it."""
    directory = incus.flake()
    text = host.run(["cat", f"{directory}/flake.nix"]).stdout
    hook = f"/srv/{incus.prefix}-hook"
    host.sh('printf "#!/bin/sh\\ntouch $H-ran\\n" >$H; chmod 755 $H', env={"H": hook})
    host.sh(
        'cat >"$D/flake.nix"',
        env={"D": directory},
        input=text.replace("{", f'{{ nixConfig.post-build-hook = "{hook}";', 1),
    )
    setting = "/etc/nix/nix.conf"
    host.sh(f"cp {setting} /root/nix.conf; echo accept-flake-config = true >>{setting}")
    try:
        incus.launch(flake=f"{directory}#web", update=incus.prefix)
    finally:
        host.sh(f"mv /root/nix.conf {setting}")
    assert host.run(["test", "-e", f"{hook}-ran"], check=False).returncode == 1


def test_the_sidecar_holds_no_namespace_of_a_container_that_runs(incus: Incus, host: Host) -> None:
    """Such a descriptor would keep the file systems of an instance busy after its end."""
    name = incus.launch(flake="/etc/nixos#web")
    fds = host.sh("ls -l /proc/$(systemctl show -P MainPID inx-sidecar)/fd").stdout
    assert "mnt:[" not in fds and "user:[" not in fds
    assert incus.state(name) == "RUNNING"


def test_a_sidecar_that_cannot_take_over_lets_init_end(incus: Incus, host: Host) -> None:
    """The sidecar restarts with settings that it refuses, while an instance waits for a build."""
    text = """nixosConfigurations.web.config.system.build.toplevel = derivation {
      name = "slow"; system = deps.system;
      builder = "${deps.busybox}/bin/sleep"; args = [ "60" ]; };"""
    name = incus.init(flake=f"{incus.flake_text(text, f'/srv/{incus.prefix}')}#web")
    incus.start(name)
    incus.wait_status(name, "building")
    incus.eventually(lambda: "/nix/store/" in incus.console(name), incus.story)
    host.sh(f"mkdir -p /etc/inx; echo 'tpyo = 1' >{CONFIG}")
    try:
        host.run(["systemctl", "restart", SIDECAR])
        incus.wait_state(name, "STOPPED")
        incus.eventually(lambda: "unknown setting 'tpyo'" in incus.console(name), incus.story)
        incus.wait_log(name, "unknown setting 'tpyo'")
    finally:
        host.run(["rm", CONFIG])
