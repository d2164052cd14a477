"""The way out if a source, or an input of it, cannot be fetched."""

import re
from typing import Final

from inx_sidecar.builds.builder import Builder
from inx_sidecar.config.credentials import redact
from inx_sidecar.config.sources import Flake

# Nix says that it could not fetch a source, and git has said why before.
FETCH: Final = re.compile(
    r"^ *… while fetching the input '"
    r"|^ *error: (?:resolving Git reference|(?:program |command )?'(?:[^' \n]*/)?git' failed"
    r"|(?:program |command )?'?(?:[^' \n]*/)?git .*failed with exit code|failed to fetch)"
    , re.MULTILINE | re.IGNORECASE,
)  # fmt: skip
_GIT_SAID: Final = re.compile(
    r"^error: executing ['\"](?P<no_git>git)['\"]: No such file or directory$"
    r"|^(?:error: )?cannot run ssh: (?P<ssh>No such file or directory|Permission denied)$"
    r"|^(?:[\w.-]{1,100}@[\w.:-]{1,200}: )?(?P<key>Permission denied \(publickey)"
    r"|^(?P<offline>ssh: (?:connect to host|Could not resolve hostname) .{1,300}?)\r?$"
    r"|^(?P<host>Host key verification failed)"
    r"|^ERROR: (?P<missing>Repository not found)"
    r"|^(?:fatal: )?(?P<password>could not read (?:Username|Password) for '(?P<server>[^']*)'.*)$"
    r"|^fatal: (?P<fatal>(?!Could not read from remote|unable to fork|Refusing to point HEAD).+)$",
    re.MULTILINE,
)
_HTTP: Final = re.compile(r"unable to download '[^']*': HTTP error (?P<code>[0-9]{3})")
_OFFLINE: Final = re.compile(
    r"(?:unable to download '|unable to look up |unable to access ').*"
    r"(?:could not resolve host|failed to connect to |could not connect to server|network is unre"
    r"|name resolution|timed? ?out|connection refused)",
    re.IGNORECASE,
)
_ONLINE_AGAIN: Final = (
    "look at the network of this host, then start the instance again or set user.inx.update"
)
_REGISTRY: Final = re.compile(
    r"cannot find flake '(?:flake:)?[^']*' in the flake registries"
    r"|unable to download 'https://(?:channels\.nixos\.org|[^/']*githubusercontent\.com)/"
    r"[^']*flake-registry\.json'"
)
_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
_INPUT: Final = re.compile(r"^ *… while updating the flake input '([^']*)'$", re.MULTILINE)
# Nix takes "master" if a server does not say which branch is its main one.
_REVSPEC: Final = re.compile(
    r"resolving Git reference '(?!master')[^']*': revspec '[^']*' not found"
)
_SHORT_HASH: Final = re.compile(
    r"hash '([0-9a-f]{4,39})' has wrong length for hash algorithm 'sha1'"
)
_NAME_A_BRANCH: Final = "name a branch that exists by ?ref= in the reference"
_NO_REPOSITORY: Final = re.compile(r"'([^']{1,400})' does not appear to be a git repository$")
_NOT_FOUND: Final = re.compile(r"repository '[^']*' not found")
_FORGES: Final = {"github": "github.com", "gitlab": "gitlab.com", "sourcehut": "git.sr.ht"}


def fetch_advice(reason: str, output: str, builder: Builder) -> str:
    """A sentence in place of `reason`; empty if nothing is known."""
    if _REGISTRY.match(reason) and (found := _registry_advice(reason, output, builder)):
        return found
    if _REVSPEC.match(reason):
        return f"{reason}; {_NAME_A_BRANCH}"
    if short := _SHORT_HASH.match(reason):
        return f"?rev= takes a whole hash: 'git rev-parse {short[1]}' prints it"
    if http := _HTTP.match(reason):
        return _http_advice(reason, http["code"], builder)
    if FETCH.search(output) and (said := _GIT_SAID.search(output)):
        return _git_advice(said, builder)
    if _OFFLINE.match(reason):
        return f"{reason}; {_ONLINE_AGAIN}"
    return ""


def _registry_advice(reason: str, output: str, builder: Builder) -> str:
    """Nix asks the registry for a name that stands where a reference is expected."""
    if named := _INPUT.findall(output):
        if not _NAME.fullmatch(named[-1]):
            return ""
        return (
            f"no URL is set for the input {named[-1]}, and the flake registry has none ({reason}): "
            f"set inputs.{named[-1]}.url in flake.nix"
        )
    ref = builder.source.ref if isinstance(builder.source, Flake) else ""
    ref = ref.removeprefix("flake:")
    if not ref or ":" in ref or ref.startswith("/"):
        return ""
    return (
        f"{ref} is a name for the flake registry, which has no answer ({reason}): write the "
        "absolute path of a directory or a URL, as in /etc/nixos#NAME"
    )


def _http_advice(reason: str, code: str, builder: Builder) -> str:
    if code.startswith("5") or code == "429":
        return f"{reason}; the server is busy: set user.inx.update later to try again"
    if code not in ("401", "403", "404"):
        return ""
    wrong = "correct the reference, or " if code == "404" else ""
    return f"{reason}; {wrong}{private(builder)}"


def _git_advice(said: re.Match[str], builder: Builder) -> str:
    """The first thing that git or ssh said: what follows is only its consequence."""
    name, home, line = builder.name, builder.home, said[0].removeprefix("fatal: ")
    if said["no_git"]:
        return "git is not installed, or not in the PATH of inx-sidecar.service: install git"
    if said["ssh"]:
        return f"git cannot run ssh ({said['ssh']}): install ssh, on Debian openssh-client"
    if said["offline"]:
        return f"{said['offline']}; {_ONLINE_AGAIN}"
    if said["missing"] or _NOT_FOUND.match(line):
        return f"{line}; correct the reference, or {private(builder)}"
    if said["fatal"] and _OFFLINE.match(line):
        return f"{line}; {_ONLINE_AGAIN}"
    if said["fatal"] and line.startswith("couldn't find remote ref "):
        return f"{line}; {_NAME_A_BRANCH}"
    if said["fatal"] and (found := _NO_REPOSITORY.match(line)):
        alone = builder.has(found[1]) and f", or write {found[1]} without git+file:"
        return f"{line}; correct the reference{alone or ''}"
    if said["fatal"] or builder.alone:
        return line
    if said["key"]:
        return f"the server refuses {name} ({said['key']})): put a key into {home}/.ssh"
    if said["host"]:
        return f"{name} does not know the server: put its key into {home}/.ssh/known_hosts"
    # A source may have inputs of any server.
    if not builder.server or _without_user(said["server"]) != builder.server:
        return f"{said['password']}; {private(builder)}"
    return f"{builder.server} asks {name} for a password: put it into {home}/.netrc"


def _without_user(url: str) -> str:
    scheme, mark, rest = url.partition("://")
    return scheme + mark + rest.rpartition("@")[2]


def private(builder: Builder) -> str:
    """Where the credentials of a private source go."""
    see = "see 'Private sources' in docs/secrets-and-deployment.md"
    if builder.alone:
        return f"if it is private, let one user alone own the source, {see}"
    ref = builder.source.ref if isinstance(builder.source, Flake) else ""
    forge = _FORGES.get(ref.partition(":")[0])
    if forge and "?" not in ref:
        return (
            f"if it is private, put 'access-tokens = {forge}=TOKEN' into "
            f"{builder.home}/.config/nix/nix.conf"
        )
    return f"if it is private, {builder.name} needs its password or token, {see}"


def archive_advice(reason: str, builder: Builder) -> str:
    """Nix takes a URL for an archive unless its scheme says otherwise."""
    ref = builder.source.ref if isinstance(builder.source, Flake) else ""
    if reason != "Failed to open archive (Unrecognized archive format)" or not re.match(
        "https?:", ref
    ):
        return ""
    return f"{redact(ref)} is no archive: for a repository of git write git+{redact(ref)}"
