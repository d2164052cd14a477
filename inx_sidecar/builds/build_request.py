"""What is asked of a build, and who follows it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from inx_sidecar.config.settings import Settings
from inx_sidecar.config.sources import Source


@dataclass(frozen=True)
class BuildRequest:
    """What to build for instance `name` of `project`. If `missing`, a store path, is given, a
    fetch of it is tried before `source` is built. `names` says whether the instance may know the
    names of packages in the store, and of other instances. `update` is the value of
    user.inx.update."""

    uuid: str
    name: str
    source: Source
    missing: str | None
    settings: Settings
    project: str = "default"
    names: bool = True
    update: str = ""


@dataclass(frozen=True)
class Listener:
    """Who follows a build: `say` receives each line that Nix prints, `report` what the status says
    of the build, each time that this changes. `keep` receives the keys that the instance keeps of a
    build of modules, before it ends."""

    say: Callable[[str], None]
    report: Callable[[str], None]
    keep: Callable[[Mapping[str, str]], None]
