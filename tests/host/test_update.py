"""A running instance follows its configuration, and goes on as it is if that fails."""

import json
import time
from collections.abc import Callable
from functools import partial

import pytest
from support.disposable import Host
from support.incus import Incus

pytestmark = pytest.mark.life

STORES = ["shared", pytest.param("isolated", marks=pytest.mark.isolated)]


def source(incus: Incus, greeting: str, *, activate: str = "", build: str = "") -> str:
    """A flake whose system says `greeting`; `activate` and `build` are shell text."""
    return incus.flake_text(
        f"""nixosConfigurations.web.config.system.build.toplevel = import ./system.nix {{
            inherit deps; name = "web"; extra.greeting = {json.dumps(greeting)};
            activate = {json.dumps(activate)}; {build}
        }};""",
        f"/srv/{incus.prefix}",
    )


def broken(incus: Incus) -> None:
    incus.flake_text("nixosConfigurations = throw ''no such luck'';", f"/srv/{incus.prefix}")


def endless(incus: Incus) -> None:
    """The source now takes for ever to build."""
    incus.flake_text(
        f"""nixosConfigurations.web.config.system.build.toplevel = derivation {{
            name = "{incus.prefix}-endless"; system = deps.system;
            builder = "${{deps.busybox}}/bin/sh"; args = [ "-c" "while :; do :; done" ];
        }};""",
        f"/srv/{incus.prefix}",
    )


def launched(incus: Incus, greeting: str = "one", **config: str) -> str:
    return incus.launch(flake=f"{source(incus, greeting)}#web", **config)


def bump(incus: Incus, name: str, text: str = "2") -> None:
    incus.set(name, f"user.inx.update={text}")


def says(incus: Incus, name: str, greeting: str) -> bool:
    """By an exit status: output of incus exec may get lost under load."""
    script = f'[ "$(cat /etc/greeting)" = "{greeting}" ]'
    return incus.run(name, "sh", "-c", script, check=False).returncode == 0


def booted(incus: Incus, name: str, system: str) -> bool:
    script = f'[ "$(readlink -f /run/booted-system)" = {system} ]'
    return incus.run(name, "sh", "-c", script, check=False).returncode == 0


def builds(host: Host) -> str:
    """The builds that run."""
    argv = ["systemctl", "list-units", "--plain", "--no-legend", "--state=active", "inx-build-*"]
    return host.run(argv).stdout


def visible(incus: Incus, name: str) -> set[str]:
    entries = incus.host.run(["ls", f"/proc/{incus.pid(name)}/root/nix/store"]).stdout
    return {f"/nix/store/{entry}" for entry in entries.split()}


def needed(host: Host, *systems: str) -> set[str]:
    return set(host.run(["nix-store", "--query", "--requisites", *systems]).stdout.split())


@pytest.mark.parametrize("store", STORES)
def test_a_changed_source_is_built_and_activated_and_pid_1_stays(
    incus: Incus, host: Host, store: str
) -> None:
    name = launched(incus, store=store)
    before, old = incus.pid(name), incus.get(name, "user.inx.status.system")
    incus.sh(name, f"{old}/sw/bin/sleep 1000 >/dev/null 2>&1 & echo $! >/root/sleeper")
    source(incus, "two")
    bump(incus, name)
    incus.wait_generation(name, "2")
    new = incus.get(name, "user.inx.status.system")
    assert says(incus, name, "two") and booted(incus, name, old)
    assert incus.pid(name) == before and new != old
    incus.sh(name, "kill -0 $(cat /root/sleeper)")
    if store == "isolated":
        assert visible(incus, name) == needed(host, old, new)
    incus("restart", "-f", name)
    incus.wait_ready(name)
    assert says(incus, name, "two") and booted(incus, name, new)
    if store == "isolated":
        assert visible(incus, name) == needed(host, new)


@pytest.mark.isolated
def test_the_view_of_services_with_mounts_of_their_own_grows_too(incus: Incus, host: Host) -> None:
    name = launched(incus, store="isolated")
    old = incus.get(name, "user.inx.status.system")
    incus.sh(
        name,
        f"""mkfifo /root/go; {old}/sw/bin/unshare -m --propagation slave sh -c '
            read word </root/go; ls /nix/store >/root/seen; echo done >/root/go
        ' >/dev/null 2>&1 &""",
    )
    source(incus, "two")
    bump(incus, name)
    incus.wait_generation(name, "2")
    incus.sh(name, "echo go >/root/go; read word </root/go")
    new = incus.get(name, "user.inx.status.system")
    incus.sh(name, f"grep -qx {new.removeprefix('/nix/store/')} /root/seen")


@pytest.mark.isolated
def test_an_update_shows_nothing_that_the_container_chose(incus: Incus, host: Host) -> None:
    """What ran before stays in view, but a link says only what root inside wants it to say."""
    other = incus.launch(flake="/etc/nixos#second", name=incus.name("other"))
    foreign = incus.get(other, "user.inx.status.system")
    name = launched(incus, store="isolated")
    incus.sh(name, f"ln -sfn {foreign} /nix/var/nix/profiles/system-1-link")
    source(incus, "two")
    bump(incus, name)
    incus.eventually(lambda: says(incus, name, "two"), incus.story)
    assert incus.get(name, "user.inx.status.system") in visible(incus, name)
    assert foreign not in visible(incus, name)


@pytest.mark.parametrize("store", STORES)
def test_a_system_that_is_there_and_a_generation_are_activated_at_once(
    incus: Incus, host: Host, store: str
) -> None:
    name = launched(incus, store=store)
    first = incus.get(name, "user.inx.status.system")
    source(incus, "two")
    bump(incus, name)
    incus.wait_generation(name, "2")
    begin = time.monotonic()
    incus.set(name, "user.inx.generation=1")
    incus.wait_generation(name, "1")
    assert says(incus, name, "one")
    incus("config", "unset", name, "user.inx.generation")
    incus.wait_generation(name, "2")
    incus.set(name, f"user.inx.system={first}", "user.inx.flake=")
    incus.wait_generation(name, "3")
    assert says(incus, name, "one")
    assert time.monotonic() - begin < 20
    assert len([line for line in journal(host, name) if "building" in line]) <= 2


def journal(host: Host, name: str) -> list[str]:
    """What the sidecar said of the instance."""
    text = host.run(["journalctl", "-u", "inx-sidecar", "-o", "cat", "--no-pager"]).stdout
    return [line for line in text.splitlines() if line.startswith(f"{name}: ")]


def current(incus: Incus, name: str) -> str:
    """Where the profile leads."""
    rootfs = incus.host.run(["cat", f"/run/inx/{incus.uuid(name)}/running.json"]).stdout
    profiles = f"{json.loads(rootfs)['facts']['rootfs']}/nix/var/nix/profiles"
    return incus.host.sh(f"cd {profiles}; readlink $(readlink system)").stdout.strip()


def test_boot_waits_for_the_next_start(incus: Incus) -> None:
    name = launched(incus, activate="boot")
    old = current(incus, name)
    source(incus, "two")
    bump(incus, name)
    incus.eventually(lambda: current(incus, name) != old, incus.story)
    incus.wait_generation(name, "1")
    assert says(incus, name, "one") and incus.get(name, "user.inx.status.system") == old
    incus("restart", "-f", name)
    incus.wait_ready(name)
    assert says(incus, name, "two")


@pytest.mark.parametrize("store", STORES)
def test_a_test_is_gone_at_the_next_start(incus: Incus, host: Host, store: str) -> None:
    name = launched(incus, activate="test", store=store)
    source(incus, "two")
    bump(incus, name)
    incus.eventually(lambda: says(incus, name, "two"), incus.story)
    host.run(["nix-collect-garbage"])
    assert says(incus, name, "two")
    incus("restart", "-f", name)
    incus.wait_generation(name, "1")
    incus.wait_ready(name)
    host.run(["systemctl", "restart", "inx-sidecar"])
    incus.set(name, "user.other=1")
    incus.wait_generation(name, "1")
    assert says(incus, name, "one"), "it was tried again"
    incus.set(name, "user.inx.activate=switch")
    incus.wait_generation(name, "2")
    assert says(incus, name, "two")


@pytest.mark.parametrize("store", STORES)
def test_what_runs_on_trial_outlives_a_failed_update(incus: Incus, host: Host, store: str) -> None:
    name = launched(incus, activate="test", store=store)
    source(incus, "two")
    bump(incus, name)
    incus.eventually(lambda: says(incus, name, "two"), incus.story)
    source(incus, "three", activate="[ ! -e /run/current-system ] || exit 1")
    bump(incus, name, "3")
    incus.wait_status(name, "failed: activating")
    trial = incus.get(name, "user.inx.status.system")
    assert incus.get(name, "user.inx.status.generation") == ""
    host.run(["/opt/inx/bin/inx-sidecar", "sync"])
    host.run(["nix-collect-garbage"])
    incus.sh(name, f"{trial}/sw/bin/true; [ $(cat {trial}/etc/greeting) = two ]")
    incus("restart", "-f", name)
    incus.wait_ready(name)
    host.run(["/opt/inx/bin/inx-sidecar", "sync"])
    roots = host.run(["ls", f"/nix/var/nix/gcroots/inx/{name}.{incus.uuid(name)}"]).stdout.split()
    assert set(roots) == {"booted-system", "links", "system-1"}


def test_none_is_left_to_the_next_start(incus: Incus, host: Host) -> None:
    name = launched(incus, activate="none")
    source(incus, "two")
    bump(incus, name)
    host.run(["/opt/inx/bin/inx-sidecar", "sync"])
    assert says(incus, name, "one") and incus.status(name) == "ready"
    incus("restart", "-f", name)
    incus.wait_generation(name, "2")
    incus.wait_ready(name)
    assert says(incus, name, "two")


@pytest.mark.parametrize("store", STORES)
def test_a_build_that_fails_changes_nothing(incus: Incus, host: Host, store: str) -> None:
    name = launched(incus, store=store)
    before = incus.pid(name)
    broken(incus)
    bump(incus, name)
    said = incus.wait_status(name, "failed: cannot build")
    assert "no such luck" in said and said.endswith("; generation 1 runs on")
    assert says(incus, name, "one") and incus.pid(name) == before
    before_that = journal(host, name)
    incus.set(name, "user.other=1")
    host.run(["systemctl", "restart", "inx-sidecar"])
    incus.set(name, "user.other=2")
    source(incus, "two")
    bump(incus, name, "3")
    incus.wait_generation(name, "2")
    assert says(incus, name, "two")
    more = journal(host, name)[len(before_that) :]
    assert len([line for line in more if "building the system" in line]) == 1, more


@pytest.mark.parametrize("store", STORES)
def test_an_activation_that_fails_leaves_the_generation_from_before(
    incus: Incus, store: str
) -> None:
    name = launched(incus, store=store)
    old = incus.get(name, "user.inx.status.system")
    source(incus, "two", activate="[ ! -e /run/current-system ] || { echo no disk; exit 1; }")
    bump(incus, name)
    said = incus.wait_status(name, "failed: activating ")
    assert "ended with status 1: no disk; generation 1 runs on" in said
    assert incus.get(name, "user.inx.status.system") == old
    incus.sh(name, f"[ $(readlink -f /nix/var/nix/profiles/system) = {old} ]")
    incus("restart", "-f", name)
    incus.wait_ready(name)
    assert says(incus, name, "two"), "a start tries again"


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (2, "parts of the activation failed"),
        (3, "some units could not be reloaded"),
        (4, "some units failed"),
        (100, "it takes a restart of the instance to switch"),
    ],
)
def test_what_can_be_tolerated_is_told(incus: Incus, status: int, said: str) -> None:
    name = launched(incus)
    source(
        incus,
        "two",
        activate=f"[ ! -e /run/current-system ] || {{ echo x.service; exit {status}; }}",
    )
    bump(incus, name)
    assert incus.wait_status(name, r"ready \(") == f"ready ({said}: x.service)"
    assert incus.get(name, "user.inx.status.generation") == "2"
    assert says(incus, name, "two")


def test_a_system_that_still_boots_is_waited_for(incus: Incus) -> None:
    slow = "[ -e /run/current-system ] || sleep 4"
    name = incus.init(flake=f"{source(incus, 'one', activate=slow)}#web")
    incus.start(name)
    incus.wait_status(name, "ready")
    source(incus, "two")
    bump(incus, name)
    incus.wait_generation(name, "2")
    assert says(incus, name, "two")
    system = incus.get(name, "user.inx.status.system")
    incus.sh(name, f"[ $(readlink /run/current-system) = {system} ]")


def test_systemd_is_waited_for_until_it_has_booted(incus: Incus, host: Host) -> None:
    def slow(greeting: str) -> str:
        # Until it has booted there are jobs: is-system-running then says "starting".
        return incus.flake_text(
            f"""nixosConfigurations.web.config.system.build.toplevel = (import ./systemd.nix {{
                inherit deps; name = "web"; extra = {{
                    greeting = {json.dumps(greeting)};
                    "systemd/system/slow.service" = ''
                        [Service]
                        Type=oneshot
                        RemainAfterExit=yes
                        ExecStart=/run/current-system/sw/bin/sleep 6
                    '';
                    "systemd/system/multi-user.target.d/slow.conf" = ''
                        [Unit]
                        Wants=slow.service
                        After=slow.service
                    '';
                }};
            }});""",
            f"/srv/{incus.prefix}",
        )

    name = incus.init(flake=f"{slow('one')}#web")
    incus.start(name)
    incus.wait_status(name, "ready")
    slow("two")
    bump(incus, name)
    incus.wait_generation(name, "2")
    incus.sh(name, "[ $(cat /etc/greeting) = two ]; systemctl is-active slow.service")


def failed_anew(incus: Incus, name: str, before: str) -> bool:
    said = incus.status(name)
    return said.startswith("failed: activating") and said != before


def test_the_last_good_generation_outlives_failures(incus: Incus) -> None:
    name = launched(incus, keep="1")
    old = current(incus, name)
    said = ""
    for number in "23":
        source(incus, number, activate="[ ! -e /run/current-system ] || exit 1")
        bump(incus, name, number)
        incus.eventually(partial(failed_anew, incus, name, said), incus.story)
        said = incus.status(name)
        assert current(incus, name) == old
        incus.sh(
            name,
            '[ "$(echo /nix/var/nix/profiles/system-*-link)" = '
            "/nix/var/nix/profiles/system-1-link ]",
        )
    source(incus, "four")
    bump(incus, name, "4")
    incus.wait_generation(name, "2")
    incus.sh(name, "[ ! -L /nix/var/nix/profiles/system-1-link ]")


def test_a_system_that_cannot_be_switched_to_is_told(incus: Incus) -> None:
    name = launched(incus)
    incus.flake_text(
        f"""nixosConfigurations.web.config.system.build.toplevel = derivation {{
            name = "{incus.prefix}-no-switch"; system = deps.system;
            builder = "${{deps.busybox}}/bin/sh";
            args = [ "-c" "${{deps.busybox}}/bin/busybox mkdir $out; : >$out/init" ];
        }};""",
        f"/srv/{incus.prefix}",
    )
    bump(incus, name)
    said = incus.wait_status(name, "failed: ")
    assert "has no bin/switch-to-configuration" in said and "restart it" in said
    assert says(incus, name, "one")


def test_links_that_the_container_writes_start_no_build(incus: Incus, host: Host) -> None:
    name = launched(incus)
    before = journal(host, name)
    incus.sh(name, "ln -sfn forged /nix/var/nix/profiles/system-source")
    for number in range(3):
        incus.set(name, f"user.other={number}")
    host.run(["systemctl", "restart", "inx-sidecar"])
    incus.sh(name, "rm /nix/var/nix/profiles/system-*; mount -t tmpfs none /nix/var/nix/profiles")
    incus.set(name, "user.other=3")
    incus.set(name, "user.inx.typo=x")
    incus.wait_status(name, "failed: ")
    assert not [line for line in journal(host, name)[len(before) :] if "building" in line]


def test_what_holds_from_start_to_stop(incus: Incus, host: Host) -> None:
    """The store, what is included and the daemon are those of the start, also for an update."""
    included = host.run(["nix-store", "--add", "/etc/hosts"]).stdout.strip()
    name = launched(incus, store="isolated", store_include=included)
    old = incus.get(name, "user.inx.status.system")
    incus.set(name, "user.inx.store=shared", "user.inx.store.include=")
    source(incus, "two")
    bump(incus, name)
    incus.wait_generation(name, "2")
    new = incus.get(name, "user.inx.status.system")
    for _ in range(2):
        host.run(["/opt/inx/bin/inx-sidecar", "sync"])
        host.run(["nix-collect-garbage"])
        assert visible(incus, name) == needed(host, old, new, included)
        incus.sh(name, f"cat {included} >/dev/null; ! nix store info 2>/dev/null")
        host.run(["systemctl", "restart", "inx-sidecar"])
    incus("restart", "-f", name)
    incus.wait_ready(name)
    incus.sh(name, "nix store info")
    incus.set(name, "user.inx.store=isolated")
    source(incus, "three")
    bump(incus, name, "3")
    incus.wait_generation(name, "3")
    incus.sh(name, "nix store info")


@pytest.mark.isolated
def test_the_view_holds_what_booted_what_was_before_and_what_is_new(
    incus: Incus, host: Host
) -> None:
    name = launched(incus, store="isolated")
    seen = [incus.get(name, "user.inx.status.system")]
    for number in "234":
        source(incus, number)
        bump(incus, name, number)
        incus.wait_generation(name, number)
        seen.append(incus.get(name, "user.inx.status.system"))
    assert visible(incus, name) == needed(host, seen[0], *seen[2:])


def test_an_activation_goes_on_after_the_sidecar_died(incus: Incus, host: Host) -> None:
    name = launched(incus)
    source(
        incus, "two", activate="[ ! -e /run/current-system ] || until [ -e /root/go ]; do :; done"
    )
    bump(incus, name)
    begun = ["test", "-e", "/run/inx-activation.log"]
    incus.eventually(lambda: incus.run(name, *begun, check=False).returncode == 0, incus.story)
    kill_the_sidecar(host)
    incus.sh(name, "touch /root/go")
    incus.eventually(
        lambda: incus.get(name, "user.inx.status.generation") == "2" and says(incus, name, "two"),
        incus.story,
    )
    incus.wait_generation(name, "2")


def test_a_fallback_is_told_also_where_nothing_is_to_be_done(incus: Incus) -> None:
    name = launched(incus, activate="none")
    broken(incus)
    bump(incus, name)
    incus("restart", "-f", name)
    said = incus.wait_status(name, "failed: cannot build")
    incus.set(name, "user.other=1")
    incus("config", "unset", name, "user.other")
    assert incus.status(name) == said and said.endswith("; started generation 1")


def test_a_system_that_is_nowhere_is_told_though_another_is_activated(incus: Incus) -> None:
    name = launched(incus)
    source(incus, "two")
    bump(incus, name)
    incus.wait_generation(name, "2")
    incus.set(name, "user.inx.generation=1")
    incus.wait_generation(name, "1")
    incus.set(name, "user.inx.generation=", "user.inx.flake=", "user.inx.system=/srv/nowhere")
    said = incus.wait_status(name, "failed: ")
    assert "/srv/nowhere" in said and said.endswith("; generation 2 runs on")
    assert says(incus, name, "two")


def test_a_bad_wish_ends_an_init_that_waits(incus: Incus, host: Host) -> None:
    endless(incus)
    name = incus.init(flake=f"/srv/{incus.prefix}#web")
    incus.start(name)
    incus.eventually(lambda: incus.uuid(name) in builds(host), incus.story)
    incus.set(name, "user.inx.generation=first")
    incus.wait_state(name, "STOPPED")
    assert "user.inx.generation is 'first'" in incus.wait_status(name, "failed: ")
    assert builds(host) == ""


def test_a_newer_wish_ends_the_build_of_an_older_one(incus: Incus, host: Host) -> None:
    name = launched(incus)
    endless(incus)
    bump(incus, name)
    incus.eventually(lambda: incus.uuid(name) in builds(host), incus.story)
    source(incus, "three")
    bump(incus, name, "3")
    incus.wait_generation(name, "2")
    assert says(incus, name, "three")
    assert builds(host) == ""


def test_a_wish_taken_back_ends_its_build(incus: Incus, host: Host) -> None:
    name = launched(incus)
    endless(incus)
    bump(incus, name)
    incus.eventually(lambda: incus.uuid(name) in builds(host), incus.story)
    incus.wait_status(name, "building")
    incus("config", "unset", name, "user.inx.update")
    incus.wait_generation(name, "1")
    assert builds(host) == ""


def test_a_newer_wish_is_built_for_an_init_that_waits(incus: Incus, host: Host) -> None:
    source(incus, "one")
    endless(incus)
    name = incus.init(flake=f"/srv/{incus.prefix}#web")
    incus.start(name)
    incus.eventually(lambda: incus.uuid(name) in builds(host), incus.story)
    source(incus, "two")
    bump(incus, name)
    incus.wait_generation(name, "1")
    incus.wait_ready(name)
    assert says(incus, name, "two")


def kill_the_sidecar(host: Host) -> None:
    """Also one that is just coming up again."""
    host.sh(
        """until pid=$(systemctl show --property=MainPID --value inx-sidecar); [ "$pid" != 0 ]; do
               sleep 0.05
           done
           kill -9 "$pid" """
    )


def restart_incus(host: Host) -> None:
    host.run(["systemctl", "restart", "incus"])


def stop_the_sidecar_while_it_changes(host: Host) -> None:
    host.run(["systemctl", "restart", "inx-sidecar"])


@pytest.mark.parametrize(
    "disturb", [kill_the_sidecar, restart_incus, stop_the_sidecar_while_it_changes]
)
def test_a_lost_event_or_build_heals(
    incus: Incus, host: Host, disturb: Callable[[Host], None]
) -> None:
    name = launched(incus)
    endless(incus)
    bump(incus, name)
    incus.eventually(lambda: incus.uuid(name) in builds(host), incus.story)
    source(incus, "three")
    disturb(host)
    bump(incus, name, "3")
    disturb(host)
    incus.eventually(lambda: says(incus, name, "three"), incus.story)
    incus.wait_generation(name, "2")
    assert builds(host) == ""


def test_a_change_while_the_sidecar_is_down_is_found(incus: Incus, host: Host) -> None:
    name = launched(incus)
    source(incus, "two")
    host.run(["systemctl", "stop", "inx-sidecar.socket", "inx-sidecar.service"])
    bump(incus, name)
    host.run(["systemctl", "start", "inx-sidecar.socket", "inx-sidecar.service"])
    incus.wait_generation(name, "2")


def test_what_changes_nothing_builds_nothing(incus: Incus, host: Host) -> None:
    name = launched(incus)
    before = journal(host, name)
    incus.set(name, "user.other=1", "user.inx.keep=7")
    incus("profile", "set", "inx", "user.other=1")
    incus("profile", "unset", "inx", "user.other")
    incus.set(name, "user.inx.typo=x")
    said = incus.wait_status(name, "failed: ")
    assert "user.inx.typo" in said and said.endswith("; generation 1 runs on")
    incus("config", "unset", name, "user.inx.typo")
    incus.wait_generation(name, "1")
    said_since = journal(host, name)[len(before) :]
    assert said_since and all("user.inx.typo" in line for line in said_since), said_since


def test_a_system_chosen_inside_is_left_alone(incus: Incus) -> None:
    name = launched(incus)
    source(incus, "two")
    bump(incus, name)
    incus.wait_generation(name, "2")
    profile = "/nix/var/nix/profiles/system"
    incus.sh(
        name,
        f"nix-env -p {profile} --switch-generation 1; {profile}/bin/switch-to-configuration switch",
    )
    incus.set(name, "user.other=1")
    incus.eventually(lambda: incus.get(name, "user.inx.status.generation") == "1", incus.story)
    assert says(incus, name, "one")


def test_a_new_instance_gets_no_status_of_one_that_had_its_name(incus: Incus) -> None:
    """What runs is told a moment after it does, perhaps when the instance has been deleted."""
    name = launched(incus)
    source(incus, "two")
    bump(incus, name)
    incus.eventually(lambda: says(incus, name, "two"), incus.story)
    source(incus, "three")
    incus("delete", "-f", name)
    incus.init(name=name, flake=f"/srv/{incus.prefix}#web")
    until = time.monotonic() + 3
    while time.monotonic() < until:
        assert incus.status(name) == ""
    incus.start(name)
    incus.wait_generation(name, "1")
    assert says(incus, name, "three")


def test_a_description_outlives_what_is_told(incus: Incus) -> None:
    name = launched(incus)
    incus.set(name, "--property", "description=of its operator")
    source(incus, "two")
    bump(incus, name)
    incus.wait_generation(name, "2")
    assert incus.info(name)["description"] == "of its operator"


def test_what_could_not_be_decided_for_a_moment_is_decided_later(incus: Incus, host: Host) -> None:
    """Nothing happens in between that would tell the sidecar to look again."""
    name = launched(incus)
    source(incus, "two")
    sidecar = host.run(["systemctl", "show", "-P", "MainPID", "inx-sidecar"]).stdout.strip()
    within, database = ["nsenter", "-m", "-t", sidecar], "/nix/var/nix/db/db.sqlite"
    host.run([*within, "mount", "--bind", "/dev/null", database])
    try:
        bump(incus, name)
        said = incus.wait_status(name, "failed: cannot read Nix's database")
        assert "; generation 1 runs on" in said
    finally:
        host.run([*within, "umount", database])
    incus.wait_generation(name, "2")
    assert says(incus, name, "two")
