"""The limits of an instance's Nix daemon: those that Incus' `limits.*` keys give the instance.

What an instance may use, its daemon may use once more. A value that cannot be parsed counts as not
set: Incus refuses such values itself.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from inx_sidecar.config.settings import Settings

# Without this much, Nix does not run at all.
_MEMORY_MIN: Final = 64 << 20
_TASKS_MIN: Final = 32
_HIGHEST: Final = 2**62
# ParseByteSizeString of incus shared/units/units.go.
_DECIMAL: Final = {f"{prefix}B": 1000**n for n, prefix in enumerate("kMGTPE", 1)}
_BINARY: Final = {f"{prefix}iB": 1024**n for n, prefix in enumerate("KMGTPE", 1)}
_UNITS: Final[Mapping[str, int]] = {"": 1, "B": 1, " bytes": 1} | _DECIMAL | _BINARY
_SIZE: Final = re.compile(r"([0-9]{1,19})(| bytes|[kMGTPE]?B|[KMGTPE]iB)")
_PERCENT: Final = re.compile(r"([0-9]{1,3})%")
_QUOTA: Final = re.compile(r"([0-9]{1,6})ms/([0-9]{1,6})ms")
_CPU_SET: Final = re.compile(r"[0-9]{1,4}(-[0-9]{1,4})?(,[0-9]{1,4}(-[0-9]{1,4})?)*")


@dataclass(frozen=True)
class DaemonLimits:
    """Each field has a value of the property of systemd.resource-control(5) with this name; a text
    that is empty resets the property."""

    MemoryMax: str
    MemoryHigh: str
    MemorySwapMax: str
    TasksMax: str
    CPUQuota: str
    CPUWeight: str
    AllowedCPUs: str

    def assignments(self) -> list[str]:
        return [f"{name}={value}" for name, value in vars(self).items()]


def daemon_limits(
    config: Mapping[str, str], settings: Settings, host_memory: int, cpus: int
) -> DaemonLimits:
    """The limits for `config`, the expanded configuration of an instance, on a host with this many
    bytes of memory and this many CPUs."""
    memory = _memory(config.get("limits.memory", ""), host_memory)
    soft = memory is not None and config.get("limits.memory.enforce") == "soft"
    no_swap = config.get("limits.memory.swap", "").lower() in ("false", "0", "no", "off")
    tasks = _number(config.get("limits.processes", ""))
    allowance = config.get("limits.cpu.allowance", "")
    count, allowed = _cpus(config.get("limits.cpu", ""), cpus)
    quotas = [q for q in (count * 100 if count else None, _quota(allowance)) if q]
    return DaemonLimits(
        MemoryMax=settings.daemon_memory_max if soft or memory is None else str(memory),
        MemoryHigh=str(memory) if soft else "infinity",
        MemorySwapMax="0" if no_swap else "infinity",
        TasksMax=str(settings.daemon_tasks_max if tasks is None else max(tasks, _TASKS_MIN)),
        CPUQuota=f"{min(quotas)}%" if quotas else "",
        CPUWeight=str(_weight(allowance, config.get("limits.cpu.priority", ""))),
        AllowedCPUs=allowed,
    )


def _memory(text: str, host_memory: int) -> int | None:
    if match := _PERCENT.fullmatch(text):
        return max(host_memory * int(match[1]) // 100, _MEMORY_MIN)
    if match := _SIZE.fullmatch(text):
        return min(max(int(match[1]) * _UNITS[match[2]], _MEMORY_MIN), _HIGHEST)
    return None


def _number(text: str) -> int | None:
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text) else None


def _cpus(text: str, cpus: int) -> tuple[int, str]:
    """The number of CPUs, or the set of CPUs, that `text` gives; 0 and "" are no limit."""
    number = _number(text)
    if number is not None:
        return min(number, cpus), ""
    if not _CPU_SET.fullmatch(text):
        return 0, ""
    chosen: set[int] = set()
    for part in text.split(","):
        low, _, high = part.partition("-")
        chosen |= set(range(int(low), min(int(high or low), cpus - 1) + 1))
    return 0, ",".join(map(str, sorted(n for n in chosen if n < cpus)))


def _quota(text: str) -> int | None:
    """Percent of one CPU, at least 1, for an allowance such as 25ms/100ms."""
    match = _QUOTA.fullmatch(text)
    if match is None or int(match[2]) == 0:
        return None
    return max(int(match[1]) * 100 // int(match[2]), 1)


def _weight(allowance: str, priority: str) -> int:
    """As Incus computes it (internal/server/cgroup/cgroup_cpu.go): 100 is usual."""
    match = _PERCENT.fullmatch(allowance)
    shares = int(match[1]) if match else 100
    number = _number(priority)
    return max(shares - (10 - min(10 if number is None else number, 10)), 1)
