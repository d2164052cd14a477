"""What an event of Incus may have changed: an instance, all instances, or the cluster."""

from collections.abc import Callable
from typing import Final

from inx_sidecar.incus import members
from inx_sidecar.incus.events import Event
from inx_sidecar.instances.cluster_watch import EVERYTHING, MEMBERS

# Project and name of an instance.
Key = tuple[str, str]
ALL: Final[Key] = ("", "")
# A start reads backup.yaml. On a restart, Incus writes that file from what it knew when the restart
# was requested, so the configuration can be newer. So each start is followed by a look.
_CHANGES: Final = (
    "instance-created", "instance-renamed", "instance-restored", "instance-updated",
    "instance-started", "instance-restarted",
)  # fmt: skip
# This host may have got another name. Other events of a cluster change no instance.
_RENAMES: Final = ("cluster-enabled", "cluster-disabled", "cluster-member-renamed")


def affected_by(
    event: Event | None, member: str = "", elsewhere: Callable[[str], bool] = lambda _: False
) -> Key | None:
    """Project and name of the instance that `event` may have changed; two empty texts mean all
    instances, None means no instance. No event means that events may have been lost.

    `member` is the name of this host in its cluster, or "". Instances of other members tell events
    here as well: `elsewhere` says whether this host looks at those of a location.
    """
    if event is None or event.action.startswith(("profile-", "project-")):
        return ALL
    if event.action in _RENAMES:
        return ALL
    changed = event.action in _CHANGES or event.by_itself
    if changed and (members.may_be_here(event.location, member) or elsewhere(event.location)):
        return (event.project, event.name) if event.name else ALL
    return None


def changed_in_cluster(event: Event | None) -> str | None:
    """What `ClusterWatch.look_soon` has to look at after `event`; None if nothing."""
    if event is None or event.action in _RENAMES:
        return EVERYTHING
    if event.action == "cluster-member-updated":
        return event.name or MEMBERS
    return MEMBERS if event.action.startswith("cluster-member-") else None
