"""`user.inx.net.NIC.*` keys: their text becomes the addresses of a Nic, or is refused.

NIC is the name of the network device in Incus.
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
)
from typing import Final

from inx_sidecar.base.errors import ConfigError, not_allowed

Address = IPv4Address | IPv6Address
Interface = IPv4Interface | IPv6Interface
Network = IPv4Network | IPv6Network

NIC_KEY: Final = re.compile(r"user\.inx\.net\.(.+)\.(address|host_address|gateway)", re.DOTALL)
_MAX_ADDRESSES: Final = 64


@dataclass(frozen=True)
class Nic:
    """What the keys of one network device ask for."""

    device: str
    addresses: tuple[Interface, ...] = ()
    host_addresses: tuple[Interface, ...] = ()
    gateways: tuple[Address, ...] = ()

    @property
    def key(self) -> str:
        """The part that the keys of this device have in common."""
        return f"user.inx.net.{self.device}"


def parse_nics(given: Mapping[str, str]) -> tuple[Nic, ...]:
    """The NICs that keys of an instance's configuration name, in order.

    ConfigError if a value is not allowed.
    """
    values_by_device: dict[str, dict[str, str]] = {}
    for key, value in sorted(given.items()):
        match = NIC_KEY.fullmatch(key)
        if match:
            values_by_device.setdefault(match[1], {})[match[2]] = value
    return tuple(_parse_nic(device, values) for device, values in values_by_device.items())


def _parse_nic(device: str, values: Mapping[str, str]) -> Nic:
    def interfaces(name: str) -> tuple[Interface, ...]:
        key = f"user.inx.net.{device}.{name}"
        return _parse_interfaces(key, values[name]) if name in values else ()

    nic = Nic(
        device,
        interfaces("address"),
        interfaces("host_address"),
        _parse_gateways(f"user.inx.net.{device}.gateway", values["gateway"])
        if "gateway" in values
        else (),
    )
    for gateway in nic.gateways:
        if not _has_version(nic.addresses, gateway.version):
            raise ConfigError(
                f"{nic.key}.gateway is {gateway}, but {nic.key}.address has no "
                f"IPv{gateway.version} address; add one"
            )
    own = {interface.ip for interface in nic.addresses}
    for other in (*(interface.ip for interface in nic.host_addresses), *nic.gateways):
        if other in own:
            raise ConfigError(f"{other} in {nic.key}.address is also the other end; change one")
    return nic


def _parse_interfaces(key: str, value: str) -> tuple[Interface, ...]:
    interfaces = [_parse_interface(key, value, word) for word in _split(key, value)]
    _refuse_duplicates(key, [interface.ip for interface in interfaces])
    return tuple(interfaces)


def _parse_interface(key: str, value: str, word: str) -> Interface:
    allowed = "addresses such as 192.0.2.2/24 or 2001:db8::2/64, with commas between"
    address, _, bits = word.partition("/")
    # ip_interface also takes netmasks and IPv6 zones, which are not documented for these keys.
    if (bits and not bits.isdecimal()) or "%" in address or word.endswith("/"):
        raise not_allowed(key, value, allowed)
    try:
        interface = ip_interface(word)
    except ValueError:
        raise not_allowed(key, value, allowed) from None
    ip, network = interface.ip, interface.network
    if not _is_host_address(ip):
        raise not_allowed(key, value, f"addresses of one host each, and {ip} is none")
    if network.prefixlen == 0:
        raise not_allowed(key, value, f"{allowed}; /0 would be everything")
    # In networks of one or two addresses every address is a host's (RFC 3021, RFC 6164).
    small = network.prefixlen >= network.max_prefixlen - 1
    broadcast = ip.version == 4 and ip == network.broadcast_address
    if not small and (ip == network.network_address or broadcast):
        raise not_allowed(
            key, value, f"addresses of one host each, and {word} is that of a network"
        )
    return interface


def _parse_gateways(key: str, value: str) -> tuple[Address, ...]:
    allowed = "an address such as 192.0.2.1, or an IPv4 and an IPv6 one with a comma between"
    try:
        gateways = [ip_address(word) for word in _split(key, value)]
    except ValueError:
        raise not_allowed(key, value, allowed) from None
    versions = [gateway.version for gateway in gateways]
    if len(set(versions)) < len(versions) or "%" in value:
        raise not_allowed(key, value, allowed)
    for gateway in gateways:
        if not _is_host_address(gateway):
            raise not_allowed(key, value, f"the address of a router, and {gateway} is none")
    return tuple(gateways)


def _is_host_address(ip: Address) -> bool:
    """Whether one host on a network can have this address."""
    reserved = ip.is_reserved if ip.version == 4 else ip.ipv4_mapped is not None
    return not (ip.is_unspecified or ip.is_multicast or ip.is_loopback or reserved)


def _split(key: str, value: str) -> list[str]:
    words = [word.strip() for word in value.split(",")]
    if len(words) > _MAX_ADDRESSES:
        raise ConfigError(f"{key} has {len(words)} addresses; at most {_MAX_ADDRESSES} are allowed")
    return words


def _refuse_duplicates(key: str, addresses: Sequence[Address]) -> None:
    for number, address in enumerate(addresses):
        if address in addresses[:number]:
            raise ConfigError(f"{key} has {address} twice; once is enough")


def _has_version(interfaces: Iterable[Interface], version: int) -> bool:
    return any(interface.version == version for interface in interfaces)


def is_single_host(interface: Interface) -> bool:
    """Whether the interface's network is its own address alone (/32 or /128)."""
    return interface.network.prefixlen == interface.max_prefixlen


def is_link_local(ip: Address) -> bool:
    """Whether `ip` is in fe80::/10, a network that every interface has (RFC 4291, 2.8)."""
    return ip.version == 6 and ip.is_link_local


def networks_overlap(one: Interface, other: Interface) -> bool:
    """Whether the networks of two interfaces have an address in common."""
    return one.version == other.version and one.network.overlaps(other.network)
