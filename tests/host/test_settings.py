"""/etc/inx/config.toml: bad settings are refused, good ones limit sources and builds."""

import re
from collections.abc import Callable, Iterator

import pytest
from support.disposable import Host
from support.incus import Incus
from support.refusals import refused
from support.services import SERVICE, builds, check, is_active
from support.sources import slow, start_building

pytestmark = pytest.mark.main

CONFIG = "/etc/inx/config.toml"


@pytest.fixture
def settings(host: Host) -> Iterator[Callable[[str], None]]:
    """Write the file; after the test there is none."""

    def write(text: str) -> None:
        host.sh('cat >"$P"', env={"P": CONFIG}, input=text)

    yield write
    host.run(["rm", "-f", CONFIG])


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
    said = refused(incus, name)
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
        assert refused(incus, name) == (
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
    """The operator kills a build, or the kernel does when there is no memory left."""
    name = start_building(incus, slow(incus, 60))
    host.run(["systemctl", "kill", "--signal=KILL", f"inx-build-{incus.uuid(name)}.service"])
    assert "killed" in incus.wait_status(name, "failed: ")
    incus.wait_state(name, "STOPPED")


def test_instances_whose_build_fails_stop_at_once(incus: Incus, host: Host) -> None:
    """Incus takes 10 s to stop an instance if a request changes the instance in that moment."""
    flake = incus.flake_text('nixosConfigurations.web = throw "no";', f"/srv/{incus.prefix}")
    names = [incus.init(name=incus.name(s), flake=f"{flake}#web") for s in "abcd"]
    # A request to Incus would cause the delay, so that the script looks into /run instead.
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
        assert ": no at flake.nix:" in incus.wait_status(name, "failed: ")


def test_an_evaluation_gets_the_memory_that_the_settings_give_it(
    incus: Incus, host: Host, settings: Callable[[str], None]
) -> None:
    """systemd gets the limit; whether the kernel can enforce it depends on the machine."""
    settings('build_memory_max = "150M"')
    name = start_building(incus, slow(incus, 2))
    show = ["systemctl", "show", "--value", "-p", "MemoryMax", f"inx-build-{incus.uuid(name)}"]
    assert int(host.run(show).stdout) == 150 << 20
    incus.wait_ready(name)


def test_builds_beyond_the_limit_wait_and_say_so(
    incus: Incus, host: Host, settings: Callable[[str], None]
) -> None:
    settings("max_builds = 1")
    first = start_building(incus, slow(incus, 3))
    second = incus.init(name=incus.name("b"), flake=f"{incus.flake()}#web")
    incus.start(second)
    incus.eventually(
        lambda: "waiting for other builds (1 at a time)" in incus.console(second),
        lambda: incus.console(second),
    )
    assert not is_active(host, f"inx-build-{incus.uuid(second)}.service")
    incus.wait_status(second, f"queued: the build of {first} runs$")
    incus.wait_ready(first)
    incus.wait_ready(second)


def test_one_owner_cannot_make_the_builds_of_others_wait(incus: Incus, host: Host) -> None:
    """Evaluations that wait for a fifo hold their slots, but not the last one."""
    user, place = "inx-slots", f"/srv/{incus.prefix}"
    host.sh(
        """
        useradd --groups nix-users "$U"; mkdir "$D"; mkfifo "$D/fifo"
        echo '{ web = builtins.readFile ./fifo; }' >"$D/x.nix"; chown -R "$U:" "$D"
        """,
        env={"U": user, "D": place},
    )
    first, second, other = (incus.name(each) for each in "abc")
    try:
        for name in first, second:
            incus.init(name=name, file=f"{place}/x.nix", attr="web")
            incus.start(name)
        waits = f"waiting for other builds of user {user} (not all 2 are for one)"
        incus.eventually(
            lambda: any(waits in incus.console(name) for name in (first, second)), incus.story
        )
        incus.launch(name=other, flake=f"{incus.flake(directory=f'{place}-other')}#web")
        found = [
            is_active(host, f"inx-build-{incus.uuid(name)}.service") for name in (first, second)
        ]
        assert sorted(found) == [False, True]
        incus("stop", first, second)
        # The slots are free again.
        incus.eventually(lambda: builds(host) == "", incus.story)
        incus("restart", "-f", other)
        incus.wait_ready(other)
    finally:
        incus("stop", "-f", first, second, check=False)
        host.run(["userdel", user])


def test_metrics_are_written_if_a_setting_says_so(
    incus: Incus, host: Host, settings: Callable[[str], None]
) -> None:
    name = incus.launch(flake="/etc/nixos#web")
    incus.wait_status(name, "ready")
    file = "/run/inx/metrics/inx.prom"
    assert host.run(["ls", file], check=False).returncode
    settings("metrics = true")
    host.run(["systemctl", "restart", SERVICE])
    incus.eventually(lambda: host.run(["ls", file], check=False).returncode == 0, incus.story)
    text = host.run(["cat", file]).stdout
    labels = f'{{instance="{name}",uuid="{incus.uuid(name)}"'
    figures = dict(re.findall(rf"(\w+){re.escape(labels)}[^}}]*}} (\d+)", text))
    assert text.endswith("# EOF\n")
    assert figures["inx_system"] == "1" and figures["inx_generations"] == "1"
    assert int(figures["inx_roots"]) >= 2 and figures["inx_lost_roots"] == "0"
    assert "inx_builds_total" in figures
