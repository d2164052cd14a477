"""Refuse the start of an instance whose root file system holds another system than NixOS.

The activation of a system replaces what is in /etc, /bin and /usr: users, units and configuration
of a Debian, for example, would be gone. The root file system decides, and no key: `incus rebuild`
gives an instance other files, and leaves its keys.

The files are the container's: no link is followed, and only regular files are opened.
"""

import os
import re
import stat
from typing import Final

from inx_sidecar.base import paths
from inx_sidecar.base.errors import InstanceError, quoted
from inx_sidecar.incus.instance import Instance
from inx_sidecar.kernel.syscalls import (
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    openat2,
    opened,
)
from inx_sidecar.nix import generations

# Every activation of NixOS makes the first two (nixpkgs nixos/modules/system/etc/setup-etc.pl). The
# image of a NixOS that never ran has the last one (nixos/lib/make-system-tarball.nix).
_OF_NIXOS: Final = (
    "etc/NIXOS", "etc/static", f"{paths.PROFILES_INSIDE}/system", "nix-path-registration",
)  # fmt: skip
_RELEASE: Final = ("etc/os-release", "usr/lib/os-release")
# What a system has, and files that somebody gives to an instance before its first start have not.
_OF_ANY_SYSTEM: Final = (
    *_RELEASE, "sbin/init", "usr/sbin/init", "lib/systemd/systemd", "usr/lib/systemd/systemd",
    "bin/sh", "usr/bin/sh", "etc/passwd",
)  # fmt: skip
# Where such files lead in a NixOS, if they are links.
_INTO_NIXOS: Final = (f"{paths.STORE}/", f"/{paths.PROFILES_INSIDE}/", "/etc/static/")
_ID: Final = re.compile(r"^ID=[\"']?([^\"'\s]*)", re.MULTILINE)
_NAME: Final = re.compile(r"^PRETTY_NAME=[\"']?([^\"'\n]*)", re.MULTILINE)
_TEXT_MAX: Final = 4096
_SHOWN_MAX: Final = 60
_RESOLVE: Final = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS


def refuse_other_system(instance: Instance) -> None:
    """InstanceError if the root file system of `instance`, which does not run, holds a system that
    is no NixOS. An empty one, and one with files of any other kind, hold none."""
    try:
        root = os.open(instance.rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise InstanceError(
            f"cannot open {instance.rootfs} of {instance.name!r}: {error.strerror}"
        ) from None
    with opened(root):
        if any(_read(root, path) is not None for path in _OF_NIXOS):
            return
        texts = {path: _read(root, path) for path in _OF_ANY_SYSTEM}
    other = other_system({path: text for path, text in texts.items() if text is not None})
    if other and not generations.read(instance.rootfs, instance.name).links:
        raise InstanceError(_refusal(instance, other))


def other_system(found: dict[str, str]) -> str:
    """What says that the files `found` are of another system than NixOS; "" if nothing does.

    `found` has the target of a link, and the begin of the text of os-release, by path.
    """
    release = "\n".join(found.get(path, "") for path in _RELEASE)
    distribution = _ID.search(release)
    if distribution and distribution[1] == "nixos":
        return ""
    if any(text.startswith(_INTO_NIXOS) for text in found.values()):
        return ""
    # nixos-container makes an empty os-release before the first start.
    signs = [path for path in found if path not in _RELEASE or found[path].strip()]
    name = _NAME.search(release)
    if signs and name and name[1].strip():
        return quoted(name[1].strip(), _SHOWN_MAX)
    return f"with /{signs[0]}" if signs else ""


def _read(root: int, path: str) -> str | None:
    """The target of a link, the begin of a text of os-release, "" of anything else that is there;
    None if there is nothing."""
    try:
        with opened(openat2(root, path, os.O_PATH | os.O_NOFOLLOW, _RESOLVE)) as fd:
            mode = os.fstat(fd).st_mode
            if stat.S_ISLNK(mode):
                return os.readlink("", dir_fd=fd)
            if not stat.S_ISREG(mode) or path not in _RELEASE:
                return ""
            with open(f"/proc/self/fd/{fd}", "rb") as file:
                return file.read(_TEXT_MAX).decode(errors="replace")
    except OSError:
        return None


def _refusal(instance: Instance, other: str) -> str:
    name = instance.name
    where = "" if instance.project == "default" else f" --project {instance.project}"
    return (
        f"{name!r} has another system, {other}, whose files a start with inx would replace; run "
        f"'incus profile remove {name} inx{where}' and unset its user.inx.* keys to start that "
        f"system ('incus profile assign {name} default{where}' if inx is its only profile), or "
        f"'incus rebuild {name} --empty{where}' to delete it, or, if these are files of a NixOS, "
        f"'incus file create -p {name}/etc/NIXOS{where}'"
    )
