"""An instance that is deleted holds nothing, and nothing of it remains on the host."""

import pytest
from support.disposable import Host
from support.gc import (
    ROOTS,
    SIDECAR_UNITS,
    STATE,
    assert_gone,
    assert_kept,
    build,
    launch,
    names_with_roots,
    root_directory,
    system_of,
    without,
)
from support.incus import Incus

pytestmark = pytest.mark.gc


def leftovers(host: Host, name: str, uuid: str) -> str:
    """All that the host has of an instance, except the log of its last build, which may stay."""
    script = """
        for path in $ROOTS/$NAME.* $ROOTS/*.$ID $STATE/$ID /run/inx/$ID; do
            if [ -e "$path" ]; then echo "$path"; fi
        done
        systemctl list-units --all --plain --no-legend "inx-*$ID*"
        systemctl list-sockets --all --plain --no-legend "inx-*$ID*"
        cat /proc/[0-9]*/mountinfo 2>/dev/null | grep -F -e $ID -e "containers/$NAME/" || :
        pgrep -af -- $ID || :
    """
    env = {"ROOTS": ROOTS, "STATE": STATE, "NAME": name, "ID": uuid}
    return host.sh(script, env=env).stdout


def wait_nothing_left(incus: Incus, name: str, uuid: str) -> None:
    """Wait until the host has nothing of the instance, without any collection."""
    incus.eventually(
        lambda: leftovers(incus.host, name, uuid) == "",
        lambda: f"{leftovers(incus.host, name, uuid)}\n{incus.story()}",
    )


@pytest.mark.parametrize("running", [False, True], ids=["stopped", "running"])
def test_nothing_is_left_of_an_instance_that_is_deleted(
    incus: Incus, host: Host, running: bool
) -> None:
    flake = incus.flake(greeting=incus.name("deleted"))
    name = incus.launch(flake=f"{flake}#web")
    uuid = incus.uuid(name)
    path = build(incus, name, "thing")
    incus("snapshot", "create", name, "snap")
    assert_kept(incus, path)
    found = leftovers(host, name, uuid)
    for what in (
        root_directory(incus, name),
        f"{STATE}/{uuid}",
        f"/run/inx/{uuid}",
        f"inx-nix-daemon@{uuid}.socket",
        f"inx-nix-daemon@{uuid}.service",
        f"/{uuid}/gcroots /nix/var/nix/gcroots",
    ):
        assert what in found, found
    if not running:
        incus("stop", name)
    incus("delete", "-f", name)
    wait_nothing_left(incus, name, uuid)
    assert_gone(incus, path)


def test_nothing_is_left_of_an_ephemeral_instance_that_stopped(incus: Incus, host: Host) -> None:
    name = incus.launch("--ephemeral", system=system_of(host))
    uuid = incus.uuid(name)
    path = build(incus, name, "thing")
    assert_kept(incus, path)
    incus("stop", name)
    wait_nothing_left(incus, name, uuid)
    assert_gone(incus, path)


def test_an_instance_that_takes_the_name_of_a_deleted_one_holds_nothing_of_it(
    incus: Incus, host: Host
) -> None:
    name = launch(incus)
    uuid = incus.uuid(name)
    path = build(incus, name, "thing")
    incus("delete", "-f", name)
    launch(incus)
    assert incus.uuid(name) != uuid
    assert_gone(incus, path)
    incus.eventually(lambda: uuid not in host.run(["ls", STATE]).stdout, incus.story)
    assert names_with_roots(host, uuid) == []
    new = build(incus, name, "new")
    assert_kept(incus, new)


def test_an_instance_deleted_while_no_sidecar_runs_is_cleaned_up_later(
    incus: Incus, host: Host
) -> None:
    name = launch(incus)
    uuid = incus.uuid(name)
    path = build(incus, name, "thing")
    incus("stop", name)
    assert_kept(incus, path)
    with without(host, *SIDECAR_UNITS):
        incus("delete", name)
        assert_kept(incus, path)
        assert f"{name}.{uuid}" in leftovers(host, name, uuid)
    wait_nothing_left(incus, name, uuid)
    assert_gone(incus, path)
