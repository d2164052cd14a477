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
# "SCHEME://USER@" and "SCHEME://USER:PASSWORD@". GitHub and others take a token as USER over http.
_USER_INFO: Final = re.compile(
    r"(?<![A-Za-z0-9+.-])(?P<scheme>[A-Za-z][A-Za-z0-9+.-]{0,40})(?P<mark>://|(?i:%3A%2F%2F))(?P<user>[^/?#\s'\"<>]+)@"
)
# A parameter of a URL. Its mark and "=" may be encoded, also more than once.
_MARK: Final = r"[?&;]|%(?:25){0,9}(?:26|3[BbFf])"
_PARAMETER: Final = re.compile(
    rf"(?P<mark>{_MARK})(?P<name>(?:(?!{_MARK})[^=#\s'\"<>%]|%(?!(?:25){{0,9}}(?:26|3[BbDdFf]))){{1,100}})"
    rf"(?P<is>=|%(?:25){{0,9}}3[Dd])(?P<value>(?:(?!{_MARK})[^#\s'\"<>])+)"
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
# NAME=VALUE, and a header of HTTP, in the output of a program.
_SECRET: Final = re.compile(
    r"(?P<name>(?:token|secret|passw|passphrase|credential|signature|api.?key|access.?key"
    r"|private.?key|authorization)"
    r"(?:[\w.-]{0,40}[ \t\"']{0,2}=[ \t]{0,4}|[\w-]{0,40}[\"']?:[ \t]{1,4})"
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
    if "@" in text:
        text = _USER_INFO.sub(_redact_user, text)
        text = _redact_pairs(text)
    text = _TOKEN.sub(_HIDDEN, text)
    if "=" in text or "%" in text or ":" in text:
        text = _PARAMETER.sub(_redact_parameter, text)
        text = _SECRET.sub(rf"\g<name>{_HIDDEN}", text)
    return text


def unknown_parameters(reference: str) -> list[str]:
    """The names of parameters of a flake reference that may name a credential."""
    query = reference.partition("?")[2]
    names = (re.split("=|%(?:25)*3[Dd]", part)[0] for part in re.split(_MARK, query) if part)
    return [name for name in names if unquote(name) not in KNOWN_PARAMETERS]


def has_credentials(text: str) -> bool:
    return redact(text) != text


def _redact_user(found: re.Match[str]) -> str:
    user = unquote(found["user"])
    over_http = "http" in found["scheme"].lower()
    if not over_http and ":" not in user and not _TOKEN_AS_USER.fullmatch(user):
        return found[0]  # as in git+ssh://git@host
    return f"{found['scheme']}{found['mark']}{_HIDDEN}@"


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
