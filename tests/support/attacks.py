"""Run the programs of `support.attacker` inside an instance, or on the host."""

import json
from collections.abc import Callable
from typing import Any

from support.disposable import Host
from support.incus import Incus

# The copy of the project on the host, where Python must not write its caches.
ON_HOST = {"PYTHONPATH": "/root/inx/tests", "PYTHONDONTWRITEBYTECODE": "1"}


def command_inside(incus: Incus, name: str, function: Callable[..., Any]) -> list[str]:
    """The command line for the host that runs `function` as root of the container.

    The function is one of `support.attacker`, and reads its arguments from stdin. The filter of
    system calls that Incus adds does not hold for the function.
    """
    pid = incus.pid(name)
    assert pid, f"{name} does not run"
    return _command(function, pid)


def _command(function: Callable[..., Any], pid: int) -> list[str]:
    variables = [f"{key}={value}" for key, value in ON_HOST.items()]
    words = [str(pid), function.__module__, function.__name__]
    return ["env", *variables, "python3", "-m", "support.attacker", *words]


def inside(incus: Incus, name: str, function: Callable[..., Any], *args: Any) -> Any:
    """What `function` gives as root of the container."""
    argv = command_inside(incus, name, function)
    return json.loads(incus.host.run(argv, input=json.dumps(args)).stdout)


def on_host(host: Host, function: Callable[..., Any], *args: Any) -> Any:
    """What `function` gives as root of the host."""
    return json.loads(host.run(_command(function, 0), input=json.dumps(args)).stdout)
