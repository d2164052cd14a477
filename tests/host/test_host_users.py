"""What a user of the host without rights learns of instances."""

import json
import shlex

import pytest
from support.disposable import Host
from support.gc import add_to_store, make_links, register
from support.incus import Incus
from support.services import restart_sidecar

pytestmark = pytest.mark.main

PLACES = [
    "/var/lib/inx", "/run/inx", "/nix/var/nix/gcroots/inx", "/var/log/inx", "/etc/inx",
]  # fmt: skip
# All that the user can list, the targets of links, and the texts of files.
WALK = """
    find "$@" -xdev -printf '%p %l\\n' 2>/dev/null
    find "$@" -xdev -type f ! -name busybox -exec cat {} + 2>/dev/null
    true
"""


def learned(host: Host, *places: str) -> str:
    argv = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
    return host.run([*argv, "sh", "-c", WALK, "walk", *places]).stdout


def test_a_user_of_the_host_learns_no_name_and_no_path(incus: Incus, host: Host) -> None:
    secret = "/root/private-project-of-a-customer"
    name = incus.launch(name=incus.name("quiet"), flake=f"{incus.flake()}#web")
    uuid = incus.uuid(name)
    path = add_to_store(incus, "kept")
    make_links(incus, name, {secret: path})
    register(incus, name, [secret])
    root = f"/nix/var/nix/gcroots/inx/{name}.{uuid}"
    links = f"readlink {root}/links/*"
    incus.eventually(lambda: path in host.sh(links, check=False).stdout, incus.story)
    # The user may know the uuid: it is in the names of units of systemd.
    known = [f"{place}/{uuid}" for place in ("/var/lib/inx", "/var/lib/inx/builds", "/run/inx")]
    inner = [
        f"/var/lib/inx/{uuid}/{part}" for part in ("auto", "gcroots", "away.json", "build")
    ] + [f"/run/inx/{uuid}/{part}" for part in ("running.json", "status.json", "boot")]

    def nothing() -> None:
        found = learned(host, *PLACES, *known, *inner, root, f"/var/log/inx/{uuid}.build.log")
        assert name not in found and secret not in found, found
        assert "/nix/var/nix/gcroots/inx" in found and "/etc/inx" in found, "the walk works"

    nothing()
    # What an earlier version has made is closed at the start of the sidecar.
    old = f"/var/lib/inx/{uuid}/build"
    host.sh(
        f"""
        chmod 755 /nix/var/nix/gcroots/inx /var/lib/inx/{uuid} /run/inx/{uuid}
        mkdir {shlex.quote(old)}; ln -s {path} {shlex.quote(old)}/system
        """
    )
    assert name in learned(host, *PLACES) and secret in learned(host, *known), "else no test"
    restart_sidecar(host)
    nothing()
    assert host.run(["test", "-e", old], check=False).returncode == 1
    assert json.loads(host.run(["cat", f"/run/inx/{uuid}/running.json"]).stdout)["pid"]
    # Root sees all, and the tools go on.
    assert secret in host.run(["/opt/inx/bin/inx-sidecar", "roots", name]).stdout
    assert f"{root}/links/" in host.run(["nix-store", "--gc", "--print-roots"]).stdout
