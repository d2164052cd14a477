"""A unit test starts no process, unless it requests the fixture `processes`."""

import os
import subprocess
from typing import Any

import pytest


@pytest.fixture
def processes() -> None:
    """A test that starts programs requests this fixture: linters, another interpreter."""


@pytest.fixture(autouse=True)
def _no_processes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "processes" in request.fixturenames:
        return

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a unit test starts no process")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    for name in ("fork", "posix_spawn", "system"):
        monkeypatch.setattr(os, name, refuse)
