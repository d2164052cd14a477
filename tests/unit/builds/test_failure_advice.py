"""Failures of Nix and git that are likely become a sentence with the way out."""

import time

import pytest

from inx_sidecar.builds.failure_advice import Builder, advice, repository_of

pytestmark = pytest.mark.main

ALICE = Builder("alice", "/home/alice", repository="/srv/my flake")
BUILD_USER = Builder("inx-build", "/var/lib/inx-build")
ALONE = Builder("inx-build", "/var/lib/inx-build", alone=True)
STORE = f"/nix/store/{'0' * 32}-source"
FETCH = "error:\n       … while fetching the input 'git+ssh://git@h/x'\n\n       error: x\n"
# As git 2.47 prints it below Nix 2.26; older Nix says "program 'git' failed with exit code 128".
SSH = """error: cannot run ssh: No such file or directory
fatal: unable to fork
warning: could not read HEAD ref from repo at 'ssh://git@h/x', using 'master'
fatal: Refusing to point HEAD outside of refs/
"""
KEY = """git@github.com: Permission denied (publickey).
fatal: Could not read from remote repository.

Please make sure you have the correct access rights
"""
USERNAME = "fatal: could not read Username for 'https://github.com': terminal prompts disabled\n"


def said(reason: str, output: str = "", builder: Builder = ALICE) -> str:
    return advice(reason, output or f"error: {reason}\n", builder)


def test_a_daemon_that_refuses_a_user_is_a_matter_of_the_group_or_of_nix_conf() -> None:
    socket = "/nix/var/nix/daemon-socket/socket"
    text = said(f"cannot connect to socket at '{socket}': Permission denied")
    assert text.startswith("alice may not use the Nix daemon: ")
    text = said(f"cannot connect to socket at '{socket}': Connection refused")
    assert text.endswith("run 'systemctl start nix-daemon.socket'")
    reset = "error: reading from file: Connection reset by peer"
    text = said(f"cannot open connection to remote store 'daemon': {reset}")
    assert "closes the connection of alice: let allowed-users" in text


@pytest.mark.parametrize(
    "reason",
    [
        f"path '{STORE}/sub/x.nix' does not exist",
        f"getting status of '{STORE}/sub/x.nix': No such file or directory",
        "path '«git+file:///srv/my%20flake»/sub/x.nix' does not exist",
        "Path 'sub/x.nix' in the repository \"/srv/my flake\" is not tracked by Git",
        "source tree referenced by 'git+file:///srv' does not contain a '/sub/x.nix' file",
    ],
)
def test_a_file_that_git_does_not_know_is_named_with_the_command(reason: str) -> None:
    assert said(reason).endswith("run 'git -C '/srv/my flake' add sub/x.nix' as alice")
    assert said(reason, builder=BUILD_USER) == reason, "no directory of git"
    alone = Builder("inx-build", "/var/lib/inx-build", alone=True, repository="/srv/x")
    assert said(reason, builder=alone).endswith("run 'git -C /srv/x add sub/x.nix'")


@pytest.mark.parametrize("file", ["-A", "x; rm -rf ~", "$(id)", "a\u202eb"])
def test_no_odd_name_gets_into_a_command(file: str) -> None:
    reason = f"path '{STORE}/{file}' does not exist"
    assert said(reason) == reason


def test_a_repository_of_somebody_else_is_named() -> None:
    libgit2 = "opening Git repository \"/e\": repository path '/e' is not owned by current user"
    assert "safe.directory /e' as alice" in said(libgit2)
    git = f"fatal: detected dubious ownership in repository at '/e'\n{FETCH}"
    assert "safe.directory /e' as alice" in said("program 'git' failed with exit code 128", git)
    assert said(libgit2, builder=ALONE) == "git refuses /e, which belongs to another user"
    quoted = libgit2.replace("'/e'", "'/e;x y'")
    assert "safe.directory '/e;x y'' as alice" in said(quoted)


@pytest.mark.parametrize(
    ("output", "text"),
    [
        (SSH, "git cannot run ssh (No such file or directory): install ssh"),
        (KEY, "(Permission denied (publickey)): put a key into /var/lib/inx-build/.ssh"),
        (USERNAME, "https://github.com asks inx-build for a password: put it into"),
        ("Host key verification failed.\n", "/var/lib/inx-build/.ssh/known_hosts"),
        ("remote: x\nfatal: repository 'https://h/' not found\n", "repository 'https://h/' not"),
    ],
)
def test_the_first_cause_of_a_failed_fetch_counts(output: str, text: str) -> None:
    last = "resolving Git reference 'master': revspec 'master' not found"
    assert text in said(last, output + FETCH, BUILD_USER)
    assert said("attribute 'x' missing", output, BUILD_USER) == "attribute 'x' missing"


def test_a_user_without_rights_is_not_told_to_have_keys() -> None:
    assert "put a key" not in said("x", KEY + FETCH, ALONE)


def test_another_machine_and_a_refused_download_have_a_way_out() -> None:
    assert "builders of nix.conf" in said("Cannot build 'x'; Required system: 'aarch64-linux'")
    url = "unable to download 'https://api.github.com/repos/o/r': HTTP error 404"
    assert said(url, builder=BUILD_USER).startswith(f"{url}; if it is private, inx-build needs")


def test_a_long_output_takes_no_long_time() -> None:
    """The event loop waits meanwhile."""
    begin = time.monotonic()
    for word in ("git ", "a: ", "error: Cannot build ", "source tree referenced by '"):
        line = word * (8000 // len(word))
        said("x", "\n".join([line] * 200))
        said(line)
    assert time.monotonic() - begin < 2


def test_the_directory_of_a_reference_is_read_as_nix_reads_it() -> None:
    assert repository_of("git+file:///srv/my%20flake?dir=x&shallow=1") == "/srv/my flake"
    assert repository_of("path:/srv/x") == repository_of("github:o/r") == ""
