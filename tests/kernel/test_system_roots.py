"""Every generation of an instance is rooted; Nix is asked only about what has no root yet."""

import asyncio
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from support.direct_roots import ONE, TWO, UUID, present

from inx_sidecar.base import paths
from inx_sidecar.base.errors import UnsupportedError
from inx_sidecar.incus.instance import Instance, LxcFacts
from inx_sidecar.nix.gc_client import GcClient
from inx_sidecar.nix.generations import Generations
from inx_sidecar.roots.system_roots import BOOTED, add_system_roots

pytestmark = [pytest.mark.gc, pytest.mark.usefixtures("registrations")]


def root(links: dict[int, str], booted: str | None = None) -> None:
    instance = Instance(
        "web", "default", UUID, LxcFacts("web", os.path.dirname(paths.NIX_DB), ""), False, {}
    )

    async def main() -> None:
        with closing(GcClient()) as gc:
            await add_system_roots(gc, instance, Generations(links), booted)

    asyncio.run(main())


def test_what_has_its_root_needs_no_database_and_all_else_does() -> None:
    with closing(sqlite3.connect(paths.NIX_DB)) as db, db:
        db.execute("insert into ValidPaths values (?)", (ONE,))
    root({1: ONE, 2: TWO}, ONE)
    assert present() == {"system-1": ONE, BOOTED: ONE}, "the other one is not valid"
    os.rename(paths.NIX_DB, f"{paths.NIX_DB}.away")
    root({1: ONE}, ONE)
    for links, booted in (({1: TWO}, ONE), ({1: ONE}, TWO), ({1: ONE, 2: ONE}, ONE)):
        with pytest.raises(UnsupportedError):
            root(links, booted)
    assert present() == {"system-1": ONE, BOOTED: ONE}


def test_a_root_that_somebody_removed_is_made_again() -> None:
    with closing(sqlite3.connect(paths.NIX_DB)) as db, db:
        db.execute("insert into ValidPaths values (?)", (ONE,))
    root({1: ONE}, ONE)
    Path(paths.GCROOTS, f"web.{UUID}", BOOTED).unlink()
    root({1: ONE}, ONE)
    assert present() == {"system-1": ONE, BOOTED: ONE}
