"""Values of user.inx.* keys are parsed once: accepted and harmless, or refused by name."""

import re

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from inx_sidecar.base.errors import ConfigError
from inx_sidecar.builds.build_commands import build_command, fetch_command
from inx_sidecar.config import keys
from inx_sidecar.config.keys import parse_spec
from inx_sidecar.config.sources import Flake, Modules, NixFile, Source, System
from inx_sidecar.config.spec import InstanceSpec

pytestmark = pytest.mark.main

SYSTEM = "/nix/store/0123456789abcdfghijklmnpqrsvwxyz-nixos-system-web-25.05"
LINK = "/var/lib/inx/builds/uuid/system"


def spec(instance: str = "web", default: str = "/etc/nixos", **keys: str) -> InstanceSpec:
    return parse_spec({f"user.inx.{key}": value for key, value in keys.items()}, instance, default)


def refusal(**keys: str) -> str:
    with pytest.raises(ConfigError) as caught:
        spec(**keys)
    return str(caught.value)


def test_nothing_set_means_the_default_flake_and_the_instances_name() -> None:
    assert spec() == InstanceSpec(Flake("/etc/nixos", "web", attr_given=False))
    assert (spec().update, spec().generation, spec().keep, spec().daemon) == ("", None, 5, None)


def test_a_default_flake_may_name_an_attribute() -> None:
    assert spec(default="github:o/r#all").source == Flake("github:o/r", "all", attr_given=True)


@pytest.mark.isolated
def test_an_isolated_store_and_what_is_included() -> None:
    assert (spec().isolated, spec(store="shared").isolated) == (False, False)
    given = parse_spec(
        {"user.inx.store": "isolated", "user.inx.store.include": f"{SYSTEM} {SYSTEM}-2"},
        "web",
        "/etc/nixos",
    )
    assert given.isolated and given.included == (SYSTEM, f"{SYSTEM}-2")


@pytest.mark.isolated
def test_a_store_of_its_own_is_isolated_too() -> None:
    given = spec(**{"store": "own", "store.include": SYSTEM})
    assert (given.own, given.isolated, given.included) == (True, True, (SYSTEM,))
    assert (spec().own, spec(store="isolated").own) == (False, False)


@pytest.mark.isolated
@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"store": "isolated", "daemon": "true"}, "every path of the store; unset one"),
        ({"store": "own", "daemon": "true"}, "has a Nix daemon of its own; unset one"),
        ({"store.include": SYSTEM}, "goes with user.inx.store=isolated or own"),
        ({"store": "shared", "store.include": SYSTEM}, "goes with user.inx.store=isolated"),
        ({"store": "isolated", "store.include": f"{SYSTEM}/bin"}, "allowed: /nix/store/HASH-NAME"),
        ({"store": "isolated", "store.include": "hello"}, "store.include is 'hello'"),
        ({"store": "private"}, "allowed: shared or isolated or own"),
    ],
)
def test_what_does_not_go_with_an_isolated_store(keys: dict[str, str], message: str) -> None:
    assert message in refusal(**keys)


def test_an_empty_value_is_as_good_as_none() -> None:
    assert spec(**dict.fromkeys(("flake", "file", "attr", "generation", "keep"), "")) == spec()


def test_keys_of_others_are_not_ours() -> None:
    keys = {"user.inxy.flake": "x", "user.inx2": "x", "user.other": "x", "limits.cpu": "-1"}
    assert parse_spec(keys, "web", "/etc/nixos") == spec()


def test_a_key_that_the_sidecar_wrote_asks_for_nothing() -> None:
    keys = {
        "status": "failed: \n",
        "status.system": "?",
        "status.generation": "x",
        "status.update": "\n",
    }
    keys["status.of.newer"] = "written by a member of the cluster with a newer inx"
    assert spec(**keys) == spec()


@pytest.mark.parametrize(
    "key",
    ["user.inx", "user.inx-flake", "user.inx_flake", "user.INX.flake", "user.Inx", "user.inx:x"],
)
def test_a_key_that_is_nearly_ours_is_refused_like_an_unknown_one(key: str) -> None:
    with pytest.raises(ConfigError, match=f"^unknown key '{key}'; known are flake, "):
        parse_spec({key: "x"}, "web", "/etc/nixos")
    assert parse_spec({key: ""}, "web", "/etc/nixos") == spec()


@pytest.mark.parametrize("key", ["flak", "Flake", "net.eth0", "status.7", "state", "", "flake "])
def test_an_unknown_key_is_refused_and_the_known_ones_are_told(key: str) -> None:
    text = refusal(**{key: "x"})
    assert f"unknown key 'user.inx.{key}'" in text and "flake, file, attr, system" in text


@pytest.mark.parametrize(
    ("value", "ref", "attr"),
    [
        ("/etc/nixos", "/etc/nixos", None),
        ("/etc/nixos#db", "/etc/nixos", "db"),
        ("/etc/nixos#some.name", "/etc/nixos", "some.name"),
        ("/srv/my-flake?dir=sub&submodules=1", None, None),
        ("path:/etc/nixos", None, None),
        ("github:owner/repo", None, None),
        ("github:owner/repo/branch#web", "github:owner/repo/branch", "web"),
        ("git+https://user@host:8443/r.git?ref=main&rev=0123", None, None),
        ("git+file:///srv/flake", None, None),
        ("https://host/flake.tar.gz", None, None),
        ("nixpkgs", None, None),
        ("nixpkgs/nixos-25.05#x_1", "nixpkgs/nixos-25.05", "x_1"),
    ],
)
def test_flakes_that_are_allowed(value: str, ref: str | None, attr: str | None) -> None:
    given = attr is not None
    assert spec(flake=value).source == Flake(ref or value, attr or "web", attr_given=given)


@pytest.mark.parametrize(
    "value",
    [
        "-etc", "--option", "#web", "/etc/nixos#", "/etc/nixos#a b", '/etc/nixos#a"b',
        "/etc/nixos#-a", "/etc/nixos#.a", "/etc/nixos#a#b", "/etc/nix os", "/etc\n/nixos",
        "/etc/nixos\n", "./x", "../x", ".", "/etc/../root", "/etc/./nixos",
        "/etc/nixos/..", "path:/etc/../root", "git+file:///etc/../root", "path:etc", "path:./x",
        "git+file:x", "git+file://host/x", "/é", "C:/x", "/a`id`", "/a'b", "/a\\b", "/a|b",
        "/a<b", "/a^out", "/" + "a" * 1024, "\0", " /etc/nixos",
    ],
)  # fmt: skip
def test_flakes_that_are_refused(value: str) -> None:
    assert "user.inx.flake is" in refusal(flake=value)


@pytest.mark.parametrize(
    "value", ["path:/etc/nixos/%2e%2e/root", "git+file:///etc/nixos/%2E./root", "path:/a/%2e%2E"]
)
def test_a_step_out_that_is_percent_encoded_is_refused(value: str) -> None:
    """Nix 2.26 resolves path:/etc/nixos/%2e%2e/root to /etc/root."""
    assert "user.inx.flake is" in refusal(flake=value)


@pytest.mark.parametrize("value", ["nixpkgs/../root", "etc/../nixos", "x/./y/z", "x/.."])
def test_a_name_of_the_registry_that_nix_takes_for_a_path_is_refused(value: str) -> None:
    """Nix 2.26 resolves nixpkgs/../root, which is no name it can look up, to /root."""
    assert "user.inx.flake is" in refusal(flake=value)


def test_a_file_and_its_attribute() -> None:
    assert spec(file="/srv/x.nix").source == NixFile("/srv/x.nix", "web", attr_given=False)
    found = spec(file="/srv/x.nix", attr="hosts.web-1.x'").source
    assert found == NixFile("/srv/x.nix", "hosts.web-1.x'", attr_given=True)


@pytest.mark.parametrize(
    ("instance", "attr"), [("web", "web"), ("web-1", "web-1"), ("1web", '"1web"')]
)
def test_an_instances_name_is_an_attribute_whatever_it_begins_with(
    instance: str, attr: str
) -> None:
    source = spec(instance=instance, file="/x.nix").source
    assert isinstance(source, NixFile) and source.attr == attr


@pytest.mark.parametrize(
    "value",
    ["x.nix", "./x.nix", "-x", "/srv/../x", "/srv/./x", "/srv/..", "/a b", "/a\n", "/a#b", "/a?b"],
)
def test_files_that_are_refused(value: str) -> None:
    assert "user.inx.file is" in refusal(file=value)


@pytest.mark.parametrize(
    "value", ["-A", "a b", "a..b", ".a", "a.", 'a"b', "a.-b", "1a", "a\n", "é", "a;b", "a" * 257]
)
def test_attributes_that_are_refused(value: str) -> None:
    assert "user.inx.attr is" in refusal(file="/x.nix", attr=value)


@pytest.mark.parametrize("value", [SYSTEM, "/nix/var/nix/profiles/system", "/srv/result"])
def test_systems_that_are_allowed(value: str) -> None:
    assert spec(system=value).source == System(value)


@pytest.mark.parametrize(
    "value",
    ["result", "-x", "/srv/../x", "/nix/store/x", f"{SYSTEM}/init", "/nix/store/../x", "/a\nb"],
)
def test_systems_that_are_refused(value: str) -> None:
    assert "user.inx.system is" in refusal(system=value)


def test_two_sources_exclude_each_other() -> None:
    text = refusal(flake="/etc/nixos", file="/x.nix")
    assert text.startswith("user.inx.flake and user.inx.file exclude each other")
    assert "user.inx.file and user.inx.system" in refusal(system=SYSTEM, file="/x.nix")
    everything = refusal(flake="/etc/nixos", system=SYSTEM, file="/x.nix")
    assert "user.inx.flake and user.inx.file and user.inx.system" in everything


@pytest.mark.parametrize("other", [{}, {"flake": "/etc/nixos"}, {"system": SYSTEM}])
def test_an_attribute_goes_with_a_file_alone(other: dict[str, str]) -> None:
    assert "user.inx.attr goes with user.inx.file" in refusal(attr="web", **other)


@pytest.mark.parametrize(
    ("key", "low", "high"), [("generation", 1, 999_999_999), ("keep", 1, 1000)]
)
def test_numbers_have_limits(key: str, low: int, high: int) -> None:
    for number in (low, high):
        assert getattr(spec(**{key: str(number)}), key) == number
    for bad in (low - 1, high + 1, "-1", "+1", "1.0", "1 ", "0x1", "٣", "1\n", "9" * 5000):
        assert f"user.inx.{key} is" in refusal(**{key: str(bad)})


def test_the_order_is_a_number() -> None:
    assert spec(order="0") == spec(order="10") == spec()
    for bad in ("-1", "1.0", "first", "9" * 10):
        assert "user.inx.order is" in refusal(order=bad)


def test_the_daemon_is_allowed_refused_or_left_to_the_default() -> None:
    assert spec(daemon="true").daemon is True and spec(daemon="false").daemon is False
    for bad in ("yes", "1", "True", "true\n"):
        assert "user.inx.daemon is" in refusal(daemon=bad)


def test_the_store_is_shared() -> None:
    assert spec(store="shared") == spec()
    assert "user.inx.store is 'private'" in refusal(store="private")


def test_a_long_value_is_shown_in_part() -> None:
    text = refusal(keep="x" * 5000)
    assert "xxx..." in text and len(text) < 400 and "a number from 1 to 1000" in text


def test_a_long_unknown_key_is_named_in_part_and_the_known_ones_are_told_still() -> None:
    text = refusal(**{"x" * 5000: "1"})
    assert "unknown key 'user.inx.xxx" in text and "known are flake" in text


MODULES = ("config", "config.more-1", "module", "module.more")
GOOD = {
    "flake": ["/etc/nixos", "/etc/nixos#web", "github:o/r#a.b", "path:/srv/x?dir=y", "nixpkgs"],
    "file": ["/srv/x.nix", "/srv/dir"],
    "attr": ["web", "hosts.web"],
    "config": ["services.nginx.enable = true;", "{ pkgs, ... }:\n{ }"],
    "config.more-1": ["# none"],
    "module": ["/srv/web.nix", "/srv/dir"],
    "module.more": ["/srv/more.nix"],
    "nixpkgs": ["nixpkgs", "nixos-26.05", "/srv/nixpkgs", "github:NixOS/nixpkgs/nixos-unstable"],
    "system": [SYSTEM, "/nix/var/nix/profiles/system"],
    "store": ["shared", "isolated", "own"],
    "store.include": [SYSTEM, f"{SYSTEM} {SYSTEM}-2", f"{SYSTEM},\n {SYSTEM}-2 "],
    "daemon": ["true", "false"],
    "generation": ["1", "17"],
    "activate": ["switch", "boot", "test", "none", "build", "dry-activate"],
    "update": ["2026-01-01", "x"],
    "confirm": ["1", "86400"],
    "confirmed": ["7", SYSTEM],
    "check": ["nginx.service", "/run/current-system/sw/bin/curl -fsS http://localhost/"],
    "keep": ["5"],
    "order": ["0", "100"],
}
ALL = set(keys._KEYS) | {f"user.inx.{key}" for key in MODULES}
assert {f"user.inx.{key}" for key in GOOD} == ALL

ODD = st.sampled_from(
    ["\n", "\r", "\0", "\x1b[2J", "\x7f", "\x85", "\u2028", "\u202e", "\ufeff", "\U0001d4b3",
     "é", "٣", "'", '"', "`", "$(id)", "${x}", "\\", ";", "|", "&&", "<", ">", "^", "*", " ",
     "\t", "#", "?", "%00", "%2e%2e", "..", "/../", "//", "--", "-", "--option", "@", "=", ":",
     "!", "a" * 300]
)  # fmt: skip


@st.composite
def mutated(draw: st.DrawFn, text: str) -> str:
    """`text` with one to three odd pieces inserted anywhere."""
    for piece in draw(st.lists(ODD, min_size=1, max_size=3)):
        at = draw(st.integers(0, len(text)))
        text = text[:at] + piece + text[at:]
    return text


odd_text = st.one_of(
    st.text(max_size=80),
    st.lists(ODD, max_size=6).map("".join),
    st.text(min_size=1, max_size=20).map(lambda text: "-" + text),
    st.text(min_size=1, max_size=5).map(lambda text: text * 1500),
)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[str, str]:
    """A key, mostly a known one, and a value, good, nearly good or odd."""
    key = draw(st.sampled_from(sorted(GOOD)))
    good = draw(st.sampled_from(GOOD[key]))
    value = draw(st.one_of(st.just(good), mutated(good), odd_text))
    if draw(st.integers(0, 3)) == 0:
        key = draw(st.one_of(mutated(key), odd_text))
    return f"user.inx.{key}", value


def plain(source: Source) -> Source:
    """A source of the same kind with a harmless value."""
    match source:
        case Flake():
            return Flake("/etc/nixos", "web", attr_given=False)
        case NixFile():
            return NixFile("/srv/x.nix", "web", attr_given=False)
        case _:
            return System(SYSTEM)


def commands(source: Source) -> list[list[str]]:
    fetch = [fetch_command(SYSTEM, LINK)]
    return fetch + ([build_command(source, LINK)] if isinstance(source, Flake | NixFile) else [])


def apart(argv: list[str]) -> tuple[list[str], str, str]:
    """The options, the value of --attr and the one argument after "--"."""
    options, [last] = argv[: argv.index("--")], argv[argv.index("--") + 1 :]
    attr = options.pop(options.index("--attr") + 1) if "--attr" in options else "_"
    return options, attr, last


def check_harmless(source: Source) -> None:
    """A value that users choose comes after "--" or is that of --attr, and is printable."""
    assert str(source).isprintable()
    if isinstance(source, Modules):
        assert all(path.startswith("/") for _, path in source.files)
    if isinstance(source, System):
        assert source.path.startswith("/")
    ours = commands(plain(source))
    for argv, usual in zip(commands(source), ours, strict=True):
        options, attr, last = apart(argv)
        assert options == apart(usual)[0]
        assert re.match(r'[A-Za-z_]|"[A-Za-z0-9]', attr)
        assert not last.startswith("-")
        assert all(argument.isprintable() for argument in argv)


def check_refusal(error: ConfigError, keys: dict[str, str]) -> None:
    """One printable line that names a key that is set, as far as a line can hold it."""
    text = str(error)
    assert text.isprintable() and 0 < len(text) <= 1000
    seen = [" ".join(repr(key)[1:-1].split())[:400] for key in keys]
    assert any(key in text for key in seen), text


def try_out(keys: dict[str, str]) -> None:
    try:
        found = parse_spec(keys, "web", "/etc/nixos")
    except ConfigError as error:
        check_refusal(error, keys)
        return
    check_harmless(found.source)
    assert len(found.fingerprint()) == 32


# The same examples each time; nothing is written to the checkout.
steady = settings(
    derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


@settings(steady, max_examples=500)
@given(pairs())
@example(("user.inx.flake", "\ud800"))
@example(("user.inx.\ud800", "x"))
@example(("user.inx.file", "\udcff"))
def test_any_value_is_accepted_and_harmless_or_refused_by_name(pair: tuple[str, str]) -> None:
    try_out(dict([pair]))


@settings(steady, max_examples=300)
@given(st.lists(pairs(), min_size=2, max_size=5).map(dict))
def test_any_set_of_keys_is_accepted_and_harmless_or_refused_by_name(keys: dict[str, str]) -> None:
    try_out(keys)


@settings(steady, max_examples=200)
@given(st.sampled_from(GOOD["flake"] + GOOD["file"] + GOOD["system"]).flatmap(mutated))
def test_a_nearly_good_source_is_harmless_under_each_key(value: str) -> None:
    for key in ("flake", "file", "system"):
        try_out({f"user.inx.{key}": value})


@settings(steady, max_examples=200)
@given(st.one_of(st.sampled_from(GOOD["attr"]).flatmap(mutated), odd_text))
def test_any_attribute_is_harmless_or_refused(attr: str) -> None:
    try_out({"user.inx.file": "/srv/x.nix", "user.inx.attr": attr})


@pytest.mark.parametrize("key", ["flake", "file", "system"])
@pytest.mark.parametrize("value", [".", "./x", "~/x", "~bob/x", "../x", "..", "./x/y.nix"])
def test_a_path_as_a_shell_takes_it_is_answered_by_the_absolute_one(key: str, value: str) -> None:
    text = refusal(**{key: value})
    allowed = "an absolute path, as 'realpath PATH' prints it"
    assert text == f"user.inx.{key} is {value!r}; allowed: {allowed}"


@pytest.mark.parametrize("value", [".#web", ".?dir=x", "path:.", "path:./x", "path:~/x#web"])
def test_a_relative_flake_is_answered_by_the_absolute_path(value: str) -> None:
    assert "allowed: an absolute path, as " in refusal(flake=value)


@pytest.mark.parametrize("key", ["flake", "file", "system"])
def test_blanks_around_a_value_are_said_with_the_value_that_is_meant(key: str) -> None:
    for value in "/srv/x\n", " /srv/x", "/srv/x \t":
        text = refusal(**{key: value})
        assert text.endswith("allowed: the same without blanks around it, '/srv/x'")
        assert text.startswith(f"user.inx.{key} is {value!r}; ")
    assert "a value without blanks" in refusal(**{key: "/srv/my x"})


def test_no_token_is_repeated_in_the_value_that_is_meant() -> None:
    assert "s3cret" not in refusal(flake="https://u:s3cret@h/x.tar.gz\n")
