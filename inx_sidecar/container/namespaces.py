"""The namespaces of a running container, and how a forked child becomes the container's root.

Such a child can do nothing to the container's files that the container's root could not do itself:
the kernel enforces the same rights.
"""

import os
from typing import Final, Self

from inx_sidecar.base.errors import InstanceError, MountError
from inx_sidecar.kernel.syscalls import CLONE_NEWNS, CLONE_NEWUSER, setns

_UMASK: Final = 0o022


class Container:
    """The namespaces of a running container, held open: they stay those of this container even if
    its PID becomes another process's."""

    def __init__(self, pid: int, name: str) -> None:
        """Open the namespaces of process `pid`; InstanceError if that process is gone."""
        self.pid = pid
        self.name = name
        try:
            self.user = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
            try:
                self.mount = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                os.close(self.user)
                raise
        except OSError as error:
            raise InstanceError(f"process {pid} of {name!r} is gone: {error.strerror}") from None
        own = os.stat("/proc/self/ns/user")
        self.privileged = os.path.samestat(os.fstat(self.user), own)

    @property
    def fds(self) -> tuple[int, int]:
        """What a child needs to enter the container."""
        return self.user, self.mount

    def root_ids(self) -> tuple[int, int]:
        """The user id and the group id that the container's root has on the host.

        Read from uid_map and gid_map (user_namespaces(7)).
        """
        return _host_id_of_root(self.pid, "uid_map"), _host_id_of_root(self.pid, "gid_map")

    def close(self) -> None:
        for fd in (self.user, self.mount):
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def enter(self, *, from_its_user_namespace: bool = False) -> int:
        """Become the container's root among the container's mounts; only in a forked child.

        Returns an O_PATH descriptor of the container's root directory. With
        `from_its_user_namespace`, the child has joined the user namespace before.
        """
        if not self.privileged and not from_its_user_namespace:
            setns(self.user, CLONE_NEWUSER)
        setns(self.mount, CLONE_NEWNS)
        self._take_root_ids()
        return os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def become_root(self) -> None:
        """Become the container's root, but stay among the host's mounts; only in a forked child.

        The child reaches files of the container through descriptors.
        """
        if not self.privileged:
            setns(self.user, CLONE_NEWUSER)
        self._take_root_ids()

    def _take_root_ids(self) -> None:
        if not self.privileged:
            os.setgroups([])
            os.setresgid(0, 0, 0)
            os.setresuid(0, 0, 0)
        os.umask(_UMASK)


def _host_id_of_root(pid: int, map_name: str) -> int:
    with open(f"/proc/{pid}/{map_name}") as file:
        rows = [[int(word) for word in line.split()] for line in file]
    for inside, outside, _ in rows:
        if inside == 0:
            return outside
    raise MountError(f"process {pid} has no root among its users")
