"""Set up the static addresses of a container that starts: its end of each link, then the host's.

The kernel removes both ends when the container stops: the container's interfaces with its network
namespace, and the host's end of a veth pair with its peer. So inx never removes an address.
"""

import asyncio
import errno
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ipaddress import ip_interface
from typing import TYPE_CHECKING, Any, Final

from inx_sidecar.base.errors import NetworkError
from inx_sidecar.config.nic_keys import (
    Interface,
    is_link_local,
    is_single_host,
    networks_overlap,
)
from inx_sidecar.config.nic_setup import End, NicSetup, Route
from inx_sidecar.container.namespaces import Container
from inx_sidecar.kernel import forked
from inx_sidecar.kernel.syscalls import CLONE_NEWNET, CLONE_NEWUSER, opened, setns

if TYPE_CHECKING:
    from pyroute2 import IPRoute

# IFA_F_NODAD: no duplicate address detection on a link where inx sets the addresses of both ends.
_NODAD: Final = 0x02
# RT_TABLE_MAIN and RT_SCOPE_LINK (rtnetlink(7)).
_MAIN_TABLE: Final = 254
_LINK: Final = 253


async def refuse_conflicts(name: str, setups: Sequence[NicSetup]) -> None:
    """NetworkError if the host already uses an address or a route that `setups` need.

    This check runs at pre-start: once the container exists, a refusal costs the seconds that LXC
    takes to end it. `name` is that of the instance.
    """
    if setups:
        _import_pyroute2()
        action = f"looking for the addresses of {name!r}"
        await forked.run_in_child(lambda: _check_host(name, setups), action)


async def set_up(container: Container, setups: Sequence[NicSetup], lock: asyncio.Lock) -> None:
    """Set the addresses and routes of both ends of `setups`; the container's init has not begun.

    NetworkError if the kernel refuses them, or the host already uses one of them. The call can be
    repeated. `lock` keeps two instances from finding the same address free.
    """
    if not setups:
        return
    action = f"setting up the network of {container.name!r}"
    _import_pyroute2()
    async with lock:
        peers, _ = await forked.run_in_child(
            lambda: _set_up_inside(container, setups), action, fds=container.fds
        )
        await forked.run_in_child(
            lambda: _set_up_host(container, setups, peers), action, fds=container.fds
        )


def _import_pyroute2() -> None:
    """Import pyroute2 in this process, so that children find it imported.

    The import takes a fifth of a second and 9 MB, which only hosts with static addresses spend.
    """
    import pyroute2  # noqa: F401


@contextmanager
def _netlink(name: str) -> Iterator["IPRoute"]:
    """A netlink socket of this network namespace; its errors become NetworkError."""
    from pyroute2 import IPRoute, NetlinkError

    try:
        with IPRoute() as netlink:
            yield netlink
    except NetlinkError as error:
        raise NetworkError(
            f"the kernel refused the addresses of {name!r} in user.inx.net: "
            f"{os.strerror(error.code)}"
        ) from None


def _set_up_inside(container: Container, setups: Sequence[NicSetup]) -> forked.Result:
    """In a child: set up the container's ends.

    The result has, for each setup, the index of the host's interface at the other end; 0 if inx
    does not set up that end.
    """
    with opened(os.open(f"/proc/{container.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)) as network:
        if not container.privileged:
            setns(container.user, CLONE_NEWUSER)
        setns(network, CLONE_NEWNET)
    peers = []
    with _netlink(container.name) as netlink:
        for setup in setups:
            found = netlink.link_lookup(ifname=setup.name) if setup.name else []
            if not found:
                raise NetworkError(
                    f"{container.name!r} has no interface {setup.name!r} for {setup.nic.key}; look "
                    f"at its NIC with 'incus config show {container.name} --expanded'"
                )
            (link,) = netlink.get_links(found[0])
            _set_up_end(netlink, container.name, setup, found[0], setup.inside)
            # The link of a macvlan is its parent, which inx does not set up.
            peers.append(int(link.get("link") or 0) if setup.host is not None else 0)
    return peers, []


def _check_host(name: str, setups: Sequence[NicSetup]) -> forked.Result:
    """In a child: NetworkError if the host uses an address or a route that `setups` need."""
    with _netlink(name) as netlink:
        # The host's end exists already. Routes that Incus made to it (ipv4.routes) are no conflict.
        peers = [
            next(iter(netlink.link_lookup(ifname=setup.host_name)), 0) if setup.host_name else 0
            for setup in setups
        ]
        _refuse_taken(netlink, name, setups, peers)
        for setup, peer in zip(setups, peers, strict=True):
            for route in () if setup.host is None else setup.host.routes:
                _refuse_routed(netlink, name, setup, route, peer)
    return None, []


def _set_up_host(
    container: Container, setups: Sequence[NicSetup], peers: Sequence[int]
) -> forked.Result:
    """In a child: refuse addresses that the host uses, then set up the host's ends, `peers`."""
    with _netlink(container.name) as netlink:
        _refuse_taken(netlink, container.name, setups, peers)
        for setup, peer in zip(setups, peers, strict=True):
            if setup.host is not None:
                _set_up_end(netlink, container.name, setup, peer, setup.host)
    return None, []


def _interface(entry: Any) -> Interface:
    # On a point-to-point link "address" is that of the other end, and "local" its own
    # (rtnetlink(7), IFA_ADDRESS).
    return ip_interface(f"{entry.get('local') or entry.get('address')}/{entry['prefixlen']}")


def _refuse_taken(
    netlink: "IPRoute", name: str, setups: Sequence[NicSetup], peers: Sequence[int]
) -> None:
    """NetworkError if an interface of the host that is no peer has an address of `setups`, if its
    network contains the address of a p2p NIC, or if it overlaps a network of the host's end.
    """
    present = [(entry["index"], _interface(entry)) for entry in netlink.get_addr()]
    for setup in setups:
        # A bridged NIC can conflict only with its bridge or parent. A p2p NIC is routed by the
        # host, so it can conflict with every interface.
        same_link = set(netlink.link_lookup(ifname=setup.network))
        others = [
            (index, interface)
            for index, interface in present
            if index not in peers and (setup.host is not None or index in same_link)
        ]
        _refuse_taken_addresses(netlink, name, setup, others)


def _refuse_taken_addresses(
    netlink: "IPRoute", name: str, setup: NicSetup, present: Sequence[tuple[int, Interface]]
) -> None:
    for index, interface in present:
        for own in setup.nic.addresses:
            if own.ip == interface.ip:
                raise NetworkError(
                    f"{own.ip} in {setup.nic.key}.address of {name!r} is this host's own "
                    f"address on {_interface_name(netlink, index)}; change one"
                )
            if setup.host is not None and own.ip in interface.network and not is_link_local(own.ip):
                raise NetworkError(
                    f"{own.ip} in {setup.nic.key}.address of {name!r} is in the network "
                    f"{interface.network} on {_interface_name(netlink, index)}; take another, or "
                    "connect the NIC to that network"
                )
        for host in setup.nic.host_addresses:
            if not is_single_host(host) and networks_overlap(host, interface):
                raise NetworkError(
                    f"{host} in {setup.nic.key}.host_address of {name!r} overlaps with "
                    f"{interface} on {_interface_name(netlink, index)}; leave out "
                    f"/{host.network.prefixlen} or take another network"
                )


def _set_up_end(netlink: "IPRoute", name: str, setup: NicSetup, index: int, end: End) -> None:
    """Add the addresses and routes of `end` to interface `index`; other ones of it stay."""
    netlink.link("set", index=index, state="up")
    for interface in end.addresses:
        flags = {"flags": _NODAD} if setup.host is not None and interface.version == 6 else {}
        netlink.addr(
            "replace", index=index, address=str(interface.ip),
            prefixlen=interface.network.prefixlen, **flags,
        )  # fmt: skip
    for route in end.routes:
        wanted: dict[str, Any] = {"dst": str(route.target), "oif": index}
        if route.gateway is not None:
            wanted["gateway"] = str(route.gateway)
        elif route.target.version == 4:
            wanted["scope"] = _LINK
        _add_route(netlink, name, setup, route, index, wanted)


def _add_route(
    netlink: "IPRoute", name: str, setup: NicSetup, route: Route, index: int, wanted: dict[str, Any]
) -> None:
    from pyroute2 import NetlinkError

    try:
        netlink.route("add", **wanted)
    except NetlinkError as error:
        if error.code != errno.EEXIST:
            raise
        _refuse_routed(netlink, name, setup, route, index)


def _refuse_routed(
    netlink: "IPRoute", name: str, setup: NicSetup, route: Route, index: int
) -> None:
    """NetworkError if the main table has a route to the same target by another interface."""
    family = socket.AF_INET if route.target.version == 4 else socket.AF_INET6
    # All routes are read: for one target, the kernel would return the route that it would choose.
    holders = [
        entry.get("oif")
        for entry in netlink.get_routes(family=family, table=_MAIN_TABLE)
        if f"{entry.get('dst')}/{entry['dst_len']}" == str(route.target)
    ]
    if holders and index not in holders:
        names = ", ".join(_interface_name(netlink, holder) for holder in holders if holder)
        raise NetworkError(
            f"{route.target} of {setup.nic.key} of {name!r} is already routed to "
            f"{names or 'elsewhere'} on this host; change the address, or remove that route"
        )


def _interface_name(netlink: "IPRoute", index: int) -> str:
    return next((str(link.get("ifname")) for link in netlink.get_links(index)), str(index))
