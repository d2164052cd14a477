"""What `incus export` carries to another host, whose store holds nothing of it."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.disposable import Host
from support.gc import add_to_store, assert_kept, build, run_inside, said_inside
from support.incus import Incus
from support.own import build as build_inside
from support.own import is_right, own, part_of, system, update
from support.services import PROGRAM, journal, restart_sidecar, sync

from inx_sidecar.links.indirect_roots import name_of

pytestmark = pytest.mark.life

CACHE = "/srv/cache"
PROFILE = "/nix/var/nix/profiles/system"
NIX = ["nix", "--extra-experimental-features", "nix-command flakes"]


@pytest.fixture(scope="module")
def second() -> Iterator[Host]:
    """A host with inx that has never seen the systems of the first."""
    with Host.up(f"test-{os.getpid()}-second") as second:
        yield second
        said = second.sh("journalctl -q --no-pager -u inx-sidecar; cat /var/log/inx/hooks.log || :")
        assert "Traceback" not in said.stdout, said.stdout[said.stdout.index("Traceback") - 500 :]


@pytest.fixture
def there(incus: Incus, second: Host, request: pytest.FixtureRequest) -> Iterator[Incus]:
    """The verbs of incus on the second host."""
    there = Incus(second, incus.prefix)
    yield there
    if getattr(request.node, "failed", False):
        print(there.story())
    there.clean_up()


def carry(incus: Incus, there: Incus, path: str) -> None:
    """Copy a file or directory from the first host to the same place on the second."""
    base, name = os.path.split(path)
    there.host.push(Path(f"{incus.host.root}{base}"), [name], base)


@contextmanager
def cache(incus: Incus, there: Incus, *systems: str) -> Iterator[None]:
    """A binary cache on the second host with all that `systems` need, as the first has it."""
    incus.host.run([*NIX, "copy", "--to", f"file://{CACHE}?compression=none", *systems])
    carry(incus, there, CACHE)
    conf = "/etc/nix/nix.conf"
    there.host.sh(
        f"""cp {conf} /root/nix.conf
            printf 'substituters = file://{CACHE}\\nrequire-sigs = false\\n' >>{conf}
            systemctl stop nix-daemon.service"""
    )
    try:
        yield
    finally:
        there.host.sh(f"mv /root/nix.conf {conf}; systemctl stop nix-daemon.service; rm -r {CACHE}")
        incus.host.run(["rm", "-r", CACHE])


def source(incus: Incus, text: str) -> str:
    """A flake with a system that only the first host has."""
    return incus.flake(greeting=f"{text} of {incus.prefix}")


def two_generations(incus: Incus, snapshot: str = "", **config: str) -> tuple[str, list[str]]:
    """An instance and its systems; `snapshot` is one of the first."""
    name = incus.launch(flake=f"{source(incus, 'one')}#web", **config)
    systems = [incus.get(name, "user.inx.status.system")]
    if snapshot:
        incus("snapshot", "create", name, snapshot)
    source(incus, "two")
    incus.set(name, "user.inx.update=2")
    incus.wait_generation(name, "2")
    systems.append(incus.get(name, "user.inx.status.system"))
    return name, systems


def moved(incus: Incus, there: Incus, name: str, *systems: str) -> str:
    """Export `name` and import it on the second host, which has none of `systems`."""
    path = f"/srv/{name}.tar"
    incus.host.run(["rm", "-f", path])  # Incus 7 replaces no file
    incus("export", name, path, "--compression=none")
    carry(incus, there, path)
    assert not [system for system in systems if holds(there, system)]
    there.adopt(name)
    there("import", path)
    return name


def holds(there: Incus, system: str) -> bool:
    argv = ["nix-store", "--check-validity", system]
    return there.host.run(argv, check=False).returncode == 0


def runs(there: Incus, name: str, system: str, text: str, number: str = "2") -> None:
    """`system` runs, as this generation, says `text` and outlives a collection."""
    # A moved instance brings the status of the host before.
    there.wait_inside(name)
    wanted = ["ready", number, system]
    keys = ("user.inx.status", "user.inx.status.generation", "user.inx.status.system")
    there.eventually(lambda: [there.get(name, key) for key in keys] == wanted, there.story)
    greeting = f"{text} of {there.prefix}"
    there.sh(
        name,
        f'[ "$(readlink /run/current-system) $(cat /etc/greeting)" = "{system} {greeting}" ]',
    )
    closure = there.host.run(["nix-store", "-qR", system]).stdout.split()
    there.host.run(["/opt/inx/bin/inx-sidecar", "sync"])
    there.host.run(["nix-collect-garbage"])
    assert all(holds(there, path) for path in closure)
    assert roots(there, name)[f"system-{number}"] == system


def roots(there: Incus, name: str) -> dict[str, str]:
    directory = f"/nix/var/nix/gcroots/inx/{name}.{there.uuid(name)}"
    script = 'cd "$D"; for root in *; do [ ! -L $root ] || echo $root $(readlink $root); done'
    listed = there.host.sh(script, env={"D": directory}).stdout.splitlines()
    return dict(line.split() for line in listed)


def history(there: Incus, name: str) -> list[str]:
    """The numbers of the generations that Nix lists inside, with what it says of the current."""
    there.sh(name, f"nix-env --list-generations -p {PROFILE} >/root/listed")
    listed = there.host.run(["cat", f"/proc/{there.pid(name)}/root/root/listed"]).stdout
    return [re.sub(r"\s+\S+ \S+\s*", " ", line).strip() for line in listed.splitlines()]


def refused(there: Incus, name: str) -> str:
    """Start `name`; the sentence for which it is not there."""
    there.start(name, check=False)
    status = there.wait_status(name, "failed: ")
    there.wait_state(name, "STOPPED")
    reason = status.removeprefix("failed: ")
    there.wait_log(name, f"ERROR    inx - {reason}\n")
    return reason


def test_a_binary_cache_gives_all_generations_though_their_flake_is_not_there(
    incus: Incus, there: Incus
) -> None:
    name, (one, two) = two_generations(incus)
    with cache(incus, there, one, two):
        moved(incus, there, name, one, two)
        there.start(name)
        runs(there, name, two, "two")
        assert history(there, name) == ["1", "2 (current)"]
        there.eventually(lambda: "system-1" in roots(there, name), there.story)
    assert roots(there, name).keys() == {"booted-system", "system-1", "system-2"}
    there.set(name, "user.inx.generation=1")
    runs(there, name, one, "one", "1")
    there("config", "unset", name, "user.inx.generation")
    runs(there, name, two, "two")
    there("restart", "-f", name)
    runs(there, name, two, "two")
    assert history(there, name) == ["1", "2 (current)"]


def test_what_was_built_inside_follows_from_a_cache_or_is_named(incus: Incus, there: Incus) -> None:
    name = incus.launch(flake=f"{source(incus, 'one')}#web")
    system = incus.get(name, "user.inx.status.system")
    kept = build(incus, name, "kept", link="/root/kept")
    lost = build(incus, name, "lost", link="/root/lost")
    later = build(incus, name, "later", link="/root/later")
    # A derivation is never built, although the store of the second host has all that it needs.
    run_inside(
        incus,
        name,
        'nix-instantiate --add-root /root/drv --expr "$EXPR"; readlink /root/drv',
        thing="built",
    )
    derivation = said_inside(incus, name)
    output = incus.host.run(["nix-store", "-q", "--outputs", derivation]).stdout.strip()
    with cache(incus, there, system, kept, derivation):
        moved(incus, there, name, system, kept, lost, later, derivation)
        there.start(name)
        said = there.wait_status(name, "ready .*lost")
        links = "2 store paths that it links are lost (2 fetched), see 'inx-sidecar roots"
        assert said == f"ready ({links} {name}')"
        assert holds(there, derivation) and not holds(there, output)
        there.inside(name, "grep kept /root/kept")
        assert_kept(there, kept, derivation)
        listed = there.host.run([PROGRAM, "roots", name]).stdout.splitlines()
        named = {tuple(line.split()[2:]) for line in listed if " lost " in line}
        assert named == {("lost", later, "/root/later"), ("lost", lost, "/root/lost")}, listed
        assert f"{name}: lost: '/root/lost' -> {lost}" in journal(there.host, name)
        assert f"{name}: fetched: '/root/kept' -> {kept}" in journal(there.host, name)

        # One comes by another way, the other one is not wanted any more.
        incus.host.run([*NIX, "copy", "--to", f"file://{CACHE}?compression=none", later])
        carry(incus, there, CACHE)
        there.host.run(["nix-store", "--realise", later])
        sync(there.host)
        assert_kept(there, later)
        there.wait_status(name, "ready .1 store path that it links is lost")
        restart_sidecar(there.host)
        there.wait_status(name, "ready .1 store path that it links is lost")
        there.run(name, "rm", "/root/lost")
        sync(there.host)
        there.wait_status(name, "ready$")
    assert "lost" not in there.host.run([PROGRAM, "roots", name]).stdout


def test_a_chosen_generation_is_fetched_and_never_built(incus: Incus, there: Incus) -> None:
    """The source gives another system by now."""
    name, (one, two) = two_generations(incus)
    incus.set(name, "user.inx.generation=1")
    incus.wait_generation(name, "1")
    moved(incus, there, name, one, two)
    carry(incus, there, f"/srv/{incus.prefix}")
    there.start(name)
    said = there.wait_status(name, "failed: ")
    there.wait_state(name, "STOPPED")
    assert f"generation 1 of '{name}' is {one}, which is not in the store; copy it" in said
    assert not holds(there, two)
    with cache(incus, there, one):
        there.set(name, "user.inx.update=again")
        there.start(name)
        runs(there, name, one, "one", "1")
    there("config", "unset", name, "user.inx.generation")
    there("config", "unset", name, "user.inx.update")
    there.set(name, "user.inx.update=2")
    runs(there, name, two, "two")


def test_a_snapshot_and_a_copy_bring_their_systems(incus: Incus, there: Incus) -> None:
    name, (one, two) = two_generations(incus, "before")
    copied = incus.adopt(incus.name("copy"))
    incus("copy", f"{name}/before", copied)
    with cache(incus, there, one, two):
        moved(incus, there, name, one, two)
        moved(incus, there, copied, one, two)
        there.start(copied)
        runs(there, copied, one, "one", "1")
        assert history(there, copied) == ["1 (current)"]
        there.start(name)
        runs(there, name, two, "two")
        there("snapshot", "restore", name, "before")
        runs(there, name, one, "one", "1")
        assert history(there, name) == ["1 (current)"]


def test_the_same_flake_gives_the_same_system(incus: Incus, there: Incus) -> None:
    name, (one, two) = two_generations(incus)
    moved(incus, there, name, one, two)
    carry(incus, there, f"/srv/{incus.prefix}")
    there.start(name)
    runs(there, name, two, "two")
    assert history(there, name) == ["1", "2 (current)"]
    source(there, "three")
    there.set(name, "user.inx.update=3")
    there.wait_generation(name, "3")
    there.set(name, "user.inx.generation=2")
    runs(there, name, two, "two")
    there("restart", "-f", name)
    runs(there, name, two, "two")


def test_with_neither_it_says_so_and_starts_once_the_flake_is_there(
    incus: Incus, there: Incus
) -> None:
    name, (one, two) = two_generations(incus)
    moved(incus, there, name, one, two)
    flake = f"/srv/{incus.prefix}"
    said = refused(there, name)
    assert said.startswith(f"cannot build the system of '{name}' from {flake}#web: ")
    assert flake in said.partition(": ")[2] and "\n" not in said
    carry(incus, there, flake)
    there.start(name)
    runs(there, name, two, "two")
    assert history(there, name) == ["1", "2 (current)"]


@pytest.mark.isolated
@pytest.mark.parametrize("store", ["isolated", "own"])
def test_an_isolated_instance_is_built_from_its_source_whatever_its_links_say(
    incus: Incus, there: Incus, store: str
) -> None:
    """Neither a seal of the first host nor a system that the second holds makes it start, and what
    it names, as if it had registered that, is not fetched."""
    name, (one, two) = two_generations(incus, store=store)
    secret = add_to_store(incus, "secret")
    auto = f"/nix/var/nix/gcroots/auto/{name_of('/root/secret')}"
    incus.sh(
        name,
        f"""ln -s {secret} /root/secret; mkdir -p {os.path.dirname(auto)}
            ln -s /root/secret {auto}""",
    )
    forged = there.host.run(["nix-build", "/etc/nixos", "-A", "second", "-o", "/srv/forged"])
    system = forged.stdout.strip()
    with cache(incus, there, one, two, secret):
        moved(incus, there, name, one, two, secret)
        there.host.run(["nix-store", "--realise", one])
        assert "cannot build the system" in refused(there, name)
        assert not holds(there, two)
        carry(incus, there, f"/srv/{incus.prefix}")
        there.start(name)
        runs(there, name, two, "two")
        shown = there.host.run(["ls", f"/proc/{there.pid(name)}/root/nix/store"]).stdout.split()
        needed = there.host.run(["nix-store", "-qR", two]).stdout.split()
        assert sorted(f"/nix/store/{entry}" for entry in shown) == sorted(needed)
        assert not holds(there, secret)
        there.wait_status(name, "ready$")

        # Made up before it left.
        incus.sh(
            name,
            f"""cd /nix/var/nix/profiles; ln -s {system} system-9-link
                cp -P system-2-seal system-9-seal; ln -sfn system-9-link system""",
        )
        there("delete", "-f", name)
        moved(incus, there, name)
        there.host.run(["rm", "-r", f"/srv/{incus.prefix}"])
        refused(there, name)
        assert "Welcome" not in there.console(name)
        carry(incus, there, f"/srv/{incus.prefix}")
        there.start(name)
        runs(there, name, two, "two", "10")


@pytest.mark.isolated
def test_a_store_of_its_own_has_there_what_that_host_shows_and_what_needs_nothing_else(
    incus: Incus, there: Incus
) -> None:
    one, two = system(incus, 1), system(incus, 2)
    name, (part, other) = own(incus, one), (part_of(incus, path) for path in (one, two))
    build_inside(incus, name, "lost", part, "/root/lost")
    update(incus, name, two)
    build_inside(incus, name, "kept", other, "/root/kept")
    build_inside(incus, name, "further", "$(readlink /root/lost)", "/root/further")
    is_right(incus, name)
    with cache(incus, there, two):
        moved(incus, there, name, one, two)
        there.start(name)
        # What cannot be valid there: lost, further, and their derivations.
        told = "ready .4 store paths that were built inside lack what they need; build them again.$"
        there.wait_status(name, told)
    for sidecar in ("that began it", "that took over"):
        for path in (two, other, "/root/kept/part"):
            assert there.inside(name, f"test -e {path}"), path
        assert not there.inside(name, f"test -e {part}") and not holds(there, part)
        valid = there.said(name, "nix", "path-info", "--all")
        assert "-kept" in valid and not re.search("-lost|-further", valid)
        there.sh(name, "nix-store --verify --check-contents")
        restart_sidecar(there.host)
        sync(there.host)
        assert re.match(told, there.status(name)), sidecar
    # Nix inside builds one of them again, and collects what is left of the others.
    build_inside(there, name, "lost", other, "/root/lost")
    there.sh(name, "nix-store --gc")
    is_right(there, name)
    there("restart", "-f", name)
    there.wait_inside(name)
    there.wait_status(name, "ready$")
    is_right(there, name)
    assert there.inside(name, "grep -q lost /root/lost/ids && ! test -e /root/further/ids")

    # Back on the first host, whatever was shown there before.
    there("stop", "-f", name)
    incus("delete", "-f", name)
    there("export", name, f"/srv/{name}-back.tar", "--compression=none")
    carry(there, incus, f"/srv/{name}-back.tar")
    incus("import", f"/srv/{name}-back.tar")
    incus.start(name)
    incus.wait_inside(name)
    incus.wait_status(name, "ready$")
    is_right(incus, name)
