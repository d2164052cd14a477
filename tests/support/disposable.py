"""Disposable hosts: Debian with systemd, Incus and Nix, booted by nspawn and thrown away after.

A host is a directory of the cache and a control group. The group is the proof of what belongs to
it: killed as a whole, it can hit no process of another run and leave none of this one.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import platform
import re
import select
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, Self

REPO = Path(__file__).resolve().parent.parent.parent
CACHE = Path(os.environ.get("INX_TESTBED_CACHE", "/var/cache/inx-testbed")).absolute()
HOSTS = CACHE / "hosts"

SUITE = "trixie"
TARGET_PYTHON = "3.13"  # what SUITE ships: wheels are chosen for it
PACKAGES = (
    "systemd systemd-sysv dbus udev procps kmod iproute2 iputils-ping ca-certificates curl git "
    "attr xz-utils incus-base incus-client lxcfs dnsmasq-base uidmap nix-bin nix-setup-systemd "
    "python3 python3-venv busybox-static"
).split()
# Nothing of this machine's network or name; an empty machine-id is made up anew at each first boot.
CUSTOMISE = """
echo "substituters =" >>"$1/etc/nix/nix.conf"
rm -f "$1/etc/resolv.conf" "$1/etc/hostname"
: >"$1/etc/machine-id"
"""
# Programs needed here, and what Debian calls them; mmdebstrap finds the archive's keys with gpg.
TOOLS = {
    "mmdebstrap": "mmdebstrap",
    "gpg": "gpg",
    "systemd-nspawn": "systemd-container",
    "pip3": "python3-pip",
}

ENVIRONMENT = {
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
}
NSPAWN_ENVIRONMENT = {
    "PATH": ENVIRONMENT["PATH"],
    "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1",
    "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "1",
    "SYSTEMD_SECCOMP": "0",
}

logger = logging.getLogger("testbed")


class HostError(Exception):
    """What failed, in one sentence; output that explains it follows on lines of its own."""


class Process(NamedTuple):
    """A process for certain: its number may come again, but not with the same start time."""

    pid: int
    started: str

    @classmethod
    def of(cls, pid: int) -> Self:
        # Fields 3 and 22, counted from behind the name, which may hold anything.
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        if state == "Z":
            raise ProcessLookupError(f"process {pid} has ended")
        return cls(pid, fields[18])

    @classmethod
    def read(cls, path: Path) -> Self | None:
        try:
            pid, started = path.read_text().split()
        except (FileNotFoundError, ValueError):
            return None
        return cls(int(pid), started)

    def write(self, path: Path) -> None:
        path.write_text(f"{self.pid} {self.started}\n")

    def alive(self) -> bool:
        try:
            return Process.of(self.pid) == self
        except (FileNotFoundError, ProcessLookupError):
            return False


@contextlib.contextmanager
def step(what: str) -> Iterator[None]:
    begin = time.monotonic()
    yield
    logger.info("%-36s %5.1f s", what, time.monotonic() - begin)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[int]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock.fileno()


def tool(
    argv: Sequence[str | Path],
    *,
    log: Path | None = None,
    stdin: int | IO[bytes] = subprocess.DEVNULL,
    lock: int | None = None,
) -> None:
    """Run a program of this machine; its output is shown only if it fails.

    It holds `lock` too: should this process be killed, the lock lasts until the program is gone.
    """
    done = subprocess.run(
        argv,
        check=False,
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=() if lock is None else (lock,),
    )
    text = done.stdout.decode(errors="replace")
    if log:
        log.write_text(text)
    if done.returncode:
        where = f" (all of it: {log})" if log else ""
        told = "\n".join(text.splitlines()[-20:])
        begin = " ".join(map(str, argv[:3]))
        raise HostError(f"'{begin} ...' ended with status {done.returncode}{where}\n{told}")


def remove(path: Path) -> None:
    tool(["rm", "-rf", "--one-file-system", "--", path])


def cached(name: str, key: object, make: Callable[[Path, int], None]) -> Path:
    """CACHE/NAME-KEY, made once: a killed maker leaves no half of it, a second one waits."""
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:12]
    path = CACHE / f"{name}-{digest}"
    if path.exists():
        return path
    with locked(path.with_suffix(".lock")) as lock, step(f"make {path.name}"):
        if not path.exists():
            fresh = path.with_suffix(".new")
            remove(fresh)
            make(fresh, lock)
            fresh.rename(path)
    return path


def install_tools() -> None:
    missing = [package for name, package in TOOLS.items() if not shutil.which(name)]
    if not missing:
        return
    if not shutil.which("apt-get"):
        raise HostError(f"this machine has no apt-get: install {' and '.join(missing)} by hand")
    log = CACHE / "apt.log"
    with locked(CACHE / "apt.lock") as lock, step(f"install {' '.join(missing)} here"):
        if not any(Path("/var/lib/apt/lists").glob("*_Packages*")):
            tool(["apt-get", "-q", "update"], log=log, lock=lock)
        install = ["apt-get", "-qy", "install", "--no-install-recommends"]
        tool([*install, *missing], log=log, lock=lock)


def find_mirror() -> str:
    """Where this machine gets Debian itself from: no security archive, nobody else's packages."""
    release = platform.freedesktop_os_release().get("VERSION_CODENAME", "stable")
    apt = Path("/etc/apt")
    extra = sorted(apt.glob("sources.list.d/*.list")) + sorted(apt.glob("sources.list.d/*.sources"))
    for path in filter(Path.exists, [apt / "sources.list", *extra]):
        text = path.read_text()
        entries = re.findall(r"(?m)^deb(?: +\[.*?\])? +(\S+) +(.+)", text)
        for stanza in text.split("\n\n"):
            field = dict(re.findall(r"(?m)^(\w+): *(.+)", stanza))
            if "URIs" in field:
                suites = f"{field.get('Suites')} {field.get('Components')}"
                entries.append((field["URIs"], suites))
        for uris, suites in entries:
            if {release, "main"} <= set(suites.split()):
                return str(uris.split()[0])
    raise HostError(f"no Debian archive of {release} is named below /etc/apt")


def tree() -> Path:
    """The file system of every host, itself never booted or changed."""

    def make(fresh: Path, lock: int) -> None:
        what = ["--variant=minbase", f"--include={','.join(PACKAGES)}"]
        # It mounts; should it be killed, its mounts vanish with a namespace of its own.
        argv = ["unshare", "--mount", "mmdebstrap", *what, f"--customize-hook={CUSTOMISE}", SUITE]
        tool([*argv, fresh, find_mirror()], log=CACHE / "tree.log", lock=lock)

    return cached("tree", [SUITE, PACKAGES, CUSTOMISE], make)


def requirements(*extras: str, build: bool = False) -> list[str]:
    pyproject = tomllib.loads((REPO / "pyproject.toml").read_text())
    project = pyproject["project"]
    wanted: list[str] = [*project["dependencies"]]
    for extra in extras:
        wanted += project["optional-dependencies"][extra]
    if build:
        wanted += pyproject["build-system"]["requires"]
    return sorted(wanted)


def wheels() -> Path:
    """All that installing the project takes from a Python package index."""
    wanted, machine = requirements(build=True), platform.machine()

    def make(fresh: Path, lock: int) -> None:
        target = ["--implementation", "cp", "--python-version", TARGET_PYTHON]
        for libc in "manylinux2014", "manylinux_2_28":
            target += ["--platform", f"{libc}_{machine}"]
        argv = ["pip3", "download", "-q", "--only-binary=:all:", *target]
        tool([*argv, "--dest", fresh, *wanted], log=CACHE / "wheels.log", lock=lock)

    return cached("wheels", [TARGET_PYTHON, machine, wanted], make)


def project_files() -> list[str]:
    """The project as git sees it, uncommitted work included; all of it where git sees nothing."""
    git = ["git", "-c", "safe.directory=*", "-C", os.fspath(REPO)]
    listing = [*git, "ls-files", "-co", "--exclude-standard", "-z"]
    try:
        listed = subprocess.run(listing, capture_output=True, text=True, check=True).stdout
        names = {name for name in listed.split("\0") if name and os.path.lexists(REPO / name)}
    except (FileNotFoundError, subprocess.CalledProcessError):
        files = (path for path in REPO.rglob("*") if path.is_symlink() or path.is_file())
        found = (path.relative_to(REPO) for path in files)
        names = {os.fspath(path) for path in found if path.parts[0] != ".git"}
    return sorted(names)


class Host:
    def __init__(self, name: str) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9-]{0,30}", name):
            raise HostError(f"'{name}' cannot name a host: use a letter, then letters, digits, '-'")
        self.name = name
        self.directory = HOSTS / name
        self.root = self.directory / "root"

    @classmethod
    def up(
        cls, name: str, *, bare: bool = False, overlay_store: bool = False, owner: bool = True
    ) -> Self:
        """A new host, ready. With `owner`, the next up anywhere removes it once we are gone."""
        if os.geteuid():
            raise HostError("a disposable host needs root")
        host = cls(name)
        install_tools()
        lower = tree()
        packages = None if bare else wheels()
        host._claim()
        try:
            with step("boot"):
                host._lay_out(lower, overlay_store)
                host._boot()
            with step("initialise Incus"):
                host.run(["incus", "admin", "init", "--minimal"])
            if packages:
                with step("install inx"):
                    host.push(packages, os.listdir(packages), "/root/wheels")
                    host.reinstall()
                with step("gather /etc/nixos"):
                    host.run(["/root/inx/example/tiny/gather", "/etc/nixos"])
        except BaseException:
            host.down()
            raise
        if not owner:
            (host.directory / "owner").unlink()
        return host

    @classmethod
    def present(cls) -> list[Self]:
        return [cls(path.name) for path in sorted(HOSTS.glob("*/"))]

    @property
    def owner(self) -> Process | None:
        return Process.read(self.directory / "owner")

    @property
    def is_up(self) -> bool:
        leader = Process.read(self.directory / "leader")
        return leader is not None and leader.alive()

    @property
    def pid(self) -> int:
        """The host's PID 1, as numbered on this machine."""
        leader = Process.read(self.directory / "leader")
        if leader is None or not leader.alive():
            raise HostError(f"host '{self.name}' is not up")
        return leader.pid

    def enter(self, argv: Sequence[str], env: Mapping[str, str] | None = None) -> list[str]:
        """The command line that runs ARGV in the host."""
        inside = [*"-m -u -i -n -p -C --root --wdns=/ -t".split(), str(self.pid)]
        variables = [f"{key}={value}" for key, value in (ENVIRONMENT | dict(env or {})).items()]
        return ["nsenter", *inside, "env", "-i", *variables, *argv]

    def run(
        self,
        argv: Sequence[str],
        *,
        input: str | None = None,  # noqa: A002 (as subprocess.run calls it)
        check: bool = True,
        timeout: float = 120,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        with subprocess.Popen(
            self.enter(argv, env),
            stdin=subprocess.DEVNULL if input is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="surrogateescape",
            start_new_session=True,  # nsenter's child can then be killed with it, as one group
        ) as process:
            late, out, err = False, "", ""
            try:
                out, err = process.communicate(input, timeout)
            except subprocess.TimeoutExpired:
                late = True
                os.killpg(process.pid, signal.SIGKILL)
                with contextlib.suppress(subprocess.TimeoutExpired):  # a daemon may hold the pipes
                    out, err = process.communicate(timeout=1)
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)
                raise
        if late or (check and process.returncode):
            how = f"took over {timeout} s" if late else f"ended with status {process.returncode}"
            told = "".join(f"\n{text.rstrip()}" for text in (out, err) if text.strip())
            raise HostError(f"'{shlex.join(argv)}' on host '{self.name}' {how}{told}")
        return subprocess.CompletedProcess(argv, process.returncode, out, err)

    def sh(self, script: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return self.run(["bash", "-euc", script], **options)

    def push(self, base: Path, names: Sequence[str], into: str) -> None:
        """Copy BASE/NAMES into a directory of the host, mounts that `root` does not show too."""
        with tempfile.NamedTemporaryFile() as listed, tempfile.NamedTemporaryFile() as archive:
            listed.write("\0".join(names).encode())
            listed.flush()
            pack = [
                "tar",
                "-C",
                os.fspath(base),
                "--owner=0",
                "--group=0",
                "--null",
                "-T",
                listed.name,
            ]
            tool([*pack, "-cf", archive.name])
            tool(self.enter(["tar", "-x", f"--one-top-level={into}"]), stdin=archive.file)

    def reinstall(self) -> None:
        """Install the project as it stands now."""
        self.run(["rm", "-rf", "/root/inx"])
        self.push(REPO, project_files(), "/root/inx")
        self.run(["/root/inx/install", "--wheels", "/root/wheels"], timeout=300)

    def reboot(self) -> None:
        """Shut down in order and boot again: nspawn leaves the second half to its caller."""
        with self._ending(120):
            self.run(["systemctl", "reboot"], check=False)  # may be killed by what it asks for
        self._boot()

    def down(self) -> None:
        """End every process of the host and remove it; repeat it if it was cut short."""
        with self._ending(30):
            with contextlib.suppress(FileNotFoundError):
                (self._cgroups()[0] / "cgroup.kill").write_text("1")
        if os.path.ismount(self.root):
            # nspawn, killed, leaves these two behind.
            root = self.root.stat()
            Path(f"/run/systemd/nspawn/locks/inode-{root.st_dev}:{root.st_ino}").unlink(True)
            with contextlib.suppress(FileNotFoundError):
                Path(f"/run/systemd/nspawn/propagate/{self.name}").rmdir()
            tool(["umount", "--lazy", self.root])
        remove(self.directory)

    def _claim(self) -> None:
        with locked(CACHE / "hosts.lock"):
            for host in self.present():
                if (owner := host.owner) and not owner.alive():
                    logger.info("remove host '%s', whose maker is gone", host.name)
                    host.down()
            if owner := self.owner:
                raise HostError(f"host '{self.name}' belongs to process {owner.pid}")
            if self.is_up:
                raise HostError(f"host '{self.name}' is up: end it with 'down {self.name}' first")
            self.down()
            self.directory.mkdir(parents=True)
            Process.of(os.getpid()).write(self.directory / "owner")

    def _lay_out(self, lower: Path, overlay_store: bool) -> None:
        for name in "root", "upper", "work", "incus":
            (self.directory / name).mkdir()
        if not overlay_store:
            tool(["cp", "-a", lower / "nix", self.directory / "nix"])
        layers = f"lowerdir={lower},upperdir={self.directory}/upper,workdir={self.directory}/work"
        tool(["mount", "-t", "overlay", "overlay", "-o", f"{layers},volatile", self.root])

    def _boot(self) -> None:
        groups = self._cgroups()
        for group in groups:
            group.mkdir()
        with contextlib.suppress(OSError):  # what the machine does not delegate, Incus goes without
            controllers = (groups[0].parent / "cgroup.controllers").read_text().split()
            delegate = " ".join(f"+{name}" for name in controllers)
            (groups[0].parent / "cgroup.subtree_control").write_text(delegate)
        # Idmapped mounts need the machine's own file system below them: overlayfs has none.
        binds = [f"--bind={self.directory}/incus:/var/lib/incus"]
        if (self.directory / "nix").exists():
            binds += [f"--bind={self.directory}/nix:/nix"]
        nspawn = (
            "systemd-nspawn --quiet --register=no --keep-unit --link-journal=no --notify-ready=yes "
            "--private-network --capability=all --bind=/dev/fuse --bind-ro=/dev/kmsg "
            f"--boot --console=pipe --machine={self.name}"
        ).split()
        enter = "".join(f"echo $$ >{shlex.quote(str(group))}/cgroup.procs\n" for group in groups)
        launch = f'{enter}exec setsid --fork "$@" </dev/null >>"$0" 2>&1'
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as news:
            news.bind("")  # the kernel chooses an abstract name
            name = news.getsockname()[1:].decode()
            subprocess.run(
                ["sh", "-euc", launch, self._console, *nspawn, "-D", self.root, *binds],
                env=NSPAWN_ENVIRONMENT | {"NOTIFY_SOCKET": f"@{name}"},
                check=True,
            )
            self._wait_for_boot(news)
        state = self.run(["systemctl", "is-system-running", "--wait"], check=False).stdout.strip()
        if state != "running":
            failed = self.run(["systemctl", "--failed", "--no-pager", "--plain"]).stdout
            raise HostError(f"host '{self.name}' came up {state}\n{failed}")

    def _wait_for_boot(self, news: socket.socket) -> None:
        with (self._cgroups()[0] / "cgroup.events").open() as events:
            poll = select.poll()
            poll.register(news, select.POLLIN)
            poll.register(events, select.POLLPRI)
            ready = False
            while not ready:
                if not poll.poll(60_000) or not _populated(events):
                    told = "\n".join(self._console.read_text(errors="replace").splitlines()[-20:])
                    raise HostError(f"host '{self.name}' did not boot\n{told}")
                with contextlib.suppress(BlockingIOError):
                    for line in news.recv(4096, socket.MSG_DONTWAIT).decode().splitlines():
                        key, _, value = line.partition("=")
                        if key == "X_NSPAWN_LEADER_PID":
                            Process.of(int(value)).write(self.directory / "leader")
                        ready = ready or line == "READY=1"

    @contextlib.contextmanager
    def _ending(self, timeout: float) -> Iterator[None]:
        """Around what ends the host: wait until its last process is gone, then drop its groups."""
        groups = self._cgroups()
        with contextlib.ExitStack() as stack:
            ends = []
            with contextlib.suppress(HostError):
                leader = os.pidfd_open(self.pid)
                stack.callback(os.close, leader)
                ends.append(leader)
            yield
            # The group is empty a moment before PID 1 has seen all others of its namespace go.
            if ends and not select.select(ends, [], [], timeout)[0]:
                raise HostError(f"host '{self.name}' did not end in {timeout} s")
            with contextlib.suppress(FileNotFoundError):
                events = stack.enter_context((groups[0] / "cgroup.events").open())
                poll = select.poll()
                poll.register(events, select.POLLPRI)
                while _populated(events):
                    if not poll.poll(timeout * 1000):
                        raise HostError(f"processes of host '{self.name}' did not end")
        for group in groups:
            for path, _, _ in os.walk(group, topdown=False):
                os.rmdir(path)

    @property
    def _console(self) -> Path:
        return self.directory / "console.log"

    def _cgroups(self) -> list[Path]:
        """A group of our own in each hierarchy that nspawn uses; two hosts in one would share it.

        The first is of version 2, which holds every process of the host whatever it is inside.
        """
        found: dict[str, Path] = {}
        for line in Path("/proc/self/mounts").read_text().splitlines():
            _, where, kind, options, *_ = line.split()
            if kind == "cgroup2" or (kind == "cgroup" and "name=systemd" in options.split(",")):
                found.setdefault(kind, Path(where))
        if "cgroup2" not in found:
            raise HostError("no cgroup2 is mounted: a host cannot be booted here")
        name = os.fspath(self.directory).strip("/").replace("/", "-")
        return [found[kind] / name for kind in sorted(found, reverse=True)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.down()


def _populated(events: IO[str]) -> bool:
    events.seek(0)
    return "populated 1" in events.read()
