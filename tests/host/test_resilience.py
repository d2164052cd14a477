"""What dies, is restarted, missing or misconfigured, and what the operator is told of it."""

import os
import re
import time
from collections.abc import Callable, Iterator

import pytest
from support.disposable import Host
from support.incus import Incus

pytestmark = pytest.mark.main

CONFIG = "/etc/inx/config.toml"
UNITS = ["inx-sidecar.socket", "inx-sidecar.service"]


@pytest.fixture
def settings(host: Host) -> Iterator[Callable[[str], None]]:
    """Write /etc/inx/config.toml; after the test there is none."""
    yield lambda text: write(host, CONFIG, text)
    host.run(["rm", "-f", CONFIG])


@pytest.fixture(scope="module")
def overlay() -> Iterator[Host]:
    """A host whose store lies on a file system without idmapped mounts."""
    with Host.up(f"test-{os.getpid()}-overlay", overlay_store=True) as host:
        yield host


@pytest.fixture(scope="module")
def spare() -> Iterator[Host]:
    """A host to take inx away from."""
    with Host.up(f"test-{os.getpid()}-spare") as host:
        yield host


def write(host: Host, path: str, text: str) -> None:
    host.sh('cat >"$P"', env={"P": path}, input=text)


def check(host: Host) -> tuple[int, list[str]]:
    """What `inx-sidecar check` ends with, and what it finds fault with."""
    done = host.run(["/opt/inx/bin/inx-sidecar", "check"], check=False)
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert {line[:6] for line in lines} <= {"ok    ", "FAIL  "}
    return done.returncode, [line[6:] for line in lines if line.startswith("FAIL")]


def refusal(incus: Incus, name: str) -> str:
    """The one sentence of inx in the log that Incus shows after a start that failed."""
    assert incus.start(name, check=False).returncode != 0
    said = re.findall(r"ERROR    inx - (.*)", incus.log(name))
    assert len(said) == 1, incus.log(name)
    return str(said[0])


def slow(incus: Incus, seconds: float, *, same: bool = False) -> str:
    """A flake whose system takes `seconds` to build; with `same`, it is that of /etc/nixos#web."""
    nap = f"""derivation {{
        name = "nap-{incus.prefix}";
        inherit (deps) system;
        builder = "${{deps.busybox}}/bin/sh";
        args = [ "-c" "${{deps.busybox}}/bin/sleep {seconds}; echo >$out" ];
    }}"""
    extra = "" if same else f'extra.slow = "${{{nap}}}";'
    system = f'import ./system.nix {{ inherit deps; name = "web"; {extra} }}'
    first = f"builtins.readFile ({nap})" if same else "null"
    toplevel = f"builtins.seq ({first}) ({system})"
    return incus.flake_text(
        f"nixosConfigurations.web.config.system.build.toplevel = {toplevel};",
        f"/srv/{incus.prefix}-slow",
    )


def launch_slowly(incus: Incus, flake: str) -> str:
    """An instance whose init waits for a build that runs."""
    name = incus.init(flake=f"{flake}#web")
    incus.start(name)
    wait_building(incus, name)
    return name


def wait_building(incus: Incus, name: str) -> None:
    unit = f"inx-build-{incus.uuid(name)}.service"
    incus.eventually(lambda: active(incus.host, unit), incus.story)
    incus.wait_status(name, "building$")


def active(host: Host, unit: str) -> bool:
    return host.run(["systemctl", "is-active", unit], check=False).returncode == 0


def kill_sidecar(host: Host) -> None:
    host.run(["systemctl", "kill", "--signal=KILL", "inx-sidecar.service"])


def pid(incus: Incus, name: str) -> int:
    return int(incus.json("query", f"/1.0/instances/{name}/state")["pid"])


def works(incus: Incus, name: str) -> None:
    """The system answers, the store is there and the daemon too."""
    incus.wait_inside(name)
    incus.sh(name, "nix store ping && ! touch /nix/var/nix/planted /nix/store/planted")


def cycle(incus: Incus, name: str) -> None:
    """Stop and start."""
    incus("stop", name)
    incus.start(name)
    works(incus, name)


def test_autostarted_instances_come_back_without_flake_and_nix_daemon(
    incus: Incus, host: Host
) -> None:
    flake = incus.flake("a", "b", greeting="back again")
    auto = ["-c", "boot.autostart=true"]
    names = [incus.launch(*auto, name=incus.name(n), flake=f"{flake}#{n}") for n in "ab"]
    pids = [pid(incus, name) for name in names]
    host.run(["rm", "-r", flake])
    host.run(["systemctl", "mask", "--now", "nix-daemon.socket", "nix-daemon.service"])
    try:
        host.run(["systemctl", "restart", "incus"])
        assert [pid(incus, name) for name in names] == pids
        cycle(incus, names[0])

        begin = time.monotonic()
        host.reboot()
        assert time.monotonic() - begin < 20, "a stop hook waited for a sidecar that had ended"
        for name in names:
            incus.wait_state(name, "RUNNING")
            works(incus, name)
            assert incus.said(name, "cat", "/etc/greeting") == "back again"
            incus.wait_ready(name)
        cycle(incus, names[1])
    finally:
        host.run(["systemctl", "unmask", "nix-daemon.socket", "nix-daemon.service"])
        host.run(["systemctl", "start", "nix-daemon.socket"])


def test_twenty_instances_start_while_the_sidecar_is_killed_again_and_again(
    incus: Incus, host: Host
) -> None:
    flake = incus.flake("built", *(f"b{number}" for number in range(4)), greeting="tough")
    system = incus.get(incus.launch(flake=f"{flake}#built"), "user.inx.status.system")
    names = [incus.init(name=incus.name(f"s{number}"), system=system) for number in range(16)]
    names += [
        incus.init(name=incus.name(f"b{number}"), flake=f"{flake}#b{number}") for number in range(4)
    ]
    script = """
        pids=
        for i in $NAMES; do incus start $i </dev/null & pids+=" $!"; done
        for kill in {1..25}; do
            sleep 0.2
            systemctl kill --signal=KILL inx-sidecar.service || :
        done
        failed=0
        for pid in $pids; do wait $pid || failed=1; done
        exit $failed
    """
    host.sh(script, env={"NAMES": " ".join(names)})
    assert int(property_of(host, "NRestarts")) > 0
    for name in names:
        works(incus, name)
        assert incus.said(name, "cat", "/etc/greeting") == "tough"
    for name in names:
        incus.wait_ready(name)
        assert incus.get(name, "user.inx.status.generation") == "1"
    assert set(states(incus, names)) == {"RUNNING,ready"}


def property_of(host: Host, name: str) -> str:
    show = ["systemctl", "show", "--value", "-p", name, "inx-sidecar.service"]
    return host.run(show).stdout.strip()


def states(incus: Incus, names: list[str]) -> list[str]:
    """State and status, as one row of `incus list` each."""
    listed = incus("list", "-f", "csv", "-c", "ns,user.inx.status").stdout.splitlines()
    rows = dict(row.split(",", 1) for row in listed)
    return [rows[name] for name in names]


@pytest.mark.parametrize("how", ["kill", "restart"])
def test_a_new_sidecar_takes_over_a_build_that_an_instance_waits_for(
    incus: Incus, host: Host, how: str
) -> None:
    name = launch_slowly(incus, slow(incus, 2))
    if how == "kill":
        kill_sidecar(host)
    else:
        host.run(["systemctl", "restart", "inx-sidecar"])
    incus.wait_ready(name)
    works(incus, name)
    incus.run(name, "test", "-e", "/etc/slow")
    assert incus.get(name, "user.inx.status.generation") == "1"


def test_an_instance_that_waits_for_a_build_outlives_incusd(incus: Incus, host: Host) -> None:
    name = launch_slowly(incus, slow(incus, 2))
    init = pid(incus, name)
    host.run(["systemctl", "kill", "--signal=KILL", "--kill-whom=main", "incus"])
    host.run(["systemctl", "start", "incus"])
    incus.wait_ready(name)
    assert pid(incus, name) == init
    cycle(incus, name)


def test_a_restarted_sidecar_changes_nothing_for_what_runs(incus: Incus, host: Host) -> None:
    names = [incus.launch(name=incus.name(s), flake="/etc/nixos#web") for s in "ab"]
    before = [(pid(incus, name), incus.info(name)["config"]) for name in names]
    mounts = [incus.said(name, "cat", "/proc/mounts") for name in names]
    host.run(["systemctl", "restart", "inx-sidecar"])
    kill_sidecar(host)
    incus.eventually(lambda: active(host, "inx-sidecar.service"), incus.story)
    assert [(pid(incus, name), incus.info(name)["config"]) for name in names] == before
    assert [incus.said(name, "cat", "/proc/mounts") for name in names] == mounts
    for name in names:
        works(incus, name)
        cycle(incus, name)


def test_without_a_sidecar_starts_fail_at_once_and_nothing_else(incus: Incus, host: Host) -> None:
    running, stopped, deleted = (
        incus.launch(name=incus.name(s), flake="/etc/nixos#web") for s in ("run", "stop", "del")
    )
    incus("stop", stopped)
    uuid = incus.uuid(deleted)
    host.run(["systemctl", "stop", *UNITS])
    try:
        begin = time.monotonic()
        said = refusal(incus, stopped)
        assert time.monotonic() - begin < 2
        assert said.startswith("the inx sidecar is not reachable; run 'systemctl start inx-")
        works(incus, running)
        incus("stop", running)
        incus("delete", "-f", deleted)
    finally:
        host.run(["systemctl", "start", "inx-sidecar.socket"])
    for name in running, stopped:
        incus.start(name)
        works(incus, name)
        incus.wait_ready(name)
    # What it missed is made good once it is back.
    host.run(["systemctl", "restart", "inx-sidecar.service"])
    incus.eventually(
        lambda: (
            uuid not in host.run(["ls", "/run/inx"]).stdout
            and not active(host, f"inx-nix-daemon@{uuid}.socket")
        ),
        incus.story,
    )


def test_a_start_repairs_what_a_missed_stop_hook_left(incus: Incus, host: Host) -> None:
    name = incus.launch(flake="/etc/nixos#web")
    host.sh('kill -9 "$(pgrep -f "^\\[lxc monitor\\] .* $N\\$")"', env={"N": name})
    incus.wait_state(name, "STOPPED")
    incus.start(name)
    works(incus, name)
    incus.wait_ready(name)
    cycle(incus, name)


def test_a_slow_rebuild_of_the_same_system_ends_with_its_status(incus: Incus) -> None:
    name = incus.launch(flake="/etc/nixos#web")
    incus("stop", name)
    system = incus.get(name, "user.inx.status.system")
    incus.set(name, f"user.inx.flake={slow(incus, 1.5, same=True)}#web")
    incus.start(name)
    wait_building(incus, name)
    incus.wait_ready(name)
    assert incus.get(name, "user.inx.status.system") == system


def test_a_status_that_a_killed_sidecar_left_behind_is_put_right(incus: Incus, host: Host) -> None:
    """It died after init went on, before Incus took the status."""
    name = incus.launch(flake="/etc/nixos#web")
    host.run(["systemctl", "stop", *UNITS])
    incus.set(name, "user.inx.status=building", "user.inx.status.generation=")
    host.run(["systemctl", "start", *UNITS])
    incus.wait_status(name, "ready$")
    assert incus.get(name, "user.inx.status.generation") == "1"


def test_check_finds_nothing_on_a_host_as_installed(incus: Incus, host: Host) -> None:
    incus.launch(flake="/etc/nixos#web")
    assert check(host) == (0, [])


def test_check_finds_a_raw_lxc_without_the_hooks(incus: Incus, host: Host) -> None:
    name = incus.launch(flake="/etc/nixos#web")
    incus("stop", name)
    incus.set(name, "raw.lxc=lxc.signal.halt = SIGTERM")
    status, [found] = check(host)
    assert status == 1
    assert found.startswith(f"instance '{name}' of project 'default': raw.lxc lacks ")
    assert "'lxc.hook.pre-start = /etc/inx/hooks/pre-start'" in found
    assert incus.start(name, check=False).returncode != 0
    hooks = incus("profile", "get", "inx", "raw.lxc").stdout
    # The start that failed is still being tidied up.
    more = ["config", "set", name, f"raw.lxc={hooks}lxc.signal.halt = SIGTERM\n"]
    incus.eventually(lambda: incus(*more, check=False).returncode == 0, incus.story)
    assert check(host) == (0, [])
    incus.start(name)
    works(incus, name)


def test_check_finds_a_changed_profile(incus: Incus, host: Host) -> None:
    hooks = incus("profile", "get", "inx", "raw.lxc").stdout
    try:
        for left, missing in (
            (hooks.replace("lxc.hook.stop", "# lxc.hook.stop"), "lxc.hook.stop = "),
            ("lxc.signal.halt = SIGTERM", "lxc.init.cmd = "),
        ):
            incus("profile", "set", "inx", f"raw.lxc={left}")
            status, [found, *instances] = check(host)
            assert status == 1
            assert found.startswith("profile 'inx' of project 'default': raw.lxc lacks ")
            assert missing in found
            assert all(line.startswith("instance '") for line in instances)
    finally:
        incus("profile", "set", "inx", f"raw.lxc={hooks}")
    assert check(host) == (0, [])


def test_check_finds_a_missing_profile_and_says_how_to_make_it(incus: Incus, host: Host) -> None:
    incus("profile", "delete", "inx")
    try:
        status, [found] = check(host)
        assert status == 1
        command = found.partition("run '")[2].rstrip("'")
    except BaseException:
        host.sh("incus profile create inx </etc/inx/profile.yaml")
        raise
    host.sh(command)
    assert check(host) == (0, [])


def test_check_finds_a_stopped_socket_and_says_how_to_start_it(incus: Incus, host: Host) -> None:
    host.run(["systemctl", "stop", *UNITS])
    try:
        status, [found] = check(host)
        assert status == 1 and "inx-sidecar.socket" in found
        host.sh(found.partition("run '")[2].rstrip("'"))
    finally:
        host.run(["systemctl", "start", "inx-sidecar.socket"])
    assert check(host) == (0, [])


@pytest.mark.parametrize("hook", ["pre-start", "stop"])
def test_check_finds_a_hook_that_cannot_run(host: Host, hook: str) -> None:
    path = f"/etc/inx/hooks/{hook}"
    host.run(["chmod", "a-x", path])
    try:
        status, [found] = check(host)
        assert status == 1 and found.startswith(f"{path}: ")
    finally:
        host.run(["chmod", "755", path])
    assert check(host) == (0, [])


def test_bad_settings_are_found_by_check_and_refuse_a_start(
    incus: Incus, host: Host, settings: Callable[[str], None]
) -> None:
    name = incus.init(flake="/etc/nixos#web")
    for text, culprit in (
        ("max_build = 2", "'max_build'"),
        ("max_builds = 0", "max_builds is 0"),
        ("max_builds = true", "max_builds is True"),
        ("build_timeout = '2h'", "build_timeout is '2h'"),
        ("build_memory_max = 'lots'", "build_memory_max is 'lots'"),
        ("build_user = 'no one'", "build_user is 'no one'"),
        ("allowed_flakes = '/etc'", "allowed_flakes is '/etc'"),
        ("default_flake = './here'", "default_flake is './here'"),
        ("default_flake = 7", "default_flake is 7"),
        ("default_flake = /etc/nixos", "line 1"),
        ("[builds]\nmax = 1", "'builds'"),
    ):
        settings(text)
        status, [found] = check(host)
        assert status == 1 and CONFIG in found and culprit in found, found
    said = refusal(incus, name)
    assert CONFIG in said and "unknown setting 'builds'" in said
    settings("")
    incus.start(name)
    incus.wait_ready(name)
    assert check(host) == (0, [])


def test_a_build_user_that_is_missing_is_named(
    incus: Incus, settings: Callable[[str], None]
) -> None:
    settings('build_user = "nobody-here"')
    name = incus.init(flake="github:inx/none#web")
    incus.start(name)
    assert "nobody-here" in incus.wait_status(name, "failed: ")


def test_the_default_flake_is_the_hosts_choice(
    incus: Incus, settings: Callable[[str], None]
) -> None:
    name = incus.name()
    settings(f'default_flake = "{incus.flake(name, greeting="by default")}"')
    incus.launch()
    assert incus.said(name, "cat", "/etc/greeting") == "by default"


def test_only_allowed_flakes_and_files_are_built(
    incus: Incus, settings: Callable[[str], None]
) -> None:
    flake = incus.flake()
    settings(f'allowed_flakes = ["/etc/nixos", "{flake}"]')
    for number, allowed in enumerate((f"{flake}#web", "/etc/nixos#web")):
        incus.launch(name=incus.name(f"y{number}"), flake=allowed)
    for number, (key, value) in enumerate(
        (
            ("flake", f"{flake}-evil#web"),
            ("flake", "github:owner/repo#web"),
            ("flake", f"path:{flake}#web"),
            ("file", "/root/secret.nix"),
        )
    ):
        name = incus.init(name=incus.name(f"n{number}"), **{key: value})
        assert refusal(incus, name) == (
            f"user.inx.{key} is '{value.partition('#')[0]}', which 'allowed_flakes' in {CONFIG} "
            f"does not allow (allowed: /etc/nixos, {flake})"
        )


def test_a_build_that_takes_too_long_ends_with_a_clear_status(
    incus: Incus, host: Host, settings: Callable[[str], None]
) -> None:
    settings("build_timeout = 1")
    name = incus.init(flake=f"{slow(incus, 60)}#web")
    incus.start(name)
    assert "build_timeout" in incus.wait_status(name, "failed: ")
    incus.wait_state(name, "STOPPED")
    assert "build_timeout" in incus.console(name)
    incus.eventually(
        lambda: host.run(["pgrep", "-f", "sleep 60"], check=False).stdout == "",
        lambda: "the builder still runs",
    )


def test_a_build_that_is_killed_ends_with_a_clear_status(incus: Incus, host: Host) -> None:
    """By the operator, or by the kernel when the machine runs out of memory."""
    name = launch_slowly(incus, slow(incus, 60))
    host.run(["systemctl", "kill", "--signal=KILL", f"inx-build-{incus.uuid(name)}.service"])
    assert "killed" in incus.wait_status(name, "failed: ")
    incus.wait_state(name, "STOPPED")


def test_instances_whose_build_fails_stop_at_once(incus: Incus, host: Host) -> None:
    """Incus takes 10 s to stop an instance if it is asked to change it in that moment."""
    flake = incus.flake_text('nixosConfigurations.web = throw "no";', f"/srv/{incus.prefix}")
    names = [incus.init(name=incus.name(s), flake=f"{flake}#web") for s in "abcd"]
    # Incus itself is not asked how far it is: that too would hold it up.
    script = """
        stops() {
            for round in 1 2 3; do
                incus start $1 </dev/null
                for try in {1..80}; do [ -e /run/inx/$2 ] || break; sleep 0.05; done
                [ $try -lt 80 ] || exit 1
                sleep 2
            done
        }
        pids=
        while read -r name uuid; do stops $name $uuid & pids+=" $!"; done
        failed=0
        for pid in $pids; do wait $pid || failed=1; done
        exit $failed
    """
    host.sh(script, input="".join(f"{name} {incus.uuid(name)}\n" for name in names))
    for name in names:
        assert incus.wait_status(name, "failed: ").endswith(": no")


def test_an_evaluation_gets_the_memory_that_the_settings_give_it(
    incus: Incus, host: Host, settings: Callable[[str], None]
) -> None:
    """What systemd is told; whether the kernel can hold anybody to it is the machine's affair."""
    settings('build_memory_max = "150M"')
    name = launch_slowly(incus, slow(incus, 2))
    show = ["systemctl", "show", "--value", "-p", "MemoryMax", f"inx-build-{incus.uuid(name)}"]
    assert int(host.run(show).stdout) == 150 << 20
    incus.wait_ready(name)


def test_builds_beyond_the_limit_wait_and_say_so(
    incus: Incus, host: Host, settings: Callable[[str], None]
) -> None:
    settings("max_builds = 1")
    first = launch_slowly(incus, slow(incus, 3))
    second = incus.init(name=incus.name("b"), flake=f"{incus.flake()}#web")
    incus.start(second)
    incus.eventually(
        lambda: "waiting for other builds (1 at a time)" in incus.console(second),
        lambda: incus.console(second),
    )
    assert not active(host, f"inx-build-{incus.uuid(second)}.service")
    incus.wait_status(second, "building")
    incus.wait_ready(first)
    incus.wait_ready(second)


def test_an_upgrade_leaves_instances_running(incus: Incus, host: Host) -> None:
    name = incus.launch(flake="/etc/nixos#web")
    before = pid(incus, name), property_of(host, "MainPID")
    incus("profile", "set", "inx", "user.mine=kept")
    for _ in range(2):
        host.run(["/root/inx/install", "--wheels", "/root/wheels"])
    assert incus("profile", "get", "inx", "user.mine").stdout == "kept\n"
    incus("profile", "unset", "inx", "user.mine")
    assert pid(incus, name) == before[0]
    assert property_of(host, "MainPID") != before[1]
    works(incus, name)
    cycle(incus, name)


@pytest.mark.parametrize("store", ["shared", pytest.param("isolated", marks=pytest.mark.isolated)])
def test_a_store_that_cannot_map_owners_works_and_says_so(overlay: Host, store: str) -> None:
    incus = Incus(overlay, store[0])
    name = incus.init(flake="/etc/nixos#web", store=store)
    unmapped = r"ready \(store owned by nobody: its file system cannot map owners\)$"
    for _ in range(2):
        incus.start(name)
        incus.wait_status(name, unmapped)
        if store == "shared":
            works(incus, name)
        incus.wait_inside(name)
        assert incus.said(name, "stat", "-L", "-c", "%u", "/bin/sh") == "65534\n"
        incus("stop", name)
    journal = overlay.run(["journalctl", "-u", "inx-sidecar", "-p", "warning", "--no-pager"])
    assert f"{name}: store owned by nobody" in journal.stdout
    status, [found] = check(overlay)
    assert status == 1
    assert found.startswith("/nix/store on a file system that can map owners: ")
    assert found.endswith("; unprivileged containers see it owned by nobody")


def test_uninstall_refuses_while_it_is_used_and_then_leaves_nothing_it_made(spare: Host) -> None:
    incus = Incus(spare, "u")
    incus("project", "create", "other")
    spare.sh("incus profile create inx --project other </etc/inx/profile.yaml")
    uninstall = ["/root/inx/install", "--uninstall"]
    for project in "default", "other":
        name = incus.launch(flake="/etc/nixos#web", project=project)
        refused = spare.run(uninstall, check=False)
        assert refused.returncode == 1
        assert refused.stderr == (
            f"inx: error: instances use the hooks of inx: {project}/{name}; "
            "delete them first: incus delete\n"
        )
        incus.wait_inside(name, project)
        assert check(spare) == (0, [])
        incus("delete", "-f", name, "--project", project)
    incus("project", "delete", "other", "--force", input="yes\n")
    write(spare, CONFIG, "max_builds = 1\n")
    spare.run(uninstall)
    assert incus("profile", "list", "-f", "csv", "-c", "n").stdout.split() == ["default"]
    assert "inx" not in incus("image", "list", "-f", "csv", "-c", "l").stdout.split()
    units = spare.run(["systemctl", "list-unit-files", "--no-legend", "inx-*"], check=False)
    assert units.stdout == ""
    # The slices that builds and daemons ran in end by themselves.
    loaded = ["systemctl", "list-units", "--all", "--plain", "--no-legend", "inx-*"]
    services = spare.run(loaded).stdout.splitlines()
    assert not [line for line in services if ".slice" not in line]
    gone = (
        "/opt/inx /run/inx /etc/inx/hooks /etc/inx/profile.yaml /usr/local/lib/tmpfiles.d/inx.conf"
    )
    spare.sh('for path in $P; do [ ! -e "$path" ] && [ ! -L "$path" ]; done', env={"P": gone})
    kept = ["/var/log/inx", "/var/lib/inx", "/nix/var/nix/gcroots/inx", CONFIG]
    spare.run(["ls", "-d", *kept])

    spare.run(uninstall)
    spare.run(["/root/inx/install", "--wheels", "/root/wheels"])
    works(incus, incus.launch(flake="/etc/nixos#web"))
