"""A git repository of an attacker names programs, which no evaluation may run."""

import json

import pytest
from support.disposable import Host
from support.gc import CONFIG
from support.hostile_sources import (
    console_line,
    git_repository,
    hostile_repository,
    trace,
    traces,
    unlocked_flake,
)
from support.incus import Incus
from support.services import wait_build
from support.sources import slow

pytestmark = pytest.mark.main

# What Nix 2.18 to 2.34 runs on a work tree, or on what it fetches from there: git.cc, git-utils.cc.
COMMANDS = [
    "-C $D --git-dir .git rev-parse --verify --no-revs HEAD^{commit}",
    "-C $D --git-dir .git diff HEAD --quiet --ignore-submodules --",
    "-C $D --git-dir .git diff HEAD --quiet --",
    "-C $D --git-dir .git ls-files -z",
    "-C $D --git-dir .git ls-files -z --recurse-submodules",
    "-C $D --git-dir .git log -1 --format=%ct --no-show-signature HEAD",
    "-C $D --git-dir .git check-ignore --quiet flake.lock",
    "-C $D --git-dir .git add --intent-to-add -- flake.lock",
    "-C $D --git-dir .git verify-commit HEAD",
    "ls-remote --symref -- $D",
    "ls-remote --symref -- file://$D",
    "-C $B --git-dir . fetch --quiet --force -- file://$D HEAD:refs/heads/x",
    "-C $B --git-dir . fetch --quiet --force -- $D HEAD:refs/heads/y",
    "-C $D submodule --quiet update --init --recursive",
]
# No variable switches off a filter whose name is not known.
FILTERS = {"filter.clean", "filter.smudge", "filter.process"}

RUN = """
import json, os, subprocess, sys
from inx_sidecar.builds.git_settings import git_environment
directory, bare, commands, protected = json.load(sys.stdin)
env = {"PATH": os.environ["PATH"], "HOME": bare, "D": directory, "B": bare}
if protected:
    env |= git_environment(owner=False, alone=True)
for command in commands:
    subprocess.run(["timeout", "20", "sh", "-c", "git " + command], env=env, capture_output=True)
"""


def run_all(incus: Incus, directory: str, *, protected: bool) -> set[str]:
    """The programs of the repository that run when a user runs each command there."""
    bare = f"/srv/{incus.prefix}-bare"
    script = (
        'rm -rf "$B"; git init -q --bare "$B"; touch "$D/flake.lock"; chown -R nobody "$B" "$D"'
    )
    incus.host.sh(script, env={"B": bare, "D": directory})
    before = len(traces(incus))
    document = json.dumps([directory, bare, COMMANDS, protected])
    argv = ["runuser", "-u", "nobody", "--", "/opt/inx/bin/python", "-I", "-c", RUN]
    incus.host.run(argv, input=document)
    return {line.split()[0] for line in traces(incus)[before:]}


def test_settings_of_a_repository_run_nothing(incus: Incus) -> None:
    directory = hostile_repository(incus, incus.flake(directory=f"/srv/{incus.prefix}"))
    found = run_all(incus, directory, protected=False)
    assert {"core.fsmonitor", "hook", "gpg.program"} & found and FILTERS & found, found
    assert run_all(incus, directory, protected=True) <= FILTERS


REFERENCES = [
    "{}",
    "git+file://{}",
    "git+file://{}?submodules=1",
    "git+file://{}?ref=master",
    "git+file://{}?ref=master&submodules=1&allRefs=1",
    "git+file://{}?shallow=1",
    "path:{}",
]


@pytest.mark.parametrize("owner", ["0", "inx-build", "61184"])
def test_a_doubtful_repository_runs_nothing(incus: Incus, owner: str) -> None:
    directory = unlocked_flake(incus, f"/srv/{incus.prefix}")
    hostile_repository(incus, directory, owner)
    name = incus.init(flake=f"{REFERENCES[0].format(directory)}#web")
    incus.start(name)
    for number, ref in enumerate(REFERENCES):
        incus.set(name, f"user.inx.flake={ref.format(directory)}#web", f"user.inx.update={number}")
        incus.wait_ready(name)
        assert traces(incus) == []
    assert "several users can change" in console_line(incus, name)


HOOKS = {
    "the hook": "mkdir -p .git/hooks; write .git/hooks/$H; chown nobody .git/hooks/$H",
    "its target": """
        mkdir -p .git/hooks; write $D-hook; chown nobody $D-hook; ln -s $D-hook .git/hooks/$H
    """,
    "its directory": """
        mkdir $D-hooks; write $D-hooks/$H; chown nobody $D-hooks
        rm -rf .git/hooks; ln -s $D-hooks .git/hooks
    """,
}


@pytest.mark.parametrize("of_another_user", HOOKS)
def test_a_hook_of_another_user_does_not_run_as_the_owner(
    incus: Incus, host: Host, of_another_user: str
) -> None:
    """Nix runs git add for a lock file that it has written, and git runs post-index-change."""
    directory = git_repository(host, unlocked_flake(incus, f"/srv/{incus.prefix}"))
    script = f'write() {{ cat >"$1"; chmod +x "$1"; }}; cd "$D"; {HOOKS[of_another_user]}'
    hook = f"#!/bin/sh\n{trace(incus, 'hook')}\n"
    host.sh(script, env={"D": directory, "H": "post-index-change"}, input=hook)
    name = incus.init(flake=f"{directory}#web")
    incus.start(name)
    incus.wait_ready(name)
    assert "hook 0" not in traces(incus)
    assert not console_line(incus, name).endswith("as root")


def test_a_repository_that_is_only_an_input_runs_nothing(incus: Incus) -> None:
    """An input, and builtins.fetchGit, read other directories than that of the source."""
    evil = hostile_repository(incus, incus.flake(directory=f"/srv/{incus.prefix}-evil"))
    inputs = f'inputs.x = {{ url = "git+file://{evil}"; flake = false; }};'
    flake = unlocked_flake(incus, f"/srv/{incus.prefix}", inputs)
    fetch = f"/srv/{incus.prefix}-file"
    text = f'builtins.seq (builtins.readDir (builtins.fetchGit "{evil}")) (import /etc/nixos)'
    incus.host.sh('mkdir "$D"; cat >"$D/web.nix"; chmod -R 777 "$D"', env={"D": fetch}, input=text)
    incus.host.run(["chmod", "-R", "a+rwX", flake])
    for number, source in enumerate(
        ({"flake": f"{flake}#web"}, {"file": f"{fetch}/web.nix", "attr": "web"})
    ):
        name = incus.init(name=incus.name(str(number)), **source)
        incus.start(name)
        incus.wait_status(name, "(ready|failed)")
        assert "a user without rights" in console_line(incus, name)
    assert traces(incus) == []


def test_a_doubtful_build_writes_no_lock_file(incus: Incus, host: Host) -> None:
    """Somebody could put a link in the place of the file, and Nix calls git after it."""
    directory = unlocked_flake(incus, f"/srv/{incus.prefix}")
    host.run(["chown", "-R", "inx-build", directory])
    host.run(["chmod", "777", directory])
    incus.launch(flake=f"path:{directory}#web")
    assert "flake.lock" not in host.run(["ls", directory]).stdout


def test_a_doubtful_build_has_a_user_and_files_of_its_own(
    incus: Incus, host: Host, request: pytest.FixtureRequest
) -> None:
    """Nothing that it leaves serves another build, and it reaches no process of another one."""
    directory = slow(incus, 600, same=True)
    host.run(["chmod", "777", directory])
    # All sources that no user alone has written count as one owner, which has all slots but one.
    request.addfinalizer(lambda: host.run(["rm", CONFIG]))
    host.sh('echo max_builds = 3 >"$P"', env={"P": CONFIG})
    before = host.sh("find /var/lib/inx-build | sort").stdout
    users = set()
    for suffix in ("a", "b"):
        name = incus.init(name=incus.name(suffix), flake=f"{directory}#web")
        incus.start(name)
        wait_build(incus, name)
        unit = f"inx-build-{incus.uuid(name)}.service"
        pid = host.run(["systemctl", "show", "-P", "MainPID", unit]).stdout.strip()
        users.add(host.run(["stat", "-c", "%u", f"/proc/{pid}"]).stdout.strip())
        environment = host.run(["cat", f"/proc/{pid}/environ"]).stdout.split("\0")
        [home] = [text for text in environment if text.startswith("HOME=")]
        builds = f"/var/lib/inx/builds/{incus.uuid(name)}"
        assert home.startswith(f"HOME={builds}/")
        group = host.run(["stat", "-c", "%g", f"/proc/{pid}"]).stdout.strip()
        see = ["nsenter", "-t", pid, "-m", "-S", users_id(host, pid), "-G", group]
        other = host.run([*see, "ls", "/proc"]).stdout.split()
        assert "1" not in other
        written = host.run([*see, "touch", builds], check=False)
        assert written.returncode
    build_user = host.run(["id", "-u", "inx-build"]).stdout.strip()
    assert len(users) == 2 and not {"0", build_user} & users
    assert host.sh("find /var/lib/inx-build | sort").stdout == before


def users_id(host: Host, pid: str) -> str:
    return host.run(["stat", "-c", "%u", f"/proc/{pid}"]).stdout.strip()


def test_a_failed_doubtful_build_leaves_nothing(incus: Incus, host: Host) -> None:
    directory = incus.flake_text("nixosConfigurations = throw ''no'';", f"/srv/{incus.prefix}")
    host.run(["chmod", "777", directory])
    name = incus.init(flake=f"{directory}#web")
    incus.start(name)
    incus.wait_status(name, "failed: ")
    assert incus.uuid(name) not in host.run(["ls", "/var/lib/inx/builds"]).stdout.split()
