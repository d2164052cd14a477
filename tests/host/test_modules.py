"""The configuration of an instance stands in its keys: user.inx.config, user.inx.module."""

from collections.abc import Iterator

import pytest
from support import standin
from support.disposable import Host
from support.incus import Incus

pytestmark = pytest.mark.main

NGINX = "services.nginx.enable = true;"


@pytest.fixture
def channel(host: Host) -> Iterator[str]:
    """`flake:nixpkgs` is an archive of a server, as on most hosts."""
    with (
        standin.served(host) as url,
        standin.registered(host, {"type": "tarball", "url": url}),
    ):
        yield url


def launch(incus: Incus, **config: str) -> str:
    return incus.launch(flake="", **{f"user.inx.{key}": value for key, value in config.items()})


def test_the_body_of_a_module_becomes_a_system(incus: Incus, channel: str) -> None:
    name = launch(incus, config=NGINX)
    assert "nginx" in incus.sh(name, "cat /etc/nginx/nginx.conf")
