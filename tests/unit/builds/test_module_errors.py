"""What an operator reads of the outputs of Nix 2.26 and 2.34 for mistakes in modules.

nix-modules-VERSION.txt has the outputs, each after a line "== NAME".
"""

import re
from pathlib import Path
from typing import Final

import pytest

from inx_sidecar.base.process import Completed
from inx_sidecar.builds.module_errors import module_error, without_places

pytestmark = pytest.mark.main

KEY: Final = "user.inx.config"
WANTED: Final = {
    "undefined": f"{KEY}:3: undefined variable 'pgks'",
    "option": "The option `services.ngins' does not exist. Definition values: "
    f"- In `{KEY}': {{ enable = true; }}; "
    "Did you mean `services.nginx', `services.openssh' or `services.postgresql'?",
    "conflict": "The option `networking.hostName' has conflicting definition values: "
    f'- In `{KEY}\': "a" - In `{KEY}\': "b" Use `lib.mkForce value` or',
    "duplicate": f"{KEY}:3: attribute 'a.b' already defined at {KEY}:2:3",
    "throw": "no such luck",
}


def outputs(version: str) -> dict[str, str]:
    text = (Path(__file__).parent / f"nix-modules-{version}.txt").read_text()
    found = re.split(r"^== (\w+)\n", text, flags=re.MULTILINE)[1:]
    return dict(zip(found[::2], found[1::2], strict=True))


@pytest.mark.parametrize("version", ["2.26", "2.34"])
def test_an_error_names_the_key_and_the_line(version: str) -> None:
    found = {
        name: module_error(Completed(("nix",), 1, text)) for name, text in outputs(version).items()
    }
    for name, wanted in WANTED.items():
        assert found[name].startswith(wanted), found[name]
    assert "is not of type" in found["type"] and KEY in found["type"]
    forbidden = "is forbidden in pure evaluation mode: a text reads no file of the host; name a"
    assert forbidden in found["passwd"]
    assert "its log says: oh no" in found["buildfail"]
    for name, text in found.items():
        assert "-source/" not in text and "«" not in text and text.isprintable(), name
        assert name == "buildfail" or "/nix/store/" not in text, text


def test_a_file_beside_a_text() -> None:
    text = f"error: path '/nix/store/{'a' * 32}-source/other.nix' does not exist"
    told = module_error(Completed(("nix",), 1, text))
    assert told.startswith("path 'other.nix' does not exist; a text reads no file of the host")


@pytest.mark.parametrize(
    "place",
    [
        f"/nix/store/{'a' * 32}-source",
        "«path:/var/lib/inx/builds/u/x/flake»",
        "/var/lib/inx/builds/1-2/tmpx/flake",
    ],
)
def test_where_the_flake_of_inx_lies_is_not_told(place: str) -> None:
    assert without_places(f"in {place}/{KEY}.base:3:1") == f"in {KEY}.base:3:1"
    assert without_places(f"at {place}/flake.nix:9:2") == "at flake.nix:9:2"
