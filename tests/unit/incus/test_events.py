"""An event names what changed; a message that is not understood may mean any change."""

import json

import pytest

from inx_sidecar.incus.events import Event, _parse_event
from inx_sidecar.incus.websocket import Message

pytestmark = pytest.mark.life


def parse(content: bytes, *, complete: bool = True) -> Event | None:
    return _parse_event(Message(content, complete))


def test_an_event_names_action_project_and_object() -> None:
    message = {
        "type": "lifecycle",
        "project": "work",
        "metadata": {"action": "instance-updated", "name": "web", "source": "/1.0/instances/web"},
    }
    assert parse(json.dumps(message).encode()) == Event("instance-updated", "work", "web")


@pytest.mark.parametrize(
    ("action", "more", "by_itself"),
    [
        ("instance-shutdown", {}, True),
        ("instance-shutdown", {"requestor": {"username": "root", "protocol": "unix"}}, False),
        ("instance-stopped", {}, False),
    ],
)
def test_a_stop_that_nobody_asked_for_is_one_by_itself(
    action: str, more: dict[str, object], *, by_itself: bool
) -> None:
    message = {"project": "default", "metadata": {"action": action, "name": "web"} | more}
    event = parse(json.dumps(message).encode())
    assert event is not None and event.by_itself is by_itself


def test_an_event_without_a_name_is_one() -> None:
    message = json.dumps({"metadata": {"action": "config-updated"}})
    assert parse(message.encode()) == Event("config-updated", "", "")


@pytest.mark.parametrize(
    "message",
    [b"", b"{", b"[]", b"1", b"null", b"{}", b'{"metadata":null}', b'{"metadata":{}}', b"\xff"],
)
def test_what_is_not_understood_is_none(message: bytes) -> None:
    assert parse(message) is None


BEGINS = b'{"type":"lifecycle","timestamp":"2026-01-01T00:00:00Z","metadata":{"action":"'


def test_of_an_event_that_is_too_long_the_action_counts() -> None:
    command = b'instance-exec","source":"/1.0/instances/web","context":{"command":["xxxxxxxxxxx'
    assert parse(BEGINS + command, complete=False) == Event("instance-exec", "", "")


@pytest.mark.parametrize(
    "message",
    [b"", BEGINS, BEGINS + b"Instance", b'{"metadata":{"action":"instance-exec",', b'["' + BEGINS],
)
def test_an_event_that_is_too_long_and_not_understood_may_mean_any_change(message: bytes) -> None:
    assert parse(message, complete=False) is None
