"""Attempts to see more of a store by means of mounts."""

import contextlib
import errno
import os
from collections.abc import Callable

from support.attacker.kernel import (
    AT_FDCWD,
    AT_RECURSIVE,
    FSCONFIG,
    FSCONFIG_CMD_CREATE,
    FSCONFIG_CMD_RECONFIGURE,
    FSCONFIG_SET_FD,
    FSCONFIG_SET_FLAG,
    FSCONFIG_SET_STRING,
    FSMOUNT,
    FSOPEN,
    FSPICK,
    MNT_DETACH,
    MS_BIND,
    MS_MOVE,
    MS_RDONLY,
    MS_REC,
    MS_REMOUNT,
    OPEN_TREE,
    OPEN_TREE_CLONE,
    attempt,
    call,
    check,
    in_namespaces,
    libc,
    mount,
)


def mount_tricks(store: str, name: str, sample: str) -> dict[str, str]:
    """Look for the entry `name` of `store` by each trick: "done" if it is found, or the error.

    `sample` is a directory of the store that is there.
    """

    def look(*places: str) -> None:
        """Raise unless the entry is at one of these."""
        for place in places:
            with contextlib.suppress(FileNotFoundError):
                os.stat(f"{place}/{name}")
                return
        raise FileNotFoundError(errno.ENOENT, "")

    def look_at_once() -> None:
        look(store)

    def bind_it() -> None:
        mount(store, "/mnt/a", None, MS_BIND)
        look("/mnt/a", "/mnt/a/..")

    def bind_all() -> None:
        mount("/", "/mnt/a", None, MS_BIND | MS_REC)
        look(f"/mnt/a{store}", f"/mnt/a{store}/../..", "/mnt/a/..")

    def copy() -> None:
        for flags in (OPEN_TREE_CLONE, OPEN_TREE_CLONE | AT_RECURSIVE):
            fd = call(OPEN_TREE, AT_FDCWD, store.encode(), flags)
            look(*(f"/proc/self/fd/{fd}/{way}" for way in (".", "..", "../all", "../../all")))

    def copy_all() -> None:
        fd = call(OPEN_TREE, AT_FDCWD, b"/", OPEN_TREE_CLONE | AT_RECURSIVE)
        look(f"/proc/self/fd/{fd}{store}")

    def move_it() -> None:
        mount(store, "/mnt/a", None, MS_MOVE)
        look("/mnt/a", "/mnt/a/..")

    def look_below() -> None:
        mount(store, "/mnt/a", None, MS_MOVE)
        look(store)

    def unmount() -> None:
        check(libc.umount2(store.encode(), 0))
        look(store)

    def unmount_lazily() -> None:
        check(libc.umount2(store.encode(), MNT_DETACH))
        look(store)

    def pivot_root() -> None:
        mount(store, store, None, MS_BIND)
        os.chdir(store)
        check(libc.pivot_root(b".", b"."))
        libc.umount2(b".", MNT_DETACH)
        look("/", "/..", ".", "..", "../all", "../../all")

    def chroot() -> None:
        os.chroot(store)
        os.chdir("/")
        look("/", "/..", "../../../..", "../all")

    def leave_chroot() -> None:
        os.chdir(store)
        os.chroot(sample)
        look(".", *("/".join([".."] * steps) for steps in range(1, 9)))

    def overlay() -> None:
        data = f"lowerdir={store},upperdir=/mnt/upper,workdir=/mnt/work,userxattr"
        mount("mine", "/mnt/merged", "overlay", 0, data)
        look("/mnt/merged", "/mnt/merged/..")

    def overlay_of_two() -> None:
        mount("mine", "/mnt/merged", "overlay", 0, f"lowerdir={store}:{store}/..")
        look("/mnt/merged", f"/mnt/merged/{os.path.basename(sample)}/..")

    def overlay_of_copy() -> None:
        tree = call(OPEN_TREE, AT_FDCWD, store.encode(), OPEN_TREE_CLONE)
        fd = call(FSOPEN, b"overlay", 0)
        call(FSCONFIG, fd, FSCONFIG_SET_FD, b"lowerdir+", None, tree)
        upper = os.open("/mnt/upper", os.O_PATH)
        call(FSCONFIG, fd, FSCONFIG_SET_FD, b"lowerdir+", None, upper)
        call(FSCONFIG, fd, FSCONFIG_CMD_CREATE, None, None, 0)
        look(f"/proc/self/fd/{call(FSMOUNT, fd, 0, 0)}")

    def overlay_of_the_same_layers() -> None:
        options = _options_of(store).partition(",")[2]
        mount("inx", "/mnt/merged", "overlay", MS_RDONLY, options)
        look("/mnt/merged", "/mnt/merged/entries")

    tricks = (
        look_at_once, bind_it, bind_all, copy, copy_all, move_it, look_below, unmount,
        unmount_lazily, pivot_root, chroot, leave_chroot, overlay, overlay_of_two, overlay_of_copy,
        overlay_of_the_same_layers,
    )  # fmt: skip
    os.makedirs("/mnt", exist_ok=True)
    outcome = {}
    for user in (False, True):
        for trick in tricks:

            def apart(trick: Callable[[], None] = trick, user: bool = user) -> None:
                in_namespaces(user)
                trick()

            outcome[f"{trick.__name__}{' in a user namespace' if user else ''}"] = attempt(apart)
    return outcome


def _options_of(target: str) -> str:
    """The options of the file system that is mounted at `target`."""
    with open("/proc/self/mountinfo") as file:
        shown = [line for line in file if f" {target} " in line]
    return shown[-1].split()[-1]


def redirects(store: str, name: str, user: bool) -> dict[str, str]:
    """Mount overlays with a directory that is redirected to the entry `name` of `store`.

    "done" where the redirection was followed, or the name of the error.
    """
    outcome = {}
    targets = (f"/{name}", f"/../{name}", f"../{name}", f"/entries/../{name}", name)
    for space in "user", "trusted":
        for options in (
            "", "redirect_dir=on", "redirect_dir=follow", "redirect_dir=follow,metacopy=on",
            "userxattr", "userxattr,redirect_dir=on", "userxattr,metacopy=on",
        ):  # fmt: skip
            for number, target in enumerate(targets):
                for writable in False, True:

                    def follow(
                        space: str = space,
                        options: str = options,
                        target: str = target,
                        writable: bool = writable,
                    ) -> None:
                        in_namespaces(user)
                        os.mkdir("/mnt/upper/stolen")
                        os.setxattr(
                            "/mnt/upper/stolen", f"{space}.overlay.redirect", target.encode()
                        )
                        layers = f"lowerdir=/mnt/upper:{store}"
                        if writable:
                            layers = f"lowerdir={store},upperdir=/mnt/upper,workdir=/mnt/work"
                        data = f"{layers},{options}" if options else layers
                        mount("mine", "/mnt/merged", "overlay", 0, data)
                        os.stat("/mnt/merged/stolen/file")

                    how = "written" if writable else "read"
                    outcome[f"{space} {number} {options} {how}"] = attempt(follow)
    return outcome


def reconfigurations(target: str) -> dict[str, str]:
    """Change the overlay that is mounted at `target`: "done", or the name of the error."""
    layers = _options_of(target).partition("lowerdir=")[2].partition(",")[0]
    outcome = {}
    for key, value in {
        "ro": "", "rw": "", "lowerdir": f"{target}/..", "lowerdir+": f"{target}/..",
        "redirect_dir": "off", "metacopy": "off", "nfs_export": "on", "upperdir": "/tmp",
        "same": layers,
    }.items():  # fmt: skip

        def remount(key: str = key, value: str = value) -> None:
            data = f"lowerdir={value}" if key == "same" else f"{key}={value}" if value else key
            mount("none", target, None, MS_REMOUNT, data)

        def reconfigure(key: str = key, value: str = value) -> None:
            fd = call(FSPICK, AT_FDCWD, target.encode(), 0)
            if value:
                call(FSCONFIG, fd, FSCONFIG_SET_STRING, key.encode(), value.encode(), 0)
            else:
                call(FSCONFIG, fd, FSCONFIG_SET_FLAG, key.encode(), None, 0)
            call(FSCONFIG, fd, FSCONFIG_CMD_RECONFIGURE, None, None, 0)

        outcome[f"remount {key}"] = attempt(remount)
        outcome[f"reconfigure {key}"] = attempt(reconfigure)
    return outcome
