"""The limits of an instance's Nix daemon follow the `limits.*` keys of the instance."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inx_sidecar.config.daemon_limits import daemon_limits
from inx_sidecar.config.settings import Settings

pytestmark = pytest.mark.main

GIB = 1 << 30
DEFAULT = {
    "MemoryMax": "50%", "MemoryHigh": "infinity", "MemorySwapMax": "infinity",
    "TasksMax": "4096", "CPUQuota": "", "CPUWeight": "100", "AllowedCPUs": "",
}  # fmt: skip


def properties(**keys: str) -> dict[str, str]:
    """Those that differ from the default; keys without `limits.`, "_" is "."."""
    config = {f"limits.{key.replace('_', '.')}": value for key, value in keys.items()}
    return differing(config)


def differing(config: dict[str, str]) -> dict[str, str]:
    found = dict(
        word.split("=", 1)
        for word in daemon_limits(config, Settings(), 16 * GIB, cpus=4).assignments()
    )
    assert found.keys() == DEFAULT.keys(), "each start sets all, so nothing of a former one stays"
    return {name: value for name, value in found.items() if value != DEFAULT[name]}


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("536870912", 536870912),
        ("1GiB", GIB),
        ("1GB", 10**9),
        ("2048MiB", 2 * GIB),
        ("300000kB", 300_000_000),
        ("134217728 bytes", 134217728),
        ("25%", 4 * GIB),
        ("1MiB", 64 << 20),
        ("0", 64 << 20),
        ("7EiB", 2**62),
    ],
)
def test_memory(text: str, size: int) -> None:
    assert properties(memory=text) == {"MemoryMax": str(size)}


@pytest.mark.parametrize(
    "text", ["", "-1", "1 GiB", "1gib", "GiB", "1KB", "1.5GiB", "1GiB ", "50 %", "1GiB\nTasksMax=1"]
)
def test_memory_that_cannot_be_parsed_is_the_default(text: str) -> None:
    assert properties(memory=text) == {}


def test_soft_memory_throttles_and_the_default_limits() -> None:
    soft = {"memory": "1GiB", "memory_enforce": "soft"}
    assert properties(**soft) == {"MemoryHigh": str(GIB)}
    assert properties(memory="1GiB", memory_enforce="hard") == {"MemoryMax": str(GIB)}
    assert properties(memory_enforce="soft") == {}


def test_swap() -> None:
    assert properties(memory_swap="false") == {"MemorySwapMax": "0"}
    assert properties(memory_swap="true") == {}


def test_processes() -> None:
    assert properties(processes="500") == {"TasksMax": "500"}
    assert properties(processes="1") == {"TasksMax": "32"}, "Nix itself needs some"
    assert properties(processes="many") == {}


@pytest.mark.parametrize(
    ("keys", "wanted"),
    [
        ({"cpu": "2"}, {"CPUQuota": "200%"}),
        ({"cpu": "64"}, {"CPUQuota": "400%"}),
        ({"cpu": "0-1,3"}, {"AllowedCPUs": "0,1,3"}),
        ({"cpu": "3-9999"}, {"AllowedCPUs": "3"}),
        ({"cpu": "2-2"}, {"AllowedCPUs": "2"}),
        ({"cpu": "17-19"}, {}),
        ({"cpu": "all"}, {}),
        ({"cpu": "0"}, {}),
        ({"cpu_allowance": "25ms/100ms"}, {"CPUQuota": "25%"}),
        ({"cpu_allowance": "1ms/1000ms"}, {"CPUQuota": "1%"}),
        ({"cpu_allowance": "25ms/0ms"}, {}),
        ({"cpu": "1", "cpu_allowance": "300ms/100ms"}, {"CPUQuota": "100%"}),
        ({"cpu_allowance": "50%"}, {"CPUWeight": "50"}),
        ({"cpu_allowance": "50%", "cpu_priority": "5"}, {"CPUWeight": "45"}),
        ({"cpu_allowance": "0%"}, {"CPUWeight": "1"}),
        ({"cpu_priority": "0"}, {"CPUWeight": "90"}),
    ],
)
def test_cpu(keys: dict[str, str], wanted: dict[str, str]) -> None:
    assert properties(**keys) == wanted


KEYS = ("memory", "memory.enforce", "memory.swap", "processes", "cpu", "cpu.allowance")


@given(st.dictionaries(st.sampled_from([f"limits.{key}" for key in KEYS]), st.text()))
def test_no_text_of_a_key_becomes_more_than_a_value(config: dict[str, str]) -> None:
    for value in differing(config).values():
        assert not set(value) - set("0123456789%,") or value == "infinity"
