"""Somebody who can write files on the host, from an instance or as a user, wants them evaluated as
root: as a flake, as a Nix file, as a git repository."""

from collections.abc import Callable

import pytest
from support.disposable import Host
from support.hostile_sources import (
    BUSYBOX,
    READS_SECRET,
    SECRET,
    console_line,
    git_repository,
    share,
    trace,
    traces,
    unlocked_flake,
    write_as_container,
    write_secret,
)
from support.incus import POOL, Incus

pytestmark = pytest.mark.main

WITHOUT_RIGHTS = "evaluated by a user without rights: "


def nix_file(host: Host, directory: str) -> str:
    """A Nix file of root, which gives a system only if it is evaluated as root."""
    write_secret(host)
    host.sh('mkdir -p "$D"; cat >"$D/web.nix"', env={"D": directory}, input=READS_SECRET)
    return f"{directory}/web.nix"


def start(incus: Incus, **config: str) -> str:
    """The instance, whose build has ended by now."""
    name = incus.init(name=incus.name("v"), **config)
    incus.start(name)
    incus.wait_status(name, "(ready|failed)")
    return name


def refused(incus: Incus, file: str, who: str) -> None:
    """The file is not evaluated as root, and the status names who shares it."""
    name = start(incus, file=file, attr="web")
    status = incus.status(name)
    assert status.startswith("failed: ") and SECRET in status, status
    assert WITHOUT_RIGHTS in status and who in status, status
    said = console_line(incus, name)
    assert WITHOUT_RIGHTS in said and who in said


def test_a_file_that_only_root_can_write_is_evaluated_as_root(incus: Incus, host: Host) -> None:
    """Without this, the tests below would pass for any other reason."""
    name = start(incus, file=nix_file(host, f"/srv/{incus.prefix}"), attr="web")
    incus.wait_status(name, "ready$")
    assert console_line(incus, name).endswith("as root")


def test_what_a_container_wrote_as_root_runs_nothing_as_root(incus: Incus, host: Host) -> None:
    """With shift=true, its root makes files of uid 0: flake, repository and settings of git."""
    place = f"/nix/{incus.prefix}-data"  # /srv is on an overlay, which cannot map owners
    host.sh('mkdir "$D"', env={"D": place})
    other = incus.launch(name=incus.name("b"), flake="/etc/nixos#web")
    share(incus, other, place, "path=/data", "shift=true")
    write_secret(host)
    secret = f'inputs.x = {{ url = "path:{SECRET}"; flake = false; }};'
    for number, inputs in enumerate(("", secret)):
        draft = unlocked_flake(incus, f"/srv/{incus.prefix}-draft-{number}", inputs)
        command = trace(incus, "fsmonitor")
        git_repository(host, draft, f'[core]\nfsmonitor = "{command}; false"\n')
        write_as_container(incus, other, draft, f"/data/flake-{number}")
        owner = host.run(["stat", "-c", "%u", f"{place}/flake-{number}/.git/config"]).stdout
        assert owner == "0\n"
    name = start(incus, flake=f"{place}/flake-0#web")
    incus.wait_status(name, "ready$")
    assert traces(incus) == []
    said = console_line(incus, name)
    assert f"the disk device 'data' of the instance '{other}' shares files of {place}" in said
    incus.set(name, f"user.inx.flake={place}/flake-1#web")
    status = incus.wait_status(name, ".*failed: ")
    assert f"a user without rights may not read {SECRET}, which is not in {place}" in status
    assert WITHOUT_RIGHTS in status
    assert host.sh("grep -rls 'only root reads this' /nix/store/*-source || :").stdout == ""


def _running(incus: Incus, place: str, *options: str) -> None:
    other = incus.launch(name=incus.name("b"), flake="/etc/nixos#web")
    share(incus, other, place, "path=/data", *options)


def _stopped(incus: Incus, place: str) -> None:
    share(incus, incus.init(name=incus.name("b"), flake="/etc/nixos#web"), place, "path=/data")


def _read_only(incus: Incus, place: str) -> None:
    _running(incus, place, "readonly=true")


def _profile(incus: Incus, place: str) -> None:
    device = ["device", "add", incus.profile(), "data", "disk", f"source={place}", "path=/data"]
    incus("profile", *device)


def _raw(incus: Incus, place: str) -> None:
    other = incus.init(name=incus.name("b"), flake="/etc/nixos#web")
    raw = f"lxc.mount.entry = {place} data none bind,create=dir 0 0"
    incus("config", "set", other, f"raw.lxc={raw}")


def _linked(incus: Incus, place: str) -> None:
    incus.host.sh('ln -sfn "$D" "$D-link"', env={"D": place})
    _stopped(incus, f"{place}-link")


def _bound_source(incus: Incus, place: str) -> None:
    incus.host.sh('mkdir -p "$D-b"; mount --bind "$D" "$D-b"', env={"D": place})
    _stopped(incus, f"{place}-b")


def _above(incus: Incus, place: str) -> None:
    _stopped(incus, place.rpartition("/")[0])


def _below(incus: Incus, place: str) -> None:
    incus.host.sh('mkdir -p "$D/shared"', env={"D": place})
    _stopped(incus, f"{place}/shared")


def _mounted_below(incus: Incus, place: str) -> None:
    """A file system of its own below the source's directory."""
    script = 'mkdir -p "$D/more"; mount -t tmpfs tmpfs "$D/more"; mkdir "$D/more/x"'
    incus.host.sh(script, env={"D": place})
    _stopped(incus, f"{place}/more/x")


def _hard_links(incus: Incus, place: str) -> None:
    """A second name of each file, in a directory that is shared."""
    incus.host.sh('cp -al "$D" "$D-copy"', env={"D": place})
    _stopped(incus, f"{place}-copy")


def _overlay_below(incus: Incus, place: str) -> None:
    """It shows the files of a directory that is shared."""
    script = """
        mkdir -p "$D-low" "$D-none" "$D/more"
        mount -t overlay -o "lowerdir=$D-low:$D-none" overlay "$D/more"
    """
    incus.host.sh(script, env={"D": place})
    _stopped(incus, f"{place}-low")


def _single_file(incus: Incus, place: str) -> None:
    other = incus.init(name=incus.name("b"), flake="/etc/nixos#web")
    share(incus, other, f"{place}/web.nix", "path=/web.nix")


def _project(incus: Incus, place: str) -> None:
    project = incus.name("project")
    incus("project", "create", project, "-c", "features.profiles=false", "-c",
          "features.images=false")  # fmt: skip
    other = incus.init(name=incus.name("b"), project=project, flake="/etc/nixos#web")
    incus("config", "device", "add", other, "data", "disk", f"source={place}", "path=/data",
          "--project", project)  # fmt: skip


SHARED: dict[str, Callable[[Incus, str], None]] = {
    "running": _running,
    "stopped": _stopped,
    "read-only": _read_only,
    "profile": _profile,
    "raw.lxc": _raw,
    "link": _linked,
    "bound source": _bound_source,
    "above": _above,
    "below": _below,
    "mounted below": _mounted_below,
    "hard links": _hard_links,
    "overlay below": _overlay_below,
    "single file": _single_file,
    "other project": _project,
}


@pytest.mark.parametrize("how", SHARED)
def test_what_an_instance_shares_is_not_evaluated_as_root(
    incus: Incus, host: Host, how: str
) -> None:
    place = f"/srv/{incus.prefix}/source"
    file = nix_file(host, place)
    SHARED[how](incus, place)
    who = {
        "profile": "the disk device 'data' of the profile",
        "raw.lxc": "raw.lxc of the instance",
        "hard links": "several users can change",
        "overlay below": "others may write the file system",
        "other project": "in the project",
    }.get(how, "the disk device 'data' of the instance")
    try:
        refused(incus, file, who)
    finally:
        host.sh('umount "$D-b" "$D/more" 2>/dev/null || :', env={"D": place})
        if how == "other project":
            incus.clean_up()
            incus("project", "delete", incus.name("project"))


def test_a_second_name_of_a_shared_directory_is_not_evaluated_as_root(
    incus: Incus, host: Host
) -> None:
    """The source is a bind mount, a link, or lies behind a link that is shared."""
    place, other = f"/srv/{incus.prefix}-shared", f"/srv/{incus.prefix}-other"
    nix_file(host, place)
    nix_file(host, f"{other}/real")
    _stopped(incus, place)
    names = {"D": place, "O": other}
    host.sh('mkdir "$O/b"; mount --bind "$D" "$O/b"; ln -s "$D" "$O/l"', env=names)
    host.sh('ln -s "$O/real" "$D/to-real"', env=names)
    try:
        for file in (f"{other}/b/web.nix", f"{other}/l/web.nix", f"{place}/to-real/web.nix"):
            refused(incus, file, "the disk device 'data' of the instance")
            incus("delete", "-f", incus.name("v"))
    finally:
        host.sh('umount "$O/b"', env=names)


def test_files_in_storage_of_incus_are_not_evaluated_as_root(incus: Incus, host: Host) -> None:
    """The rootfs of an instance, a custom volume, and a pool that is elsewhere."""
    other = incus.init(name=incus.name("b"), flake="/etc/nixos#web")
    volume, pool = incus.name("volume"), incus.name("pool")
    incus("storage", "volume", "create", "default", volume)
    host.sh('mkdir "/srv/$P"', env={"P": pool})
    incus("storage", "create", pool, "dir", f"source=/srv/{pool}")
    rootfs = f"{POOL}/{other}/rootfs"
    custom = f"{POOL.rpartition('/')[0]}/custom/default_{volume}"
    try:
        for place in (f"{rootfs}/srv", f"{custom}/x", f"/srv/{pool}/custom/x"):
            # Nobody but root may write there, or look in.
            host.sh('mkdir -p "$D"; chown -R 0:0 "$D"', env={"D": place})
            host.sh('while [ "$D" != / ]; do chmod go=rx "$D"; D=$(dirname "$D"); done',
                    env={"D": place})  # fmt: skip
            host.run(["chown", "0:0", rootfs, custom])
            refused(incus, nix_file(host, place), "the storage of Incus")
            incus("delete", "-f", incus.name("v"))
    finally:
        incus("delete", "-f", other)
        incus("storage", "volume", "delete", "default", volume)
        host.sh('rm -rf "/srv/$P/custom/x"', env={"P": pool})
        incus("storage", "delete", pool)


def test_files_in_the_store_are_not_evaluated_as_root(incus: Incus, host: Host) -> None:
    """Any container may add a directory to the store."""
    draft = f"/srv/{incus.prefix}"
    nix_file(host, draft)
    stored = host.run(["nix-store", "--add", draft]).stdout.strip()
    host.sh('ln -s "$S" "$D/link"; mkdir "$D/bound"; mount --bind "$S" "$D/bound"',
            env={"S": stored, "D": draft})  # fmt: skip
    try:
        for place in (stored, f"{draft}/link", f"{draft}/bound"):
            refused(incus, f"{place}/web.nix", "any instance may add files to the Nix store")
            incus("delete", "-f", incus.name("v"))
    finally:
        host.run(["umount", f"{draft}/bound"])


def test_the_text_of_others_in_files_of_root_is_not_evaluated_as_root(
    incus: Incus, host: Host
) -> None:
    """Incus writes the console of a container as root, and Nix the log of a build."""
    write_secret(host)
    other = incus.launch(name=incus.name("b"), flake="/etc/nixos#web")
    # A comment of Nix hides what the start printed; the text is written from inside.
    host.sh('incus exec "$N" -- "$B" sh -c "cat >/dev/console"',
            env={"N": other, "B": BUSYBOX}, input=READS_SECRET)  # fmt: skip
    incus("stop", "-f", other)
    console = f"/var/log/incus/{other}/console.log"
    host.sh('test "$(stat -c %u "$F")" = 0; grep -q inx-secret "$F"', env={"F": console})
    places = [f"/var/log/{incus.prefix}", f"/nix/var/log/{incus.prefix}", f"/run/{incus.prefix}"]
    for file in (console, *(nix_file(host, place) for place in places)):
        refused_or_no_nix(incus, file)
        incus("delete", "-f", incus.name("v"))
    host.run(["rm", "-r", *places])


def refused_or_no_nix(incus: Incus, file: str) -> None:
    """As `refused`. What the start of an instance prints besides need not be Nix code."""
    name = start(incus, file=file, attr="web")
    status, said = incus.status(name), console_line(incus, name)
    assert status.startswith("failed: "), status
    for text in (status, said):
        assert WITHOUT_RIGHTS in text and "programs of root write the text of others" in text


def test_the_root_of_a_process_is_not_taken_for_the_root_of_the_host(
    incus: Incus, host: Host
) -> None:
    """/proc/PID/root reads as a link to "/", and leads into the container."""
    file = nix_file(host, f"/srv/{incus.prefix}")
    other = incus.launch(name=incus.name("b"), flake="/etc/nixos#web")
    inside = f"/proc/{incus.pid(other)}/root"
    place = f"/srv/{incus.prefix}"
    host.run(["touch", f"{place}/flake.nix"])
    write_as_container(incus, other, place, place)
    for key, source in (("file", f"{inside}{file}"), ("flake", f"{inside}/srv/{incus.prefix}")):
        more = {"attr": "web"} if key == "file" else {}
        name = start(incus, **{key: source}, **more)
        assert "lies in /proc, which leads into processes" in incus.status(name)
        incus("delete", "-f", name)
    host.sh('ln -s "$I/srv/$P" "/srv/$P-link"', env={"I": inside, "P": incus.prefix})
    name = start(incus, flake=f"/srv/{incus.prefix}-link#web")
    assert "where its links lead" in incus.status(name)


def test_nothing_is_evaluated_as_root_while_incus_does_not_answer(incus: Incus, host: Host) -> None:
    """The instance waits for its build while Incus is stopped; then a build begins."""
    file = nix_file(host, f"/srv/{incus.prefix}")
    name = start(incus, file=file, attr="web")
    incus.wait_status(name, "ready$")
    bind = "mount --bind /dev/null /var/lib/incus/unix.socket"
    host.sh(bind)
    try:
        script = f"""
from inx_sidecar.builds.build_user import evaluator_of
from inx_sidecar.config.settings import Settings
from inx_sidecar.config.sources import NixFile
import asyncio
print(asyncio.run(evaluator_of(NixFile({file!r}, "web", False), Settings(), "web")).doubt)
"""
        said = host.run(["/opt/inx/bin/python", "-I", "-c", script]).stdout
    finally:
        host.run(["umount", "/var/lib/incus/unix.socket"])
    assert "it is not known which directories instances can write: Incus does not answer" in said


def test_a_repository_above_of_somebody_else_neither_stops_nor_captures_a_build(
    incus: Incus, host: Host
) -> None:
    """Nix looks for .git in the directories above, which in /tmp is anybody's."""
    flake = incus.flake(directory=f"/tmp/{incus.prefix}", greeting="mine")
    host.sh("install -d -o nobody /tmp/.git")
    try:
        name = start(incus, flake=f"{flake}#web")
        incus.wait_status(name, "ready$")
        assert console_line(incus, name).endswith("as root")
        script = "cd /tmp; rm -rf .git; runuser -u nobody -- git init -q ."
        host.sh(f"{script}; chmod 1777 /tmp")
        incus.flake(directory=flake, greeting="mine again")
        incus.set(name, "user.inx.update=2")
        incus.wait_generation(name, "2")
    finally:
        host.run(["rm", "-rf", "/tmp/.git"])


def test_a_flake_below_the_top_of_its_own_repository_is_still_found(
    incus: Incus, host: Host
) -> None:
    """Nix copies the tracked files of the whole repository."""
    top = f"/srv/{incus.prefix}"
    incus.flake(directory=f"{top}/sub/web", greeting="below")
    host.sh('mv "$D/sub/web/system.nix" "$D/common.nix"; echo "import ../../common.nix" '
            '>"$D/sub/web/system.nix"', env={"D": top})  # fmt: skip
    git_repository(host, top)
    for number, ref in enumerate(
        (f"{top}/sub/web", f"{top}?dir=sub/web", f"git+file://{top}?dir=sub/web")
    ):
        name = incus.launch(name=incus.name(str(number)), flake=f"{ref}#web")
        assert console_line(incus, name).endswith("as root")


def test_git_of_the_owner_keeps_its_settings(incus: Incus, host: Host) -> None:
    """The settings of a repository of root are root's; it shows that the traces would be seen."""
    flake = unlocked_flake(incus, f"/srv/{incus.prefix}")
    command = trace(incus, "fsmonitor")
    git_repository(host, flake, f'[core]\nfsmonitor = "{command}; false"\n')
    incus.launch(flake=f"{flake}#web")
    assert "fsmonitor 0" in traces(incus)
