"""The way out of failures of Nix that are likely and do not name it.

The texts are those of Nix 2.18 to 2.34, git 2.x, libgit2 1.x and OpenSSH. A source decides what is
printed, and may print what looks like one of these texts. So a command, and the name of a server,
have only words that inx knows by itself, or that are equal to them; a file lies below the directory
that the operator chose. No command is proposed that would do more than the user who evaluates may
do.
"""

import os
import pwd
import re
import shlex
from dataclasses import dataclass
from grp import getgrgid, getgrnam
from typing import Final
from urllib.parse import unquote

from inx_sidecar.base import paths
from inx_sidecar.builds.failure_reason import without_colours

# What a source has said itself, as an error. Nix says so before.
_THROWN: Final = re.compile(r"^ *… while calling the '(?:throw|abort)' builtin", re.MULTILINE)
_NO_SOCKET: Final = re.compile(
    rf"cannot connect to socket at '{re.escape(paths.DAEMON_SOCKET)}': "
    r"(Permission denied|Connection refused|No such file or directory)"
)
_CLOSED: Final = re.compile(
    r"cannot open connection to remote store .*(?:reset by peer|end-of-file|Broken pipe)"
    r"|Nix daemon disconnected unexpectedly"
)
_NOT_OWNED: Final = re.compile(
    r"^ *error: opening Git repository ['\"].*: "
    r"repository path '([^'\n]+)' is not owned by current user$"
    r"|^fatal: detected dubious ownership in repository at '([^'\n]+)'$",
    re.MULTILINE,
)
_NO_FILE: Final = re.compile(
    r"(?:path|getting status of|opening file) "
    r"'(?:/nix/store/[0-9a-z]{32}-source|«(?P<ref>[^»']*)»)/(?P<file>[^']+)'"
    r"(?: does not exist|: No such file or directory)"
    r"|source tree referenced by '(?P<tree>[^']*)' does not contain a '/?(?P<lacks>[^']+)' file"
    r"|Path '(?P<path>[^']+)' in the repository \"(?P<repository>[^\"]*)\" is not tracked by Git"
)
# A source may print any amount, and a search takes time that grows with the length of a line.
_LINE_MAX: Final = 400
_PLAIN_FILE: Final = re.compile(r"[\w.+@][\w.+@/-]{0,199}", re.ASCII)
# A path that no shell and no git takes for more than one, as git takes "/srv/*".
_PLAIN_PATH: Final = re.compile(r"/[\w.+@=,:/ -]{1,400}", re.ASCII)
_OTHER_SYSTEM: Final = re.compile(
    r"Cannot build '[^']*'; .*?Required (?:system: '|features: )"
    r"|a '[^']*' (?:with features \{[^}]*\} )?is required to build '"
)
_HTTP: Final = re.compile(r"unable to download '[^']*': HTTP error (?:401|403|404)")
# Nix says that it could not fetch a source, and git has said why before.
_FETCH: Final = re.compile(
    r"^ *… while fetching the input '"
    r"|^ *error: (?:resolving Git reference|(?:program |command )?'(?:[^' \n]*/)?git' failed"
    r"|(?:program |command )?'?(?:[^' \n]*/)?git .*failed with exit code|failed to fetch)"
    , re.MULTILINE | re.IGNORECASE,
)  # fmt: skip
_GIT_SAID: Final = re.compile(
    r"^(?:error: )?cannot run ssh: (?P<ssh>No such file or directory|Permission denied)$"
    r"|^(?:[\w.-]{1,100}@[\w.:-]{1,200}: )?(?P<key>Permission denied \(publickey)"
    r"|^(?P<host>Host key verification failed)"
    r"|^(?:fatal: )?(?P<password>could not read (?:Username|Password) for '(?P<server>[^']*)'.*)$"
    r"|^fatal: (?P<fatal>(?!Could not read from remote|unable to fork|Refusing to point HEAD).+)$",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Builder:
    """Who evaluates: the user `name`, with the home directory `home`; `alone` if only the groups
    are those of `name`. `repository` is the directory of git that is evaluated, or empty, and
    `seen` its path as the build sees it, if that is another. `server` is whom git asks for the
    source over http, or empty."""

    name: str
    home: str
    alone: bool = False
    repository: str = ""
    seen: str = ""
    server: str = ""

    def has(self, repository: str) -> bool:
        """Whether `repository` is the one that is evaluated, as git or Nix names it."""
        named = repository.removesuffix("/").removesuffix("/.git")
        return bool(self.repository) and named in (self.repository, self.seen or self.repository)


def repository_of(ref: str) -> str:
    """The directory of the reference `ref`, as Nix is given it, if git decides about its files."""
    scheme, _, rest = ref.partition("://")
    return unquote(rest.partition("?")[0]) if scheme == "git+file" else ""


def server_of(ref: str) -> str:
    """The server of the reference `ref`, as git names it when it asks for a password."""
    found = re.match(
        r"git\+(https?://)(?:[^/?#]*@)?([\w.-]+(?::[0-9]+)?)(?:[/?#]|$)", ref, re.ASCII
    )
    return found[1] + found[2] if found else ""


def advice(reason: str, output: str, builder: Builder) -> str:
    """A sentence in place of `reason`, with what to do; `reason` if nothing better is known.

    `output` is all that Nix and its programs have printed.
    """
    name = builder.name
    output = "\n".join(line[:_LINE_MAX] for line in without_colours(output).split("\n"))
    if _THROWN.search(output):
        return reason
    if found := _NO_SOCKET.fullmatch(reason):
        return _way_to_daemon(name, found[1]) or reason
    if _CLOSED.match(reason):
        return (
            f"the Nix daemon closes the connection of {name}: let allowed-users in "
            "/etc/nix/nix.conf name this user, or read 'journalctl -u nix-daemon'"
        )
    if _OTHER_SYSTEM.match(reason):
        return f"{reason}; ask for another system, or name a machine for it in builders of nix.conf"
    if found := _NO_FILE.match(reason):
        return _untracked(found, builder) or reason
    failed_fetch = _FETCH.search(output)
    if failed_fetch or _NOT_OWNED.search(f"error: {reason}"):
        if refusal := _not_owned(output, builder):
            return refusal
    if failed_fetch:
        return _fetch_failure(reason, output, builder)
    if _HTTP.match(reason) and not builder.alone:
        return f"{reason}; {_private(name)}"
    return reason


def _way_to_daemon(name: str, error: str) -> str:
    """Empty if the user may open the socket, whatever was printed."""
    if error != "Permission denied":
        return f"the Nix daemon does not run ({error}): run 'systemctl start nix-daemon.socket'"
    group = _group_of_socket()
    if group and _is_member(name, group):
        return ""
    remedy = (
        f"run 'usermod -aG {group} {name}'" if group else f"let {name} open {paths.DAEMON_SOCKET}"
    )
    return f"{name} may not use the Nix daemon: {remedy}"


def _is_member(name: str, group: str) -> bool:
    try:
        return getgrnam(group).gr_gid in os.getgrouplist(name, pwd.getpwnam(name).pw_gid)
    except KeyError:
        return False


def _group_of_socket() -> str:
    """The group whose members may open the socket of the host's Nix daemon; empty if there is
    none."""
    try:
        status = os.stat(os.path.dirname(paths.DAEMON_SOCKET))
        return getgrgid(status.st_gid).gr_name if status.st_gid and status.st_mode & 0o010 else ""
    except (OSError, KeyError):
        return ""


def _untracked(found: re.Match[str], builder: Builder) -> str:
    """Empty if the error is of another directory, or its file is no plain path within this one."""
    ref, other = found["ref"] or found["tree"], found["repository"]
    if ref is not None:
        other = repository_of(ref)
    if not builder.repository or (other is not None and not builder.has(other)):
        return ""
    file = found["file"] or found["lacks"] or found["path"]
    if not _PLAIN_FILE.fullmatch(file) or {"", ".", "..", ".git"} & set(file.lower().split("/")):
        return ""
    knows_not = f"git does not know {file} in {builder.repository}, so Nix does not see it"
    # Others may have set which programs git runs there.
    if builder.alone or not _PLAIN_PATH.fullmatch(builder.repository):
        return f"{knows_not}: if it is there, let its owner add it"
    command = f"git -C {shlex.quote(builder.repository)} add {file}"
    return f"{knows_not}: if it is there, run {_as(builder, command)}"


def _not_owned(output: str, builder: Builder) -> str:
    """Empty if git refuses nothing, or something else than what is evaluated: then its own words
    say so."""
    all_refused = (each[1] or each[2] for each in _NOT_OWNED.finditer(output))
    refused = next(filter(builder.has, all_refused), None)
    if refused is None:
        return ""
    path = builder.repository
    if builder.alone:
        return f"git refuses {path}, which belongs to another user"
    refuses = f"git refuses {path}, which does not belong to {builder.name}"
    if not _PLAIN_PATH.fullmatch(path):
        return f"{refuses}: let {builder.name} own it"
    command = f"git config --global --add safe.directory {shlex.quote(path)}"
    return f"{refuses}: let {builder.name} own it, or run {_as(builder, command)}"


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
    # A source may have inputs of any server.
    if not builder.server or _without_user(said["server"]) != builder.server:
        return f"{said['password']}; {_private(name)}"
    return f"{builder.server} asks {name} for a password: put it into {home}/.netrc"


def _without_user(url: str) -> str:
    scheme, mark, rest = url.partition("://")
    return scheme + mark + rest.rpartition("@")[2]


def _private(name: str) -> str:
    return (
        f"if it is private, {name} needs its password or token, see 'Private sources' in "
        "docs/secrets-and-deployment.md"
    )


def _as(builder: Builder, command: str) -> str:
    """As whom `command` is run: a user of one build alone has nothing of its own."""
    anybody = builder.alone or builder.name == "root"
    return f"'{command}'" if anybody else f"'{command}' as {builder.name}"
