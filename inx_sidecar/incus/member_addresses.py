"""The static addresses of running instances, as each member of a cluster tells them to the others.

The configuration of the member has them, in the key KEY. Incus keeps it while the member is away.
Every member may have another version of inx, so what is not understood is left out.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

KEY: Final = "user.inx.addresses"
# So many addresses of a member are told; others have to read them at each change.
_MOST: Final = 1000
# Keys of a managed bridge that join it to other networks (doc/reference/network_bridge.md).
_JOINED: Final = ("bridge.external_interfaces", "tunnel.")


@dataclass(frozen=True, order=True)
class Claim:
    """`address` on `network` belongs to an instance that runs.

    `shared`: all members have this network; else it is not known whether they do.
    """

    address: str
    network: str
    project: str
    instance: str
    uuid: str
    shared: bool


def encode(claims: Iterable[Claim]) -> str:
    """The value of KEY; "" for no claims."""
    told = sorted(claims)[:_MOST]
    return json.dumps([asdict(claim) for claim in told]) if told else ""


def decode(text: str) -> tuple[Claim, ...]:
    """The claims in a value of KEY, as far as they are understood."""
    try:
        entries = json.loads(text) if text else []
    except ValueError:
        return ()
    claims = (_decode_one(entry) for entry in entries) if isinstance(entries, list) else ()
    return tuple(claim for claim in claims if claim is not None)


def _decode_one(entry: object) -> Claim | None:
    if not isinstance(entry, dict):
        return None
    names = ("address", "network", "project", "instance", "uuid")
    texts = {name: entry.get(name) for name in names}
    if not all(isinstance(text, str) for text in texts.values()):
        return None
    return Claim(
        **{name: str(text) for name, text in texts.items()}, shared=entry.get("shared") is True
    )


def is_shared(network: Mapping[str, Any]) -> bool | None:
    """Whether all members have the network that Incus describes, so that an address exists once.

    None: each member has one of its own. False: it is not known, as for a bridge of the host, which
    may lead to a network of the site.
    """
    if not network.get("managed"):
        return False
    if network.get("type") != "bridge":
        return True
    joined = any(key.startswith(_JOINED) for key, value in network["config"].items() if value)
    return False if joined else None
