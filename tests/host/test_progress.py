"""The status and the console of a build say how far it is, in few writes."""

import re

import pytest
from support.disposable import Host
from support.incus import Incus
from support.services import LISTEN, PROGRAM, journal
from support.sources import derivation, launched, offer

pytestmark = pytest.mark.main

COUNT = 40
# Builders may print what looks like the log of Nix.
FORGED = (
    '@nix {"action":"start","id":1,"type":104,"level":0,"text":""}',
    '@nix {"action":"result","id":1,"type":105,"fields":[900000,900000,0,0]}',
    '@nix {"action":"start","id":2,"type":105,"level":0,"text":"","fields":["/nix/store/x"]}',
    '@nix {"action":"msg","level":0,"msg":"' + "long " * 3000 + '"}',
    "@nix " + "[" * 20000,
)


def many(incus: Incus) -> str:
    """A flake whose system needs 40 small builds, one after the other."""
    nap = "${deps.busybox}/bin/sleep 0.1; echo >$out"
    script = f"echo hello from ${{name}}; {nap}"
    one = f"""derivation {{
        inherit name; system = deps.system; builder = "${{deps.busybox}}/bin/sh";
        args = [ "-c" "{script}" ];
    }}"""
    names = f'(i: let name = "part-{incus.prefix}-${{toString i}}.0"; in {one})'
    extra = f"toString (builtins.genList {names} {COUNT})"
    return offer(
        incus, f'import ./system.nix {{ inherit deps; name = "web"; extra.parts = {extra}; }}'
    )


@pytest.mark.sid
@pytest.mark.parametrize("store", ["shared", "isolated"])
def test_a_build_tells_how_far_it_is_in_few_writes(incus: Incus, host: Host, store: str) -> None:
    name = incus.init(flake=f"{many(incus)}#web", store=store)
    seen = f"/root/{incus.prefix}-events"
    script = """
        incus start "$NAME"
        begin=$(date +%s)
        "$PROGRAM" wait "$NAME" --timeout 60 &
        waits=$!
        while kill -0 $waits 2>/dev/null; do
            incus config get "$NAME" user.inx.status; sleep 0.2
        done
        wait $waits
        sleep 1
        echo "$(sed -n '/instance-started/,$p' "$SEEN" | grep -c '"action":"instance-updated"')" \\
            "$(($(date +%s) - begin))"
    """
    env = {"SEEN": seen, "NAME": name, "PROGRAM": PROGRAM}
    *statuses, counted = host.sh(LISTEN + script, env=env).stdout.splitlines()
    writes, seconds = map(int, counted.split())
    # `building`, then one each two seconds, `starting` and `ready`.
    assert writes <= 3 + seconds / 2, (statuses, counted)
    named = "" if store == "isolated" else rf", part-{incus.prefix}-\d+\.0"
    counts = [match[1] for text in statuses if (match := re.fullmatch(
        rf"building (\d+)/{COUNT + 1}{named}", text))]  # fmt: skip
    assert counts and counts == sorted(counts, key=int), statuses
    console = incus.console(name)
    assert f"inx: to do: {COUNT + 1} builds, 0 fetches" in console
    assert re.search(rf"inx: done in \d+ s, {COUNT + 1} built, 0 fetched", console)
    assert f"hello from part-{incus.prefix}-7.0" in console and "@nix" not in console
    assert re.search(r"built in \d+ s", "".join(journal(host, name)))


def test_a_builder_that_prints_a_log_of_nix_forges_no_numbers(incus: Incus, host: Host) -> None:
    name = launched(incus)
    words = "".join(f"echo {text!r}; " for text in FORGED)
    script = f"{words} ${{deps.busybox}}/bin/sleep 2.5; echo last words; exit 1"
    offer(incus, derivation("forger", script))
    incus.set(name, "user.inx.update=2")
    incus.wait_status(name, "building 0/1, forger$")
    end = host.run([PROGRAM, "wait", name, "--timeout", "60"], check=False)
    assert end.returncode == 1 and "900000" not in incus.status(name)
    assert re.search(r"failed: .*; generation 1 runs on$", incus.status(name))
    said = journal(host, name)
    assert f"{name}: last words" in said and len(max(said, key=len)) < 10_000
    assert any(re.search(r"inx: failed after \d+ s, 0 built", text) for text in said)
