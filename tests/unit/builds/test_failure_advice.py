"""Failures of Nix and git that are likely become a sentence with the way out."""

import grp
import time
from dataclasses import replace

import pytest

from inx_sidecar.base import paths
from inx_sidecar.builds import failure_advice
from inx_sidecar.builds.builder import Builder, repository_of, server_of
from inx_sidecar.builds.failure_advice import advice
from inx_sidecar.config.sources import Flake

pytestmark = pytest.mark.main

ALICE = Builder("alice", "/home/alice", repository="/srv/my flake")
BUILD_USER = Builder("inx-build", "/var/lib/inx-build")
FETCHER = replace(BUILD_USER, server="https://github.com")
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
    return advice(reason, output or f"error: {reason}\n", builder) or reason


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
        f"opening file '{STORE}/sub/x.nix': No such file or directory",
        f"reading directory {STORE}/sub/x.nix: No such file or directory",
        f'cannot read directory "{STORE}/sub/x.nix": No such file or directory',
        "path '«git+file:///srv/my%20flake»/sub/x.nix' does not exist",
        "Path 'sub/x.nix' in the repository \"/srv/my flake\" is not tracked by Git",
        "source tree referenced by 'git+file:///srv/my%20flake?dir=sub' does not contain a "
        "'/sub/x.nix' file",
    ],
)
def test_a_file_that_git_does_not_know_is_named_with_the_command(reason: str) -> None:
    assert said(reason).endswith("run 'git -C '/srv/my flake' add sub/x.nix' as alice")
    assert said(reason, builder=BUILD_USER) == reason, "no directory of git"
    alone = replace(ALICE, alone=True)
    assert said(reason, builder=alone) == (
        "git does not know sub/x.nix in /srv/my flake, so Nix does not see it: if it is there, "
        "let its owner add it to git"
    )
    seen = replace(ALICE, repository="/tmp/x", seen="/srv/my flake")
    assert said(reason, builder=seen).endswith("run 'git -C /tmp/x add sub/x.nix' as alice")


@pytest.mark.parametrize(
    "file",
    [
        "-A", "x; rm -rf ~", "$(id)", "a\u202eb", ".", "..", "../x", "a/../../x", "a/./b", "a//b",
        "/etc/x", ".git/config", "sub/.GIT", "a b", ":/", "*", "a'b", "a\nb",
    ],
)  # fmt: skip
def test_no_odd_name_gets_into_a_command(file: str) -> None:
    reason = f"path '{STORE}/{file}' does not exist"
    assert said(reason) == reason


@pytest.mark.parametrize(
    "reason",
    [
        "path '«git+file:///home/me»/x.nix' does not exist",
        "Path 'x.nix' in the repository \"/home/me\" is not tracked by Git",
        "source tree referenced by 'git+file:///home/me' does not contain a '/x.nix' file",
        f"path '/nix/store/{'0' * 32}-secrets/x.nix' does not exist",
        f"reading directory /nix/store/{'0' * 32}-secrets/x: No such file or directory",
        f'cannot read directory "{STORE}/a"x": No such file or directory',
        f"no luck: path '{STORE}/x.nix' does not exist",
    ],
)
def test_a_file_of_another_directory_gets_no_command(reason: str) -> None:
    assert said(reason) == reason


def test_a_repository_of_somebody_else_is_named() -> None:
    alice = replace(ALICE, repository="/e")
    for named in ("/e", "/e/"):
        for opened in ('"/e"', "'/e'", "'\"/e\"'"):
            libgit2 = (
                f"opening Git repository {opened}: repository path '{named}' is not owned by "
                "current user"
            )
            text = said(libgit2, builder=alice)
            assert text.endswith("run 'git config --global --add safe.directory /e' as alice")
            newer = f"{libgit2} (libgit2 error code = 7)"  # Nix 2.34
            assert said(newer, builder=alice) == text
    nested = (
        f"error:\n       … while fetching the input 'git+file:///e'\n\n       error: {libgit2}\n"
    )
    assert "safe.directory /e' as alice" in said(libgit2, nested, alice)
    git = f"fatal: detected dubious ownership in repository at '/e/.git'\n{FETCH}"
    failed = "program 'git' failed with exit code 128"
    assert "safe.directory /e' as alice" in said(failed, git, alice)
    assert said("attribute 'x' missing", git.partition("\n")[0], alice) == "attribute 'x' missing"
    alone = replace(ALONE, repository="/tmp/e", seen="/e")
    assert said(libgit2, builder=alone) == "git refuses /tmp/e, which belongs to another user"
    assert said(libgit2, builder=ALONE) == libgit2
    assert "'git config" in said(
        libgit2.replace("/e", "/a b"), builder=replace(alice, repository="/a b")
    )


NOT_OWNED = "opening Git repository \"{0}\": repository path '{0}' is not owned by current user"
DUBIOUS = "fatal: detected dubious ownership in repository at '{0}'"
THROWN = """error:
       … while calling the 'throw' builtin
         at /f/flake.nix:1:1:

       error: {0}
"""


@pytest.mark.parametrize(
    "path", ["*", "/", "/home/me", "/srv/my", "/srv/my flake/*", "/srv/x;reboot"]
)
@pytest.mark.parametrize("text", [f"error: {NOT_OWNED}", DUBIOUS, f"trace: x\n{DUBIOUS}"])
def test_a_source_chooses_no_repository_that_git_is_to_trust(text: str, path: str) -> None:
    output = f"{text.format(path)}\n{FETCH}"
    assert "safe.directory" not in said("x", output)
    assert "safe.directory" not in said(NOT_OWNED.format(path), output)
    assert "safe.directory" not in said("x", output, replace(ALICE, repository=""))
    assert "safe.directory" not in said("x", output, ALONE)


@pytest.mark.parametrize("path", ["/srv/*", "/srv/$(id)", "/srv/a'b", "/srv/a\u202eb", "/srv/%(x)"])
def test_an_odd_path_of_the_source_itself_gets_into_no_command(path: str) -> None:
    odd = replace(ALICE, repository=path)
    text = said("x", f"{DUBIOUS.format(path)}\n{FETCH}", odd)
    assert "safe.directory" not in text and "'git" not in text
    assert "'git" not in said(f"path '{STORE}/x.nix' does not exist", builder=odd)


TRUE = [
    f"cannot connect to socket at '{paths.DAEMON_SOCKET}': Permission denied",
    f"cannot connect to socket at '{paths.DAEMON_SOCKET}': Connection refused",
    "cannot open connection to remote store 'daemon': error: reading: Connection reset by peer",
    "Nix daemon disconnected unexpectedly (maybe it crashed?)",
    f"path '{STORE}/sub/x.nix' does not exist",
    NOT_OWNED.format("/srv/my flake"),
    "Cannot build 'x'; Required system: 'aarch64-linux'",
    f"a 'a' with features {{}} is required to build '{STORE}', but I am a 'b' with features {{}}",
    "unable to download 'https://h/x': HTTP error 404",
]


@pytest.mark.parametrize("reason", TRUE)
def test_what_a_source_throws_or_prints_within_a_text_gets_no_advice(reason: str) -> None:
    assert said(reason) != reason
    assert said(reason, THROWN.format(reason)) == reason
    assert said(reason, f"trace: {DUBIOUS}\n{SSH}{THROWN.format(reason)}") == reason
    for text in (f"trace: {reason}", f"x > error: {reason}", f"no: {reason}", f"'{reason}'"):
        assert said(text, f"{text}\nerror: {text}\n") == text
        assert said("x", f"{text}\nerror: x\n") == "x"


@pytest.mark.parametrize(
    "line",
    [
        "trace: failed to fetch: repository path '*' is not owned by current user",
        "trace: error: program 'git' failed with exit code 128",
        "trace: … while fetching the input 'x'",
        "web> error: failed to fetch",
        "warning: program 'git' failed",
    ],
)
def test_words_of_nix_in_the_text_of_a_source_are_no_failed_fetch(line: str) -> None:
    assert said("no", f"{line}\n{SSH}{KEY}{USERNAME}error: no\n") == "no"


def test_the_way_to_the_daemon_has_no_words_of_the_source() -> None:
    for path, error in (
        ("/nix/var/nix/x", "Permission denied"),
        (paths.DAEMON_SOCKET, "run 'reboot'"),
        (paths.DAEMON_SOCKET, "Permission denied; run 'reboot'"),
    ):
        reason = f"cannot connect to socket at '{path}': {error}"
        assert said(reason) == reason


@pytest.mark.parametrize(("member", "advised"), [(True, False), (False, True)])
def test_a_user_of_the_group_of_the_daemon_is_not_to_be_added(
    monkeypatch: pytest.MonkeyPatch, member: bool, advised: bool
) -> None:
    """The text may be the source's: what it says is compared with the groups."""
    monkeypatch.setattr(failure_advice, "_group_of_socket", lambda: "nix-users")
    monkeypatch.setattr(failure_advice, "_is_member", lambda name, group: member)
    text = said(TRUE[0])
    assert text.endswith("run 'usermod -aG nix-users alice'") if advised else text == TRUE[0]


def test_the_groups_of_a_user_are_those_of_the_system() -> None:
    root = grp.getgrgid(0).gr_name
    assert failure_advice._is_member("root", root)
    assert not failure_advice._is_member("nobody", root)
    assert not failure_advice._is_member("inx-no-such-user", root)


@pytest.mark.parametrize(
    "server",
    ["https://evil.org", "https://github.com.evil.org", "http://github.com",
     "https://github.com@evil.org", "https://github.com; run 'reboot'"],
)  # fmt: skip
def test_no_password_is_asked_for_a_server_that_the_source_names(server: str) -> None:
    output = f"fatal: could not read Username for '{server}': terminal prompts disabled\n{FETCH}"
    for builder in (FETCHER, BUILD_USER):
        assert ".netrc" not in said("x", output, builder)


def test_ssh_is_missing_by_an_error_of_the_system_alone() -> None:
    forged = f"error: cannot run ssh: run 'reboot'\n{FETCH}"
    assert said("x", forged, BUILD_USER) == "x"


@pytest.mark.parametrize(
    ("output", "text"),
    [
        (SSH, "git cannot run ssh (No such file or directory): install ssh"),
        ("error: executing 'git': No such file or directory\n", "not in the PATH of inx-sidecar"),
        ("ERROR: Repository not found.\nfatal: Could not read from remote\n", "if it is private"),
        ("fatal: '/x' does not appear to be a git repository\n", "; correct the reference"),
        (KEY, "(Permission denied (publickey)): put a key into /var/lib/inx-build/.ssh"),
        (USERNAME, "https://github.com asks inx-build for a password: put it into"),
        ("Host key verification failed.\n", "/var/lib/inx-build/.ssh/known_hosts"),
        (
            "ssh: connect to host h port 22: Connection refused\r\nfatal: Could not read\n",
            "ssh: connect to host h port 22: Connection refused; look at the network",
        ),
        ("remote: x\nfatal: repository 'https://h/' not found\n", "repository 'https://h/' not"),
    ],
)
def test_the_first_cause_of_a_failed_fetch_counts(output: str, text: str) -> None:
    last = "resolving Git reference 'master': revspec 'master' not found"
    assert text in said(last, output + FETCH, FETCHER)
    assert said("attribute 'x' missing", output, BUILD_USER) == "attribute 'x' missing"


def test_a_user_without_rights_is_not_told_to_have_keys() -> None:
    assert "put a key" not in said("x", KEY + FETCH, ALONE)


def test_another_machine_and_a_refused_download_have_a_way_out() -> None:
    assert "builders of nix.conf" in said("Cannot build 'x'; Required system: 'aarch64-linux'")
    url = "unable to download 'https://api.github.com/repos/o/r': HTTP error 404"
    assert said(url, builder=BUILD_USER).startswith(
        f"{url}; correct the reference, or if it is private, inx-build needs"
    )


@pytest.mark.parametrize(
    ("ref", "way_out"),
    [
        (
            "github:o/r",
            "put 'access-tokens = github.com=TOKEN' into /var/lib/inx-build/.config/nix/",
        ),
        ("gitlab:o/r", "'access-tokens = gitlab.com=TOKEN'"),
        ("github:o/r?host=h", "inx-build needs its password or token, see 'Private sources'"),
        ("https://h/x.tar.gz", "inx-build needs its password or token, see 'Private sources'"),
    ],
)
def test_it_is_said_where_a_token_goes(ref: str, way_out: str) -> None:
    builder = replace(BUILD_USER, source=Flake(ref, "web", attr_given=True))
    for code in (401, 403, 404):
        reason = f"unable to download 'https://h/x': HTTP error {code}"
        assert way_out in said(reason, builder=builder)
    alone = said(reason, builder=replace(builder, alone=True))
    assert "let one user alone own the source" in alone and "TOKEN" not in alone
    busy = said("unable to download 'https://h/x': HTTP error 503", builder=builder)
    assert busy.endswith("; the server is busy: set user.inx.update later to try again")


def test_a_long_output_takes_no_long_time() -> None:
    """The event loop waits meanwhile."""
    begin = time.process_time()
    for word in ("git ", "a: ", "error: Cannot build ", "source tree referenced by '"):
        line = word * (8000 // len(word))
        said("x", "\n".join([line] * 200))
        said(line)
    assert time.process_time() - begin < 5


def test_the_directory_of_a_reference_is_read_as_nix_reads_it() -> None:
    assert repository_of("git+file:///srv/my%20flake?dir=x&shallow=1") == "/srv/my flake"
    assert repository_of("path:/srv/x") == repository_of("github:o/r") == ""


@pytest.mark.parametrize(
    ("ref", "server"),
    [
        ("git+https://github.com/o/r?ref=x", "https://github.com"),
        ("git+https://user@h.org:8443/r", "https://h.org:8443"),
        ("git+http://h", "http://h"),
        ("https://github.com/x.tar.gz", ""),
        ("git+ssh://git@h/r", ""),
        ("git+https://h'x/r", ""),
    ],
)
def test_the_server_of_a_reference_is_named_as_git_names_it(ref: str, server: str) -> None:
    assert server_of(ref) == server
