"""Disposable hosts: Debian with systemd, Incus and Nix, booted by systemd-nspawn.

A host is a directory of the cache and a cgroup. The cgroup has exactly the processes of the host:
killing the cgroup kills all of them, and no process of another run.
"""

import contextlib
import logging
import os
import re
import select
import shlex
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, Self

from support.cache import CACHE, REPO, HostError, locked, remove, step, tool
from support.host_files import POOL, SUITE, install_tools, project_files, tree, wheels

__all__ = ["REPO", "Host", "HostError", "NoHostError", "Process", "project_files", "tree"]

HOSTS = CACHE / "hosts"

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

# How Incus makes its pool `default`. btrfs lies on a loop device of 4 GiB.
POOL_INIT = {
    "dir": ["--minimal"],
    "btrfs": ["--auto", "--storage-backend=btrfs", "--storage-create-loop=4"],
}

logger = logging.getLogger("testbed")


class NoHostError(HostError):
    """The packages of a suite make no host: the archive, not the project, is the reason."""


@contextlib.contextmanager
def _made_of(suite: str) -> Iterator[None]:
    try:
        yield
    except HostError as error:
        raise NoHostError(f"{suite} makes no host: {error}") from None


class Process(NamedTuple):
    """A process, identified by its PID and its start time: a PID can be used again."""

    pid: int
    started: str

    @classmethod
    def of(cls, pid: int) -> Self:
        # Fields 3 and 22. The name, field 2, may have any character, so the fields after it count.
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


class Host:
    def __init__(self, name: str) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9-]{0,30}", name):
            raise HostError(f"'{name}' cannot name a host: use a letter, then letters, digits, '-'")
        self.name = name
        self.directory = HOSTS / name
        self.root = self.directory / "root"

    @classmethod
    def up(
        cls,
        name: str,
        *,
        bare: bool = False,
        overlay_store: bool = False,
        owner: bool = True,
        suite: str = SUITE,
        pool: str = POOL,
        initialise: Callable[["Host"], object] | None = None,
    ) -> Self:
        """Make and boot a host. With `owner`, a later up removes the host if this process ended.

        `initialise` gives Incus its first configuration, if not that of a host alone. NoHostError
        if `suite` makes no host: its packages, not the project, are the reason.
        """
        if os.geteuid():
            raise HostError("a disposable host needs root")
        host = cls(name)
        install_tools()
        with _made_of(suite):
            lower = tree(suite, pool)
            packages = None if bare else wheels(lower)
        host._claim()
        try:
            with _made_of(suite):
                with step("boot"):
                    host._lay_out(lower, overlay_store, pool)
                    host._boot()
                with step("initialise Incus"):
                    if initialise:
                        initialise(host)
                    else:
                        host.run(["incus", "admin", "init", *POOL_INIT[pool]])
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
        """The PID of the host's init, on this machine."""
        leader = Process.read(self.directory / "leader")
        if leader is None or not leader.alive():
            raise HostError(f"host '{self.name}' is not up")
        return leader.pid

    def enter(self, argv: Sequence[str], env: Mapping[str, str] | None = None) -> list[str]:
        """The command line that runs `argv` in the host."""
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
            start_new_session=True,  # a process group: killpg kills nsenter and its child
        ) as process:
            late, out, err = False, "", ""
            try:
                out, err = process.communicate(input, timeout)
            except subprocess.TimeoutExpired:
                late = True
                os.killpg(process.pid, signal.SIGKILL)
                # A daemon may still have the pipes open.
                with contextlib.suppress(subprocess.TimeoutExpired):
                    out, err = process.communicate(timeout=1)
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)
                raise
        if late or (check and process.returncode):
            how = f"took over {timeout} s" if late else f"ended with status {process.returncode}"
            output = "".join(f"\n{text.rstrip()}" for text in (out, err) if text.strip())
            raise HostError(f"'{shlex.join(argv)}' on host '{self.name}' {how}{output}")
        return subprocess.CompletedProcess(argv, process.returncode, out, err)

    def sh(self, script: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return self.run(["bash", "-euc", script], **options)

    def push(self, base: Path, names: Sequence[str], into: str) -> None:
        """Copy files of `base` into a directory of the host, on whatever mount it is."""
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
        """Install the project in its present state."""
        self.run(["rm", "-rf", "/root/inx"])
        self.push(REPO, project_files(), "/root/inx")
        self.run(["/root/inx/install", "--wheels", "/root/wheels"], timeout=300)

    def reboot(self) -> None:
        """Shut the host down and boot it again: nspawn only shuts it down."""
        with self._ending(120):
            self.run(["systemctl", "reboot"], check=False)  # the shutdown may kill systemctl
        self._boot()

    def boot_after_crash(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Kill every process of the host, and boot it again. `meanwhile` is called as its init
        begins, before any service starts."""
        self._kill()
        self._boot(meanwhile)

    def down(self) -> None:
        """Kill every process of the host, and remove the host. It can be called again."""
        self._kill()
        if os.path.ismount(self.root):
            tool(["umount", "--lazy", self.root])
        remove(self.directory)

    def _kill(self) -> None:
        with self._ending(30):
            with contextlib.suppress(FileNotFoundError):
                (self._cgroups()[0] / "cgroup.kill").write_text("1")
        if os.path.ismount(self.root):
            # A killed nspawn leaves this lock and this directory.
            root = self.root.stat()
            Path(f"/run/systemd/nspawn/locks/inode-{root.st_dev}:{root.st_ino}").unlink(True)
            with contextlib.suppress(FileNotFoundError):
                Path(f"/run/systemd/nspawn/propagate/{self.name}").rmdir()

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

    def _lay_out(self, lower: Path, overlay_store: bool, pool: str) -> None:
        for name in "root", "upper", "work", "incus":
            (self.directory / name).mkdir()
        (self.directory / "pool").write_text(pool)
        if not overlay_store:
            tool(["cp", "-a", lower / "nix", self.directory / "nix"])
        for name in "subuid", "subgid":  # for raw.idmap; Incus reads them when it starts
            text = (lower / "etc" / name).read_text()
            upper = self.directory / "upper/etc"
            upper.mkdir(exist_ok=True)
            (upper / name).write_text(f"{text}root:1000:1\n")
        layers = f"lowerdir={lower},upperdir={self.directory}/upper,workdir={self.directory}/work"
        tool(["mount", "-t", "overlay", "overlay", "-o", f"{layers},volatile", self.root])

    def _boot(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        groups = self._cgroups()
        for group in groups:
            group.mkdir()
        with contextlib.suppress(OSError):  # Incus works without controllers that are not delegated
            controllers = (groups[0].parent / "cgroup.controllers").read_text().split()
            delegate = " ".join(f"+{name}" for name in controllers)
            (groups[0].parent / "cgroup.subtree_control").write_text(delegate)
        # overlayfs does not support idmapped mounts. So these directories are bind mounts from the
        # file system of the machine.
        binds = [f"--bind={self.directory}/incus:/var/lib/incus"]
        if (self.directory / "nix").exists():
            binds += [f"--bind={self.directory}/nix:/nix"]
        if (self.directory / "pool").read_text() != "dir":
            binds += [f"--bind={node}" for node in sorted(Path("/dev").glob("loop*"))]
        nspawn = (
            "systemd-nspawn --quiet --register=no --keep-unit --link-journal=no --notify-ready=yes "
            "--private-network --capability=all --bind=/dev/fuse --bind-ro=/dev/kmsg "
            f"--boot --console=pipe --machine={self.name}"
        ).split()
        enter = "".join(f"echo $$ >{shlex.quote(str(group))}/cgroup.procs\n" for group in groups)
        launch = f'{enter}exec setsid --fork "$@" </dev/null >>"$0" 2>&1'
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.bind("")  # the kernel chooses an abstract name
            name = notify.getsockname()[1:].decode()
            subprocess.run(
                ["sh", "-euc", launch, self._console, *nspawn, "-D", self.root, *binds],
                env=NSPAWN_ENVIRONMENT | {"NOTIFY_SOCKET": f"@{name}"},
                check=True,
            )
            self._wait_for_boot(notify, meanwhile)
        state = self.run(["systemctl", "is-system-running", "--wait"], check=False).stdout.strip()
        if state != "running":
            failed = self.run(["systemctl", "--failed", "--no-pager", "--plain"]).stdout
            raise HostError(f"host '{self.name}' came up {state}\n{failed}")

    def _wait_for_boot(self, notify: socket.socket, meanwhile: Callable[[], None]) -> None:
        with (self._cgroups()[0] / "cgroup.events").open() as events:
            poll = select.poll()
            poll.register(notify, select.POLLIN)
            poll.register(events, select.POLLPRI)
            ready = False
            while not ready:
                if not poll.poll(60_000) or not _populated(events):
                    end = "\n".join(self._console.read_text(errors="replace").splitlines()[-20:])
                    raise HostError(f"host '{self.name}' did not boot\n{end}")
                with contextlib.suppress(BlockingIOError):
                    for line in notify.recv(4096, socket.MSG_DONTWAIT).decode().splitlines():
                        key, _, value = line.partition("=")
                        if key == "X_NSPAWN_LEADER_PID":
                            Process.of(int(value)).write(self.directory / "leader")
                            meanwhile()
                        ready = ready or line == "READY=1"

    @contextlib.contextmanager
    def _ending(self, timeout: float) -> Iterator[None]:
        """After the block, wait until the last process has ended, then remove the cgroups."""
        groups = self._cgroups()
        with contextlib.ExitStack() as stack:
            leaders = []
            with contextlib.suppress(HostError):
                leader = os.pidfd_open(self.pid)
                stack.callback(os.close, leader)
                leaders.append(leader)
            yield
            # init ends last: it waits for all other processes of its PID namespace.
            if leaders and not select.select(leaders, [], [], timeout)[0]:
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
        """A cgroup for this host alone in each hierarchy that nspawn uses.

        The first is in the hierarchy of version 2, which has every process of the host.
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
