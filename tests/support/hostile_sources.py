"""Sources that somebody else than the operator writes, and the traces that they leave."""

from collections.abc import Mapping

from support.disposable import Host
from support.incus import Incus

# A program inside that writes files as root of the container: the bootstrap busybox.
BUSYBOX = "/dev/.inx/busybox"
SECRET = "/root/inx-secret"
# Builds the system of /etc/nixos, if the evaluation can read a file that only root may read.
READS_SECRET = f'builtins.seq (builtins.readFile "{SECRET}") (import /etc/nixos)'


def trace(incus: Incus, what: str = "program") -> str:
    """A shell command that tells, from any sandbox, that it ran and as whom."""
    return f"logger -t ran-{incus.prefix} {what} $(id -u)"


def traces(incus: Incus) -> list[str]:
    argv = ["journalctl", "--sync", "-q", "-o", "cat", "--no-pager", "-t", f"ran-{incus.prefix}"]
    incus.host.run(["journalctl", "--sync"])
    return incus.host.run([word for word in argv if word != "--sync"]).stdout.splitlines()


def write_secret(host: Host) -> None:
    host.sh('umask 077; echo "only root reads this" >"$F"', env={"F": SECRET})


def unlocked_flake(incus: Incus, directory: str, inputs: str = "") -> str:
    """A flake whose lock file has to be written; Nix then runs git in its directory."""
    system = 'import ./system.nix { inherit deps; name = "web"; }'
    incus.flake_text(f"nixosConfigurations.web.config.system.build.toplevel = {system};", directory)
    host = incus.host
    host.sh('mkdir -p "$D-input"; echo 1 >"$D-input/x"', env={"D": directory})
    inputs = inputs or f'inputs.x = {{ url = "path:{directory}-input"; flake = false; }};'
    text = host.run(["cat", f"{directory}/flake.nix"]).stdout
    text = text.replace("outputs = { self }:", f"{inputs} outputs = {{ self, ... }}:")
    host.sh('cat >"$D/flake.nix"', env={"D": directory}, input=text)
    return directory


def git_repository(
    host: Host,
    directory: str,
    config: str = "",
    script: str = "",
    names: Mapping[str, str] | None = None,
) -> str:
    """Make `directory` a repository with all its files, and add `config` to .git/config."""
    host.sh(
        """
        cd "$D"; git init -q .
        git -c user.name=x -c user.email=x@y add -A
        git -c user.name=x -c user.email=x@y commit -q -m one
        printf %s "$C" >>.git/config
        """
        + script,
        env={"D": directory, "C": config, **(names or {})},
    )
    return directory


def write_as_container(incus: Incus, name: str, source: str, target: str) -> None:
    """Copy the directory `source` of the host to `target` inside, as root of the container."""
    incus.host.sh(
        'tar -C "$S" -c . | incus exec "$N" -- "$B" sh -c \'mkdir -p "$0"; tar -C "$0" -x\' "$T"',
        env={"S": source, "N": name, "T": target, "B": BUSYBOX},
    )


def share(incus: Incus, name: str, source: str, *options: str) -> None:
    """Give the instance the directory `source` as the disk device "data"."""
    incus("config", "device", "add", name, "data", "disk", f"source={source}", *options)


def console_line(incus: Incus, name: str) -> str:
    """The line of the console that says who evaluates."""
    found: list[str] = []

    def is_there() -> bool:
        console = incus.console(name)
        found[:] = [line for line in console.splitlines() if "building the system" in line]
        return bool(found)

    incus.eventually(is_there, incus.story)
    return found[0].strip()


def hostile_repository(incus: Incus, directory: str, owner: str = "0") -> str:
    """Make `directory` a repository that names a program in each way that git has.

    All users may write there, and it belongs to `owner`. Each program tells that it ran.
    """
    programs = "".join(
        f'[{section}]\n{key} = "{trace(incus, f"{section.split()[0]}.{key}")}; false"\n'
        for section, key in PROGRAMS
    )
    config = f"""{programs}
[core]
hooksPath = {directory}/hooks
attributesFile = {directory}/attributes
[remote "origin"]
url = ssh://host.invalid/r
[branch "master"]
remote = origin
merge = refs/heads/master
[url "ext::logger -t ran-{incus.prefix} insteadOf "]
insteadOf = file://
insteadOf = https://
[protocol "ext"]
allow = always
[submodule "sub"]
update = "!{trace(incus, "submodule.update")}"
url = "ext::logger -t ran-{incus.prefix} submodule.url"
active = true
[include]
path = {directory}/included
"""
    script = """
        printf '[core]\nfsmonitor = "%s; false"\n' "$I" >included
        mkdir hooks; for hook in post-index-change post-checkout pre-commit fsmonitor-watchman; do
            printf '#!/bin/sh\n%s\n' "$H" | tee .git/hooks/$hook >hooks/$hook
            chmod +x hooks/$hook .git/hooks/$hook
        done
        echo '* filter=evil diff=evil' | tee .gitattributes .git/info/attributes >attributes
        printf '[submodule "sub"]\npath = sub\nurl = "%s"\n' "$U" >.gitmodules
        touch -d @1 *; echo " " >>flake.nix
        chown -R "$O" .; chmod -R a+rwX .
    """
    names = {
        "I": trace(incus, "include"),
        "H": trace(incus, "hook"),
        "U": f"ext::logger -t ran-{incus.prefix} gitmodules",
        "O": owner,
    }
    return git_repository(incus.host, directory, config, script, names)


PROGRAMS = (
    ("core", "fsmonitor"),
    ("core", "sshCommand"),
    ("core", "gitProxy"),
    ("core", "askPass"),
    ("core", "pager"),
    ("core", "editor"),
    ("core", "alternateRefsCommand"),
    ("credential", "helper"),
    ("diff", "external"),
    ('diff "evil"', "textconv"),
    ('diff "evil"', "command"),
    ('filter "evil"', "clean"),
    ('filter "evil"', "smudge"),
    ('filter "evil"', "process"),
    ("gpg", "program"),
    ('gpg "ssh"', "program"),
    ("uploadpack", "packObjectsHook"),
    ("interactive", "diffFilter"),
)
