"""What an operator reads of the outputs of Nix, as Nix 2.26 and 2.34 printed them.

nix-VERSION.txt has the outputs, each after a line "== NAME"; nix-explained.txt has the sentences,
with HASH for hashes of the store: one for both versions, or one for each.
"""

import asyncio
import re
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from inx_sidecar.base.process import Completed
from inx_sidecar.builds.build_user import BuildUser, Evaluator
from inx_sidecar.builds.explanation import explain
from inx_sidecar.config.sources import Flake, NixFile, Source, System

pytestmark = pytest.mark.main

LOG = "/var/log/inx/UUID.build.log"
ROOT = BuildUser("root", 0, 0, "/root")
ALICE = BuildUser("alice", 1000, 1000, "/home/alice")
NOHOME = BuildUser("nohome", 1001, 1001, "/home/nohome")
BUILD_USER = BuildUser("inx-build", 999, 999, "/var/lib/inx-build")
Case = tuple[Source, Evaluator]


def parts(name: str) -> dict[str, str]:
    text = (Path(__file__).parent / f"nix-{name}.txt").read_text()
    found = re.split(r"^== (\w+)\n", text, flags=re.MULTILINE)[1:]
    return dict(zip(found[::2], found[1::2], strict=True))


def flake(name: str, user: BuildUser = ROOT, scheme: str = "path:", doubt: str = "") -> Case:
    source = Flake(f"/srv/{name}", "web", attr_given=True)
    seen = replace(source, ref=f"{scheme}/srv/{name}")
    return source, Evaluator(user, seen, doubt=doubt, owner="alice" if doubt else "")


def fetched(ref: str) -> Case:
    source = Flake(ref, "web", attr_given=True)
    return source, Evaluator(BUILD_USER, source)


def file(path: str, user: BuildUser = ROOT, attr: str = "web") -> Case:
    source = NixFile(path, attr, attr_given=True)
    directory = path.rpartition("/")[0] if path.endswith(".nix") else path
    return source, Evaluator(user, source, directory=directory)


OUTPUTS: Final = {version: parts(version) for version in ("2.26", "2.34")}
EXPLAINED: Final = parts("explained")
MISSING: Final = System(f"/nix/store/{'0' * 32}-nixos-system-web")
SERVER = "http://127.0.0.1:8999"
# The others are the flakes /srv/NAME of root.
CASES: Final = {
    **{name: flake(name, ALICE) for name in ("p3", "p6", "p16")},
    "p1": flake("rootdir/p1", ALICE),
    "p2": flake("p2", BUILD_USER, doubt="several users can change it"),
    "p4": file("/srv/p4", ALICE),
    "p5": flake("p5", NOHOME),
    "p7": flake("p7ro"),
    "p10": flake("p10", BUILD_USER, "git+file://", doubt="several users can change it"),
    "p11": flake("p11", ALICE, "git+file://"),
    "p18": file("/srv/p18/x.nix", ALICE),
    "mod1": file("/srv/module.nix", attr="mod1"),
    **{name: file(f"/srv/{name}.nix") for name in ("nixpath", "syn", "five", "reqarg")},
    "w401": fetched(f"{SERVER}/401/x.tar.gz"),
    "w404": fetched(f"{SERVER}/404/x.tar.gz"),
    "html": fetched(f"{SERVER}/owner/repo"),
    "g404": fetched(f"git+{SERVER}/404/repo"),
    "g401": fetched(f"git+{SERVER}/401/repo"),
    "ghtml": fetched(f"git+{SERVER}/repo"),
    "gh": fetched("github:owner/repo?host=127.0.0.1:8999"),
    "iso3": (MISSING, Evaluator(BUILD_USER, MISSING)),
}  # fmt: skip
# What the command prints that asks for the names of a set.
NAMES: Final = {"emptyc": "inx-count 0\n", "none": "error: flake '' does not provide attribute x\n"}


def said(output: str, case: Case, names: str = "", log: str = LOG) -> str:
    async def ask(_command: list[str]) -> Completed:
        return Completed(("nix", "eval"), 0, names)

    source, evaluator = case
    done = Completed(("nix", "build"), 1, output)
    return asyncio.run(explain(source, evaluator.source, evaluator, done, log, ask))


@pytest.mark.parametrize("name", EXPLAINED)
def test_an_output_of_nix_becomes_one_sentence(name: str) -> None:
    versions = [version for version in OUTPUTS if name in OUTPUTS[version]]
    sentences = EXPLAINED[name].splitlines()
    assert versions and len(sentences) in (1, len(versions))
    for version in versions:
        case = CASES.get(name, flake(name))
        text = said(OUTPUTS[version][name], case, NAMES.get(name, ""))
        wanted = sentences[-1] if version == "2.34" else sentences[0]
        assert re.sub("/nix/store/[0-9a-z]{32}-", "/nix/store/HASH-", text) == wanted


def test_every_output_has_its_sentence() -> None:
    assert set(EXPLAINED) == {name for found in OUTPUTS.values() for name in found}
    ways_out = (
        "set ", "make ", "copy", "change ", "put ", "correct", "write ", "let ", "run ", "name ",
        "define ", "look at ", "needs its password", f"{LOG} has the rest", "it must be ",
    )  # fmt: skip
    for name, text in EXPLAINED.items():
        for sentence in text.splitlines():
            assert any(way in sentence for way in ways_out), name


def test_a_log_that_does_not_exist_is_not_named() -> None:
    text = said(OUTPUTS["2.26"]["syntax"], flake("syntax"), log="")
    assert text == "syntax error, unexpected '}' at flake.nix:4:3"


BUILDER = """error: builder for '/nix/store/x.drv' failed with exit code 2;
       last 25 log lines:
"""


@pytest.mark.parametrize(
    ("lines", "said_last"),
    [
        (["cc -c x.c", "x.c:3: error: no such type", "make: *** [x.o] Error 1"], "no such type"),
        (["one", "two."], "; its log says: two; "),
        (["\x1b[31mred\x1b[0m \x07\u202e"], "; its log says: red ??; "),
        (["fatal: https://me:s3cret@h/x"], "; its log says: fatal: https://***@h/x; "),
        (["word " * 1000], f"; its log says: {'word ' * 40}...; "),
    ],
)
def test_what_a_builder_said_is_one_short_line_without_credentials(
    lines: list[str], said_last: str
) -> None:
    text = said(BUILDER + "".join(f"       > {line}\n" for line in lines), flake("x"))
    assert said_last in text and "s3cret" not in text and len(text) < 400


@pytest.mark.parametrize("word", ["x" * 5000, f"{'x' * 195}/nix/store/{'0' * 32}-secret"])
def test_a_word_that_is_too_long_is_not_shown_in_part(word: str) -> None:
    """A part of a store path would not be recognised in a text for an isolated instance."""
    text = said(f"{BUILDER}       > {word}\n", flake("x"))
    assert "its log says" not in text and "xxx" not in text
    at = f"error: undefined variable 'a'\n       at /srv/{word}:1:2:\n"
    assert "xxx" not in said(at, file("/srv/x.nix"))


def test_the_rest_of_a_message_that_ends_with_a_colon_is_said() -> None:
    """As nixpkgs throws them."""
    output = """error:
       … while calling the 'throw' builtin
         at /nix/store/00000000000000000000000000000000-source/lib/x.nix:7:5:
            6|

       error:
       Failed assertions:
       - The 'fileSystems' option does not specify your root file system.
       - x
"""
    text = said(output.replace("error:\n       Failed", "error: Failed"), flake("x"))
    assert text.startswith(
        "Failed assertions: - The 'fileSystems' option does not specify your root file system. - x"
        " at lib/x.nix:7:5; "
    )


def test_a_suggestion_of_nix_is_repeated() -> None:
    output = """error: attribute 'enabel' missing
       at /srv/x.nix:1:2:
            1| x
             |  ^
       Did you mean enable?
"""
    assert " at /srv/x.nix:1:2; Did you mean enable?" in said(output, file("/srv/x.nix"))


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        ("attribute 'currentSystem' missing", 'write the system, as "x86_64-linux"'),
        (
            "access to absolute path '/etc/x' is forbidden in pure evaluation mode (use '--impure' "
            "to override)",
            "; change what it reads",
        ),
        (
            "experimental Nix feature 'pipe-operators' is disabled; add '--extra-experimental-x'",
            "add it to experimental-features in /etc/nix/nix.conf",
        ),
        (
            "Package \u2018vscode-1\u2019 in /nix/store/x has an unfree license "
            "(\u2018unfree\u2019), refusing to evaluate.",
            "set nixpkgs.config.allowUnfree = true in the configuration",
        ),
        ("writing to file: No space left on device", "'df -h /nix /tmp' shows where"),
        (
            "path URL 'path:/srv/x?ref=main' has unsupported parameter 'ref'",
            "so '?ref=' has no meaning",
        ),
        (
            "resolving Git reference 'x': revspec 'x' not found",
            "; name a branch that exists by ?ref=",
        ),
        ("hash 'abc123' has wrong length for hash algorithm 'sha1'", "'git rev-parse abc123'"),
        ("cannot find flake 'flake:nope' in the flake registries", " has the rest"),
        ("input 'x:y' is unsupported", " has the rest"),
    ],
)
def test_what_nix_does_not_say_is_added(reason: str, text: str) -> None:
    assert text in said(f"error: {reason}\n", flake("x"))
    assert "--impure" not in said(f"error: {reason}\n", flake("x"))


def test_a_name_that_the_registry_lacks_may_be_a_directory() -> None:
    reason = "cannot find flake 'flake:web' in the flake registries"
    for ref in ("web", "flake:web"):
        text = said(f"error: {reason}\n", fetched(ref))
        assert text.startswith("web is a name for the flake registry") and reason in text
        assert text.endswith("as in /etc/nixos#NAME")


def test_a_function_that_fails_somewhere_is_no_module() -> None:
    reason = "function 'anonymous lambda' called without required argument 'x'"
    inner = (
        f"error:\n       … while evaluating the attribute 'a'\n\n       error: {reason}\n"
        "       at /srv/x.nix:1:1:\n"
    )
    other = f"error: {reason}\n       at /srv/lib.nix:1:1:\n"
    for output in (inner, other):
        assert said(output, file("/srv/x.nix")).startswith(f"{reason} at /srv/")


def test_no_command_of_root_is_told_for_a_repository_of_a_user() -> None:
    output = OUTPUTS["2.26"]["p6"]
    text = said(output, flake("p6", ALICE, "git+file://"))
    assert text.endswith("(Permission denied): let alice own it and its directory")


def test_a_file_beside_a_nix_file_belongs_to_the_source() -> None:
    refused = "error: opening file '/srv/a/lib.nix': Permission denied\n"
    text = said(refused, file("/srv/a/x.nix", ALICE))
    assert text.startswith("alice may not read /srv/a/lib.nix: let alice enter each directory")


@pytest.mark.parametrize("path", ["/etc/shadow", "/srv/x/../../etc/shadow", "/srv/xy"])
def test_nobody_is_told_to_open_what_the_source_names_elsewhere(path: str) -> None:
    text = said(f"error: opening file '{path}': Permission denied\n", flake("x", ALICE))
    assert (
        text == f"alice may not read {path}, which is not in /srv/x: change what the source reads"
    )
    thrown = (
        f"error:\n       … while calling the 'throw' builtin\n\n       error: opening file "
        f"'{path}': Permission denied\n"
    )
    assert "may not read" not in said(thrown, flake("x", ALICE))
