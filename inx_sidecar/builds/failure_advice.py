"""The way out of failures of Nix that are likely and do not name it.

The texts are those of Nix 2.18 to 2.34, git 2.x, libgit2 1.x and OpenSSH. A source decides what is
printed, so only what is matched here is repeated, and no command is proposed that would do more
than the user who evaluates may do.
"""

import os
import re
import shlex
from dataclasses import dataclass
from grp import getgrgid
from typing import Final
from urllib.parse import unquote

from inx_sidecar.base import paths
from inx_sidecar.builds.failure_reason import without_colours

_NO_SOCKET: Final = re.compile(r"cannot connect to socket at '/nix/var/nix/[^']*': (.+)")
_CLOSED: Final = re.compile(
    r"cannot open connection to remote store .*(?:reset by peer|end-of-file|Broken pipe)"
    r"|Nix daemon disconnected unexpectedly"
)
_NOT_OWNED: Final = re.compile(
    r"repository path '([^']+)' is not owned by current user"
    r"|detected dubious ownership in repository at '([^']+)'"
)
_NO_FILE: Final = re.compile(
    r"(?:path|getting status of) '(?:/nix/store/[0-9a-z]{32}-[^/']+|«[^»']*»)/([^']+)'"
    r"(?: does not exist|: No such file or directory)"
    r"|source tree referenced by '.*' does not contain a '/?([^']+)' file"
    r"|Path '([^']+)' in the repository .* is not tracked by Git"
)
# A source may print any amount, and a search takes time that grows with the length of a line.
_LINE_MAX: Final = 400
_PLAIN_FILE: Final = re.compile(r"[\w.+@][\w.+@/-]{0,199}", re.ASCII)
_OTHER_SYSTEM: Final = re.compile(r"Required system: '|is required to build '|Required features: ")
_HTTP: Final = re.compile(r"unable to download '[^']*': HTTP error (?:401|403|404)")
# Nix says that it could not fetch a source, and git has said why before.
_FETCH: Final = re.compile(
    r"while fetching the input|resolving Git reference|program 'git' failed|'git' failed"
    r"|git .*failed with exit code|failed to fetch"
    , re.IGNORECASE,
)  # fmt: skip
_GIT_SAID: Final = re.compile(
    r"^(?:error: )?cannot run ssh: (?P<ssh>.+)$"
    r"|^(?:.*: )?(?P<key>Permission denied \(publickey)"
    r"|^(?P<host>Host key verification failed)"
    r"|^(?:fatal: )?could not read (?:Username|Password) for '(?P<password>[^']*)'"
    r"|^fatal: (?P<fatal>(?!Could not read from remote|unable to fork|Refusing to point HEAD).+)$",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Builder:
    """Who evaluates: the user `name`, with the home directory `home`; `alone` if only the groups
    are those of `name`. `repository` is the directory of git that is evaluated, or empty."""

    name: str
    home: str
    alone: bool = False
    repository: str = ""


def repository_of(ref: str) -> str:
    """The directory of the reference `ref`, as Nix is given it, if git decides about its files."""
    scheme, _, rest = ref.partition("://")
    return unquote(rest.partition("?")[0]) if scheme == "git+file" else ""


def advice(reason: str, output: str, builder: Builder) -> str:
    """A sentence in place of `reason`, with what to do; `reason` if nothing better is known.

    `output` is all that Nix and its programs have printed.
    """
    name = builder.name
    output = "\n".join(line[:_LINE_MAX] for line in without_colours(output).split("\n"))
    if found := _NO_SOCKET.search(reason):
        return _way_to_daemon(name, found[1])
    if _CLOSED.search(reason):
        return (
            f"the Nix daemon closes the connection of {name}: let allowed-users in "
            "/etc/nix/nix.conf name this user, or read 'journalctl -u nix-daemon'"
        )
    if _OTHER_SYSTEM.search(reason):
        return f"{reason}; ask for another system, or name a machine for it in builders of nix.conf"
    if found := _NO_FILE.search(reason):
        return _untracked(found[1] or found[2] or found[3], builder) or reason
    refused = _NOT_OWNED.search(output)
    if refused and (_FETCH.search(output) or _NOT_OWNED.search(reason)):
        path = refused[1] or refused[2]
        if builder.alone:
            return f"git refuses {path}, which belongs to another user"
        return (
            f"git refuses {path}, which does not belong to {name}: let {name} own it, or run "
            f"{_as(builder, f'git config --global --add safe.directory {shlex.quote(path)}')}"
        )
    if _FETCH.search(output):
        return _fetch_failure(reason, output, builder)
    if _HTTP.search(reason) and not builder.alone:
        return f"{reason}; {_private(name)}"
    return reason


def _way_to_daemon(name: str, error: str) -> str:
    if not error.startswith("Permission denied"):
        return f"the Nix daemon does not run ({error}): run 'systemctl start nix-daemon.socket'"
    group = _group_of_socket()
    remedy = (
        f"run 'usermod -aG {group} {name}'" if group else f"let {name} open {paths.DAEMON_SOCKET}"
    )
    return f"{name} may not use the Nix daemon: {remedy}"


def _group_of_socket() -> str:
    """The group whose members may open the socket of the host's Nix daemon; empty if there is
    none."""
    try:
        status = os.stat(os.path.dirname(paths.DAEMON_SOCKET))
        return getgrgid(status.st_gid).gr_name if status.st_gid and status.st_mode & 0o010 else ""
    except (OSError, KeyError):
        return ""


def _untracked(file: str, builder: Builder) -> str:
    if not builder.repository or not _PLAIN_FILE.fullmatch(file):
        return ""
    place = shlex.quote(builder.repository)
    return (
        f"git does not know {file} in {builder.repository}, so Nix does not see it: if it is "
        f"there, run {_as(builder, f'git -C {place} add {file}')}"
    )


def _fetch_failure(reason: str, output: str, builder: Builder) -> str:
    """The first thing that git or ssh said: what follows is only its consequence."""
    said = _GIT_SAID.search(output)
    if said is None:
        return reason
    name, home, line = builder.name, builder.home, said[0].removeprefix("fatal: ")
    if said["fatal"] or (builder.alone and not said["ssh"]):
        return line
    if said["ssh"]:
        return f"git cannot run ssh ({said['ssh']}): install ssh, on Debian openssh-client"
    if said["key"]:
        return f"the server refuses {name} ({said['key']})): put a key into {home}/.ssh"
    if said["host"]:
        return f"{name} does not know the server: put its key into {home}/.ssh/known_hosts"
    return f"{said['password']} asks {name} for a password: put it into {home}/.netrc"


def _private(name: str) -> str:
    return (
        f"if it is private, {name} needs its password or token, see 'Private sources' in "
        "docs/secrets-and-deployment.md"
    )


def _as(builder: Builder, command: str) -> str:
    """As whom `command` is run: a user of one build alone has nothing of its own."""
    anybody = builder.alone or builder.name == "root"
    return f"'{command}'" if anybody else f"'{command}' as {builder.name}"
