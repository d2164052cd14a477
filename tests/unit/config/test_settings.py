"""Settings of the host are read strictly, and limit the sources that instances may name."""

from dataclasses import fields
from pathlib import Path

import pytest

from inx_sidecar.base.errors import ConfigError
from inx_sidecar.config import settings
from inx_sidecar.config.keys import parse_spec
from inx_sidecar.config.settings import Settings, load_settings
from inx_sidecar.config.sources import Flake, NixFile, System

pytestmark = pytest.mark.main

SYSTEM = System("/nix/store/0123456789abcdfghijklmnpqrsvwxyz-nixos-system-web")


def loaded(tmp_path: Path, text: str | bytes) -> Settings:
    path = tmp_path / "config.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return load_settings(str(path))


def refusal(tmp_path: Path, text: str | bytes) -> str:
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, text)
    message = str(caught.value)
    assert str(tmp_path / "config.toml") in message and message.isprintable()
    return message


def test_without_a_file_all_is_default(tmp_path: Path) -> None:
    assert load_settings(str(tmp_path / "missing")) == Settings()
    assert loaded(tmp_path, "") == Settings()


def test_every_setting_can_be_set(tmp_path: Path) -> None:
    text = """
        default_flake = "github:owner/repo#web"
        nixpkgs = "nixos-26.05"
        allowed_flakes = ["/etc/nixos", "github:owner/"]
        build_user = "_builder"
        build_memory_max = "4G"
        build_timeout = 60
        max_builds = 8
        daemon_memory_max = "3G"
        daemon_tasks_max = 100
        builds_per_instance = 32
        first_build_id = 200000
        lock_patience = 60
        metrics = true
        max_failures = 3
    """
    allowed = ("/etc/nixos", "github:owner/")
    wanted = Settings(
        default_flake="github:owner/repo#web",
        nixpkgs="nixos-26.05",
        allowed_flakes=allowed,
        build_user="_builder",
        build_memory_max="4G",
        build_timeout=60,
        max_builds=8,
        daemon_memory_max="3G",
        daemon_tasks_max=100,
        builds_per_instance=32,
        first_build_id=200_000,
        lock_patience=60,
        metrics=True,
        max_failures=3,
    )
    assert loaded(tmp_path, text) == wanted


@pytest.mark.parametrize("value", ["infinity", "1", "512K", "4G", "1T", "50%"])
def test_memory_is_limited_as_systemd_writes_it(tmp_path: Path, value: str) -> None:
    assert loaded(tmp_path, f'build_memory_max = "{value}"').build_memory_max == value


def test_an_unknown_setting_is_refused_and_the_known_ones_are_told(tmp_path: Path) -> None:
    text = refusal(tmp_path, "default_flak = 1")
    assert "unknown setting 'default_flak'" in text
    assert all(field.name in text for field in fields(Settings))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("default_flake", ["1", '""', '"-x"', '"./x"', '"/a b"', '"/etc/../root"', "[]"]),
        ("allowed_flakes", ['"/etc"', "[1]", "[[]]", "{}", "true"]),
        ("build_user", ["0", '""', '"-root"', '"a b"', '"Root"', '"a\\n"', f'"{"a" * 33}"']),
        ("build_memory_max", ["4", '""', '"0"', '"4g"', '"4G "', '"-1"', '"4G\\n"', '"1.5G"']),
        ("build_timeout", ["0", "-1", "true", '"60"', "1.5", "10000000"]),
        ("max_builds", ["0", "-1", "false", '"2"', "nan"]),
    ],
)
def test_a_bad_value_is_refused_by_name(tmp_path: Path, name: str, values: list[str]) -> None:
    for value in values:
        assert f"{name} is " in refusal(tmp_path, f"{name} = {value}")


@pytest.mark.parametrize("text", ["=", "a = ", b"\xff\xfe", "max_builds = 1\nmax_builds = 2", "["])
def test_what_is_no_toml_is_refused(tmp_path: Path, text: str | bytes) -> None:
    refusal(tmp_path, text)


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "config.toml").mkdir()
    with pytest.raises(ConfigError, match=r"config\.toml"):
        load_settings(str(tmp_path / "config.toml"))


def test_no_root_is_dropped_for_the_default_while_the_settings_are_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit that the administrator set may be above the default."""

    def load() -> Settings:
        return loaded(tmp_path, "max_roots_per_instance = 50000\n" + broken)

    monkeypatch.setattr(settings, "load_settings", load)
    broken = ""
    assert settings.max_roots() == 50_000
    broken = "no such setting"
    assert settings.max_roots() >= 50_000


def allows(prefix: str, source: Flake | NixFile | System | str) -> bool:
    if isinstance(source, str):
        source = Flake(source, "web", attr_given=False)
    try:
        Settings(allowed_flakes=(prefix,)).check_allowed(source)
    except ConfigError as error:
        assert "allowed_flakes" in str(error)
        return False
    return True


@pytest.mark.parametrize(
    ("prefix", "ref"),
    [
        ("", "/etc/nixos"),
        ("", "github:o/r"),
        ("/etc/nixos", "/etc/nixos"),
        ("/etc/nixos", "/etc/nixos/web"),
        ("/etc/nixos", "/etc/nixos?dir=web"),
        ("/etc/nixos/", "/etc/nixos/web"),
        ("/", "/etc/nixos"),
        ("github:", "github:o/r"),
        ("github:o", "github:o/r"),
        ("github:o/r", "github:o/r/main"),
    ],
)
def test_a_prefix_allows_what_lies_below(prefix: str, ref: str) -> None:
    assert allows(prefix, ref)


@pytest.mark.parametrize(
    ("prefix", "ref"),
    [
        ("/etc/nixos", "/etc/nixos-evil"),
        ("/etc/nixos", "/etc"),
        ("/etc/nixos", "/etc/nixo"),
        ("/etc/nixos", "path:/etc/nixos"),
        ("/etc/nixos/", "/etc/nixos-evil"),
        ("github:o", "github:other/r"),
        ("github:o/r", "github:o/r2"),
        ("github:", "git+https://host/r"),
    ],
)
def test_a_prefix_ends_at_a_whole_component(prefix: str, ref: str) -> None:
    assert not allows(prefix, ref)


def test_an_attribute_does_not_matter() -> None:
    assert allows("/etc/nixos", Flake("/etc/nixos", "x", attr_given=True))


def test_files_are_narrowed_too_but_what_is_built_already_is_not() -> None:
    assert allows("/etc/nixos", NixFile("/etc/nixos/web.nix", "web", attr_given=False))
    assert not allows("/etc/nixos", NixFile("/etc/nixos.nix", "web", attr_given=False))
    assert allows("/etc/nixos", SYSTEM)


def test_a_parameter_does_not_lead_out_of_an_allowed_prefix() -> None:
    """Nix 2.26 fetches github:myorg/x?host=evil.example from there."""
    assert not allows("github:myorg/", Flake("github:myorg/x?host=evil", "w", attr_given=False))
    assert allows("github:myorg/", Flake("github:myorg/x?ref=v1&dir=a", "w", attr_given=False))
    assert allows("", Flake("github:myorg/x?host=own.example", "w", attr_given=False))


def test_no_prefix_allows_nothing_and_says_so() -> None:
    with pytest.raises(ConfigError, match=r"user\.inx\.file is '/x'.*\(allowed: none\)"):
        Settings(allowed_flakes=()).check_allowed(NixFile("/x", "web", attr_given=False))


@pytest.mark.parametrize(
    "value",
    ["/etc/nixos/../root", "/etc/nixos/./x", "path:/etc/nixos/%2e%2e/root", "nixpkgs/../root"],
)
def test_no_flake_steps_out_of_an_allowed_prefix(value: str) -> None:
    allowed = Settings(allowed_flakes=("/etc/nixos", "path:/etc/nixos", "nixpkgs"))
    with pytest.raises(ConfigError):
        spec = parse_spec({"user.inx.flake": value}, "web", allowed.default_flake)
        allowed.check_allowed(spec.source)
