"""Which member of a cluster has what an instance names: a key of the instance says so.

The member where it runs writes the key, once it has fetched what it lacked, or told that it is
lost. The value also has the generation that Incus gives an instance (`volatile.uuid.generation`):
copies and restored instances have the key of what they come from, but another generation, and may
name other store paths.
"""

from collections.abc import Mapping
from typing import Any, Final

KEY: Final = "user.inx.status.member"
# Incus changes it when it restores the instance, which then names what it did before.
RESTORED: Final = "volatile.uuid.generation"


def keys_for(member: str, config: Mapping[str, str]) -> dict[str, str]:
    """What says that `member` has what an instance with this `config` names."""
    return {KEY: f"{member} {config.get(RESTORED, '')}".strip()}


def is_dealt_with(api: Mapping[str, Any]) -> bool:
    """Whether the member that has the instance, as Incus describes it, has what it names."""
    config = api["config"]
    return keys_for(api["location"], config) == {KEY: config.get(KEY)}


def was_elsewhere(member: str, config: Mapping[str, str]) -> bool:
    """Whether another member than `member`, as far as is known, dealt with the instance last."""
    return bool(member and config.get(KEY)) and keys_for(member, config)[KEY] != config[KEY]
