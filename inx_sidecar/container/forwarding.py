"""Find out whether Docker drops what containers send to other networks.

Docker sets the policy of the chain FORWARD to drop, and accepts what its own bridges forward
(Docker's documentation, "Packet filtering and firewalls"). A drop in one chain of the hook forward
is final, so rules of Incus change nothing.
"""

import re
from collections.abc import Iterable
from typing import Final

from inx_sidecar.base.errors import UnsupportedError
from inx_sidecar.base.process import run

_CHAIN: Final = re.compile(r"chain (\S+) \{")
_JUMP: Final = re.compile(r"\b(?:jump|goto) (\S+)$")
# A rule for all packets.
_ACCEPT_ALL: Final = re.compile(r"(counter( packets \d+ bytes \d+)? )?accept")
_OF_DOCKER: Final = "DOCKER-USER"


async def bridges_dropped_by_docker(bridges: Iterable[str]) -> list[str]:
    """Those of `bridges` whose packets Docker drops; [] also if that cannot be known."""
    lines: list[str] = []
    try:
        done = await run(["nft", "list", "table", "ip", "filter"], on_line=lines.append)
    except UnsupportedError:
        return []
    return dropped_bridges(lines, bridges) if done.status == 0 else []


def dropped_bridges(lines: Iterable[str], bridges: Iterable[str]) -> list[str]:
    """Those of `bridges` that nothing accepts in a table whose policy is Docker's.

    `lines` are the table as nft prints it. A table with chains that others have made for packets
    that are forwarded may accept them there: then no bridge is known to be dropped.
    """
    chains: dict[str, list[str]] = {}
    rules: list[str] = []
    for line in map(str.strip, lines):
        if match := _CHAIN.fullmatch(line):
            rules = chains.setdefault(match[1], [])
        else:
            rules.append(line)
    forward, own = chains.get("FORWARD", []), chains.get(_OF_DOCKER)
    policy = any("hook forward" in rule and "policy drop" in rule for rule in forward)
    if not policy or own is None:
        return []
    jumps = [match[1] for rule in forward if (match := _JUMP.search(rule))]
    if not all(chain.startswith("DOCKER") for chain in jumps):
        return []
    accepts = [rule for rule in (*forward, *own) if "accept" in rule.split()]
    if any(_ACCEPT_ALL.fullmatch(rule) for rule in accepts):
        return []
    own_jumps = any(_JUMP.search(rule) for rule in own)
    return [] if own_jumps else [b for b in bridges if not any(f'"{b}"' in r for r in accepts)]
