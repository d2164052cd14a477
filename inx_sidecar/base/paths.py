"""Where things live on the host. Nothing else in the package spells out these paths.

Imported by the hooks: keep it light.
"""

STORE = "/nix/store"
NIX_DB = "/nix/var/nix/db/db.sqlite"
GC_LOCK = "/nix/var/nix/gc.lock"
GC_SOCKET = "/nix/var/nix/gc-socket/socket"
GCROOTS = "/nix/var/nix/gcroots/inx"
HOST_GCROOTS = "/nix/var/nix/gcroots"
HOST_TEMPROOTS = "/nix/var/nix/temproots"

CONFIG = "/etc/inx/config.toml"
HOOKS = "/etc/inx/hooks"
PROFILE = "/etc/inx/profile.yaml"
DECLARED = "/etc/inx/instances.json"
MACHINE_ID = "/etc/machine-id"

RUN = "/run/inx"
SOCKET = "/run/inx/sidecar.sock"
STATE = "/var/lib/inx"
LOG = "/var/log/inx"

INCUS_SOCKET = "/var/lib/incus/unix.socket"
INCUS_CONTAINERS = "/var/lib/incus/containers"
INCUS_SNAPSHOTS = "/var/lib/incus/containers-snapshots"

# Inside a container.
STORE_INSIDE = "nix/store"
PROFILES_INSIDE = "nix/var/nix/profiles"
GCROOTS_INSIDE = "nix/var/nix/gcroots"
BOOT_INSIDE = "dev/.inx"


def run_dir(uuid: str) -> str:
    """What lives as long as the instance runs: gone after a reboot of the host."""
    return f"{RUN}/{uuid}"


def boot_dir(uuid: str) -> str:
    """Shown inside as /dev/.inx: the bootstrap init and what it waits for."""
    return f"{RUN}/{uuid}/boot"


def daemon_socket_dir(uuid: str) -> str:
    """Shown inside as /nix/var/nix/daemon-socket."""
    return f"{RUN}/{uuid}/daemon-socket"


def auto_dir(uuid: str) -> str:
    """The roots that Nix clients of the instance register with its own nix-daemon; STATE/UUID lives
    as long as the instance exists."""
    return f"{STATE}/{uuid}/auto"


def gcroots_dir(uuid: str) -> str:
    """What the instance's nix-daemon has as gcroots: `auto` is a link there, which Nix does not
    follow when it looks for roots."""
    return f"{STATE}/{uuid}/gcroots"


def build_dir(uuid: str) -> str:
    """Holds a directory for the user who builds: Nix puts its result link there."""
    return f"{STATE}/{uuid}/build"


def build_log(uuid: str) -> str:
    return f"{LOG}/{uuid}.build.log"


def daemon_socket_unit(uuid: str) -> str:
    return f"inx-nix-daemon@{uuid}.socket"


def daemon_service_unit(uuid: str) -> str:
    return f"inx-nix-daemon@{uuid}.service"


def build_unit(uuid: str) -> str:
    return f"inx-build-{uuid}.service"
