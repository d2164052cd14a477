"""It is told from the files whether an instance has another system than NixOS."""

import os
from pathlib import Path

import pytest

from inx_sidecar.base.errors import InstanceError
from inx_sidecar.incus.instance import Instance, LxcFacts
from inx_sidecar.instances.other_system import refuse_other_system

pytestmark = pytest.mark.main

SYSTEM = f"/nix/store/{'a' * 32}-nixos-system-web"
DEBIAN = 'PRETTY_NAME="Debian GNU/Linux 13 (trixie)"\nID=debian\n'
# Files with their texts; a text that begins with "->" is the target of a link, and "/" a directory.
Files = dict[str, str]


def refuse(root: Path, files: Files, project: str = "default") -> None:
    root.mkdir(exist_ok=True)
    for path, text in files.items():
        place = root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        if text == "/":
            place.mkdir()
        elif text.startswith("->"):
            place.symlink_to(text[2:])
        else:
            place.write_text(text)
    facts = LxcFacts("web", os.fspath(root), "")
    refuse_other_system(Instance("web", project, "", facts, privileged=False, config={}))


@pytest.mark.parametrize(
    ("files", "sign"),
    [
        ({"etc/os-release": DEBIAN}, "'Debian GNU/Linux 13 (trixie)'"),
        (
            {"etc/os-release": "->../usr/lib/os-release", "usr/lib/os-release": DEBIAN},
            "'Debian GNU/Linux 13 (trixie)'",
        ),
        ({"etc/os-release": "->/proc/self/environ", "etc/passwd": ""}, "with /etc/os-release"),
        ({"etc/os-release": "ID=void\n"}, "with /etc/os-release"),
        ({"etc/os-release": "PRETTY_NAME='\x1b[2J'\n"}, "'\\x1b[2J'"),
        ({"etc/os-release": f"PRETTY_NAME={'x' * 9000}"}, f"'{'x' * 60}...'"),
        ({"etc/os-release": "", "sbin/init": "#!"}, "with /sbin/init"),
        (
            {"sbin": "->usr/sbin", "usr/sbin/init": "->../bin/init"},
            "with /usr/sbin/init",
        ),
        ({"bin/busybox": "", "bin/sh": "->busybox"}, "with /bin/sh"),
        ({"etc/passwd": "root:x:0:0::/root:/bin/sh"}, "with /etc/passwd"),
        # A Debian with Nix.
        (
            {
                "etc/os-release": DEBIAN,
                f"{SYSTEM[1:]}/init": "",
                "nix/var/nix/profiles/default": f"->{SYSTEM}",
                "nix/var/nix/gcroots": "/",
                "nix/var/nix/daemon-socket/socket": "",
                "root/.nix-profile": "->/nix/var/nix/profiles/default",
            },
            "'Debian GNU/Linux 13 (trixie)'",
        ),
        # Names that lead to NixOS are not followed.
        ({"etc": "->/etc", "usr/lib/os-release": DEBIAN}, "'Debian GNU/Linux 13 (trixie)'"),
    ],
)
def test_another_system_is_refused(tmp_path: Path, files: Files, sign: str) -> None:
    with pytest.raises(InstanceError) as refused:
        refuse(tmp_path / "rootfs", files)
    text = str(refused.value)
    assert text.startswith(f"'web' has another system, {sign}, whose files ")
    assert text.isprintable() and "--project" not in text


@pytest.mark.parametrize(
    "files",
    [
        {},
        # A start whose build failed; files that were given before the first start.
        {"dev": "/", "nix/store": "/", "nix/var/nix/profiles": "/", "nix/var/nix/gcroots": "/"},
        {"etc/ssh/ssh_host_ed25519_key": "", "etc/machine-id": "", "etc/hosts": "", "root/x": ""},
        # nixos-container made it, and it never started.
        {"etc/os-release": "", "etc/machine-id": "", "nix/var/nix/profiles": "/", "var/lib": "/"},
        # Each mark alone beside what could be another system's.
        {"etc/NIXOS": "", "etc/passwd": "", "etc/os-release": DEBIAN},
        {"etc/static": f"->{SYSTEM}/etc", "etc/passwd": ""},
        {"nix/var/nix/profiles/system": "->system-1-link", "etc/passwd": ""},
        {"nix/var/nix/profiles/system-3-link": f"->{SYSTEM}", "etc/passwd": ""},
        {"etc/os-release": "->static/os-release", "etc/static": "->x", "etc/passwd": ""},
        {"etc/os-release": "->/etc/static/os-release", "etc/passwd": ""},
        {"bin/sh": f"->{SYSTEM}/bin/sh", "etc/passwd": ""},
        # Images of NixOS that never ran.
        {"sbin/init": "#!", "etc/os-release": 'ID=nixos\nPRETTY_NAME="NixOS 24.05"\n'},
        {"sbin/init": f"->{SYSTEM}/init", "etc/os-release": "ID=derivative\n"},
        {"sbin/init": "#!", "nix-path-registration": "", "etc/os-release": "ID=derivative\n"},
    ],
)
def test_what_inx_may_start_is_started(tmp_path: Path, files: Files) -> None:
    refuse(tmp_path / "rootfs", files)


def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    for path in "etc/os-release", "usr/lib/os-release":
        place = tmp_path / path
        place.parent.mkdir(parents=True)
        os.mkfifo(place)
    with pytest.raises(InstanceError, match="with /etc/passwd"):
        refuse(tmp_path, {"etc/passwd": ""})


def test_the_commands_name_the_project(tmp_path: Path) -> None:
    with pytest.raises(InstanceError) as refused:
        refuse(tmp_path, {"etc/passwd": ""}, project="shop")
    assert str(refused.value).count(" --project shop'") == 4
