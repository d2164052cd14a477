"""Disposable hosts that are the members of one Incus cluster, on a network of their own."""

import contextlib
import subprocess
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Self

from support.cache import tool
from support.disposable import Host

_PORT = 8443
# The namespace of the machine that has the bridge; each member has one end of a veth pair there.
_NAMESPACE = "inx-cluster-{first}"


class Cluster:
    """The first member makes the cluster; the others join it."""

    def __init__(self, names: Sequence[str]) -> None:
        self.members = [Host(name) for name in names]
        self.namespace = _NAMESPACE.format(first=names[0])

    @classmethod
    def up(cls, names: Sequence[str], *, owner: bool = True) -> Self:
        """Make and boot the hosts, and join them. Each gets inx."""
        cluster = cls(names)
        cluster._lay_bridge()
        try:
            for number, name in enumerate(names):
                Host.up(name, owner=owner, initialise=partial(cluster._join, number))
        except BaseException:
            cluster.down()
            raise
        return cluster

    def down(self) -> None:
        for host in self.members:
            host.down()
        remove_network(self.members[0].name)

    def cut_off(self, host: Host) -> contextlib.AbstractContextManager[None]:
        """The other members do not reach this one within the block."""
        return self._without_link(self.members.index(host))

    def boot_after_crash(self, host: Host) -> None:
        """Kill the member, and boot it again. Its Incus finds its address when it starts."""
        number = self.members.index(host)

        def link() -> None:
            # The end here ends with the other one, a moment after the host.
            self._ip("link", "set", f"member{number}", "name", "gone", check=False)
            self._ip("link", "delete", "gone", check=False)
            self._link(number, host)

        host.boot_after_crash(link)

    @contextlib.contextmanager
    def _without_link(self, number: int) -> Iterator[None]:
        self._ip("link", "set", f"member{number}", "down")
        try:
            yield
        finally:
            self._ip("link", "set", f"member{number}", "up")

    def _lay_bridge(self) -> None:
        tool(["ip", "netns", "add", self.namespace])
        self._ip("link", "add", "bridge0", "type", "bridge")
        self._ip("link", "set", "bridge0", "up")

    def _join(self, number: int, host: Host) -> None:
        """Give the host its link and address, and make the cluster or join it."""
        address = _address(number)
        self._link(number, host)
        if number == 0:
            host.run(["incus", "admin", "init", "--minimal"])
            host.run(["incus", "config", "set", f"core.https_address={address}:{_PORT}"])
            host.run(["incus", "cluster", "enable", host.name])
            # A member that does not answer counts as offline soon.
            host.run(["incus", "config", "set", "cluster.offline_threshold=11"])
            return
        added = self.members[0].run(["incus", "cluster", "add", host.name]).stdout
        seed = f"""cluster:
  enabled: true
  server_address: {address}:{_PORT}
  cluster_token: {added.split()[-1]}
"""
        host.run(["incus", "admin", "init", "--preseed"], input=seed)

    def _link(self, number: int, host: Host) -> None:
        end = f"member{number}"
        self._ip("link", "add", end, "type", "veth", "peer", "cluster0", "netns", str(host.pid))
        self._ip("link", "set", end, "master", "bridge0", "up")
        host.sh(f"ip address add {_address(number)}/24 dev cluster0; ip link set cluster0 up")

    def _ip(self, *words: str, check: bool = True) -> None:
        command = ["ip", "-netns", self.namespace, *words]
        if check:
            tool(command)
        else:
            subprocess.run(command, check=False, capture_output=True)


def address_of(cluster: Cluster, host: Host) -> str:
    return _address(cluster.members.index(host))


def _address(number: int) -> str:
    return f"10.99.0.{number + 1}"


def remove_network(first: str) -> None:
    """Remove the network of the cluster whose first member is or was `first`, if there is one. The
    ends of veth pairs, and the bridge, end with their namespace."""
    namespace = _NAMESPACE.format(first=first)
    subprocess.run(["ip", "netns", "delete", namespace], check=False, capture_output=True)
