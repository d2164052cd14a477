"""Instances that run while inx is upgraded keep working, and so does their configuration."""

import json

import pytest
from support.disposable import Host
from support.incus import Incus

pytestmark = pytest.mark.main

# The names of fields in running.json, as inx 0.1 wrote them, by the names of today.
FORMER_NAMES = {
    "profile_system": "profile",
    "visible_systems": "shown",
    "spec_digest": "mark",
    "status_text": "text",
    "attempted_digest": "tried",
}
FORMER_LINE = "lxc.hook.start-host = /etc/inx/hooks/start-host"


def test_an_instance_with_the_former_name_of_a_hook_starts_and_restarts(
    incus: Incus, host: Host
) -> None:
    """A raw.lxc of its own is not upgraded with the profile."""
    name = incus.init(flake="/etc/nixos#web")
    shipped = incus("profile", "get", "inx", "raw.lxc").stdout
    assert "lxc.hook.start-host = /etc/inx/hooks/mount" in shipped
    former = shipped.replace("lxc.hook.start-host = /etc/inx/hooks/mount", FORMER_LINE)
    incus.set(name, f"raw.lxc={former}")
    incus.start(name)
    incus.wait_ready(name)
    incus.restart_into(name, generation=1)
    assert incus.inside(name, "nix-store --version && ls /nix/store/")
    findings = host.run(["/opt/inx/bin/inx-sidecar", "check"], check=False).stdout
    assert f"ok    instance {name!r} of project 'default'" in findings


def test_an_instance_that_runs_over_an_upgrade_is_taken_over_and_updated(
    incus: Incus, host: Host
) -> None:
    """The new sidecar reads what the former one has saved."""
    name = incus.launch(flake=incus.flake(greeting="one") + "#web")
    pid, uuid = incus.pid(name), incus.uuid(name)
    record = f"/run/inx/{uuid}/running.json"
    host.run(["systemctl", "stop", "inx-sidecar.socket", "inx-sidecar.service"])
    try:
        saved = json.loads(host.run(["cat", record]).stdout)
        assert saved.keys() >= FORMER_NAMES.keys()
        former = {FORMER_NAMES.get(key, key): value for key, value in saved.items()}
        host.run(["tee", record], input=json.dumps(former))
    finally:
        host.run(["systemctl", "start", "inx-sidecar.socket", "inx-sidecar.service"])
    incus.flake(greeting="two")
    incus.set(name, "user.inx.update=1")
    incus.wait_generation(name, "2")
    assert incus.inside(name, "[ $(cat /etc/greeting) = two ]")
    assert incus.pid(name) == pid
    incus.restart_into(name, generation=2)
