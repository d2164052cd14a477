"""Settings of git for builds."""

import pytest

from inx_sidecar.builds.git_settings import git_environment, safe_directories

pytestmark = pytest.mark.main


def settings(*, alone: bool) -> dict[str, str]:
    env = git_environment(owner=False, alone=alone)
    numbers = range(int(env["GIT_CONFIG_COUNT"]))
    return {env[f"GIT_CONFIG_KEY_{n}"]: env[f"GIT_CONFIG_VALUE_{n}"] for n in numbers}


def test_the_owner_keeps_all_settings() -> None:
    assert git_environment(owner=True, alone=False) == {"GIT_TERMINAL_PROMPT": "0"}


def test_the_build_user_keeps_only_its_way_to_fetch() -> None:
    alone, build_user = settings(alone=True), settings(alone=False)
    assert build_user.items() <= alone.items()
    assert {"core.fsmonitor", "core.hooksPath", "gpg.program", "diff.external"} <= set(build_user)
    assert "core.sshCommand" not in build_user and "credential.helper" not in build_user


def test_directories_are_quoted() -> None:
    text = safe_directories(['/a "b"', "/c\\d"])
    assert text.splitlines() == [
        "[safe]",
        r'''	directory = "/a \"b\""''',
        r'''	directory = "/c\\d"''',
    ]
