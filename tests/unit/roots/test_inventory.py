"""The LXC name, the uuid and the state of an instance that Incus lists."""

from typing import Any

import pytest

from inx_sidecar.roots.inventory import ListedInstance

pytestmark = pytest.mark.gc

UUID = "11111111-2222-3333-4444-555555555555"
HOOKS = "lxc.hook.pre-start = /usr/bin/env -i /etc/inx/hooks/inx-hook\n"


def listed(name: str = "web", project: str = "default", **config: str) -> ListedInstance:
    api: dict[str, Any] = {"name": name, "project": project, "expanded_config": config}
    return ListedInstance.of(api)


def test_the_lxc_name_has_the_project() -> None:
    assert listed().lxc_name == "web"
    assert listed(project="shop").lxc_name == "shop_web"
    assert listed("default_web").lxc_name == "default_web"


def test_an_instance_with_the_hooks_is_an_instance_of_inx() -> None:
    assert listed(**{"raw.lxc": HOOKS}).ours
    assert not listed().ours
    assert not listed(**{"raw.lxc": "lxc.hook.mount = /etc/inx/hooksmith"}).ours
    assert not listed(**{"raw.lxc": "lxc.environment = A=/etc/inx"}).ours


def test_an_instance_with_a_status_has_run() -> None:
    """Or the instance ran from which it was copied. A copy needs roots as well."""
    assert listed(**{"user.inx.status": "running"}).ran
    assert not listed(**{"user.inx.status": ""}).ran
    assert not listed(**{"user.inx.system": "x"}).ran


def test_the_uuid_is_volatile_uuid() -> None:
    assert listed(**{"volatile.uuid": UUID}).uuid == UUID
    assert listed().uuid == ""
