"""Two members of a cluster have different versions of inx, as while they are upgraded."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.disposable import REPO, Host
from support.gc import names_with_roots
from support.incus import Incus
from support.services import check

pytestmark = pytest.mark.cluster

# The last version that does not say which member has what an instance names.
FORMER = "802f160"


@pytest.fixture
def former(members: list[Incus], tmp_path: Path) -> Iterator[Host]:
    """The second member, with inx of FORMER; afterwards it has that of this tree again."""
    host = members[1].host
    git = ["git", "-c", "safe.directory=*", "-C", str(REPO), "archive", FORMER]
    packed = subprocess.run(git, check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x", "-C", tmp_path], input=packed, check=True)
    names = [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if not p.is_dir()]
    host.push(tmp_path, names, "/root/former")
    host.run(["/root/former/install", "--wheels", "/root/wheels"], timeout=300)
    try:
        yield host
    finally:
        host.reinstall()


def wait_left(incus: Incus, uuid: str) -> None:
    """Until the member has let go of the instance."""
    incus.eventually(lambda: names_with_roots(incus.host, uuid) == [], incus.story)


def test_an_instance_moves_to_the_former_version_and_back(
    members: list[Incus], former: Host
) -> None:
    """Keys, generations and the status are read by both; statuses and the check stay right."""
    new, old = members[:2]

    def write_flake(greeting: str) -> str:
        flakes = {incus.flake(greeting=greeting, directory="/srv/versions") for incus in (new, old)}
        return f"{flakes.pop()}#web"

    name = new.init("--target", new.host.name, flake=write_flake("0"), keep="3")
    new("config", "device", "add", name, "lan0", "nic", "nictype=p2p")
    ends = {"address": "10.7.0.1/24", "host_address": "10.7.0.2/24"}
    new.set(name, *(f"user.inx.net.lan0.{end}={address}" for end, address in ends.items()))
    new.start(name)
    new.wait_generation(name, "1")
    for number, (before, incus) in enumerate([(new, old), (old, new)], 1):
        incus("stop", "-f", name)
        incus.set(name, "user.inx.status.of.newer=a key that the former version does not know")
        incus("move", name, "--target", incus.host.name)
        if before is old:
            wait_left(old, new.uuid(name))
        incus.start(name)
        incus.wait_inside(name)
        incus.wait_generation(name, str(number))
        assert incus.inside(name, f"[ $(cat /etc/greeting) = {number - 1} ]")
        write_flake(str(number))
        incus.set(name, f"user.inx.update={number}")
        incus.wait_generation(name, str(number + 1))
        assert incus.inside(name, f"[ $(cat /etc/greeting) = {number} ]")
        for each in new, old:
            assert check(each.host) == (0, [])
        # The former version does not say that it has what the instance names.
        assert names_with_roots(new.host, new.uuid(name)) == [name]
    assert names_with_roots(old.host, new.uuid(name)) == []
