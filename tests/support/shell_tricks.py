"""Shell commands by which root inside a container tries to write to a read-only mount.

The container owns /plain, and /bound, which is a read-only mount of /plain. A trick is a real
attempt only if it works there.
"""

import shlex

from support.attacker import writing
from support.attacks import inside
from support.incus import Incus

# $T is a read-only mount, $F a file in it. A trick ends with status 0 only if it has written.
MOUNT_TRICKS = {
    "remount": "mount -o remount,bind,rw $T; write $T",
    "remount a second bind": "mount -o bind $T /a; mount -o remount,bind,rw /a; write /a",
    "remount a recursive bind": "mount -o rbind $T /a; mount -o remount,bind,rw /a; write /a",
    "bind read-write at once": "mount -o bind,rw $T /a; mount -o remount,bind,rw /a; write /a",
    "remount below a bind of all": "unshare -m --propagation private sh -euc "
    "'mount -o rbind / /a; mount -o remount,bind,rw /a$T; write /a$T'",
    "remount a bind of a file": "mount -o bind $F /f; mount -o remount,bind,rw /f; touch /f",
    "remount in a mount namespace": "unshare -m sh -euc 'mount -o remount,bind,rw $T; write $T'",
    "remount what was moved": "unshare -m --propagation private sh -euc "
    "'mount -o move $T /a; mount -o remount,bind,rw /a; write /a'",
    "remount in the namespace of init": "nsenter -t 1 -m sh -euc "
    "'mount -o remount,bind,rw $T; write $T'",
}
# The kernel refuses these even for a read-only mount that belongs to the container.
HOPELESS_TRICKS = {
    "remount the file system": "mount -o remount,rw $T; write $T",
    "remount in a user namespace": "unshare -Urm sh -euc 'mount -o remount,bind,rw $T; write $T'",
    "bind in a user namespace": "unshare -Urm sh -euc "
    "'mount -o bind $T /a; mount -o remount,bind,rw /a; write /a'",
    "through /proc": "write /proc/1/root$T",
}
FILE_TRICKS = {
    "create": "write $T",
    "append": "echo pwned >>$F",
    "truncate": "truncate -s 0 $F",
    "times": "touch -d 2001-01-01 $F",
    "mode": "chmod 0777 $F",
    "owner": "chown 1000:1000 $F",
    "rename": "mv $F $F.moved; mv $F.moved $F",
    "replace": "echo pwned >/f; cp -f /f $F",
    "link beside it": "ln $F $T/pwned; rm $T/pwned",
    "make a directory": "mkdir $T/pwned; rmdir $T/pwned",
    "make a link": "ln -s / $T/pwned; rm $T/pwned",
    "make a fifo": "mknod $T/pwned p; rm $T/pwned",
    "remove": "rm -f $F; test ! -e $F",
}
ALL_TRICKS = MOUNT_TRICKS | HOPELESS_TRICKS | FILE_TRICKS

WRITE = 'write() { echo pwned >"$1/pwned"; rm "$1/pwned"; }\n'
INNER_SHELL = "sh -euc '"


def succeeded(incus: Incus, name: str, tricks: dict[str, str], target: str, file: str) -> set[str]:
    """The tricks that root inside brings off."""

    def one(label: str, trick: str) -> str:
        # Each trick runs in its own shell. This shell, and one within a namespace, know `write`.
        inner = trick.replace(INNER_SHELL, INNER_SHELL + ". /write; ")
        return (
            f"sh -euc {shlex.quote(f'. /write; {inner}')} && echo {label!r} >&3\n"
            "umount -lr /a; umount -l /f; [ $T = /plain ] || mount -o remount,bind,ro $T"
        )

    text = "\n".join(one(label, trick) for label, trick in tricks.items())
    script = (
        f"printf %s {shlex.quote(WRITE)} >/write; mkdir -p /a; touch /f\n"
        f"exec 3>&1 >/dev/null 2>&1; export T F\n{text}"
    )
    run = ["exec", name, "--env", f"T={target}", "--env", f"F={file}", "--", "sh", "-uc", script]
    return set(incus(*run, check=False).stdout.splitlines())


def make_plain_and_bound(incus: Incus, name: str) -> None:
    incus.sh(
        name,
        """
        mkdir -p /plain /bound; mount -o bind /plain /plain; echo 1 >/plain/file
        mount -o bind /plain /bound; mount -o remount,bind,ro /bound
        """,
    )


def assert_tricks_work(incus: Incus, name: str) -> None:
    """The tricks succeed against the mounts that the container owns."""
    tricks = MOUNT_TRICKS | HOPELESS_TRICKS
    assert succeeded(incus, name, tricks, "/bound", "/bound/file") >= set(MOUNT_TRICKS)
    assert succeeded(incus, name, FILE_TRICKS, "/plain", "/plain/file") == set(FILE_TRICKS)
    incus.sh(name, "echo 2 >/plain/file")


def assert_calls_work(incus: Incus, name: str) -> None:
    """The system calls succeed against the mounts that the container owns."""
    for mine, hopeless in (("/plain", writing.NEVER), ("/bound", writing.HOPELESS_CALLS)):
        told = inside(incus, name, writing.system_calls, mine, f"{mine}/file", {}, [])
        assert {call for call, how in told.items() if how != "done"} == hopeless, told
