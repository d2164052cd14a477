"""Root inside an isolated container looks for the names of other store paths."""

import re

import pytest
from support.attacker.reading import places_of_hashes, reach, text_of
from support.attacks import inside
from support.disposable import Host
from support.incus import Incus
from support.running import PROFILES
from support.services import stopped_sidecar
from support.store import STORE
from support.vault import (
    Vault,
    add_directory,
    build_foreign,
    name_of_path,
    names_of_closure,
    stored_names,
)

pytestmark = pytest.mark.isolated


def hashes_of(names: set[str] | list[str]) -> list[str]:
    """The hashes of store paths; a name that is none of a store path is left out."""
    return sorted(name[:32] for name in names if re.match(r"[0-9a-z]{32}-", name))


def assert_no_names(vault: Vault, *given: str) -> dict[str, list[str]]:
    """No text inside names a store path, except those that the instance was given.

    Gives the places where the names of these are.
    """
    needed = names_of_closure(vault.incus, vault.shown, *given)
    foreign = hashes_of(stored_names(vault.incus) - needed)
    assert vault.secret_name[:32] in foreign
    found = vault.do(places_of_hashes, [*foreign, *hashes_of(needed)])
    assert not found.keys() & set(foreign), found
    console = vault.incus.console(vault.name)
    assert not [wanted for wanted in foreign if wanted in console], console
    return dict(found)


@pytest.mark.parametrize("store", ["isolated", "own"])
def test_no_text_inside_names_another_path(incus: Incus, store: str) -> None:
    """Only the system of the instance is named: by the status, the profile and the processes."""
    vault = Vault(incus, store=store).launch()
    build_foreign(incus, "other")
    system = vault.system
    found = assert_no_names(vault, system)
    (of_system,) = hashes_of([name_of_path(system)])
    places = found[of_system]
    assert "guest API /1.0/config/user.inx.status.system" in places
    assert f"{PROFILES}/system-1-link" in places
    assert "/run/current-system" in places
    assert "the listing of the store" in places
    (of_shell,) = hashes_of([name for name in vault.visible() if name.endswith("-busybox")])
    for place in "/proc/1/maps", "/proc/1/smaps", "/proc/1/exe":
        assert place in found[of_shell]


GATED = """
    {{ web = builtins.trace "needs {secret}" (builtins.seq (builtins.readFile {gate})
        ({then})); }}
"""


class Gate:
    """A source that names a store path, waits, and gives the system that the test has chosen."""

    def __init__(self, incus: Incus, secret: str) -> None:
        self.incus, self.secret = incus, secret
        self.directory = incus.flake(directory=f"/srv/{incus.prefix}-gated", greeting="gated")
        self.path, self.file = f"{self.directory}/gate", f"{self.directory}/gated.nix"
        incus.host.run(["mkfifo", self.path])
        incus.host.sh(
            'cat >"$D/systems.nix"',
            env={"D": self.directory},
            input="""
                { name, greeting }: let
                    gathered = builtins.fromJSON (builtins.readFile ./deps.json);
                    deps = builtins.mapAttrs
                        (n: v: if n == "system" then v else builtins.storePath v) gathered;
                in import ./system.nix { inherit name deps; extra.greeting = greeting; }
            """,
        )

    def give(self, then: str) -> None:
        text = GATED.format(secret=self.secret, gate=self.path, then=then)
        self.incus.host.sh('cat >"$F"', env={"F": self.file}, input=text)

    def give_system(self, greeting: str) -> None:
        self.give(f'import ./systems.nix {{ name = "web"; greeting = "{greeting}"; }}')

    def open(self) -> None:
        self.incus.host.sh(': >"$P"', env={"P": self.path})

    def wait_until_named(self, name: str) -> None:
        """Until the build has named the path and waits."""
        log = f"/var/log/inx/{self.incus.uuid(name)}.build.log"
        asked = ["grep", "-q", f"needs {self.secret}", log]
        self.incus.wait_status(name, "building")
        self.incus.eventually(
            lambda: self.incus.host.run(asked, check=False).returncode == 0, self.incus.story
        )


def test_no_text_names_another_path_while_and_after_a_system_is_built(
    incus: Incus, host: Host
) -> None:
    secret = add_directory(incus, "secret")
    gate = Gate(incus, secret)
    gate.give_system("one")
    vault = Vault(incus, flake="", file=gate.file, attr="web")
    shared = incus.init(name=incus.name("shared"), file=gate.file, attr="web")
    incus.start(shared)
    gate.wait_until_named(shared)
    gate.open()
    incus.wait_ready(shared)
    assert f"needs {secret}" in incus.console(shared)

    incus.start(vault.name)
    gate.wait_until_named(vault.name)
    assert_no_names(vault)
    gate.open()
    incus.wait_ready(vault.name)
    assert f"needs {STORE}/..." in incus.console(vault.name)
    first = vault.system
    assert hashes_of([name_of_path(first)])[0] in assert_no_names(vault, first)

    gate.give_system("two")
    incus.set(vault.name, "user.inx.update=2")
    incus("restart", "-f", vault.name)
    gate.wait_until_named(vault.name)
    assert_no_names(vault, first)
    gate.open()
    incus.wait_ready(vault.name)
    second = vault.system
    assert second != first
    assert_no_names(vault, first, second)
    # Only the system that runs is seen.
    assert vault.do(reach, [first]) == {}

    gate.give(f'throw "there is no {secret}"')
    incus.set(vault.name, "user.inx.update=3")
    incus("restart", "-f", vault.name)
    gate.wait_until_named(vault.name)
    gate.open()
    incus.wait_inside(vault.name)
    status = incus.wait_status(vault.name, "failed: .*; started generation 2; 'journalctl ")
    assert f"there is no {STORE}/..." in status
    incus.wait_log(vault.name, f"there is no {secret}")
    assert_no_names(vault, first, second)
    assert "there is no " in incus.console(vault.name)
    assert vault.do(reach, [first, vault.secret]) == {}


def test_a_system_that_leads_nowhere_is_not_named_inside(incus: Incus, host: Host) -> None:
    """The link of the operator leads to a directory that is no system; an older one starts."""
    link = f"/srv/{incus.prefix}-link"
    vault = Vault(incus, flake="", system=link)
    system = build_foreign(incus, "first")
    host.run(["ln", "-sfn", system, link])
    vault.launch()
    host.run(["ln", "-sfn", f"{vault.secret}/below", link])
    incus("restart", "-f", vault.name)
    incus.wait_inside(vault.name)
    status = incus.wait_status(vault.name, "failed: .*; started generation 1; 'journalctl ")
    assert f"leads to '{STORE}/...below'" in status or f"leads to '{STORE}/.../below'" in status
    shared = incus.launch(name=incus.name("shared"), system=system)
    incus.set(shared, f"user.inx.system={link}")
    incus("restart", "-f", shared)
    incus.wait_status(shared, "failed: .*; started generation 1$")
    assert f"{vault.secret}/below" in inside(incus, shared, text_of, "/dev/.inx/ready")
    assert_no_names(vault, system)


def test_a_sidecar_that_cannot_take_over_names_nothing_inside(incus: Incus, host: Host) -> None:
    """The container waits for a build; meanwhile its source becomes a link to no system."""
    gate = Gate(incus, add_directory(incus, "needed"))
    gate.give_system("one")
    vault = Vault(incus, flake="", file=gate.file, attr="web")
    link = f"/srv/{incus.prefix}-link"
    host.run(["ln", "-sfn", f"{vault.secret}/below", link])
    incus.start(vault.name)
    gate.wait_until_named(vault.name)
    with stopped_sidecar(host):
        keys = ["user.inx.file=", "user.inx.attr=", f"user.inx.system={link}"]
        incus.set(vault.name, *keys)
    incus.wait_state(vault.name, "STOPPED")
    assert f"{vault.secret}/below" in host.run(["journalctl", "-u", "inx-sidecar"]).stdout
    incus.eventually(
        lambda: "leads to" in incus.console(vault.name), lambda: incus.console(vault.name)
    )
    assert vault.secret_name[:32] not in incus.console(vault.name)


def test_a_name_that_is_cut_short_is_left_out_as_well(incus: Incus, host: Host) -> None:
    """A reason has at most 450 characters, so that a hash may be cut in two at its end."""
    script = 'd=$(mktemp -d)/n; echo "$L" >"$d"; nix-store --add "$d"'
    secret = host.sh(script, env={"L": incus.prefix}).stdout.strip()
    bare = name_of_path(secret)
    crowd = " ".join([bare] * 40)
    outputs = f'nixosConfigurations.web = throw "{crowd}";'
    flake = incus.flake_text(outputs, f"/srv/{incus.prefix}-crowd")
    vault = Vault(incus, flake=f"{flake}#web")
    incus.start(vault.name, check=False)
    status = incus.wait_status(vault.name, "failed: ")
    incus.wait_state(vault.name, "STOPPED")
    incus.wait_log(vault.name, bare)
    console = incus.console(vault.name)
    for length in range(32, 4, -1):
        assert bare[:length] not in status, status
        assert bare[:length] not in console, console
