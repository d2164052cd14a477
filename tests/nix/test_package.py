"""pip and the NixOS package install the same files, and the installed programs work."""

import json
import os
import re
import tomllib

import pytest
from support.disposable import REPO, Host, project_files

from inx_sidecar.builds.module_flake import COPIED

pytestmark = pytest.mark.nixos

PREFIX = "/root/from-sdist"
COMPLETIONS = {
    "bash": "bash-completion/completions/inx-sidecar",
    "zsh": "zsh/site-functions/_inx-sidecar",
    "fish": "fish/vendor_completions.d/inx-sidecar.fish",
}
SHARED = ("hooks/", "profiles/", "systemd/")
# Stand-ins for the functions and packages of nixpkgs that nix/package.nix uses.
PACKAGE = """
let
  python = name: { inherit name; };
  lib = {
    importTOML = path: builtins.fromTOML (builtins.readFile path);
    fileset.toSource = source: source;
    fileset.unions = files: files;
    head = builtins.head;
    toLower = name: name;
    licenses.mit = "MIT";
    platforms.linux = [ ];
  };
in
import /root/inx/nix/package.nix {
  inherit lib;
  pkgsStatic.busybox = "/usr";
  python3 = {
    interpreter = "/usr/bin/python3";
    sitePackages = "SITE";
    pkgs = {
      buildPythonApplication = arguments: arguments.postInstall;
      hatchling = "hatchling";
    };
  };
}
"""
# substituteInPlace of nixpkgs' stdenv, with its option --replace-fail only.
SUBSTITUTE = r"""
substituteInPlace() {
    file=$1; shift
    while [ $# -gt 0 ]; do
        [ "$1" = --replace-fail ] || { echo "unknown option $1"; exit 1; }
        grep -qF -- "$2" "$file" || { echo "$file has no $2"; exit 1; }
        FROM=$2 TO=$3 python3 -c 'import os, sys
text = open(sys.argv[1]).read()
open(sys.argv[1], "w").write(text.replace(os.environ["FROM"], os.environ["TO"]))' "$file"
        shift 3
    done
}
"""


def shared() -> list[str]:
    return [name for name in project_files() if name.startswith(SHARED)]


def units() -> set[str]:
    return {name.removeprefix("systemd/") for name in shared() if name.startswith("systemd/")}


@pytest.fixture(scope="module")
def site_packages(host: Host) -> str:
    """site-packages of an environment into which pip installed a source distribution, offline."""
    script = """
        rm -rf "$PREFIX" /root/dist /root/hatch
        offline="--quiet --no-index --find-links /root/wheels"
        python3 -m venv /root/hatch
        /root/hatch/bin/pip install $offline hatchling
        (cd /root/inx; /root/hatch/bin/hatchling build -t sdist -d /root/dist >/dev/null)
        python3 -m venv "$PREFIX"
        "$PREFIX/bin/pip" install $offline /root/dist/inx-*.tar.gz
        cd "$PREFIX"; echo lib/python3.*/site-packages
    """
    return host.sh(script, env={"PREFIX": PREFIX}).stdout.strip()


def test_pip_installs_hooks_profile_and_units_from_an_sdist(host: Host, site_packages: str) -> None:
    found = host.run(["find", f"{PREFIX}/share/inx", "-type", "f", "-printf", "%P\n"]).stdout
    assert sorted(found.split()) == shared()
    for name in shared():
        assert host.run(["cat", f"{PREFIX}/share/inx/{name}"]).stdout == (REPO / name).read_text()
    place = f"{PREFIX}/{site_packages}/inx_sidecar"
    found = host.run(["find", place, "-name", "*.py", "-printf", "%P\n"]).stdout
    ours = REPO / "inx_sidecar"
    assert {path.relative_to(ours).as_posix() for path in ours.rglob("*.py")} == set(found.split())
    for name in COPIED:
        installed = host.run(["cat", f"{place}/builds/nix/{name}"]).stdout
        assert installed == (REPO / "nix" / name).read_text()
    version = host.run([f"{PREFIX}/bin/inx-sidecar", "--version"]).stdout
    assert version == "inx-sidecar, version 0.1.0\n"


def test_the_nix_package_has_all_that_pip_installs() -> None:
    """The package is made from some of the files of the repository alone."""
    (given,) = re.findall(r"unions \[\n(.*?)\]", (REPO / "nix/package.nix").read_text(), re.S)
    sources = {os.path.normpath(f"nix/{path}") for path in given.split()}
    wheel = tomllib.loads((REPO / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    wheel = wheel["targets"]["wheel"]
    wanted = {*wheel["packages"], *wheel["force-include"], *wheel["shared-data"]}
    assert wanted <= sources and {f"nix/{name}" for name in COPIED} <= wanted
    assert all((REPO / path).exists() for path in sources)


def test_the_install_script_installs_and_removes_every_unit() -> None:
    text = (REPO / "install").read_text()
    (listed,) = re.findall(r'^units="((?:.|\\\n)*?)"', text, re.MULTILINE)
    configurations = {"inx.sysctl.conf", "inx.sysusers.conf", "inx.tmpfiles.conf"}
    assert set(listed.replace("\\\n", "").split()) == units() - configurations
    assert all(f"systemd/{name}" in text for name in configurations)
    enabled = {name for name in units() if "\n[Install]\n" in (REPO / "systemd" / name).read_text()}
    stopped = text[text.index("systemctl disable") : text.index("systemctl stop")]
    assert all(name in stopped for name in enabled)


def test_the_nix_package_installs_the_same_files_with_other_paths(
    host: Host, site_packages: str
) -> None:
    """The test runs postInstall of the package on the files that pip installed."""
    argv = ["nix-instantiate", "--eval", "--strict", "--json", "--expr"]
    script = json.loads(host.run([*argv, PACKAGE.replace("SITE", site_packages)]).stdout)
    host.sh(f"out={PREFIX}\n{SUBSTITUTE}\n{script}")
    host.sh('! grep -rn /opt/inx "$P/share/inx/hooks" "$P/lib/systemd"', env={"P": PREFIX})
    found = host.run(["find", f"{PREFIX}/lib/systemd/system", "-type", "f", "-printf", "%f\n"])
    wanted = {name for name in units() if not name.endswith(".conf")}
    assert set(found.stdout.split()) == wanted
    for kind in "sysusers", "tmpfiles":
        text = host.run(["cat", f"{PREFIX}/lib/{kind}.d/inx.conf"]).stdout
        assert text == (REPO / f"systemd/inx.{kind}.conf").read_text()
    for shell, place in COMPLETIONS.items():
        text = host.run(["cat", f"{PREFIX}/share/{place}"]).stdout
        assert f"{shell}_complete" in text and "_INX_SIDECAR_COMPLETE" in text
    services = [f"{PREFIX}/lib/systemd/system/{name}" for name in sorted(wanted) if "@" not in name]
    services = [path for path in services if path.endswith(".service")]
    output = host.run(["systemd-analyze", "verify", "--recursive-errors=no", *services])
    assert PREFIX not in output.stderr, output.stderr

    # A hook reaches the sidecar. The sidecar refuses an instance that does not exist.
    facts = {"LXC_NAME": "none", "LXC_ROOTFS_PATH": "/srv/none/rootfs", "PYTHONPATH": "/srv"}
    facts |= {"LXC_CONFIG_FILE": "/srv/none/lxc.conf"}
    for hook, status in ("pre-start", 22), ("mount", 27), ("start-host", 27), ("stop", 0):
        path = f"{PREFIX}/share/inx/hooks/{hook}"
        assert host.run([path], env=facts, check=False).returncode == status, hook
    assert host.run(["head", "-1", f"{PREFIX}/share/inx/hooks/init"]).stdout == (
        "#!/dev/.inx/busybox sh\n"
    )
