"""What docs/cluster.md shows is run."""

import pytest
from support.cluster import Cluster
from support.incus import Incus
from support.pages import commands, said

pytestmark = pytest.mark.cluster

PAGE = "docs/cluster.md"


def test_an_instance_is_created_in_a_group_and_moves(
    cluster: Cluster, members: list[Incus]
) -> None:
    a, b, c = members
    names = {"host1": a.host.name, "host2": b.host.name, "host3": c.host.name}

    def run(line: str) -> None:
        for name, host in names.items():
            line = line.replace(name, host)
        a.host.sh(f"{line} </dev/null")

    group = commands(PAGE, "Where instances are created")
    moving = commands(PAGE, "Moves")
    keep_off = said(PAGE, "incus cluster set host3")
    a.adopt("web")
    try:
        run(keep_off)
        for line in group:
            run(line)
        assert a.info("web")["location"] == a.host.name
        a.wait_ready("web")
        for line in moving:
            run(line)
        assert a.info("web")["location"] == b.host.name
        b.wait_ready("web")
        a("init", "--empty", a.adopt(a.name("more")), "--profile", "inx")
        assert a.info(a.name("more"))["location"] != c.host.name
    finally:
        run("incus cluster unset host3 scheduler.instance")
