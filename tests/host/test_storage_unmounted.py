"""Storage that is mounted only while its instance runs, as on ZFS: a copy is read through Incus.

The sidecar has a mount namespace of its own here, in which the pool is not mounted.
"""

import contextlib
from collections.abc import Iterator

import pytest
from support.disposable import Host
from support.gc import (
    SIDECAR_UNITS,
    assert_gone,
    assert_kept,
    build,
    journal,
    journal_end,
    launch,
    unlink,
    without,
)
from support.gc import assert_link_works as link_works
from support.incus import Incus
from support.services import restart_sidecar
from support.storage import SmallPool, small_pool

pytestmark = pytest.mark.gc

DROP_IN = "/run/systemd/system/inx-sidecar.service.d/unmounted.conf"
POOLS = "/var/lib/incus/storage-pools"


@contextlib.contextmanager
def unmounted(host: Host, pool: SmallPool) -> Iterator[None]:
    """While the block runs, the pool is not mounted for a sidecar that starts."""
    text = f"[Service]\nTemporaryFileSystem={POOLS}/{pool.name}\n"
    script = 'mkdir -p "${D%/*}"; cat >"$D"; systemctl daemon-reload'
    host.sh(script, env={"D": DROP_IN}, input=text)
    try:
        yield
    finally:
        host.run(["rm", DROP_IN])
        host.run(["systemctl", "daemon-reload"])
        restart_sidecar(host)


# What root inside leaves for those who read the copy: what never answers, loops, and names others.
HOSTILE = """
    cd /nix/var/nix/profiles
    mkfifo system-5-link system-6-link
    ln -s loop loop; ln -s ../../../../../../../../etc/passwd system-7-link
    ln -s "$(cat /proc/sys/kernel/random/uuid)" system-999999999-link
    cd ../gcroots/auto
    mkfifo 00000000000000000000000000000000
    for i in 1 2 3 4 5 6 7 8 9; do ln -s /loop$i "$i$i$i"; done
"""


def build_deep(incus: Incus, name: str) -> str:
    """A link below a link."""
    incus.sh(name, "mkdir -p /srv/b; ln -s /srv/b /srv/a")
    return build(incus, name, "deep", link="/srv/a/deep")


def test_a_copy_that_never_ran_is_read_through_incus(incus: Incus, host: Host) -> None:
    with small_pool(incus, "size=16m") as pool:
        name, other = launch(incus), launch(incus, "other")
        path, deep = build(incus, name, "thing"), build_deep(incus, name)
        unneeded = build(incus, other, "unneeded")
        incus.sh(name, HOSTILE)
        incus("stop", "-f", name)
        copy = incus.adopt(incus.name("copy"))
        seen = journal_end(host)
        with contextlib.ExitStack() as stack:
            # A sidecar that sees the pool would read the copy before.
            with without(host, *SIDECAR_UNITS):
                incus("copy", name, copy, "-s", pool.name)
                incus("delete", name)
                stack.enter_context(unmounted(host, pool))
            unlink(incus, other)
            assert_gone(incus, unneeded)
            assert_kept(incus, path, deep)
            assert "not mounted" not in journal(host, seen)
        incus.start(copy)
        link_works(incus, copy, "thing")
        link_works(incus, copy, "deep", link="/srv/a/deep")
