"""What the Nix daemon of an instance sees in /etc."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inx_sidecar.nix.daemon_etc import cache_url, group, nix_conf, passwd, resolv_conf

pytestmark = pytest.mark.main

STORE = "/nix/store/0123456789abcdfghijklmnpqrsvwxyz-busybox/bin/sh"


@pytest.mark.parametrize(
    ("text", "servers"),
    [
        ("nameserver 127.0.0.53\noptions edns0 trust-ad\nsearch .\n", ["127.0.0.53"]),
        ("nameserver\t10.0.0.1   # comment\n", ["10.0.0.1"]),
        ("nameserver fe80::1%eth0\nnameserver ::1\n", ["fe80::1%eth0", "::1"]),
        ("nameserver fe80::1%a/../b\nnameserver fe80::1%\n", []),
        ("nameserver 10.0.0.1%eth0\nnameserver 010.1.1.1\n", []),
        ("nameserver example.org\nNAMESERVER 10.0.0.1\nnameserver\n#nameserver 10.0.0.1\n", []),
        ("".join(f"nameserver 10.0.0.{n}\n" for n in range(9)), [f"10.0.0.{n}" for n in range(3)]),
        ("nameserver 10.0.0.1\rnameserver 10.0.0.2\x0bnameserver 1", ["10.0.0.1", "10.0.0.2"]),
        ("", []),
    ],
)
def test_only_addresses_of_name_servers_are_taken(text: str, servers: list[str]) -> None:
    assert resolv_conf(text) == "".join(f"nameserver {server}\n" for server in servers)


@given(st.text(st.sampled_from("nameserver 0123456789.:%abcf\n\t\x00options")))
def test_any_text_gives_lines_with_one_address(text: str) -> None:
    for line in resolv_conf(text).splitlines():
        word, address = line.split(" ")
        assert word == "nameserver" and ipaddress.ip_address(address)


def settings(**given: str) -> dict[str, str]:
    text = nix_conf({name.replace("_", "-"): value for name, value in given.items()})
    return dict(line.split(" = ", 1) for line in text.splitlines())


def test_credentials_and_programs_of_the_host_are_left_out() -> None:
    secret = {
        "access_tokens": "github.com=ghp_x", "netrc_file": "/srv/netrc", "builders": "ssh://x",
        "secret_key_files": "/root/key", "post_build_hook": "/root/hook", "diff_hook": "/root/hook",
        "pre_build_hook": "/root/hook", "plugin_files": "/root/plugin", "impure_env": "TOKEN=x",
        "trusted_users": "root @wheel", "sandbox": "relaxed", "sandbox_fallback": "true",
        "keep_failed": "true", "require_sigs": "false", "build_users_group": "nixbld",
        "filter_syscalls": "false", "a_setting_of_the_future": "token",
    }  # fmt: skip
    found = settings(**secret)
    assert not set(found.values()) & set(secret.values()) - {"true", "false"}
    assert found["sandbox"] == "true" and found["sandbox-fallback"] == "false"
    assert found["require-sigs"] == "true" and found["builders"] == ""
    assert found["keep-failed"] == "false"
    left = {name.replace("_", "-") for name in secret} & found.keys()
    assert left == {
        "builders", "trusted-users", "sandbox", "sandbox-fallback", "keep-failed", "require-sigs",
        "build-users-group",
    }  # fmt: skip


def test_what_builds_need_is_kept() -> None:
    kept = {
        "substituters": "https://cache.nixos.org/ http://cache.lan:5000",
        "trusted_public_keys": "cache.nixos.org-1:x y:z", "cores": "4", "system": "x86_64-linux",
        "experimental_features": "flakes nix-command", "system_features": "kvm",
    }  # fmt: skip
    found = settings(**kept)
    assert {name: found[name.replace("_", "-")] for name in kept} == kept


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        ("https://cache.nixos.org/", "https://cache.nixos.org/"),
        ("https://cache.nixos.org?priority=10", "https://cache.nixos.org?priority=10"),
        ("http://cache.lan/x?trusted=true&priority=3", "http://cache.lan/x?priority=3"),
        ("https://c?secret-key=/root/key&want-mass-query=true", "https://c?want-mass-query=true"),
        ("https://user:password@cache.lan", ""),
        ("https://token@cache.lan", ""),
        ("file:///srv/cache", ""),
        ("s3://bucket?profile=x", ""),
        ("ssh-ng://root@host", ""),
        ("daemon", ""),
        ("/srv/store", ""),
        ("https://[", ""),
    ],
)
def test_caches_are_reached_by_http_without_password_and_without_trust(url: str, kept: str) -> None:
    assert cache_url(url) == kept


def test_sandbox_paths_of_the_store_and_of_usr_alone_are_kept() -> None:
    given = f"/bin/sh={STORE} /bin/sh=/usr/bin/busybox /etc/nix/netrc /var/cache/ccache /x=/srv/y? "
    given += f"{STORE}? /usr/../root /nix/store /a={STORE}/../../../../root"
    found = settings(sandbox_paths=given)["sandbox-paths"]
    assert found.split() == [f"/bin/sh={STORE}", "/bin/sh=/usr/bin/busybox", f"{STORE}?"]
    assert "sandbox-paths" not in settings()


def test_the_build_users_are_the_members_of_the_group() -> None:
    ids = range(70000, 70003)
    assert group(ids, 30000) == "root:x:0:\ninxbld:x:30000:inxbld1,inxbld2,inxbld3\n"
    users = [line.split(":") for line in passwd(ids, 30000).splitlines()]
    assert [(user[0], user[2], user[3]) for user in users] == [
        ("root", "0", "0"), ("inxbld1", "70000", "30000"), ("inxbld2", "70001", "30000"),
        ("inxbld3", "70002", "30000"),
    ]  # fmt: skip
