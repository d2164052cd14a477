"""Which instances are checked after an event of Incus."""

import pytest

from inx_sidecar.incus.events import Event
from inx_sidecar.instances.config_watch import affected_by

pytestmark = pytest.mark.life

ALL = ("", "")


def test_without_an_event_all_instances_are_checked() -> None:
    """None stands for events that may have been lost."""
    assert affected_by(None) == ALL


@pytest.mark.parametrize("action", ["profile-updated", "profile-renamed", "project-updated"])
def test_after_a_change_of_a_profile_or_a_project_all_instances_are_checked(action: str) -> None:
    assert affected_by(Event(action, "default", "inx")) == ALL


@pytest.mark.parametrize(
    "action",
    ["instance-created", "instance-updated", "instance-started", "instance-restarted"],
)
def test_an_instance_that_was_changed_or_started_is_checked(action: str) -> None:
    assert affected_by(Event(action, "shop", "web")) == ("shop", "web")


def test_an_instance_that_stopped_by_itself_is_looked_at() -> None:
    stopped = Event("instance-shutdown", "shop", "web", by_itself=True)
    assert affected_by(stopped) == ("shop", "web")
    assert affected_by(Event("instance-shutdown", "shop", "web")) is None


def test_after_a_change_of_an_instance_that_is_not_known_all_are_checked() -> None:
    assert affected_by(Event("instance-updated", "", "")) == ALL


@pytest.mark.parametrize(
    "action", ["instance-stopped", "instance-deleted", "instance-exec", "image-created", ""]
)
def test_after_other_events_no_instance_is_checked(action: str) -> None:
    assert affected_by(Event(action, "default", "web")) is None
