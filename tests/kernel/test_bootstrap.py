"""hooks/init as PID 1 of a waiting container: it prints, starts the system, exits or is stopped."""

import os
import select
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.disposable import REPO, tree
from support.waiting import SECONDS

from inx_sidecar.base import paths
from inx_sidecar.base.errors import UnsupportedError
from inx_sidecar.container import bootstrap
from inx_sidecar.container.bootstrap import Console, is_waiting, prepare

pytestmark = pytest.mark.main

UUID = "11111111-2222-3333-4444-555555555555"
SYSTEM_INIT = """#!/dev/.inx/busybox sh
echo "system: PID $$ in $(/dev/.inx/busybox pwd) with $# arguments"
"""
# Runs in its own mount and PID namespaces, with the boot directory read-only at /dev/.inx.
ENTER = """
mount --bind "$1" "$2/dev/.inx"
mount -o remount,bind,ro "$2/dev/.inx"
exec chroot "$2" /dev/.inx/init
"""


class Init:
    """hooks/init, running as PID 1; `pid` is its number on the host."""

    def __init__(self, rootfs: Path, enter: str = ENTER) -> None:
        unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
        self.process = subprocess.Popen(
            [*unshare, "sh", "-euc", enter, "sh", paths.boot_dir(UUID), str(rootfs)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.output = b""

    @property
    def pid(self) -> int:
        own = self.process.pid
        return int(Path(f"/proc/{own}/task/{own}/children").read_text())

    def wait_for(self, text: str, seconds: float = SECONDS) -> None:
        assert self.process.stdout is not None
        deadline = time.monotonic() + seconds
        while text.encode() not in self.output:
            left = deadline - time.monotonic()
            ready, _, _ = select.select([self.process.stdout], [], [], max(left, 0))
            chunk = os.read(self.process.stdout.fileno(), 65536) if ready else b""
            assert chunk, f"no {text!r} in {self.output!r}"
            self.output += chunk

    def is_quiet(self, seconds: float = 0.1) -> bool:
        assert self.process.stdout is not None
        return not select.select([self.process.stdout], [], [], seconds)[0]

    def wait_until_it_listens(self, *, reads: bool = True) -> None:
        """Wait until init's background `cat` reads the fifo; without `reads`, until it may wait for
        a writer."""
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            try:
                pid = self.pid
                (cat,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
                files = [
                    os.readlink(f"/proc/{cat}/fd/{fd}") for fd in os.listdir(f"/proc/{cat}/fd")
                ]
                if not reads or any(file.endswith("/console") for file in files):
                    return
            except (ValueError, FileNotFoundError):
                pass
            time.sleep(0.01)
        raise AssertionError("it does not listen")

    def end(self, seconds: float = SECONDS) -> tuple[int, str]:
        """The exit status of init, and all its output."""
        rest, _ = self.process.communicate(timeout=seconds)
        return self.process.returncode, (self.output + rest).decode()


@pytest.fixture(autouse=True)
def _host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    run.mkdir()
    monkeypatch.setattr(paths, "RUN", str(run))
    monkeypatch.setattr(paths, "HOOKS", str(REPO / "hooks"))
    monkeypatch.setattr(bootstrap, "_BUSYBOX", f"{run}/busybox")
    with monkeypatch.context() as patch:
        patch.setenv("PATH", f"{tree()}/usr/bin")
        bootstrap.install_busybox()


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    path = tmp_path / "rootfs"
    (path / "dev/.inx").mkdir(parents=True)
    # LXC makes /dev/null; background processes of the shell read from it.
    os.mknod(path / "dev/null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    system = path / "nix/var/nix/profiles/system"
    system.mkdir(parents=True)
    (system / "init").write_text(SYSTEM_INIT)
    (system / "init").chmod(0o755)
    return path


class Runner:
    """Starts inits; the fixture kills them at the end of the test."""

    def __init__(self, rootfs: Path) -> None:
        self.rootfs = rootfs
        self.enter = ENTER
        self.started: list[Init] = []

    def __call__(self) -> Init:
        self.started.append(Init(self.rootfs, self.enter))
        return self.started[-1]


@pytest.fixture
def start(rootfs: Path) -> Iterator[Runner]:
    runner = Runner(rootfs)
    yield runner
    for init in runner.started:
        init.process.kill()
        init.process.communicate()


RAN = "system: PID 1 in / with 0 arguments\n"


def test_a_system_that_is_there_is_started_at_once(start: Runner) -> None:
    prepare(UUID, ready=True)
    assert not is_waiting(UUID)
    assert start().end() == (0, RAN)


def test_a_system_for_an_initrd_is_prepared_first(start: Runner, rootfs: Path) -> None:
    """With boot.initrd.systemd, init is systemd alone; prepare-root starts it at its end."""
    prepare(UUID, ready=True)
    program = rootfs / "nix/var/nix/profiles/system/prepare-root"
    program.write_text(SYSTEM_INIT.replace("system:", "prepared:"))
    program.chmod(0o755)
    assert start().end() == (0, RAN.replace("system:", "prepared:"))


@pytest.mark.parametrize("before", ["nothing", "directory", "mount"])
def test_a_tmpfs_is_mounted_at_run_unless_something_is(
    start: Runner, rootfs: Path, before: str
) -> None:
    prepare(UUID, ready=True)
    for name in ("proc", "run"):
        if name == "proc" or before != "nothing":
            (rootfs / name).mkdir()
    enter = ENTER.replace("exec", 'mount -t proc proc "$2/proc"\nexec')
    if before == "mount":
        enter = enter.replace("exec", 'mount -t ramfs ramfs "$2/run"\nexec')
    (rootfs / "nix/var/nix/profiles/system/init").write_text(
        "#!/dev/.inx/busybox sh\n/dev/.inx/busybox grep ' /run ' /proc/mounts\n"
    )
    start.enter = enter
    status, output = start().end()
    assert status == 0
    assert [line.split()[1:3] for line in output.splitlines()] == [
        ["/run", "ramfs" if before == "mount" else "tmpfs"]
    ]
    assert list(rootfs.glob("run/*")) == []


def test_a_notice_is_printed_before_the_system_starts(start: Runner) -> None:
    prepare(UUID, ready=True, notice="as before\nthe build failed")
    assert start().end() == (0, "inx: as before the build failed\r\n" + RAN)


def test_it_prints_what_the_build_prints_and_then_starts_the_system(start: Runner) -> None:
    prepare(UUID, ready=False)
    assert is_waiting(UUID)
    console = Console(UUID)
    init = start()
    console.print("building one")
    init.wait_for("building one\r\n")
    console.print("building two")
    init.wait_for("building two\r\n")
    assert init.is_quiet() and init.process.poll() is None
    console.ready()
    assert not is_waiting(UUID)
    assert init.end() == (0, "building one\r\nbuilding two\r\n" + RAN)


def test_the_last_lines_are_printed_before_the_system_starts(start: Runner) -> None:
    prepare(UUID, ready=False)
    console = Console(UUID)
    init = start()
    init.wait_until_it_listens()
    for number in range(500):
        console.print(f"line {number}")
    console.ready("started generation 1")
    status, output = init.end()
    assert status == 0
    assert output.endswith("line 499\r\ninx: started generation 1\r\n" + RAN)


def test_a_failed_build_is_told_and_ends_the_container(start: Runner) -> None:
    prepare(UUID, ready=False)
    console = Console(UUID)
    init = start()
    console.print("building")
    console.failed("cannot build\nthe system")
    status, output = init.end()
    assert status == 1 and output.endswith("inx: cannot build the system\r\n")
    assert not is_waiting(UUID)


@pytest.mark.parametrize("number", [signal.SIGPWR, signal.SIGTERM])
@pytest.mark.parametrize("served", [True, False])
def test_it_stops_at_once_while_it_waits(
    start: Runner, number: signal.Signals, served: bool
) -> None:
    """`incus stop` sends SIGPWR; also while no sidecar holds the fifo."""
    prepare(UUID, ready=False)
    console = Console(UUID)
    init = start()
    console.print("waiting")
    init.wait_for("waiting")
    if not served:
        console.close()
    init.wait_until_it_listens(reads=served)
    time.sleep(0.05)
    os.kill(init.pid, number)
    assert init.end()[0] == 0
    if served:
        console.close()


def test_another_sidecar_takes_over(start: Runner) -> None:
    prepare(UUID, ready=False)
    first = Console(UUID)
    init = start()
    first.print("from the first")
    init.wait_for("from the first\r\n")
    first.close()
    assert init.is_quiet() and init.process.poll() is None and is_waiting(UUID)
    second = Console(UUID)
    second.print("from the second")
    init.wait_for("from the second\r\n")
    second.ready()
    assert init.end()[1].endswith(RAN)


def test_without_a_sidecar_it_waits_and_uses_no_time(start: Runner) -> None:
    prepare(UUID, ready=False)
    init = start()
    init.wait_until_it_listens(reads=False)
    used = Path(f"/proc/{init.pid}/stat")
    before = used.read_text().rpartition(")")[2].split()[11:13]
    time.sleep(0.3)
    assert used.read_text().rpartition(")")[2].split()[11:13] == before
    console = Console(UUID)
    console.ready()
    assert init.end() == (0, RAN)


@pytest.mark.parametrize("ready", [True, False])
def test_a_mark_that_is_set_before_it_begins_counts(start: Runner, ready: bool) -> None:
    prepare(UUID, ready=False)
    console = Console(UUID)
    if ready:
        console.ready("early")
        assert start().end() == (0, "inx: early\r\n" + RAN)
    else:
        console.failed("early")
        assert start().end() == (1, "inx: early\r\n")


@pytest.mark.parametrize("pause", [0, 0.001, 0.003, 0.005, 0.01, 0.02])
def test_a_mark_that_is_set_while_it_begins_counts(start: Runner, pause: float) -> None:
    prepare(UUID, ready=False)
    console = Console(UUID)
    init = start()
    time.sleep(pause)
    console.ready()
    status, output = init.end()
    assert status == 0 and output.endswith(RAN)


def test_a_sidecar_that_dies_between_mark_and_fifo_leaves_nobody_waiting(start: Runner) -> None:
    prepare(UUID, ready=False)
    console = Console(UUID)
    init = start()
    init.wait_until_it_listens()
    bootstrap._write_result(paths.boot_dir(UUID), "ready", "")
    console.close()
    assert init.end() == (0, RAN)
    assert not is_waiting(UUID), "the next sidecar would write to a system that runs"


def test_nobody_reads_and_thousands_of_lines_do_not_block(start: Runner) -> None:
    prepare(UUID, ready=False)
    console = Console(UUID)
    for number in range(20_000):
        console.print(f"line {number}")
    console.print("x" * 100_000)
    init = start()
    init.wait_for("line 0\r\n")
    init.wait_for("line 500\r\n")
    assert "line 19999" not in init.output.decode()
    console.print("after the flood")
    init.wait_for("after the flood\r\n")
    console.ready()
    assert init.end()[0] == 0


def test_a_slow_reader_loses_whole_lines_only(start: Runner) -> None:
    prepare(UUID, ready=False)
    console = Console(UUID)
    for number in range(20_000):
        console.print(f"<{number:05}>")
    init = start()
    console.ready()
    lines = init.end()[1].removesuffix(RAN).split("\r\n")
    assert all(len(line) == 7 for line in lines[:-1]), "torn"


def test_control_characters_of_a_build_do_not_reach_the_terminal(start: Runner) -> None:
    prepare(UUID, ready=False)
    console = Console(UUID)
    init = start()
    console.print("\x1b[2J\x07evil\rinx: fine\t\x9b\ud800 é")
    init.wait_for("é\r\n")
    console.ready()
    assert init.end()[1].startswith("?[2J??evil?inx: fine\t?? é\r\n".replace("??e", "?e"))


def test_a_system_without_an_init_ends_the_container(start: Runner, rootfs: Path) -> None:
    shutil.rmtree(rootfs / "nix")
    prepare(UUID, ready=True)
    status, output = start().end()
    assert status in (126, 127) and "/nix/var/nix/profiles/system/init" in output


def test_a_new_start_finds_nothing_of_the_last(start: Runner) -> None:
    prepare(UUID, ready=False)
    Console(UUID).failed("last time")
    prepare(UUID, ready=True)
    assert start().end() == (0, RAN)
    found = sorted(os.listdir(paths.boot_dir(UUID)))
    assert found == ["busybox", "init", "ready"]


def test_all_that_a_container_sees_can_be_read_by_it_and_changed_by_nobody() -> None:
    def modes() -> dict[str, int]:
        directory = Path(paths.boot_dir(UUID))
        return {path.name: path.stat().st_mode & 0o777 for path in directory.iterdir()}

    programs = {"busybox": 0o555, "init": 0o555}
    prepare(UUID, ready=False)
    assert modes() == programs | {"console": 0o444}
    Console(UUID).failed("it failed")
    assert modes() == programs | {"failed": 0o444}
    prepare(UUID, ready=True)
    assert modes() == programs | {"ready": 0o444}


def test_a_busybox_that_needs_libraries_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Path(f"{paths.RUN}/busybox").stat().st_ino
    (tmp_path / "bin").mkdir()
    shutil.copy("/bin/sh", tmp_path / "bin/busybox")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(UnsupportedError, match="not a static program: install busybox-static"):
        bootstrap.install_busybox()
    assert Path(f"{paths.RUN}/busybox").stat().st_ino == before


def test_a_host_without_busybox_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UnsupportedError, match="'busybox' is not installed"):
        bootstrap.install_busybox()
