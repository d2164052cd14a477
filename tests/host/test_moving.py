"""A container of nixos-container becomes an instance, by the commands that docs/moving.md shows."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from support.disposable import Host
from support.incus import Incus
from support.pages import commands, said

pytestmark = pytest.mark.life

PAGE = "docs/moving.md"
OLD = "/var/lib/nixos-containers/web"
PROFILES = "/nix/var/nix/profiles/per-container/web"
HISTORY = ["nix-env", "--list-generations", "-p"]
# What boots leaves these alone; of the rest of /etc, and of /usr and /bin, it makes its own.
CARRIED = ["etc/machine-id", "etc/ssh", "home", "root", "srv", "var"]

# What such a container leaves behind, in the directory that is the only argument.
FILL = """
import fcntl, os, socket, struct, sys
os.umask(0o022)
os.chdir(sys.argv[1])
for name in "dev proc sys run tmp root srv home/alice etc/ssh var/empty var/lib/acl".split():
    os.makedirs(name)
for name in "nix/store nix/var/nix/db nix/var/nix/daemon-socket nix/var/nix/profiles " \\
        "nix/var/nix/gcroots".split():
    os.makedirs(name)

def make(name, text="", mode=0o644, uid=0, gid=0):
    with open(name, "w") as file:
        file.write(text)
    os.chown(name, uid, gid)
    os.chmod(name, mode)

def words(*numbers):
    return struct.pack(f"<{len(numbers)}I", *numbers)

def entry(tag, rights, who=0xFFFFFFFF):
    return struct.pack("<HHI", tag, rights, who)

make("etc/machine-id", "0123456789abcdef0123456789abcdef\\n", 0o444)
make("etc/ssh/ssh_host_ed25519_key", "secret\\n", 0o600)
make("home/alice/file", "text\\n", 0o640, 1000, 100)
os.link("home/alice/file", "srv/the same")
os.symlink("/home/alice/file", "srv/link")
os.lchown("srv/link", 1000, 100)
os.symlink("/var/lib/nixos-containers/web/home", "srv/rootfs")
make("srv/setuid", "#!", 0o6755, 65534, 65534)
make("srv/capable")
os.setxattr("srv/capable", "security.capability", words(0x2000001, 1 << 10, 0, 0, 0))
os.setxattr("home/alice/file", "user.note", b"kept")
acl = words(2) + entry(1, 7) + entry(2, 7, 1000) + entry(4, 5) + entry(16, 7) + entry(32, 5)
for kind in "access", "default":
    os.setxattr("var/lib/acl", f"system.posix_acl_{kind}", acl)
make("var/lib/sparse")
os.truncate("var/lib/sparse", 1 << 30)
os.mkfifo("srv/fifo")
socket.socket(socket.AF_UNIX).bind("srv/socket")
os.chown("home/alice", 1000, 100)
os.chmod("home/alice", 0o750)
os.chmod("root", 0o700)
os.chmod("tmp", 0o1777)
os.chmod("var/empty", 0o555)
fcntl.ioctl(os.open("var/empty", os.O_RDONLY), 0x40086602, struct.pack("l", 0x10))  # chattr +i
"""
# What is to be seen of the paths in argv below argv[1], but for sockets.
LOOK = """
import hashlib, json, os, stat, sys
os.chdir(sys.argv[1])
found, inodes = {}, {}

def look(path):
    is_a, status = stat.S_IFMT(os.lstat(path).st_mode), os.lstat(path)
    if is_a == stat.S_IFSOCK:
        return
    names = os.listxattr(path, follow_symlinks=False)
    seen = found[path] = {
        "owner": [oct(status.st_mode), status.st_uid, status.st_gid],
        "attributes": {n: os.getxattr(path, n, follow_symlinks=False).hex() for n in names},
    }
    if is_a == stat.S_IFDIR:
        for name in sorted(os.listdir(path)):
            look(f"{path}/{name}")
        return
    seen["same as"] = inodes.setdefault(status.st_ino, path)
    seen["time"] = status.st_mtime_ns
    if is_a == stat.S_IFLNK:
        seen["target"] = os.readlink(path)
    if is_a == stat.S_IFREG:
        seen["size"] = [status.st_size, status.st_blocks * 512 < status.st_size]
        with open(path, "rb") as file:
            seen["text"] = hashlib.sha256(file.read(1 << 20)).hexdigest()

for path in sys.argv[2:]:
    look(path)
json.dump(found, sys.stdout)
"""
# What `nixos-container destroy` does.
DESTROY = f"""
    rm -rf {PROFILES} /etc/nixos-containers/web.conf
    [ ! -e {OLD}/var/empty ] || python3 -I -c '
import fcntl, os, struct
empty = os.open("{OLD}/var/empty", os.O_RDONLY)
fcntl.ioctl(empty, 0x40086602, struct.pack("l", 0))  # chattr -i'
    find {OLD} -mindepth 1 -delete
"""
UNIT = """
[Service]
ExecStart=sleep infinity
"""


@pytest.fixture
def old(incus: Incus, host: Host) -> Iterator[Incus]:
    """A host with the container `web` of nixos-container, running, its root still empty.

    Its files lie where owners can be mapped.
    """
    incus.adopt("web")
    host.sh(
        f"""mkdir -p /srv/work /etc/nixos-containers {OLD} /var/lib/incus/old
            mount --bind /var/lib/incus/old {OLD}
            mkdir -m 700 -p /nix/var/nix/profiles/per-container
            mkdir -p {PROFILES}/per-user/root
            echo FLAKE=/etc/nixos >/etc/nixos-containers/web.conf
            cat >/run/systemd/system/container@.service
            systemctl daemon-reload
            systemctl start container@web""",
        input=UNIT,
    )
    yield incus
    host.sh(
        f"""systemctl stop container@web
            incus image delete web-root 2>/dev/null || :
            {DESTROY}
            while umount {OLD} 2>/dev/null; do :; done
            rm -r /srv/work /var/lib/incus/old"""
    )


def build(incus: Incus, greeting: str) -> str:
    """A system of container `web`."""
    flake = incus.flake("web", greeting=greeting)
    toplevel = f"{flake}#nixosConfigurations.web.config.system.build.toplevel"
    features = ["--extra-experimental-features", "nix-command flakes"]
    argv = ["nix", *features, "build", "--no-link", "--print-out-paths", toplevel]
    return incus.host.run(argv).stdout.strip()


def fill(host: Host, system: str) -> dict[str, Any]:
    """Give the old container its files, as `system` left them; what they look like."""
    host.run(["python3", "-I", "-c", FILL, OLD])
    host.sh(
        f"ln -s {system}/usr {OLD}; ln -s usr/bin {OLD}/bin; ln -s {system}/etc {OLD}/etc/static"
    )
    seen = host.run(["python3", "-I", "-c", LOOK, OLD, *CARRIED])
    return dict(json.loads(seen.stdout))


def move(incus: Incus, *before: str) -> None:
    """Run the commands; `before` are those that come after the variables are set."""
    lines = commands(PAGE, "From nixos-container")
    incus.host.sh("\n".join(["cd /srv/work", *lines[:2], *before, *lines[2:]]))
    incus.wait_ready("web")


def inside(incus: Incus) -> dict[str, Any]:
    """What the files look like for root inside."""
    pid = str(incus.pid("web"))
    argv = ["nsenter", "-t", pid, "-U", "-S", "0", "-G", "0"]
    look = ["python3", "-I", "-c", LOOK, f"/proc/{pid}/root", *CARRIED]
    return dict(json.loads(incus.host.run([*argv, *look]).stdout))


def present(host: Host, path: str) -> bool:
    return host.run(["nix-store", "--check-validity", path], check=False).returncode == 0


def test_a_container_becomes_an_instance_with_all_that_it_is(old: Incus, host: Host) -> None:
    systems = {greeting: build(old, greeting) for greeting in ("one", "two", "three")}
    for number in range(7):
        system = systems[("one", "two", "three")[number % 3]]
        host.run(["nix-env", "-p", f"{PROFILES}/system", "--set", system])
    host.run(["nix-env", "-p", f"{PROFILES}/system", "--switch-generation", "6"])
    host.sh(f"echo {old.prefix} >/srv/work/tool; echo {old.prefix} link >/srv/work/linked")
    tool, linked = (
        host.run(["nix-store", "--add", f"/srv/work/{name}"]).stdout.strip()
        for name in ("tool", "linked")
    )
    host.run(["ln", "-s", tool, f"{PROFILES}/per-user/root/profile-1-link"])
    host.run(["ln", "-s", "profile-1-link", f"{PROFILES}/per-user/root/profile"])
    before = fill(host, systems["three"])
    host.run(["ln", "-s", linked, f"{OLD}/home/alice/result"])
    history = host.run([*HISTORY, f"{PROFILES}/system"]).stdout
    assert history.count("\n") == 7

    move(old)

    assert host.run(["systemctl", "is-active", "container@web"], check=False).returncode != 0
    after = inside(old)
    assert {path: after.get(path) for path in before} == before
    assert old.get("web", "user.inx.status.generation") == "6"
    assert old.get("web", "user.inx.status.system") == systems["three"]
    old.sh("web", '[ "$(hostname) $(cat /etc/greeting)" = "web three" ]')
    rootfs = "/var/lib/incus/storage-pools/default/containers/web/rootfs"
    assert host.run([*HISTORY, f"{rootfs}/nix/var/nix/profiles/system"]).stdout == history
    listed = history.rstrip("\n")
    here = "nix-env --list-generations -p /nix/var/nix/profiles/system"
    old.sh("web", f'[ "$({here})" = "{listed}" ]')

    # From now on the flake; nothing needs what is left of the old container.
    host.sh(said(PAGE, "incus config set web user.inx.system= user.inx.flake"))
    old.wait_generation("web", "8")
    host.sh(said(PAGE, "incus image delete "))
    host.sh(DESTROY)
    stray = build(old, "stray")
    host.run(["/opt/inx/bin/inx-sidecar", "sync"])
    host.run(["nix-collect-garbage"])
    assert not present(host, stray), "a collection that collects"
    assert all(present(host, path) for path in (*systems.values(), tool, linked))
    old.set("web", "user.inx.generation=1")
    old.wait_generation("web", "1")
    old("restart", "-f", "web")
    old.wait_ready("web")
    old.sh("web", '[ "$(cat /etc/greeting)" = one ]')


def test_owners_that_are_shifted_on_the_disk_come_back(old: Incus, host: Host) -> None:
    """Written through a mount that shifts, as a container with users of its own writes."""
    system = build(old, "shifted")
    host.run(["nix-env", "-p", f"{PROFILES}/system", "--set", system])
    host.run(["chown", "524288:524288", OLD])
    host.run(["mount", "--bind", "-o", "X-mount.idmap=b:524288:0:65536", OLD, OLD])
    before = fill(host, system)
    host.run(["umount", OLD])
    assert host.sh(said(PAGE, "stat ")).stdout.strip() == "524288"
    assert host.run(["stat", "-c", "%u", f"{OLD}/home/alice"]).stdout.strip() == "525288"

    move(old, said(PAGE, "mount "))

    after = inside(old)
    assert {path: after.get(path) for path in before} == before
