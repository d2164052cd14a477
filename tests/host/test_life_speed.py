"""How fast an instance follows a change, alone and among many."""

import json
import time
from statistics import median

import pytest
from support.disposable import Host
from support.incus import Incus
from support.running import PROFILE, STATUS, began, truth, wait_truth
from support.store import build_system

pytestmark = pytest.mark.life


SWITCH = """
    begin=$(date +%s%N)
    incus config set "$NAME" $CONFIG
    until [ "$(readlink "/proc/$PID/root/run/current-system")" = "$SYSTEM" ]; do sleep 0.01; done
    echo $(($(date +%s%N) - begin))
"""


def seconds_to_switch(incus: Incus, name: str, system: str, *pairs: str) -> float:
    """The time from `incus config set` until `system` is active. Then waits until Incus knows."""
    config = " ".join(f"user.inx.{pair}" for pair in pairs)
    env = {"NAME": name, "PID": str(incus.pid(name)), "SYSTEM": system, "CONFIG": config}
    taken = int(incus.host.sh(SWITCH, env=env).stdout) / 1e9
    incus.eventually(lambda: truth(incus, name) == ("ready", system), incus.story)
    return taken


def seconds_by_hand(incus: Incus, name: str, system: str) -> float:
    """The time that the same takes inside, with the commands of Nix and of the system."""
    script = f"nix-env -p {PROFILE} --set {system}; {PROFILE}/bin/switch-to-configuration switch"
    begin = time.monotonic()
    incus.sh(name, script)
    taken = time.monotonic() - begin
    incus.eventually(lambda: truth(incus, name) == ("ready", system), incus.story)
    return taken


def test_a_new_file_is_there_nearly_as_soon_as_by_hand_and_other_instances_do_not_change(
    incus: Incus, host: Host
) -> None:
    """inx first waits for 0.3 s. The best of three counts, so that other load does not.

    What a slow machine adds is in the times by hand, too.
    """
    flake = incus.flake(greeting="one")
    name, *others = [incus.launch(flake=f"{flake}#web", name=incus.name(s)) for s in "abc"]
    before = {other: began(host, incus.pid(other)) for other in (name, *others)}
    others_before = {other: truth(incus, other) for other in others}

    root = f"/nix/var/nix/gcroots/{incus.prefix}"

    def built(text: str) -> str:
        incus.flake(greeting="one", added=text)
        return build_system(host, flake, f"{root}-{text}")

    by_hand, ready_made, by_flake, builds = [], [], [], []
    for number in range(3):
        by_hand.append(seconds_by_hand(incus, name, built(f"hand-{number}")))
        system = built(f"made-{number}")
        ready_made.append(seconds_to_switch(incus, name, system, f"system={system}", "flake="))
        incus.sh(name, f'[ "$(cat /etc/added)" = "made-{number}" ]')
    for number in range(3):
        system = built(f"built-{number}")
        begin = time.monotonic()
        assert build_system(host, flake, f"{root}-again") == system
        builds.append(time.monotonic() - begin)
        pairs = "system=", f"flake={flake}#web", f"update={number}"
        by_flake.append(seconds_to_switch(incus, name, system, *pairs))
        incus.sh(name, f'[ "$(cat /etc/added)" = "built-{number}" ]')

    print(f"by hand: {by_hand}; a system: {ready_made}; a flake: {by_flake}, to build: {builds}")
    longest = 1 + 5 * median(by_hand)
    assert min(ready_made) < longest
    assert min(by_flake) < longest + 5 * median(builds)
    assert {other: began(host, incus.pid(other)) for other in before} == before
    assert {other: truth(incus, other) for other in others} == others_before


def test_twenty_instances_follow_one_change_of_their_profile_two_at_a_time(
    incus: Incus, host: Host
) -> None:
    names = [incus.name(str(number)) for number in range(20)]
    profile = incus.profile()
    incus("profile", "set", profile, f"user.inx.flake={incus.flake(*names, greeting='one')}")
    for name in names:
        incus.init("--profile", profile, name=name)
    incus("start", *names)
    for name in names:
        wait_truth(incus, name, "ready$", "one", 1)
    idle = median(time_to_list(incus)[0] for _ in range(9))

    incus.flake(*names, greeting="two")
    incus("profile", "set", profile, "user.inx.update=2")
    meanwhile = []

    def followed() -> bool:
        seconds, found = time_to_list(incus)
        left = [name for name in names if found.get(name) != ("ready", "2")]
        if len(left) > 2:
            meanwhile.append(seconds)
        return not left

    incus.eventually(followed, incus.story)
    for name in names:
        wait_truth(incus, name, "ready$", "two", 2)
    systems = {truth(incus, name)[1] for name in names}
    assert len(systems) == len(names)

    starts, most = builds_of(host, {incus.uuid(name) for name in names})
    assert starts == 2 * len(names), "each built once for each text"
    assert most == 2, "max_builds"
    print(f"incus list: {idle} s idle, {meanwhile} s meanwhile")
    # The builds take the CPUs, too. If Incus waited for them, no list would be as quick.
    assert min(meanwhile) < 3 * idle


def time_to_list(incus: Incus) -> tuple[float, dict[str, tuple[str, str]]]:
    """The time that `incus list` takes, and the status and the generation by name."""
    begin = time.monotonic()
    listed = incus.json("list", "-f", "json")
    seconds = time.monotonic() - begin
    configs = {found["name"]: found["config"] for found in listed}
    keys = STATUS, f"{STATUS}.generation"
    return seconds, {
        name: (config.get(keys[0], ""), config.get(keys[1], "")) for name, config in configs.items()
    }


def builds_of(host: Host, uuids: set[str]) -> tuple[int, int]:
    """The number of builds of these instances, and the greatest number that ran at once."""
    start, end = "39f53479d3a045ac8e11786248231fbf", "7ad2d189f7e94e70a38c781354912448"
    fields = ["--output=json", "--output-fields=UNIT,MESSAGE_ID,MESSAGE"]
    text = host.run(["journalctl", "_PID=1", *fields, "--no-pager"]).stdout
    starts, running, most = 0, set(), 0
    for entry in map(json.loads, text.splitlines()):
        uuid = entry.get("UNIT", "").removeprefix("inx-build-").removesuffix(".service")
        kind = entry.get("MESSAGE_ID") if uuid in uuids else None
        if kind == start:
            starts += 1
            running.add(uuid)
        elif kind == end:
            running.remove(uuid)
        most = max(most, len(running))
    return starts, most
