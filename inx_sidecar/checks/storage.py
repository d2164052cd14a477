"""Can inx write where it has to: its directories on the host, and the home of who builds?"""

import os
import shlex
import tempfile
from collections.abc import Callable
from typing import Final

from inx_sidecar.base import paths
from inx_sidecar.base.errors import ConfigError, InxError, UnsupportedError
from inx_sidecar.base.process import run
from inx_sidecar.builds.build_user import BuildUser, build_user, groups_of
from inx_sidecar.checks.finding import Finding
from inx_sidecar.config.settings import load_settings
from inx_sidecar.kernel import forked

_PLACES: Final = (paths.STATE, paths.RUN, paths.LOG, paths.GCROOTS)
_SIDECAR: Final = "inx-sidecar.service"
# More than a file system that is full has left in blocks that are partly used.
_BYTES: Final = 1 << 16
# Nix and git write there; a command of root with HOME of the user may have made them.
_IN_HOME: Final = ("", "/.cache", "/.cache/nix")


async def directories() -> list[Finding]:
    """The sidecar has mounts of its own there, so it is looked at as it sees them, too."""
    shown = await run(["systemctl", "show", "--property=MainPID", "--value", _SIDECAR])
    pid = shown.output.strip()
    root = f"/proc/{pid}/root" if pid.isdigit() and pid != "0" else ""
    return [Finding(f"{place} takes files", await _directory(place, root)) for place in _PLACES]


async def _directory(place: str, root: str) -> str:
    return await _in_child(lambda: problem_of(place, root), f"writing to {place}")


def problem_of(place: str, root: str = "") -> str:
    """Why no file can be written in the directory `place`, here or by a process whose root
    directory is `root`; "" if one can."""
    units = f"inx-sidecar.socket {_SIDECAR}" if place == paths.RUN else _SIDECAR
    restart = f"run 'systemctl restart {units}'"
    try:
        present = os.stat(place)
        _write_in(place)
    except FileNotFoundError:
        return f"it is missing; {restart}"
    except OSError as error:
        return f"cannot write there ({error.strerror}): make space, or mount it writable"
    if not root:
        return ""
    try:
        seen = os.stat(f"{root}{place}")
        _write_in(f"{root}{place}")
    except OSError as error:
        return f"the sidecar cannot write there any more ({error.strerror}); {restart}"
    if not os.path.samestat(present, seen):
        return f"the sidecar writes to a directory that was there before; {restart}"
    return ""


async def build_home() -> list[Finding]:
    try:
        user = build_user(load_settings())
    except (ConfigError, UnsupportedError):
        return []  # `settings` and `nix_daemon` say why
    problem = await _in_child(lambda: home_problem(user), f"writing to {user.home}")
    return [Finding(f"{user.name} has a home, {user.home}", problem)]


def home_problem(user: BuildUser) -> str:
    """Why `user` cannot use its home; "" if it can. This process becomes that user."""
    os.setgroups(groups_of(user))
    os.setresgid(user.gid, user.gid, user.gid)
    os.setresuid(user.uid, user.uid, user.uid)
    home, owner = shlex.quote(user.home), f"{shlex.quote(user.name)}:{user.gid}"
    make = f"run 'install -d -m 700 -o {owner.replace(':', ' -g ')} {home}'"
    for directory in (f"{user.home}{part}" for part in _IN_HOME):
        try:
            uid = os.stat(directory).st_uid
            if uid != user.uid:
                return f"{directory} belongs to the user {uid}; run 'chown -R {owner} {home}'"
            _write_in(directory)
        except FileNotFoundError:
            if directory == user.home:
                return f"it is missing, so builds fail; {make}"
        except NotADirectoryError:
            return f"{directory} is no directory; remove it, and {make}"
        except OSError as error:
            ways = "let the user enter and write, make space, or mount it writable"
            return f"cannot write to {directory} ({error.strerror}): {ways}"
    return ""


def _write_in(directory: str) -> None:
    with tempfile.TemporaryFile(dir=directory) as file:
        file.write(bytes(_BYTES))


async def _in_child(problem: Callable[[], str], action: str) -> str:
    """What `problem` says; a file system that does not answer is one, too."""
    try:
        value, _ = await forked.run_in_child(lambda: (problem(), []), action)
    except InxError as error:
        return str(error)
    return str(value)
