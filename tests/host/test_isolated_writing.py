"""Root inside an isolated container tries to change the view."""

import pytest
from support.attacker.writing import links_and_renames, system_calls
from support.attacks import inside
from support.disposable import Host
from support.fingerprint import unchanged
from support.incus import Incus
from support.shell_tricks import (
    ALL_TRICKS,
    assert_calls_work,
    assert_tricks_work,
    make_plain_and_bound,
    succeeded,
)
from support.store import STORE
from support.vault import Vault

pytestmark = pytest.mark.isolated


def test_the_view_cannot_be_written(incus: Incus, host: Host) -> None:
    vault = Vault(incus).launch()
    name, file = vault.name, f"{vault.shown}/file"
    make_plain_and_bound(incus, name)
    assert_tricks_work(incus, name)
    assert_calls_work(incus, name)
    with unchanged(host):
        for place in STORE, vault.shown:
            assert succeeded(incus, name, ALL_TRICKS, place, file) == set(), place
            told = inside(incus, name, system_calls, place, file, {}, [])
            assert not {"done", "254"} & set(told.values()), (place, told)


def test_no_link_or_rename_crosses_the_view(incus: Incus, host: Host) -> None:
    vault = Vault(incus).launch()
    with unchanged(host):
        told = vault.do(links_and_renames, vault.shown, vault.secret)
    # The kernel checks whether the files exist before it compares their file systems.
    refusals = {"EXDEV", "EROFS", "EPERM", "ENOENT", "EEXIST"}
    assert set(told.values()) <= refusals, told
    assert told[f"link {vault.shown}/file /root/stolen"] == "EXDEV"
    assert told[f"rename /root/file {vault.shown}/file"] == "EXDEV"
    assert told[f"rename {vault.shown}/file {vault.shown}/second"] == "EROFS"
    incus.sh(vault.name, "ln /root/file /root/second; mv /root/second /root/third")
