"""The real nixpkgs evaluates nix/container.nix with texts, as the stand-in of tests/support does.

INX_NIXPKGS names a directory that has a whole nixpkgs: a checkout, for example. It is only
evaluated: nothing is built or fetched. A host gets a copy of its files, without those of git.
"""

import os
from pathlib import Path

import pytest
from support import standin
from support.disposable import Host
from support.store import NIX

pytestmark = pytest.mark.nixos

PLACE = "/srv/whole-nixpkgs"
DIRECTORY = "/srv/whole-nixpkgs-web"
# The whole nixpkgs is copied to the store, and all modules of NixOS are evaluated.
SECONDS = 600.0

SERVICES = """{
    services.nginx.enable = true;
    services.nginx.virtualHosts.web.root = "/srv/www";
    services.openssh.enable = true;
    users.users.alice.isNormalUser = true;
    environment.etc."it".text = "it's";
}"""
# Wrong configurations, the value that is asked for, and what Nix says, with one blank for all
# white space.
WRONG = {
    "option": (
        "{ services.ngins.enable = true; }",
        "networking.hostName",
        "The option `services.ngins' does not exist. Definition values: - In `user.inx.config': ",
    ),
    "type": (
        "{ services.nginx.enable = 5; }",
        "services.nginx.enable",
        "A definition for option `services.nginx.enable' is not of type `boolean'. Definition "
        "values: - In `user.inx.config': 5",
    ),
    "conflict": (
        '{ imports = [ { time.timeZone = "UTC"; } ]; time.timeZone = "Europe/Paris"; }',
        "time.timeZone",
        "The option `time.timeZone' has conflicting definition values: - In `user.inx.config': ",
    ),
    "variable": ("{ time.timeZone = pgks; }", "time.timeZone", "undefined variable 'pgks' at "),
}


@pytest.fixture(scope="module", params=["whole", "stand-in"])
def nixpkgs(host: Host, request: pytest.FixtureRequest) -> str:
    """A directory of the host: the whole nixpkgs, or the stand-in, which has to say the same."""
    if request.param == "stand-in":
        return standin.put(host)
    directory = os.environ.get("INX_NIXPKGS")
    if not directory:
        pytest.skip("INX_NIXPKGS names no whole nixpkgs")
    names = [name for name in os.listdir(directory) if name != ".git"]
    host.push(Path(directory), names, PLACE)
    return PLACE


def evaluated(host: Host, nixpkgs: str, text: str, attribute: str) -> tuple[str, str]:
    """A value of the configuration, and the last error, with one blank for all white space."""
    standin.flake(host, DIRECTORY, f"path:{nixpkgs}", text)
    installable = f"path:{DIRECTORY}#nixosConfigurations.web.config.{attribute}"
    argv = [*NIX, "eval", "--raw", "--no-write-lock-file", installable]
    done = host.run(argv, check=False, timeout=SECONDS)
    return done.stdout, " ".join(done.stderr.rpartition("error: ")[2].split())


def test_a_text_makes_a_system(host: Host, nixpkgs: str) -> None:
    drv, error = evaluated(host, nixpkgs, SERVICES, "system.build.toplevel.drvPath")
    assert drv.startswith("/nix/store/") and "-nixos-system-unnamed-2" in drv, error
    assert drv.endswith(".drv")


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_text_is_refused_in_these_words(host: Host, nixpkgs: str, case: str) -> None:
    text, attribute, words = WRONG[case]
    _, error = evaluated(host, nixpkgs, text, attribute)
    assert error.startswith(words)
