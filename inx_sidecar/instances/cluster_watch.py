"""What the members of a cluster tell each other: who has inx, and which static addresses are taken.

No hook asks Incus: a start reads what was known before it. So two starts at the same moment may
take one address; both instances then say so in their status.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from inx_sidecar.base.errors import NetworkError
from inx_sidecar.incus import api as incus
from inx_sidecar.incus import last_known, member_addresses, members
from inx_sidecar.incus.instance import Instance
from inx_sidecar.incus.member_addresses import Claim
from inx_sidecar.incus.running_record import Running
from inx_sidecar.incus.status import StatusWriter
from inx_sidecar.instances.placement import Placement
from inx_sidecar.instances.retries import Pace

# An address that an instance let go is soon free on the other members.
_LONGEST_PAUSE_SECONDS: Final = 2.0
_FIRST_RETRY_SECONDS: Final = 1.0
_LAST_RETRY_SECONDS: Final = 60.0
_NOT_FOUND: Final = 404
# The subject of notes in the status.
_ADDRESSES: Final = "addresses"
# Members lose events of each other without notice, as after a time without a network.
_PERIOD_SECONDS: Final = 30.0
# In place of the name of a member: look at all of them, or at all that is looked at.
MEMBERS: Final = "*"
EVERYTHING: Final = ""

# By address and network.
Taken = Mapping[tuple[str, str], Sequence[tuple[str, Claim]]]

log = logging.getLogger(__name__)


class ClusterWatch:
    """`addresses` gives the static addresses of the instances that run here, by uuid: "ADDRESS
    NETWORK" each."""

    def __init__(
        self, statuses: StatusWriter, addresses: Callable[[], Mapping[str, Iterable[str]]]
    ) -> None:
        self._statuses = statuses
        self._addresses = addresses
        self.placement = Placement()
        self._member = ""
        self._others: dict[str, tuple[Claim, ...]] = {}
        self._taken: Taken = {}
        # By project and name: see `member_addresses.is_shared`.
        self._networks: dict[tuple[str, str], bool | None] = {}
        self._due: set[str] = set()
        self._wake = asyncio.Event()

    def look_soon(self, what: str) -> None:
        """Look at what a member tells, or at MEMBERS or EVERYTHING."""
        self._due.add(what)
        self._wake.set()

    def networks_changed(self) -> None:
        self._networks.clear()
        self.addresses_taken()

    def addresses_taken(self) -> None:
        """An instance with static addresses runs here now."""
        if self._member:
            self.look_soon(self._member)

    def addresses_free(self, instance: Instance) -> None:
        """`instance`, which has static addresses, does not run any more."""
        if self._member:
            self._statuses.set_note(instance, _ADDRESSES, "")
            self.look_soon(self._member)

    async def keep_looking(self) -> None:
        """Look after each change, and at members now and then, until cancelled."""
        loop, pace, retry = asyncio.get_running_loop(), Pace(_LONGEST_PAUSE_SECONDS), 0.0
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_PERIOD_SECONDS if self._member else None):
                    await self._wake.wait()
            if not self._wake.is_set():
                self._due.add(MEMBERS)
            await asyncio.sleep(pace.next_pause(loop.time()))
            self._wake.clear()
            due, self._due = self._due, set()
            try:
                await self._look(due)
                retry = 0.0
            except incus.IncusError as error:
                log.debug("%s", error)
                retry = min(max(retry * 2, _FIRST_RETRY_SECONDS), _LAST_RETRY_SECONDS)
                # Not the member that an event was about: it may have been removed.
                self._due.add(EVERYTHING if EVERYTHING in due else MEMBERS)
                loop.call_later(retry, self._wake.set)
            except Exception:
                log.exception("looking at the members of the cluster ended in a bug")

    def refuse_taken(self, instance: Instance, wanted: Iterable[str]) -> None:
        """NetworkError if an instance of another member claims one of `wanted` on a network that
        all members have."""
        for address, network in sorted(claim.split(maxsplit=1) for claim in wanted):
            claim = Claim(
                address, network, instance.project, instance.lxc_name, instance.uuid, shared=True
            )
            for member, other in conflicts(claim, self._taken):
                if other.shared and other.project == instance.project:
                    raise NetworkError(
                        f"{address} of {instance.lxc_name!r} is a static address of "
                        f"{other.instance!r} on the member {member!r}, which runs; change one of "
                        "the two"
                    )

    async def _look(self, due: set[str]) -> None:
        everything = EVERYTHING in due
        if everything:
            self._networks.clear()
            self._member = await members.this_member()
        if not self._member:
            self._others, self._taken = {}, {}
            return
        if everything or MEMBERS in due:
            listed = await incus.list_members()
            self._others = {}
            for described in listed:
                self._read(described)
            await self.placement.look_at_members(self._member, listed, everything=everything)
        else:
            for member in due - {self._member}:
                self._read(await incus.get_member(member))
        self._taken = by_address(self._others)
        own = await self._own_claims()
        if due & {EVERYTHING, MEMBERS, self._member}:
            told = {member_addresses.KEY: member_addresses.encode(own)}
            await members.announce(self._member, told)
        self._show_conflicts(own)

    def _read(self, described: Mapping[str, Any]) -> None:
        name = str(described["server_name"])
        told = (described.get("config") or {}).get(member_addresses.KEY, "")
        if name != self._member:
            self._others[name] = member_addresses.decode(told)

    async def _own_claims(self) -> list[Claim]:
        found = []
        for uuid, addresses in self._addresses().items():
            running = Running.load(uuid)
            if running is None:
                continue
            instance = last_known.from_record(uuid, running)
            for address, network in (each.split(maxsplit=1) for each in addresses):
                shared = await self._is_shared(instance.project, network)
                if shared is not None:
                    names = instance.project, instance.lxc_name, uuid
                    found.append(Claim(address, network, *names, shared))
        return found

    async def _is_shared(self, project: str, network: str) -> bool | None:
        if "/" in network:  # the host routes to NICs of the type p2p; no network has such a name
            return None
        key = project, network
        if key not in self._networks:
            try:
                described = await incus.get_network(project, network, self._member)
            except incus.IncusError as error:
                if error.code != _NOT_FOUND:
                    raise
                described = {}
            self._networks[key] = member_addresses.is_shared(described)
        return self._networks[key]

    def _show_conflicts(self, own: Iterable[Claim]) -> None:
        texts: dict[str, str] = dict.fromkeys(self._addresses(), "")
        for claim in own:
            for member, other in conflicts(claim, self._taken):
                texts[claim.uuid] = texts.get(claim.uuid) or conflict_text(claim, member, other)
        for uuid, text in texts.items():
            running = Running.load(uuid)
            if running is not None:
                instance = last_known.from_record(uuid, running)
                self._statuses.set_note(instance, _ADDRESSES, text)


def by_address(others: Mapping[str, Iterable[Claim]]) -> Taken:
    """The claims that members tell, each with its member: a start finds one among thousands."""
    taken: dict[tuple[str, str], list[tuple[str, Claim]]] = {}
    for member, claims in sorted(others.items()):
        for claim in claims:
            taken.setdefault((claim.address, claim.network), []).append((member, claim))
    return taken


def conflicts(claim: Claim, taken: Taken) -> list[tuple[str, Claim]]:
    """The claims of another instance to the address of `claim`, with the members that tell them.

    An instance that was moved from a member that is away may be told by that member, too.
    """
    found = taken.get((claim.address, claim.network), ())
    return [(member, other) for member, other in found if other.uuid != claim.uuid]


def conflict_text(claim: Claim, member: str, other: Claim) -> str:
    """What the status of an instance says that runs with an address of another member's."""
    sure = claim.shared and other.shared and claim.project == other.project
    condition = "" if sure else f" if {claim.network} is one network on both members"
    return (
        f"{claim.address} is a static address of {other.instance!r} on the member {member!r}, too; "
        f"change one of the two{condition}"
    )
