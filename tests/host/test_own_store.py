"""In an instance with a store of its own, Nix builds and collects, and the host shows the rest."""

import pytest
from support.incus import Incus
from support.isolated import LOOK_INSIDE, restart, things
from support.own import begin_builds, build, is_right, own, part_of, system, update
from support.store import closure, collect, exists

pytestmark = pytest.mark.isolated


def there(incus: Incus, name: str, path: str) -> bool:
    return incus.inside(name, f"test -e {path}")


@pytest.mark.sid
@pytest.mark.parametrize("privileged", ["false", "true"])
def test_nix_builds_and_collects_inside_and_the_host_shows_systems(
    incus: Incus, privileged: str
) -> None:
    one, two, three = (system(incus, number) for number in (1, 2, 3))
    parts = {toplevel: part_of(incus, toplevel) for toplevel in (one, two, three)}
    name = own(incus, one, "-c", f"security.privileged={privileged}")
    assert incus.sh(name, LOOK_INSIDE, check=False).returncode == 4, "the store can be written"
    incus.sh(name, "rm /nix/store/planted; nix store ping 2>&1 | grep -q local")
    is_right(incus, name)
    assert set(incus.said(name, "nix", "path-info", "--all").split()) == closure(incus.host, one)
    build(incus, name, "needs-one", parts[one], "/root/needs-one")
    is_right(incus, name)

    # What was built against a former system works after updates and restarts.
    update(incus, name, two)
    assert there(incus, name, f"{two}/init") and there(incus, name, f"{one}/init")
    is_right(incus, name)
    restart(incus, name)
    incus.wait_ready(name)
    is_right(incus, name)
    assert incus.inside(name, "grep -q 'part 1' /root/needs-one/part")

    # The collector inside hides what nothing inside needs; an update shows it again.
    incus.sh(name, "nix-collect-garbage -d")
    is_right(incus, name)
    assert not there(incus, name, one) and there(incus, name, parts[one])
    assert exists(incus.host, one)
    update(incus, name, three)
    update(incus, name, one)
    is_right(incus, name)
    assert there(incus, name, f"{one}/init")

    # Once nothing inside needs the other systems, the host lets them go at the next start.
    incus.sh(name, "rm /root/needs-one")
    for _ in range(2):  # the system that was booted is in use until the restart
        incus.sh(name, "nix-collect-garbage -d")
        restart(incus, name)
        incus.wait_ready(name)
        is_right(incus, name)
    for toplevel, number in ((two, 2), (three, 3)):
        incus.host.run(["rm", f"/srv/{incus.prefix}-own-s{number}"])
        assert not there(incus, name, toplevel)
    incus.host.run(["inx-sidecar", "sync"])
    collect(incus.host)
    assert not exists(incus.host, two) and exists(incus.host, one)
    is_right(incus, name)


def test_an_instance_boots_systemd_with_nix_inside(incus: Incus) -> None:
    first, second = (system(incus, number, "d") for number in (1, 2))
    name = own(incus, first)
    is_right(incus, name)
    build(incus, name, "built", part_of(incus, first), "/root/built")
    update(incus, name, second)
    is_right(incus, name)
    # A namespace of a service that began before the update sees what is new.
    assert incus.inside(name, f"test -e {second}/init")


def test_snapshots_copies_and_exports_have_what_was_built(incus: Incus) -> None:
    one, two = system(incus, 1), system(incus, 2)
    name, part = own(incus, one), part_of(incus, one)
    build(incus, name, "first", part, "/root/first")
    incus("snapshot", "create", name, "early")
    build(incus, name, "second", part, "/root/second")
    update(incus, name, two)
    incus.sh(name, "rm /root/first; nix-collect-garbage -d")
    incus("stop", "-f", name)

    copy = incus.adopt(incus.name("copy"))
    incus("copy", name, copy)
    for instance in (copy, name):
        if instance == name:
            incus("snapshot", "restore", name, "early")
        incus.start(instance)
        incus.wait_ready(instance)
        is_right(incus, instance)
    assert there(incus, copy, "/root/second/ids") and not there(incus, copy, "/root/first")
    assert there(incus, name, "/root/first/ids") and not there(incus, name, "/root/second")

    incus("stop", "-f", copy)
    incus("export", copy, f"/srv/{copy}.tar.gz")
    incus("delete", copy)
    incus("import", f"/srv/{copy}.tar.gz")
    incus.start(copy)
    incus.wait_ready(copy)
    is_right(incus, copy)
    assert there(incus, copy, "/root/second/part")


def test_a_kill_in_the_middle_of_builds_leaves_a_store_that_is_right(incus: Incus) -> None:
    one = system(incus, 1)
    name, part = own(incus, one), part_of(incus, one)
    for number in range(3):
        begin_builds(incus, name, f"loop-{number}", part)
        incus.eventually(lambda: incus.inside(name, "test -e /root/loop-2/ids"), incus.story)
        incus("stop", "-f", name)
        incus.start(name)
        incus.wait_ready(name)
        incus.sh(name, "rm /root/loop-*; nix-store --gc")
        is_right(incus, name)


def test_a_system_that_is_built_while_the_init_waits(incus: Incus) -> None:
    name = incus.launch(store="own", file=things(incus), attr="busybox")
    is_right(incus, name)
    assert incus.inside(name, "touch /nix/store/planted && rm /nix/store/planted")
    build(incus, name, "built", "$(nix-store -qR /run/current-system | grep plain)", "/root/built")
    is_right(incus, name)
    incus.set(name, "user.inx.attr=systemd")
    incus.eventually(lambda: incus.get(name, "user.inx.status.generation") == "2", incus.story)
    restart(incus, name)
    incus.wait_ready(name)
    is_right(incus, name)
    assert there(incus, name, "/root/built/part")


def test_a_system_that_is_only_activated_is_kept_from_the_collector_inside(incus: Incus) -> None:
    one, two = system(incus, 1), system(incus, 2)
    name = own(incus, one, activate="test")
    update(incus, name, two)
    incus.sh(name, "nix-collect-garbage -d")
    is_right(incus, name)
    assert there(incus, name, f"{two}/init") and there(incus, name, f"{one}/init")
    restart(incus, name)
    incus.wait_ready(name)
    is_right(incus, name)
    incus.set(name, "user.inx.activate=dry-activate", "user.inx.update=again")
    incus.wait_status(name, "ready .tried: ")
    is_right(incus, name)


def test_an_update_is_refused_if_root_inside_has_unmounted_the_view(incus: Incus) -> None:
    one, two = system(incus, 1), system(incus, 2)
    name = own(incus, one)
    incus.sh(name, "umount /nix/.inx")
    incus.set(name, f"user.inx.system={two}")
    incus.wait_status(name, ".*/nix/.inx of .* was unmounted inside, so the new system cannot be")
    incus.sh(name, "touch /root/writable")
    restart(incus, name)
    incus.wait_ready(name)
    assert incus.get(name, "user.inx.status.system") == two
    is_right(incus, name)


def test_nothing_that_was_built_vanishes_while_the_store_is_another_one(incus: Incus) -> None:
    """What each kind of store was given, or made, is there again when that kind comes back."""
    one, two = system(incus, 1), system(incus, 2)
    part = part_of(incus, one)
    name = incus.launch(system=one)
    build(incus, name, "shared", part, "/root/shared")
    built = incus.said(name, "readlink", "/root/shared").strip()

    def becomes(store: str) -> None:
        incus.set(name, f"user.inx.store={store}")
        restart(incus, name)
        incus.wait_ready(name)
        incus.host.run(["inx-sidecar", "sync"])
        collect(incus.host)

    becomes("own")
    assert exists(incus.host, built) and not there(incus, name, built)
    is_right(incus, name)
    build(incus, name, "own", part, "/root/own")
    update(incus, name, two)
    incus.host.run(["rm", f"/srv/{incus.prefix}-own-s1"])
    incus.sh(name, "nix-collect-garbage -d")
    is_right(incus, name)

    becomes("isolated")
    assert not there(incus, name, "/root/own/part") and exists(incus.host, part)
    becomes("own")
    assert incus.inside(name, "grep -q 'part 1' /root/own/part")
    is_right(incus, name)

    becomes("shared")
    assert there(incus, name, "/root/shared/part")
    becomes("own")
    assert incus.inside(name, "grep -q 'part 1' /root/own/part")
    is_right(incus, name)
    becomes("shared")
    assert there(incus, name, "/root/shared/part") and exists(incus.host, built)
