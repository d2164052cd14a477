"""The state of a host that no container may change."""

import contextlib
from collections.abc import Iterator

from support.disposable import Host

# Nix and Incus write beside these directories, but not into them.
PRECIOUS = "/etc /root /srv /opt/inx /usr/local /nix/store /nix/var/nix/profiles /var/lib/inx-build"


def fingerprint(host: Host) -> dict[str, str]:
    """What has to stay the same on the host.

    This is the identity, rights, owner, size and times of each file, each mount of the host, and
    each root of inx that keeps no valid path.
    """
    listed = host.sh(
        # Newer versions of Nix write their own cache at each evaluation, too.
        f"find {PRECIOUS} -path /root/.cache/nix -prune -o "
        "-printf '%p|%i %#m %U:%G %n %s %T@ %C@ %l\\n'; "
        "findmnt --noheadings --list --output TARGET,SOURCE,FSROOT,OPTIONS,PROPAGATION | "
        "grep -v ^/var/lib/incus/ | sed 's/ /|/'; "
        "cd /nix/var/nix/gcroots/inx; find . -type l -printf '%l\\n' | "
        "xargs -r nix-store --check-validity --print-invalid | sed 's/$/|is rooted, but not valid/'"
    )
    return dict(line.split("|", 1) for line in listed.stdout.splitlines())


def changes(host: Host, before: dict[str, str]) -> str:
    """What differs from the fingerprint `before`, one line each."""
    after = fingerprint(host)
    differing = [
        f"{path}: {before.get(path)} -> {after.get(path)}"
        for path in sorted(before.keys() | after.keys())
        if before.get(path) != after.get(path)
    ]
    inside = host.sh("findmnt --noheadings --list --output TARGET | grep /rootfs/ || :").stdout
    return "\n".join([*differing, *inside.splitlines()])


@contextlib.contextmanager
def unchanged(host: Host) -> Iterator[None]:
    """The block leaves no trace on the host."""
    before = fingerprint(host)
    yield
    found = changes(host, before)
    assert not found, "\n".join(found.splitlines()[:20])
