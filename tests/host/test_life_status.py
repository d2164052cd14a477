"""The status names the system that runs, after snapshots, copies, failures and withdrawals."""

import re

import pytest
from support.disposable import Host
from support.incus import Incus
from support.running import (
    generations,
    listed_generations,
    running_system,
    says,
    truth,
    wait_truth,
)
from support.services import kill_sidecar, stopped_sidecar, sync
from support.sources import at_switch, bump, launched, offer, source
from support.store import collect

pytestmark = pytest.mark.life

WAIT_FOR_GO = at_switch("until [ -e /root/go ]; do sleep 0.05; done")


@pytest.mark.parametrize("running", [True, False], ids=["running", "stopped"])
def test_a_restored_snapshot_has_its_system_history_and_roots(
    incus: Incus, host: Host, running: bool
) -> None:
    name = launched(incus)
    for number, text in (2, "two"), (3, "three"):
        source(incus, text)
        incus.set(name, f"user.inx.update={number}")
        wait_truth(incus, name, "ready$", text, number)
        if number == 2:
            incus("snapshot", "create", name, "before")
            links, _ = generations(host, incus.pid(name))
    lost = truth(incus, name)[1]
    if not running:
        incus("stop", name)
    incus("snapshot", "restore", name, "before")
    if not running:
        incus.start(name)
    wait_truth(incus, name, "ready$", "two", 2)
    assert generations(host, incus.pid(name)) == (links, 2)
    assert listed_generations(incus, name) == ({1, 2}, 2)
    own = f"/nix/var/nix/gcroots/inx/{name}.{incus.uuid(name)}"
    incus.eventually(
        lambda: {"system-1", "system-2"} == set(re.findall(r"system-\d+", ls(host, own))),
        incus.story,
    )
    sync(host)
    collect(host)
    host.run(["nix-store", "--check-validity", *links.values()])
    gone = host.run(["nix-store", "--check-validity", lost], check=False)
    assert gone.returncode != 0, "no link leads to it any more"


def ls(host: Host, directory: str) -> str:
    return host.run(["ls", directory]).stdout


def test_the_status_is_true_after_each_change_and_then_nothing_is_written(
    incus: Incus, host: Host
) -> None:
    profile = incus.profile()
    name = launched(incus)
    wait_truth(incus, name, "ready$", "one", 1)
    source(incus, "two")
    bump(incus, name)
    wait_truth(incus, name, "ready$", "two", 2)
    failed = incus.launch(flake=f"/srv/{incus.prefix}#web", name=incus.name("failed"))
    offer(incus, "throw ''no such luck''")
    for one in name, failed:
        incus.set(one, "user.inx.update=3")
    wait_truth(incus, name, "failed: .*; generation 2 runs on$", "two", 2)
    incus.set(name, "user.inx.generation=1")
    wait_truth(incus, name, "ready$", "one", 1)
    source(incus, "three")
    incus.set(name, "user.inx.generation=", "user.inx.update=4")
    wait_truth(incus, name, "ready$", "three", 3)
    incus("snapshot", "create", name, "before")
    source(incus, "four")
    incus.set(name, "user.inx.update=5")
    wait_truth(incus, name, "ready$", "four", 4)
    incus("snapshot", "restore", name, "before")
    wait_truth(incus, name, "ready$", "three", 3)
    incus("restart", name)
    wait_truth(incus, name, "ready$", "three", 3)
    copied = incus.adopt(incus.name("copy"))
    incus("copy", name, copied)
    incus.start(copied)
    wait_truth(incus, copied, "ready$", "three", 3)
    assert listed_generations(incus, copied) == listed_generations(incus, name) == ({1, 2, 3}, 3)
    assert truth(incus, copied) == truth(incus, name)
    pinned = incus.adopt(incus.name("pinned"))
    incus("copy", f"{name}/before", pinned, "-c", "user.inx.generation=2")
    incus.start(pinned)
    wait_truth(incus, pinned, "ready$", "two", 2)
    wait_truth(incus, failed, "failed: .*; generation 1 runs on$", "two", 1)

    script = """
        incus monitor --type=lifecycle --format=json >"$SEEN" &
        trap 'kill $!' EXIT
        until grep -q profile-updated "$SEEN"; do
            incus profile set "$PROFILE" user.other="$(date +%N)"; sleep 0.1
        done
        sleep 15
        echo $(grep -c instance-updated "$SEEN")
        incus config set "$NAME" user.other=1
        until grep -q instance-updated "$SEEN"; do sleep 0.1; done
    """
    seen = f"/root/{incus.prefix}-events"
    env = {"SEEN": seen, "PROFILE": profile, "NAME": name}
    count = host.sh(script, env=env).stdout.strip()
    assert count == "0", host.run(["cat", seen]).stdout


def test_a_change_taken_back_while_the_sidecar_was_away_is_no_longer_active(
    incus: Incus, host: Host
) -> None:
    name = launched(incus)
    wait_truth(incus, name, "ready$", "one", 1)
    one = truth(incus, name)[1]
    source(incus, "two", activate=WAIT_FOR_GO)
    bump(incus, name)
    look = ["test", "-e", "/run/inx-activation.log"]
    incus.eventually(lambda: incus.run(name, *look, check=False).returncode == 0, incus.story)
    with stopped_sidecar(host):
        incus.sh(name, "touch /root/go")
        pid = incus.pid(name)
        incus.eventually(lambda: running_system(host, pid) != one, incus.story)
        incus("config", "unset", name, "user.inx.update")
    wait_truth(incus, name, "ready$", "one", 1)


def test_an_activation_that_a_sidecar_left_behind_is_waited_for(incus: Incus, host: Host) -> None:
    name = launched(incus)
    wait_truth(incus, name, "ready$", "one", 1)
    source(incus, "two", activate=WAIT_FOR_GO)
    bump(incus, name)

    def activations() -> int:
        argv = ["pgrep", "-fc", "^/dev/.inx/busybox sh -c"]
        return int(host.run(argv, check=False).stdout)

    incus.eventually(lambda: activations() == 1, incus.story)
    kill_sidecar(host)
    incus("config", "unset", name, "user.inx.update")
    incus.eventually(lambda: activations() > 1, incus.story)
    incus.sh(name, "touch /root/go")
    wait_truth(incus, name, "ready$", "one", 1)
    incus.eventually(lambda: activations() == 0, incus.story)
    wait_truth(incus, name, "ready$", "one", 1)


def test_a_failed_activation_that_was_taken_back_leaves_nothing_of_it(incus: Incus) -> None:
    name = launched(incus)
    source(incus, "two", activate=at_switch("exit 1"))
    bump(incus, name)
    incus.wait_status(name, "failed: activating")
    incus("config", "unset", name, "user.inx.update")
    wait_truth(incus, name, "ready$", "one", 1)
    assert says(incus, name, "one")
