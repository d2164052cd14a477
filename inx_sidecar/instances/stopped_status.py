"""The status of an instance that does not run: it must not say that all is well if it is not."""

from typing import Final

from inx_sidecar.base.errors import InxError
from inx_sidecar.config.disk_paths import check_disks
from inx_sidecar.config.keys import configured, parse_spec
from inx_sidecar.config.settings import load_settings
from inx_sidecar.incus.instance import Instance
from inx_sidecar.incus.status_keys import ELSEWHERE, INTERRUPTED, STARTING
from inx_sidecar.incus.update_key import PENDING
from inx_sidecar.instances.deployment import static_nic_setups
from inx_sidecar.instances.instance_state import InstanceState
from inx_sidecar.instances.missing_hooks import BEGIN

_FAILED: Final = "failed: "
_CHANGED: Final = "stopped: its configuration was changed after it failed; start it to try again"


def configuration_of(instance: Instance) -> object:
    """All that the operator has configured: another start of the same may fail in the same way."""
    return configured(instance.config), instance.devices


def refusal_of(instance: Instance) -> str:
    """Why each start of `instance` is refused as it is configured; "" if it is not."""
    try:
        check_disks(instance.devices, instance.name, own=instance.own)
        spec = parse_spec(instance.config, instance.name, load_settings().default_flake)
        static_nic_setups(instance, spec)
    except InxError as error:
        return str(error)
    return ""


def is_failed(text: str) -> bool:
    return text.startswith(_FAILED)


def next_text(
    state: InstanceState, instance: Instance, present: str, problem: str,
    *, has_hooks: bool, by_itself: bool,
) -> str:  # fmt: skip
    """The status of `instance`, as `stopped_text` says; `state` notes how it is configured."""
    starts = state.lock.locked() or state.deployment is not None
    now = configuration_of(instance)
    changed = not starts and state.configured not in (None, now)
    if not starts:
        state.configured = now
    if changed and is_failed(present):
        problem = problem or refusal_of(instance)
    return stopped_text(
        present, problem, instance.name,
        has_hooks=has_hooks, by_itself=by_itself, starts=starts, changed=changed,
    )  # fmt: skip


def stopped_text(
    present: str, problem: str, name: str,
    *, has_hooks: bool, by_itself: bool, starts: bool, changed: bool = False,
) -> str:  # fmt: skip
    """The status of instance `name`, which does not run and has the status `present`.

    `problem`: why its next start fails. Without a problem and without hooks, inx has no part in the
    instance. A sentence that another member wrote, as there was no inx here, goes. `by_itself`: it
    has just stopped, and nobody had asked Incus for that. A status that says why something failed
    stays. `starts`: a start has begun. A copy, or an instance that got another name as it stopped,
    may have the status of a build or a start that ended. `changed`: the instance is configured in
    another way than when it got its status, and does not start.
    """
    if problem:
        return _FAILED + problem
    if not has_hooks or present.startswith((_FAILED + BEGIN, ELSEWHERE)):
        return ""
    if present.startswith(PENDING) and not starts and not by_itself:
        return "" if present.startswith(STARTING) else INTERRUPTED
    if changed and is_failed(present):
        return _CHANGED
    if not by_itself or starts or is_failed(present):
        return present
    return (
        "stopped: PID 1 ended by itself, as after a shutdown inside, or LXC failed; see "
        f"'incus console {name} --show-log' and 'incus info {name} --show-log'"
    )
