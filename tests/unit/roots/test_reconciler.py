"""When everything is compared: after what happens, without waiting for the next period."""

import asyncio
from dataclasses import dataclass, field

import pytest

from inx_sidecar.base.errors import InstanceError, RootError
from inx_sidecar.incus.status import StatusWriter
from inx_sidecar.nix.daemon import NixDaemon
from inx_sidecar.nix.gc_client import GcClient
from inx_sidecar.roots.reconciler import RootReconciler

pytestmark = pytest.mark.gc


@dataclass
class Resolver:
    incomplete: bool = False


@dataclass
class Registering:
    """A mirror to which a registration is added, which ends with `error`, if any."""

    room: bool = False
    unanswered: bool = False
    resolver: Resolver = field(default_factory=Resolver)
    error: Exception | None = None
    lxc_name: str = "web"
    uuid: str = "11111111-2222-3333-4444-555555555555"

    def may_gain_room(self) -> bool:
        return self.room

    async def add_registered(self, names: set[str]) -> None:
        self.resolver.incomplete |= self.unanswered
        if self.error is not None:
            raise self.error


def compares_after(mirror: Registering) -> bool:
    """Whether a comparison is due after a registration."""

    async def forget(uuid: str) -> None:
        raise AssertionError(uuid)

    async def settle() -> None:
        raise AssertionError("no collection waits")

    async def main() -> bool:
        reconciler = RootReconciler(GcClient(), StatusWriter(), forget, NixDaemon, settle)
        await reconciler._add_registered(mirror, {"name"}, False)  # type: ignore[arg-type]
        return reconciler._turns._wake.is_set()

    return asyncio.run(main())


def test_a_registration_that_was_rooted_needs_no_comparison() -> None:
    assert not compares_after(Registering())


def test_a_registration_on_a_file_system_that_does_not_answer_is_looked_at_again() -> None:
    """Without another event, the next comparison would be ten minutes away."""
    assert compares_after(Registering(unanswered=True))


def test_an_instance_that_keeps_registering_there_causes_no_further_comparisons() -> None:
    """After a comparison that was incomplete, the next one follows by itself in five seconds."""
    assert not compares_after(Registering(unanswered=True, resolver=Resolver(incomplete=True)))


def test_links_that_are_gone_are_looked_for_near_the_limit() -> None:
    assert compares_after(Registering(room=True))


def test_a_registration_that_could_not_be_rooted_is_tried_again() -> None:
    assert compares_after(Registering(error=RootError("no room")))


def test_a_container_that_ended_is_left_to_its_stop_hook() -> None:
    assert not compares_after(Registering(error=InstanceError("it ended")))
