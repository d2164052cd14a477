"""Does the Nix daemon of the host serve the user who evaluates?"""

from typing import Final

from inx_sidecar.base import paths
from inx_sidecar.base.process import find_program, run
from inx_sidecar.builds.build_user import BuildUser
from inx_sidecar.builds.builder import Builder
from inx_sidecar.builds.failure_advice import advice
from inx_sidecar.builds.failure_reason import failure_reason

# Nix opens a connection for this question alone. The path exists nowhere.
_QUESTION: Final = ("--check-validity", "--print-invalid", f"{paths.STORE}/{'0' * 32}-none")
_SECONDS: Final = 20


async def refusal_of_daemon(user: BuildUser) -> str:
    """Why `user` cannot use the Nix daemon of the host, with the way out; empty if it can."""
    properties = (f"User={user.uid}", f"Group={user.gid}", f"RuntimeMaxSec={_SECONDS}")
    done = await run([
        "systemd-run", "--quiet", "--wait", "--pipe",
        *(f"--property={each}" for each in properties),
        "--setenv=NIX_REMOTE=daemon", f"--setenv=HOME={user.home}",
        "--", find_program("nix-store"), *_QUESTION,
    ])  # fmt: skip
    if done.status == 0:
        return ""
    reason = failure_reason(done)
    return advice(reason, done.output, Builder(user.name, user.home)) or reason
