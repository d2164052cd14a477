"""The transient systemd service of a build, its directory and its environment."""

import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

from inx_sidecar.base import paths
from inx_sidecar.base.process import find_program
from inx_sidecar.builds.build_user import Evaluator, groups_of
from inx_sidecar.builds.git_settings import git_environment, safe_directories
from inx_sidecar.config.credentials import has_credentials
from inx_sidecar.config.settings import Settings
from inx_sidecar.config.sources import Flake, Modules, Source

# Variables that builds need and that the administrator may set for the sidecar's unit.
_PASSED_ON: Final = (
    "NIX_PATH", "NIX_SSL_CERT_FILE", "SSL_CERT_FILE", "http_proxy", "https_proxy", "no_proxy",
)  # fmt: skip
SANDBOX: Final = (
    "NoNewPrivileges=yes", "PrivateDevices=yes", "ProtectSystem=yes", "ProtectKernelTunables=yes",
    "ProtectKernelModules=yes", "ProtectControlGroups=yes", "RestrictSUIDSGID=yes",
    "LockPersonality=yes", "UMask=0022",
)  # fmt: skip
# DynamicUser= implies that nothing but ReadWritePaths= can be written, and a /tmp of its own.
_ALONE: Final = (
    "DynamicUser=yes", "ProtectSystem=strict", "ProtectProc=invisible", "RestrictNamespaces=yes",
    "CapabilityBoundingSet=", "SystemCallFilter=~@debug @mount", "SystemCallErrorNumber=EPERM",
)  # fmt: skip
# Where a build with a /tmp of its own sees the host's, below its directory.
_HOST_TEMPORARY: Final = {paths.TMP: "tmp", paths.VAR_TMP: "var-tmp"}


class BuildService:
    """One build of the instance `uuid`. Its directory is new: what one user leaves in it is not
    given to another.

    A build that is evaluated with a doubt has a user of its own (DynamicUser= in systemd.exec(5)):
    no process, no cache and no directory is shared with another build.
    """

    def __init__(self, uuid: str, evaluator: Evaluator) -> None:
        self._uuid = uuid
        self._evaluator = evaluator
        self._alone = bool(evaluator.doubt)
        # One that cannot be removed is on a file system that takes no new directory either.
        os.makedirs(paths.build_dir(uuid), mode=0o755, exist_ok=True)
        self._path = tempfile.mkdtemp(dir=paths.build_dir(uuid))
        os.chmod(self._path, 0o755)
        self._output = f"{self._path}/output"
        self._variables = f"{self._path}/environment"
        os.mkdir(self._output)
        if self._alone:
            self._prepare_alone()
        else:
            os.chmod(self._output, 0o755)
            os.chown(self._output, evaluator.user.uid, evaluator.user.gid)

    @property
    def link(self) -> str:
        """Where Nix makes the link to the result."""
        return f"{self._output}/system"

    @property
    def flake(self) -> str:
        """Where inx writes the flake of an instance that has modules."""
        return f"{self._path}/flake"

    def source(self) -> Source:
        """The source by the path that the build sees."""
        source = self._evaluator.source
        if isinstance(source, Flake):
            return replace(source, ref=self._seen(source.ref))
        if isinstance(source, Modules):
            base = source.base and replace(source.base, ref=self._seen(source.base.ref))
            files = tuple((key, self._seen(path)) for key, path in source.files)
            return replace(source, base=base, nixpkgs=self._seen(source.nixpkgs), files=files)
        return replace(source, path=self._seen(source.path))

    @contextmanager
    def environment(self) -> Iterator[None]:
        """A file with the variables of the build, which its command lines need. Root alone may read
        it: every user sees command lines, and what 'systemctl show' says of a service."""
        with open(self._variables, "x", opener=_open_private) as file:
            file.write(environment_text(self._environment()))
        try:
            yield
        finally:
            os.unlink(self._variables)

    def command_line(self, command: list[str], settings: Settings) -> list[str]:
        """`command` as a service that ends with it."""
        properties = [
            *SANDBOX,
            *self._user_properties(),
            f"MemoryMax={settings.build_memory_max}",
            f"RuntimeMaxSec={settings.build_timeout}",
            # After SIGTERM a Nix client waits for its build to end; after SIGKILL Nix ends the
            # build.
            "KillSignal=SIGKILL",
            f"EnvironmentFile={self._variables}",
        ]
        return [
            "systemd-run", "--quiet", "--wait", "--pipe", "--slice=inx-build.slice",
            f"--unit={paths.build_unit(self._uuid)}",
            *(f"--property={text}" for text in properties),
            # systemd takes "$" for a variable and "$$" for "$" (systemd.service(5), command lines).
            "--", find_program(command[0]),
            *(argument.replace("$", "$$") for argument in command[1:]),
        ]  # fmt: skip

    def _prepare_alone(self) -> None:
        # The user does not exist yet. Other users with this group see the directory read-only.
        os.chown(self._output, 0, self._evaluator.user.gid)
        os.chmod(self._output, 0o770)
        for name in _HOST_TEMPORARY.values():
            os.mkdir(f"{self._path}/{name}")
        os.makedirs(f"{self._path}/config/git")
        with open(f"{self._path}/config/git/config", "w", errors="surrogateescape") as file:
            file.write(safe_directories(map(self._seen, self._evaluator.repositories)))

    def _seen(self, text: str) -> str:
        """`text`, a path or a reference, by the path that the build sees."""
        if not self._alone:
            return text
        for place, name in _HOST_TEMPORARY.items():
            for scheme in ("", "path:", "git+file://"):
                if f"{text}/".startswith(f"{scheme}{place}/"):
                    return f"{scheme}{self._path}/{name}{text.removeprefix(scheme + place)}"
        return text

    def _user_properties(self) -> list[str]:
        user = self._evaluator.user
        if not self._alone:
            return [f"User={user.uid}", f"Group={user.gid}"]
        return [
            *_ALONE,
            f"User=inx-{self._uuid.replace('-', '')[:24]}",
            f"Group={user.gid}",
            f"SupplementaryGroups={' '.join(map(str, groups_of(user)))}",
            f"ReadWritePaths={self._output}",
            *(f"BindReadOnlyPaths={place}:{self._path}/{name}"
              for place, name in _HOST_TEMPORARY.items()),
        ]  # fmt: skip

    def _environment(self) -> dict[str, str]:
        user = self._evaluator.user
        environment = {
            # Nix makes this directory: it must belong to the user.
            "HOME": f"{self._output}/home" if self._alone else user.home,
            "PATH": os.environ.get("PATH", ""), "LANG": "C.UTF-8",
            "NIX_REMOTE": "daemon", "NO_COLOR": "1", "TERM": "dumb",
        }  # fmt: skip
        if self._alone:
            environment["XDG_CONFIG_HOME"] = f"{self._path}/config"
        environment |= git_environment(owner=self._evaluator.is_owner, alone=self._alone)
        return environment | passed_on(os.environ, alone=self._alone)


def passed_on(environment: Mapping[str, str], *, alone: bool) -> dict[str, str]:
    """The variables that the administrator gives to builds: without those that have a password if
    the source is not that of its user, `alone`."""
    return {
        name: environment[name]
        for name in _PASSED_ON
        if name in environment and not (alone and _is_secret(name, environment[name]))
    }


def _is_secret(name: str, value: str) -> bool:
    # A proxy may be without a scheme: USER:PASSWORD@HOST.
    return has_credentials(value) or (name.endswith("_proxy") and "@" in value)


def environment_text(environment: Mapping[str, str]) -> str:
    """The text of a file for EnvironmentFile= (systemd.exec(5)): in double quotes, a backslash
    stands before these characters, and a newline is one."""
    lines = []
    for name, value in environment.items():
        escaped = re.sub(r'[\\"`$]', r"\\\g<0>", value)
        lines.append(f'{name}="{escaped}"\n')
    return "".join(lines)


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
