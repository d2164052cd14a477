"""An isolated container has no Nix daemon; these tests also show why it must not have one."""

import json
import shlex

import pytest
from support.attacker.reading import dump, reach, text_of
from support.attacks import inside
from support.incus import Incus
from support.refusals import refusal, start
from support.services import state_of
from support.store import STORE
from support.vault import Vault

pytestmark = pytest.mark.isolated

GONE = f"{STORE}/{'0' * 32}-gone"


# Commands about the store path $S; all succeed in a shared container.
ASK = {
    "query": "nix-store --query --references $S",
    "hash": "nix-store --query --hash $S",
    "validity": "nix-store --check-validity $S",
    "dump": "nix-store --dump $S",
    "dump over the wire": "nix store dump-path $S",
    "export": "nix-store --export $S",
    "list": "nix store ls $S",
    "information": "nix path-info $S",
    "all": "nix path-info --all",
    "realise": "nix-store --realise $S",
    "copy": "nix copy --no-check-sigs --to file:///root/cache $S",
    "roots": "nix-store --gc --print-roots",
    "add": "nix-store --add /root/copy.nix",
    "evaluate": """nix-instantiate --eval -E "builtins.readDir (builtins.storePath $S)" """,
    "build": "nix-build --no-out-link /root/copy.nix",
}
# These commands fail in a shared container, too: there is no other store than that of the host.
ASK_WITHOUT_DAEMON = {
    f"{what} of {store}": f"nix {command} $S --store '{store}'"
    for store in ("local", "local?read-only=true", "local?root=/root/own", "dummy://", "/root/own")
    for what, command in (("information", "path-info"), ("dump", "store dump-path"))
}
# A derivation that copies a file of the store path @S@ to its output.
COPY = """
    let
        inStore = path: builtins.appendContext path { ${path}.path = true; };
        path = inStore "@S@";
    in derivation {
        name = "@N@"; system = "@K@"; builder = "${inStore "@B@"}/bin/sh";
        args = [ "-c" "read -r l <${path}/file; echo \\"it says $l\\" >&2; echo $l >$out" ];
    }
"""


def prepare_nix(incus: Incus, name: str, secret: str, label: str) -> None:
    deps = json.loads(incus.host.run(["cat", "/etc/nixos/deps.json"]).stdout)
    values = {"S": secret, "N": label, "K": deps["system"], "B": deps["busybox"]}
    text = COPY
    for key, value in values.items():
        text = text.replace(f"@{key}@", value)
    incus.sh(name, "cat >/root/copy.nix", input=text)


def answers(incus: Incus, name: str, commands: dict[str, str], secret: str) -> set[str]:
    """The commands that end well. A file tells them, since output of incus exec may get lost."""
    lines = "\n".join(
        f"( timeout 30 {command.strip()} ) >/dev/null 2>&1 && echo {shlex.quote(what)} >&9"
        for what, command in commands.items()
    )
    settings = "substitute = false\nextra-experimental-features = read-only-local-store"
    variables = f"HOME=/root S={secret} NIX_CONFIG={shlex.quote(settings)}"
    script = f"export {variables}; exec 9>/root/answers\n{lines}\nexit 0"
    incus.run(name, "sh", "-uc", script)
    return set(inside(incus, name, text_of, "/root/answers").splitlines())


def test_nix_inside_answers_nothing(incus: Incus) -> None:
    vault = Vault(incus).launch()
    shared = incus.launch(name=incus.name("shared"), flake="/etc/nixos#web")
    for name in (shared, vault.name):
        prepare_nix(incus, name, vault.secret, f"{incus.prefix}-copied")
    asked = ASK | ASK_WITHOUT_DAEMON
    answered = answers(incus, shared, asked, vault.secret)
    assert answered == ASK.keys()
    assert answers(incus, vault.name, asked, vault.secret) == set()
    # The same holds for a path that is seen; only a command that needs no store works.
    assert answers(incus, vault.name, ASK, vault.shown) == {"dump"}
    assert state_of(vault.host, f"inx-nix-daemon@{incus.uuid(vault.name)}") == "inactive"


def test_a_daemon_together_with_isolation_is_refused_in_one_sentence(incus: Incus) -> None:
    vault = Vault(incus, daemon="true")
    assert start(incus, vault.name) != 0
    text = refusal(incus, vault.name)
    assert text == (
        "user.inx.daemon=true and user.inx.store=isolated exclude each other: a Nix daemon shows "
        "every path of the store; unset one"
    )
    incus.wait_state(vault.name, "STOPPED")
    incus("config", "unset", vault.name, "user.inx.daemon")
    vault.launch()


SOCKET = "/mnt/daemon/socket"


@pytest.fixture
def connected(incus: Incus) -> Vault:
    """An isolated container with the Nix daemon that the refused combination would give."""
    vault = Vault(incus).launch()
    other = incus.launch(name=incus.name("other"), flake="/etc/nixos#web")
    source = f"/run/inx/{incus.uuid(other)}/daemon-socket"
    disk = ["disk", f"source={source}", "path=/mnt/daemon"]
    incus("config", "device", "add", vault.name, "daemon", *disk)
    assert vault.do(reach, [vault.secret]) == {}
    return vault


def test_a_daemon_would_dump_any_path(connected: Vault) -> None:
    told = connected.do(dump, SOCKET, connected.secret)
    assert f"bytes of {connected.incus.prefix}-secret" in told
    assert "bytes of" not in connected.do(dump, SOCKET, GONE)


def test_a_daemon_would_list_all_names(connected: Vault) -> None:
    ask = f'NIX_REMOTE=unix://{SOCKET} nix path-info --all >/root/names; grep -qxF "$1" /root/names'
    incus, name = connected.incus, connected.name
    assert incus.run(name, "sh", "-uc", ask, "sh", connected.secret, check=False).returncode == 0
    assert incus.run(name, "sh", "-uc", ask, "sh", GONE, check=False).returncode == 1
    names = set(inside(incus, name, text_of, "/root/names").split())
    valid = {f"{STORE}/{each}" for each in connected.foreign()} & names
    assert connected.secret in valid and len(valid) >= 3


def test_a_build_would_copy_any_path(connected: Vault) -> None:
    """A filter of answers would not help: the output of a build belongs to the container."""
    incus, name = connected.incus, connected.name
    prepare_nix(incus, name, connected.secret, f"{incus.prefix}-stolen")
    script = f"""
        export HOME=/root NIX_REMOTE=unix://{SOCKET}
        nix-instantiate --eval --read-write-mode -E '(import /root/copy.nix).outPath' >/root/out
        nix-build --no-out-link /root/copy.nix >/root/log 2>&1
        exit 0
    """
    incus.run(name, "sh", "-uc", script)
    log = inside(incus, name, text_of, "/root/log")
    assert f"it says bytes of {incus.prefix}-secret" in log
    output = json.loads(inside(incus, name, text_of, "/root/out"))
    assert output != connected.secret
    assert f"bytes of {incus.prefix}-secret" in connected.do(dump, SOCKET, output)
