"""The answer to any request on the socket is one status and one line."""

import asyncio
from pathlib import Path

import pytest

from inx_sidecar.base.errors import InstanceError, UnsupportedError
from inx_sidecar.incus.instance import LxcFacts
from inx_sidecar.instances.lifecycle import Lifecycle
from inx_sidecar.server import Request, _answer, parse

pytestmark = pytest.mark.main

LXC_VARIABLES = "\0".join(
    f"{name}=" for name in ("LXC_NAME", "LXC_PID", "LXC_TARGET", "LXC_ROOTFS_PATH")
)
MALFORMED = {
    "nothing": b"",
    "a kind alone": b"pre-start",
    "zeros": b"\0" * 100,
    "bytes": b"\xff\xfe\x80",
    "bytes in a fact": b"pre-start\0LXC_NAME=\xff\0LXC_ROOTFS_PATH=\xff\0LXC_CONFIG_FILE=",
    "no equals sign": b"pre-start\0LXC_NAME",
    "no name": b"pre-start\0LXC_ROOTFS_PATH=/x\0LXC_CONFIG_FILE=",
    "no rootfs": b"pre-start\0LXC_NAME=web\0LXC_CONFIG_FILE=",
    "no pid": b"mount\0LXC_NAME=web\0LXC_ROOTFS_PATH=/x\0LXC_CONFIG_FILE=",
    "an empty pid": b"mount\0LXC_NAME=web\0LXC_PID=\0LXC_ROOTFS_PATH=/x\0LXC_CONFIG_FILE=",
    "a pid that is none": b"mount\0LXC_NAME=w\0LXC_PID=x\0LXC_ROOTFS_PATH=\0LXC_CONFIG_FILE=",
    "no target": b"stop\0LXC_NAME=web\0LXC_ROOTFS_PATH=/x\0LXC_CONFIG_FILE=",
    "a word with a fact": b"sync\0LXC_NAME=web",
    "a word and more": b"drain\0",
    "a word in capitals": b"SYNC",
    "two words": b"sync\ndrain",
    "a daemon without a uuid": b"nix-daemon",
    "a daemon of a path": b"nix-daemon\0UUID=../../etc",
    "a daemon that does not run": f"nix-daemon\0UUID={'0' * 8}-0000-0000-0000-{'0' * 12}".encode(),
    "an unknown kind": f"umount\n\0{LXC_VARIABLES}\0LXC_CONFIG_FILE=".encode(),
    "a kind in capitals": f"STOP\0{LXC_VARIABLES}\0LXC_CONFIG_FILE=".encode(),
    "too much": b"x" * 65536,
    "too much in a fact": b"stop\0LXC_TARGET=\0LXC_CONFIG_FILE=\0LXC_ROOTFS_PATH=/x\0LXC_NAME="
    + b"x" * 65000,
}


def answer(request: bytes) -> tuple[int, str]:
    async def main() -> bytes:
        lifecycle = Lifecycle()
        try:
            return await _answer(lifecycle, request)
        finally:
            await lifecycle.close()

    status, _, message = asyncio.run(main()).decode().partition("\n")
    assert message and message.isprintable(), "one line"
    assert len(message) <= 1000
    return int(status), message


@pytest.mark.parametrize("request_", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_request_gets_an_error(request_: bytes) -> None:
    assert answer(request_)[0] > 0


@pytest.mark.parametrize("request_", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_request_is_not_logged_as_a_bug(
    request_: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Hooks and sidecar may have different versions, or an administrator sent the request."""
    assert answer(request_)[0] >= 20
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("word", ["sync", "drain"])
def test_a_single_word_is_a_request(word: str) -> None:
    assert parse(word.encode()) == word


@pytest.mark.parametrize(
    ("request_", "pid", "target"),
    [
        (b"pre-start\0LXC_PID=7\0LXC_TARGET=reboot", 0, ""),
        (b"mount\0LXC_PID=7\0LXC_TARGET=reboot", 7, ""),
        (b"stop\0LXC_PID=7\0LXC_TARGET=reboot", 0, "reboot"),
    ],
)
def test_the_request_of_a_hook_has_the_variables_of_its_kind(
    request_: bytes, pid: int, target: str
) -> None:
    facts = b"\0LXC_NAME=web\0LXC_ROOTFS_PATH=/a\0LXC_CONFIG_FILE=/b"
    kind = request_.partition(b"\0")[0].decode()
    assert parse(request_ + facts) == Request(kind, LxcFacts("web", "/a", "/b"), pid, target)


def test_the_former_name_of_the_hook_mount_is_understood() -> None:
    """The hook `mount` was called `start-host`, and still sends that name."""
    facts = b"\0LXC_PID=7\0LXC_NAME=web\0LXC_ROOTFS_PATH=/a\0LXC_CONFIG_FILE=/b"
    assert parse(b"start-host" + facts) == parse(b"mount" + facts)


def test_the_error_names_an_unknown_kind() -> None:
    status, message = answer(MALFORMED["an unknown kind"])
    assert status == UnsupportedError.status and "unknown hook 'umount'" in message


@pytest.mark.parametrize("content", [None, b"", b"[]", b"container: []", b"\xff\0", b"{", b"a: *x"])
def test_the_error_names_an_instance_that_cannot_be_read(
    tmp_path: Path, content: bytes | None
) -> None:
    if content is not None:
        (tmp_path / "backup.yaml").write_bytes(content)
    facts = f"LXC_NAME=web\0LXC_ROOTFS_PATH={tmp_path}/rootfs\0LXC_CONFIG_FILE=\0LXC_TARGET="
    for kind in ("pre-start", "mount\0LXC_PID=1", "stop"):
        status, message = answer(f"{kind}\0{facts}".encode())
        assert status == InstanceError.status
        assert f"{tmp_path}/backup.yaml of 'web'" in message


@pytest.mark.parametrize(
    "expanded", ["[]", "{}", "null", "{volatile.uuid: x}", "{volatile.uuid: ../../etc}", "x"]
)
def test_the_error_names_a_backup_file_that_incus_did_not_write(
    tmp_path: Path, expanded: str
) -> None:
    text = f"container: {{name: web, project: default, expanded_config: {expanded}}}"
    (tmp_path / "backup.yaml").write_text(text)
    facts = f"LXC_NAME=web\0LXC_ROOTFS_PATH={tmp_path}/rootfs\0LXC_CONFIG_FILE="
    status, message = answer(f"pre-start\0{facts}".encode())
    assert status == InstanceError.status and "or not what Incus writes" in message
