"""The files that the Nix daemon of an instance sees in /etc. It sees no other file there.

Each function gives the text of one file. Of the host's configuration only what is named here gets
into them: a setting that a newer Nix adds, for example for credentials, does not.
"""

import ipaddress
import re
from collections.abc import Mapping, Sequence
from typing import Final
from urllib.parse import parse_qsl, urlencode, urlsplit

GROUP: Final = "inxbld"
_MAX_NAME_SERVERS: Final = 3  # MAXNS of resolv.conf(5)
_ZONE: Final = re.compile(r"[A-Za-z0-9_.-]{1,15}")

_COPIED: Final = frozenset(
    "always-allow-substitutes auto-optimise-store compress-build-log connect-timeout cores "
    "download-attempts download-buffer-size download-speed experimental-features extra-platforms "
    "fallback fsync-metadata fsync-store-paths hashed-mirrors http-connections http2 ignored-acls "
    "keep-build-log log-lines max-build-log-size max-jobs max-silent-time "
    "max-substitution-jobs narinfo-cache-negative-ttl narinfo-cache-positive-ttl "
    "preallocate-contents sandbox-build-dir sandbox-dev-shm-size "
    "stalled-download-timeout substitute sync-before-registering system system-features timeout "
    "trusted-public-keys use-sqlite-wal".split()
)
# The network of the container may be hostile: only signed paths come from it.
_FIXED: Final = {
    "allowed-users": "*",
    "build-users-group": GROUP,
    "builders": "",
    "keep-failed": "false",
    "require-sigs": "true",
    "sandbox": "true",
    "sandbox-fallback": "false",
    "trusted-users": "root",
}
_CACHES: Final = ("substituters", "trusted-substituters")
# Others, such as trusted=true and secret-key=, change whom the daemon trusts or what it reads.
_CACHE_PARAMETERS: Final = {"priority", "want-mass-query"}
HOSTS: Final = "127.0.0.1 localhost\n::1 localhost\n"
# Neither nscd, nor systemd-resolved, nor a directory of users of the host is asked.
NSSWITCH: Final = (
    "passwd: files\ngroup: files\nhosts: files dns\nservices: files\nprotocols: files\n"
)


def passwd(ids: Sequence[int], gid: int) -> str:
    """/etc/passwd with root, and a user for each of `ids`."""
    users = [f"{_name(n)}:x:{uid}:{gid}::/var/empty:/bin/false" for n, uid in enumerate(ids, 1)]
    return "".join(f"{line}\n" for line in ("root:x:0:0::/root:/bin/false", *users))


def group(ids: Sequence[int], gid: int) -> str:
    """/etc/group, in which these users make the group of build users.

    `gid` has to be the group of the store: else Nix would change it (LocalStore in
    libstore/local-store.cc).
    """
    members = ",".join(_name(number) for number in range(1, len(ids) + 1))
    return f"root:x:0:\n{GROUP}:x:{gid}:{members}\n"


def _name(number: int) -> str:
    return f"{GROUP}{number}"


def resolv_conf(text: str) -> str:
    """The name servers in `text`, which a container wrote: addresses, and nothing else of it."""
    servers: list[str] = []
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver" and _is_address(words[1]):
            servers.append(words[1])
    return "".join(f"nameserver {server}\n" for server in servers[:_MAX_NAME_SERVERS])


def _is_address(word: str) -> bool:
    address, mark, zone = word.partition("%")
    if mark and not _ZONE.fullmatch(zone):
        return False
    try:
        return ipaddress.ip_address(address).version == 6 or not mark
    except ValueError:
        return False


def nix_conf(effective: Mapping[str, str]) -> str:
    """The nix.conf for the settings of the host, as `nix config show` prints them."""
    settings = {name: effective[name] for name in _COPIED & effective.keys()}
    for name in _CACHES:
        urls = (cache_url(url) for url in effective.get(name, "").split())
        settings[name] = " ".join(url for url in urls if url)
    if "sandbox-paths" in effective:
        mounted = effective["sandbox-paths"].split()
        settings["sandbox-paths"] = " ".join(path for path in mounted if _is_public(path))
    settings |= _FIXED
    return "".join(f"{name} = {value}\n" for name, value in sorted(settings.items()))


def cache_url(url: str) -> str:
    """`url` without parameters that matter for trust; "" if it has a password or is no HTTP URL."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        return ""
    query = [(key, value) for key, value in parse_qsl(parts.query) if key in _CACHE_PARAMETERS]
    return parts._replace(query=urlencode(query), fragment="").geturl()


def _is_public(path: str) -> bool:
    """Whether a sandbox path, TARGET=SOURCE or SOURCE, has its source in the store or in /usr.

    Others may be private to the host, or be shared with its builds, as the cache of a compiler is.
    """
    source = path.removesuffix("?").rpartition("=")[2]
    public = re.match(r"/nix/store/[0-9a-z]{32}-|/usr/", source) is not None
    return public and ".." not in source.split("/")
