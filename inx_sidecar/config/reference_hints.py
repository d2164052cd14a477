"""What to write in place of a reference that people copy from elsewhere: a shell, a browser, a
clone.

Each of these texts has a meaning for Nix as well, but never the one of a flake that exists: it
would fail late, or be looked up in the flake registry, with an error that does not say so.
"""

import re
from typing import Final

from inx_sidecar.config.credentials import has_credentials

ABSOLUTE: Final = "an absolute path, as 'realpath PATH' prints it"
# As a shell or Nix would take it; the sidecar has no working directory, and no home of the user.
_RELATIVE: Final = re.compile(
    r"(?:path:)?(?:\.{1,2}|[~$][^/#?]*)(?:[/#?]|$)|(?:path|git\+file):(?://)?(?!/)"
)
_LENGTH_MAX: Final = 1500
_QUOTES: Final = "\"'`\u2018\u2019\u201c\u201d"
# As 'nix build' and a manual name an output; inx adds the rest.
_OUTPUT: Final = re.compile(
    r'nixosConfigurations\.(?:"(?P<quoted>[^"]*)"|(?P<plain>[A-Za-z0-9_][A-Za-z0-9_+-]*))'
    r"(?:\.config\.system\.build\.toplevel)?"
)
# Directories at the root of a host that have no namesake in the registry of Nix.
_AT_ROOT: Final = re.compile(r"(?:etc|home|media|mnt|opt|root|run|srv|tmp|usr|var)(?:/|$)")
_ARCHIVE: Final = re.compile(r"\.(?:zip|tar|tgz|tar\.(?:gz|xz|bz2|zst))$")
_FILE: Final = re.compile(r"file:(?://)?(?P<path>/[^?]*)")
_SCP: Final = re.compile(
    r"(?:git\+)?(?P<user>[\w.-]+@)(?P<host>[\w.-]+):(?!//)/?(?P<path>[\w~][\w~./-]*)", re.ASCII
)
_SSH_PORT: Final = re.compile(
    r"(?:git\+)?ssh://(?P<host>[\w.@-]+):(?![0-9]+(?:/|$))/?(?P<path>[^?]+)", re.ASCII
)
_BROWSER: Final = re.compile(
    r"(?:https?://)?(?:www\.)?(?P<host>github\.com|gitlab\.com|codeberg\.org|bitbucket\.org)"
    r"/(?P<owner>[\w.-]+)/(?P<repo>[\w.-]+?)(?:\.git)?"
    r"(?:/(?:-/)?(?:tree|blob|src/branch)/(?P<branch>[\w.-]+)(?:/(?P<dir>[\w./-]*?))?)?/?",
    re.ASCII,
)
_SYSTEM: Final = re.compile(r"/nix/store/[0-9a-z]{32}-nixos-system-[^/?]*")
_FORGES: Final = {"github.com": "github", "gitlab.com": "gitlab"}
_CLONE: Final = re.compile(r"https?://[^?]+\.git/?")
_GIT: Final = re.compile(r"git:(?=[a-z]+://)")
_HALF: Final = re.compile(r"(?P<forge>github|gitlab|sourcehut):[^/?]*")


def plain_attribute(attribute: str) -> str:
    """The name of the configuration that `attribute` means; `attribute` if it is one already."""
    found = _OUTPUT.fullmatch(attribute)
    return found["quoted"] or found["plain"] or "" if found else attribute


def reference_hint(value: str) -> str:
    """What is allowed in place of `value`, REF or REF#ATTR; empty if nothing better is known.

    A value with a credential gets no hint: other words say why it is refused.
    """
    if _RELATIVE.match(value):
        return ABSOLUTE
    if len(value) > _LENGTH_MAX or has_credentials(value):
        return ""
    if (plain := value.strip(_QUOTES)) and plain == value[1:-1]:
        return f"the same without quotes, {plain}"
    ref, mark, attribute = value.partition("#")
    tail = mark + attribute
    place, question, query = ref.partition("?")
    if attribute.startswith("nixosConfigurations."):
        return f"the name of the configuration alone, as in {ref}#NAME"
    if _AT_ROOT.match(ref):
        return f"an absolute path, /{value}"
    if place.startswith(("/", "path:", "git+file:")) and place.endswith("/flake.nix"):
        return f"the directory of the flake, {place.removesuffix('/flake.nix') + tail}"
    if _SYSTEM.fullmatch(place):
        return "a flake; a system that is built goes into user.inx.system"
    if (file := _FILE.fullmatch(place)) and not _ARCHIVE.search(place):
        return f"the path alone, {file['path'] + tail}"
    if found := _SCP.fullmatch(ref):
        return f"git+ssh://{found['user']}{found['host']}/{found['path']}{tail}"
    if found := _SSH_PORT.fullmatch(place):
        return f"git+ssh://{found['host']}/{found['path']}{question}{query}{tail}"
    if ref.startswith("ssh://"):
        return f"git+{value}"
    if found := _BROWSER.fullmatch(place):
        return _of_browser(found) + tail
    if _CLONE.fullmatch(place):
        return f"git+{value}"
    if found := _GIT.match(ref):
        return f"git+{value[found.end() :]}"
    if found := _HALF.fullmatch(place):
        return f"{found['forge']}:OWNER/REPO or {found['forge']}:OWNER/REPO#ATTR"
    return ""


def _of_browser(found: re.Match[str]) -> str:
    """The reference for the address of a page of a forge."""
    host, path = found["host"], f"{found['owner']}/{found['repo']}"
    branch, directory = found["branch"], (found["dir"] or "").removesuffix("flake.nix").strip("/")
    if forge := _FORGES.get(host):
        ref = f"{forge}:{path}" + (f"/{branch}" if branch else "")
        return f"{ref}?dir={directory}" if directory else ref
    query = [f"ref={branch}"] if branch else []
    query += [f"dir={directory}"] if directory else []
    return f"git+https://{host}/{path}" + (f"?{'&'.join(query)}" if query else "")
