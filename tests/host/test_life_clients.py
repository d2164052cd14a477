"""Clients that know Incus and nothing of inx: the REST API, and YAML on standard input."""

import json
from typing import Any

import pytest
from support.disposable import Host
from support.incus import Incus
from support.running import STATUS, greeting_of, running_system, truth, wait_truth
from support.sources import source

pytestmark = pytest.mark.life


class Rest:
    """Incus by curl, as a program uses the REST API."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def ask(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        curl = ["curl", "--silent", "--show-error", "--unix-socket", "/var/lib/incus/unix.socket"]
        data = [] if body is None else ["--json", json.dumps(body)]
        url = f"http://incus{path}"
        return dict(json.loads(self._host.run([*curl, "-X", method, *data, url]).stdout))

    def __call__(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        """The answer; an operation is waited for, and has to succeed."""
        answer = self.ask(method, path, body)
        if answer["type"] == "async":
            answer = self.ask("GET", f"/1.0/operations/{answer['metadata']['id']}/wait?timeout=60")
            assert answer["metadata"]["status"] == "Success", answer
        assert answer["type"] == "sync", answer
        return dict(answer["metadata"] or {})


def test_a_life_by_rest_alone(incus: Incus, host: Host) -> None:
    rest = Rest(host)
    name, renamed = incus.adopt(incus.name()), incus.adopt(incus.name("renamed"))
    path = f"/1.0/instances/{name}"

    def wait(says: str, number: int) -> None:
        def holds() -> bool:
            config = rest("GET", path)["config"]
            system = config.get(f"{STATUS}.system")
            return (
                (config.get(STATUS), config.get(f"{STATUS}.generation")) == ("ready", str(number))
                and greeting_of(host, system) == says
                and running_system(host, rest("GET", f"{path}/state")["pid"]) == system
            )

        incus.eventually(holds, incus.story)

    rest(
        "POST",
        "/1.0/instances",
        {
            "name": name,
            "type": "container",
            "source": {"type": "none"},
            "profiles": ["inx"],
            "config": {"user.inx.flake": f"{source(incus, 'one')}#web"},
        },
    )
    assert rest("GET", path)["status"] == "Stopped"
    rest("PUT", f"{path}/state", {"action": "start", "timeout": 30})
    wait("one", 1)
    source(incus, "two")
    rest("PATCH", path, {"config": {"user.inx.update": "2"}})
    wait("two", 2)
    whole = rest("GET", path)
    pinned = whole["config"] | {"user.inx.generation": "1"}
    rest("PUT", path, whole | {"config": pinned})
    wait("one", 1)
    rest("PATCH", path, {"config": {"user.inx.generation": ""}})
    wait("two", 2)
    rest("POST", f"{path}/snapshots", {"name": "before", "stateful": False})
    source(incus, "three")
    rest("PATCH", path, {"config": {"user.inx.update": "3"}})
    wait("three", 3)
    rest("PUT", path, {"restore": "before"})
    wait("two", 2)
    rest("PUT", f"{path}/state", {"action": "stop", "timeout": 30})
    assert rest("GET", path)["status"] == "Stopped"
    rest("POST", path, {"name": renamed})
    assert rest.ask("GET", path)["error_code"] == 404
    path = f"/1.0/instances/{renamed}"
    rest("PUT", f"{path}/state", {"action": "start", "timeout": 30})
    wait("two", 2)
    rest("PUT", f"{path}/state", {"action": "restart", "timeout": 30})
    wait("two", 2)
    uuid = rest("GET", path)["config"]["volatile.uuid"]
    assert uuid in roots_of_all(host)
    rest("PUT", f"{path}/state", {"action": "stop", "timeout": 30, "force": True})
    rest("DELETE", path)
    assert rest.ask("GET", path)["error_code"] == 404
    incus.eventually(lambda: uuid not in roots_of_all(host), incus.story)


def roots_of_all(host: Host) -> str:
    return host.run(["ls", "/nix/var/nix/gcroots/inx"]).stdout


def test_yaml_on_standard_input(incus: Incus) -> None:
    profile = incus.profile()
    flake = source(incus, "one")
    text = f"""
config:
  user.inx.flake: {flake}#web
  user.inx.keep: "9"
devices:
  data:
    type: disk
    source: {flake}
    path: /data
"""
    names = [incus.adopt(incus.name(suffix)) for suffix in "ab"]
    profiles = ["--profile", "inx", "--profile", profile]
    incus("launch", "--empty", names[0], *profiles, input=text)
    incus("create", "--empty", names[1], *profiles, input=text)
    incus.start(names[1])
    pids = []
    for name in names:
        wait_truth(incus, name, "ready$", "one", 1)
        incus.sh(name, "[ -e /data/flake.nix ]")
        pids.append(incus.pid(name))

    source(incus, "two")
    shown = incus("config", "show", names[0]).stdout
    incus("config", "edit", names[0], input=with_key(shown, 'user.inx.update: "2"'))
    wait_truth(incus, names[0], "ready$", "two", 2)
    assert truth(incus, names[1])[0] == "ready"
    source(incus, "three")
    shown = incus("profile", "show", profile).stdout
    edited = with_key(shown.replace("config: {}", "config:"), "user.inx.update: all")
    incus("profile", "edit", profile, input=edited)
    # The profile does not change the first instance, which has its own value.
    wait_truth(incus, names[1], "ready$", "three", 2)
    incus("config", "unset", names[0], "user.inx.update")
    wait_truth(incus, names[0], "ready$", "three", 3)
    assert [incus.pid(name) for name in names] == pids


def with_key(yaml: str, line: str) -> str:
    """The YAML with one more line in its config."""
    before, found, after = yaml.partition("config:\n")
    assert found, yaml
    return f"{before}{found}  {line}\n{after}"
