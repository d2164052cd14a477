"""Who evaluates the modules of an instance: never their owner.

Who may edit an instance chooses its modules, so they are evaluated with the rights of `build_user`
at most. If they read files of this host, a user of this build alone evaluates them, in the groups
of `build_user`: what lies on the host may be anybody's, and must not reach the caches and the
credentials of `build_user`.
"""

from dataclasses import replace
from typing import Final

from inx_sidecar.base.errors import BuildError, MountError, one_line
from inx_sidecar.builds.build_user import FILE_SCHEMES, SECONDS, Evaluator, build_user
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
    named = base.ref if base is not None else looked.nixpkgs
    if looked.is_local or named.startswith(FILE_SCHEMES):
        return Evaluator(user, seen, doubt=_DOUBT, repositories=looked.repositories)
    return Evaluator(user, seen)


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
