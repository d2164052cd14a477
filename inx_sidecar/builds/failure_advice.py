"""The way out of failures of Nix that are likely and do not name it.

The texts are those of Nix 2.18 to 2.34, git 2.x, libgit2 1.x and OpenSSH. The module `builder` says
what the advice may repeat of them.
"""

import os
import pwd
import re
import shlex
from grp import getgrgid, getgrnam
from typing import Final

from inx_sidecar.base import paths
from inx_sidecar.builds.builder import PLAIN_PATH, Builder, repository_of
from inx_sidecar.builds.failure_reason import without_colours
from inx_sidecar.builds.fetch_advice import FETCH, archive_advice, fetch_advice
from inx_sidecar.builds.file_advice import file_advice
from inx_sidecar.builds.source_advice import source_advice

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
    r"repository path '([^'\n]+)' is not owned by current user(?: \(libgit2 error code = -?\d+\))?$"
    r"|^fatal: detected dubious ownership in repository at '([^'\n]+)'$",
    re.MULTILINE,
)
_NO_FILE: Final = re.compile(
    r"(?:path|getting status of|opening file) "
    r"'(?:/nix/store/[0-9a-z]{32}-source|«(?P<ref>[^»']*)»)/(?P<file>[^']+)'"
    r"(?: does not exist|: No such file or directory)"
    r"|(?:reading directory /|cannot read directory \"/)nix/store/[0-9a-z]{32}-source/"
    r"(?P<directory>[^\"\n]+?)\"?: No such file or directory"
    r"|source tree referenced by '(?P<tree>[^']*)' does not contain a '/?(?P<lacks>[^']+)' file"
    r"|Path '(?P<path>[^']+)' in the repository \"(?P<repository>[^\"]*)\" is not tracked by Git"
)
# A source may print any amount, and a search takes time that grows with the length of a line.
_LINE_MAX: Final = 400
_PLAIN_FILE: Final = re.compile(r"[\w.+@][\w.+@/-]{0,199}", re.ASCII)
_OTHER_SYSTEM: Final = re.compile(
    r"Cannot build '[^']*'; .*?Required (?:system: '|features: )"
    r"|a '[^']*' (?:with features \{[^}]*\} )?is required to build '"
)


def advice(reason: str, output: str, builder: Builder) -> str:
    """A sentence in place of `reason`, with what to do; empty if nothing better is known.

    `output` is all that Nix and its programs have printed. A sentence that begins with `reason`
    adds to it.
    """
    output = "\n".join(line[:_LINE_MAX] for line in without_colours(output).split("\n"))
    if _THROWN.search(output):
        # nixpkgs throws, too; what is said then names nothing but options.
        return source_advice(reason, "", Builder(builder.name, builder.home))
    if found := _NO_SOCKET.fullmatch(reason):
        return _way_to_daemon(builder.name, found[1])
    if _CLOSED.match(reason):
        return (
            f"the Nix daemon closes the connection of {builder.name}: let allowed-users in "
            "/etc/nix/nix.conf name this user, or read 'journalctl -u nix-daemon'"
        )
    if _OTHER_SYSTEM.match(reason):
        return f"{reason}; ask for another system, or name a machine for it in builders of nix.conf"
    if found := _NO_FILE.match(reason):
        return _untracked(found, builder)
    if FETCH.search(output) or _NOT_OWNED.search(f"error: {reason}"):
        if refusal := _not_owned(output, builder):
            return refusal
    return (
        file_advice(reason, output, builder)
        or archive_advice(reason, builder)
        or fetch_advice(reason, output, builder)
        or source_advice(reason, output, builder)
    )


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
    file = found["file"] or found["directory"] or found["lacks"] or found["path"]
    if not _PLAIN_FILE.fullmatch(file) or {"", ".", "..", ".git"} & set(file.lower().split("/")):
        return ""
    knows_not = f"git does not know {file} in {builder.repository}, so Nix does not see it"
    # Others may have set which programs git runs there.
    if builder.alone or not PLAIN_PATH.fullmatch(builder.repository):
        who = f"{builder.owner}, who owns it," if builder.owner else "its owner"
        return f"{knows_not}: if it is there, let {who} add it to git"
    command = f"git -C {shlex.quote(builder.repository)} add {file}"
    return f"{knows_not}: if it is there, run {builder.running(command)}"


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
    if not PLAIN_PATH.fullmatch(path):
        return f"{refuses}: let {builder.name} own it"
    command = f"git config --global --add safe.directory {shlex.quote(path)}"
    return f"{refuses}: let {builder.name} own it, or run {builder.running(command)}"
