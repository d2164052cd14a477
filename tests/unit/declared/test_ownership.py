"""Only an instance that names itself, its project and this host is a declared one."""

import pytest

from inx_sidecar.declared.ownership import OWNERSHIP_KEY, Ownership
from unit.declared.examples import WEB

pytestmark = pytest.mark.nixos

TEXT = WEB.ownership.as_text()


@pytest.mark.parametrize(
    "text",
    [
        "", "webx", "{", "[]", "{}", "null", '{"name":"web"}', '{"name":"web","config":1}',
        "[" * 5000, "[" * 100_000, TEXT.replace("web", "vault"), TEXT + "x",
        TEXT.replace('"config":[', '"config":7,"other":['),
    ],
)  # fmt: skip
def test_a_text_that_is_none_of_ours_is_no_ownership(text: str) -> None:
    found = {"name": "web", "project": "default", "config": {OWNERSHIP_KEY: text}}
    assert Ownership.of(found, WEB.host) is None
    assert Ownership.of(found | {"config": {OWNERSHIP_KEY: TEXT}}, WEB.host)


def test_an_ownership_is_written_and_read_alike() -> None:
    ownership = WEB.ownership
    found = {"name": "web", "project": "default", "config": {OWNERSHIP_KEY: ownership.as_text()}}
    assert Ownership.of(found, WEB.host) == ownership
    assert (ownership.config, ownership.devices) == (
        frozenset({"boot.autostart"}),
        frozenset({"data"}),
    )


def test_a_name_alone_gives_an_instance_over_incompletely() -> None:
    found = {"name": "web", "project": "work", "config": {OWNERSHIP_KEY: "web"}}
    assert Ownership.of(found, "host") == Ownership("web", "work", "host", complete=False)
