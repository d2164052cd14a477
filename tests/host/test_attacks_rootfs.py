"""Files that a container leaves in its root file system, to attack the hooks of the next start."""

import pytest
from support.disposable import Host
from support.fingerprint import changes, fingerprint, unchanged
from support.incus import POOL, Incus
from support.refusals import refusal, start
from support.store import build_system

pytestmark = pytest.mark.main


# Shell text that runs in the root file system of a stopped instance, and the beginning of the
# refusal, a path. The hooks must not follow such a file, and must not mount over it.
IN_THE_WAY = {
    "nix is a link": ("mv nix old; ln -s /tmp/x nix", "/nix"),
    "nix is a file": ("mv nix old; touch nix", "/nix"),
    "store is a link to itself": ("rm -r nix/store; ln -s store nix/store", "/nix/store"),
    "store leads to where it is": ("rm -r nix/store; ln -s . nix/store", "/nix/store"),
    "store is a fifo": ("rm -r nix/store; mkfifo nix/store", "/nix/store"),
    "var leads to the host": ("rm -r nix/var; ln -s /var/lib/inx nix/var", "/nix/var"),
    "state leads upwards": (
        "rm -r nix/var/nix; ln -s ../../../../../../../nix/var/nix nix/var/nix",
        "/nix/var/nix",
    ),
    "profiles leads to /etc": (
        "cd nix/var/nix; rm -r profiles; ln -s /etc profiles",
        "/nix/var/nix/profiles",
    ),
    "profiles is a file": (
        "cd nix/var/nix; rm -r profiles; touch profiles",
        "/nix/var/nix/profiles",
    ),
    "gcroots leads to the host's": (
        "cd nix/var/nix; rm -r gcroots; ln -s ../../../../../../../nix/var/nix/gcroots gcroots",
        "/nix/var/nix/gcroots",
    ),
    "the socket's directory leads to /run/inx": (
        "cd nix/var/nix; rm -r daemon-socket; ln -s /run/inx daemon-socket",
        "/nix/var/nix/daemon-socket",
    ),
    "the current system is a directory": (
        "cd nix/var/nix/profiles; rm system; mkdir -p system/full",
        "/nix/var/nix/profiles/system",
    ),
    "the note of the source is a directory": (
        "cd nix/var/nix/profiles; rm system-source; mkdir system-source",
        "/nix/var/nix/profiles/system-source",
    ),
    "the pin is a directory": (
        "cd nix/var/nix/profiles; mkdir system-pinned",
        "/nix/var/nix/profiles/system-pinned",
    ),
    "a crowd": (
        "cd nix/var/nix/profiles; seq 25000 | xargs touch",
        "/nix/var/nix/profiles of",
    ),
}
# These keep inx from writing a new generation only: the one that is there starts.
FALLS_BACK = {"the note of the source is a directory", "the pin is a directory"}
# Shell text that runs in the directory of the profiles; $T is a valid system. The start succeeds.
HARMLESS = {
    "the current system leads to the host": "ln -sfn ../../../../../../etc/passwd system",
    "a generation leads to the host": "ln -sfn /etc/shadow system-1-link; ln -sfn /root system",
    "a generation is a directory": "rm system-1-link; mkdir -p system-1-link/x",
    "a generation is a fifo": "rm system-1-link; mkfifo system-1-link",
    "a generation is a device": "rm system-1-link; mknod system-1-link c 1 3",
    "names": """
        touch -- -rf --option $'system-\\n-link' $'\\xff\\xfe' system--1-link system-0-link '$(id)'
        for n in system-01-link system-1-linkx system-٣-link system-1234567890-link $'\\e[31m' ' '
        do ln -sfn "$T" "$n"; done
        touch "$(printf 'x%.0s' {1..255})" "system-$(printf '9%.0s' {1..240})-link"
    """,
    "nix's lock": "ln -s /srv/locked system.lock; ln -s /srv/locked .system.lock",
    "a database": "ln -s /nix/var/nix/db ../db; ln -s /srv/locked ../gc.lock",
    "a long target": 'ln -sfn "$(printf "a/%.0s" {1..2000})" system-3-link',
    "/dev/.inx": "mkdir -p ../../../../dev/.inx; echo pwned >../../../../dev/.inx/init",
    "/dev/.inx leads to the host": "ln -sfn /run/inx ../../../../dev/.inx",
    "the highest number": "rm system; ln -s /gone system-999999999-link",
    "paths that are not valid": """
        for n in $(seq 100 140); do
            ln -s /nix/store/00000000000000000000000000000$n-gone system-$n-link
        done
    """,
}


class Victim:
    """A stopped instance whose file system a test spoils over and over.

    The host writes the files. This is quicker than to start the container, and leaves the same
    files on the disk.
    """

    def __init__(self, incus: Incus) -> None:
        self.incus, self.host = incus, incus.host
        link = f"/srv/{incus.prefix}-system"
        self.system = build_system(self.host, incus.flake(), link)
        self.name = incus.launch(system=self.system)
        incus("stop", "-f", self.name)
        self.rootfs = f"{POOL}/{self.name}/rootfs"
        self.count = 0
        self.host.sh(f"cp -a {self.rootfs} /var/tmp/{self.name}; touch /srv/canary")
        self.before = fingerprint(self.host)

    def start(self, script: str, below: str = "") -> int:
        """Spoil the files that a first start left, ask for a new generation, and start.

        Gives the exit status of the start.
        """
        self.host.sh(
            f"cd {self.rootfs}; find . -mindepth 1 -delete; cp -a /var/tmp/{self.name}/. .; "
            f"cd ./{below}; {script}",
            env={"T": self.system},
        )
        self.count += 1
        self.incus.set(self.name, f"user.inx.update={self.count}")
        return start(self.incus, self.name)

    def end(self) -> str:
        """Stop the instance if it runs, and tell the changes on the host."""

        def stopped() -> bool:
            """Incus refuses it while the sidecar writes a status."""
            done = self.incus("stop", "-f", self.name, check=False)
            return done.returncode == 0 or "already stopped" in done.stderr

        self.incus.eventually(stopped, self.incus.story)
        return changes(self.host, self.before)


def test_a_file_in_the_way_is_refused_by_name(incus: Incus, host: Host) -> None:
    victim = Victim(incus)
    wrong: dict[str, str] = {}
    for what, (script, beginning) in IN_THE_WAY.items():
        started = victim.start(script) == 0
        if started and what in FALLS_BACK:
            said = incus.wait_status(victim.name, f"failed: {beginning} .*; started generation 1")
            text = said.removeprefix("failed: ")
        else:
            text = "" if started else refusal(incus, victim.name)
        harm = victim.end()
        told = text.startswith(f"{beginning} ") and repr(victim.name) in text
        if started != (what in FALLS_BACK) or not told or harm:
            wrong[what] = f"started: {started}, said: {text}, harm: {harm}"
    # The instance starts again once nothing stands in the way.
    assert victim.start(":") == 0
    incus.wait_inside(victim.name)
    assert wrong == {}, "\n".join(f"{what}: {how}" for what, how in wrong.items())


def test_a_strange_file_in_the_profile_does_no_harm(incus: Incus, host: Host) -> None:
    victim = Victim(incus)
    wrong: dict[str, str] = {}
    for what, script in HARMLESS.items():
        if victim.start(script, "nix/var/nix/profiles"):
            wrong[what] = f"did not start: {refusal(incus, victim.name)} {victim.end()}"
            continue
        incus.wait_ready(victim.name)
        profile = incus.said(victim.name, "readlink", "-f", "/nix/var/nix/profiles/system")
        system = incus.get(victim.name, "user.inx.status.system")
        harm = victim.end()
        if not profile.strip() == system == victim.system or harm:
            wrong[what] = f"profile: {profile.strip()}, status: {system}, harm: {harm}"
    assert wrong == {}, "\n".join(f"{what}: {how}" for what, how in wrong.items())


def test_a_link_planted_from_inside_is_refused_at_the_next_start(incus: Incus, host: Host) -> None:
    name = incus.launch(flake="/etc/nixos#web")
    # A bind mount of / shows the root file system without the mounts in it. A directory can be
    # renamed there, because nothing is mounted on it.
    incus.sh(
        name,
        """
        mkdir /r
        unshare -m --propagation private sh -euc '
            for m in daemon-socket profiles gcroots .; do umount -l /nix/var/nix/$m; done
            mount -o bind / /r; cd /r/nix/var/nix
            mv profiles old; ln -s /etc profiles; ln -s /etc/shadow old/system-2-link
        '
        """,
    )
    with unchanged(host):
        incus("stop", "-f", name)
        assert incus.start(name, check=False).returncode != 0
        assert refusal(incus, name).startswith(f"/nix/var/nix/profiles of {name!r} cannot be used")
        state = f"{POOL}/{name}/rootfs/nix/var/nix"
        host.sh(f"cd {state}; rm profiles; mv old profiles")
        assert start(incus, name) == 0
        incus.wait_ready(name)
