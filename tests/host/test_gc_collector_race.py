"""A collection runs while clients register roots, change links, and lose their sidecar.

The tests stop the collection at each of its stages, and let the clients act exactly there.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.disposable import Host
from support.gc import (
    BARRIER,
    SIDECAR,
    SYNC,
    collect,
    expression,
    main_pid,
    paused,
    send_signal,
    without,
)
from support.gc_stages import (
    OPENS_NEXT,
    Collection,
    Instance,
    Registration,
    Stage,
    again_if_nix_aborts,
    drain,
    fresh_numbers,
    restore_units,
    running,
    wait_for_successor,
    wait_held,
    wait_success,
    wait_until,
)
from support.incus import SECONDS
from support.nixworker import make_link

pytestmark = pytest.mark.gc

RUNS = [Stage.LOCKED, Stage.READ, Stage.ROOTED]


@pytest.fixture(scope="module")
def instance(host: Host) -> Iterator[Instance]:
    with Instance.launched(host) as instance:
        yield instance


@pytest.fixture(autouse=True)
def units(host: Host) -> Iterator[None]:
    """Sidecar and barrier run again after each test."""
    yield
    restore_units(host)


class Clients:
    """One client for each way to spread the three steps of a registration over the stages."""

    def __init__(self, instance: Instance) -> None:
        stages = list(Stage)
        self.host = instance.host
        self._clients = {
            (begin, register, leave): Registration(instance)
            for begin in stages[:-1]
            for register in stages[begin:]
            for leave in stages[register:]
            # In the stage LOCKED, no client gets a temporary root.
            if begin is not Stage.LOCKED or register > Stage.LOCKED
        }
        self._blocked: list[threading.Thread] = []

    def act(self, stage: Stage) -> None:
        """Make all steps that are planned for this stage."""
        for thread in self._blocked:
            thread.join(SECONDS)
            assert not thread.is_alive(), "a client still waits for a temporary root"
        self._blocked = []
        for (begin, register, leave), client in self._clients.items():
            if begin == stage == Stage.LOCKED:
                self._blocked.append(threading.Thread(target=client.begin, daemon=True))
                self._blocked[-1].start()
            elif begin == stage:
                client.begin()
            if register == stage:
                client.register()
            if leave == stage:
                client.leave()

    def lost(self) -> list[str]:
        """The plans of those clients whose path is gone."""
        return [
            "/".join(stage.name for stage in plan)
            for plan, client in self._clients.items()
            if not client.in_store()
        ]

    def end(self) -> None:
        """Remove all links: now a collection deletes all paths."""
        for client in self._clients.values():
            client.leave()
            client.unlink()
        self.host.run(SYNC)
        collect(self.host)
        assert len(self.lost()) == len(self._clients)


def act_at_once(clients: Clients, collection: Collection, stage: Stage) -> None:
    clients.act(stage)


def act_before_the_sidecar_wakes(clients: Clients, collection: Collection, stage: Stage) -> None:
    """The sidecar sees the registrations only when the barrier already holds the collection."""
    with paused(clients.host):
        clients.act(stage)
        if stage in OPENS_NEXT:
            collection.let_go()
            wait_held(clients.host, OPENS_NEXT[stage])


def act_and_drain(clients: Clients, collection: Collection, stage: Stage) -> None:
    """The collection goes on when the sidecar has told it of the new roots."""
    clients.act(stage)
    if stage is not Stage.LOCKED:  # the collection does not listen yet
        drain(clients.host)


@dataclass(frozen=True)
class Way:
    """How the clients act at each stage, and whether the barrier runs."""

    act: Callable[[Clients, Collection, Stage], None]
    barrier: bool = True


WAYS = {
    "with the barrier": Way(act_at_once),
    "when the sidecar sees it while the collection waits": Way(act_before_the_sidecar_wakes),
    "without the barrier, once the collection is told": Way(act_and_drain, barrier=False),
}


def barrier_stopped(host: Host, barrier: bool) -> contextlib.AbstractContextManager[None]:
    """While the block runs, the barrier does not, unless `barrier` is true."""
    return contextlib.nullcontext() if barrier else without(host, BARRIER)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@again_if_nix_aborts
def test_a_root_holds_at_whichever_stages_its_client_comes_and_leaves(
    instance: Instance, way: Way
) -> None:
    clients = Clients(instance)
    with barrier_stopped(instance.host, way.barrier):
        with Collection(instance.host) as collection:
            for stage in Stage:
                collection.reach(stage)
                way.act(clients, collection, stage)
        assert clients.lost() == []
        collect(instance.host)
        assert clients.lost() == []
        clients.end()


@again_if_nix_aborts
def test_a_build_inside_that_begins_while_a_collection_runs_is_kept(instance: Instance) -> None:
    host, name = instance.host, f"race-build-{next(fresh_numbers)}"
    link, source = instance.inside(f"/srv/{name}"), instance.inside(f"/srv/{name}.nix")
    text = expression(name, "echo $name > $out")
    script = f"cd /srv; echo '{text}' >{name}.nix; nix-build {name}.nix -o {name}"
    argv = ["incus", "exec", instance.name, "--", "sh", "-euc", script]
    for stage in RUNS:
        with Collection(host) as collection:
            collection.reach(stage)
            with running(host, *argv) as build:
                wait_until(source.exists, "the build does not begin")
                if stage is not Stage.LOCKED:
                    wait_success(build)
                collection.reach(Stage.AFTER)
                if stage is Stage.LOCKED:
                    wait_success(build)
        built = os.readlink(link)
        assert instance.in_store(built), stage
        collect(host)
        assert instance.in_store(built), stage
        link.unlink()
        source.unlink()
        collect(host)
        assert not instance.in_store(built), stage


@dataclass(frozen=True)
class Change:
    """What happens to links while a collection runs.

    The link of `old` holds its path before. After `prepare`, `change` is called during the
    collection. Then the path of `new` must be held, and not that of `old`.
    """

    prepare: Callable[[Registration], None]
    change: Callable[[Registration, Registration], None]
    same_link: bool = True


def register_new(old: Registration, new: Registration) -> None:
    new.register()
    new.leave()


def lead_to_new(old: Registration, new: Registration) -> None:
    """Nix is not told. The client of `new` holds its path until the collection has ended."""
    make_link(new.path, os.fspath(old.instance.inside(old.link)))


def remove_old(old: Registration, new: Registration) -> None:
    old.unlink()


CHANGES = {
    "registered anew": Change(Registration.begin, register_new),
    "led elsewhere without being registered": Change(Registration.begin, lead_to_new),
    "removed": Change(Registration.complete, remove_old, same_link=False),
}


@pytest.mark.parametrize("stage", RUNS, ids=lambda stage: stage.name)
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@again_if_nix_aborts
def test_a_link_that_changes_during_a_collection_holds_only_what_it_leads_to(
    instance: Instance, change: Change, stage: Stage
) -> None:
    old = Registration(instance)
    old.complete()
    new = Registration(instance, old.link if change.same_link else "")
    change.prepare(new)
    with Collection(instance.host) as collection:
        collection.reach(stage)
        change.change(old, new)
        collection.reach(Stage.AFTER)
    assert new.in_store()
    # A collection that has already read the old root keeps its path this one time.
    assert old.in_store() == (stage > Stage.LOCKED)
    if stage is Stage.LOCKED:
        new.leave()  # the collection has read the roots after the change
    collect(instance.host)
    assert new.in_store() and not old.in_store()
    new.leave()
    collect(instance.host)
    assert new.in_store() and not old.in_store()
    new.unlink()
    collect(instance.host)
    assert not new.in_store()


def silence(pid: int) -> None:
    """Stop a collection that waits for a directory: it listens, but does not answer.

    It goes on when it gets SIGCONT.
    """
    tasks = Path(f"/proc/{pid}/task")
    listening = [task for task in tasks.iterdir() if task.name != str(pid)]
    # The thread that waits does not get the signal. Another thread gets it, and stops all.
    os.kill(int(listening[0].name), signal.SIGSTOP)

    def silent() -> bool:
        states = [(task / "stat").read_text().rpartition(")")[2].split()[0] for task in listening]
        return set(states) == {"T"}

    wait_until(silent, "the collection does not stop")


@pytest.mark.parametrize("barrier", [True, False], ids=["with-barrier", "without-barrier"])
@again_if_nix_aborts
def test_the_next_sidecar_tells_a_collection_of_roots_that_the_last_one_could_not(
    instance: Instance, barrier: bool
) -> None:
    """The last sidecar dies after it made the roots, and the collection has read gcroots before."""
    host = instance.host
    first, *clients = (Registration(instance) for _ in range(6))
    with barrier_stopped(host, barrier):
        for client in first, *clients:
            client.begin()
        with Collection(host) as collection:
            collection.reach(Stage.READ)
            # The sidecar connects to the collection now, and stays connected: a connection that is
            # opened and closed at once can end the collection (see NixAborted).
            first.register()
            drain(host)
            silence(collection.pid)
            try:
                with paused(host):
                    for client in clients:
                        client.register()
                        client.leave()
                for client in clients:
                    wait_until(client.rooted, "a root is missing")
                before = main_pid(host)
                send_signal(host, "KILL")
                wait_for_successor(host, SIDECAR, before)
            finally:
                os.kill(collection.pid, signal.SIGCONT)
            if not barrier:
                drain(host)
            collection.reach(Stage.AFTER)
        assert [client.path for client in clients if not client.in_store()] == []
        for client in first, *clients:
            client.unlink()


@again_if_nix_aborts
def test_nothing_is_lost_if_the_sidecar_is_killed_while_it_waits_for_a_collection_to_listen(
    instance: Instance,
) -> None:
    host = instance.host
    client = Registration(instance)
    client.begin()
    with Collection(host) as collection:
        collection.reach(Stage.LOCKED)
        client.register()
        client.leave()
        wait_until(client.rooted, "the root is missing")
        send_signal(host, "KILL")
        collection.reach(Stage.AFTER)
    assert client.in_store()
    client.unlink()
