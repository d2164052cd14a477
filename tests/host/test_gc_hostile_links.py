"""Root in a container registers hostile texts, and changes links while the sidecar looks at them.

The container chooses the text, and it owns all files in which the sidecar looks the text up. Each
test makes the attack for real, and then collects for real what the attack must not reach.
"""

import pytest
from support.disposable import Host
from support.gc import (
    GCROOTS,
    SYNC,
    add_to_store,
    collect,
    collect_in_time,
    in_store,
    journal_end,
    journal_lines,
    left,
    link_roots,
    make_links,
    make_roots,
    register,
    repeating,
    root_name,
    unharmed_neighbour,
    wait_gone,
    wait_rooted,
)
from support.incus import Incus

pytestmark = pytest.mark.gc

HOSTILE_TEXTS: dict[str, bytes] = {
    "a store path": b"",  # the test puts a path here that is valid
    "in a store path": b"",
    "the store": b"/nix/store",
    "the store, and more": b"/nix/store/",
    "gibberish in the store": b"/nix/store/x",
    "root": b"/",
    "dots": b"/../../../../srv/inx-host-link",
    "dots behind a directory": b"/root/../../../../../srv/inx-host-link",
    "a link on the host": b"/srv/inx-host-link",
    "a root on the host": b"/nix/var/nix/gcroots/inx-host-root",
    "a link in a root file system": b"/var/lib/incus/containers/victim/rootfs/root/result",
    "relative": b"root/relative",
    "empty": b"",
    "a newline": b"/root/new\nline <3>inx: all is well",
    "an escape sequence": b"/root/\x1b[2J\x1b]0;pwned\x07\x9b2J",
    "a carriage return": b"/root/\rroot dropped",
    "a long name": b"/root/" + b"n" * 300,
    "a long path": b"/root" + b"/directory" * 380,
    "no UTF-8": b"/root/\xff\xfe\x80",
    "right to left": "/root/\u202egnp.exe".encode(),
    "a loop": b"/root/loop-a",
    "below a loop": b"/root/loop-a/x",
    "below a file": b"/root/file/x",
    "another's proc": b"/proc/1/root/root/good",
    "a link to another's proc": b"/root/to-proc/good",
    "a descriptor": b"/proc/self/fd/3",
    "a link to a descriptor": b"/root/to-fd",
    "a device": b"/dev/null",
    "a link to the host": b"/root/to-host",
    "a directory of the host": b"/root/to-srv/inx-host-link",
    "an invalid store path": b"/root/invalid",
    "a device below the store": b"/root/store-dots",
}


def test_a_registered_text_reaches_nothing_outside_the_container(incus: Incus, host: Host) -> None:
    secret, good, dotted = (add_to_store(incus, label) for label in ("secret", "good", "dotted"))
    host.sh(
        'ln -sfn "$S" /srv/inx-host-link; ln -sfn /srv/inx-host-link "$R"',
        env={"S": secret, "R": f"{GCROOTS}/inx-host-root"},
    )
    with unharmed_neighbour(incus) as neighbour:
        name = incus.launch(flake="/etc/nixos#web")
        make_links(
            incus,
            name,
            {
                "/root/good": good,
                "/root/loop-a": "loop-b",
                "/root/loop-b": "/root/loop-a",
                "/root/to-proc": "/proc/1/root/root",
                "/root/to-fd": "/proc/self/fd/0",
                "/root/to-host": "../../../../../../srv/inx-host-link",
                "/root/to-srv": "../../../../../../srv",
                "/root/invalid": "/nix/store/00000000000000000000000000000000-never-built",
                "/root/store-dots": f"{dotted}/../../../etc",
            },
        )
        incus.sh(name, "touch /root/file")
        texts = HOSTILE_TEXTS | {
            "a store path": secret.encode(),
            "in a store path": f"{secret}/x".encode(),
            "a link in a root file system": (
                f"/var/lib/incus/containers/{neighbour}/rootfs/root/result".encode()
            ),
        }
        since = journal_end(host)
        register(incus, name, [*texts.values(), "/root/good"])
        wait_rooted(incus, name, {"/root/good": good, "/root/store-dots": dotted})
        host.run(SYNC)
        # Nix itself takes a path below a store path for that store path. Nothing is opened there.
        allowed = {
            root_name("/root/good", good): good,
            root_name("/root/store-dots", dotted): dotted,
        }
        assert link_roots(incus, name) == allowed

        shown = host.run(["/opt/inx/bin/inx-sidecar", "roots"]).stdout
        assert "/root/good" in shown and shown.isascii()
        assert all(line.isprintable() for line in shown.splitlines())
        said = journal_lines(host, since)
        assert any(b"/root/good" in line for line in said)
        assert all(line.decode().isprintable() for line in said), said

        host.run(["rm", f"{GCROOTS}/inx-host-root", "/srv/inx-host-link"])
        wait_gone(incus, secret)
        assert left(host, good, dotted) == {good, dotted}


def test_hostile_names_of_links_are_escaped_in_the_journal(incus: Incus, host: Host) -> None:
    """They cannot control the terminal of the operator."""
    path = add_to_store(incus, "named")
    name = incus.launch(flake="/etc/nixos#web")
    names = [b"/root/\x1b[2J", b"/root/a\nb", b"/root/\xff", b"/root/\xc2\x9b2J", b"/root/\r"]
    octal = ["".join(f"\\{byte:03o}" for byte in text) for text in names]
    for text in octal:
        incus.sh(name, f"ln -s {path} \"$(printf '{text}')\"")
    since = journal_end(host)
    register(incus, name, names)
    incus.eventually(lambda: len(link_roots(incus, name)) == len(names), incus.story)
    incus.sh(name, "rm /root/*")
    host.run(SYNC)
    shown = host.run(["/opt/inx/bin/inx-sidecar", "roots", name]).stdout
    said = journal_lines(host, since)
    assert link_roots(incus, name) == {}, shown
    assert sum(b"root dropped" in line for line in said) == len(names)
    assert all(line.decode().isprintable() for line in said), said


def test_hostile_names_of_links_are_escaped_in_the_list_of_roots(incus: Incus, host: Host) -> None:
    path = add_to_store(incus, "listed")
    name = incus.launch(flake="/etc/nixos#web")
    incus.sh(name, f"ln -s {path} \"$(printf '/root/\\033[2J\\377\\n.')\"")
    register(incus, name, [b"/root/\x1b[2J\xff\n."])
    incus.eventually(lambda: len(link_roots(incus, name)) == 1, incus.story)
    heading, *shown = host.run(["/opt/inx/bin/inx-sidecar", "roots", name]).stdout.splitlines()
    assert heading.startswith("INSTANCE")
    (line,) = [line for line in shown if path in line]
    assert line.isascii() and line.isprintable() and "\\x1b[2J" in line


def test_a_container_may_root_any_valid_path_but_no_other(incus: Incus, host: Host) -> None:
    """Each user of the host's Nix may do so, too. The root is listed as the instance's."""
    name = incus.launch(flake="/etc/nixos#web")
    foreign, gone = add_to_store(incus, "foreign"), add_to_store(incus, "gone")
    host.run(["nix-store", "--delete", gone])
    make_links(incus, name, {"/root/gone": gone})
    register(incus, name, ["/root/gone"])
    make_roots(incus, name, {"/root/foreign": foreign})
    assert set(link_roots(incus, name)) == {root_name("/root/foreign", foreign)}
    collect(host)
    assert in_store(host, foreign)
    assert name in host.run(["nix-store", "--query", "--roots", foreign]).stdout


def test_links_that_are_swapped_while_the_sidecar_looks_change_no_other_root(
    incus: Incus, host: Host
) -> None:
    first, second, steady = (add_to_store(incus, label) for label in ("first", "second", "steady"))
    with unharmed_neighbour(incus):
        name = incus.launch(flake="/etc/nixos#web")
        incus.run(name, "mkdir", "/root/a", "/root/b")
        make_roots(incus, name, {"/root/steady": steady, "/root/a/l": first, "/root/b/l": second})
        register(incus, name, ["/root/l", "/root/d/l"])
        swap = f"""
            ln -s {first} /root/new; mv -f /root/new /root/l; rm -rf /root/d; ln -s a /root/d
            ln -s /proc/1/root/etc/passwd /root/new; mv -f /root/new /root/l
            rm -f /root/d; mkdir /root/d; ln -s {second} /root/d/l; rm -f /root/l
            rm -rf /root/d; ln -s /proc/self/cwd /root/d; ln -s /root/l /root/l; rm -f /root/l
            ln -s {second} /root/l; rm -f /root/d; ln -s ../../../../../root/b /root/d
            """
        allowed = {first, second, steady}
        with repeating(incus, name, swap):
            for _ in range(12):
                register(incus, name, ["/root/l", "/root/d/l"])
                host.run(SYNC)
                now = link_roots(incus, name)
                assert set(now.values()) <= allowed and root_name("/root/steady", steady) in now
            collect_in_time(host)
        register(incus, name, ["/root/l", "/root/d/l"])
        last = {"/root/l": second, "/root/d/l": second, "/root/steady": steady}
        wait_rooted(incus, name, last)
        incus.sh(name, "rm -r /root/a")
        wait_gone(incus, first)
        assert left(host, second, steady) == {second, steady}
