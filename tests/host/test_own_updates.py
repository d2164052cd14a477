"""Updates of an instance in which Nix builds and collects all the time."""

import itertools

import pytest
from support.incus import Incus
from support.own import begin_builds, builds_done, is_right, own, part_of, system, update
from support.services import sync

pytestmark = pytest.mark.isolated

UPDATES = 20


def mounts(incus: Incus, name: str) -> int:
    return len(incus.host.run(["cat", f"/proc/{incus.pid(name)}/mountinfo"]).stdout.splitlines())


def test_twenty_updates_while_nix_builds_and_collects_inside(incus: Incus) -> None:
    systems = [system(incus, number) for number in (1, 2, 3, 4)]
    name = own(incus, systems[0])
    before = mounts(incus, name)
    begin_builds(incus, name, "loop", part_of(incus, systems[0]), collect=True)
    for number, toplevel in zip(range(1, UPDATES + 1), itertools.cycle(systems[1:] + systems[:1])):
        if number % 7 == 0:
            incus.host.run(["systemctl", "restart", "inx-sidecar"])
        update(incus, name, toplevel)
        seen = f"[ $(readlink -f /run/current-system) = {toplevel} ] && cat {toplevel}/etc/part"
        assert incus.inside(name, f"{seen} && cat $(cat {toplevel}/etc/part)"), incus.story()
    assert mounts(incus, name) == before, "no mount is made for an update"
    ended = builds_done(incus, name)
    incus.eventually(lambda: builds_done(incus, name) > ended + 1, incus.story)
    incus("restart", "-f", name)
    incus.wait_ready(name)
    incus.sh(name, "nix-collect-garbage -d")
    is_right(incus, name)
    sync(incus.host)
