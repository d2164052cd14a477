"""`user.inx.net.NIC.*`: the static addresses of an instance's NICs, and what follows from them.

NIC is the name of the device in Incus. Everything here is pure: text in, addresses and routes out.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
    ip_interface,
    ip_network,
)
from itertools import permutations
from typing import Final

from inx_sidecar.base.errors import ConfigError, not_allowed, shown

Address = IPv4Address | IPv6Address
Interface = IPv4Interface | IPv6Interface
Network = IPv4Network | IPv6Network

KEY: Final = re.compile(r"user\.inx\.net\.(.+)\.(address|host_address|gateway)", re.DOTALL)
_MOST: Final = 64
# No network is called so.
_P2P: Final = "p2p/"


@dataclass(frozen=True)
class Nic:
    """What the keys ask for one device; `key` is what they have in common."""

    device: str
    addresses: tuple[Interface, ...] = ()
    host_addresses: tuple[Interface, ...] = ()
    gateways: tuple[Address, ...] = ()

    @property
    def key(self) -> str:
        return f"user.inx.net.{self.device}"


@dataclass(frozen=True)
class Route:
    """To `target` through the NIC, by way of `gateway` if it is not on the same wire."""

    target: Network
    gateway: Address | None = None


@dataclass(frozen=True)
class End:
    """What one end of the wire gets: routes in the order in which they can be added."""

    addresses: tuple[Interface, ...]
    routes: tuple[Route, ...]


@dataclass(frozen=True)
class Wire:
    """A NIC of one instance as it will be set up.

    `name` is that of the interface inside, `host_name` of its peer. `host` is None where the host's
    end is not ours.
    """

    nic: Nic
    name: str
    host_name: str
    network: str
    inside: End
    host: End | None

    def claims(self) -> tuple[str, ...]:
        return _on(self.network, self.nic.addresses)

    def uses(self) -> tuple[str, ...]:
        """In addition to its claims: what others may use as well, but not claim."""
        return _on(self.network, self.nic.host_addresses)


def _on(network: str, interfaces: Iterable[Interface]) -> tuple[str, ...]:
    """Link-local addresses are each wire's own (RFC 4291, 2.5.6)."""
    return tuple(f"{i.ip} {network}" for i in interfaces if not is_near(i.ip))


def claims(found: Iterable[Wire]) -> frozenset[str]:
    """The addresses of an instance and their networks: two cannot have one in common."""
    return frozenset(claim for wire in found for claim in wire.claims())


def uses(found: Iterable[Wire]) -> frozenset[str]:
    """What no other instance may claim."""
    return claims(found) | {use for wire in found for use in wire.uses()}


def parse_nics(given: Mapping[str, str]) -> tuple[Nic, ...]:
    """The NICs that keys of an instance's configuration speak of, in order; ConfigError if a value
    is not allowed."""
    found: dict[str, dict[str, str]] = {}
    for key, value in sorted(given.items()):
        match = KEY.fullmatch(key)
        if match:
            found.setdefault(match[1], {})[match[2]] = value
    return tuple(_nic(device, values) for device, values in found.items())


def _nic(device: str, values: Mapping[str, str]) -> Nic:
    def parsed(what: str) -> tuple[Interface, ...]:
        key = f"user.inx.net.{device}.{what}"
        return _interfaces(key, values[what]) if what in values else ()

    nic = Nic(
        device,
        parsed("address"),
        parsed("host_address"),
        _gateways(f"user.inx.net.{device}.gateway", values["gateway"])
        if "gateway" in values
        else (),
    )
    for gateway in nic.gateways:
        if not _of_version(gateway.version, nic.addresses):
            raise ConfigError(
                f"{nic.key}.gateway is {gateway}, but {nic.key}.address has no "
                f"IPv{gateway.version} address; add one"
            )
    own = {interface.ip for interface in nic.addresses}
    for other in (*(interface.ip for interface in nic.host_addresses), *nic.gateways):
        if other in own:
            raise ConfigError(f"{other} in {nic.key}.address is also the other end; change one")
    return nic


def _interfaces(key: str, value: str) -> tuple[Interface, ...]:
    interfaces = [_interface(key, value, word) for word in _words(key, value)]
    _no_doubles(key, [interface.ip for interface in interfaces])
    return tuple(interfaces)


def _interface(key: str, value: str, word: str) -> Interface:
    allowed = "addresses such as 192.0.2.2/24 or 2001:db8::2/64, with commas between"
    address, _, bits = word.partition("/")
    # Netmasks and zones are also understood by the library.
    if (bits and not bits.isdecimal()) or "%" in address or word.endswith("/"):
        raise not_allowed(key, value, allowed)
    try:
        interface = ip_interface(word)
    except ValueError:
        raise not_allowed(key, value, allowed) from None
    ip, network = interface.ip, interface.network
    if not _of_one_host(ip):
        raise not_allowed(key, value, f"addresses of one host each, and {ip} is none")
    if network.prefixlen == 0:
        raise not_allowed(key, value, f"{allowed}; /0 would be everything")
    small = network.prefixlen >= network.max_prefixlen - 1
    broadcast = ip.version == 4 and ip == network.broadcast_address
    if not small and (ip == network.network_address or broadcast):
        raise not_allowed(
            key, value, f"addresses of one host each, and {word} is that of a network"
        )
    return interface


def _gateways(key: str, value: str) -> tuple[Address, ...]:
    allowed = "an address such as 192.0.2.1, or an IPv4 and an IPv6 one with a comma between"
    try:
        gateways = [ip_address(word) for word in _words(key, value)]
    except ValueError:
        raise not_allowed(key, value, allowed) from None
    versions = [gateway.version for gateway in gateways]
    if len(set(versions)) < len(versions) or "%" in value:
        raise not_allowed(key, value, allowed)
    for gateway in gateways:
        if not _of_one_host(gateway):
            raise not_allowed(key, value, f"the address of a router, and {gateway} is none")
    return tuple(gateways)


def _of_one_host(ip: Address) -> bool:
    reserved = ip.is_reserved if ip.version == 4 else ip.ipv4_mapped is not None
    return not (ip.is_unspecified or ip.is_multicast or ip.is_loopback or reserved)


def _words(key: str, value: str) -> list[str]:
    words = [word.strip() for word in value.split(",")]
    if len(words) > _MOST:
        raise ConfigError(f"{key} has {len(words)} addresses; at most {_MOST} are allowed")
    return words


def _no_doubles(key: str, addresses: Sequence[Address]) -> None:
    for number, address in enumerate(addresses):
        if address in addresses[:number]:
            raise ConfigError(f"{key} has {address} twice; once is enough")


def wires(
    nics: Sequence[Nic], have: Mapping[str, Mapping[str, str]], instance: str
) -> tuple[Wire, ...]:
    """How `nics` are set up, where `have` are the network devices of the instance with the names of
    their interfaces, as far as known; ConfigError if they do not allow it."""
    found = [_wire(nic, have, instance) for nic in nics]
    all_claims = [claim for wire in found for claim in wire.claims()]
    for number, claim in enumerate(all_claims):
        if claim in all_claims[:number]:
            raise ConfigError(
                f"{claim.split()[0]} is the address of two NICs of {instance!r}; change one"
            )
    for one, other in permutations(found, 2):
        for host in one.nic.host_addresses:
            clash = f"{host} in {one.nic.key}.host_address of {instance!r}"
            taken = [own for own in other.nic.addresses if own.ip in host.network]
            if taken and other.network == one.network:
                raise ConfigError(
                    f"{clash} has {taken[0].ip} of {other.nic.key}.address in its network; "
                    "change one"
                )
            if not is_alone(host) and any(overlap(host, end) for end in other.nic.host_addresses):
                raise ConfigError(
                    f"{clash} overlaps with {other.nic.key}.host_address; leave out "
                    f"/{host.network.prefixlen} or take another network"
                )
    for version in (4, 6):
        ways = [wire.nic.key for wire in found if _has_default(wire.inside, version)]
        if len(ways) > 1:
            raise ConfigError(
                f"{' and '.join(f'{way}.gateway' for way in ways)} exclude each other; keep one "
                f"IPv{version} gateway"
            )
    return tuple(found)


def _wire(nic: Nic, have: Mapping[str, Mapping[str, str]], instance: str) -> Wire:
    if nic.device not in have:
        known = ", ".join(sorted(have)) or "none"
        raise ConfigError(
            f"{shown(nic.key)} names a NIC that {instance!r} does not have (it has {known}); add "
            f"it, as by 'incus config device add', or unset the key"
        )
    device = have[nic.device]
    p2p = device.get("nictype") == "p2p"
    if nic.host_addresses and not p2p:
        kind = device.get("nictype") or f"on the network {device.get('network')!r}"
        raise ConfigError(
            f"{nic.key}.host_address goes with a NIC of nictype=p2p, and {nic.device!r} of "
            f"{instance!r} is {kind}; unset one"
        )
    network = _P2P if p2p else device.get("network") or device.get("parent") or nic.device
    return Wire(
        nic=nic,
        name=device.get("name", ""),
        host_name=device.get("host_name", ""),
        network=network,
        inside=_inside(nic, alone=len(have) == 1),
        host=_host_end(nic) if p2p else None,
    )


def _inside(nic: Nic, *, alone: bool) -> End:
    """As NixOS' containers have it: the default route goes to the host's end of the wire, unless
    there is a gateway, or another NIC that may lead out."""
    versions = {interface.version for interface in nic.addresses}
    peers = [host.ip for host in nic.host_addresses if host.version in versions]
    gateways = list(nic.gateways)
    for version in sorted(versions - {gateway.version for gateway in gateways}):
        first = next((peer for peer in peers if peer.version == version), None)
        if alone and first is not None:
            gateways.append(first)
    near = dict.fromkeys([*peers, *gateways])
    routes = [Route(_alone(ip)) for ip in near if not _on_wire(ip, nic.addresses)]
    defaults = [
        Route(ip_network("0.0.0.0/0" if ip.version == 4 else "::/0"), ip) for ip in gateways
    ]
    return End(nic.addresses, (*routes, *defaults))


def _host_end(nic: Nic) -> End:
    ips = [interface.ip for interface in nic.addresses]
    far = [ip for ip in ips if not _on_wire(ip, nic.host_addresses)]
    return End(nic.host_addresses, tuple(Route(_alone(ip)) for ip in far))


def is_alone(interface: Interface) -> bool:
    """Whether it connects to no network."""
    return interface.network.prefixlen == interface.max_prefixlen


def overlap(one: Interface, other: Interface) -> bool:
    """Whether the networks that they connect to have an address in common."""
    return one.version == other.version and one.network.overlaps(other.network)


def _has_default(end: End, version: int) -> bool:
    return any(r.target.prefixlen == 0 and r.target.version == version for r in end.routes)


def _of_version(version: int, interfaces: Iterable[Interface]) -> bool:
    return any(interface.version == version for interface in interfaces)


def _on_wire(ip: Address, interfaces: Iterable[Interface]) -> bool:
    """Whether an address that one of `interfaces` has makes `ip` reachable."""
    return is_near(ip) or any(ip in i.network for i in interfaces)


def is_near(ip: Address) -> bool:
    """Every interface has such a network."""
    return ip.version == 6 and ip.is_link_local


def _alone(ip: Address) -> Network:
    return ip_network(f"{ip}/{ip.max_prefixlen}")
