"""The syntax of store paths is strict; a path is valid if Nix's database says so."""

import re
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inx_sidecar.base import paths
from inx_sidecar.base.errors import SystemMissingError, UnsupportedError
from inx_sidecar.nix import store_paths
from inx_sidecar.nix.store_paths import (
    STORE_PATH,
    check_toplevel,
    resolve_toplevel,
    store_path_of,
    valid_paths,
)

pytestmark = pytest.mark.main

HASH = "0123456789abcdfghijklmnpqrsvwxyz"
PATH = f"/nix/store/{HASH}-nixos-system-web-25.05"


@pytest.mark.parametrize("name", ["a", "a.b", "a_b+c?d=e", "...", ".hidden", "a" * 211])
def test_what_nix_accepts_is_a_store_path(name: str) -> None:
    assert STORE_PATH.fullmatch(f"/nix/store/{HASH}-{name}")


@pytest.mark.parametrize(
    "text",
    [
        "", "/nix/store", f"/nix/store/{HASH}", f"/nix/store/{HASH}-", f"{PATH}/", f"{PATH}/init",
        f"{PATH}\n", f"//nix/store/{HASH}-a", f"/nix/store/{HASH}-.", f"/nix/store/{HASH}-..",
        f"/nix/store/{HASH}-..-a", f"/nix/store/{HASH}-.-a", f"/nix/store/{HASH}-a b",
        f"/nix/store/{HASH}-é", f"/nix/store/{HASH[:-1]}-a", f"/nix/store/{HASH[:-1]}e-a",
        f"/nix/store/{HASH.upper()}-a", f"/nix/store/{HASH}-{'a' * 212}", f"nix/store/{HASH}-a",
    ],
)  # fmt: skip
def test_anything_else_is_none(text: str) -> None:
    assert not STORE_PATH.fullmatch(text)


@pytest.mark.parametrize(
    "below", ["", "/", "/bin", "/bin/sh", "//", "/..", "/a b\n/é\x1b", "/" + "x" * 4000, "/-x"]
)
def test_what_lies_below_a_store_path_counts_as_that_path(below: str) -> None:
    assert store_path_of(PATH + below) == PATH
    assert store_path_of(f"/nix/store/{HASH}-.a{below}") == f"/nix/store/{HASH}-.a"


@pytest.mark.parametrize(
    "target",
    [
        "", "/", "/nix/store", "/nix/store/", f"/nix/store/{HASH}", f"/nix/store/{HASH}/x",
        f"/nix/store/{HASH}-", f"/nix/store/{HASH}-/x", f"nix/store/{HASH}-a",
        f"//nix/store/{HASH}-a", f"/nix//store/{HASH}-a", f"/nix/store//{HASH}-a",
        f"/nix/store/../store/{HASH}-a", f"../../nix/store/{HASH}-a", f"/host{PATH}",
        f"{PATH}\n", f"{PATH}\n/x", f"{PATH} /x", f"/nix/store/{HASH}-é/x",
        f"/nix/store/{HASH.upper()}-a/x", f"/nix/store/{HASH}-{'a' * 212}/x",
        f"/nix/store/{HASH}-./x", f"/nix/store/{HASH}-../x", f"/nix/store/{HASH}-..-a/x",
        "/nix/store/.links/x", "/root/result", f" {PATH}", f"{PATH}\0",
    ],
)  # fmt: skip
def test_a_link_that_leads_elsewhere_holds_none(target: str) -> None:
    """As in Nix, which compares text."""
    assert store_path_of(target) is None


@given(
    st.lists(
        st.sampled_from(
            ["/nix/store/", "/nix", "/", HASH, "-", ".", "..", "a", "é", "\n", " ", "a" * 211]
        ),
        max_size=8,
    ).map("".join)
)
def test_only_a_store_path_is_ever_held(target: str) -> None:
    path = store_path_of(target)
    if path is None:
        assert not STORE_PATH.fullmatch(target)
    else:
        assert STORE_PATH.fullmatch(path) and f"{target}/".startswith(f"{path}/")


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "db.sqlite"
    with closing(sqlite3.connect(path)) as db:
        db.execute("create table ValidPaths (path text unique not null)")
        db.execute("insert into ValidPaths values (?)", (PATH,))
        db.commit()
    monkeypatch.setattr(paths, "NIX_DB", str(path))
    return path


def test_the_database_tells_what_is_valid(database: Path) -> None:
    assert valid_paths({PATH, f"{PATH}-other", "x' or '1'='1", "/etc/passwd"}) == {PATH}
    assert valid_paths([]) == set()


def test_the_database_is_only_read(database: Path) -> None:
    before = database.read_bytes(), sorted(database.parent.iterdir())
    valid_paths({PATH})
    assert (database.read_bytes(), sorted(database.parent.iterdir())) == before


@pytest.mark.parametrize("content", [None, b"", b"garbage" * 100])
def test_a_database_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    path = tmp_path / "db.sqlite"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setattr(paths, "NIX_DB", str(path))
    with pytest.raises(UnsupportedError, match=f"cannot read Nix's database {path}"):
        valid_paths({PATH})


def test_a_link_that_leads_nowhere_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemMissingError, match=r"the system '.*/gone' of 'web': No such file"):
        resolve_toplevel(f"{tmp_path}/gone", "web")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(SystemMissingError, match="of 'web'"):
        resolve_toplevel(f"{tmp_path}/loop", "web")


def test_a_link_that_leaves_the_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(SystemMissingError, match=f"leads to '{tmp_path}', which is no store path"):
        resolve_toplevel(f"{tmp_path}/link", "web")


def test_a_chain_of_links_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "system-1-link").symlink_to(tmp_path / "target")
    (tmp_path / "system").symlink_to("system-1-link")
    (tmp_path / "target").touch()
    monkeypatch.setattr(store_paths, "STORE_PATH", re.compile(".*/target"))
    assert resolve_toplevel(f"{tmp_path}/system", "web") == f"{tmp_path}/target"


def test_a_system_has_an_init(tmp_path: Path) -> None:
    with pytest.raises(SystemMissingError, match=r"the result is .*, which is not a NixOS system"):
        check_toplevel(str(tmp_path), "the result")
    (tmp_path / "init").symlink_to("/nowhere")
    check_toplevel(str(tmp_path), "the result")


def test_a_system_that_only_an_initrd_can_prepare_is_refused(tmp_path: Path) -> None:
    """As nixpkgs makes it with system.nixos-init.enable; the other kinds boot in a container."""
    system = tmp_path / "system"
    system.mkdir()
    (system / "init").write_bytes(b"\x7fELF\2\1\1")
    check_toplevel(str(system), "it")  # boot.isContainer, with an init that is a program
    (system / "initrd").symlink_to("/nix/store/initrd")
    with pytest.raises(SystemMissingError, match=r"boots by an initrd only; set boot\.isContainer"):
        check_toplevel(str(system), "it")
    (system / "prepare-root").touch()
    check_toplevel(str(system), "it")
    (system / "prepare-root").unlink()
    (system / "init").write_text("#!/nix/store/bash\n")  # an initrd without systemd
    check_toplevel(str(system), "it")


def test_no_link_in_a_store_path_is_followed(tmp_path: Path) -> None:
    """Such links may lead into a file system of a container, which need not answer."""
    (tmp_path / "real/bin").mkdir(parents=True)
    (tmp_path / "real/bin/switch").touch()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real/sbin").symlink_to("bin")
    is_in = store_paths.is_in
    assert is_in(f"{tmp_path}/real", "bin/switch")
    assert not is_in(f"{tmp_path}/real", "bin/other")
    assert not is_in(f"{tmp_path}/real", "sbin/switch")
    assert not is_in(f"{tmp_path}/link", "bin/switch")


@pytest.mark.isolated
@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", ()),
        (PATH, (PATH,)),
        (f" {PATH}\n{PATH}-b,{PATH}.c, ", (PATH, f"{PATH}-b", f"{PATH}.c")),
        (f"{PATH}/bin /etc {PATH}", (PATH,)),
    ],
)
def test_a_list_of_store_paths(text: str, found: tuple[str, ...]) -> None:
    assert store_paths.split_store_paths(text) == found


@pytest.mark.isolated
@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        (f"building '{PATH}.drv'...", "building '/nix/store/...'..."),
        (f"{PATH}/bin/sh: {PATH[11:]}-x failed", "/nix/store/.../bin/sh: /nix/store/... failed"),
        ("cannot build /etc/nixos#web: no such attribute", None),
        (f"\x1b[1m{PATH[11:]} ", "\x1b[1m/nix/store/... "),
        (f"{'1' * 31}-not-a-hash", None),
    ],
)
def test_a_veil_hides_the_names_of_store_paths(text: str, redacted: str | None) -> None:
    assert store_paths.redact_store_paths(text) == (text if redacted is None else redacted)
