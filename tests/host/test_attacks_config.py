"""A user who may edit the configuration of an instance attacks the host."""

import pytest
from support.disposable import Host
from support.fingerprint import unchanged
from support.incus import POOL, Incus
from support.refusals import refusal, start
from support.store import exists

pytestmark = pytest.mark.main


def test_the_instances_environment_does_not_reach_the_host(incus: Incus, host: Host) -> None:
    """Incus hands environment.* to the hooks that LXC runs as root of the host."""
    trap = f"/tmp/{incus.prefix}-trap"
    host.sh(
        """
        mkdir -p "$D/bin"; cd "$D"
        echo 'open("'$D'/hit-python", "w")' >sitecustomize.py; cp sitecustomize.py usercustomize.py
        echo "touch $D/hit-shell" >profile
        for tool in env python python3 nix nix-build nix-store systemctl systemd-run busybox; do
            printf '#!/bin/sh\\ntouch %s/hit-%s\\nexit 1\\n' "$D" $tool >bin/$tool
        done
        chmod +x bin/*
        """,
        env={"D": trap},
    )
    other = incus.launch(name=incus.name("b"), flake="/etc/nixos#web")
    environment = {
        "PYTHONPATH": trap,
        "PYTHONHOME": trap,
        "PYTHONSTARTUP": f"{trap}/sitecustomize.py",
        "PYTHONUSERBASE": trap,
        "PATH": f"{trap}/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "BASH_ENV": f"{trap}/profile",
        "ENV": f"{trap}/profile",
        "NIX_CONFIG": f"post-build-hook = {trap}/bin/nix",
        "NIX_REMOTE": f"unix://{trap}/socket",
        "NIX_PATH": trap,
        "LD_DEBUG": "libs",
        "LD_DEBUG_OUTPUT": f"{trap}/loader",
        "LXC_NAME": other,
        "LXC_PID": "1",
        "LXC_TARGET": "reboot",
        "LXC_ROOTFS_PATH": f"{POOL}/{other}/rootfs",
        "LXC_CONFIG_FILE": f"{trap}/profile",
    }
    options = [word for k, v in environment.items() for word in ("-c", f"environment.{k}={v}")]
    flake = incus.flake(greeting="built with a hostile environment")
    name = incus.init(*options, flake=f"{flake}#web")
    incus.start(name)
    incus.wait_status(name, "ready$")
    system = incus.get(name, "user.inx.status.system")
    assert incus.said(name, f"{system}/sw/bin/cat", "/etc/greeting").startswith("built with")
    incus("restart", "-f", name)
    incus.wait_status(name, "ready$")
    incus("stop", "-f", name)
    assert host.sh(f"cd {trap}; ls -d hit-* || :").stdout == ""
    # The shell that LXC starts for a hook heeds LD_*; the hooks of inx are started without them.
    assert "/opt/inx" not in host.sh(f"cat {trap}/loader*").stdout
    assert not exists(host, f"/run/inx/{incus.uuid(name)}")
    assert incus.run(other, "nix", "store", "info").returncode == 0


HOSTILE_VALUES = [
    "$(touch /srv/pwned)",
    "; touch /srv/pwned #",
    "--option",
    "-I/srv",
    "`touch${IFS}/srv/pwned`",
    "web\nuser.inx.daemon: true",
    "\x1b]0;pwned\x07\x1b[31mred",
    '"; touch /srv/pwned; "',
    "/nix/store/../../etc/passwd",
    "é" * 3000,
]
KEYS = ["flake", "file", "system", "attr", "store", "daemon", "generation", "keep", "unheard-of"]


def test_hostile_values_are_refused_in_one_clean_line(incus: Incus, host: Host) -> None:
    host.run(["touch", "/srv/canary"])
    name = incus.init(flake="/etc/nixos#web")
    wrong: dict[str, str] = {}
    with unchanged(host):
        # Each key gets two of the values, and each value is given to some key.
        for number, key in enumerate(KEYS):
            for value in (
                HOSTILE_VALUES[number % len(HOSTILE_VALUES)],
                HOSTILE_VALUES[(3 * number + 1) % len(HOSTILE_VALUES)],
            ):
                config = {f"user.inx.{other}": "" for other in KEYS}
                if key == "attr":
                    config["user.inx.file"] = "/etc/nixos/default.nix"
                config[f"user.inx.{key}"] = value
                incus.set(name, *(f"{k}={v}" for k, v in config.items()))
                if start(incus, name) == 0:
                    wrong[f"{key}={value!r}"] = "started"
                    incus("stop", "-f", name)
                elif f"user.inx.{key}" not in (text := refusal(incus, name)):
                    wrong[f"{key}={value!r}"] = text
    assert wrong == {}


def test_hostile_text_where_any_is_allowed_changes_nothing(incus: Incus, host: Host) -> None:
    """Any text is a valid user.inx.update; the status keys are overwritten."""
    host.run(["touch", "/srv/canary"])
    name = incus.init(
        flake="/etc/nixos#web", update="\n".join(HOSTILE_VALUES), status=HOSTILE_VALUES[0]
    )
    with unchanged(host):
        incus.start(name)
        incus.wait_status(name, "ready$")
        incus.wait_inside(name)


def test_a_reference_reaches_nix_as_it_is_written(incus: Incus) -> None:
    """$ and % in a command have a meaning for systemd-run."""
    name = incus.init(flake="nosuch:/$$LANG/%n")
    incus.start(name, check=False)
    status = incus.wait_status(name, "failed: ")
    reason = status.partition("#")[2]
    assert "nosuch:/$$LANG/%n" in reason, status
