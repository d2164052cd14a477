"""What inx takes texts of user.inx.config for, by the Nix of this host. It is copied to a host.

Stdin has a list of texts as JSON; stdout gets for each "body" or "module", with what the module
gives for `value`, or the text of the refusal.
"""

import asyncio
import json
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

from inx_sidecar.base.errors import BuildError
from inx_sidecar.base.process import Completed
from inx_sidecar.builds.module_flake import body_text
from inx_sidecar.builds.module_texts import bodies_among

KEY = "user.inx.config"
# As a module gets them. The value of `value` is made of names alone.
APPLIED = """
let
  module = import %s;
  arguments = { config = { }; lib = { }; pkgs = { }; };
  value = if builtins.isFunction module then module arguments else module;
in
if builtins.isAttrs value then value.value or null else throw "no module"
"""


async def verdict(directory: pathlib.Path, text: str) -> list[Any]:
    path = directory / KEY

    async def parse(_key: str, written: str) -> Completed:
        path.write_text(written, newline="")
        argv = ("nix-instantiate", "--parse", "--", str(path))
        try:
            done = subprocess.run(
                argv, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=30
            )
        except subprocess.TimeoutExpired:
            return Completed(argv, -9, "")
        return Completed(argv, done.returncode, done.stderr.decode(errors="replace"))

    try:
        bodies = await bodies_among({KEY: text}, parse)
    except BuildError as error:
        return ["refused", str(error)]
    path.write_text(body_text(text) if bodies else text, newline="")
    argv = ["nix-instantiate", "--eval", "--strict", "--json", "--expr", APPLIED % path]
    done = subprocess.run(argv, check=False, capture_output=True, text=True)
    value = json.loads(done.stdout) if done.returncode == 0 else done.stderr[-300:]
    return ["body" if bodies else "module", value]


async def main() -> None:
    texts = json.load(sys.stdin)
    with tempfile.TemporaryDirectory() as directory:
        found = [await verdict(pathlib.Path(directory), text) for text in texts]
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    asyncio.run(main())
