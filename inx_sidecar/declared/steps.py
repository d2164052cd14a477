"""The steps that make the instances of Incus what the host declares: a pure decision."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from inx_sidecar.declared.declaration import Declaration, DeclaredInstance, is_protected
from inx_sidecar.declared.ownership import OWNERSHIP_KEY, Ownership

PROTECTED: Final = "security.protection.delete is set; unset that to have it deleted"


@dataclass(frozen=True)
class Step:
    """What `converge` does with one instance. If that is declared no longer, `declared` has only
    its name and project."""

    declared: DeclaredInstance

    verb = ""
    done = ""

    def describe(self) -> str:
        return f"{self.declared}: {self.done}"


class Create(Step):
    verb, done = "create", "created"


class Change(Step):
    verb, done = "change", "changed"


class Start(Step):
    verb, done = "start", "started"


class Delete(Step):
    verb, done = "delete", "deleted, as it is no longer declared"


@dataclass(frozen=True)
class Leave(Step):
    """Nothing is done, and the operator is told `why`; `wrong` if the operator has to act."""

    why: str = ""
    wrong: bool = False

    def describe(self) -> str:
        return f"{self.declared}: left as it is: {self.why}"


def plan_steps(declaration: Declaration, present: Iterable[Mapping[str, Any]]) -> tuple[Step, ...]:
    """What makes `present`, the instances of Incus, as they are declared.

    Deletions and changes come before creations and starts: they may free an address or a port that
    another instance takes.
    """
    found = {(instance["project"], instance["name"]): instance for instance in present}
    wanted = {(declared.project, declared.name): declared for declared in declaration.instances}
    left: list[Step] = []
    changes: list[Step] = []
    creations: list[Step] = []
    starts: list[Step] = []
    for key, declared in wanted.items():
        instance = found.get(key)
        if instance is None:
            creations.append(Create(declared))
        elif not declared.owns(instance):
            left.append(Leave(declared, _why_not_owned(declared, instance), wrong=True))
            continue
        elif declared.update_request(instance) is not None:
            changes.append(Change(declared))
        if declared.start and (instance is None or instance["status"] == "Stopped"):
            starts.append(Start(declared))
    dropped = [
        _plan_drop(declaration, instance) for key, instance in found.items() if key not in wanted
    ]
    deletions = [step for step in dropped if isinstance(step, Delete)]
    left += [step for step in dropped if isinstance(step, Leave)]
    return (*left, *deletions, *changes, *creations, *starts)


def _plan_drop(declaration: Declaration, instance: Mapping[str, Any]) -> Step | None:
    """The step for an instance that is not declared; None if it never was."""
    ownership = Ownership.of(instance, declaration.host)
    # An instance that was given over, but is not declared, was never made by a declaration.
    if ownership is None or not ownership.complete:
        return None
    dropped = DeclaredInstance(instance["name"], instance["project"], host=declaration.host)
    if not declaration.delete:
        return Leave(dropped, "it is no longer declared")
    if is_protected(instance):
        return Leave(dropped, f"it is no longer declared, but {PROTECTED}", wrong=True)
    return Delete(dropped)


def _why_not_owned(declared: DeclaredInstance, instance: Mapping[str, Any]) -> str:
    if instance["type"] != "container":
        return f"it is declared, but this name has a {instance['type']}; delete or rename that"
    project = "" if declared.project == "default" else f" --project {declared.project}"
    give = f"incus config set {declared.name} {OWNERSHIP_KEY}={declared.name}{project}"
    if Ownership.is_of_another_host(instance, declared.host):
        return (
            "another host declares it as well; let one host of the cluster declare it, or give it "
            f"over to this one by '{give}'"
        )
    return (
        "it is declared, but an instance of this name was made by hand; delete or rename that, or "
        f"give it over by '{give}'"
    )
