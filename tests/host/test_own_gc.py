"""Collections inside an instance with a store of its own, and on the host, in all orders."""

import contextlib
from collections.abc import Iterator
from itertools import cycle

import pytest
from support.incus import POOL, Incus
from support.isolated import restart
from support.own import is_right, own, system, update
from support.own_steps import Life
from support.services import constant, restart_sidecar

pytestmark = pytest.mark.isolated

# What happens, each with its kinds in turn.
KINDS = [
    ["update", "roll back"],
    ["restart", "restart the sidecar"],
    ["build", "build without a root", "unroot"],
    ["collect all", "collect"],
    ["remove one", "delete one"],
    ["collect on the host", "drop on the host"],
]


def test_an_instance_that_keeps_many_former_systems_says_so(incus: Incus) -> None:
    name = own(incus, system(incus, 1))
    for number in (2, 3):
        update(incus, name, system(incus, number))
    with constant(incus.host, "instances/status_text", "_FORMER_MAX", 1):
        restart(incus, name)
        note = "keeps 2 former systems; run 'nix-collect-garbage -d' inside and restart"
        incus.wait_status(name, f"ready .{note}")
        restart_sidecar(incus.host)
        incus.wait_status(name, f"ready .{note}")
        incus("stop", "-f", name)
        incus.eventually(lambda: "keeps" not in incus.status(name), lambda: incus.status(name))
        incus.start(name)
        incus.wait_status(name, f"ready .{note}")
        incus.sh(name, "nix-collect-garbage -d")
        restart(incus, name)
        incus.eventually(lambda: incus.status(name) == "ready", lambda: incus.status(name))


def all_pairs(count: int) -> list[int]:
    """Numbers below `count`, in an order in which each follows each once: a de Bruijn sequence."""
    return [
        number
        for first in range(count)
        for number in (first, *(n for second in range(first + 1, count) for n in (first, second)))
    ]


def test_collections_in_all_orders_leave_what_is_needed(incus: Incus) -> None:
    kinds = [cycle(names) for names in KINDS]
    Life(incus).run([*(next(kinds[number]) for number in all_pairs(len(KINDS))), "restart"])


@contextlib.contextmanager
def collecting(incus: Incus, name: str) -> Iterator[None]:
    """A collection runs inside within the block: it holds this lock from begin to end."""
    host, marks = incus.host, f"/srv/{name}-collects"
    hold = """
        mkdir "$M"
        setsid flock "$L" sh -c 'touch "$M/held"; until [ -e "$M/end" ]; do sleep 0.1; done' \
            >/dev/null 2>&1 &
        until [ -e "$M/held" ]; do sleep 0.1; done
    """
    lock = {"L": f"{POOL}/{name}/rootfs/nix/var/nix/gc.lock", "M": marks}
    host.sh(hold, env=lock)
    try:
        yield
    finally:
        host.sh('touch "$M/end"; flock "$L" rm -r "$M"', env=lock)


def test_a_collection_inside_delays_an_update_and_no_start(incus: Incus) -> None:
    one, two, three = (system(incus, number) for number in (1, 2, 3))
    name = own(incus, one)
    with collecting(incus, name):
        incus.set(name, f"user.inx.system={two}")
        waits = ["grep", "-q", "-e", "-> FLOCK", "/proc/locks"]
        incus.eventually(lambda: incus.host.run(waits, check=False).returncode == 0, incus.story)
        assert not incus.inside(name, f"test -e {two}")
    update(incus, name, two)
    is_right(incus, name)

    with constant(incus.host, "container/own_growth", "_LOCK_SECONDS", 0.2):
        with collecting(incus, name):
            incus.set(name, f"user.inx.system={three}")
            incus.wait_status(name, ".*a garbage collection inside .* does not end, or a file")
            assert incus.inside(name, f"[ $(readlink -f /run/current-system) = {two} ]")
            assert not incus.inside(name, f"test -e {three}")
            restart(incus, name)
            incus.wait_ready(name)
        assert incus.inside(name, f"[ $(readlink -f /run/current-system) = {three} ]")
        is_right(incus, name)
