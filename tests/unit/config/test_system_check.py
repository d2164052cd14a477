"""The key user.inx.check: a unit, or a program with its arguments."""

import pytest

from inx_sidecar.config.system_check import command_of, is_check, name_of

pytestmark = pytest.mark.main

IS_ACTIVE = ["/run/booted-system/sw/bin/systemctl", "is-active", "--"]


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("nginx.service", [*IS_ACTIVE, "nginx.service"]),
        ("a@b\\x2dc.socket", [*IS_ACTIVE, "a@b\\x2dc.socket"]),
        ("multi-user.target", [*IS_ACTIVE, "multi-user.target"]),
        ("/bin/true", ["/bin/true"]),
        ("/bin/curl -fsS http://[::1]:80/?a=b&c", ["/bin/curl", "-fsS", "http://[::1]:80/?a=b&c"]),
    ],
)
def test_what_is_run(text: str, command: list[str]) -> None:
    assert is_check(text)
    assert command_of(text) == command


@pytest.mark.parametrize(
    "text",
    ["", "nginx", "-x.service", "a b.service", "curl http://x", "./x", "/bin/a  b", "/bin/a ",
     "/bin/a\nb", "/bin/sh -c 'x'", '/bin/a "b"', "/bin/a \\x", "/bin/\x1b", "a.service\n",
     "/" + "a" * 3000, "/bin/a " + "b " * 2000 + "b", "a" * 300 + ".service"],
)  # fmt: skip
def test_what_is_refused(text: str) -> None:
    assert not is_check(text)


def test_arguments_are_not_told() -> None:
    assert name_of("/bin/curl -u me:secret") == "/bin/curl"
    assert name_of("nginx.service") == "nginx.service"
