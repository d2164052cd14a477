"""Links in places that only some processes of a container see, or that cannot be read at all."""

import contextlib
import shlex
import time
from collections.abc import Iterator

import pytest
from support.disposable import Host
from support.gc import (
    add_to_store,
    build_by,
    collect,
    collect_in_time,
    collect_when_idle,
    in_store,
    left,
    link_roots,
    make_links,
    make_roots,
    paused,
    register,
    root_name,
    run_inside,
    said_inside,
    unharmed_neighbour,
    wait_gone,
    wait_rooted,
)
from support.incus import PROMPT, Incus
from support.services import constant

pytestmark = pytest.mark.gc

# How a file system is mounted at /root/p, and where the link is then made.
PLACES = {
    "a tmpfs": "mount -t tmpfs tmpfs /root/p; cd /root/p",
    "a bind mount": "mkdir /root/b; mount -o bind /root/b /root/p; cd /root/p",
    "an overlay": (
        "mkdir /root/low; mount -t tmpfs tmpfs /root/low; mkdir /root/low/u /root/low/w; "
        "mount -t overlay -o lowerdir=/root/p,upperdir=/root/low/u,workdir=/root/low/w o /root/p"
    ),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_link_on_a_file_system_mounted_inside_holds(incus: Incus, host: Host, place: str) -> None:
    path = add_to_store(incus, "mounted")
    name = incus.launch(flake="/etc/nixos#web")
    incus.sh(name, f"mkdir /root/p; {PLACES[place]}; ln -s {path} /root/p/result")
    register(incus, name, ["/root/p/result"])
    wait_rooted(incus, name, {"/root/p/result": path})
    collect(host)
    assert in_store(host, path)
    incus.run(name, "rm", "/root/p/result")
    wait_gone(incus, path)


def test_a_link_that_only_a_process_with_another_root_directory_sees_holds(
    incus: Incus, host: Host
) -> None:
    """A container inside the container has such a root directory."""
    path = add_to_store(incus, "pivoted")
    name = incus.launch(flake="/etc/nixos#web")
    script = f"""
        mkdir /root/new; mount -t tmpfs tmpfs /root/new; cd /root/new
        mkdir -p nix/store old deep; ln -s {path} deep/result
        mount -o bind /nix/store nix/store; cp "$(readlink -f "$(which sh)")" busybox
        pivot_root . old
        exec chroot . /busybox sh -c '/busybox umount -l /old; exec /busybox sleep 3600'
        """
    incus.sh(name, f"unshare -m sh -euc {shlex.quote(script)} >/dev/null 2>/root/err &")
    incus.eventually(
        lambda: "deep" in incus.sh(name, "ls -d /proc/*/root/deep || :").stdout,
        lambda: incus.sh(name, "cat /root/err").stdout,
    )
    register(incus, name, ["/deep/result"])
    wait_rooted(incus, name, {"/deep/result": path})
    collect(host)
    assert in_store(host, path)


def build_in_namespace(incus: Incus, name: str, place: str, number: int) -> str:
    """Build, with a link in a file system that only one mount namespace has."""
    mount = f"mount --make-rprivate /; mount -t tmpfs tmpfs {place}/apart"
    enter = 'nsenter -t "$(cat /run/holder)" -m'
    script = f"""
        mkdir -p {place}/apart
        hold unshare -m sh -c 'echo $$ >/run/up; exec sleep 86400'
        {enter} sh -c '{mount}'
        {enter} nix-build --expr "$EXPR" -o {place}/apart/out
    """
    return build_by(incus, name, script, str(number))


def end_namespace(incus: Incus, name: str) -> str:
    """End the namespace after a collection that has seen the link. Return its number."""
    collect_when_idle(incus)
    pid = incus.said(name, "cat", "/run/holder").strip()
    number = incus.said(name, "readlink", f"/proc/{pid}/ns/mnt").strip()
    incus.run(name, "kill", "-9", pid)
    gone = ["test", "!", "-e", f"/proc/{pid}/ns/mnt"]
    incus.eventually(lambda: incus.run(name, *gone, check=False).returncode == 0, incus.story)
    return number


@pytest.mark.parametrize("place", ["/root/private", "/run"])
def test_a_link_in_a_mount_namespace_that_ended_still_holds(
    incus: Incus, host: Host, place: str
) -> None:
    """This is true even where init has another file system, which never had the link: on /run."""
    name = incus.launch(flake="/etc/nixos#web")
    path = build_in_namespace(incus, name, place, 1)
    end_namespace(incus, name)
    collect_when_idle(incus)
    assert left(host, path) == {path}


def test_a_mount_namespace_with_the_number_of_an_earlier_one_is_another(
    incus: Incus, host: Host
) -> None:
    """The new namespace has no link, and says nothing about the link in the earlier one."""
    name = incus.launch(flake="/etc/nixos#web")
    again = """
        for try in $(seq 60); do
            rm -f /run/holder /run/up
            hold unshare -m sh -c 'echo $$ >/run/up; exec sleep 86400'
            number=$(readlink "/proc/$(cat /run/holder)/ns/mnt")
            [ "$number" != "$NUMBER" ] || break
        done
        echo "$number"
    """
    for number in range(5):
        path = build_in_namespace(incus, name, "/root/private", number)
        before = end_namespace(incus, name)
        run_inside(incus, name, f"NUMBER='{before}'\n{again}")
        if said_inside(incus, name) == before:
            break
        # Another process of this machine has got the number.
        incus.sh(name, "killall sleep; rm /run/holder /run/up")
    else:
        raise AssertionError("the kernel numbers namespaces otherwise than it did")
    collect_when_idle(incus)
    assert left(host, path) == {path}


def test_hundreds_of_namespaces_and_thousands_of_control_groups_delay_nobody(
    incus: Incus, host: Host
) -> None:
    path, other = add_to_store(incus, "crowd"), add_to_store(incus, "crowd-gone")
    links = {f"/root/l{count}": path for count in range(300)}
    groups = "cd /sys/fs/cgroup; [ ! -d unified ] || cd unified"
    with unharmed_neighbour(incus) as neighbour:
        name = incus.launch(flake="/etc/nixos#web")
        make_roots(incus, name, {"/root/gone": other})
        incus.sh(
            name,
            f"""
            {groups}
            for a in $(seq 50); do mkdir c$a; for b in $(seq 50); do mkdir c$a/$b; done; done
            for i in $(seq 300); do unshare -m sleep 3600 </dev/null >/dev/null 2>&1 & done
            """,
            check=False,
        )
        incus.eventually(
            lambda: int(incus.said(name, "sh", "-c", "ls -lL /proc/*/ns/mnt | wc -l")) > 300,
            incus.story,
        )
        make_links(incus, name, links)
        register(incus, name, list(links))
        make_roots(incus, neighbour, {"/root/meanwhile": path})
        wait_rooted(incus, name, links)
        collect_in_time(host)
        # The sidecar looks at a limited number of namespaces. While there are more of them, it
        # cannot know that a link is in none of them, and drops no root.
        incus.sh(
            name,
            f"rm /root/gone; killall sleep; {groups}; rmdir c[0-9]*/[0-9]* c[0-9]*",
        )
        wait_gone(incus, other)
        assert in_store(host, path)


@pytest.fixture
def impatient(host: Host) -> Iterator[None]:
    """The sidecar gives up sooner to look, and looks again sooner."""
    with constant(host, "links/resolver", "_SECONDS", 1.5):
        with constant(host, "links/backoff", "_FIRST_SECONDS", 2.0):
            yield


@contextlib.contextmanager
def dead_server(incus: Incus, name: str) -> Iterator[None]:
    """/root/dead is a file system whose server never answers: who looks there waits."""
    incus.sh(
        name,
        """
        mkdir /root/dead; exec 3<>/dev/fuse
        mount -t fuse -o fd=3,rootmode=40000,user_id=0,group_id=0 dead /root/dead
        sleep 3600 </dev/null >/dev/null 2>&1 & echo $! >/root/pid
        """,
    )
    try:
        yield
    finally:
        incus.sh(name, "kill $(cat /root/pid)")


def test_a_file_system_that_never_answers_delays_others_for_a_limited_time(
    incus: Incus, host: Host
) -> None:
    path = add_to_store(incus, "hung")
    with unharmed_neighbour(incus) as neighbour:
        name = incus.launch(flake="/etc/nixos#web")
        make_roots(incus, name, {"/root/before": path})
        with dead_server(incus, name):
            register(incus, name, ["/root/dead/result"])
            for label in "first", "second":
                begin = time.monotonic()
                make_roots(incus, neighbour, {f"/root/{label}": path})
                assert time.monotonic() - begin < PROMPT
                collect_in_time(host)
            # The sidecar drops no root of an instance that it cannot read.
            assert root_name("/root/before", path) in link_roots(incus, name)
        make_roots(incus, name, {"/root/late": add_to_store(incus, "late")})


def test_a_link_beside_a_file_system_that_never_answers_holds(
    impatient: None, incus: Incus, host: Host
) -> None:
    path = add_to_store(incus, "beside")
    name = incus.launch(flake="/etc/nixos#web")
    make_links(incus, name, {"/root/beside": path})
    register(incus, name, ["/root/other"])  # starts the daemon, which asks the sidecar
    with dead_server(incus, name):
        # The sidecar hears of both links at once.
        with paused(host):
            register(incus, name, ["/root/dead/result", "/root/beside"])
        wait_rooted(incus, name, {"/root/beside": path})
        collect(host)
        assert in_store(host, path)


def test_the_status_says_that_an_instance_does_not_answer(impatient: None, incus: Incus) -> None:
    name = incus.launch(flake="/etc/nixos#web")
    with dead_server(incus, name):
        register(incus, name, ["/root/dead/result"])
        incus.wait_status(name, r"ready \(.*does not answer")
    incus.wait_status(name, "ready$")
