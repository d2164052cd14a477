"""What a copy names whose storage is mounted only while it runs, as on ZFS, LVM and Ceph.

Incus mounts it, and gives the directories and links: `roots/offline_roots.py` does the same for
storage that is mounted. The copy decides how much there is and what it says, not how long this
takes.
"""

import asyncio
import struct
from typing import Final

import h11

from inx_sidecar.base import paths
from inx_sidecar.base.errors import RootError
from inx_sidecar.incus.api import IncusError
from inx_sidecar.incus.sftp import Sftp, connect
from inx_sidecar.links.indirect_roots import NAME, name_of
from inx_sidecar.nix import generations
from inx_sidecar.nix.store_paths import store_path_of, valid_paths
from inx_sidecar.roots.link_roots import root_name
from inx_sidecar.roots.system_roots import system_roots

_SECONDS: Final = 20.0
# At most so many entries are skipped that are no registrations.
_MAX_OTHERS: Final = 1000


async def unmounted_roots(project: str, name: str, most: int) -> dict[str, str]:
    """Root names and valid store paths, from at most `most` links. RootError if it cannot be known
    what the instance names."""
    try:
        async with asyncio.timeout(_SECONDS), connect(project, name) as files:
            found = system_roots(await _generations(files))
            found |= await _link_roots(files, most)
    except TimeoutError:
        raise RootError(f"Incus took over {_SECONDS:.0f} s to show the files of {name!r}") from None
    except (IncusError, OSError, EOFError, struct.error, h11.RemoteProtocolError) as error:
        raise RootError(f"the files of {name!r} cannot be read through Incus: {error}") from None
    valid = valid_paths(found.values())
    return {root: path for root, path in found.items() if path in valid}


async def _generations(files: Sftp) -> generations.Generations:
    place = f"/{paths.PROFILES_INSIDE}"
    names = await files.list_names(place, generations.MAX_ENTRIES)
    newest = generations.newest_links(names)
    current = await files.read_links([f"{place}/system"])
    newest |= {text.rpartition("/")[2] for text in current.values()} & set(names)
    links = await files.read_links([f"{place}/{name}" for name in sorted(newest)])
    return generations.from_texts({path.rpartition("/")[2]: text for path, text in links.items()})


async def _link_roots(files: Sftp, most: int) -> dict[str, str]:
    place = f"/{paths.GCROOTS_INSIDE}/auto"
    listed = await files.list_names(place, 2 * most + _MAX_OTHERS)
    names = [name for name in listed if NAME.fullmatch(name)]
    copied = await files.read_links([f"{place}/{name}" for name in names])
    registered = [text for path, text in copied.items() if name_of(text) == path.rpartition("/")[2]]
    targets = await files.read_links(registered[:most])
    return {
        root_name(name_of(text), path, True): path
        for text, target in targets.items()
        if (path := store_path_of(target)) is not None
    }
