"""What a build gave: the store path of a system."""

import os

from inx_sidecar.base.errors import BuildError
from inx_sidecar.builds.build_request import BuildRequest
from inx_sidecar.nix.store_paths import STORE_PATH, check_toplevel, valid_paths


def result_of(link: str, request: BuildRequest) -> str:
    """The store path that `link` names. The build user owns the link, so only its text is used,
    and only if Nix knows that path as valid."""
    try:
        path = os.readlink(link)
    except OSError:
        path = ""
    if not path:
        raise BuildError(
            f"the build of {request.name!r} from {request.source} gave no result: what it names is "
            "no derivation; name config.system.build.toplevel"
        )
    if not STORE_PATH.fullmatch(path) or path not in valid_paths({path}):
        raise BuildError(
            f"the build of {request.name!r} from {request.source} gave {path!r}, no store path; "
            "name config.system.build.toplevel"
        )
    check_toplevel(path, f"the result of {request.source}")
    return path
