"""The configuration of an instance stands in its keys: user.inx.config and user.inx.module."""

import json
import re
from collections.abc import Iterator

import pytest
import yaml
from support import standin
from support.disposable import Host
from support.incus import Incus

from inx_sidecar.incus.status_keys import LOCKED, STATE_VERSION

pytestmark = pytest.mark.main

NGINX = "services.nginx.enable = true;"
KEY = "user.inx.config"


def etc(name: str, text: str) -> str:
    """A binding that makes a file in /etc."""
    return f"environment.etc.{name}.text = {json.dumps(text)};"


def wait_key(incus: Incus, name: str, key: str, part: str) -> None:
    incus.eventually(lambda: part in incus.get(name, key), lambda: incus.status(name))


def wait_for(incus: Incus, name: str, script: str) -> None:
    incus.eventually(lambda: incus.inside(name, script), lambda: incus.status(name))


def inside(incus: Incus, name: str, file: str) -> str:
    return incus.said(name, "cat", f"/etc/{file}")


@pytest.fixture(scope="module")
def channel(host: Host) -> Iterator[str]:
    """`flake:nixpkgs` is an archive of a server, as on most hosts."""
    with (
        standin.served(host) as url,
        standin.registered(host, {"type": "tarball", "url": url}),
    ):
        yield url


@pytest.fixture
def nixpkgs(host: Host, channel: str) -> str:
    """The revision of the newest nixpkgs."""
    return standin.publish(host, "one")


@pytest.mark.sid
def test_a_body_becomes_a_system_that_follows_its_text(incus: Incus, nixpkgs: str) -> None:
    name = incus.launch(config=f"{NGINX}\n{etc('greeting', 'one')}")
    pid = incus.said(name, "cat", "/proc/1/stat")
    assert incus.inside(name, "test -e /etc/nginx/nginx.conf")
    assert inside(incus, name, "state-version") == standin.RELEASE
    assert inside(incus, name, "nixos-revision") == nixpkgs
    assert incus.get(name, STATE_VERSION) == standin.RELEASE
    assert nixpkgs in incus.get(name, LOCKED)

    # The text changes; nixpkgs does not, although there is a newer one.
    standin.publish(incus.host, "two")
    incus.set(name, f"{KEY}={etc('greeting', 'two')}")
    wait_for(incus, name, "grep -q two /etc/greeting")
    assert inside(incus, name, "nixos-revision") == nixpkgs
    assert not incus.inside(name, "test -e /etc/nginx/nginx.conf")
    assert incus.said(name, "cat", "/proc/1/stat").split()[21] == pid.split()[21]

    incus.set(name, "user.inx.update=1")
    # Nix does not always tell a revision of the server again.
    wait_for(incus, name, "grep -q two /etc/published")
    incus.wait_ready(name)
    incus.eventually(lambda: nixpkgs not in incus.get(name, LOCKED), incus.story)


def test_yaml_on_stdin_and_whole_modules(incus: Incus, nixpkgs: str) -> None:
    name = incus.adopt(incus.name())
    texts = {
        KEY: f"{{ pkgs, lib, ... }}:\n{{\n  {NGINX}\n  {etc('a', 'function')}\n}}\n",
        f"{KEY}.set": f"{{\n  {etc('b', 'set')}\n}}",
        f"{KEY}.body": f"# a comment\n{etc('c', 'body')} # and another",
        f"{KEY}.empty": "# nothing",
    }
    incus("launch", name, "--empty", "--profile", "inx", input=yaml.safe_dump({"config": texts}))
    incus.wait_ready(name)
    found = [inside(incus, name, file) for file in "abc"]
    assert found == ["function", "set", "body"]


def test_pieces_of_profiles_and_of_the_instance_are_merged(incus: Incus, nixpkgs: str) -> None:
    profile = incus.profile()
    base = 'networking.hostName = mkDefault "base"; environment.variables.BASE = "yes";'
    incus("profile", "set", profile, f"{KEY}.base={base}")
    own = 'networking.hostName = "own"; environment.variables.OWN = "yes";'
    name = incus.launch("--profile", profile, config=own)
    assert inside(incus, name, "hostname").strip() == "own"
    assert incus.inside(name, "grep -q BASE /etc/set-environment")
    assert incus.inside(name, "grep -q OWN /etc/set-environment")
    # Both at once: NixOS says what does not fit together.
    incus("profile", "set", profile, f'{KEY}.base=networking.hostName = "base";')
    text = incus.wait_status(name, "^failed")
    assert "networking.hostName' has conflicting definition values" in text
    assert f"{KEY}.base" in text and "/nix/store" not in text


def test_a_module_file_with_what_it_imports(incus: Incus, host: Host, nixpkgs: str) -> None:
    place = f"/srv/{incus.prefix}"
    host.sh(
        """
        mkdir -p "$D/dir"; echo '{ imports = [ ../more.nix ]; }' >"$D/dir/default.nix"
        printf '%s' "$M" >"$D/more.nix"
        """,
        env={"D": place, "M": f"{{ {etc('more', 'imported')} }}"},
    )
    name = incus.launch(module=f"{place}/dir", config=etc("text", "as well"))
    assert inside(incus, name, "more") == "imported"
    assert inside(incus, name, "text") == "as well"
    # A user without rights evaluates it, whoever it belongs to.
    host.sh('chmod 600 "$D/more.nix"', env={"D": place})
    incus.set(name, "user.inx.update=1")
    text = incus.wait_status(name, "^failed")
    assert "more.nix" in text and "ermission denied" in text
    incus.set(name, f"user.inx.module={place}/none.nix")
    incus.wait_status(name, f".*there is no {place}/none.nix: correct user.inx.module")


def test_modules_extend_a_flake(incus: Incus, host: Host, nixpkgs: str) -> None:
    """Instances share a flake, and differ by a line."""
    place = f"/srv/{incus.prefix}-flake"
    host.sh(
        """
        mkdir "$D"; cp -r "$N" "$D/nixpkgs"; cp /root/inx/nix/container.nix "$D"
        cat >"$D/flake.nix"
        """,
        env={"D": place, "N": standin.put(host)},
        input=f"""{{
            outputs = {{ self }}: {{
                nixosConfigurations.web = import ./nixpkgs/nixos/lib/eval-config.nix {{
                    system = null;
                    modules = [ ./container.nix {{
                        nixpkgs.hostPlatform = "x86_64-linux"; system.stateVersion = "25.11";
                        {etc("shared", "by both")}
                    }} ];
                }};
            }};
        }}""",
    )
    one = incus.launch(name=incus.name("a"), flake=f"{place}#web", config=etc("line", "one"))
    # As an archive on a server, it is evaluated purely.
    archive = f"{incus.prefix}.tar.gz"
    host.sh('tar -C "$D" -czf "$A" .', env={"D": place, "A": f"{standin.ARCHIVES}/{archive}"})
    url = f"http://127.0.0.1:{standin.PORT}/{archive}"
    two = incus.launch(name=incus.name("b"), flake=f"{url}#web", config=etc("line", "two"))
    for name, line in (one, "one"), (two, "two"):
        assert inside(incus, name, "shared") == "by both"
        assert inside(incus, name, "line") == line
        assert inside(incus, name, "state-version") == "25.11"
    incus.set(one, f"user.inx.flake={place}#wbe")
    text = incus.wait_status(one, "^failed")
    assert "has no nixosConfigurations.wbe; it has web" in text


def test_nixpkgs_is_a_directory_of_the_host_or_in_the_store(
    incus: Incus, host: Host, nixpkgs: str
) -> None:
    place = standin.put(host, f"/srv/{incus.prefix}-nixpkgs", "dir")
    name = incus.launch(config=NGINX, nixpkgs=place)
    assert inside(incus, name, "published") == "dir"
    assert incus.get(name, LOCKED) == ""
    added = host.run(["nix-store", "--add", place]).stdout.strip()
    incus.set(name, f"user.inx.nixpkgs={added}")
    wait_key(incus, name, LOCKED, added)
    incus.set(name, f"user.inx.nixpkgs=http://127.0.0.1:{standin.PORT}/none.tar.gz")
    text = incus.wait_status(name, "^failed")
    assert "HTTP error 404; correct the reference, or if it is private" in text
    incus.set(name, "user.inx.nixpkgs=/srv")
    incus.wait_status(name, ".*there is no /srv/nixos/lib/eval-config.nix")


def test_a_copy_has_the_same_nixpkgs(incus: Incus, host: Host, nixpkgs: str) -> None:
    name = incus.launch(config=etc("greeting", "one"))
    incus.eventually(lambda: incus.get(name, LOCKED) != "", incus.story)
    incus("stop", "-f", name)
    clone = incus.adopt(incus.name("copy"))
    incus("copy", name, clone)
    standin.publish(host, "three")
    incus.set(clone, f"{KEY}={etc('greeting', 'two')}")
    incus.start(clone)
    incus.wait_ready(clone)
    assert inside(incus, clone, "published") == "one"
    assert inside(incus, clone, "greeting") == "two"


MISTAKES = {
    "a variable": (f"{NGINX}\n\nenvironment.etc.x.text = pgks.hello;", f"{KEY}:3: .*pgks"),
    "a semicolon": (f"{NGINX}\nservices.x = 1\nservices.y = 2;", f"{KEY}:3: syntax error"),
    "a brace": (f"{NGINX}\n}} // {{\na = 1;", f"{KEY}:2: syntax error"),
    "a string": (f"{NGINX}\nx = ''\n  never ends;", f"{KEY}:[34]: syntax error"),
    "an option": ("services.ngins.enable = true;", "option .services.ngins. does not exist"),
    "a type": ('services.nginx.enable = "yes";', "services.nginx.enable. is not of type"),
    "no module": ("[ 1 2 ]", f"{KEY} is a value of the type list"),
    "a file": ("environment.etc.x.text = builtins.readFile /etc/passwd;", "is forbidden in pure"),
    "a throw": ('\n\nenvironment.etc.x.text = throw "no luck";', "no luck"),
}


def test_mistakes_are_told_with_the_line(incus: Incus, nixpkgs: str) -> None:
    name = incus.launch(config=NGINX)
    for count, (text, told) in enumerate(MISTAKES.values()):
        incus.set(name, f"{KEY}={text}", f"user.inx.update={count}")
        wait_key(incus, name, "user.inx.status.update", str(count))
        status = incus.status(name)
        assert status.startswith("failed: cannot build the system of "), status
        assert re.search(told, status), (told, status)
        assert "/nix/store" not in status and "/var/lib/inx/builds" not in status
    incus.set(name, f"{KEY}={NGINX}", "user.inx.update=")
    incus.wait_ready(name)


def test_no_text_reads_what_the_user_of_builds_cannot(
    incus: Incus, host: Host, nixpkgs: str
) -> None:
    secret = "/root/secret"
    own = "/var/lib/inx-build/secret"
    host.sh(
        'umask 077; echo hidden >"$A"; echo hidden >"$B"; chown inx-build "$B"',
        env={"A": secret, "B": own},
    )
    place = f"/srv/{incus.prefix}.nix"
    host.sh('echo "{ }" >"$P"', env={"P": place})
    try:
        name = incus.launch(config=NGINX)
        for count, path in enumerate((secret, own)):
            read = f"environment.etc.secret.text = builtins.readFile {path};"
            # Alone, the text is evaluated purely; beside a module file it is not.
            incus.set(name, f"{KEY}={read}", f"user.inx.update=pure{count}")
            wait_key(incus, name, "user.inx.status.update", f"pure{count}")
            assert "is forbidden in pure evaluation mode" in incus.status(name)
            fetch = f'builtins.fetchurl {{ url = "file://{path}"; sha256 = "{"0" * 64}"; }}'
            incus.set(
                name, f"{KEY}=environment.etc.x.source = {fetch};", f"user.inx.update=hash{count}"
            )
            wait_key(incus, name, "user.inx.status.update", f"hash{count}")
            told = incus.status(name)
            assert told.startswith("failed: ") and "sha256" not in told, told
            assert not incus.inside(name, "test -e /etc/x")
            incus.set(
                name, f"{KEY}={read}", f"user.inx.module={place}", f"user.inx.update=impure{count}"
            )
            wait_key(incus, name, "user.inx.status.update", f"impure{count}")
            assert "ermission denied" in incus.status(name)
            incus.set(name, "user.inx.module=")
        # What is locked is written by inx. Somebody else may write it, too.
        planted = {"type": "path", "path": own.rpartition("/")[0], "narHash": "sha256-x"}
        lock = json.loads(incus.get(name, LOCKED)) | {"locked": planted}
        incus.set(name, f"{LOCKED}={json.dumps(lock)}", f"{KEY}={etc('x', 'y')}")
        wait_for(incus, name, "grep -q y /etc/x")
        assert inside(incus, name, "published") == "one"
    finally:
        host.run(["rm", "-f", secret, own])


def test_the_flake_is_kept_to_look_into_it(incus: Incus, host: Host, nixpkgs: str) -> None:
    name = incus.launch(config=NGINX)
    place = f"/var/lib/inx/{incus.uuid(name)}/flake"
    option = f'path:{place}#nixosConfigurations."{name}".config.services.nginx.enable'
    nix = ["nix", "--extra-experimental-features", "nix-command flakes", "eval", "--json"]
    assert host.run([*nix, option]).stdout == "true\n"
    log = host.run(["cat", f"/var/log/inx/{incus.uuid(name)}.build.log"]).stdout
    assert "eval-config.nix" not in log and f"with nixpkgs {standin.CHANNEL[:20]}" in log
    assert f'name = "{KEY}"' in log


def test_a_long_text(incus: Incus, nixpkgs: str) -> None:
    line = "# a comment that says nothing, in a line of some length, over and over again\n"
    text = line * ((1 << 16) // len(line) - 1)
    name = incus.adopt(incus.name())
    texts = {KEY: f"{text}{etc('last', 'yes')}"}
    incus("launch", name, "--empty", "--profile", "inx", input=yaml.safe_dump({"config": texts}))
    incus.wait_ready(name)
    assert inside(incus, name, "last") == "yes"
    incus.set(name, f"{KEY}.more={line * 3}")
    told = incus.wait_status(name, "^failed")
    assert f"{KEY}.more:1: here the texts of {KEY} exceed 65536 bytes" in told


def test_only_what_is_allowed(incus: Incus, host: Host, nixpkgs: str) -> None:
    """On a host that allows some sources alone, a text needs an entry of its own."""
    config = "/etc/inx/config.toml"
    try:
        host.sh('cat >"$P"', env={"P": config}, input='allowed_flakes = ["/etc/nixos"]')
        name = incus.init(config=NGINX)
        assert incus.start(name, check=False).returncode
        told = incus.wait_status(name, "^failed")
        assert "user.inx.config is not allowed" in told and "add 'user.inx.config' there" in told
        host.sh('cat >"$P"', env={"P": config}, input='allowed_flakes = ["user.inx.config"]')
        incus.start(name)
        incus.wait_ready(name)
        # Who edits the instance could write another lock, so each build looks at nixpkgs anew.
        standin.publish(host, "four")
        incus.set(name, f"{KEY}={etc('x', 'y')}")
        wait_for(incus, name, "grep -q y /etc/x")
        assert inside(incus, name, "published") == "four"
        incus.set(name, "user.inx.nixpkgs=/srv/nixpkgs")
        assert "which 'allowed_flakes'" in incus.wait_status(name, "^failed")
    finally:
        host.run(["rm", "-f", config])
