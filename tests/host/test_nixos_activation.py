"""Updates of a system that is activated as NixOS is: snippets, tmpfiles, units that fail.

What it prints is what the activation script and switch-to-configuration of nixpkgs print. So the
status is tested with more than a line.
"""

import json
import re

import pytest
from support.incus import Incus
from support.services import journal
from support.sources import bump, offer

pytestmark = pytest.mark.life

TMPFILES = "tmpfiles.d/00-nixos.conf"


def unit(script: str) -> str:
    return f"[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/sh -c '{script}'\n"


def attributes(values: dict[str, str]) -> str:
    """Text by name, as attributes in Nix."""
    return "".join(f"{json.dumps(k)} = {json.dumps(v)};" for k, v in values.items())


def system(incus: Incus, *, snippets: dict[str, str], units: dict[str, str], **etc: str) -> str:
    """Offer a system with these snippets and units, which multi-user.target wants."""
    files = {f"systemd/system/{name}.service": unit(script) for name, script in units.items()}
    files["systemd/system/multi-user.target.d/units.conf"] = "[Unit]\n" + "".join(
        f"Wants={name}.service\n" for name in units
    )
    return offer(
        incus,
        f"""import ./systemd.nix {{
            inherit deps; name = "web";
            snippets = {{ {attributes(snippets)} }};
            extra = {{ {attributes(files | etc)} }};
        }}""",
    )


def test_the_status_names_what_failed_in_an_activation(incus: Incus) -> None:
    good = {"web": "echo one"}
    lines = {TMPFILES: "d /srv/data 0750 root root\n"}
    flake = system(incus, snippets={"keys": "echo done >/root/keys"}, units=good, **lines)
    name = incus.launch(flake=f"{flake}#web")
    running = "[ $(systemctl is-system-running --wait) = running ]"
    incus.eventually(lambda: incus.inside(name, running), incus.story)
    incus.sh(name, "[ -d /srv/data ]; [ $(cat /root/keys) = done ]")

    # A snippet fails: the others run, and the system is active.
    broken = {"keys": "echo no key >&2; false; echo not reached", "late": "echo late >/root/late"}
    system(incus, snippets=broken, units=good, **lines)
    bump(incus, name)
    snippet = "Activation script snippet 'keys' failed (1)"
    wanted = f"ready (parts of the activation failed: {snippet})"
    assert incus.wait_status(name, re.escape(wanted)) == wanted
    incus.sh(name, f"[ $(cat /root/late) = late ]; {running}")
    incus.wait_told(name, 2)

    # So do units, one that was there and one that is new.
    system(incus, snippets=broken, units={"web": "exit 7", "mail": "exit 1"}, **lines)
    bump(incus, name, "3")
    units = "the following units failed: mail.service, web.service"
    wanted = f"ready (some units failed: {snippet}; {units})"
    assert incus.wait_status(name, re.escape(wanted)) == wanted
    assert [line for line in journal(incus.host, name) if "Main PID" in line or "status=7" in line]
    incus.wait_told(name, 3)

    # All of it is mended, and a changed line of tmpfiles is applied.
    more = {TMPFILES: "d /srv/data 0700 root root\nf /srv/data/new 0600 root root - text\n"}
    system(incus, snippets={}, units={"web": "echo four", "mail": "true"}, **more)
    bump(incus, name, "4")
    incus.wait_generation(name, "4")
    incus.sh(
        name,
        f"{running}; [ $(stat -c %a /srv/data) = 700 ]; [ $(cat /srv/data/new) = text ]; "
        "systemctl is-active web.service mail.service",
    )


def test_a_switch_inside_that_fails_in_parts_is_told_as_what_runs(incus: Incus) -> None:
    """The boot too: an activation with a snippet that fails boots, as in NixOS."""
    flake = system(
        incus, snippets={"bad": "echo tried >>/root/tried; exit 3"}, units={"web": "exit 1"}
    )
    name = incus.launch(flake=f"{flake}#web")
    incus.wait_status(name, "ready$")
    incus.sh(name, "[ $(wc -l </root/tried) = 1 ]")
    degraded = "[ $(systemctl is-system-running --wait) = degraded ]"
    incus.eventually(lambda: incus.inside(name, degraded), incus.story)
    switch = "/run/current-system/bin/switch-to-configuration switch"
    done = incus.run(name, "sh", "-c", f"{switch} >/root/log 2>&1", check=False)
    assert done.returncode == 4
    incus.sh(name, "grep -q 'warning: the following units failed: web.service' /root/log")
    incus.sh(name, "grep -q \"snippet 'bad' failed (3)\" /root/log")
