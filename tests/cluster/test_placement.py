"""An instance on a member without inx says so, although nothing of inx runs there."""

import pytest
from support.incus import Incus
from support.services import UNITS, check

pytestmark = pytest.mark.cluster

HOOKS = "/etc/inx/hooks"


def test_an_instance_on_a_member_without_inx_says_so(members: list[Incus]) -> None:
    a, b, c = members
    c.host.run(["systemctl", "stop", *UNITS])
    c.host.run(["mv", HOOKS, f"{HOOKS}.away"])
    try:
        for key in "version", "addresses":
            c("cluster", "unset", c.host.name, f"user.inx.{key}", check=False)
        options = ("--target", c.host.name)
        name = b.init(*options, name=b.name("one"), flake="/etc/nixos#web")
        plain = b.adopt(b.name("plain"))
        b("init", "--empty", plain, *options)
        way_out = f"run 'incus move {name} --target {a.host.name}'"
        said = f"failed: no inx on the member '{c.host.name}', so it cannot start there; "
        b.wait_status(name, f"{said}install inx there, or {way_out}$")
        assert b.start(name, check=False).returncode != 0
        assert b.status(name).startswith(said) and b.status(plain) == ""
        # The way out: the sentence goes as soon as the instance is elsewhere.
        b("move", name, "--target", a.host.name)
        b.wait_status(name, "$")
        b.start(name)
        b.wait_ready(name)
        b("stop", "-f", name)
        b("move", name, "--target", c.host.name)
        b.wait_status(name, said)
    finally:
        c.host.run(["mv", f"{HOOKS}.away", HOOKS])
        c.host.run(["systemctl", "start", *UNITS])
    # The other way out: inx is installed there.
    b.wait_status(name, "$")
    b.start(name)
    b.wait_ready(name)
    c.eventually(lambda: check(a.host) == (0, []), c.story)
