"""Build or fetch the system of an instance, in a transient systemd service for each build."""

import asyncio
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from inx_sidecar.base import paths
from inx_sidecar.base.errors import BuildError
from inx_sidecar.base.process import find_program, run
from inx_sidecar.builds.build_slots import BuildSlots
from inx_sidecar.builds.build_user import BuildUser, build_user_of
from inx_sidecar.builds.failure_reason import failure_reason
from inx_sidecar.config.settings import Settings
from inx_sidecar.config.spec import Flake, NixFile, Source, System
from inx_sidecar.nix.store_paths import STORE_PATH, check_toplevel, valid_paths

# Variables that builds need and that the administrator may set for the sidecar's unit.
_PASSED_ON: Final = (
    "NIX_PATH", "NIX_SSL_CERT_FILE", "SSL_CERT_FILE", "http_proxy", "https_proxy", "no_proxy",
)  # fmt: skip
_SANDBOX: Final = (
    "NoNewPrivileges=yes", "PrivateDevices=yes", "ProtectSystem=yes", "ProtectKernelTunables=yes",
    "ProtectKernelModules=yes", "ProtectControlGroups=yes", "RestrictSUIDSGID=yes",
    "LockPersonality=yes", "UMask=0022",
)  # fmt: skip
_LOG_MAX_BYTES: Final = 16 << 20


@dataclass(frozen=True)
class BuildRequest:
    """What to build for instance `name`. If `missing`, a store path, is given, a
    fetch of it is tried before `source` is built."""

    uuid: str
    name: str
    source: Source
    missing: str | None
    settings: Settings


async def build_in_slot(
    slots: BuildSlots, request: BuildRequest, say: Callable[[str], None]
) -> str:
    """As `build`, once there is a free slot. When this task is cancelled, the build is stopped."""
    limit = request.settings.max_builds
    if slots.taken >= limit:
        say(f"inx: waiting for other builds ({limit} at a time)")
    async with slots.take(limit):
        try:
            request.settings.check_allowed(request.source)
            return await build(request, say)
        except asyncio.CancelledError:
            await stop(request.uuid)
            raise


async def build(request: BuildRequest, say: Callable[[str], None]) -> str:
    """The store path of the system; `say` receives each line that Nix prints.

    The link in the build directory roots the system until `remove_build_directory` is called.
    BuildError with one sentence of why if the build fails.
    """
    uuid, source, missing, settings = (
        request.uuid, request.source, request.missing, request.settings,
    )  # fmt: skip
    failed = f"cannot build the system of {request.name!r} from {source}"
    refusal, buildable = "", source
    try:
        user = build_user_of(source, settings)
    except BuildError as error:
        if missing is None:
            raise BuildError(f"{failed}: {error}") from None
        # The system was built before: perhaps it can be fetched although its source is gone.
        refusal, buildable = str(error), System(missing)
        user = build_user_of(buildable, settings)
    await stop(uuid)
    await remove_build_directory(uuid)
    link = f"{_make_directory(uuid, user)}/system"
    say(f"inx: building the system of {request.name!r} from {source} as {user.name}")
    with open(paths.build_log(uuid), "w") as log:

        def record(line: str) -> None:
            if log.tell() < _LOG_MAX_BYTES:
                print(line, file=log, flush=True)
            say(line)

        for number, command in enumerate(commands(buildable, missing, link)):
            if number:
                record(f"inx: {missing} cannot be fetched; building {source}")
            done = await run(_as_service(uuid, user, command, settings), on_line=record)
            if done.status == 0:
                return _result(link, request)
            reason = await _exceeded_limit(uuid, settings) or failure_reason(done)
    raise BuildError(f"{failed}: {refusal or reason}")


def commands(source: Source, missing: str | None, link: str) -> list[list[str]]:
    """The commands to try, in order, to make `link` lead to the system."""
    attempts = []
    if missing is not None:
        attempts.append(["nix-store", "--realise", "--add-root", link, "--", missing])
    match source:
        case Flake():
            attempts.append(
                ["nix", "--extra-experimental-features", "nix-command flakes",
                 "build", "--log-format", "raw-with-logs", "--no-accept-flake-config",
                 "--out-link", link, "--", source.installable()]
            )  # fmt: skip
        case NixFile():
            attempts.append(
                ["nix-build", "--out-link", link, "--attr", source.attr, "--", source.path]
            )
    return attempts


async def remove_build_directory(uuid: str) -> None:
    """Remove the build directory, and with it the root of the system that was built.

    A program of its own does this: a user may have put any number of files there.
    """
    await run(["rm", "-rf", "--one-file-system", "--", paths.build_dir(uuid)])


async def stop(uuid: str) -> None:
    """Stop a build of this instance that still runs, with all its processes."""
    await run(["systemctl", "stop", "--quiet", paths.build_unit(uuid)])
    await run(["systemctl", "reset-failed", "--quiet", paths.build_unit(uuid)])


async def stop_all() -> None:
    """Stop the builds of a sidecar that died: nobody waits for them any more."""
    await run(["systemctl", "stop", "--quiet", paths.build_unit("*")])


def _make_directory(uuid: str, user: BuildUser) -> str:
    """A new directory for each build: what one user leaves in it is not given to another."""
    os.makedirs(paths.build_dir(uuid), mode=0o755)
    directory = tempfile.mkdtemp(dir=paths.build_dir(uuid))
    os.chmod(directory, 0o755)
    os.chown(directory, user.uid, user.gid)
    return directory


def _result(link: str, request: BuildRequest) -> str:
    """The store path that `link` names. The build user owns the link, so only its text is used,
    and only if Nix knows that path as valid."""
    try:
        path = os.readlink(link)
    except OSError:
        path = ""
    if not STORE_PATH.fullmatch(path) or path not in valid_paths({path}):
        raise BuildError(
            f"the build of {request.name!r} from {request.source} gave {path!r}, no store path"
        )
    check_toplevel(path, f"the result of {request.source}")
    return path


async def _exceeded_limit(uuid: str, settings: Settings) -> str | None:
    """The limit that made systemd end the build (Result= in systemd.exec(5), environment
    variables), if any.

    The failed unit is then reset, so that its name can be used again.
    """
    unit = paths.build_unit(uuid)
    shown = await run(["systemctl", "show", "--property=Result", "--value", unit])
    await run(["systemctl", "reset-failed", "--quiet", unit])
    return {
        "timeout": f"it took over {settings.build_timeout} s (build_timeout)",
        "oom-kill": f"it took over {settings.build_memory_max} of memory (build_memory_max)",
        "signal": "it was killed",
    }.get(shown.output.strip())


def _as_service(uuid: str, user: BuildUser, command: list[str], settings: Settings) -> list[str]:
    properties = [
        *_SANDBOX,
        f"MemoryMax={settings.build_memory_max}",
        f"RuntimeMaxSec={settings.build_timeout}",
        # After SIGTERM a Nix client waits for its build to end; after SIGKILL Nix ends the build.
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
        "--", find_program(command[0]), *(argument.replace("$", "$$") for argument in command[1:]),
    ]  # fmt: skip
