"""Who evaluates the modules of an instance: never their owner.

Who may edit an instance chooses its modules. So a user of this build alone evaluates them, in the
groups of `build_user`: also a pure evaluation reads any file of its user, by a fetch whose hash is
known (builtins.fetchurl of "file:", which tells the right hash for a wrong one). `build_user` has
caches and credentials.
"""

from dataclasses import replace
from typing import Final

from inx_sidecar.base.errors import BuildError, MountError, one_line
from inx_sidecar.builds.build_user import SECONDS, Evaluator, build_user
from inx_sidecar.builds.local_modules import (
    LocalModules,
    check_paths,
    look_at_modules,
    setting_of,
)
from inx_sidecar.config.settings import Settings
from inx_sidecar.config.sources import Modules
from inx_sidecar.kernel.forked import run_in_child

_DOUBT: Final = "who may edit an instance chooses its modules"


async def evaluator_of_modules(source: Modules, settings: Settings, instance: str) -> Evaluator:
    """Who evaluates `source` of `instance`, by a look at what it names on this host.

    BuildError if something does not exist, UnsupportedError if there is no `build_user`.
    """
    user = build_user(settings)
    nixpkgs = "" if source.base is not None else source.nixpkgs or settings.nixpkgs
    check_paths(source, nixpkgs)
    looked = await _look(source, nixpkgs, instance)
    base = source.base and replace(source.base, ref=looked.base)
    files = tuple((key, path) for (key, _), path in zip(source.files, looked.files, strict=True))
    seen = replace(source, base=base, nixpkgs=looked.nixpkgs, below=looked.below, files=files)
    return Evaluator(user, seen, doubt=_DOUBT, repositories=looked.repositories)


async def _look(source: Modules, nixpkgs: str, instance: str) -> LocalModules:
    setting = setting_of(source)
    try:
        value, _ = await run_in_child(
            lambda: (look_at_modules(source, nixpkgs, setting).to_json(), []),
            f"the look at {source}",
            SECONDS,
            instance=instance,
        )
    except (BuildError, MountError) as error:
        raise BuildError(one_line(str(error))) from None
    return LocalModules.from_json(value)
