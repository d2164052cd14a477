"""`user.inx.store.include`: more store paths that an isolated instance sees, and how long."""

import pytest
from support.disposable import Host
from support.incus import Incus
from support.isolated import (
    boots_again,
    is_collected,
    isolated,
    made,
    ready_made,
    restart,
    sees_its_closure_alone,
)
from support.refusals import sentence
from support.services import sync
from support.store import closure, collect, exists

pytestmark = pytest.mark.isolated

ABSENT = "/nix/store/00000000000000000000000000000000-absent"
GCROOTS = "/nix/var/nix/gcroots/inx"


@pytest.mark.parametrize("where", ["instance", "profile"])
def test_included_paths_show_with_all_that_they_need(incus: Incus, host: Host, where: str) -> None:
    link, program = made(incus, "link", "program")
    file = f"/srv/{incus.prefix}-added"
    host.run(["sh", "-euc", f"echo added >{file}; ln -s nowhere {file}-link"])
    added = [
        host.run(["nix-store", "--add", path]).stdout.strip() for path in (file, f"{file}-link")
    ]
    several = [link, program, *added]
    if where == "profile":
        profile = incus.profile()
        for key in "store=isolated", f"store.include={several[0]}":
            incus("profile", "set", profile, f"user.inx.{key}")
        name = incus.launch("--profile", profile, system=ready_made(host))
    else:
        name = isolated(incus, store_include=several[0])
    sees_its_closure_alone(incus, name, several[0])
    assert not {link, program} & closure(host, ready_made(host))

    text = f"{', '.join(several[:2])}  {chr(10).join(several[2:])} "
    if where == "profile":
        incus("profile", "set", profile, f"user.inx.store.include={text}")
    else:
        incus.set(name, f"user.inx.store.include={text}")
    sees_its_closure_alone(incus, name, several[0])
    restart(incus, name)
    sees_its_closure_alone(incus, name, *several)
    look = f"""
        [ "$(cat {link})" = needed ] || exit 2
        [ "$(cat {added[0]})" = added ] || exit 3
        [ "$(readlink {added[1]})" = nowhere ] || exit 4
        status=0; {program} || status=$?
        [ "$status" = 42 ] || exit 5
    """
    assert incus.sh(name, look, check=False).returncode == 0
    if where == "profile":
        incus.set(name, f"user.inx.store.include={program}")
        restart(incus, name)
        sees_its_closure_alone(incus, name, program)


# A key of user.inx, a value of it, and a part of the refusal.
REFUSED = {
    "absent": ("store.include", ABSENT, f"names {ABSENT}, which is not in the store"),
    "no store path": ("store.include", "/etc/passwd", "user.inx.store.include is '/etc/passwd'; "),
    "below one": ("store.include", f"{ABSENT}/bin", f"user.inx.store.include is '{ABSENT}/bin'; "),
    "option": ("store.include", f"{ABSENT} -x", f"user.inx.store.include is '{ABSENT} -x'; "),
    "all": ("store.include", "/nix/store", "user.inx.store.include is '/nix/store'; allowed: "),
    "shared": ("store", "shared", "user.inx.store.include goes with user.inx.store=isolated"),
    "typo": ("store", "Isolated", "user.inx.store is 'Isolated'; allowed: shared or isolated"),
    "daemon": ("daemon", "true", "exclude each other"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_bad_value_is_refused_in_one_sentence(incus: Incus, host: Host, what: str) -> None:
    key, value, reason = REFUSED[what]
    good = host.run(["readlink", ready_made(host)]).stdout.strip()
    name = incus.init(system=ready_made(host), store="isolated", store_include=good)
    incus.set(name, f"user.inx.{key}={value}")
    refused = incus.start(name, check=False)
    assert refused.returncode != 0 and "--show-log" in refused.stderr
    assert incus.state(name) == "STOPPED" and incus.pid(name) == 0
    assert reason in sentence(incus, name)
    incus.wait_status(name, "failed: ")
    # The instance starts without the bad value.
    incus.set(name, f"user.inx.{key}=", "user.inx.store=isolated")
    boots_again(incus, name)


def holders(host: Host, path: str) -> list[str]:
    """The kinds of roots that keep the path, after the sidecar has compared all roots."""
    sync(host)
    printed = ["find", GCROOTS, "-lname", path, "-printf", "%P\\n"]
    return [line.split("/")[1] for line in host.run(printed).stdout.splitlines()]


def test_an_included_path_outlives_collections_until_it_is_taken_away(
    incus: Incus, host: Host
) -> None:
    path = made(incus, "directory")[0]
    needed = host.run(["nix-store", "-q", "--references", path]).stdout.split()

    def kept() -> None:
        sync(host)
        collect(host)
        assert all(exists(host, each) for each in (path, *needed)), incus.story()

    name = isolated(incus, store_include=path)
    kept()
    sees_its_closure_alone(incus, name, path)
    incus("stop", name)
    kept()
    copied = incus.adopt(incus.name("copy"))
    incus("copy", name, copied)
    incus("delete", name)
    kept()
    assert boots_again(incus, copied, path)
    incus("snapshot", "create", copied, "before")
    incus.set(copied, "user.inx.store.include=")
    sees_its_closure_alone(incus, copied, path)
    kept()
    restart(incus, copied)
    sees_its_closure_alone(incus, copied)
    incus.eventually(lambda: set(holders(host, path)) == {"snapshots"}, incus.story)
    kept()
    incus("snapshot", "restore", copied, "before")
    incus.wait_inside(copied)
    sees_its_closure_alone(incus, copied, path)
    incus.set(copied, "user.inx.store.include=")
    incus("snapshot", "delete", copied, "before")
    kept()
    restart(incus, copied)
    is_collected(incus, path)
    sees_its_closure_alone(incus, copied)


def test_a_path_that_the_next_start_includes_outlives_collections_before_it(
    incus: Incus, host: Host
) -> None:
    path = made(incus, "directory")[0]
    name = isolated(incus)
    incus.set(name, f"user.inx.store.include={path}")
    collect(host)
    sees_its_closure_alone(incus, name)
    restart(incus, name)
    sees_its_closure_alone(incus, name, path)
