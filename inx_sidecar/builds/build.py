"""Build or fetch the system of an instance: as whom, with which command, within which limits.

Evaluating Nix code reads files and runs git with the rights of whoever does it. So a directory is
built as its owner, provided that nobody else could have put it there; everything else as the
unprivileged build user. Each build is a transient systemd service of its own.
"""

import asyncio
import os
import pwd
import re
import stat
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from inx_sidecar.base import paths
from inx_sidecar.base.errors import BuildError, UnsupportedError
from inx_sidecar.base.process import Completed, find, run
from inx_sidecar.config.keys import Flake, NixFile, Source, System
from inx_sidecar.config.settings import Settings
from inx_sidecar.nix.store import STORE_PATH, check_toplevel, valid_paths

# What the admin may set for the sidecar's unit, and builds need as well.
_PASSED_ON: Final = (
    "NIX_PATH", "NIX_SSL_CERT_FILE", "SSL_CERT_FILE", "http_proxy", "https_proxy", "no_proxy",
)  # fmt: skip
_SANDBOX: Final = (
    "NoNewPrivileges=yes", "PrivateDevices=yes", "ProtectSystem=yes", "ProtectKernelTunables=yes",
    "ProtectKernelModules=yes", "ProtectControlGroups=yes", "RestrictSUIDSGID=yes",
    "LockPersonality=yes", "UMask=0022",
)  # fmt: skip
_LOG_MAX: Final = 16 << 20


class Turns:
    """So many builds at once; the limit may change while some wait."""

    def __init__(self) -> None:
        self.taken = 0
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def one_of(self, limit: int) -> AsyncIterator[None]:
        async with self._changed:
            await self._changed.wait_for(lambda: self.taken < limit)
            self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1
            async with self._changed:
                self._changed.notify_all()


async def in_turn(
    turns: Turns,
    uuid: str,
    name: str,
    source: Source,
    missing: str | None,
    settings: Settings,
    say: Callable[[str], None],
) -> str:
    """As `build`, once it is its turn; cancelled, it takes its processes along."""
    limit = settings.max_builds
    if turns.taken >= limit:
        say(f"inx: waiting for other builds ({limit} at a time)")
    async with turns.one_of(limit):
        try:
            settings.check_allowed(source)
            return await build(uuid, name, source, missing, settings, say)
        except asyncio.CancelledError:
            await stop(uuid)
            raise


@dataclass(frozen=True)
class Builder:
    """The user a build runs as."""

    name: str
    uid: int
    gid: int
    home: str


def builder(source: Source, settings: Settings) -> Builder:
    match source:
        case Flake():
            directory = source.directory()
            place = None if directory is None else f"{directory}/flake.nix"
            # Nix would go on looking for one above, where it may be anybody's.
            if place is not None and not os.path.exists(place):
                raise BuildError(f"there is no {place}")
        case NixFile():
            place = source.path
        case _:
            place = None
    owner = None if place is None else sole_owner(place)
    try:
        entry = pwd.getpwnam(settings.build_user) if owner is None else pwd.getpwuid(owner)
    except KeyError:
        who = settings.build_user if owner is None else f"{owner}, who owns {place}"
        raise UnsupportedError(f"there is no user {who}, to build as") from None
    return Builder(entry.pw_name, entry.pw_uid, entry.pw_gid, entry.pw_dir)


def sole_owner(path: str) -> int | None:
    """The user who alone, beside root, decides what `path` leads to; None if there is no such one.

    Whoever owns a directory or a link on the way, or may write to one, could exchange what lies
    beyond between this look and the evaluation, and have it evaluated with the owner's rights.
    """
    owners: set[int] = set()
    for place in _way(path):
        try:
            found = os.lstat(place)
        except OSError:
            return None
        sticky = stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX
        if not stat.S_ISLNK(found.st_mode) and found.st_mode & 0o022 and not sticky:
            return None
        owners.add(found.st_uid)
    # In a sticky directory nobody can exchange what is another's, but anyone can put something
    # beside it, for the flake or file to import.
    end = os.path.realpath(path)
    home = end if os.path.isdir(end) else os.path.dirname(end)
    others = owners - {0}
    if len(others) > 1 or os.stat(home).st_mode & 0o022:
        return None
    return others.pop() if others else 0


def _way(path: str) -> Iterable[str]:
    """Every directory and link that looking up `path` passes, and where it ends."""
    todo = _parts(path)
    here = ""
    links = 0
    yield "/"
    while todo:
        part = todo.pop()
        if part == "..":
            here = os.path.dirname(here)
            continue
        step = f"{here}/{part}"
        yield step
        if os.path.islink(step) and links < 40:
            links += 1
            target = os.readlink(step)
            here = "" if target.startswith("/") else here
            todo += _parts(target)
        else:
            here = step


def _parts(path: str) -> list[str]:
    """The steps of `path`, the first one last."""
    return [part for part in reversed(path.split("/")) if part not in ("", ".")]


def commands(source: Source, missing: str | None, link: str) -> list[list[str]]:
    """What to try, in order, to make `link` lead to the system."""
    tries = []
    if missing is not None:
        tries.append(["nix-store", "--realise", "--add-root", link, "--", missing])
    match source:
        case Flake():
            tries.append(
                ["nix", "--extra-experimental-features", "nix-command flakes",
                 "build", "--log-format", "raw-with-logs", "--no-accept-flake-config",
                 "--out-link", link, "--", source.installable()]
            )  # fmt: skip
        case NixFile():
            tries.append(
                ["nix-build", "--out-link", link, "--attr", source.attr, "--", source.path]
            )
    return tries


async def build(
    uuid: str,
    name: str,
    source: Source,
    missing: str | None,
    settings: Settings,
    on_line: Callable[[str], None],
) -> str:
    """The store path of the system of instance `name`; `on_line` gets what Nix prints.

    It is rooted by the link in the build directory until `forget` is called.
    """
    cannot, refusal, tried = f"cannot build the system of {name!r} from {source}", "", source
    try:
        user = builder(source, settings)
    except BuildError as error:
        if missing is None:
            raise BuildError(f"{cannot}: {error}") from None
        # What was built before can perhaps be fetched though its source is not there.
        refusal, tried = str(error), System(missing)
        user = builder(tried, settings)
    await stop(uuid)
    await forget(uuid)
    os.makedirs(paths.build_dir(uuid), mode=0o755)
    # Its own each time: what a user leaves in one is no business of the next.
    directory = tempfile.mkdtemp(dir=paths.build_dir(uuid))
    os.chmod(directory, 0o755)
    os.chown(directory, user.uid, user.gid)
    link = f"{directory}/system"
    on_line(f"inx: building the system of {name!r} from {source} as {user.name}")
    log_path = paths.build_log(uuid)
    with open(log_path, "w") as log:

        def record(line: str) -> None:
            if log.tell() < _LOG_MAX:
                print(line, file=log, flush=True)
            on_line(line)

        for number, command in enumerate(commands(tried, missing, link)):
            if number:
                record(f"inx: {missing} cannot be fetched; building {source}")
            done = await run(_as_service(uuid, user, command, settings), on_line=record)
            if done.status == 0:
                return _result(link, name, source)
            why = await _limit_that_ended(uuid, settings) or reason(done)
    raise BuildError(f"{cannot}: {refusal or why}")


def _result(link: str, name: str, source: Source) -> str:
    """The link is the build user's: its text counts, and only if Nix vouches for it."""
    try:
        path = os.readlink(link)
    except OSError:
        path = ""
    if not STORE_PATH.fullmatch(path) or path not in valid_paths({path}):
        raise BuildError(f"the build of {name!r} from {source} gave {path!r}, no store path")
    check_toplevel(path, f"the result of {source}")
    return path


async def forget(uuid: str) -> None:
    """Remove the build directory: its root is no longer needed.

    By a program of its own: a user may have put any number of files there.
    """
    await run(["rm", "-rf", "--one-file-system", "--", paths.build_dir(uuid)])


async def stop(uuid: str) -> None:
    """End a build of this instance that still runs, with all its processes."""
    await run(["systemctl", "stop", "--quiet", paths.build_unit(uuid)])
    await run(["systemctl", "reset-failed", "--quiet", paths.build_unit(uuid)])


async def stop_all() -> None:
    """End what a sidecar that died left behind: nobody waits for these builds any more."""
    await run(["systemctl", "stop", "--quiet", paths.build_unit("*")])


async def _limit_that_ended(uuid: str, settings: Settings) -> str | None:
    """What systemd has ended the build for (Result= in systemd.exec(5), EnvironmentVariables).

    The failed unit is forgotten after that: its name is needed again.
    """
    unit = paths.build_unit(uuid)
    shown = await run(["systemctl", "show", "--property=Result", "--value", unit])
    await run(["systemctl", "reset-failed", "--quiet", unit])
    return {
        "timeout": f"it took over {settings.build_timeout} s (build_timeout)",
        "oom-kill": f"it took over {settings.build_memory_max} of memory (build_memory_max)",
        "signal": "it was killed",
    }.get(shown.output.strip())


def _as_service(uuid: str, user: Builder, command: list[str], settings: Settings) -> list[str]:
    properties = [
        *_SANDBOX,
        f"MemoryMax={settings.build_memory_max}",
        f"RuntimeMaxSec={settings.build_timeout}",
        # A Nix client that is asked to end waits for its build; one that is gone takes it along.
        "KillSignal=SIGKILL",
    ]
    environment = {
        "HOME": user.home, "PATH": os.environ.get("PATH", ""), "LANG": "C.UTF-8",
        "NIX_REMOTE": "daemon", "NO_COLOR": "1", "TERM": "dumb",
    }  # fmt: skip
    environment |= {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    return [
        "systemd-run", "--quiet", "--wait", "--pipe", "--slice=inx-build.slice",
        f"--unit={paths.build_unit(uuid)}", f"--uid={user.uid}", f"--gid={user.gid}",
        *(f"--property={text}" for text in properties),
        *(f"--setenv={key}={value}" for key, value in environment.items()),
        # systemd takes "$" for a variable and "$$" for "$" (systemd.service(5), command lines).
        "--", find(command[0]), *(argument.replace("$", "$$") for argument in command[1:]),
    ]  # fmt: skip


# What Nix itself says begins a line, or an indented one in a trace; from 2.32 on the reason of a
# failed build is on the line below.
_ERROR: Final = re.compile(r"^ *error: *(\S.*(?:\n +Reason: .*)?)$", re.MULTILINE)
_ENDED_FROM_OUTSIDE: Final = "it was ended from outside, or by build_memory_max or build_timeout"


def reason(done: Completed) -> str:
    """One sentence of why Nix failed: the builder that did, or the innermost, last error."""
    found: list[str] = [" ".join(text.split()) for text in _ERROR.findall(done.output)]
    builders = [text for text in found if "builder for" in text or "builder failed" in text]
    if found and "interrupted by the user" not in found[-1]:
        return (builders or found)[-1].rstrip(".:;")
    if found or done.status in (137, 143) or done.status < 0:
        return _ENDED_FROM_OUTSIDE
    lines = [line for line in done.output.splitlines() if line.strip()]
    return lines[-1].strip() if lines else f"{done.argv[0]} ended with status {done.status}"
