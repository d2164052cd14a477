"""The Nix store of a host, in the hands of the operator."""

from support.disposable import Host

STORE = "/nix/store"
NIX = ["nix", "--extra-experimental-features", "nix-command flakes"]


def build(host: Host, installable: str, link: str) -> str:
    """The store path that `nix build` makes; `link` leads to it and keeps it."""
    host.run([*NIX, "build", "--out-link", link, installable])
    return host.run(["readlink", link]).stdout.strip()


def build_system(host: Host, flake: str, link: str, name: str = "web") -> str:
    """The store path of a system of the flake; `link` leads to it and keeps it."""
    installable = f'{flake}#nixosConfigurations."{name}".config.system.build.toplevel'
    return build(host, installable, link)


def closure(host: Host, *paths: str) -> set[str]:
    """The store paths that these need, themselves included."""
    return set(host.run(["nix-store", "--query", "--requisites", *paths]).stdout.split())


def exists(host: Host, path: str) -> bool:
    status = host.run(["test", "-e", path], check=False).returncode
    assert status in (0, 1), status
    return status == 0


def collect(host: Host) -> None:
    host.run(["nix-collect-garbage"])
