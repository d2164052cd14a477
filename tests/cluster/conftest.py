"""Three hosts with inx that are members of one Incus cluster, for all tests of this directory."""

import itertools
import os
from collections.abc import Iterator

import pytest
from support.cluster import Cluster
from support.incus import Incus

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The members have the names of this process and a letter."""
    made = Cluster.up([f"test-{os.getpid()}-{letter}" for letter in "abc"])
    try:
        yield made
    finally:
        made.down()


@pytest.fixture
def members(cluster: Cluster) -> Iterator[list[Incus]]:
    """Incus as each member shows it. The instances of a test are deleted after the test."""
    prefix = f"t{next(_numbers)}"
    found = [Incus(host, prefix) for host in cluster.members]
    yield found
    for incus in found:
        incus.clean_up()
