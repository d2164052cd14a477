"""Which instances are checked after an event of Incus."""

import pytest

from inx_sidecar.incus.events import Event
from inx_sidecar.instances.cluster_watch import EVERYTHING, MEMBERS
from inx_sidecar.instances.event_effects import affected_by, changed_in_cluster

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


@pytest.mark.parametrize(
    "action", ["cluster-member-updated", "cluster-token-created", "cluster-group-updated"]
)
def test_after_an_event_of_the_cluster_no_instance_is_checked(action: str) -> None:
    assert affected_by(Event(action, "default", "b")) is None


@pytest.mark.parametrize(
    "action", ["cluster-enabled", "cluster-disabled", "cluster-member-renamed"]
)
def test_when_this_host_may_have_another_name_all_instances_are_checked(action: str) -> None:
    assert affected_by(Event(action, "default", "b")) == ALL
    assert changed_in_cluster(Event(action, "default", "b")) == EVERYTHING


def test_an_instance_of_another_member_is_looked_at_if_that_one_has_no_inx() -> None:
    event = Event("instance-created", "default", "web", location="d")
    assert affected_by(event, "a") is None
    assert affected_by(event, "a", lambda location: location == "d") == ("default", "web")
    assert affected_by(event, "a", lambda location: location == "e") is None


def test_which_member_an_event_is_about() -> None:
    def changed(action: str, name: str = "b") -> str | None:
        return changed_in_cluster(Event(action, "default", name))

    assert changed_in_cluster(None) == EVERYTHING
    assert changed("cluster-member-updated") == "b"
    assert changed("cluster-member-removed") == changed("cluster-member-updated", "") == MEMBERS
    assert changed("instance-updated") is changed("profile-updated") is None
