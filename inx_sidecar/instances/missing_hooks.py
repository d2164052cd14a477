"""Find an instance whose start does not run the hooks of inx, although it should.

Incus does not merge raw.lxc: that of the instance replaces those of its profiles, and that of a
later profile those of earlier ones. Without the hooks, LXC starts /sbin/init, which does not exist,
and inx does not learn of the start.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Final

import yaml

from inx_sidecar.base import paths
from inx_sidecar.base.errors import UnsupportedError, quoted, reason_of
from inx_sidecar.config.keys import PREFIX, asked_for
from inx_sidecar.incus.instance import SEALED

# Each sentence of `problem_of` begins so.
BEGIN: Final = "the hooks of inx are missing: "
_RAW_LXC: Final = "raw.lxc"


@functools.cache
def shipped_raw_lxc() -> str:
    """The raw.lxc of the profile that inx installs; UnsupportedError if it is missing."""
    try:
        with open(paths.PROFILE, "rb") as file:
            return str(yaml.safe_load(file)["config"][_RAW_LXC])
    except OSError as error:
        raise UnsupportedError(
            f"cannot read {paths.PROFILE}: {reason_of(error)}; install inx again"
        ) from None


def has_hooks(profile: Mapping[str, Any]) -> bool:
    """Whether `profile` is the one of inx: by its name, or since its raw.lxc names a hook."""
    return profile["name"] == "inx" or f"{paths.HOOKS}/" in profile["config"].get(_RAW_LXC, "")


def missing_lines(wanted: str, present: str) -> list[str]:
    """The lines of `wanted` that `present`, another raw.lxc, does not have."""
    have = {"".join(line.split()) for line in present.splitlines()}
    have |= {line.replace(f"{paths.HOOKS}/start-host", f"{paths.HOOKS}/mount") for line in have}
    return [line for line in wanted.splitlines() if line and "".join(line.split()) not in have]


def may_use_inx(api: Mapping[str, Any]) -> bool:
    """Whether the instance that Incus describes by `api` is a container with a key or the profile
    of inx, or had one."""
    # A cluster tells nothing of an instance on a member that is away.
    keys = any(key.startswith(PREFIX) for key in api["expanded_config"] or ())
    return api["type"] == "container" and (keys or "inx" in api["profiles"])


def lacks_hooks(api: Mapping[str, Any], wanted: str) -> bool:
    return missing_lines(wanted, api["expanded_config"].get(_RAW_LXC, "")) != []


def was_told(api: Mapping[str, Any]) -> bool:
    """Whether the status of the instance has a sentence of `problem_of`."""
    return BEGIN in api["expanded_config"].get("user.inx.status", "")


def problem_of(api: Mapping[str, Any], profiles: Sequence[Mapping[str, Any]], wanted: str) -> str:
    """One sentence with the way out if the instance uses inx, by a key or by a profile, and lacks
    lines of `wanted`; else "". `profiles` are those of all projects."""
    lines = missing_lines(wanted, api["expanded_config"].get(_RAW_LXC, ""))
    if not lines:
        return ""
    name, project = api["name"], api["project"]
    where = "" if project == "default" else f" --project {project}"
    own = _profiles_of(api, profiles)
    providers = [profile["name"] for profile in own if has_hooks(profile)]
    if not providers:
        if not asked_for(api["expanded_config"]) and SEALED not in api["expanded_config"]:
            return ""
        make = f"'incus profile create inx{where} < {paths.PROFILE}' and "
        first = "" if _is_there(profiles, project) else make
        return (
            f"{BEGIN}no profile of {name!r} has them; run {first}'incus profile add {name} "
            f"inx{where}', or unset its user.inx.* keys"
        )
    whole = lines == missing_lines(wanted, "")
    printed = f"the lines that 'incus profile get {providers[0]} raw.lxc{where}' prints"
    what = printed if whole else ", ".join(map(repr, lines))
    setting = [profile["name"] for profile in own if _RAW_LXC in profile["config"]]
    if _RAW_LXC in api["config"]:
        return f"{BEGIN}raw.lxc of {name!r} replaces that of its profiles; add to it {what}"
    if not setting or setting[-1] == providers[-1]:
        lacks = ", ".join(map(repr, lines))
        return (
            f"{BEGIN}raw.lxc of the profile {quoted(providers[-1])} lacks {lacks}; "
            f"add to it what raw.lxc in {paths.PROFILE} has"
        )
    last = quoted(setting[-1])
    return (
        f"{BEGIN}raw.lxc of the profile {last} replaces that of the profile "
        f"{quoted(providers[-1])}; add to it {what}"
    )


def _is_there(profiles: Sequence[Mapping[str, Any]], project: str) -> bool:
    """Whether instances of `project` can have the profile inx. A project that has profiles of its
    own has at least the profile `default`."""
    places = {(profile.get("project", "default"), profile["name"]) for profile in profiles}
    owner = project if (project, "default") in places else "default"
    return (owner, "inx") in places


def _profiles_of(
    api: Mapping[str, Any], profiles: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """The profiles of the instance, in their order. A project without profiles of its own has those
    of the project `default`."""
    by_place = {(p.get("project", "default"), p["name"]): p for p in profiles}
    found = []
    for name in api["profiles"]:
        profile = by_place.get((api["project"], name)) or by_place.get(("default", name))
        if profile is not None:
            found.append(profile)
    return found
