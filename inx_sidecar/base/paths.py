"""Paths on the host and in containers. No other module spells them out.

The hooks import this module, so it imports nothing.
"""

STORE = "/nix/store"
NIX_STATE = "/nix/var/nix"
NIX_DB = "/nix/var/nix/db/db.sqlite"
GC_LOCK = "/nix/var/nix/gc.lock"
GC_SOCKET = "/nix/var/nix/gc-socket/socket"
DAEMON_SOCKET = "/nix/var/nix/daemon-socket/socket"  # of the host's nix-daemon
GCROOTS = "/nix/var/nix/gcroots/inx"
HOST_GCROOTS = "/nix/var/nix/gcroots"
HOST_TEMPROOTS = "/nix/var/nix/temproots"
NIX_BUILDS = "/nix/var/nix/inx-builds"
DAEMON_BUILDS = "/nix/var/nix/builds"  # as the nix-daemon of an instance sees it

CONFIG = "/etc/inx/config.toml"
HOOKS = "/etc/inx/hooks"
PROFILE = "/etc/inx/profile.yaml"
DECLARED = "/etc/inx/instances.json"
MACHINE_ID = "/etc/machine-id"
SYSTEM_BUS = "/run/dbus/system_bus_socket"
TMP = "/tmp"
VAR_TMP = "/var/tmp"
# Programs of root write there what instances and users say: logs, consoles, leases, core dumps,
# directories of failed Nix builds.
WRITTEN_FOR_OTHERS = (
    "/dev", "/nix/var", "/proc", "/run", "/sys", "/var/cache", "/var/crash", "/var/lib/inx",
    "/var/lib/misc", "/var/lib/systemd", "/var/log", "/var/mail", "/var/spool",
)  # fmt: skip

RUN = "/run/inx"
SOCKET = "/run/inx/sidecar.sock"
HOOK_REQUESTS = "/run/inx/hooks"
METRICS = "/run/inx/metrics/inx.prom"
STATE = "/var/lib/inx"
BUILDS = "/var/lib/inx/builds"
BUILD_IDS = "/var/lib/inx/build-ids"
LOG = "/var/log/inx"

INCUS = "/var/lib/incus"
INCUS_SOCKET = "/var/lib/incus/unix.socket"
INCUS_CONTAINERS = "/var/lib/incus/containers"
INCUS_SNAPSHOTS = "/var/lib/incus/containers-snapshots"

# Inside a container, relative to its root.
STORE_INSIDE = "nix/store"
PROFILES_INSIDE = "nix/var/nix/profiles"
GCROOTS_INSIDE = "nix/var/nix/gcroots"
# What inx keeps in an instance that has a store of its own.
OWN_INSIDE = "nix/.inx"
SHOWN_INSIDE = "nix/.inx/shown"
UPPER_INSIDE = "nix/.inx/upper"
WORK_INSIDE = "nix/.inx/work"
TRASH_INSIDE = "nix/.inx/trash"
BOOT_INSIDE = "dev/.inx"
RUN_INSIDE = "run"


def run_dir(uuid: str) -> str:
    """State of a running instance; a reboot of the host removes it."""
    return f"{RUN}/{uuid}"


def boot_dir(uuid: str) -> str:
    """/dev/.inx of the container: the bootstrap init, and the files that it waits for."""
    return f"{RUN}/{uuid}/boot"


def daemon_socket_dir(uuid: str) -> str:
    """/nix/var/nix/daemon-socket of the container."""
    return f"{RUN}/{uuid}/daemon-socket"


def state_dir(uuid: str) -> str:
    """Exists as long as the instance does. Only root may enter."""
    return f"{STATE}/{uuid}"


def flake_dir(uuid: str) -> str:
    """The flake that inx wrote for the last build of modules."""
    return f"{state_dir(uuid)}/flake"


def auto_dir(uuid: str) -> str:
    """The roots that Nix clients of the instance register with its own nix-daemon."""
    return f"{state_dir(uuid)}/auto"


def gcroots_dir(uuid: str) -> str:
    """/nix/var/nix/gcroots of the instance's nix-daemon.

    `auto` is a link in it, which Nix does not follow when it looks for roots.
    """
    return f"{state_dir(uuid)}/gcroots"


def daemon_etc_dir(uuid: str) -> str:
    """/etc of the instance's nix-daemon."""
    return f"{RUN}/{uuid}/etc"


def daemon_builds_dir(uuid: str) -> str:
    """/nix/var/nix/builds of the instance's nix-daemon: files of builds, also of failed ones that
    the client keeps. It is on the disk of the store, which builds fill anyway."""
    return f"{NIX_BUILDS}/{uuid}"


def build_dir(uuid: str) -> str:
    """Has a directory of the build's user, in which Nix makes the result link. So that user can
    enter it."""
    return f"{BUILDS}/{uuid}"


def build_log(uuid: str) -> str:
    return f"{LOG}/{uuid}.build.log"


def change_log(uuid: str) -> str:
    return f"{LOG}/{uuid}.changes"


def daemon_socket_unit(uuid: str) -> str:
    return f"inx-nix-daemon@{uuid}.socket"


def daemon_service_unit(uuid: str) -> str:
    return f"inx-nix-daemon@{uuid}.service"


def daemon_limits_dir(uuid: str) -> str:
    """What 'systemctl set-property --runtime' has written for the instance's nix-daemon."""
    return f"/run/systemd/system.control/{daemon_service_unit(uuid)}.d"


def build_unit(uuid: str) -> str:
    return f"inx-build-{uuid}.service"


def fetch_unit(uuid: str) -> str:
    """The service that fetches what an instance names. The pattern of `build_unit` covers it."""
    return f"inx-build-{uuid}-fetch.service"


def missing_file(uuid: str) -> str:
    """Which store paths that the instance names are lost on this host."""
    return f"{state_dir(uuid)}/missing.json"
