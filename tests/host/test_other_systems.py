"""A container of another system that gets the profile of inx keeps its files."""

import re

import pytest
from support.disposable import Host
from support.incus import POOL, Incus
from support.refusals import refusal, start

pytestmark = pytest.mark.main

# A system that boots, with the files that a Debian has in these places.
IMAGE = """
    mkdir -p rootfs/bin rootfs/sbin rootfs/etc rootfs/usr/lib rootfs/proc rootfs/sys rootfs/dev
    cp "$(command -v busybox)" rootfs/bin/busybox
    ln -s busybox rootfs/bin/sh
    ln -s ../bin/busybox rootfs/sbin/init
    echo 'PRETTY_NAME="Debian GNU/Linux 13 (trixie)"' >rootfs/usr/lib/os-release
    ln -s ../usr/lib/os-release rootfs/etc/os-release
    echo 'root:x:0:0:root:/root:/bin/sh' >rootfs/etc/passwd
    echo '::wait:/bin/true' >rootfs/etc/inittab
    echo "{architecture: $(uname -m), creation_date: 1}" >metadata.yaml
    tar -cf image.tar metadata.yaml rootfs
    incus image import image.tar --alias other
"""


def files(host: Host, name: str) -> str:
    """All files, and the texts and targets in /etc."""
    script = """
        cd "$D"
        find . -printf '%p %y %l\\n' | grep -v -e ' ./dev' | sort
        cat etc/passwd
    """
    return host.sh(script, env={"D": f"{POOL}/{name}/rootfs"}).stdout


def test_a_container_of_another_image_is_not_touched(incus: Incus, host: Host) -> None:
    host.sh(f"mkdir /srv/other; cd /srv/other; {IMAGE}")
    try:
        name = incus.adopt(incus.name())
        incus("launch", "other", name)
    finally:
        host.sh("incus image delete other; rm -r /srv/other")
    before = files(host, name)

    incus("profile", "add", name, "inx")
    incus.set(name, "user.inx.flake=/etc/nixos#web")
    assert incus("restart", "-f", name, check=False).returncode != 0
    text = refusal(incus, name)
    assert "'Debian GNU/Linux 13 (trixie)'" in text
    assert incus.state(name) == "STOPPED" and files(host, name) == before
    as_it_was, _, empty, as_nixos = re.findall(r"'(incus [^']+)'", text)

    copy = incus.adopt(incus.name("copy"))
    incus("copy", name, copy)
    assert start(incus, copy) != 0 and files(host, copy) == before
    refusal(incus, copy)
    host.sh(empty.replace(name, copy))
    incus.start(copy)
    incus.wait_ready(copy)

    host.sh(as_it_was)
    incus.start(name)
    assert incus.inside(name, "grep -q ^root: /etc/passwd")
    incus("stop", "-f", name)
    incus("profile", "add", name, "inx")
    host.sh(as_nixos)
    incus.start(name)
    incus.wait_ready(name)
