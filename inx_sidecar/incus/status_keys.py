"""What `user.inx.status*` keys of an instance say: their names and values, without the writing."""

from dataclasses import dataclass
from typing import Final

from inx_sidecar.base.errors import one_line
from inx_sidecar.incus.instance import Instance
from inx_sidecar.incus.update_key import DEALT_WITH
from inx_sidecar.nix.store_paths import redact_store_paths

TEXT_KEY: Final = "user.inx.status"
# The texts while a build runs, and while a system boots; and after a stop that ended the build.
BUILDING, STARTING = "building", "starting"
INTERRUPTED: Final = "failed: it stopped while its system was built; start it to build again"
# How each status begins that another member of the cluster writes, as there is no inx on this one.
ELSEWHERE: Final = "failed: no inx on the member "
KEYS: Final = (TEXT_KEY, "user.inx.status.system", "user.inx.status.generation")
CHANGES_KEY: Final = "user.inx.status.changes"
# What an instance keeps of a build of modules: the nixpkgs that it used, and the release of the
# first one.
LOCKED: Final = "user.inx.locked"
STATE_VERSION: Final = "user.inx.state_version"
KEPT: Final = (LOCKED, STATE_VERSION)
TEXT_MAX: Final = 800


@dataclass(frozen=True)
class Status:
    """One line on the state of an instance, and the system and generation that it is about.

    `sealed`: the generations have seals of this instance, which the key SEALED then says.
    `update`: the value of user.inx.update that was dealt with, as `update_key.shown` gives it; None
    leaves the key as it is. `changes`: what the last update changed, in one line; None leaves what
    Incus has.
    """

    text: str
    system: str = ""
    generation: int | None = None
    sealed: bool = False
    update: str | None = None
    changes: str | None = None

    def config(self) -> dict[str, str]:
        """The status keys with their values; "" unsets a key."""
        number = "" if self.generation is None else str(self.generation)
        values = one_line(self.text, TEXT_MAX), self.system, number
        more = {DEALT_WITH: self.update, CHANGES_KEY: self.changes}
        present = {key: value for key, value in more.items() if value is not None}
        return dict(zip(KEYS, values, strict=True)) | present


def visible_config(
    config: dict[str, str], note: str, *, isolated: bool, name: str = ""
) -> dict[str, str]:
    """The status keys as Incus gets them: with `note` in parentheses, if it is not empty.

    An isolated container can read its status through Incus' guest API, so the text names no store
    paths. Then a failure says where the host has them, by `name`, that of LXC.
    """
    text = config[TEXT_KEY]
    if note:
        text = f"{text} ({one_line(note, TEXT_MAX)})"
    if isolated and (hidden := redact_store_paths(text)) != text:
        failed = text.startswith("failed: ")
        text = hidden + (f"; 'journalctl INX_INSTANCE={name}' has the names" if failed else "")
    return config | {TEXT_KEY: text}


def told_system(instance: Instance) -> str:
    """The system that the status names, as the configuration of `instance` has it."""
    return instance.config.get(KEYS[1], "")
