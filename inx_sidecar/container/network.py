"""Set up the static addresses of a container that starts: its end of each wire, then the host's.

Both go with the container: its interfaces end with its network namespace, and the host's end of a
veth pair with the other. Nothing is ever taken back, so that nothing can be left behind.
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
from inx_sidecar.config.addresses import End, Interface, Route, Wire, is_alone, is_near, overlap
from inx_sidecar.container.mounts import Container
from inx_sidecar.kernel import forked
from inx_sidecar.kernel.syscalls import CLONE_NEWNET, CLONE_NEWUSER, opened, setns

if TYPE_CHECKING:
    from pyroute2 import IPRoute

# The two ends of a wire know each other: nobody has to be asked whether an address is in use.
_NODAD: Final = 0x02
_MAIN_TABLE: Final = 254
_LINK: Final = 253


async def look(name: str, wires: Sequence[Wire]) -> None:
    """NetworkError if the host already has what the instance `name` would get: said before there
    is a container, which LXC would take seconds to end."""
    if wires:
        _load()
        what = f"looking for the addresses of {name!r}"
        await forked.call(lambda: _look(name, wires), what)


async def set_up(container: Container, wires: Sequence[Wire], lock: asyncio.Lock) -> None:
    """Give `container`, whose init has not begun, the addresses and routes of `wires`, and the
    host its own; NetworkError if the kernel or what the host has already is against it.

    Can be repeated. `lock` keeps two instances from looking for an address at the same time.
    """
    if not wires:
        return
    what = f"setting up the network of {container.name!r}"
    _load()
    async with lock:
        peers, _ = await forked.call(lambda: _inside(container, wires), what)
        await forked.call(lambda: _outside(container, wires, peers), what)


def _load() -> None:
    """Before forking, so that it is there the next time: it takes a fifth of a second and 9 MB,
    which only hosts with static addresses spend."""
    import pyroute2  # noqa: F401


@contextmanager
def _kernel(name: str) -> Iterator["IPRoute"]:
    from pyroute2 import IPRoute, NetlinkError

    try:
        with IPRoute() as kernel:
            yield kernel
    except NetlinkError as error:
        raise NetworkError(
            f"the kernel refused the addresses of {name!r} in user.inx.net: "
            f"{os.strerror(error.code)}"
        ) from None


def _inside(container: Container, wires: Sequence[Wire]) -> forked.Result:
    """In a child: set up the container's ends; the interfaces of the host at the others."""
    with opened(os.open(f"/proc/{container.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)) as network:
        if not container.privileged:
            setns(container.user, CLONE_NEWUSER)
        setns(network, CLONE_NEWNET)
    peers = []
    with _kernel(container.name) as kernel:
        for wire in wires:
            found = kernel.link_lookup(ifname=wire.name) if wire.name else []
            if not found:
                raise NetworkError(
                    f"{container.name!r} has no interface {wire.name!r} for {wire.nic.key}; look "
                    f"at its NIC with 'incus config show {container.name} --expanded'"
                )
            (link,) = kernel.get_links(found[0])
            _set(kernel, container.name, wire, found[0], wire.inside)
            # Of a macvlan it is the parent, which is none of ours.
            peers.append(int(link.get("link") or 0) if wire.host is not None else 0)
    return peers, []


def _look(name: str, wires: Sequence[Wire]) -> forked.Result:
    with _kernel(name) as kernel:
        # Incus has made the wire, and routes to it if its device says so (ipv4.routes).
        peers = [
            next(iter(kernel.link_lookup(ifname=wire.host_name)), 0) if wire.host_name else 0
            for wire in wires
        ]
        _refuse_taken(kernel, name, wires, peers)
        for wire, peer in zip(wires, peers, strict=True):
            for route in () if wire.host is None else wire.host.routes:
                _refuse_routed(kernel, name, wire, route, peer)
    return None, []


def _outside(container: Container, wires: Sequence[Wire], peers: Sequence[int]) -> forked.Result:
    """In a child, among the host's interfaces: refuse what is taken, then set up its ends."""
    with _kernel(container.name) as kernel:
        _refuse_taken(kernel, container.name, wires, peers)
        for wire, peer in zip(wires, peers, strict=True):
            if wire.host is not None:
                _set(kernel, container.name, wire, peer, wire.host)
    return None, []


def _interface(entry: Any) -> Interface:
    # The address of a wire with two ends is the other one; this one is "local" (rtnetlink(7)).
    return ip_interface(f"{entry.get('local') or entry.get('address')}/{entry['prefixlen']}")


def _refuse_taken(
    kernel: "IPRoute", name: str, wires: Sequence[Wire], peers: Sequence[int]
) -> None:
    """NetworkError if another interface of the host has an address of `wires`, or is connected to
    their networks."""
    present = [(entry["index"], _interface(entry)) for entry in kernel.get_addr()]
    for wire in wires:
        # A bridge or a parent is on the same wire as the NIC; to a p2p NIC the host routes.
        near = set(kernel.link_lookup(ifname=wire.network))
        others = [
            (index, interface)
            for index, interface in present
            if index not in peers and (wire.host is not None or index in near)
        ]
        _refuse_one(kernel, name, wire, others)


def _refuse_one(
    kernel: "IPRoute", name: str, wire: Wire, present: Sequence[tuple[int, Interface]]
) -> None:
    for index, interface in present:
        for own in wire.nic.addresses:
            if own.ip == interface.ip:
                raise NetworkError(
                    f"{own.ip} in {wire.nic.key}.address of {name!r} is this host's own "
                    f"address on {_name(kernel, index)}; change one"
                )
            if wire.host is not None and own.ip in interface.network and not is_near(own.ip):
                raise NetworkError(
                    f"{own.ip} in {wire.nic.key}.address of {name!r} is in the network "
                    f"{interface.network} on {_name(kernel, index)}; take another, or connect the "
                    "NIC to that network"
                )
        for host in wire.nic.host_addresses:
            if not is_alone(host) and overlap(host, interface):
                raise NetworkError(
                    f"{host} in {wire.nic.key}.host_address of {name!r} overlaps with "
                    f"{interface} on {_name(kernel, index)}; leave out /{host.network.prefixlen} "
                    "or take another network"
                )


def _set(kernel: "IPRoute", name: str, wire: Wire, index: int, end: End) -> None:
    """Give the interface its addresses and routes; those that it has are left as they are."""
    kernel.link("set", index=index, state="up")
    for interface in end.addresses:
        more = {"flags": _NODAD} if wire.host is not None and interface.version == 6 else {}
        kernel.addr(
            "replace", index=index, address=str(interface.ip),
            prefixlen=interface.network.prefixlen, **more,
        )  # fmt: skip
    for route in end.routes:
        wanted: dict[str, Any] = {"dst": str(route.target), "oif": index}
        if route.gateway is not None:
            wanted["gateway"] = str(route.gateway)
        elif route.target.version == 4:
            wanted["scope"] = _LINK
        _add(kernel, name, wire, route, index, wanted)


def _add(
    kernel: "IPRoute", name: str, wire: Wire, route: Route, index: int, wanted: dict[str, Any]
) -> None:
    from pyroute2 import NetlinkError

    try:
        kernel.route("add", **wanted)
    except NetlinkError as error:
        if error.code != errno.EEXIST:
            raise
        _refuse_routed(kernel, name, wire, route, index)


def _refuse_routed(kernel: "IPRoute", name: str, wire: Wire, route: Route, index: int) -> None:
    """NetworkError if the main table leads to the very same target, but not by `index`."""
    family = socket.AF_INET if route.target.version == 4 else socket.AF_INET6
    # Asked for one target, the kernel looks up how to get there.
    holders = [
        entry.get("oif")
        for entry in kernel.get_routes(family=family, table=_MAIN_TABLE)
        if f"{entry.get('dst')}/{entry['dst_len']}" == str(route.target)
    ]
    if holders and index not in holders:
        names = ", ".join(_name(kernel, holder) for holder in holders if holder)
        raise NetworkError(
            f"{route.target} of {wire.nic.key} of {name!r} is already routed to "
            f"{names or 'elsewhere'} on this host; change the address, or remove that route"
        )


def _name(kernel: "IPRoute", index: int) -> str:
    return next((str(link.get("ifname")) for link in kernel.get_links(index)), str(index))
