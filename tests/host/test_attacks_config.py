"""A user who may edit the configuration of an instance attacks the host."""

import pytest
from support.disposable import Host
from support.fingerprint import unchanged
from support.incus import POOL, Incus
from support.refusals import refusal, start
from support.store import exists

pytestmark = pytest.mark.main


@pytest.mark.sid
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
    # Incus 7.0.2 leaves out LD_* itself.
    loaded = host.sh(f"cat {trap}/loader* || :").stdout
    assert "initialize program: sh" in loaded or incus.version >= (7, 0, 2)
    assert "/opt/inx" not in loaded and "/env" not in loaded
    assert not exists(host, f"/run/inx/{incus.uuid(name)}")
    assert incus.run(other, "nix", "store", "info").returncode == 0


# Prints what programs open in the directory, while `argv` runs with an environment that names it.
OPENED = """
import ctypes, os, subprocess, sys
trap, *argv = sys.argv[1:]
os.makedirs(f"{trap}/C.UTF-8", exist_ok=True)
for name in "lib.so", "gconv-modules", "profile", "sitecustomize.py", "locale-archive":
    open(f"{trap}/{name}", "w").close()
libc = ctypes.CDLL(None)
watch = libc.inotify_init1(os.O_NONBLOCK)
for place in trap, f"{trap}/C.UTF-8":
    libc.inotify_add_watch(watch, place.encode(), 0x20)  # IN_OPEN
libraries = dict.fromkeys(["LD_PRELOAD", "LD_AUDIT"], f"{trap}/lib.so")
scripts = dict.fromkeys(["ENV", "BASH_ENV", "PYTHONSTARTUP"], f"{trap}/profile")
places = ["LD_LIBRARY_PATH", "GCONV_PATH", "LOCPATH", "NLSPATH", "PYTHONPATH", "PYTHONHOME"]
tunables = {"GLIBC_TUNABLES": "glibc.malloc.check=3", "LC_ALL": "C.UTF-8", "LANG": "xx_YY.EUC-JP"}
variables = libraries | scripts | dict.fromkeys(places, trap) | tunables
subprocess.run(argv, env=os.environ | variables, stderr=subprocess.DEVNULL)
try:
    print(len(os.read(watch, 65536)))
except BlockingIOError:
    print(0)
"""


@pytest.mark.parametrize("hook", ["pre-start", "mount", "stop"])
def test_a_hook_begins_with_a_program_that_loads_nothing(host: Host, hook: str) -> None:
    """A static program heeds neither LD_PRELOAD nor the like; what it starts has none of them."""

    def opened(*argv: str) -> int:
        return int(host.run(["python3", "-I", "-c", OPENED, "/srv/trap", *argv]).stdout)

    assert opened("/bin/sh", "-c", ":") > 0
    assert opened(f"/etc/inx/hooks/{hook}") == 0


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
