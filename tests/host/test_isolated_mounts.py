"""Root inside an isolated container looks for other store paths by file handle and by mount."""

import pytest
from support.attacker.handles import handles_of, open_handles, wrapped
from support.attacker.mounting import mount_tricks, reconfigurations, redirects
from support.attacker.reading import names_in
from support.attacks import inside, on_host
from support.disposable import Host
from support.incus import POOL, Incus
from support.running import PROFILES
from support.store import STORE
from support.vault import Vault

pytestmark = pytest.mark.isolated


def test_no_file_handle_opens_another_path(incus: Incus, host: Host) -> None:
    vault = Vault(incus).launch()
    name = vault.name
    incus.sh(name, "mkdir -p /plain/mine; mount -o bind /plain /plain")
    mine = f"{POOL}/{name}/rootfs/plain/mine"
    paths = [vault.secret, f"{vault.secret}/file", vault.shown, f"{vault.shown}/below", STORE]
    known = on_host(host, handles_of, [*paths, f"{STORE}/.links", mine])
    assert len(known) == 7
    bases = ["/", STORE, vault.shown, "/nix/var/nix", PROFILES, "/dev/.inx", "/dev/incus", "/plain"]
    bases += ["/nix/var/nix/daemon-socket", "/dev", "/run", "/tmp", "/etc"]
    told = vault.do(open_handles, known, bases)
    opened = {what for what, how in told.items() if how == "opened"}
    assert f"{mine} at /plain with 200000" in opened, told
    assert not [what for what in opened if not what.startswith(f"{mine} at /")], opened

    overlaid = vault.do(wrapped, {path: known[path] for path in paths}, vault.shown)
    assert len(overlaid) == 6
    told = vault.do(open_handles, overlaid, [STORE, vault.shown, "/"])
    assert "opened" not in told.values(), told

    # The same handles open the path where the whole store is mounted.
    assert set(
        on_host(host, open_handles, {vault.secret: known[vault.secret]}, [STORE]).values()
    ) == {"opened"}
    shared = incus.launch(name=incus.name("shared"), flake="/etc/nixos#web")
    told = inside(incus, shared, open_handles, {vault.secret: known[vault.secret]}, [STORE])
    assert "opened" in told.values(), told


# By these tricks, root inside finds the paths that the view shows.
WORKING = {
    "look_at_once", "bind_it", "bind_all", "copy", "copy_all", "move_it", "pivot_root", "chroot",
    "leave_chroot", "overlay", "overlay_of_two", "overlay_of_copy",
}  # fmt: skip
# In a new user namespace, the inherited mounts cannot be moved.
WORKING_BELOW = {
    f"{trick} in a user namespace" for trick in WORKING - {"move_it", "overlay_of_two"}
}
# These tricks remove the view, and look at the directory below.
UNCOVERED = {"look_below", "unmount", "unmount_lazily"}


def done(outcome: dict[str, str]) -> set[str]:
    """The attempts that succeeded."""
    assert "254" not in outcome.values(), outcome
    return {what for what, how in outcome.items() if how == "done"}


def test_no_mount_inside_shows_another_path(incus: Incus) -> None:
    vault = Vault(incus).launch()
    secret, shown = vault.secret_name, vault.shown_name
    told = vault.do(mount_tricks, STORE, shown, vault.shown)
    assert done(told) == WORKING | WORKING_BELOW, told
    # Below the view lies an empty directory that belongs to the container.
    assert {told[trick] for trick in UNCOVERED} == {"ENOENT"}
    told = vault.do(mount_tricks, STORE, secret, vault.shown)
    assert done(told) == set(), told
    shared = incus.launch(name=incus.name("shared"), flake="/etc/nixos#web")
    told = inside(incus, shared, mount_tricks, STORE, secret, vault.shown)
    assert done(told) >= WORKING | WORKING_BELOW, told


def test_no_overlay_inside_is_redirected_to_another_path(incus: Incus, host: Host) -> None:
    vault = Vault(incus).launch()
    secret = vault.secret_name
    incus.run(vault.name, "mkdir", "-p", "/mnt")
    for user in (False, True):
        told = vault.do(redirects, STORE, secret, user)
        assert done(told) == set(), told
        # Some overlays can be mounted, but show an empty directory.
        assert "ENOENT" in {how for what, how in told.items() if what.startswith("user ")}
    # Root of the host is redirected, in an overlay of the store itself.
    followed = done(on_host(host, redirects, STORE, secret, False))
    assert "trusted 0 redirect_dir=follow,metacopy=on read" in followed
    assert "trusted 0 redirect_dir=on written" in followed
    assert {what[:9] for what in followed} == {"trusted 0", "trusted 4"}, followed


def test_the_view_cannot_be_reconfigured(incus: Incus) -> None:
    vault = Vault(incus).launch()
    incus.sh(
        vault.name,
        "mkdir -p /own; mount -t overlay -o ro,lowerdir=/nix/store:/etc own /own",
    )
    mine = vault.do(reconfigurations, "/own")
    assert done(mine) >= {"remount ro", "reconfigure ro"}, mine
    before = vault.do(names_in, STORE)
    told = vault.do(reconfigurations, STORE)
    # The kernel checks the option before it checks the rights.
    assert set(told.values()) <= {"EPERM", "EINVAL"}, told
    assert {
        told[f"{how} {what}"] for how in ("remount", "reconfigure") for what in ("ro", "rw")
    } == {"EPERM"}, told
    assert vault.do(names_in, STORE) == before
