"""The stand-in for nixpkgs of tests gives systems that start, as the real one is used."""

import json
from collections.abc import Iterator

import pytest
from support import standin
from support.disposable import Host
from support.incus import Incus
from support.store import NIX, build_system

pytestmark = [pytest.mark.main, pytest.mark.sid]

TEXT = """{
    services.nginx.enable = true;
    users.users.alice.isNormalUser = true;
    environment.etc."it/s".text = "it's";
}"""


@pytest.fixture
def channel(host: Host) -> Iterator[str]:
    with standin.served(host) as url:
        yield url


def test_its_systems_start(incus: Incus, host: Host, channel: str) -> None:
    place = standin.flake(host, f"/srv/{incus.prefix}", channel, TEXT)
    name = incus.launch(flake=f"{place}#web")
    rev = standin.revision("one")
    told = {
        "nixos-revision": rev,
        "published": "one",
        "state-version": "25.11",
        "it/s": "it's",
    }
    files = " ".join(f"/etc/{file}" for file in told)
    assert incus.said(name, "sh", "-c", f"tail -n +1 -q {files}") == "".join(told.values())
    assert incus.inside(name, "grep -q alice: /etc/passwd; cd /home/alice")
    assert incus.inside(name, "grep -q bin/nginx /etc/systemd/system/nginx.service")


def test_all_kinds_of_references_lead_to_it(incus: Incus, host: Host, channel: str) -> None:
    """Nix evaluates them purely. A new archive gives another system after an update."""
    link = f"/srv/{incus.prefix}-link"
    standin.put(host)
    systems = {}
    for n, reference in enumerate((f"path:{standin.PLACE}", channel, standin.PLAIN)):
        place = standin.flake(host, f"/srv/{incus.prefix}-{n}", reference, TEXT)
        systems[reference] = build_system(host, f"path:{place}", link)
    local, told, plain = systems.values()
    assert local == plain != told
    standin.publish(host, "two")
    assert build_system(host, f"path:{place}", link) == plain
    host.run([*NIX, "flake", "update", "--flake", f"path:{place}"])
    assert build_system(host, f"path:{place}", link) != plain


def test_the_registry_leads_to_it(host: Host) -> None:
    """On the command line: as an input of a flake, newer versions of Nix do not look there."""
    target = {"type": "path", "path": standin.put(host)}
    prefetch = [*NIX, "flake", "prefetch", "--json"]
    with standin.registered(host, target):
        found = [
            json.loads(host.run([*prefetch, reference]).stdout)["hash"]
            for reference in ("flake:nixpkgs", standin.PLACE)
        ]
    assert found[0] == found[1]


def test_its_errors_read_like_those_of_nixpkgs(incus: Incus, host: Host, channel: str) -> None:
    text = "{ services.ngins.enable = true; }"
    place = standin.flake(host, f"/srv/{incus.prefix}", channel, text)
    done = host.run(
        [*NIX, "eval", f"path:{place}#nixosConfigurations.web.config.system.nixos.label"],
        check=False,
    )
    said = " ".join(done.stderr.rpartition("error: ")[2].split())
    assert said == (
        "The option `services.ngins' does not exist. Definition values: - In `user.inx.config': "
        "{ enable = true; } Did you mean `services.nginx', `services.openssh' or "
        "`services.postgresql'?"
    )
