"""A container of inx-container becomes one of inx, by the commands that docs/moving.md shows."""

from collections.abc import Iterator

import pytest
from support.disposable import Host
from support.incus import Incus
from support.pages import commands, said

pytestmark = pytest.mark.life

PAGE = "docs/moving.md"
PROFILES = "/nix/var/nix/profiles/inx-container/web"
HISTORY = ["nix-env", "--list-generations", "-p"]
# What the profile of inx-container 0.0.3 has.
PROFILE = "devices:\n" + "".join(
    f"  {name}: {{type: disk, source: {path}, path: {path}, readonly: 'true', shift: 'true'}}\n"
    for name, path in (
        ("nixstore", "/nix/store"),
        ("nixsocket", "/nix/var/nix/daemon-socket"),
        ("nixdb", "/nix/var/nix/db"),
    )
)
# How its instances are made. The host's /etc cannot be shown with other owners where it is on
# overlayfs.
CREATE = f"""
    [ -e /etc/localtime ] || touch /etc/localtime
    cp /etc/localtime /var/lib/incus/localtime
    mount --bind /var/lib/incus/localtime /etc/localtime
    incus create web --empty
    incus profile add web inx-container
    incus config device add web nixprofiles disk source={PROFILES} path=/nix/var/nix/profiles \\
        shift=true
    incus config device add web localtime disk source=/etc/localtime path=/etc/localtime \\
        shift=true readonly=true
    incus config set web raw.lxc="lxc.init.cmd=/nix/var/nix/profiles/system/init"
    incus start web
"""
REMOVE = f"""
    incus profile delete inx-container
    umount --lazy /etc/localtime
    rm -rf {PROFILES} /var/lib/incus/localtime
"""


@pytest.fixture
def systems(incus: Incus, host: Host) -> Iterator[dict[str, str]]:
    """Three generations of the container `web` of inx-container, which runs the second one."""
    incus.adopt("web")
    host.run(["mkdir", "-p", PROFILES])
    host.run(["incus", "profile", "create", "inx-container"], input=PROFILE)
    found = {}
    for greeting in ("one", "two", "three"):
        flake = incus.flake("web", greeting=greeting)
        toplevel = f"{flake}#nixosConfigurations.web.config.system.build.toplevel"
        features = ["--extra-experimental-features", "nix-command flakes"]
        argv = ["nix", *features, "build", "--no-link", "--print-out-paths", toplevel]
        found[greeting] = host.run(argv).stdout.strip()
        host.run(["nix-env", "-p", f"{PROFILES}/system", "--set", found[greeting]])
    host.run(["nix-env", "-p", f"{PROFILES}/system", "--switch-generation", "2"])
    try:
        host.sh(CREATE)
        incus.wait_inside("web")
        yield found
    finally:
        incus("delete", "-f", "web", check=False)
        host.sh(REMOVE)


def present(host: Host, path: str) -> bool:
    return host.run(["nix-store", "--check-validity", path], check=False).returncode == 0


def test_it_keeps_its_files_and_generations(
    systems: dict[str, str], incus: Incus, host: Host
) -> None:
    incus.sh("web", "[ $(cat /etc/greeting) = two ]; echo kept >/root/file; chmod 640 /root/file")
    host.sh(f"echo {incus.prefix} >/srv/tool")
    tool = host.run(["nix-store", "--add", "/srv/tool"]).stdout.strip()
    incus.sh("web", f"mkdir -p /home; ln -s {tool} /root/result")
    history = host.run([*HISTORY, f"{PROFILES}/system"]).stdout
    assert history.count("\n") == 3

    host.sh("\n".join(commands(PAGE, "From inx-container")))
    incus.wait_ready("web")

    assert incus.get("web", "user.inx.status.generation") == "2"
    assert incus.get("web", "user.inx.status.system") == systems["two"]
    assert "inx-container" not in incus("config", "show", "web").stdout
    incus.sh("web", "[ $(cat /etc/greeting) = two ]; [ $(cat /root/file) = kept ]")
    incus.sh("web", "[ $(stat -c %u:%g:%a /root/file) = 0:0:640 ]")
    rootfs = "/var/lib/incus/storage-pools/default/containers/web/rootfs"
    links = host.run(["ls", f"{rootfs}/nix/var/nix/profiles"]).stdout.split()
    assert {f"system-{number}-link" for number in (1, 2, 3)} <= set(links)

    # Nothing needs what is left of the old container.
    host.sh(said(PAGE, "rm -r "))
    flake = incus.flake("web", greeting="stray")
    stray = host.sh(
        "nix --extra-experimental-features 'nix-command flakes' build --no-link --print-out-paths "
        f"{flake}#nixosConfigurations.web.config.system.build.toplevel"
    ).stdout.strip()
    host.run(["/opt/inx/bin/inx-sidecar", "sync"])
    host.run(["nix-collect-garbage"])
    assert not present(host, stray), "a collection that collects"
    assert all(present(host, path) for path in (*systems.values(), tool))
    incus.set("web", "user.inx.generation=3")
    incus.wait_generation("web", "3")
    incus.sh("web", "[ $(cat /etc/greeting) = three ]")
