"""A seal counts in the instance that was given the system, and in copies of it, in no other."""

import pytest
from support.disposable import Host
from support.incus import Incus
from support.isolated import sees_its_closure_alone
from support.running import PROFILES
from support.services import journal, stopped_sidecar
from support.sources import bump, launched, source

pytestmark = pytest.mark.isolated


def links_of(incus: Incus, name: str, number: int) -> tuple[str, str]:
    """The texts of a generation and of its seal, as root inside reads them."""
    texts = [
        incus.said(name, "readlink", f"{PROFILES}/system-{number}-{kind}").strip()
        for kind in ("link", "seal")
    ]
    return texts[0], texts[1]


def plant(incus: Incus, name: str, link: str, seal: str) -> None:
    """Root inside makes a generation 9 of texts that it was told, and selects it."""
    incus.sh(
        name,
        f"""
        cd {PROFILES}
        ln -s {link} system-9-link; ln -s {seal} system-9-seal; ln -sfn system-9-link system
        """,
    )


def says_of(incus: Incus, name: str, project: str = "default") -> str:
    """The greeting of the system that runs."""
    return incus.said(name, "cat", "/etc/greeting", project=project).strip()


def boots(incus: Incus, name: str, greeting: str, project: str = "default") -> None:
    """The instance starts what it has, though its source would give another system by now."""
    incus.start(name, project)
    incus.wait_ready(name, project)
    assert says_of(incus, name, project) == greeting
    sees_its_closure_alone(incus, name, project=project)
    lxc_name = name if project == "default" else f"{project}_{name}"
    lines = journal(incus.host, lxc_name)
    built = [number for number, line in enumerate(lines) if line.endswith(": build")]
    started = [number for number, line in enumerate(lines) if ": boot /nix" in line]
    assert started and max(built, default=-1) < max(started), lines


def outdated(incus: Incus, **config: str) -> str:
    """An isolated instance that runs "one"; a build of its source would give "two"."""
    name = launched(incus, "one", store="isolated", activate="none", **config)
    source(incus, "two")
    return name


@pytest.mark.parametrize("kept", ["its seal", "its seal and the former name"])
def test_a_generation_with_its_seal_from_another_instance_does_not_boot(
    incus: Incus, kept: str
) -> None:
    """Roots of two isolated instances work together: one tells the other all that it can read."""
    other = incus.launch(
        name=incus.name("other"), flake=f"{source(incus, 'secret')}#web", store="isolated"
    )
    secret, seal = links_of(incus, other, 1)
    name = launched(incus, "one", store="isolated")
    if kept != "its seal":
        incus("delete", "-f", other)
    plant(incus, name, secret, seal)
    incus("restart", "-f", name)
    incus.wait_inside(name)
    incus.wait_ready(name)
    assert says_of(incus, name) == "one"
    assert sees_its_closure_alone(incus, name) != secret
    assert not incus.inside(name, f"ls {secret}/init")


def test_a_copy_boots_what_its_source_was_given_and_nothing_later(incus: Incus, host: Host) -> None:
    name = outdated(incus)
    incus("snapshot", "create", name, "before")
    copies = {
        "running": [name],
        "snapshot": [f"{name}/before"],
    }
    for kind, origin in copies.items():
        incus("copy", *origin, incus.adopt(incus.name(kind)))
    incus("copy", incus.name("running"), incus.adopt(incus.name("twice")))
    for kind in (*copies, "twice"):
        boots(incus, incus.name(kind), "one")
    # From now on the copy is an instance like any other: what its source is given is not its own.
    incus.set(name, "user.inx.activate=switch")
    bump(incus, name)
    incus.wait_generation(name, "2")
    secret, seal = links_of(incus, name, 2)
    copy = incus.name("running")
    plant(incus, copy, secret, seal)
    incus.set(copy, "user.inx.generation=9")
    incus("stop", "-f", copy)
    assert incus.start(copy, check=False).returncode != 0
    incus.wait_log(copy, "no such generation (it has 1)")
    # A copy of a copy that has run.
    incus("copy", incus.name("twice"), incus.adopt(incus.name("thrice")))
    boots(incus, incus.name("thrice"), "one")
    incus("stop", "-f", name)
    incus("copy", name, incus.adopt(incus.name("stopped")))
    boots(incus, incus.name("stopped"), "two")


def test_a_seal_moves_with_its_instance(incus: Incus, host: Host) -> None:
    name = outdated(incus)
    incus("snapshot", "create", name, "before")
    boots_after = "one"
    incus("stop", "-f", name)
    renamed = incus.adopt(incus.name("renamed"))
    incus("rename", name, renamed)
    boots(incus, renamed, boots_after)
    incus("snapshot", "restore", renamed, "before")
    incus("stop", "-f", renamed, check=False)
    boots(incus, renamed, boots_after)
    incus("stop", "-f", renamed)
    host.sh(f"incus export {renamed} /root/{renamed}.tar; incus delete -f {renamed}")
    host.sh(f"incus import /root/{renamed}.tar {renamed}")
    boots(incus, renamed, boots_after)
    incus("stop", "-f", renamed)
    project = f"{incus.prefix}-project"
    incus("project", "create", project, "-c", "features.images=false",
          "-c", "features.profiles=false")  # fmt: skip
    try:
        incus.adopt(renamed, project)
        incus("move", renamed, renamed, "--target-project", project)
        boots(incus, renamed, boots_after, project)
        incus("copy", renamed, renamed, "--project", project, "--target-project", "default")
        incus("delete", "-f", renamed, "--project", project)
        boots(incus, renamed, boots_after)
    finally:
        incus("delete", "-f", renamed, "--project", project, check=False)
        incus("project", "delete", project)


def test_the_key_of_seals_names_the_instance_itself_once_it_has_started(incus: Incus) -> None:
    name = outdated(incus)
    assert incus.get(name, "user.inx.sealed") == incus.uuid(name)
    copy = incus.adopt(incus.name("copy"))
    incus("copy", name, copy)
    assert incus.get(copy, "user.inx.sealed") == incus.uuid(name)
    boots(incus, copy, "one")
    # A copy has the status of its source until its own is written.
    sealed = "user.inx.sealed"
    incus.eventually(lambda: incus.get(copy, sealed) == incus.uuid(copy), incus.story)
    assert incus.uuid(copy) != incus.uuid(name)


def test_an_instance_with_seals_of_the_former_format_boots_what_it_ran(
    incus: Incus, host: Host
) -> None:
    """An upgrade builds nothing anew; the seals of the new format are made at that start."""
    name = outdated(incus)
    system, seal = links_of(incus, name, 1)
    script = """
import hashlib, hmac, sys
key = open("/var/lib/inx/seal.key", "rb").read()
print(hmac.new(key, sys.argv[1].encode(), hashlib.sha256).hexdigest())
"""
    former = host.run(["python3", "-I", "-c", script, system]).stdout.strip()
    assert former != seal
    incus.sh(name, f"ln -sfn {former} {PROFILES}/system-1-seal")
    incus("config", "unset", name, "user.inx.sealed")
    incus("stop", "-f", name)
    with stopped_sidecar(host):
        # The former inx made no such note. A look at the instance removes it, sooner or later.
        host.run(["rm", "-f", f"/var/lib/inx/{incus.uuid(name)}/renewed"])
    boots(incus, name, "one")
    assert links_of(incus, name, 1) == (system, seal)
    incus.eventually(lambda: incus.get(name, "user.inx.sealed") == incus.uuid(name), incus.story)


def test_a_seal_of_the_former_format_from_another_instance_does_not_count(
    incus: Incus, host: Host
) -> None:
    other = incus.launch(
        name=incus.name("other"), flake=f"{source(incus, 'secret')}#web", store="isolated"
    )
    secret, _ = links_of(incus, other, 1)
    name = launched(incus, "one", store="isolated")
    script = """
import hashlib, hmac, sys
key = open("/var/lib/inx/seal.key", "rb").read()
print(hmac.new(key, sys.argv[1].encode(), hashlib.sha256).hexdigest())
"""
    former = host.run(["python3", "-I", "-c", script, secret]).stdout.strip()
    plant(incus, name, secret, former)
    incus("config", "unset", name, "user.inx.sealed")
    incus("restart", "-f", name)
    incus.wait_inside(name)
    incus.wait_ready(name)
    assert says_of(incus, name) == "one"
    assert not incus.inside(name, f"ls {secret}/init")
