"""A storage pool of Incus that a test fills: a directory on a small file system."""

import contextlib
from collections.abc import Iterator

from support.incus import Incus


class SmallPool:
    """`name` is that of the pool. Its file system is a tmpfs, mounted at `place`."""

    def __init__(self, incus: Incus) -> None:
        self.name = incus.name("pool")
        self.place = f"/srv/{self.name}"
        self._incus = incus

    def backup(self, instance: str) -> str:
        """The content of the instance's backup.yaml; empty if there is none."""
        path = f"{self.place}/containers/{instance}/backup.yaml"
        return self._incus.host.run(["cat", path], check=False).stdout

    def fill(self) -> None:
        """Leave no space."""
        self._incus.host.sh('cat /dev/zero >"$P/full" 2>/dev/null || :', env={"P": self.place})

    def empty(self) -> None:
        """Make space again."""
        self._incus.host.run(["rm", "-rf", f"{self.place}/full"])

    def fill_inodes(self) -> None:
        """Let no file be made any more."""
        script = 'mkdir "$P/full"; i=0; while : >"$P/full/$i"; do i=$((i+1)); done 2>/dev/null'
        self._incus.host.run(["sh", "-uc", script], env={"P": self.place}, check=False)

    def lose_backup(self, instance: str) -> None:
        """Fill the pool, and let Incus replace backup.yaml by a longer one, for which there is no
        space: a part is left, or nothing."""
        self.fill()
        refused = self._incus("config", "set", instance, f"user.pad={'x' * 9000}", check=False)
        assert "no space left on device" in refused.stderr, refused
        assert "volume:" not in self.backup(instance)


@contextlib.contextmanager
def small_pool(incus: Incus, options: str = "size=1m") -> Iterator[SmallPool]:
    """A pool for the instances of the block, which are deleted at its end; `options` are those of
    its tmpfs."""
    pool = SmallPool(incus)
    host = incus.host
    host.run(["mkdir", pool.place])
    host.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", pool.place])
    try:
        incus("storage", "create", pool.name, "dir", f"source={pool.place}")
        yield pool
    finally:
        pool.empty()
        incus.clean_up()
        incus("storage", "delete", pool.name, check=False)
        host.run(["umount", pool.place])
