"""Git for builds: no setting of a repository that the user does not own runs a program.

Nix asks git and its own libgit2. Git takes GIT_CONFIG_COUNT, GIT_CONFIG_KEY_N and
GIT_CONFIG_VALUE_N for settings of its command line, which count before those of a repository
(git-config(1), ENVIRONMENT). libgit2 runs no programs, and does not read the environment: only the
file git/config below XDG_CONFIG_HOME tells it that a directory is safe.
"""

from collections.abc import Iterable, Mapping
from typing import Final

# Settings that name a program, or lead git to one. `filter.NAME.*` and `url.URL.insteadOf` have
# names that are not known here; a build that may meet them has a user and a HOME of its own.
_SETTINGS: Final = {
    "core.alternateRefsCommand": "false",
    "core.askPass": "false",
    "core.attributesFile": "/dev/null",
    "core.editor": "false",
    "core.fsmonitor": "false",
    "core.gitProxy": "",
    "core.hooksPath": "/dev/null",
    "core.pager": "cat",
    "core.sshCommand": "ssh",
    "credential.helper": "",
    "diff.external": "",
    "gpg.program": "false",
    "gpg.ssh.program": "false",
    "gpg.x509.program": "false",
    "protocol.ext.allow": "never",
    "sequence.editor": "false",
    "submodule.recurse": "false",
}
_EVERYWHERE: Final = {"GIT_TERMINAL_PROMPT": "0", "GIT_OPTIONAL_LOCKS": "0"}
# The build user may have a helper for its credentials, and a way of its own to call ssh.
_OWN: Final = {"core.askPass", "core.gitProxy", "core.sshCommand", "credential.helper"}


def git_environment(*, owner: bool, alone: bool) -> Mapping[str, str]:
    """Variables for git.

    The owner of a source may set what they like: `owner`. A user of one build alone has no settings
    but these: `alone`. The build user keeps its own settings for fetches.
    """
    if owner:
        return {"GIT_TERMINAL_PROMPT": "0"}
    chosen = [(k, v) for k, v in _SETTINGS.items() if alone or k not in _OWN]
    environment = {**_EVERYWHERE, "GIT_CONFIG_COUNT": str(len(chosen))}
    for number, (key, value) in enumerate(chosen):
        environment |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    if alone:
        environment |= {"GIT_CONFIG_NOSYSTEM": "1", "GIT_ATTR_NOSYSTEM": "1"}
    return environment


def safe_directories(directories: Iterable[str]) -> str:
    """The text of a configuration by which git uses `directories`, whoever owns them."""
    lines = "".join(f"\tdirectory = {_quoted(path)}\n" for path in directories)
    return f"[safe]\n{lines}"


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
