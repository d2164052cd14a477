"""An overlay that forgets its cached names shows what was added to its lower layer."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
from support.containers import Sandbox, apart

from inx_sidecar.kernel.superblocks import OVERLAY, drop_cached_names, kind_name, kind_of
from inx_sidecar.kernel.syscalls import (
    CLONE_NEWNS,
    MS_NODEV,
    MS_NOSUID,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REC,
    mount,
    unshare,
)

pytestmark = pytest.mark.isolated

T = TypeVar("T")


@pytest.fixture
def layers(tmp_path: Path) -> Path:
    """Directories for a lower overlay `shown`, and for an overlay `merged` over it."""
    for name in ("entries", "whole/name", "shown", "upper", "work", "merged"):
        (tmp_path / name).mkdir(parents=True)
    return tmp_path


def alone(function: Callable[[], T]) -> T:
    """`function` in a mount namespace of its own."""

    def run() -> T:
        unshare(CLONE_NEWNS)
        mount("none", "/", "", MS_REC | MS_PRIVATE)
        return function()

    return apart(run)


def mounted(place: Path) -> tuple[int, int]:
    """Descriptors of a read-only overlay, and of a writable one over it."""
    lower = f"lowerdir={place}/entries:{place}/whole,redirect_dir=follow"
    mount("inx", f"{place}/shown", "overlay", MS_RDONLY | MS_NOSUID | MS_NODEV, lower)
    upper = f"lowerdir={place}/shown,upperdir={place}/upper,workdir={place}/work,userxattr"
    mount("inx", f"{place}/merged", "overlay", MS_NOSUID | MS_NODEV, upper)
    return tuple(os.open(place / name, os.O_RDONLY) for name in ("shown", "merged"))  # type: ignore[return-value]


def seen(directory: int) -> bool:
    try:
        os.stat("late", dir_fd=directory)
    except FileNotFoundError:
        return False
    return True


def forget(directory: int, *, read_only: bool = False) -> None:
    drop_cached_names(directory, os.fstat(directory).st_dev, read_only=read_only)


@pytest.mark.parametrize(
    ("shown", "merged"),
    [(True, True), (False, True), (True, False)],
    ids=["both", "only the upper one", "only the lower one"],
)
def test_a_name_that_was_missing_is_seen_once_both_overlays_have_forgotten_it(
    layers: Path, shown: bool, merged: bool
) -> None:
    def grow() -> list[bool]:
        below, above = mounted(layers)
        before = [seen(below), seen(above)]
        (layers / "entries/late").mkdir()
        stale = [seen(below), seen(above)]
        if shown:
            forget(below, read_only=True)
        if merged:
            forget(above)
        return before + stale + [seen(above)]

    assert alone(grow) == [False, False, False, False, shown and merged]


def test_the_overlays_go_on_as_before(layers: Path) -> None:
    def grow() -> tuple[list[int], str]:
        fds = mounted(layers)
        (layers / "merged/before").write_text("written")
        with open(layers / "merged/open", "w") as file:
            forget(fds[0], read_only=True)
            forget(fds[1])
            file.write("still open")
        text = (layers / "merged/before").read_text() + (layers / "merged/open").read_text()
        return [os.fstatvfs(fd).f_flag & MS_RDONLY for fd in fds], text

    assert alone(grow) == ([MS_RDONLY, 0], "writtenstill open")


def test_the_read_only_overlay_needs_to_be_told_so(layers: Path) -> None:
    """The reason for the parameter."""
    with pytest.raises(OSError) as caught:
        alone(lambda: forget(mounted(layers)[0]))
    assert caught.value.errno == errno.EROFS


def test_what_is_not_that_overlay_is_never_reconfigured(layers: Path) -> None:
    """As root inside unmounts a view, the same path leads to the file system of all instances."""

    def attempt() -> list[int | None]:
        below, above = mounted(layers)
        plain = os.open(layers / "entries", os.O_RDONLY)
        mount("inx", f"{layers}/whole", "tmpfs", 0)
        other = os.open(layers / "whole", os.O_RDONLY)
        errors = []
        for directory, device in (
            (plain, os.fstat(plain).st_dev),
            (plain, os.fstat(below).st_dev),
            (other, os.fstat(other).st_dev),
            (above, os.fstat(below).st_dev),
        ):
            try:
                drop_cached_names(directory, device, read_only=True)
            except OSError as error:
                errors.append(error.errno)
        (layers / "whole/new").touch()
        (layers / "merged/new").touch()
        return errors

    assert alone(attempt) == [errno.EXDEV] * 4
    (layers / "entries/writable").touch()


def test_the_kind_of_a_file_system_is_told(layers: Path) -> None:
    def look() -> list[tuple[bool, str]]:
        fds = [*mounted(layers), os.open("/proc", os.O_PATH)]
        mount("inx", f"{layers}/whole", "tmpfs", 0)
        fds.append(os.open(layers / "whole", os.O_RDONLY))
        return [(kind_of(fd) == OVERLAY, kind_name(fd)) for fd in fds]

    assert alone(look) == [
        (True, "overlayfs"), (True, "overlayfs"), (False, "0x9fa0"), (False, "tmpfs"),
    ]  # fmt: skip


def test_the_containers_root_can_do_it_for_an_overlay_of_its_own_alone(
    unprivileged: Sandbox, layers: Path
) -> None:
    def host() -> tuple[bool, int | None]:
        below, _ = mounted(layers)
        device = os.fstat(below).st_dev

        def inside() -> tuple[bool, int | None]:
            unshare(CLONE_NEWNS)
            for name in ("lower", "upper", "work"):
                os.mkdir(f"/mnt/{name}")
            data = "lowerdir=/mnt/lower,upperdir=/mnt/upper,workdir=/mnt/work,userxattr"
            mount("inx", "/mnt", "overlay", 0, data)
            own = os.open("/mnt", os.O_RDONLY)
            forget(own)
            try:
                drop_cached_names(below, device, read_only=True)
            except OSError as error:
                return True, error.errno
            return True, None

        return unprivileged.inside(inside)

    assert alone(host) == (True, errno.EPERM)
