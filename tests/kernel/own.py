"""Containers with a store of their own, which start more than once: shared by tests."""

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from support.containers import FIRST_ID, Sandbox, make_rootfs, running

from inx_sidecar.base import paths
from inx_sidecar.container.locked_mounts import HostDirectory
from inx_sidecar.container.namespaces import Container
from inx_sidecar.container.own_growth import grown
from inx_sidecar.container.own_store import OwnStore, attach_own_store, open_nix
from inx_sidecar.container.upper_layer import entries
from inx_sidecar.kernel.syscalls import CLONE_NEWUSER, opened, unshare
from inx_sidecar.nix import own_database
from inx_sidecar.nix.closure import Registration
from inx_sidecar.nix.generation_changes import Change
from inx_sidecar.nix.own_database import encode
from inx_sidecar.nix.shown_record import Record

_numbers = itertools.count()
NEXT = f"/nix/store/{'0' * 32}-next"
BOOTED = f"/nix/store/{'0' * 32}-booted"


@dataclass(frozen=True)
class Machine:
    """An instance with a root file system: each `start` is a new container."""

    rootfs: Path
    store: Path
    layers: Path
    privileged: bool = False

    @classmethod
    def made(cls, place: Path, store: Path, *, privileged: bool = False) -> "Machine":
        (place / "layers").mkdir()
        rootfs = make_rootfs(place / "rootfs", 0 if privileged else FIRST_ID)
        return cls(rootfs, store, place / "layers", privileged)

    @property
    def upper(self) -> Path:
        return self.rootfs / "nix/.inx/upper"

    @property
    def first_id(self) -> int:
        return 0 if self.privileged else FIRST_ID

    @contextmanager
    def start(
        self,
        names: Iterable[str],
        *,
        uncovered: Iterable[str] = (),
        change: Change | None = None,
        record: Record = Record(),  # noqa: B008  it is frozen
    ) -> Iterator["Started"]:
        with running(self.rootfs, privileged=self.privileged) as sandbox:
            layer = self.layers / str(next(_numbers))
            layer.mkdir()
            store = attached(sandbox, self.store, layer, names, uncovered, change, record)
            yield Started(sandbox, store, layer, self.store)


@dataclass(frozen=True)
class Started:
    sandbox: Sandbox
    store: OwnStore
    layer: Path
    host_store: Path

    @asynccontextmanager
    async def grown(
        self,
        names: Iterable[str],
        record: Record = Record(),  # noqa: B008  it is frozen
        lock_seconds: float = 15,
    ) -> AsyncIterator[None]:
        """Show `names` as well, which need nothing else."""
        shown = frozenset(names)
        view = HostDirectory(
            str(self.host_store), paths.OWN_INSIDE, entries=shown, layer=str(self.layer)
        )
        rows = encode(
            [Registration(name, "sha256:x", 1, None, "", "", ()) for name in sorted(shown)], "uuid"
        )
        with Container(self.sandbox.pid, "web") as container:
            if not (self.sandbox.rootfs / "nix/var/nix/db/db.sqlite").exists():
                with opened(await open_nix(container)) as nix:
                    user = None if container.privileged else container.user
                    await own_database.write(nix, user, encode([], "uuid"), "web", starts=True)
            async with grown(
                container,
                str(self.sandbox.rootfs),
                view,
                self.store.view_device,
                rows,
                record,
                {"next": NEXT},
                lock_seconds=lock_seconds,
            ):
                yield

    def grow(self, names: Iterable[str], lock_seconds: float = 15) -> None:
        async def run() -> None:
            async with self.grown(names, lock_seconds=lock_seconds):
                pass

        asyncio.run(run())


def attached(
    sandbox: Sandbox,
    store: Path,
    layer: Path,
    names: Iterable[str],
    uncovered: Iterable[str] = (),
    change: Change | None = None,
    record: Record = Record(),  # noqa: B008  it is frozen
) -> OwnStore:
    view = HostDirectory(
        str(store), paths.OWN_INSIDE, entries=frozenset(names), layer=str(layer)
    )  # fmt: skip
    with Container(sandbox.pid, "web") as container:
        return asyncio.run(
            attach_own_store(
                container, view, [],
                uncovered=frozenset(uncovered), change=change, record=record,
                roots={"booted": BOOTED},
            )
        )  # fmt: skip


def hidden_names(rootfs: Path, names: Iterable[str]) -> set[str]:
    """Those of `names` that were deleted inside."""
    return {name for name, hidden in entries(str(rootfs), "web", names).items() if hidden}


@contextmanager
def user_namespace() -> Iterator[int]:
    """A user namespace with the ids of the sandboxes."""
    go, done = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        unshare(CLONE_NEWUSER)
        os.write(done[1], b"1")
        os.read(go[0], 1)
        os._exit(0)
    try:
        os.read(done[0], 1)
        for kind in ("uid_map", "gid_map"):
            Path(f"/proc/{pid}/{kind}").write_text(f"0 {FIRST_ID} 65536")
        with opened(os.open(f"/proc/{pid}/ns/user", os.O_RDONLY)) as user:
            yield user
    finally:
        os.write(go[1], b"1")
        os.waitpid(pid, 0)
        for fd in (*go, *done):
            os.close(fd)
