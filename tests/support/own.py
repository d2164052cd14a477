"""Instances with a store of their own, in which Nix builds."""

from typing import Final

from support.incus import Incus

# Systems with a file of their own; `token` makes them new.
SYSTEMS: Final = """
let
  gathered = builtins.fromJSON (builtins.readFile /etc/nixos/deps.json);
  deps = builtins.mapAttrs (n: v: if n == "system" then v else builtins.storePath v) gathered;
  make = file: number: import file {
    inherit deps;
    name = "%(token)s";
    version = toString number;
    extra = {
      "part" = "${builtins.toFile "part-%(token)s-${toString number}" "part ${toString number}"}";
    };
  };
in
  builtins.listToAttrs (builtins.concatMap (number: [
    { name = "s${toString number}"; value = make /etc/nixos/system.nix number; }
    { name = "d${toString number}"; value = make /etc/nixos/systemd.nix number; }
  ]) (builtins.genList (number: number + 1) 9))
"""
# There is no group for builds, and no cache. The Nix of these systems is started through its
# linker, so it has no program for remote builds.
NIX_CONFIG: Final = """build-hook =
sandbox-paths =
build-users-group =
sandbox = true
sandbox-fallback = false"""
_BUILD: Final = r"""
box=$(dirname "$(dirname "$(readlink -f /run/current-system/sw/bin/sh)")")
[ -x "$box/bin/sh" ] || box=$(ls -d /nix/store/*-busybox)
cat >/root/build.nix <<EON
let box = builtins.storePath $box; in derivation {
    name = "$name";
    system = "$(cat /run/current-system/system)";
    PATH = "\${box}/bin";
    builder = "\${box}/bin/sh";
    args = [ "-euc" "SCRIPT" ];
}
EON
export NIX_CONFIG="CONF
substituters ="
nix-build /root/build.nix -o "$link"
""".replace("CONF\n", f"{NIX_CONFIG}\n")
# Build a path that needs `$part`, and root it at `$link`.
BUILD: Final = _BUILD.replace(
    "SCRIPT",
    r"mkdir \$out; echo $name >\$out/ids; ln -s \${builtins.storePath $part} \$out/part",
)
# Build a path of 60 MiB.
BIG: Final = "name=big link=/root/big\n" + _BUILD.replace(
    "SCRIPT", r"dd if=/dev/urandom of=\$out bs=1M count=60"
)
# Every path in the store is valid, and the other way round; all files are as registered.
RIGHT: Final = """
    nix-store --verify --check-contents
    nix path-info --all | sed 's,^/nix/store/,,' | sort >/root/valid
    ls /nix/store | grep -v '[.]lock$' | sort >/root/there
    diff /root/valid /root/there
"""


def system(incus: Incus, number: int, kind: str = "s") -> str:
    """The store path of a system on the host, kept by a link of the host."""
    path = f"/srv/{incus.prefix}-own.nix"
    incus.host.sh('cat >"$P"', env={"P": path}, input=SYSTEMS % {"token": incus.prefix})
    link = f"/srv/{incus.prefix}-own-{kind}{number}"
    incus.host.run(["nix-build", path, "-A", f"{kind}{number}", "-o", link])
    return incus.host.run(["readlink", link]).stdout.strip()


def part_of(incus: Incus, toplevel: str) -> str:
    return incus.host.run(["cat", f"{toplevel}/etc/part"]).stdout.strip()


def own(incus: Incus, toplevel: str, *args: str, **keys: str) -> str:
    return incus.launch(*args, store="own", system=toplevel, **keys)


def is_right(incus: Incus, name: str) -> None:
    done = incus.sh(name, RIGHT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr + incus.story()


def update(incus: Incus, name: str, toplevel: str) -> None:
    incus.set(name, f"user.inx.system={toplevel}")
    incus.eventually(
        lambda: (
            incus.get(name, "user.inx.status.system") == toplevel
            and incus.status(name).startswith("ready")
        ),
        incus.story,
    )


def build(incus: Incus, name: str, what: str, part: str, link: str) -> None:
    script = f"name={what}; part={part}; link={link}\n{BUILD}"
    incus.sh(name, script)


def begin_builds(
    incus: Incus, name: str, what: str, part: str, *, collect: bool = False, store: str = ""
) -> None:
    """Build one path after the other inside, rooted at /root/loop-NUMBER, until the stop.

    `store` is that of Nix, as "daemon".

    With `collect`, a collection follows each third build, and no root of a build stays. What fails
    is told in /root/failures.
    """
    collected = "[ $((i % 3)) != 0 ] || { rm /root/loop-*; nix-store --gc; }" if collect else ":"
    loop = f"""
        i=0
        export NIX_REMOTE={store}
        while :; do
            i=$((i + 1)) name={what}-$i part={part} link=/root/loop-$i
            export name part link
            {{ sh -eu /root/build.sh && {collected}; }} >/root/output 2>&1 || cp /root/output /root/failures
            echo $i >/root/count
        done
    """  # noqa: E501
    incus.sh(name, "cat >/root/build.sh", input=BUILD)
    incus.sh(name, "cat >/root/loop.sh", input=loop)
    incus.sh(name, "setsid sh /root/loop.sh </dev/null >/dev/null 2>&1 &")


def builds_done(incus: Incus, name: str) -> int:
    """How many builds have ended; none of them may have failed."""
    assert not incus.inside(name, "test -e /root/failures"), incus.sh(
        name, "cat /root/failures"
    ).stdout
    return int(incus.sh(name, "cat /root/count 2>/dev/null || echo 0").stdout or 0)
