"""Tokens are never shown; the build user has credentials for sources that are private."""

import base64
from collections.abc import Iterator

import pytest
from support.disposable import Host
from support.incus import Incus
from support.pages import commands
from support.services import journal, wait_build
from support.sources import slow

pytestmark = pytest.mark.main

TOKEN = "gh-t0ken-of-the-operator"
PORT = 8123
CONFIG = "/var/lib/inx-build/.config/nix"

# Serves /srv/private to who knows a user and a password.
SERVER = """
import http.server, sys
class Private(http.server.SimpleHTTPRequestHandler):
    def do_GET(self):
        if self.headers.get("Authorization") != "Basic " + sys.argv[1]:
            self.send_error(401)
        else:
            super().do_GET()
    do_HEAD = do_GET
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Private).serve_forever()
"""


@pytest.fixture
def private_flake(incus: Incus, host: Host) -> Iterator[str]:
    """The reference of a flake that a server gives to the user "ci" only."""
    directory = incus.flake(greeting="private")
    word = base64.b64encode(f"ci:{TOKEN}".encode()).decode()
    host.sh(
        """
        mkdir -p /srv/private; tar -C "$(dirname "$D")" -czf /srv/private/flake.tar.gz "${D##*/}"
        cat >/srv/server.py
        systemd-run -q --unit=private-server --working-directory=/srv/private \
            python3 /srv/server.py "$W" "$P"
        """,
        env={"D": directory, "W": word, "P": str(PORT)},
        input=SERVER,
    )
    listening = ["bash", "-c", f"exec 3<>/dev/tcp/127.0.0.1/{PORT}"]
    incus.eventually(lambda: host.run(listening, check=False).returncode == 0, incus.story)
    yield f"http://127.0.0.1:{PORT}/flake.tar.gz"
    host.run(["systemctl", "stop", "private-server"])
    host.run(["rm", "-rf", f"{CONFIG}/netrc", f"{CONFIG}/nix.conf"])


def test_the_build_user_fetches_with_its_netrc(
    incus: Incus, host: Host, private_flake: str
) -> None:
    """As docs/secrets-and-deployment.md says."""
    name = incus.init(flake=f"{private_flake}#web")
    incus.start(name)
    assert "401" in incus.wait_status(name, "failed: ")
    incus.wait_state(name, "STOPPED")
    host.sh(
        """
        echo "machine 127.0.0.1 login ci password $T" >/root/netrc
        printf 'netrc-file = %s/netrc\naccess-tokens = github.com=%s\n' "$C" "$T" >/root/nix.conf
        """,
        env={"C": CONFIG, "T": TOKEN},
    )
    host.sh("\n".join(commands("docs/secrets-and-deployment.md", "Private sources")))
    incus.start(name)
    incus.wait_ready(name)
    assert TOKEN not in incus.console(name)
    show = "nix --extra-experimental-features nix-command config show access-tokens"
    argv = ["runuser", "-u", "inx-build", "--", "env", "HOME=/var/lib/inx-build", *show.split()]
    assert f"github.com={TOKEN}" in host.run(argv).stdout


def test_another_build_does_not_read_the_netrc(
    incus: Incus, host: Host, private_flake: str
) -> None:
    """A source that several users can change has no part in the credentials."""
    host.sh(
        'install -d -o inx-build -m 0700 "$C"; install -o inx-build -m 0600 /dev/null "$C/netrc"',
        env={"C": CONFIG},
    )
    text = f'builtins.seq (builtins.readFile "{CONFIG}/netrc") (import /etc/nixos)'
    place = f"/srv/{incus.prefix}-file"
    host.sh('mkdir "$D"; cat >"$D/x.nix"; chmod 777 "$D"', env={"D": place}, input=text)
    name = incus.init(file=f"{place}/x.nix", attr="web")
    incus.start(name)
    status = incus.wait_status(name, "failed: ")
    assert "a user without rights may not read /var/lib/inx-build/" in status
    assert f", which is not in {place}: " in status


@pytest.mark.parametrize(
    "ref",
    [
        f"github:o/r?token={TOKEN}",
        f"git+https://x-access-token:{TOKEN}@localhost/r",
        f"http://user:{TOKEN}@127.0.0.1:1/x.tar.gz?ref=main",
        f"http://127.0.0.1:1/x.tar.gz?access_token={TOKEN}",
    ],
)
def test_a_token_is_not_built_with_and_not_shown(incus: Incus, host: Host, ref: str) -> None:
    running = incus.launch(name=incus.name("b"), flake="/etc/nixos#web")
    name = incus.init(flake=f"{ref}#web")
    assert incus.start(name, check=False).returncode
    incus.set(running, f"user.inx.flake={ref}#web")
    for each in (name, running):
        status = incus.wait_status(each, ".*(contains a password or a token|may be a credential)")
        assert "***" in status and TOKEN not in status
        assert TOKEN not in incus.console(each) + incus.log(each)
        assert TOKEN not in "\n".join(journal(host, each))
    found = host.sh('grep -rl "$T" /var/log/inx /run/inx /var/lib/inx || :', env={"T": TOKEN})
    assert found.stdout == ""
    # The generation that exists still starts.
    incus("restart", "-f", running)
    incus.wait_inside(running)


def test_an_input_with_a_token_is_not_shown(incus: Incus, host: Host) -> None:
    """Nix prints the URLs of the inputs that it cannot fetch."""
    url = f"http://user:{TOKEN}@127.0.0.1:1/x.tar.gz?token={TOKEN}"
    directory = incus.flake()
    script = 'sed -i "s|outputs = { self }:|inputs.x.url = \\"$U\\"; outputs = { self, x }:|" "$D"'
    host.sh(script, env={"D": f"{directory}/flake.nix", "U": url.replace("&", "\\&")})
    name = incus.init(flake=f"{directory}#web")
    incus.start(name)
    status = incus.wait_status(name, "failed: ")
    assert "127.0.0.1:1" in status and TOKEN not in status
    incus.wait_state(name, "STOPPED")
    shown = incus.console(name) + incus.log(name) + "\n".join(journal(host, name))
    assert "127.0.0.1:1" in shown and TOKEN not in shown
    log = f"/var/log/inx/{incus.uuid(name)}.build.log"
    assert TOKEN not in host.run(["cat", log]).stdout


@pytest.fixture
def proxy(host: Host) -> Iterator[str]:
    """A proxy with a password, which is set for the sidecar and never used."""
    value = f"http://ci:{TOKEN}@127.0.0.1:1"
    place = "/run/systemd/system/inx-sidecar.service.d"
    host.sh(
        """
        mkdir -p "$D"; printf '[Service]\nEnvironment=https_proxy=%s no_proxy=*\n' "$P" >"$D/p.conf"
        systemctl daemon-reload; systemctl restart inx-sidecar
        """,
        env={"D": place, "P": value},
    )
    yield value
    host.sh(
        'rm "$D/p.conf"; systemctl daemon-reload; systemctl restart inx-sidecar', env={"D": place}
    )


@pytest.mark.parametrize("mode", ["755", "777"])
def test_the_password_of_a_proxy_is_not_shown(
    incus: Incus, host: Host, proxy: str, mode: str
) -> None:
    """Every user may list processes and properties. 777: others can change the source."""
    directory = slow(incus, 600, same=True)
    host.run(["chmod", mode, directory])
    name = incus.init(flake=f"{directory}#web")
    incus.start(name)
    wait_build(incus, name)
    unit = f"inx-build-{incus.uuid(name)}.service"
    see = ["runuser", "-u", "nobody", "--"]
    shown = host.run([*see, "ps", "axeww"]).stdout
    assert unit in shown
    shown += host.run([*see, "systemctl", "show", unit]).stdout
    shown += host.run([*see, "systemctl", "cat", unit]).stdout
    assert TOKEN not in shown
    assert "EnvironmentFile" in shown
    pid = host.run(["systemctl", "show", "-P", "MainPID", unit]).stdout.strip()
    variables = host.run(["cat", f"/proc/{pid}/environ"]).stdout.split("\0")
    assert "no_proxy=*" in variables
    assert (f"https_proxy={proxy}" in variables) == (mode == "755")
    assert (TOKEN in "".join(variables)) == (mode == "755")
    builds = f"/var/lib/inx/builds/{incus.uuid(name)}"
    find = ["find", builds, "-name", "environment", "-printf", "%m %U "]
    assert host.run(find).stdout == "600 0 "
    incus("stop", "-f", name)
    incus.eventually(lambda: host.run(find, check=False).stdout == "", incus.story)
    assert TOKEN not in "\n".join(journal(host, name)) + incus.console(name)
