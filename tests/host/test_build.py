"""A running build does not delay Incus; a failed build gives its reason in one sentence."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.disposable import Host
from support.incus import POOL, Incus
from support.refusals import sentence
from support.store import build_system

pytestmark = pytest.mark.main

# A system whose build prints a line and then takes some time; the token makes it new.
SLOW = """nixosConfigurations.slow.config.system.build.toplevel = derivation {
  name = "nixos-system-slow-1";
  system = deps.system;
  token = "%s";
  builder = "${deps.busybox}/bin/sh";
  args = [ "-c" ''
    echo 'step one of the slow build' >&2
    ${deps.busybox}/bin/sleep %d
    ${deps.busybox}/bin/mkdir $out
    ${deps.busybox}/bin/ln -s %s/init $out/init
  '' ];
};"""


def slow_flake(incus: Incus, seconds: int) -> str:
    """A flake whose system takes `seconds` to build, and runs like "second" of the example."""
    second = build_system(incus.host, "/etc/nixos", f"/srv/{incus.prefix}-second", "second")
    init = f'${{builtins.appendContext "{second}" {{ "{second}".path = true; }}}}'
    return incus.flake_text(SLOW % (incus.prefix, seconds, init), f"/srv/{incus.prefix}")


def wait_building(incus: Incus, name: str) -> None:
    incus.eventually(
        lambda: "step one of the slow build" in incus.console(name), lambda: incus.story()
    )


def builds_that_run(host: Host) -> str:
    units = "systemctl list-units --plain --no-legend 'inx-build-*'"
    return host.sh(f"{units}; pgrep -fa '[n]ixos-system-slow|[n]ix .*build' || :").stdout


def test_incus_answers_while_a_build_runs(incus: Incus, host: Host) -> None:
    """The build has no end: no command of Incus waits for it."""
    name = incus.init(flake=f"{slow_flake(incus, 3600)}#slow")
    incus.start(name)
    wait_building(incus, name)
    incus.wait_status(name, "building")
    incus("list")
    incus("info", name)
    assert incus.state(name) == "RUNNING"
    incus("stop", name)  # the bootstrap init ends on SIGPWR
    assert builds_that_run(host) == ""
    incus.start(name)
    wait_building(incus, name)
    incus("stop", "-f", name)
    incus.start(name)
    wait_building(incus, name)
    incus("restart", "-f", name)
    wait_building(incus, name)
    incus("delete", "-f", name)
    assert builds_that_run(host) == "", "nothing is built for an instance that is gone"


def test_a_slow_build_ends_in_a_running_system(incus: Incus) -> None:
    name = incus.init(flake=f"{slow_flake(incus, 3)}#slow")
    incus.start(name)
    wait_building(incus, name)
    incus.wait_ready(name)
    console = incus.console(name)
    assert "building the system of" in console and "inx: starting /nix/store/" in console
    assert "Welcome to second" in console


# A reference, the outputs of the flake, and a part of the reason.
BROKEN = {
    "no such flake": ("/srv/nowhere#web", "nixosConfigurations.web = 1;", "/srv/nowhere"),
    "no such attribute": ("#other", "nixosConfigurations.web = 1;", "other"),
    "evaluation error": (
        "#web",
        'nixosConfigurations.web.config.system.build.toplevel = throw "the sky is falling";',
        "the sky is falling",
    ),
    "syntax error": ("#web", "nixosConfigurations = {;", "syntax error"),
    "build failure": (
        "#web",
        """nixosConfigurations.web.config.system.build.toplevel = derivation {
             name = "broken"; system = deps.system; builder = "${deps.busybox}/bin/sh";
             args = [ "-c" "echo it does not compile >&2; exit 3" ]; };""",
        "exit code 3",
    ),
    "not a system": (
        "#web",
        'nixosConfigurations.web.config.system.build.toplevel = builtins.toFile "x" "y";',
        "",
    ),
    "no init": (
        "#web",
        """nixosConfigurations.web.config.system.build.toplevel = derivation {
             name = "empty"; system = deps.system; builder = "${deps.busybox}/bin/mkdir";
             args = [ (placeholder "out") ]; };""",
        "has no 'init'",
    ),
    "another machine": (
        "#web",
        """nixosConfigurations.web.config.system.build.toplevel = derivation {
             name = "arm"; system = "armv5tel-linux"; builder = "/bin/sh"; };""",
        "armv5tel-linux",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_source_stops_the_instance_with_one_sentence(incus: Incus, what: str) -> None:
    ref, outputs, reason = BROKEN[what]
    directory = incus.flake_text(outputs, f"/srv/{incus.prefix}")
    ref = ref if ref.startswith("/") else directory + ref
    name = incus.init(flake=ref)
    incus.start(name)
    incus.wait_state(name, "STOPPED")
    status = incus.wait_status(name, "failed: ")
    sentence = status.removeprefix("failed: ")
    assert reason in sentence and name in sentence and ref in sentence
    incus.eventually(lambda: sentence[:300] in incus.console(name), lambda: incus.story())
    for text in (incus.console(name), incus.log(name)):
        lines = [line for line in text.splitlines() if sentence[:300] in line]
        assert len(lines) == 1, text


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("flake", "relative/../path; rm -rf /"),
        ("system", "/etc/passwd"),
        ("typo", "x"),
        ("store", "private"),
    ],
)
def test_a_refused_start_says_why_at_once(incus: Incus, key: str, value: str) -> None:
    """The pre-start hook refuses a bad value, so that incus start itself fails."""
    name = incus.init()
    incus.set(name, f"user.inx.{key}={value}")
    failed = incus.start(name, check=False)
    assert failed.returncode != 0 and "--show-log" in failed.stderr
    said = sentence(incus, name)
    assert value.split(";")[0] in said or f"user.inx.{key}" in said
    assert incus.wait_status(name, "failed: ") == f"failed: {said}"[:408]


def test_a_system_that_is_nowhere_stops_the_instance(incus: Incus) -> None:
    gone = "/nix/store/00000000000000000000000000000000-gone"
    name = incus.init(system=gone)
    incus.start(name)
    incus.wait_state(name, "STOPPED")
    assert gone in incus.wait_status(name, "failed: cannot build the system of")


# Runs the pre-start hook once for each value, with a copy of the configuration of an instance.
PRE_START = """
import json, os, subprocess, sys, yaml
name, source, cases = json.load(sys.stdin)
with open(f"{source}/backup.yaml") as file:
    document = yaml.safe_load(file)
os.makedirs("/srv/values/rootfs", exist_ok=True)
facts = {"LXC_NAME": name, "LXC_ROOTFS_PATH": "/srv/values/rootfs",
         "LXC_CONFIG_FILE": "/srv/values/lxc.conf"}
with open("/srv/values/lxc.conf", "w") as file:
    file.write("lxc.log.file = /srv/values/lxc.log")
uuid = open("/proc/sys/kernel/random/uuid").read().strip()
document["container"]["expanded_config"]["volatile.uuid"] = uuid
for key, value in cases:
    document["container"]["expanded_config"] |= {f"user.inx.{key}": value}
    with open("/srv/values/backup.yaml", "w") as file:
        yaml.safe_dump(document, file)
    open("/srv/values/lxc.log", "w").close()
    done = subprocess.run(["/etc/inx/hooks/pre-start"], env=facts, capture_output=True)
    with open("/srv/values/lxc.log") as file:
        print(json.dumps([key, value, done.returncode, done.stdout.decode(), file.read()]))
    del document["container"]["expanded_config"][f"user.inx.{key}"]
"""
KEYS = ("flake", "file", "attr", "system", "store", "daemon", "generation", "keep", "unknown")


def odd_values(number: int) -> list[tuple[str, str]]:
    """Values from hypothesis, and values that have a meaning for a shell or for Nix."""
    found: list[tuple[str, str]] = []
    # fmt: off
    meaning = st.sampled_from([
        "-x", "--option", "$(id)", "`id`", "'", '"', "a;b", "#", "/etc/nixos#-x", "x#a b", "./x",
        "/x/../y", "path:x", "/nix/store/x", "a\nb", "1e3", "TRUE", "\x1b[31m", "x" * 3000,
    ])
    # fmt: on
    text = st.text(st.characters(max_codepoint=0x2FFF), min_size=1, max_size=60)

    @settings(max_examples=number, database=None, derandomize=True)
    @given(st.sampled_from(KEYS), st.one_of(meaning, text, st.builds("{}{}".format, meaning, text)))
    def collect(key: str, value: str) -> None:
        found.append((key, value))

    collect()
    return found


def test_bad_values_are_refused_by_name(incus: Incus, host: Host) -> None:
    """The values go through the hook and the running sidecar.

    There is never a traceback, and never any output to the pipe of LXC.
    """
    name = incus.init()
    cases = odd_values(300)
    incus.start(name, check=False)  # Incus writes backup.yaml
    document = json.dumps([name, f"{POOL}/{name}", cases])
    python = "/opt/inx/bin/python"
    results = host.run([python, "-c", PRE_START], input=document).stdout.splitlines()
    assert len(results) == len(cases) >= 200
    refused = 0
    for line in results:
        key, _, status, output, log = json.loads(line)
        assert output == ""
        if status:
            refused += 1
            assert f"user.inx.{key}" in log and log.count("\n") == 1, line
            assert log.rstrip("\n").isprintable(), line
    assert refused > len(cases) / 2
    host.run(["systemctl", "stop", f"inx-build-{incus.uuid(name)}.service"], check=False)
    assert "Traceback" not in host.run(["journalctl", "-u", "inx-sidecar", "--no-pager"]).stdout
