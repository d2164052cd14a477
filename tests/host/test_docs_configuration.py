"""The commands of docs/configuration.md and of the section of README.md on it, in their order.

`flake:nixpkgs` leads to the stand-in for nixpkgs, an archive of a server.
"""

from collections.abc import Iterator

import pytest
from support import standin
from support.disposable import Host
from support.incus import Incus
from support.pages import README, commands, section

pytestmark = pytest.mark.main

PAGE = "docs/configuration.md"
FLAKE = """{
    inputs.nixpkgs.url = "URL";
    outputs = { nixpkgs, ... }: {
        nixosConfigurations.web = nixpkgs.lib.nixosSystem {
            modules = [
                ./container.nix
                { nixpkgs.hostPlatform = "x86_64-linux"; system.stateVersion = "26.05"; }
                { networking.hostName = "white"; environment.etc.site.text = "shared"; }
            ];
        };
    };
}"""


@pytest.fixture(autouse=True)
def channel(host: Host) -> Iterator[str]:
    with (
        standin.served(host) as url,
        standin.registered(host, {"type": "tarball", "url": url}),
    ):
        yield url


def ready(incus: Incus, *names: str) -> None:
    for name in names:
        incus.adopt(name)
        incus.wait_ready(name)


def test_the_section_of_the_readme(incus: Incus, host: Host) -> None:
    host.sh("\n".join(commands(README, "A configuration in the instance")))
    ready(incus, "web", "web2")
    for name in "web", "web2":
        assert incus.inside(name, "grep -q bin/nginx /etc/systemd/system/nginx.service")
    assert incus.said("web2", "cat", "/etc/motd") == "web2"


def test_the_page(incus: Incus, host: Host) -> None:
    host.sh("\n".join(commands(PAGE, "Launch")))
    ready(incus, "web", "web2")
    assert "Hello" in incus.said("web2", "/run/current-system/sw/bin/hello")
    uuid = host.sh("incus config get web volatile.uuid").stdout.strip()

    locked, update, look = commands(PAGE, "Which nixpkgs")
    old, new = standin.revision("one"), standin.publish(host, "two")
    assert old in host.sh(locked).stdout
    assert host.sh(update).stdout == "web: ready\n"
    assert new in host.sh(locked).stdout
    incus.eventually(lambda: new[:7] in host.sh(look).stdout, incus.story)
    log = host.run(["cat", f"/var/log/inx/{uuid}.build.log"]).stdout
    assert "inx: with nixpkgs http://127.0.0.1:" in log and new in log and "inputs.source" in log

    uuid_of, evaluated, repl = commands(PAGE, "Look into it")
    assert host.sh(f"{uuid_of}\n{evaluated}").stdout == "true\n"
    asked = "nixosConfigurations.web.config.system.stateVersion\n"
    assert standin.RELEASE in host.sh(f"{uuid_of}\n{repl}", input=asked).stdout


def test_pieces_files_and_flakes(incus: Incus, host: Host, channel: str) -> None:
    host.sh(
        """
        echo '{ lib, ... }: { networking.hostName = lib.mkForce "shop"; }' >/srv/shop.nix
        mkdir /srv/site; cp /root/inx/nix/container.nix /srv/site; cat >/srv/site/flake.nix
        nix flake lock path:/srv/site
        """,
        input=FLAKE.replace("URL", channel),
    )
    names = "mail", "shop", "blue"
    try:
        host.sh("\n".join(commands(PAGE, "Profiles, files and flakes")))
        ready(incus, *names)
        for name in "mail", "shop":
            incus.sh(name, "[ -e /etc/systemd/system/sshd.service ]")
        incus.sh("shop", "[ $(cat /etc/hostname) = shop ]")
        incus.sh("blue", "[ $(cat /etc/site) = shared ]; [ $(cat /etc/hostname) = blue ]")
    finally:
        incus("delete", "-f", *names, check=False)
        incus("profile", "delete", "servers", check=False)
        host.sh("rm -rf /srv/site /srv/shop.nix")


def test_the_messages_of_the_page(incus: Incus, host: Host) -> None:
    for message, text in {
        "user.inx.config:3: undefined variable 'pgks'": "{ pkgs, ... }: {\n\nx = pgks; }",
        "user.inx.config:2: syntax error, unexpected '}'": "x = 1;\n}",
    }.items():
        assert f"| `{message}" in section(PAGE, "Errors")
        name = incus.init(name=incus.name(str(len(text))), config=text)
        incus.start(name, check=False)
        assert message in incus.wait_status(name, "failed")
