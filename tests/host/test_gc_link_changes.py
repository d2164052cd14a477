"""A link that changes inside, and the roots as the operator reads them."""

import json
import re

import pytest
from support.disposable import Host
from support.gc import (
    SIDECAR,
    build_by,
    collect_when_idle,
    journal,
    journal_end,
    left,
    root_directory,
    run_inside,
)
from support.incus import Incus

pytestmark = pytest.mark.gc

# What happens to the link dir/out, which leads to $path, and whether the link still holds the path.
# Nix decides the same for links of the host.
CHANGES = {
    "removed": ("rm dir/out", False),
    "renamed": ("mv dir/out dir/other", False),
    "a file": ("rm dir/out; echo $path >dir/out", False),
    "a directory": ("rm dir/out; mkdir dir/out", False),
    "led elsewhere": ("ln -sfn /etc/passwd dir/out", False),
    "led to the store": ("ln -sfn /nix/store dir/out", False),
    "relative": ("ln -sfn ../../..$path dir/out", False),
    "led to a link": ("ln -s $path dir/other; ln -sfn dir/other dir/out", False),
    "moved with its directory": ("mv dir other", False),
    "in a loop": ("rm -r dir; ln -s dir dir", False),
    "covered": ("mount -t tmpfs tmpfs dir", False),
    "led below the path": ("ln -sfn $path/bin/tool dir/out", True),
    "made again": ("rm dir/out; ln -s $path dir/out", True),
    "reached through a link": ("mv dir other; ln -s other dir", True),
    "unreadable": ("chown -R 1000:1000 dir; chmod 0 dir", True),
    "on a disk that is read-only": ("mount --bind dir dir; mount -o remount,bind,ro dir", True),
}


def test_a_link_that_leads_to_its_path_no_more_holds_nothing(incus: Incus, host: Host) -> None:
    name = incus.launch(flake="/etc/nixos#web")
    paths: dict[str, str] = {}
    for number, what in enumerate(CHANGES):
        script = f"mkdir -p {number}/dir; cd {number}; build -o dir/out"
        paths[what] = build_by(incus, name, script, str(number))
    collect_when_idle(incus)
    assert left(host, *paths.values()) == set(paths.values())
    scripts = [
        f"(cd {number}; path={paths[what]}; {change})\n"
        for number, (what, (change, _)) in enumerate(CHANGES.items())
    ]
    run_inside(incus, name, "".join(scripts))
    collect_when_idle(incus)
    kept = left(host, *paths.values())
    assert {what for what, path in paths.items() if path in kept} == {
        what for what, (_, holds) in CHANGES.items() if holds
    }


def test_a_link_removed_right_before_a_stop_holds_nothing_after_the_next_start(
    incus: Incus, host: Host
) -> None:
    name = incus.launch(flake="/etc/nixos#web")
    kept = build_by(incus, name, "build -o kept", "1")
    path = build_by(incus, name, "build -o out", "2")
    incus.run(name, "rm", "/root/out")
    incus("stop", "-f", name)
    collect_when_idle(incus)
    assert left(host, kept, path) >= {kept}
    incus.start(name)
    incus.wait_inside(name)
    collect_when_idle(incus)
    assert left(host, kept, path) == {kept}


def test_the_operator_reads_roots_with_instance_link_and_path(incus: Incus, host: Host) -> None:
    """Nix prints them, `inx-sidecar roots` lists them, and the journal says when they change."""
    since = journal_end(host)
    name = incus.launch(flake="/etc/nixos#web")
    script = "nix-store -r $(build -o one) --add-root 'a \t b' >&2; readlink one"
    path = build_by(incus, name, script, "1")
    directory = f"{root_directory(incus, name)}/links/"
    size = host.run(["nix-store", "--query", "--size", path]).stdout.strip()

    def printed() -> int:
        lines = host.run(["nix-store", "--gc", "--print-roots"]).stdout.splitlines()
        # Newer versions of Nix quote the names of roots.
        own = [line for line in lines if line.lstrip('"').startswith(directory)]
        return sum(line.endswith(f" -> {path}") for line in own)

    def listed(*instance: str) -> list[str]:
        done = host.run(["/opt/inx/bin/inx-sidecar", "roots", *instance])
        row = re.compile(rf"{name} +\d+[smh] +{size} B  {path} +(.*)")
        return sorted(found[1] for line in done.stdout.splitlines() if (found := row.match(line)))

    def said(what: str) -> list[str]:
        row = re.compile(rf"(?:<\d>)?{name}: root {what}: (.*) -> {path}")
        lines = journal(host, since, SIDECAR).splitlines()
        return sorted(found[1] for line in lines if (found := row.fullmatch(line)))

    # --print-roots waits until what is registered has its root: so it comes first.
    assert printed() == 2
    assert listed(name) == listed() == [r"/root/a \t b", "/root/one"]
    assert said("added") == [r"'/root/a \t b'", "'/root/one'"]
    assert said("dropped") == []
    found = json.loads(host.run(["/opt/inx/bin/inx-sidecar", "roots", name, "--json"]).stdout)
    links = {root["held_by"]: root for root in found}
    assert links["/root/one"].keys() == {"instance", "uuid", "age", "size", "path", "held_by"}
    assert {**links["/root/one"], "age": 0} == {
        "instance": name, "uuid": incus.uuid(name), "age": 0,
        "size": int(size), "path": path, "held_by": "/root/one",
    }  # fmt: skip
    assert "/root/a \t b" in links
    other = host.run(["/opt/inx/bin/inx-sidecar", "roots", f"{name}-x"], check=False)
    assert other.returncode != 0 and f"{name}-x" in other.stderr

    # Each link counts by itself.
    incus.run(name, "rm", "/root/one")
    collect_when_idle(incus)
    assert left(host, path) == {path}
    assert printed() == 1
    assert listed(name) == [r"/root/a \t b"]
    assert said("dropped") == ["'/root/one'"]
    incus.sh(name, "rm /root/a*b")
    collect_when_idle(incus)
    assert left(host, path) == set()
    assert printed() == 0 and listed(name) == []
    assert said("dropped") == [r"'/root/a \t b'", "'/root/one'"]
