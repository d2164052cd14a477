"""The files of disposable hosts: a Debian tree, the wheels of the project, the project itself."""

import os
import platform
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

from support.cache import CACHE, REPO, HostError, cached, locked, step, tool

# This release makes a host, or the tests fail. Another one may be in transition.
RELEASE = "trixie"
NO_HOST = 69  # EX_UNAVAILABLE of sysexits.h: no exit status of pytest; .ci/run knows it
# What hosts are made of if nothing else is asked for. tests/run has options for both.
SUITE = os.environ.get("INX_TESTBED_SUITE", RELEASE)
POOL = os.environ.get("INX_TESTBED_POOL", "dir")  # the driver of the storage pool `default`
POOL_PACKAGES = {"dir": [], "btrfs": ["btrfs-progs"]}
# The Release file of an archive that is kept as it was on one day has expired.
OPTIONS = ["--variant=minbase", '--aptopt=Acquire::Check-Valid-Until "false"']
PACKAGES = (
    "systemd systemd-sysv dbus udev procps kmod iproute2 iputils-ping ca-certificates curl git "
    "attr xz-utils incus-base incus-client lxcfs dnsmasq-base uidmap nix-bin nix-setup-systemd "
    "python3 python3-venv busybox-static openssh-server openssh-client"
).split()
# The tree has no name and no network configuration of this machine. systemd replaces an empty
# machine-id at the first boot of each host. A test that needs a server for SSH makes its keys.
CUSTOMISE = """
echo "substituters =" >>"$1/etc/nix/nix.conf"
rm -f "$1/etc/resolv.conf" "$1/etc/hostname" "$1"/etc/ssh/ssh_host_*
systemctl --root="$1" --quiet disable ssh.service ssh.socket
: >"$1/etc/machine-id"
"""
# Programs that this machine needs, and their Debian packages. mmdebstrap reads the keys of the
# archive with gpg.
TOOLS = {
    "mmdebstrap": "mmdebstrap",
    "gpg": "gpg",
    "systemd-nspawn": "systemd-container",
    "pip3": "python3-pip",
}


def install_tools() -> None:
    missing = [package for name, package in TOOLS.items() if not shutil.which(name)]
    if not missing:
        return
    if not shutil.which("apt-get"):
        raise HostError(f"this machine has no apt-get: install {' and '.join(missing)} by hand")
    log = CACHE / "apt.log"
    with locked(CACHE / "apt.lock") as lock, step(f"install {' '.join(missing)} here"):
        if not any(Path("/var/lib/apt/lists").glob("*_Packages*")):
            tool(["apt-get", "-q", "update"], log=log, lock=lock)
        install = ["apt-get", "-qy", "install", "--no-install-recommends"]
        tool([*install, *missing], log=log, lock=lock)


def find_mirror() -> str:
    """The URI of the Debian archive of this machine, not of a security or third-party archive."""
    release = platform.freedesktop_os_release().get("VERSION_CODENAME", "stable")
    apt = Path("/etc/apt")
    extra = sorted(apt.glob("sources.list.d/*.list")) + sorted(apt.glob("sources.list.d/*.sources"))
    for path in filter(Path.exists, [apt / "sources.list", *extra]):
        text = path.read_text()
        entries = re.findall(r"(?m)^deb(?: +\[.*?\])? +(\S+) +(.+)", text)
        for stanza in text.split("\n\n"):
            field = dict(re.findall(r"(?m)^(\w+): *(.+)", stanza))
            if "URIs" in field:
                suites = f"{field.get('Suites')} {field.get('Components')}"
                entries.append((field["URIs"], suites))
        for uris, suites in entries:
            if {release, "main"} <= set(suites.split()):
                return str(uris.split()[0])
    raise HostError(f"no Debian archive of {release} is named below /etc/apt")


def tree(suite: str = SUITE, pool: str = POOL) -> Path:
    """The lower layer of the root of hosts of `suite`. It is never booted and never changed."""
    packages = PACKAGES + POOL_PACKAGES[pool]

    def make(fresh: Path, lock: int) -> None:
        # mmdebstrap mounts file systems. In a mount namespace of its own, they end with mmdebstrap.
        argv = ["unshare", "--mount", "mmdebstrap", *OPTIONS, f"--include={','.join(packages)}"]
        argv += [f"--customize-hook={CUSTOMISE}", suite]
        tool([*argv, fresh, find_mirror()], log=CACHE / f"tree-{suite}.log", lock=lock)

    return cached("tree", [suite, packages, CUSTOMISE], make)


def requirements(*extras: str, build: bool = False) -> list[str]:
    pyproject = tomllib.loads((REPO / "pyproject.toml").read_text())
    project = pyproject["project"]
    wanted: list[str] = [*project["dependencies"]]
    for extra in extras:
        wanted += project["optional-dependencies"][extra]
    if build:
        wanted += pyproject["build-system"]["requires"]
    return sorted(wanted)


def wheels(lower: Path) -> Path:
    """A directory with all packages that the installation of the project in a tree needs."""
    wanted, machine = requirements(build=True), platform.machine()
    version = os.readlink(lower / "usr/bin/python3").removeprefix("python")

    def make(fresh: Path, lock: int) -> None:
        target = ["--implementation", "cp", "--python-version", version]
        for libc in "manylinux2014", "manylinux_2_28":
            target += ["--platform", f"{libc}_{machine}"]
        argv = ["pip3", "download", "-q", "--only-binary=:all:", *target]
        tool([*argv, "--dest", fresh, *wanted], log=CACHE / "wheels.log", lock=lock)

    return cached("wheels", [version, machine, wanted], make)


def project_files() -> list[str]:
    """The files of the project that git does not ignore, or all files if git does not work."""
    git = ["git", "-c", "safe.directory=*", "-C", os.fspath(REPO)]
    listing = [*git, "ls-files", "-co", "--exclude-standard", "-z"]
    try:
        listed = subprocess.run(listing, capture_output=True, text=True, check=True).stdout
        names = {name for name in listed.split("\0") if name and os.path.lexists(REPO / name)}
    except (FileNotFoundError, subprocess.CalledProcessError):
        files = (path for path in REPO.rglob("*") if path.is_symlink() or path.is_file())
        found = (path.relative_to(REPO) for path in files)
        names = {os.fspath(path) for path in found if path.parts[0] != ".git"}
    return sorted(names)
