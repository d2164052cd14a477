"""The syntax of references and paths in `user.inx.*` keys and in settings of the host.

What passes is safe as one argument of a command, and prints on one line.
"""

import re
from typing import Final

from inx_sidecar.base.errors import ConfigError, not_allowed, quoted
from inx_sidecar.config.credentials import redact
from inx_sidecar.config.reference_hints import ABSOLUTE, plain_attribute, reference_hint

_SHOWN_MAX: Final = 2000
# No blanks, control characters or quotes; no leading "-", which begins an option; no "#", which
# begins ATTR.
_REFERENCE: Final = re.compile(r"[A-Za-z0-9/][!$%&()*+,./0-9:;=?@A-Z_a-z~\[\]-]{0,1023}")
# An absolute path on the host; no "." and "..", which could lead out of an allowed prefix.
PATH: Final = re.compile(r"/(?!.*(?:^|/)\.\.?(?:/|$))[!%+,./0-9:=@A-Z_a-z~-]{0,1023}")
# A single attribute name: the installable quotes it, so a dot is part of the name.
_ATTR: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,255}")
_SCHEME: Final = re.compile(r"[a-z][a-z0-9+.-]*:")
# ID, ID/REF or ID/REF/REV.
_REGISTRY: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*){0,2}")


def refused(key: str, value: str, allowed: str) -> ConfigError:
    return not_allowed(key, redact(value[:_SHOWN_MAX]), allowed)


def check_blanks(key: str, value: str) -> None:  # a copied line brings its newline along
    plain = value.strip()
    if plain != value and plain:
        raise refused(
            key, value, f"the same without blanks around it, {quoted(redact(plain[:_SHOWN_MAX]))}"
        )
    if re.search(r"\s", value):
        raise refused(key, value, "a value without blanks; a link can lead to a path that has some")


def check_absolute(key: str, value: str) -> None:
    if not value.startswith("/"):
        raise refused(key, value, ABSOLUTE)


def check_flake(key: str, value: str) -> str:
    """`value` if its syntax is that of a flake reference that inx takes; else ConfigError."""
    check_blanks(key, value)
    ref, mark, attr = value.partition("#")
    attr = plain_attribute(attr)
    if hint := reference_hint(f"{ref}{mark}{attr}"):
        raise refused(key, value, hint)
    if not _REFERENCE.fullmatch(ref) or (mark and not _ATTR.fullmatch(attr)):
        raise refused(
            key, value, "REF or REF#ATTR, for example /etc/nixos or github:owner/repo#web"
        )
    # Nix resolves "." and ".." in paths, also as %2e: they could lead out of an allowed prefix.
    path = re.sub("%2e", ".", ref, flags=re.IGNORECASE)
    if {".", ".."} & set(re.split("[/:?&=]", path)):
        raise refused(key, value, "a reference without the steps '.' and '..'")
    if not ref.startswith("/") and not _SCHEME.match(ref) and not _REGISTRY.fullmatch(ref):
        raise refused(key, value, "an absolute path, a URL or a name of the flake registry")
    if ref.startswith(("/", "path:", "git+file:")) and "%" in path.partition("?")[0]:
        raise refused(key, value, "a path without '%'")
    return value
