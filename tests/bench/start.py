"""Compare `incus start` with inx and without hooks, for the same system, and measure the hook.

The container without hooks mounts the store by a static lxc.mount.entry, and boots the same
toplevel. The containers start in turn, so that other load of the machine affects both.
"""

import json

from support.disposable import Host

ROUNDS = 30
# Instances with inx: the keys of each, and the goal for its ratio to the one without hooks.
KINDS: dict[str, tuple[list[str], float]] = {
    "inx": ([], 1.15),
    "without-daemon": (["user.inx.daemon=false"], 1.15),
    "isolated": (["user.inx.store=isolated"], 1.2),
}

STATIC = """lxc.init.cmd = {system}/init
lxc.mount.entry = /nix/store nix/store none bind,ro,create=dir,idmap=container 0 0
"""

# This program runs on the host: entering the host takes longer than the measured operations.
MEASURE = """
import json, os, statistics, subprocess, sys, time
names, rounds = json.load(sys.stdin)
run = subprocess.run
def timed(*argv, **more):
    begin = time.perf_counter()
    run(argv, check=True, stdin=subprocess.DEVNULL, **more)
    return 1000 * (time.perf_counter() - begin)
times = {name: [] for name in names}
for _ in range(rounds):
    for name in names:
        times[name].append(timed("incus", "start", name))
        run(["incus", "stop", "-f", name], check=True)
facts = {"LXC_NAME": "inx", "LXC_CONFIG_FILE": "/run/incus/inx/lxc.conf",
         "LXC_ROOTFS_PATH": "/var/lib/incus/storage-pools/default/containers/inx/rootfs"}
requests = "/run/inx/hooks"
times |= {"pre-start hook": [], "hook python": []}
for _ in range(rounds):
    times["pre-start hook"].append(timed("/etc/inx/hooks/pre-start", env=facts))
    os.rename(requests, f"{requests}.away")  # so the hook asks by the socket
    times["hook python"].append(timed("/etc/inx/hooks/pre-start", env=facts))
    os.rename(f"{requests}.away", requests)
print(json.dumps({key: statistics.median(value) for key, value in times.items()}))
"""


def measure(host: Host) -> dict[str, float]:
    """Medians in milliseconds."""
    for name, (keys, _) in KINDS.items():
        options = [word for key in ("user.inx.flake=/etc/nixos#web", *keys) for word in ("-c", key)]
        host.run(["incus", "launch", "--empty", name, "--profile", "inx", *options])
        system = ""
        while not system:
            system = host.sh(f"incus config get {name} user.inx.status.system").stdout.strip()
        host.run(["incus", "stop", "-f", name])
    host.sh(
        'incus init --empty static </dev/null; incus config set static raw.lxc="$RAW"',
        env={"RAW": STATIC.format(system=system)},
    )
    given = json.dumps([["static", *KINDS], ROUNDS])
    done = host.run(["python3", "-c", MEASURE], input=given, timeout=600)
    numbers: dict[str, float] = json.loads(done.stdout)
    return numbers


def table(numbers: dict[str, float]) -> str:
    rows = [("incus start, static mounts, no hooks", f"{numbers['static']:.1f} ms")]
    for name, (_, goal) in KINDS.items():
        ratio = numbers[name] / numbers["static"]
        rows.append((f"incus start, {name}", f"{numbers[name]:.1f} ms: {ratio:.2f} (goal {goal})"))
    rows += [
        ("pre-start hook, with the sidecar's answer", f"{numbers['pre-start hook']:.1f} ms"),
        ("  the same by Python and the socket", f"{numbers['hook python']:.1f} ms"),
    ]
    return "\n".join(f"{what:<44} {value}" for what, value in rows)
