"""Credentials in the text of a source: they are recognised, left out of messages, and not built.

A credential may have any name. So a parameter of a URL is one, unless its name is known to be
another thing.

The command line of a program can be read by every user of the host, and the configuration of an
instance by the instance itself (the guest API shows `user.*` keys). Anybody writes these texts, so
the time for a text grows with its length, and not faster.
"""

import re
from typing import Final
from urllib.parse import unquote

_HIDDEN: Final = "***"


def _any_encoding(name: str) -> str:
    """A pattern of `name` in a URL."""
    return "".join(f"(?:{each}|%(?:25){{0,9}}(?i:{ord(each):02x}))" for each in name)


# "@", also encoded, more than once.
_AT: Final = re.compile(r"@|%(?:25)*40")
# What may be a user and a host, with the slashes before it: any number of them, and also none, may
# lead Nix, git or curl to a host.
_STEP: Final = re.compile(r"(?<!/)(?P<slashes>/*)(?P<step>[^/?#\s'\"<>]+)")
_SCHEME: Final = r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]{0,40})(?::|%(?:25){0,9}3[Aa])"
_SCHEME_BEFORE: Final = re.compile(rf"(?<![A-Za-z0-9+.-]){_SCHEME}$")
_SCHEME_WITHIN: Final = re.compile(
    rf"(?:(?<![A-Za-z0-9+.-])|(?<=3[Dd])){_SCHEME}(?:%(?:25){{0,9}}2[Ff])+"
)
# These take no path, and a host needs no slashes.
_REMOTE_WITHIN: Final = re.compile(
    r"(?<![A-Za-z0-9+.-])(?i:(?P<scheme>(?:[a-z]{1,20}\+)?https?|github|gitlab|sourcehut))"
    r"(?::|%(?:25){0,9}3[Aa])"
)
_SCHEME_MAX: Final = 80
# "%25" is "%": a text may be encoded any number of times.
_ENCODED_MARK: Final = re.compile(r"%(?:25)+")
_DEPTH: Final = 8
_LOCAL: Final = re.compile(r"path|(?:[a-z]+\+)?file")
# A parameter of a URL. Its mark and "=" may be encoded, also more than once.
_MARK: Final = r"[?&;]|%(?:25){0,9}(?:26|3[BbFf])"
_PARAMETER: Final = re.compile(
    rf"(?P<mark>{_MARK})(?P<name>(?:(?!{_MARK})[^=#\s'\"<>%]|%(?!(?:25){{0,9}}(?:26|3[BbDdFf]))){{1,100}})"
    rf"(?P<is>=|%(?:25){{0,9}}3[Dd])(?P<value>(?:(?!{_MARK})[^#\s'\"<>])+)"
)
# The parameters that lead to a host, with what may be encoded in their names.
_PLACE: Final = re.compile(
    rf"(?P<begin>(?:{_MARK})(?:{_any_encoding('host')}|{_any_encoding('url')})(?:=|%(?:25){{0,9}}3[Dd]))"
    r"(?P<value>[^&#\s'\"<>]+)"
)
# A user and a password before a host without "//", as in host=USER:PASSWORD@HOST: what stands
# between the last of _PAIR_BEGINS and "@".
_PAIR: Final = re.compile(r"(?P<mark>[=:])[^=:]+:.+", re.DOTALL)
_PAIR_BEGINS: Final = "/?&#'\" \t\r\n\f\v"
# What Nix 2.18 to 2.34 takes as parameters (allowedAttrs and inputFromURL in libfetchers/*.cc), and
# what names no credential in links to archives. All other parameters may.
KNOWN_PARAMETERS: Final = frozenset({
    "allRefs", "dir", "dirtyRev", "dirtyShortRev", "exportIgnore", "host", "id", "keytype",
    "lastModified", "lfs", "name", "narHash", "owner", "path", "publicKey", "publicKeys", "ref",
    "repo", "rev", "revCount", "shallow", "submodules", "treeHash", "type", "unpack", "url",
    "verifyCommit",
    "archive", "at", "format", "sha",
})  # fmt: skip
# NAME=VALUE, and a header of HTTP, in the output of a program. What follows a colon may be prose:
# "asks for a password: put it there". So a value has a digit there, except after "Authorization:".
_SECRET: Final = re.compile(
    r"(?P<name>(?:token|secret|passw|passphrase|credential|signature|api.?key|access.?key"
    r"|private.?key|authorization)"
    r"(?:[\w.-]{0,40}[ \t\"']{0,2}=[ \t]{0,4}"
    r"|(?<=authorization)[\"']?:[ \t]{1,4}"
    r"|[\w-]{0,40}[\"']?:[ \t]{1,4}(?=[\"']?[^\s\"'<>&0-9]{0,200}[0-9]))"
    r"(?:(?:bearer|basic|token|digest)[ \t]{1,4})?)"
    r"(?P<value>(?!(?:(?:bearer|basic|token|digest)[ \t]{1,4})?\*\*\*)"
    r"(?:\"[^\"]{1,4096}\"|'[^']{1,4096}'|[^\s'\"<>&]+))",
    re.IGNORECASE,
)
# How the forges begin tokens, and a JSON web token.
_TOKEN: Final = re.compile(
    r"\b(?:gh[opsur]_\w{10,}|github_pat_\w{10,}"
    r"|gl(?:pat|dt|rt|cbt|ptt|ft|imt|agent|soat|oas|ffct)-[\w-]{10,}"
    r"|eyJ[\w-]{10,500}\.eyJ[\w.-]{10,})"
)
# A user of ssh that may be a token. The user ids of AWS begin with APKA, and are not secret.
_TOKEN_AS_USER: Final = re.compile(r"(?!APKA)(?=\D*\d)[\w-]{20,}")


def redact(text: str) -> str:
    """`text` with "***" in the place of each credential, and of what may be one."""
    if "@" in text or "%" in text:
        text = _STEP.sub(_redact_user, text)
        text = _redact_pairs(text)
        text = _PLACE.sub(_redact_place, text)
    text = _TOKEN.sub(_HIDDEN, text)
    if "=" in text or "%" in text or ":" in text:
        text = _PARAMETER.sub(_redact_parameter, text)
        text = _SECRET.sub(rf"\g<name>{_HIDDEN}", text)
    return text


def unknown_parameters(reference: str) -> list[str]:
    """The names of parameters of a flake reference that may name a credential."""
    query = reference.partition("?")[2]
    names = (re.split("=|%(?:25)*3[Dd]", part)[0] for part in re.split(_MARK, query) if part)
    unknown = (name for name in names if unquote(name) not in KNOWN_PARAMETERS)
    # A mark in the value of host= begins a name, as in host=a%26TOKEN@h.
    return [_HIDDEN if "@" in _decoded(name) else name for name in unknown]


def has_credentials(text: str) -> bool:
    return redact(text) != text


def _redact_user(found: re.Match[str]) -> str:
    """`USER@` is hidden after `SCHEME://`, also with fewer or more slashes."""
    step, slashes = found["step"], found["slashes"]
    at = max((each.start() for each in _AT.finditer(step)), default=0)
    if not at:
        return found[0]
    user = step[:at]
    text = found.string[max(0, found.start() - _SCHEME_MAX) : found.start()]
    before = _SCHEME_BEFORE.search(text) if slashes else None
    if before and _may_be_secret(before["scheme"], len(slashes), user):
        return f"{slashes}{_HIDDEN}{step[at:]}"
    ends = [
        within.end()
        for within in (_SCHEME_WITHIN.search(user), _REMOTE_WITHIN.search(user))
        if within and _may_be_secret(within["scheme"], 2, user[within.end() :])
    ]
    return f"{slashes}{user[: min(ends)]}{_HIDDEN}{step[at:]}" if ends else found[0]


def _may_be_secret(scheme: str, slashes: int, user: str) -> bool:
    """Whether `user` may be a password or a token: GitHub and others take a token as the user over
    http. A user of ssh, as in git+ssh://git@host, is none."""
    scheme, user = scheme.lower(), _decoded(user)
    if _LOCAL.fullmatch(scheme) and slashes != 2:  # a path
        return False
    plain = "ssh" in scheme or _LOCAL.fullmatch(scheme)
    return bool(user) and (
        not plain or ":" in user or "@" in user or bool(_TOKEN_AS_USER.fullmatch(user))
    )


def _decoded(text: str) -> str:
    """`text` without percent encoding; "@" if it is encoded too often to be told."""
    for _ in range(_DEPTH):
        plain = unquote(_ENCODED_MARK.sub("%", text))
        if plain == text:
            return text
        text = plain
    return "@"


def _redact_place(found: re.Match[str]) -> str:
    return f"{found['begin']}{_HIDDEN}" if "@" in _decoded(found["value"]) else found[0]


def _redact_pairs(text: str) -> str:
    parts = text.split("@")
    for number, part in enumerate(parts[:-1]):
        begin = 1 + max(part.rfind(mark) for mark in _PAIR_BEGINS)
        parts[number] = part[:begin] + _PAIR.sub(rf"\g<mark>{_HIDDEN}", part[begin:], count=1)
    return "@".join(parts)


def _redact_parameter(found: re.Match[str]) -> str:
    if unquote(found["name"]) in KNOWN_PARAMETERS:
        return found[0]
    return f"{found['mark']}{found['name']}{found['is']}{_HIDDEN}"
