"""An event names what changed; a message that is not understood may mean any change."""

import json

import pytest

from inx_sidecar.incus.events import Event, _parse_event

pytestmark = pytest.mark.life


def test_an_event_names_action_project_and_object() -> None:
    message = {
        "type": "lifecycle",
        "project": "work",
        "metadata": {"action": "instance-updated", "name": "web", "source": "/1.0/instances/web"},
    }
    assert _parse_event(json.dumps(message)) == Event("instance-updated", "work", "web")


def test_an_event_without_a_name_is_one() -> None:
    message = json.dumps({"metadata": {"action": "config-updated"}})
    assert _parse_event(message.encode()) == Event("config-updated", "", "")


@pytest.mark.parametrize(
    "message", ["", "{", "[]", "1", "null", "{}", '{"metadata":null}', '{"metadata":{}}', b"\xff"]
)
def test_what_is_not_understood_is_none(message: str | bytes) -> None:
    assert _parse_event(message) is None
