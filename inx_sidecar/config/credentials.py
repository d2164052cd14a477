"""Credentials in the text of a source: they are recognised, left out of messages, and not built.

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
# A parameter of a URL, or NAME=VALUE of a credential in a message.
_PARAMETER: Final = re.compile(r"(?P<mark>[?&])(?P<name>[^=&?#\s'\"]+)=(?P<value>[^&#\s'\"<>]+)")
# A user and a password before a host without "//", as in host=USER:PASSWORD@HOST: what stands
# between the last of _PAIR_BEGINS and "@".
_PAIR: Final = re.compile(r"(?P<mark>[=:])[^=:]+:.+", re.DOTALL)
_PAIR_BEGINS: Final = "/?&#'\" \t\r\n\f\v"
_SECRET_PART: Final = re.compile(
    r"token|secret|passw|passphrase|credential|signature|api.?key|access.?key|private.?key|auth",
    re.IGNORECASE,
)
_SECRET_NAMES: Final = {"sig", "key", "pwd", "pass", "pat", "jwt", "bearer"}


def redact(text: str) -> str:
    """`text` with "***" in the place of each credential in a URL."""
    if "@" in text:
        text = _USER_INFO.sub(_redact_user, text)
        text = _redact_pairs(text)
    return _PARAMETER.sub(_redact_parameter, text) if "=" in text else text


def has_credentials(text: str) -> bool:
    return redact(text) != text


def _redact_user(found: re.Match[str]) -> str:
    user = unquote(found["user"])
    over_http = "http" in found["scheme"].lower()
    if not over_http and ":" not in user:
        return found[0]  # as in git+ssh://git@host
    return f"{found['scheme']}{found['mark']}{_HIDDEN}@"


def _redact_pairs(text: str) -> str:
    parts = text.split("@")
    for number, part in enumerate(parts[:-1]):
        begin = 1 + max(part.rfind(mark) for mark in _PAIR_BEGINS)
        parts[number] = part[:begin] + _PAIR.sub(rf"\g<mark>{_HIDDEN}", part[begin:], count=1)
    return "@".join(parts)


def _redact_parameter(found: re.Match[str]) -> str:
    name = unquote(found["name"])
    if _SECRET_PART.search(name) or name.lower() in _SECRET_NAMES:
        return f"{found['mark']}{found['name']}={_HIDDEN}"
    return found[0]
