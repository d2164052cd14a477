"""The system that an instance runs, and whether the status names the same system."""

import re

from support.disposable import Host
from support.incus import Incus

PROFILES = "/nix/var/nix/profiles"
PROFILE = f"{PROFILES}/system"
STATUS = "user.inx.status"


def began(host: Host, pid: int) -> str:
    """When the process began, in clock ticks since boot."""
    return host.run(["cat", f"/proc/{pid}/stat"]).stdout.rpartition(")")[2].split()[19]


def running_system(host: Host, pid: int) -> str:
    """The system that runs below the init `pid`.

    It is read from the host, since output of incus exec may get lost under load.
    """
    return host.run(["readlink", f"/proc/{pid}/root/run/current-system"]).stdout.strip()


def says(incus: Incus, name: str, greeting: str) -> bool:
    """Whether the system inside has this greeting.

    The answer is an exit status, since output of incus exec may get lost under load.
    """
    return incus.inside(name, f'[ "$(cat /etc/greeting)" = "{greeting}" ]')


def booted(incus: Incus, name: str, system: str) -> bool:
    return incus.inside(name, f'[ "$(readlink -f /run/booted-system)" = {system} ]')


def visible(incus: Incus, name: str) -> set[str]:
    """The store paths that a process of the instance sees."""
    entries = incus.host.run(["ls", f"/proc/{incus.pid(name)}/root/nix/store"]).stdout
    return {f"/nix/store/{entry}" for entry in entries.split()}


def greeting_of(host: Host, system: str) -> str:
    """The greeting; empty if there is none, as in a flake that was built while it was written."""
    return host.run(["cat", f"{system}/etc/greeting"], check=False).stdout


def generations(host: Host, pid: int) -> tuple[dict[int, str], int]:
    """The generations that the profile has, and the number of the current one.

    The sidecar may remove a generation while the links are read one by one. Then they are read
    again: a link that is listed but gone, or a current generation that is not listed, is no state
    that the profile ever had.
    """
    script = """
        cd "$P"
        for link in system system-*-link; do echo "$link $(readlink "$link")"; done
    """
    for _ in range(100):
        lines = host.sh(script, env={"P": f"/proc/{pid}/root{PROFILES}"}).stdout.splitlines()
        links = {link: target for link, _, target in (line.partition(" ") for line in lines)}
        current = links.pop("system")
        numbered = {int(link.split("-")[1]): system for link, system in links.items()}
        if current in links and all(links.values()):
            return numbered, int(current.split("-")[1])
    raise AssertionError(f"the profile of {pid} has {lines}")


def newest_system(incus: Incus, name: str) -> str:
    """The system that the profile leads to."""
    links, current = generations(incus.host, incus.pid(name))
    return links[current]


def listed_generations(incus: Incus, name: str) -> tuple[set[int], int]:
    """The numbers that `nix-env --list-generations` shows inside, and the current one."""
    incus.sh(name, f"nix-env --list-generations -p {PROFILE} >/root/generations")
    text = incus.host.run(["cat", f"/proc/{incus.pid(name)}/root/root/generations"]).stdout
    current = re.findall(r"^ *(\d+) .*\(current\)", text, re.MULTILINE)
    assert len(current) == 1, text
    return {int(line.split()[0]) for line in text.splitlines()}, int(current[0])


def truth(incus: Incus, name: str) -> tuple[str, str]:
    """The status and the system; two empty texts if the status names another one than runs."""
    config, pid = incus.info(name)["config"], incus.pid(name)
    system = running_system(incus.host, pid)
    links, current = generations(incus.host, pid)
    number = config.get(f"{STATUS}.generation")
    if (config.get(f"{STATUS}.system"), number, links[current]) != (system, str(current), system):
        return "", ""
    return config[STATUS], system


def wait_truth(incus: Incus, name: str, status: str, greeting: str, number: int) -> None:
    """Until the status matches, and names the system with this greeting and number that runs."""

    def holds() -> bool:
        if not incus.pid(name):
            return False
        text, system = truth(incus, name)
        return re.match(status, text) is not None and greeting_of(incus.host, system) == greeting

    incus.wait_inside(name)
    incus.eventually(holds, incus.story)
    assert generations(incus.host, incus.pid(name))[1] == number
