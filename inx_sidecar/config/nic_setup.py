"""The addresses and routes of both ends of each NIC, as they follow from the `user.inx.net` keys.

Everything here is pure: the kernel gets what these functions say from container/network.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_network
from itertools import permutations
from typing import Final

from inx_sidecar.base.errors import ConfigError, quoted
from inx_sidecar.config.nic_keys import (
    Address,
    Interface,
    Network,
    Nic,
    is_link_local,
    is_single_host,
    networks_overlap,
)
from inx_sidecar.incus.api import is_true

# All p2p NICs count as NICs of one network of this name, since the host routes to all of them. No
# network of Incus can have this name.
_P2P: Final = "p2p/"


@dataclass(frozen=True)
class Route:
    """A route to `target` through the NIC; without `gateway`, the target is on the NIC's link."""

    target: Network
    gateway: Address | None = None


@dataclass(frozen=True)
class End:
    """What one end of the link gets, the NIC or its peer on the host. The routes are in an order in
    which they can be added."""

    addresses: tuple[Interface, ...]
    routes: tuple[Route, ...]


@dataclass(frozen=True)
class NicSetup:
    """A NIC of one instance as it will be set up.

    `name` is the name of the interface inside, `host_name` that of its peer on the host. `host` is
    None where inx does not set up the host's end.
    """

    nic: Nic
    name: str
    host_name: str
    network: str
    inside: End
    host: End | None

    def claims(self) -> tuple[str, ...]:
        """The instance's own addresses: "ADDRESS NETWORK" each."""
        return _on_network(self.network, self.nic.addresses)

    def shared_addresses(self) -> tuple[str, ...]:
        """The host's addresses on this link: several links may share them, but no instance may
        claim them."""
        return _on_network(self.network, self.nic.host_addresses)


def _on_network(network: str, interfaces: Iterable[Interface]) -> tuple[str, ...]:
    # Each link has link-local addresses of its own (RFC 4291, 2.5.6).
    return tuple(f"{i.ip} {network}" for i in interfaces if not is_link_local(i.ip))


def claims(setups: Iterable[NicSetup]) -> frozenset[str]:
    """The addresses of an instance, each with its network: no two instances may share one."""
    return frozenset(claim for setup in setups for claim in setup.claims())


def excluded_claims(setups: Sequence[NicSetup]) -> frozenset[str]:
    """What no other instance may claim while an instance with `setups` runs."""
    return claims(setups) | {address for setup in setups for address in setup.shared_addresses()}


def plan_nic_setups(
    nics: Sequence[Nic], devices: Mapping[str, Mapping[str, str]], instance: str
) -> tuple[NicSetup, ...]:
    """How `nics` of `instance` are set up.

    `devices` are the network devices of the instance, with the names of their interfaces as far as
    they are known. ConfigError if the devices do not allow what `nics` ask for. A device that is
    not attached has no interface, so nothing is set up for it.
    """
    attached = {name: device for name, device in devices.items() if _is_attached(device)}
    there = [nic for nic in nics if nic.device in attached or nic.device not in devices]
    setups = [_plan_nic_setup(nic, attached, instance) for nic in there]
    _refuse_duplicate_claims(setups, instance)
    for one, other in permutations(setups, 2):
        _refuse_overlap(one, other, instance)
    _refuse_two_defaults(setups)
    return tuple(setups)


def _is_attached(device: Mapping[str, str]) -> bool:
    """Incus 7 has the key `attached` (incus internal/server/device/nic.go); the default is true."""
    return is_true(device.get("attached") or "true")


def _refuse_duplicate_claims(setups: Sequence[NicSetup], instance: str) -> None:
    all_claims = [claim for setup in setups for claim in setup.claims()]
    for number, claim in enumerate(all_claims):
        if claim in all_claims[:number]:
            raise ConfigError(
                f"{claim.split()[0]} is the address of two NICs of {instance!r}; change one"
            )


def _refuse_overlap(one: NicSetup, other: NicSetup, instance: str) -> None:
    """ConfigError if a host address of `one` would take over what is on `other`."""
    for host in one.nic.host_addresses:
        subject = f"{host} in {one.nic.key}.host_address of {instance!r}"
        covered = [own for own in other.nic.addresses if own.ip in host.network]
        if covered and other.network == one.network:
            raise ConfigError(
                f"{subject} has {covered[0].ip} of {other.nic.key}.address in its network; "
                "change one"
            )
        overlapping = any(networks_overlap(host, end) for end in other.nic.host_addresses)
        if not is_single_host(host) and overlapping:
            raise ConfigError(
                f"{subject} overlaps with {other.nic.key}.host_address; leave out "
                f"/{host.network.prefixlen} or take another network"
            )


def _refuse_two_defaults(setups: Sequence[NicSetup]) -> None:
    for version in (4, 6):
        keys = [setup.nic.key for setup in setups if _has_default_route(setup.inside, version)]
        if len(keys) > 1:
            raise ConfigError(
                f"{' and '.join(f'{key}.gateway' for key in keys)} exclude each other; keep one "
                f"IPv{version} gateway"
            )


def _plan_nic_setup(nic: Nic, devices: Mapping[str, Mapping[str, str]], instance: str) -> NicSetup:
    if nic.device not in devices:
        known = ", ".join(sorted(devices)) or "none"
        raise ConfigError(
            f"{quoted(nic.key)} names a NIC that {instance!r} does not have (it has {known}); add "
            f"it, as by 'incus config device add', or unset the key"
        )
    device = devices[nic.device]
    p2p = device.get("nictype") == "p2p"
    if nic.host_addresses and not p2p:
        kind = device.get("nictype") or f"on the network {device.get('network')!r}"
        raise ConfigError(
            f"{nic.key}.host_address goes with a NIC of nictype=p2p, and {nic.device!r} of "
            f"{instance!r} is {kind}; unset one"
        )
    network = _P2P if p2p else device.get("network") or device.get("parent") or nic.device
    return NicSetup(
        nic=nic,
        name=device.get("name", ""),
        host_name=device.get("host_name", ""),
        network=network,
        inside=_plan_inside(nic, only_nic=len(devices) == 1),
        host=_plan_host(nic) if p2p else None,
    )


def _plan_inside(nic: Nic, *, only_nic: bool) -> End:
    """The container's end.

    The default route goes to the gateway. Without one it goes to the host's end of the setup, as in
    NixOS' containers, unless there is another NIC, which may have a default route of its own.
    """
    versions = {interface.version for interface in nic.addresses}
    peers = [host.ip for host in nic.host_addresses if host.version in versions]
    gateways = list(nic.gateways)
    for version in sorted(versions - {gateway.version for gateway in gateways}):
        first = next((peer for peer in peers if peer.version == version), None)
        if only_nic and first is not None:
            gateways.append(first)
    neighbours = dict.fromkeys([*peers, *gateways])
    routes = [Route(_host_network(ip)) for ip in neighbours if not _on_link(ip, nic.addresses)]
    defaults = [
        Route(ip_network("0.0.0.0/0" if ip.version == 4 else "::/0"), ip) for ip in gateways
    ]
    return End(nic.addresses, (*routes, *defaults))


def _plan_host(nic: Nic) -> End:
    ips = [interface.ip for interface in nic.addresses]
    routes = [Route(_host_network(ip)) for ip in ips if not _on_link(ip, nic.host_addresses)]
    return End(nic.host_addresses, tuple(routes))


def _has_default_route(end: End, version: int) -> bool:
    return any(r.target.prefixlen == 0 and r.target.version == version for r in end.routes)


def _on_link(ip: Address, interfaces: Iterable[Interface]) -> bool:
    """Whether an end with the addresses `interfaces` reaches `ip` without a route of its own."""
    return is_link_local(ip) or any(ip in i.network for i in interfaces)


def _host_network(ip: Address) -> Network:
    """The network that is `ip` alone."""
    return ip_network(f"{ip}/{ip.max_prefixlen}")
