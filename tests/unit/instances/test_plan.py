"""The plan of a start, for every state of the generations, the store and the spec."""

from collections.abc import Set
from dataclasses import replace

import pytest

from inx_sidecar.base.errors import SystemMissingError
from inx_sidecar.config.sources import Flake, System
from inx_sidecar.config.spec import InstanceSpec
from inx_sidecar.instances.plan import Boot, Build, Plan, boot_fallback, choose_plan
from inx_sidecar.nix.generation_changes import Append, Select
from inx_sidecar.nix.generations import Generations

pytestmark = pytest.mark.main


def store(name: str) -> str:
    return f"/nix/store/{'0' * 32}-{name}"


ONE, TWO, THREE, LINKED = map(store, ("one", "two", "three", "led"))
FLAKE = InstanceSpec(Flake("/etc/nixos", "web", attr_given=False))
OTHER = InstanceSpec(Flake("/etc/other", "web", attr_given=False))
LINK = InstanceSpec(System("/srv/result"))
ALL = {ONE, TWO, THREE, LINKED}


def three(
    spec: InstanceSpec = FLAKE, current: int | None = 3, *, pinned: bool = False
) -> Generations:
    """Generations 1 to 3, built last from the source of `spec`."""
    links = {1: ONE, 2: TWO, 3: THREE}
    return Generations(links, current, spec.fingerprint(LINKED), pinned)


def plan(
    spec: InstanceSpec,
    present: Generations,
    valid: Set[str] = ALL,
    leads_to: str = LINKED,
    *,
    keep: bool = False,
    tried: str | None = None,
) -> Plan:
    def resolve(path: str, instance: str) -> str:
        assert (path, instance) == ("/srv/result", "web")
        return leads_to

    return choose_plan(
        spec, present, "web", lambda paths: paths & valid, resolve, keep_current=keep, tried=tried
    )


def pinned_to(number: int) -> InstanceSpec:
    return InstanceSpec(FLAKE.source, generation=number)


def test_the_first_start_builds() -> None:
    assert plan(FLAKE, Generations()) == Build(FLAKE.fingerprint())


def test_an_unchanged_source_boots_the_current_generation_and_writes_nothing() -> None:
    assert plan(FLAKE, three()) == Boot(THREE)


def test_a_changed_source_is_built_and_falls_back_to_the_current_generation() -> None:
    wanted = Build(OTHER.fingerprint(), fallback=Select(3, pinned=False))
    assert plan(OTHER, three()) == wanted


def test_a_changed_source_falls_back_to_the_newest_generation_in_the_store() -> None:
    wanted = Build(OTHER.fingerprint(), fallback=Select(1, pinned=False))
    assert plan(OTHER, three(), valid={ONE}) == wanted


def test_a_changed_source_without_any_generation_has_no_fallback() -> None:
    assert plan(OTHER, three(), valid=set()) == Build(OTHER.fingerprint())


def test_a_new_update_value_builds_the_same_source_again() -> None:
    again = InstanceSpec(FLAKE.source, update="again")
    wanted = Build(again.fingerprint(), fallback=Select(3, pinned=False))
    assert plan(again, three()) == wanted
    assert plan(again, three(again)) == Boot(THREE)


def test_a_system_that_was_collected_is_fetched_before_it_is_built() -> None:
    wanted = Build(FLAKE.fingerprint(), missing=THREE, fallback=Select(2, pinned=False))
    assert plan(FLAKE, three(), valid={ONE, TWO}) == wanted


def test_without_a_current_generation_the_source_is_built() -> None:
    wanted = Build(FLAKE.fingerprint(), fallback=Select(3, pinned=False))
    assert plan(FLAKE, three(current=None)) == wanted


def test_a_switch_inside_the_container_is_kept() -> None:
    """nixos-rebuild inside wrote generation 3. The source that gave generation 2 is unchanged."""
    assert plan(FLAKE, three(current=3)) == Boot(THREE)


def test_a_rollback_inside_the_container_is_kept() -> None:
    assert plan(FLAKE, three(current=1)) == Boot(ONE)


def test_a_changed_source_after_a_rollback_falls_back_to_the_current_generation() -> None:
    wanted = Build(OTHER.fingerprint(), fallback=Select(1, pinned=False))
    assert plan(OTHER, three(current=1)) == wanted


def test_a_system_is_linked_and_not_built() -> None:
    change = Append(LINKED, LINK.fingerprint(LINKED), 5)
    assert plan(LINK, Generations()) == Boot(LINKED, change)
    assert plan(LINK, three()) == Boot(LINKED, change, fallback=Select(3, pinned=False))


def test_a_link_is_followed_at_every_start() -> None:
    present = Generations({1: LINKED}, 1, LINK.fingerprint(LINKED))
    assert plan(LINK, present) == Boot(LINKED)
    change = Append(TWO, LINK.fingerprint(TWO), 5)
    wanted = Boot(TWO, change, fallback=Select(1, pinned=False))
    assert plan(LINK, present, leads_to=TWO) == wanted


def test_a_generation_that_is_there_is_booted_if_the_new_one_cannot_be_written() -> None:
    present = Generations({1: ONE, 2: LINKED}, 1, "another source")
    boot = Boot(TWO, Append(TWO, "", 5), fallback=Select(1, pinned=False))
    assert boot_fallback(boot, present, "no space") == Boot(ONE, None, "no space")
    other = Boot(TWO, Append(TWO, "", 5), fallback=Select(2, pinned=False))
    wanted = Boot(LINKED, Select(2, pinned=False), "no space")
    assert boot_fallback(other, present, "no space") == wanted
    assert boot_fallback(Boot(TWO, Append(TWO, "", 5)), present, "no space") is None
    assert boot_fallback(Boot(ONE, Select(1, pinned=True)), present, "no space") is None


def test_a_link_with_the_same_target_keeps_a_rollback() -> None:
    present = Generations({1: ONE, 2: LINKED}, 1, LINK.fingerprint(LINKED))
    assert plan(LINK, present) == Boot(ONE)


def test_a_system_that_is_not_in_the_store_is_fetched() -> None:
    assert plan(LINK, Generations(), valid=set()) == Build(LINK.fingerprint(LINKED), missing=LINKED)
    wanted = Build(LINK.fingerprint(LINKED), missing=LINKED, fallback=Select(3, pinned=False))
    assert plan(LINK, three(), valid={THREE}) == wanted


def test_a_linked_system_that_was_collected_is_linked_anew_or_fetched() -> None:
    present = Generations({1: ONE}, 1, LINK.fingerprint(LINKED))
    assert plan(LINK, present, valid={LINKED}) == Boot(
        LINKED, Append(LINKED, LINK.fingerprint(LINKED), 5)
    )
    assert plan(LINK, present, valid=set()) == Build(LINK.fingerprint(LINKED), missing=LINKED)


def test_a_broken_link_boots_the_current_generation_and_gives_the_reason() -> None:
    def fail(_path: str, _instance: str) -> str:
        raise SystemMissingError("no such link")

    def decided(present: Generations) -> Plan:
        return choose_plan(LINK, present, "web", lambda paths: paths, fail)

    assert decided(three()) == Boot(THREE, fallback_reason="no such link")
    with pytest.raises(SystemMissingError, match="no such link"):
        decided(Generations())


def test_a_pinned_generation_is_selected_once() -> None:
    assert plan(pinned_to(1), three()) == Boot(ONE, Select(1, pinned=True))
    assert plan(pinned_to(1), three(current=1, pinned=True)) == Boot(ONE)


def test_pinning_the_current_generation_is_recorded() -> None:
    assert plan(pinned_to(3), three()) == Boot(THREE, Select(3, pinned=True))


def test_another_pin_replaces_the_first() -> None:
    wanted = Boot(TWO, Select(2, pinned=True))
    assert plan(pinned_to(2), three(current=1, pinned=True)) == wanted


def test_a_pinned_generation_boots_with_any_source() -> None:
    changed = InstanceSpec(OTHER.source, generation=2)
    assert plan(changed, three()) == Boot(TWO, Select(2, pinned=True))


def test_a_pinned_generation_that_does_not_exist_is_an_error_that_lists_the_generations() -> None:
    with pytest.raises(SystemMissingError, match=r"generation is 7, but 'web'.*\(it has 1, 2, 3\)"):
        plan(pinned_to(7), three())
    with pytest.raises(SystemMissingError, match=r"\(it has none\)"):
        plan(pinned_to(1), Generations())


def test_a_pinned_generation_that_is_missing_is_fetched_and_never_built() -> None:
    wanted = Build("", missing=ONE, choice=Select(1, pinned=True))
    assert plan(pinned_to(1), three(), valid={TWO, THREE}) == wanted


def test_a_released_pin_boots_the_newest_generation() -> None:
    assert plan(FLAKE, three(current=1, pinned=True)) == Boot(THREE, Select(3, pinned=False))


def test_a_pin_of_the_newest_generation_is_released() -> None:
    assert plan(FLAKE, three(current=3, pinned=True)) == Boot(THREE, Select(3, pinned=False))


def test_a_pin_released_together_with_a_new_source_falls_back_to_the_newest() -> None:
    wanted = Build(OTHER.fingerprint(), fallback=Select(3, pinned=False))
    assert plan(OTHER, three(current=1, pinned=True)) == wanted


def test_a_plan_describes_its_action() -> None:
    assert Boot(ONE).describe() == f"boot {ONE}"
    assert Build("f").describe() == "build"
    assert Build("f", missing=ONE).describe() == f"fetch {ONE}"


@pytest.mark.life
@pytest.mark.parametrize("spec", [OTHER, LINK], ids=["flake", "system"])
def test_a_current_generation_is_kept_while_a_source_is_on_trial(spec: InstanceSpec) -> None:
    assert plan(spec, three(), keep=True) == Boot(THREE)


@pytest.mark.life
def test_without_a_current_generation_a_source_on_trial_is_built_and_kept() -> None:
    assert plan(OTHER, Generations(), keep=True) == Build(OTHER.fingerprint())
    assert isinstance(plan(OTHER, three(), valid={ONE}, keep=True), Build)


@pytest.mark.life
@pytest.mark.parametrize("mode", ["build", "dry-activate"])
@pytest.mark.parametrize("spec", [OTHER, LINK, pinned_to(1)], ids=["flake", "system", "pinned"])
def test_a_start_boots_what_is_current_while_systems_are_only_tried(
    spec: InstanceSpec, mode: str
) -> None:
    spec = replace(spec, activate=mode)
    for pinned in (False, True):
        present = three(current=2, pinned=pinned)
        assert plan(spec, present, keep=True) == Boot(TWO)
        assert plan(spec, present, keep=True, tried=THREE) == Boot(TWO)
    assert plan(replace(OTHER, activate=mode), Generations(), keep=True) == Build(
        OTHER.fingerprint()
    )


@pytest.mark.life
def test_a_system_that_was_tried_is_taken_and_not_built() -> None:
    back = Select(3, pinned=False)
    wanted = Boot(TWO, Append(TWO, OTHER.fingerprint(), 5), fallback=back)
    assert plan(OTHER, three(), tried=TWO) == wanted
    assert plan(OTHER, three(), valid={THREE}, tried=TWO) == Build(
        OTHER.fingerprint(), fallback=back
    )
    # Also if a link leads elsewhere by now.
    wanted = Boot(TWO, Append(TWO, LINK.fingerprint(TWO), 5), fallback=back)
    assert plan(LINK, three(), leads_to=ONE, tried=TWO) == wanted
    assert plan(FLAKE, three(), tried=TWO) == Boot(THREE), "that is what the source gave"
    assert plan(pinned_to(1), three(), tried=TWO) == Boot(ONE, Select(1, pinned=True))


@pytest.mark.life
def test_a_wish_is_what_is_asked_for_and_not_what_is_done_with_it() -> None:
    for mode in ("build", "dry-activate", "none"):
        assert replace(OTHER, activate=mode).wish == OTHER.wish
    others = [FLAKE, LINK, pinned_to(1), replace(FLAKE, update="2"), pinned_to(2)]
    assert len({spec.wish for spec in [OTHER, *others]}) == 6
