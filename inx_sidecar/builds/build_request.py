"""What is asked of a build, and who follows it."""

from collections.abc import Callable
from dataclasses import dataclass

from inx_sidecar.config.settings import Settings
from inx_sidecar.config.sources import Source


@dataclass(frozen=True)
class BuildRequest:
    """What to build for instance `name` of `project`. If `missing`, a store path, is given, a
    fetch of it is tried before `source` is built. `names` says whether the instance may know the
    names of packages in the store, and of other instances."""

    uuid: str
    name: str
    source: Source
    missing: str | None
    settings: Settings
    project: str = "default"
    names: bool = True


@dataclass(frozen=True)
class Listener:
    """Who follows a build: `say` receives each line that Nix prints, `report` what the status says
    of the build, each time that this changes."""

    say: Callable[[str], None]
    report: Callable[[str], None]
