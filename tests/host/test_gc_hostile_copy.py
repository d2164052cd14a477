"""The container replaces or fills its own copy of its registrations, which inx writes inside.

The copy is the directory AUTO. Snapshots and copies of the instance take it with them.
"""

import time

import pytest
from support.disposable import Host
from support.gc import (
    AUTO,
    SYNC,
    add_to_store,
    collect_in_time,
    journal_end,
    journal_lines,
    left,
    make_links,
    make_roots,
    unharmed_neighbour,
    wait_rooted,
)
from support.incus import PROMPT, Incus

from inx_sidecar.links.indirect_roots import name_of

pytestmark = pytest.mark.gc

# How root in the container replaces the copy.
REPLACEMENTS = {
    "a file": f"rm -rf {AUTO}; echo pwned >{AUTO}",
    "a fifo": f"rm -rf {AUTO}; mknod {AUTO} p",
    "a link to /etc": f"rm -rf {AUTO}; ln -s /etc {AUTO}",
    "a link up": f"rm -rf {AUTO}; ln -s ../../../../../../../../srv {AUTO}",
    "a link to the host's": f"rm -rf {AUTO}; ln -s /proc/1/root/var/lib/inx {AUTO}",
    "a parent that is a link": f"rm -rf {AUTO}; rmdir {AUTO}/..; ln -s /root {AUTO}/..",
    "no directory": f"rm -rf {AUTO}",
    "subdirectories": f"cd {AUTO}; for i in $(seq 500); do mkdir $i; done",
    "unreadable": f"chmod 0 {AUTO}",
}


@pytest.mark.parametrize("replacement", REPLACEMENTS)
def test_a_replaced_copy_harms_nobody_but_its_owner(
    incus: Incus, host: Host, replacement: str
) -> None:
    before, after = add_to_store(incus, "before"), add_to_store(incus, "after")
    name = incus.launch(flake="/etc/nixos#web")
    make_roots(incus, name, {"/root/before": before})
    incus.sh(name, "ls /etc >/root/etc")
    outside = host.sh("ls -a /etc /srv /root").stdout
    incus.sh(name, REPLACEMENTS[replacement], check=False)
    make_roots(incus, name, {"/root/after": after})
    incus("snapshot", "create", name, "snap")
    incus("restart", "-f", name)
    incus.wait_inside(name)
    wait_rooted(incus, name, {"/root/before": before, "/root/after": after})
    clone = incus.adopt(incus.name("copy"))
    incus("copy", name, clone)
    host.run(SYNC)
    collect_in_time(host)
    assert left(host, before, after) == {before, after}
    incus.sh(name, "ls /etc | cmp - /root/etc")
    incus("delete", clone)
    host.run(SYNC)
    assert host.sh("ls -a /etc /srv /root").stdout == outside


def test_the_journal_says_once_why_the_copy_cannot_be_written(incus: Incus, host: Host) -> None:
    path = add_to_store(incus, "in-the-way")
    name = incus.launch(flake="/etc/nixos#web")
    incus.sh(name, REPLACEMENTS["a file"])
    since = journal_end(host)
    for count in range(3):
        make_roots(incus, name, {f"/root/l{count}": path})
    (told,) = [line.decode() for line in journal_lines(host, since) if b"lack roots" in line]
    assert AUTO in told and "remove it" in told


def test_a_copy_with_many_entries_does_not_delay_others(incus: Incus, host: Host) -> None:
    path = add_to_store(incus, "counted")
    with unharmed_neighbour(incus) as neighbour:
        name = incus.launch(flake="/etc/nixos#web")
        make_roots(incus, name, {"/root/result": path})
        invented = [name_of(f"/root/l{count}") for count in range(15_000)]
        # Every second entry has the name that belongs to its text. The others have a wrong one.
        entries = {
            f"{AUTO}/{known if count % 2 else known[::-1]}": f"/root/l{count}"
            for count, known in enumerate(invented)
        }
        make_links(incus, name, entries)
        incus("snapshot", "create", name, "snap")
        incus("stop", "-f", name)
        clone = incus.adopt(incus.name("copy"))
        incus("copy", "--instance-only", name, clone)
        incus.start(name)
        begin = time.monotonic()
        make_roots(incus, neighbour, {"/root/meanwhile": path})
        assert time.monotonic() - begin < PROMPT
        collect_in_time(host)
        incus.wait_inside(name)
        wait_rooted(incus, name, {"/root/result": path})
