"""Texts of user.inx.config: the module that they say, or refused with the line. Nix tells which."""

import json
import re
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from support.disposable import Host

pytestmark = [pytest.mark.main, pytest.mark.sid]

# What ends or begins something in Nix, and what hides it.
PIECES = (
    "{", "}", "(", ")", "[", "]", "''", '"', "${", "=", ";", "a", "lib", "let ", "in ", "with ",
    "rec ", "inherit ", "or ", "//", "?", ".", ":", ",", "@", "...", "# c\n", "/* c */", "/*", "*/",
    "#", "\n", "\r\n", "1", "null", "./x", "<n>", "http://a.b", "''${", "'''", "$${", "\\", "é",
    "☃", "|>", "if ", "else ", "a = 1;", "${x} = 1;", '"${x}" = 2;', "x: ", "{ ... }:", "} // {",
    "}: {", "}; y = {", "in {", "in null", "->", "!", "\t", "`", "$",
)  # fmt: skip
# Values, and what they give as JSON.
VALUES: dict[str, Any] = {
    "1": 1,
    '"}"': "}",
    "''}''": "}",
    '"\\"}"': '"}',
    "''\n  ${\"}\"} '''\n''": "} ''\n",
    '"${"}"} # no comment"': "} # no comment",
    "[ 1 { } ]": [1, {}],
    "1 # } in {\n": 1,
    "/* } // { */ null": None,
    "let a = 1; in a": 1,
    "(x: x) true": True,
    "{ b = rec { c = 2; }; }.b.c": 2,
    '"ünï☃"': "ünï☃",
}
BODY = {
    "alone": "value = %s;",
    "other names": "a.b.c = null; inherit (lib) none; value = %s; \"q r\" = 1; ${'x'} = 2;",
    "a comment at the end": "value = %s; # }",
    "a long comment": "/* { */ value = %s; /* } */\r\n",
}
MODULE = {
    "a set": "{ value = %s; }",
    "a function": "{ config, lib, ... }: { value = %s; }",
    "with a name": "all@{ lib, ... }:\nwith lib; { value = %s; }\n# end",
    "a let": "let a = { }; in a // { value = %s; }",
    "in brackets": "({ value = %s; })",
}


def classify(host: Host, texts: list[str]) -> list[list[Any]]:
    argv = ["env", "-C/root/inx/tests", "/opt/inx/bin/python3", "-m", "support.classify"]
    return list(json.loads(host.run(argv, input=json.dumps(texts), timeout=500).stdout))


def test_a_text_is_the_module_that_it_says(host: Host) -> None:
    wanted = [
        (kind, form.replace("'x'", '"x"') % text, value)
        for kind, forms in (("body", BODY), ("module", MODULE))
        for number, form in enumerate(forms.values())
        for place, (text, value) in enumerate(VALUES.items())
        if (place + number) % 3 == 0
    ]
    found = classify(host, [text for _, text, _ in wanted])
    for (kind, text, value), told in zip(wanted, found, strict=True):
        assert told == [kind, value], text


def generated(strategy: st.SearchStrategy[str], count: int) -> list[str]:
    found: list[str] = []

    @settings(
        max_examples=count,
        phases=[Phase.generate],
        database=None,
        derandomize=True,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def collect(text: str) -> None:
        found.append(text)

    collect()
    return found


soup = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)
plain = st.sampled_from([form % "1" for form in (BODY["alone"], *MODULE.values())])


@st.composite
def damaged(draw: st.DrawFn) -> str:
    """A good text with a piece too many."""
    text, piece = draw(plain), draw(st.sampled_from(PIECES))
    place = draw(st.integers(0, len(text)))
    return text[:place] + piece + text[place:]


def test_any_other_text_is_refused_with_a_line(host: Host) -> None:
    unicode = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20)
    texts = [*generated(soup, 50), *generated(damaged(), 50), *generated(unicode, 10)]
    for text, (kind, told) in zip(texts, classify(host, texts), strict=True):
        if kind == "refused":
            found = re.match(r"user\.inx\.config:([0-9]+): \S", told)
            assert found, (text, told)
            assert 1 <= int(found[1]) <= text.count("\n") + 1, (text, told)
        else:
            assert "syntax error" not in str(told), (text, told)


DEEP = {
    "brackets": "value = " + "(" * 20_000 + "1" + ")" * 20_000 + ";",
    "braces": "{" * 100_000,
    "a megabyte in a line": 'value = "' + "x" * ((1 << 20) - 20) + '";',
    "a megabyte of quotes": '"' * ((1 << 20) - 1),
    "a megabyte of lines": "# x\n" * (1 << 18),
}


def test_long_and_deep_texts(host: Host) -> None:
    found = dict(zip(DEEP, classify(host, list(DEEP.values())), strict=True))
    assert found["a megabyte in a line"][0] == "body"
    assert found["a megabyte of lines"] == ["body", None]
    # The parser of Nix 2.26 has no room for so many; that of 2.34 has.
    if found["brackets"] != ["body", 1]:
        assert found["brackets"][1].startswith("user.inx.config:1: memory exhausted")
    for name in ("braces", "a megabyte of quotes"):
        kind, told = found[name]
        assert kind == "refused" and told.startswith("user.inx.config:1: "), (name, told[:200])


@pytest.mark.parametrize(
    "text",
    [
        "a = 1; } // { b = 2;", "a = 1; }: { b = 2;", "in { ",
        "} // { # dynamic attributes not allowed in let",
    ],
)  # fmt: skip
def test_no_brace_of_a_text_ends_the_body(host: Host, text: str) -> None:
    [[kind, told]] = classify(host, [text])
    assert kind == "refused" and "syntax error, unexpected" in told
