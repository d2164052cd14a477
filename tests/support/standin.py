"""The small stand-in for nixpkgs (tests/support/nixpkgs) on a disposable host.

Its systems are those of example/tiny/system.nix. Files inside tell what the configuration says:

    /etc/nixos-revision, /etc/os-release    system.nixos.revision ("null": none), .version
    /etc/published                          what `publish` was given: which nixpkgs this is
    /etc/state-version, /etc/host-platform  system.stateVersion, nixpkgs.hostPlatform
    /etc/hostname                           networking.hostName, if there is one
    /etc/set-environment                    environment.variables
    /etc/nginx/nginx.conf                   services.nginx, if it is enabled
    /etc/systemd/system/NAME.service        systemd.services.NAME, also nginx and sshd
    /etc/passwd, /home/NAME                 users.users.NAME, if isNormalUser
    /etc/nix/registry.json                  nixpkgs.flake.source

environment.etc, environment.systemPackages (pkgs.hello), system.activationScripts, assertions and
warnings work as in NixOS; other options that nix/container.nix and usual configurations set are
there and change nothing. Errors of the module system have the wording of nixpkgs.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator

from support.disposable import Host

PLACE = "/srv/nixpkgs"
RELEASE = "26.05"
ARCHIVES = "/srv/nixpkgs-archives"
PORT = 8124
# The newest archive, as channels.nixos.org serves it: the answer names an archive that stays as it
# is, and its revision. `plain` is the same archive without this.
CHANNEL = f"http://127.0.0.1:{PORT}/nixpkgs.tar.gz"
PLAIN = f"http://127.0.0.1:{PORT}/plain.tar.gz"
DATE = 1780000000  # of all files of an archive, in seconds since 1970: 2026-05-28

SERVER = """
import http.server, os, sys
class Archives(http.server.SimpleHTTPRequestHandler):
    kept = ""
    def translate_path(self, path):
        name = path.partition("?")[0]
        self.kept = os.readlink("newest") if name == "/nixpkgs.tar.gz" else ""
        newest = name in ("/nixpkgs.tar.gz", "/plain.tar.gz")
        return super().translate_path("/newest" if newest else path)
    def end_headers(self):
        if self.kept:
            url = f"http://127.0.0.1:{sys.argv[1]}/{self.kept}?rev={self.kept.partition('.')[0]}"
            self.send_header("Link", f'<{url}>; rel="immutable"')
        super().end_headers()
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Archives).serve_forever()
"""


def revision(text: str) -> str:
    """The revision of the nixpkgs that `text` was published with: 40 hexadecimal digits."""
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


def put(host: Host, place: str = PLACE, text: str = "one") -> str:
    """Put the stand-in into a directory of the host, in the place of what is there.

    Another `text` makes another nixpkgs, which gives other systems.
    """
    host.sh(
        """
        rm -rf "$D"; cp -r /root/inx/tests/support/nixpkgs "$D"; mkdir "$D/tiny"
        cp /etc/nixos/system.nix /etc/nixos/deps.json "$D/tiny"
        printf %s "$T" >"$D/published"
        """,
        env={"D": place, "T": text},
    )
    return place


def publish(host: Host, text: str = "one", *, told: bool = False, date: int = DATE) -> str:
    """Make the newest archive, which has another content for another `text`. Gives its revision.

    With `told`, files in the archive tell the revision, as in those of channels.nixos.org. Nix
    keeps what it fetched for an hour; `nix flake update` and `--refresh` ask the server again.
    """
    rev = revision(text)
    host.sh(
        """
        if [ "$TOLD" ]; then
            echo "$REV" >"$D/.git-revision"; echo ".${DATE}.${REV:0:12}" >"$D/.version-suffix"
        fi
        mkdir -p "$A"; cd "$A"
        tar -C "${D%/*}" --mtime="@$DATE" --sort=name -czf "$REV.tar.gz" "${D##*/}"
        ln -sfn "$REV.tar.gz" newest
        rm -rf "$D"
        """,
        env={
            "D": put(host, f"{ARCHIVES}.tree", text),
            "A": ARCHIVES,
            "REV": rev,
            "DATE": str(date),
            "TOLD": "yes" if told else "",
        },
    )
    return rev


def flake(host: Host, directory: str, nixpkgs: str, text: str) -> str:
    """A flake that has the system `web` of this nixpkgs, which is no flake for it.

    `text` is the text of a module. Errors call it user.inx.config.
    """
    host.sh(
        """
        mkdir -p "$D"; cp /root/inx/nix/container.nix "$D"; printf %s "$T" >"$D/text.nix"
        cat >"$D/flake.nix"
        """,
        env={"D": directory, "T": text},
        input=f"""{{
            inputs.nixpkgs = {{ url = "{nixpkgs}"; flake = false; }};
            outputs = {{ self, nixpkgs }}: {{
                nixosConfigurations.web = import "${{nixpkgs}}/nixos/lib/eval-config.nix" {{
                    system = null;
                    modules = [
                        ./container.nix
                        {{ _file = "user.inx.config"; imports = [ (import ./text.nix) ]; }}
                        {{
                            nixpkgs.hostPlatform = "x86_64-linux"; system.stateVersion = "25.11";
                            system.nixos.revision = nixpkgs.rev or "none";
                        }}
                    ];
                }};
            }};
        }}""",
    )
    return directory


@contextlib.contextmanager
def served(host: Host, text: str = "one") -> Iterator[str]:
    """Within the block, a server on the host has archives: CHANNEL, which is given, and PLAIN."""
    publish(host, text)
    host.sh(
        """
        cat >"$A.py"
        systemd-run -q --unit=nixpkgs-server --working-directory="$A" python3 "$A.py" "$P"
        until (exec 3<>"/dev/tcp/127.0.0.1/$P") 2>/dev/null; do
            systemctl is-active -q nixpkgs-server; sleep 0.05
        done
        """,
        env={"A": ARCHIVES, "P": str(PORT)},
        input=SERVER,
    )
    try:
        yield CHANNEL
    finally:
        host.sh('systemctl stop nixpkgs-server || :; rm -rf "$A" "$A.py"', env={"A": ARCHIVES})


@contextlib.contextmanager
def registered(host: Host, target: dict[str, str]) -> Iterator[None]:
    """Within the block, `flake:nixpkgs` leads to `target`, in the system's registry.

    Commands look there; an input of a flake does so with Nix 2.26, not with 2.34. `target` is, for
    example, {"type": "path", "path": PLACE}, or {"type": "tarball", "url": CHANNEL}. Nix would
    fetch the global registry from the network before it looks at any; so it has none here. Nix
    reads this setting only if flakes are enabled there.
    """
    registry = {
        "version": 2,
        "flakes": [{"from": {"type": "indirect", "id": "nixpkgs"}, "to": target}],
    }
    host.sh(
        """
        cat >/etc/nix/registry.json; cp /etc/nix/nix.conf /etc/nix/nix.conf.before
        printf '%s\n' "extra-experimental-features = nix-command flakes" "flake-registry =" \
            >>/etc/nix/nix.conf
        """,
        input=json.dumps(registry),
    )
    try:
        yield
    finally:
        host.sh("mv /etc/nix/nix.conf.before /etc/nix/nix.conf; rm /etc/nix/registry.json")
