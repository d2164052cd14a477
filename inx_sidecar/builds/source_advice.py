"""The way out if a source is not what inx builds: Nix says what it found, not what was expected."""

import re
from typing import Final

from inx_sidecar.builds.builder import Builder
from inx_sidecar.builds.failure_reason import shortened
from inx_sidecar.builds.missing_attribute import system_of
from inx_sidecar.config.credentials import redact
from inx_sidecar.config.sources import Flake, NixFile, System

_NO_IMPURE: Final = " (use '--impure' to override)"
_SEARCH_PATH: Final = re.compile(
    r"(?:cannot look up '<(?P<pure>[^'>]{1,100})>' in pure evaluation mode"
    r"|file '(?P<impure>[^']{1,100})' was not found in the Nix search path).*"
)
_ARGUMENT: Final = re.compile(
    r"function '[^']{1,100}' called without required argument '(?P<called>[\w'-]{1,60})'"
    r"|cannot evaluate a function that has an argument without a value \('(?P<top>[\w'-]{1,60})'\)"
)
_NO_SET: Final = re.compile(r"'(nixosConfigurations(?:\.[\w.+-]{1,256})?)' is not an attribute set")
_NO_DERIVATION: Final = re.compile(
    r"expected flake output attribute '.*' to be a derivation or path but found "
    r"|string '.*' has [0-9]+ entries in its context"
    r"|expression does not evaluate to a derivation"
)
_UNFREE: Final = re.compile(
    r"Package \u2018([^\u2019]{1,150})\u2019 in .* "
    r"(has an unfree license|is marked as insecure|is marked as broken)"
)
_UNFREE_KEYS: Final = {
    "has an unfree license": "nixpkgs.config.allowUnfree = true",
    "is marked as insecure": "nixpkgs.config.permittedInsecurePackages",
    "is marked as broken": "nixpkgs.config.allowBroken = true",
}
_FEATURE: Final = re.compile(r"experimental Nix feature '([a-z-]{1,60})' is disabled")
_PARAMETER: Final = re.compile(r"path URL '.*' has unsupported parameter '([A-Za-z]{1,30})'")
_LOCK: Final = re.compile(
    r"\[json\.exception\.|Could not parse '[^']*flake\.lock'"
    r"|lock file '[^']*' has unsupported version"
)
_UNFETCHED: Final = re.compile(
    r"build of '/nix/store/[^']*' failed|path '/nix/store/[^']*' is required, but there is no "
)


def source_advice(reason: str, output: str, builder: Builder) -> str:
    """A sentence in place of `reason`; empty if nothing is known.

    What it says of the source itself is only that it may be another one than the operator meant.
    """
    source = builder.source
    if found := _UNFREE.match(reason):
        return (
            f"the package {shortened(found[1])} {found[2]}: set {_UNFREE_KEYS[found[2]]} in the "
            "configuration"
        )
    if found := _FEATURE.match(reason):
        return f"{reason.partition(';')[0]}: add it to experimental-features in /etc/nix/nix.conf"
    if reason.startswith("hash mismatch in fixed-output derivation"):
        return f"{reason}; put the hash that it got into the source"
    match source:
        case Flake():
            return _flake_advice(reason, output, source)
        case NixFile():
            return _file_advice(reason, output, source, builder)
        case System() if _UNFETCHED.match(reason):
            return (
                "this path is neither in the store nor in a binary cache of this host: copy it, as "
                "by 'nix-copy-closure', build it, or correct user.inx.system"
            )
    return ""


def _flake_advice(reason: str, output: str, flake: Flake) -> str:
    ref = redact(flake.ref)
    if found := _SEARCH_PATH.match(reason):
        name = found["pure"] or found["impure"]
        return f"a flake has no search path for <{name}>: name it in inputs of flake.nix"
    if reason.endswith(_NO_IMPURE):
        return (
            f"{reason.removesuffix(_NO_IMPURE)}: a flake reads its own files and its inputs alone; "
            "change what it reads"
        )
    if reason == "attribute 'currentSystem' missing":
        return 'a flake has no builtins.currentSystem: write the system, as "x86_64-linux"'
    if found := _NO_SET.fullmatch(reason):
        one = found[1] != "nixosConfigurations"
        return (
            f"{found[1]} of {ref} is no {'NixOS configuration' if one else 'set'}: {_make(flake)}"
        )
    if _NO_DERIVATION.match(reason):
        return (
            f"config.system.build.toplevel of {ref}#{flake.attr} is no derivation: {_make(flake)}"
        )
    if found := _PARAMETER.match(reason):
        return (
            f"{ref} is no repository of git of its owner, so '?{found[1]}=' has no meaning: leave "
            "it out, or write git+file://"
        )
    if reason.startswith(f"input '{flake.ref}' is unsupported") or (
        reason.startswith(f"getting status of '/{flake.ref.partition('?')[0]}'")
        or reason.startswith(f'getting status of "/{flake.ref.partition("?")[0]}"')
    ):
        return f"Nix knows no such reference as {ref}: write github:OWNER/REPO or git+https://URL"
    if _LOCK.match(reason) and ("flake.lock" in reason or "…" not in output):
        return f"Nix cannot read flake.lock of {ref}: correct or remove it ({reason})"
    return ""


def _make(flake: Flake) -> str:
    return (
        f"make nixosConfigurations.{flake.attr} by nixpkgs.lib.nixosSystem {{ modules = [ ... ]; }}"
    )


def _file_advice(reason: str, output: str, file: NixFile, builder: Builder) -> str:
    if found := _SEARCH_PATH.match(reason):
        return (
            f"there is no <{found['impure']}> for builds of inx: set NIX_PATH with 'systemctl edit "
            f"inx-sidecar' and restart it, or import it by its path"
        )
    found = _ARGUMENT.match(reason)
    if found and _is_called_alone(output, builder.file):
        argument = found["called"] or found["top"]
        return (
            f"{file.path} is a function that needs {argument!r}, as a NixOS module: name a file "
            f"with systems, such as {{ web = {system_of(file.path)}; }}"
        )
    if _NO_DERIVATION.match(reason):
        return (
            f"{file.attr} of {file.path} is no derivation: it must be config.system.build.toplevel"
        )
    return ""


def _is_called_alone(output: str, path: str) -> bool:
    """Whether Nix evaluated nothing but the function that the file at `path` has."""
    steps = set(re.findall(r"^ *… (.*)$", output, re.MULTILINE))
    return steps <= {"from call site"} and f" at {path}:" in output
