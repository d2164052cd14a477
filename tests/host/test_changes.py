"""What an update changes is told, and a system can be tried before it is taken."""

import functools
import json
import re

import pytest
from support.disposable import Host
from support.gc import ROOTS
from support.incus import Incus
from support.pages import blocks, commands
from support.running import greeting_of, newest_system, says
from support.services import journal, restart_sidecar, sync
from support.sources import broken, bump, offer
from support.store import closure, collect, exists

pytestmark = pytest.mark.life

PAGE = "docs/updates.md"
CHANGES = "user.inx.status.changes"
TRIED = r"ready \(tried: (.+); user\.inx\.activate=switch takes it\)$"
# What Incus is asked to write until the status has been the same for a while.
WRITES = """
    rm -f "$SEEN"
    incus monitor --type=lifecycle --format=json >>"$SEEN" &
    trap 'kill $!' EXIT
    until grep -q instance-updated "$SEEN"; do
        incus config set "$NAME" user.other="$(date +%N)"; sleep 0.1
    done
    sleep 1
    : >"$SEEN"
    incus config set "$NAME" "$@"
    until incus config get "$NAME" user.inx.status | grep -q "$STATUS" &&
        incus config get "$NAME" user.inx.status.changes | grep -q "$CHANGES"; do sleep 0.1; done
    sleep 1.5
    echo $(grep -c "instance-updated.*/$NAME\\"" "$SEEN")
"""


def system(incus: Incus, greeting: str, *packages: str, dry: str = ":") -> str:
    """Offer a system that says `greeting` and needs `packages`, by the names of store paths."""
    needs = " ".join(
        f"""${{derivation {{
            name = "{name}"; system = deps.system; builder = "${{deps.busybox}}/bin/sh";
            args = [ "-c" "echo {incus.prefix} >$out" ];
        }}}}"""
        for name in packages
    )
    return offer(
        incus,
        f"""import ./system.nix {{
            inherit deps; name = "web"; dryActivate = {json.dumps(dry)};
            extra.greeting = {json.dumps(greeting)}; extra.packages = "{needs}";
        }}""",
    )


def log(incus: Incus, name: str) -> list[str]:
    """The sections of the log of changes, without their times."""
    text = incus.host.run(["cat", f"/var/log/inx/{incus.uuid(name)}.changes"]).stdout
    assert text.endswith("\n\n")
    return [re.sub(r"^20\d\d-\S+ ", "", part) for part in text.removesuffix("\n\n").split("\n\n")]


def building(host: Host, name: str) -> int:
    """How many builds were begun for the instance."""
    return sum("inx: building the system of" in line for line in journal(host, name))


def tried_root(incus: Incus, name: str) -> str:
    """What the root of the tried system holds; empty if there is none."""
    link = f"{ROOTS}/{name}.{incus.uuid(name)}/tried-system"
    return incus.host.run(["readlink", link], check=False).stdout.strip()


def wait_tried(incus: Incus, name: str) -> str:
    """Until a system was tried; what the status says of it."""
    match = re.match(TRIED, incus.wait_status(name, TRIED))
    assert match is not None
    return match[1]


def writes(incus: Incus, name: str, *pairs: str, status: str, changes: str) -> int:
    """How many writes to the instance there are if `pairs` are set, that of them included."""
    env = {"SEEN": f"/root/{incus.prefix}-seen", "NAME": name, "STATUS": status, "CHANGES": changes}
    return int(incus.host.run(["bash", "-euc", WRITES, "writes", *pairs], env=env).stdout)


def test_an_update_tells_what_it_changes(incus: Incus, host: Host) -> None:
    name = incus.adopt("web")
    flake = system(incus, "one", "nginx-1.26", "old-tool-3")
    incus.launch(name=name, flake=f"{flake}#web")
    first = incus.get(name, "user.inx.status.system")
    assert re.fullmatch(r"first system: \d+ packages, \d.* MiB", incus.get(name, CHANGES))

    # It is told in the write that tells the end.
    system(incus, "two", "nginx-1.28", "a", "b-0.1", "c-1-doc")
    line = "nginx 1.26 -> 1.28, +3 -1, 1 rebuilt, +"
    bump(incus, name)
    while (config := incus.info(name)["config"])["user.inx.status.generation"] == "1":
        pass
    assert config["user.inx.status"] == "ready" and config[CHANGES].startswith(line)
    assert says(incus, name, "two") and config["user.inx.status.generation"] == "2"
    second = incus.get(name, "user.inx.status.system")
    start, switch = log(incus, name)
    assert start.startswith("start, generation 1: first system: ")
    heading, *lines = switch.splitlines()
    assert heading == f"switch, generation 2: {incus.get(name, CHANGES)}"
    assert lines[:2] == [f"  before: {first}", f"  after: {second}"]
    assert "  nginx: 1.26 -> 1.28" in lines and "  old-tool: removed 3" in lines
    assert f"{name}: changes: c: added 1" in journal(host, name)

    # Generation 2 is asked for later, as the page says.
    by_nix, by_log = commands(PAGE, "What an update changes")
    printed = ""
    while not printed:  # incus exec may lose all output
        printed = host.sh(by_nix).stdout
    assert "nginx: 1.26 → 1.28" in printed and "old-tool: " in printed
    assert host.sh(by_log).stdout.split(" ", 1)[1] == switch + "\n"

    # A restart says nothing new; another generation is compared with the one that runs.
    incus("restart", "-f", name)
    incus.wait_generation(name, "2")
    assert incus.get(name, CHANGES).startswith(line) and len(log(incus, name)) == 2
    back = "nginx 1.28 -> 1.26, +1 -3, 1 rebuilt, -"
    count = writes(incus, name, "user.inx.generation=1", status="^ready$", changes=f"^{back}")
    assert count == 2, "that of its operator, and one more"
    assert incus.get(name, "user.inx.status.generation") == "1" and says(incus, name, "one")
    assert log(incus, name)[-1].startswith("switch, generation 1: nginx 1.28 -> 1.26, ")

    # What was said is not about a system that a start has chosen, nor about one that failed.
    incus("stop", "-f", name)
    incus("config", "unset", name, "user.inx.generation")
    incus.start(name)
    incus.wait_generation(name, "2")
    assert incus.get(name, CHANGES) == ""
    broken(incus)
    bump(incus, name, "3")
    assert incus.wait_status(name, "failed: ").endswith("; generation 2 runs on")
    assert incus.get(name, CHANGES) == "" and len(log(incus, name)) == 3


def test_a_system_that_was_tried_is_the_one_that_is_taken(incus: Incus, host: Host) -> None:
    flake = system(incus, "one", "nginx-1.26")
    name = incus.launch(flake=f"{flake}#web")
    first, pid = incus.get(name, "user.inx.status.system"), incus.pid(name)
    system(incus, "two", "nginx-1.28")
    incus.set(name, "user.inx.activate=build", "user.inx.update=2")
    tried = wait_tried(incus, name)
    assert incus.get(name, CHANGES).startswith("nginx 1.26 -> 1.28, 1 rebuilt, +")
    assert closure(host, tried) and tried_root(incus, name) == tried != first
    assert log(incus, name)[-1].startswith("build, tried: nginx 1.26 -> 1.28, 1 rebuilt, +")

    # Nothing was made current, by no restart of either, and a collection leaves what was tried.
    system(incus, "three", "nginx-1.30")
    for restart in restart_sidecar, lambda _: incus("restart", "-f", name):
        restart(host)
        incus.wait_inside(name)
        sync(host)
        collect(host)
        assert wait_tried(incus, name) == tried == tried_root(incus, name)
        assert says(incus, name, "one") and newest_system(incus, name) == first
        assert incus.get(name, "user.inx.status.generation") == "1" and exists(host, tried)
    assert incus.pid(name) != pid

    # It is taken without another build, though the source has changed.
    before, pid = building(host, name), incus.pid(name)
    changes = "^nginx 1.26 -> 1.28, 1 rebuilt, +"
    count = writes(incus, name, "user.inx.activate=dry-activate", status="unit", changes=changes)
    assert count == 2 and wait_tried(incus, name) == "no unit would change"
    incus("config", "unset", name, "user.inx.activate")
    incus.wait_generation(name, "2")
    assert incus.get(name, "user.inx.status.system") == tried and says(incus, name, "two")
    assert tried_root(incus, name) == "" and incus.pid(name) == pid
    assert incus.get(name, CHANGES).startswith("nginx 1.26 -> 1.28, 1 rebuilt, +")
    assert building(host, name) == before

    # A new value builds anew.
    bump(incus, name, "3")
    incus.wait_generation(name, "3")
    assert says(incus, name, "three")


def test_what_was_tried_is_let_go(incus: Incus, host: Host) -> None:
    """By another wish, by its failure, and with the instance."""
    name = incus.launch(flake=f"{system(incus, 'one')}#web", activate="build", update="1")
    assert incus.status(name) == "ready" and says(incus, name, "one")
    system(incus, "two", "two-2")
    bump(incus, name, "2")
    two = wait_tried(incus, name)

    system(incus, "three", "three-3")
    bump(incus, name, "3")
    incus.eventually(lambda: wait_tried(incus, name) != two, incus.story)
    three = wait_tried(incus, name)
    assert tried_root(incus, name) == three and three != two
    sync(host)
    collect(host)
    assert exists(host, three) and not exists(host, two)

    broken(incus)
    bump(incus, name, "4")
    assert incus.wait_status(name, "failed: ").endswith("; generation 1 runs on")
    assert tried_root(incus, name) == "" == incus.get(name, CHANGES)
    system(incus, "three", "three-3")
    bump(incus, name, "5")
    assert wait_tried(incus, name) == three
    bump(incus, name, "1")  # as it was
    incus.eventually(lambda: incus.status(name) == "ready", incus.story)
    assert tried_root(incus, name) == "" == incus.get(name, CHANGES)
    sync(host)
    collect(host)
    assert not exists(host, three) and says(incus, name, "one")

    # What a stopped instance is asked to try is tried after its start, which boots what was there.
    incus("stop", "-f", name)
    bump(incus, name, "6")
    incus.start(name)
    assert wait_tried(incus, name) == three and says(incus, name, "one")
    incus("stop", "-f", name)
    incus.set(name, "user.inx.activate=switch")
    incus("rename", name, renamed := incus.adopt(incus.name("renamed")))
    sync(host)
    collect(host)
    assert tried_root(incus, renamed) == three
    name, builds = renamed, building(host, renamed)
    incus.start(name)
    incus.wait_generation(name, "2")
    assert says(incus, name, "three") and building(host, name) == builds
    assert tried_root(incus, name) == ""

    incus.set(name, "user.inx.activate=build", "user.inx.update=7")
    system(incus, "seven", "seven-7")
    bump(incus, name, "8")
    incus.eventually(lambda: "seven: added 7" in log(incus, name)[-1], incus.story)
    seven = tried_root(incus, name)
    incus("delete", "-f", name)
    sync(host)
    collect(host)
    assert seven and not exists(host, seven)


def test_a_try_that_fails_leaves_what_can_be_taken(incus: Incus, host: Host) -> None:
    name = incus.launch(flake=f"{system(incus, 'one')}#web", activate="dry-activate")
    system(incus, "two", dry="echo no key for the disk; exit 3")
    bump(incus, name)
    said = incus.wait_status(name, "failed: dry-activate of ")
    assert said.endswith(" ended with status 3: no key for the disk; generation 1 runs on")
    assert says(incus, name, "one") and log(incus, name)[-1].startswith("dry-activate, failed: ")

    # A program that hangs is ended, or else would keep the next activation waiting.
    system(incus, "three", dry="exec sleep 1234")
    bump(incus, name, "3")
    guard = ["pgrep", "-f", "^/dev/.inx/busybox timeout -s KILL 60 /nix/store/.* dry-activate$"]
    end = ["pkill", "-KILL", "-f", "^sleep 1234$"]
    incus.eventually(lambda: host.run(guard, check=False).returncode == 0, incus.story)
    incus.eventually(lambda: host.run(end, check=False).returncode == 0, incus.story)
    said = incus.wait_status(name, "failed: dry-activate of .* took over 60 s, or was killed; ")

    # What it is asked to take is what was built, also as a test first.
    system(incus, "four")
    builds = building(host, name)
    incus.set(name, "user.inx.activate=test")
    incus.eventually(lambda: says(incus, name, "three"), incus.story)
    incus.set(name, "user.inx.activate=switch")
    incus.wait_generation(name, "2")
    assert says(incus, name, "three") and building(host, name) == builds

    # Trying a generation, or a link to a system, is no different.
    incus.set(name, "user.inx.activate=build", "user.inx.generation=1")
    one = wait_tried(incus, name)
    assert greeting_of(host, one) == "one" and says(incus, name, "three")
    tries = len(log(incus, name))
    host.run(["ln", "-sfn", one, f"/srv/{incus.prefix}-link"])
    link = f"user.inx.system=/srv/{incus.prefix}-link"
    incus.set(name, link, "user.inx.generation=", "user.inx.flake=", "user.inx.update=5")
    incus.eventually(lambda: len(log(incus, name)) == tries + 1, incus.story)
    assert wait_tried(incus, name) == one
    three = incus.get(name, "user.inx.status.system")
    host.run(["ln", "-sfn", three, f"/srv/{incus.prefix}-link"])
    # Root inside cannot hide it by a lie on what runs.
    nothing = f"/nix/store/{'0' * 32}-nothing"
    incus.sh(name, f"rm /run/current-system; ln -s {nothing} /run/current-system")
    incus.eventually(lambda: incus.get(name, "user.inx.status.system") == nothing, incus.story)
    incus.set(name, "user.inx.activate=switch")
    incus.wait_generation(name, "3")
    assert incus.get(name, "user.inx.status.system") == one and says(incus, name, "one")
    assert incus.get(name, CHANGES).startswith("1 rebuilt, ")


@pytest.mark.isolated
def test_an_isolated_instance_reads_no_names_of_what_is_tried(incus: Incus, host: Host) -> None:
    flake = system(incus, "one", "nginx-1.26")
    name = incus.launch(flake=f"{flake}#web", store="isolated")
    first = incus.get(name, "user.inx.status.system")
    system(incus, "two", "nginx-1.28", "secret-tool-7", dry="cat /etc/static/greeting")
    incus.set(name, "user.inx.activate=build", "user.inx.update=2")
    assert wait_tried(incus, name) == "/nix/store/..."
    assert incus.get(name, CHANGES).startswith("1 changed, +1, 1 rebuilt, +")
    two = tried_root(incus, name)
    assert not incus.inside(name, f"[ -e {two} ]")
    assert "secret-tool: added 7" in log(incus, name)[-1]
    incus.set(name, "user.inx.activate=dry-activate")
    incus.eventually(lambda: "no unit" in incus.status(name), incus.story)
    assert newest_system(incus, name) == first and incus.inside(name, f"[ -e {two} ]")
    incus.set(name, "user.inx.activate=switch")
    incus.wait_generation(name, "2")
    assert says(incus, name, "two") and incus.get(name, "user.inx.status.system") == two
    incus("restart", "-f", name)
    incus.wait_generation(name, "2")


def unit(text: str) -> str:
    return f"[Service]\\nExecStart=/run/current-system/sw/bin/sleep {text}\\n"


SIZE = r"[+-]?[\d.]+ [KMG]?i?B"


def prints(host: Host, command: str, lines: list[str]) -> bool:
    """Whether the command prints these lines, but for sizes and the widths of columns.

    Incus 7 draws lines between the columns of `compact`.
    """

    def plain(text: str) -> str:
        return re.sub(SIZE, "SIZE", " ".join(text.replace("│", " ").split()))

    return [plain(line) for line in host.sh(command).stdout.splitlines()] == [*map(plain, lines)]


def test_the_session_of_the_page(incus: Incus, host: Host) -> None:
    """What the page says that the commands print is what they print."""
    name = incus.adopt("web")
    dry = "echo would restart the following units: nginx.service >&2"
    flake = system(incus, "one", "nginx-1.26", dry=dry)
    incus.launch(name=name, flake=f"{flake}#web")
    system(incus, "two", "nginx-1.28", "brotli-1.1", dry=dry)
    (block,) = (block for block in blocks(PAGE) if block.heading == "A session")
    text = "".join(f"{line}\n" for line in block.lines)
    for command, printed in re.findall(r"^(incus .*)\n((?:# .*\n)*)", text, re.M):
        lines = [line.removeprefix("# ") for line in printed.splitlines()]
        if command.startswith("incus config set"):
            assert prints(host, command, lines), command
        else:  # a status follows within a second
            incus.eventually(functools.partial(prints, host, command, lines), incus.story)


def test_a_dry_run_names_the_units(incus: Incus, host: Host) -> None:
    def offered(seconds: int, dry: str = "") -> str:
        extra = f"dryActivate = {json.dumps(dry)};" if dry else ""
        return offer(
            incus,
            f"""(import ./systemd.nix {{
                inherit deps; name = "web"; {extra} extra = {{
                    "systemd/system/web.service" = "{unit(str(seconds))}";
                    "systemd/system/multi-user.target.d/web.conf" = "[Unit]\\nWants=web.service\\n";
                }};
            }})""",
        )

    name = incus.adopt("web")
    incus.launch(name=name, flake=f"{offered(1000)}#web")
    running = "[ $(systemctl is-system-running --wait) = running ]"
    incus.eventually(lambda: incus.inside(name, running), incus.story)
    pid = incus.said(name, "systemctl", "show", "--value", "-p", "MainPID", "web.service")
    offered(2000)
    dry, look, take = commands(PAGE, "Try a system first")
    host.sh(dry)
    assert wait_tried(incus, name) == "would restart web.service"
    assert "would restart web.service" in host.sh(look).stdout
    assert "  would restart web.service" in log(incus, name)[-1].splitlines()
    shown = incus.said(name, "systemctl", "show", "--value", "-p", "MainPID", "web.service")
    assert shown == pid and incus.get(name, "user.inx.status.generation") == "1"
    host.sh(take)
    incus.wait_generation(name, "2")
    assert "  restarting web.service" in log(incus, name)[-1].splitlines()
    incus.sh(name, "grep -q 'sleep 2000' /etc/systemd/system/web.service")
