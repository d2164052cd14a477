"""What Nix clients inside a container can do to the host's store and see of the host's roots."""

import shlex

import pytest
from support.disposable import Host
from support.gc import (
    AUTO,
    GCROOTS,
    SYNC,
    add_to_store,
    in_store,
    journal_end,
    journal_lines,
    link_roots,
    make_links,
    make_roots,
    register,
    repeating,
    unharmed_neighbour,
    wait_gone,
    wait_rooted,
)
from support.incus import Incus

from inx_sidecar.links.indirect_roots import name_of

pytestmark = pytest.mark.gc

# Each with a word of the error that the user sees, and whether the command succeeds.
COLLECTIONS: dict[str, tuple[str, bool]] = {
    "nix-collect-garbage -d": ("cannot bind to socket", False),
    "nix-store --gc": ("cannot bind to socket", False),
    "nix store gc": ("cannot bind to socket", False),
    "nix-store --gc --print-dead": ("cannot bind to socket", False),
    "nix-store --delete $D": ("cannot bind to socket", False),
    "nix-store --delete --ignore-liveness $D": ("not allowed", False),
    "nix store delete $D": ("cannot bind to socket", False),
    "nix-store --verify --check-contents --repair": ("not privileged", False),
    "nix-store --repair-path $D": ("", False),
    "nix-store --optimise": ("", True),
}


def test_no_garbage_is_collected_from_inside(incus: Incus, host: Host) -> None:
    with unharmed_neighbour(incus):
        dead, mine = add_to_store(incus, "unheld"), add_to_store(incus, "mine")
        name = incus.launch(flake="/etc/nixos#web")
        make_roots(incus, name, {"/root/result": mine})
        before = host.sh("cd /nix/store; find . | sort").stdout.replace("./.links", "")
        for command, (word, succeeds) in COLLECTIONS.items():
            script = f"export D={dead}; {command}"
            done = incus.ended(name, script) if word else incus.sh(name, script, check=False)
            said = (command, done.stdout, done.stderr)
            assert (done.returncode == 0) == succeeds and word in done.stderr, said
            assert in_store(host, dead), said
        after = host.sh("cd /nix/store; find . | sort").stdout
        assert set(before.splitlines()) <= set(after.splitlines()) | {""}
        wait_gone(incus, dead)
        assert in_store(host, mine)


def test_print_roots_inside_removes_no_root_and_names_none_of_the_host(
    incus: Incus, host: Host
) -> None:
    secret = f"{incus.prefix}-topsecret"
    path = add_to_store(incus, "looked-for")
    name = incus.launch(flake="/etc/nixos#web")
    other = incus.launch(name=incus.name("neighbour"), flake="/etc/nixos#web")
    make_roots(incus, other, {f"/root/{secret}": path})
    host.sh(
        """
        mkdir -p /nix/var/nix/profiles/per-user/$S /home/$S
        ln -s $P /nix/var/nix/profiles/per-user/$S/profile-1-link
        ln -s $P /home/$S/result; ln -s $P /nix/var/nix/gcroots/$S
        nix-store --add-root /srv/$S-result --realise $P
        """,
        env={"S": secret, "P": path},
    )
    links = {f"/root/l{count}": path for count in range(1000)}
    make_links(incus, name, links)
    texts = list(links)
    look = "nix-store --gc --print-roots"
    enough = "[ -e /looks ] && [ $(wc -l </looks) -ge 100 ]"
    with repeating(incus, name, f"{look} >>/shown 2>&1 && echo >>/looks"):
        while incus.sh(name, enough, check=False).returncode:
            register(incus, name, [texts.pop() for _ in range(min(20, len(texts)))])
    register(incus, name, texts)
    wait_rooted(incus, name, links)
    shown = incus.said(name, "sort", "-u", "/shown")
    host.run(["rm", "-r", f"/srv/{secret}-result", f"{GCROOTS}/{secret}"])
    host.run(["rm", "-r", f"/nix/var/nix/profiles/per-user/{secret}", f"/home/{secret}"])
    # Nix inside does not see the registrations, and so cannot remove them.
    assert name_of("/root/l0") not in shown
    assert secret not in shown, [line for line in shown.splitlines() if secret in line]
    assert other not in shown


LOCAL_STORES = [
    "NIX_REMOTE=local nix-store --gc",
    "nix-store --store local --gc",
    "nix store gc --store local",
    "nix store gc --store /root/s",
    "nix store gc --store '/?state=/root/state&real=/nix/store'",
    "nix store gc --store 'local?root=/&state=/root/state2'",
    "nix-store --store 'local?state=/root/state3' --delete $D",
    "export NIX_STATE_DIR=/root/state4 NIX_REMOTE=local; nix-store --init; nix-store --gc",
    "export NIX_STATE_DIR=/root/state5; nix-collect-garbage -d",
    "mkdir /root/var; mount -o bind /root/var /nix/var/nix; NIX_REMOTE=local nix-store --gc",
    "mount -o remount,rw,bind /nix/store; mount -t tmpfs tmpfs /nix/var/nix; nix-store --gc",
]


@pytest.mark.parametrize("privileged", ["false", "true"])
def test_a_store_of_the_containers_own_cannot_change_the_shared_one(
    incus: Incus, host: Host, privileged: str
) -> None:
    options = ["-c", f"security.privileged={privileged}"]
    with unharmed_neighbour(incus):
        dead = add_to_store(incus, "unheld")
        name = incus.launch(*options, flake="/etc/nixos#web", daemon="true")
        listing = "find /nix/store -printf '%p %i %m %u %n %s %T@ %C@ %l\\n' | sort"
        before = host.sh(listing).stdout
        succeeded = []
        for command in LOCAL_STORES:
            done = incus.sh(
                name,
                f"export D={dead}; unshare -m sh -uc {shlex.quote(command)}",
                check=False,
                timeout=60,
            )
            if done.returncode == 0:
                succeeded.append(command)
            assert host.sh(listing).stdout == before, (command, done.stdout, done.stderr)
        # A store in another place belongs to the container alone.
        assert "nix store gc --store /root/s" in succeeded
        assert in_store(host, dead)


def test_without_a_daemon_an_instance_gets_no_roots_and_disturbs_nobody(
    incus: Incus, host: Host
) -> None:
    path = add_to_store(incus, "without")
    since = journal_end(host)
    with unharmed_neighbour(incus) as neighbour:
        name = incus.launch(flake="/etc/nixos#web", daemon="false")
        make_links(incus, name, {"/root/result": path, f"{AUTO}/{name_of('/root/no')}": "/root/no"})
        assert incus.run(name, "nix", "store", "info", check=False).returncode != 0
        refused = register(incus, name, ["/root/result"], check=False)
        assert "Connection refused" in refused
        host.run(SYNC)
        assert link_roots(incus, name) == {}
        make_roots(incus, neighbour, {"/root/second": path})
        incus.wait_status(name, "ready$")
    assert not [line for line in journal_lines(host, since) if f"{name}: root ".encode() in line]
