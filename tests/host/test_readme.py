"""Every command that README.md shows is run, in its order."""

import re
import subprocess
from pathlib import Path

import pytest
from support.disposable import REPO, Host, tree
from support.incus import Incus

pytestmark = pytest.mark.main


def commands(section: str) -> list[str]:
    """The lines of the `sh` blocks below the heading `section`."""
    text = (REPO / "README.md").read_text()
    _, _, rest = text.partition(f"# {section}\n")
    assert rest, f"README.md has no section {section}"
    body = re.split(r"^##+ ", rest, maxsplit=1, flags=re.MULTILINE)[0]
    return [
        line
        for block in re.findall(r"^```sh\n(.*?)^```$", body, re.MULTILINE | re.DOTALL)
        for line in block.splitlines()
    ]


def test_no_block_of_commands_is_forgotten() -> None:
    sections = (
        "Any Linux with systemd, Incus and Nix", "Try it here", "Use", "Updates", "Network",
        "Garbage collection", "Isolated store", "Declared containers", "Secrets", "Moving over",
        "Uninstall",
    )  # fmt: skip
    text = (REPO / "README.md").read_text()
    assert text.count("```sh\n") == len(sections)
    assert all(commands(section) for section in sections)


def test_the_packages_to_install_exist(tmp_path: Path) -> None:
    """apt-get looks them up as on a host of its own, with this machine's network."""
    apt, install = commands("Any Linux with systemd, Incus and Nix")
    assert install == "./install"
    script = f"""
    mount -t overlay overlay -o lowerdir={tree()},upperdir={tmp_path}/up,workdir={tmp_path}/work \\
        {tmp_path}/root
    cp /etc/resolv.conf {tmp_path}/root/etc/ 2>/dev/null || :
    chroot {tmp_path}/root apt-get -q update
    chroot {tmp_path}/root {apt.replace("install", "install --simulate --yes", 1)}
    """
    for name in ("up", "work", "root"):
        (tmp_path / name).mkdir()
    argv = ["unshare", "--mount", "bash", "-euc", script]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_to_use(incus: Incus, host: Host) -> None:
    incus.adopt("web")
    for line in commands("Use"):
        host.sh(line)
        if "launch" in line or "restart" in line:
            incus.wait_ready("web")
    assert incus("list", "-f", "csv", "-c", "n", "^web$").stdout == ""


def test_what_to_see_of_roots(incus: Incus, host: Host) -> None:
    incus.launch(name="web", flake="/etc/nixos#web")
    listed, printed, synced, collected = (host.sh(line) for line in commands("Garbage collection"))
    assert re.search(r"^web +\d+[smhd] +\d+ MiB  /nix/store/\S+  system-1$", listed.stdout, re.M)
    assert f"gcroots/inx/web.{incus.uuid('web')}/system-1 -> /nix/store/" in printed.stdout
    assert synced.stdout.startswith("compared ")
    assert "store paths deleted" in collected.stdout


@pytest.mark.life
def test_how_to_update(incus: Incus, host: Host) -> None:
    incus.launch(name="web", flake=incus.flake(greeting="one") + "#web")
    incus.flake(greeting="two")
    for line, number, greeting in zip(
        commands("Updates"), ("2", "1", "2"), ("two", "one", "two"), strict=True
    ):
        host.sh(line)
        incus.wait_generation("web", number)
        incus.sh("web", f"[ $(cat /etc/greeting) = {greeting} ]")


@pytest.mark.life
def test_how_to_connect(incus: Incus, host: Host) -> None:
    incus.adopt("web")
    host.sh("ip link add eth0 type veth peer name lan0; ip link set eth0 up; ip link set lan0 up")
    try:
        for line in commands("Network"):
            host.sh(line)
        incus.wait_ready("web")
        leased = "ip -4 address show dev eth0 | grep -q 10.20.0.7/24"
        incus.eventually(lambda: incus.inside("web", leased), incus.story)
        assert incus.inside("web", "ip -4 address show dev eth1 | grep -q 10.20.2.8/24")
        assert incus.inside("web", "ping -c 1 10.20.1.1")
        assert incus.inside("web", "ip link show dev eth3")
        host.sh("ping -c 1 10.20.2.8; ping -c 1 10.20.1.2")
        incus.sh("web", "mkdir /srv; echo from web >/srv/index.html; httpd -h /srv -p 127.0.0.1:80")
        assert host.sh("curl -sf http://127.0.0.1:8080").stdout == "from web\n"
    finally:
        incus("delete", "-f", "web", check=False)
        host.sh("ip link delete eth0; incus network delete lan; incus network delete quiet")


def entries(incus: Incus) -> set[str]:
    """What `ls /nix/store` shows inside; the output of incus exec may get lost."""
    listed = incus.host.run(["ls", f"/proc/{incus.pid('vault')}/root/nix/store"])
    return set(listed.stdout.split())


@pytest.mark.isolated
def test_what_an_isolated_container_sees(incus: Incus, host: Host) -> None:
    incus.adopt("vault")
    launch, look, include, restart = commands("Isolated store")
    host.sh(launch)
    incus.wait_ready("vault")
    system = incus.get("vault", "user.inx.status.system")
    host.sh(look)
    seen = entries(incus)
    needed = host.run(["nix-store", "--query", "--requisites", system]).stdout
    assert {f"/nix/store/{name}" for name in seen} == set(needed.split())
    host.sh(include)
    host.sh(restart)
    incus.wait_ready("vault")
    (added,) = entries(incus) - seen
    assert added.endswith("-hosts")
    digest = host.run(["sha256sum", "/etc/hosts"]).stdout.split()[0]
    incus.sh("vault", f"sha256sum /nix/store/{added} | grep -q {digest}")


@pytest.mark.nixos
def test_how_to_declare(incus: Incus, host: Host) -> None:
    incus.adopt("web")
    said = host.sh("\n".join(commands("Declared containers"))).stdout
    assert said == "web: created\nweb: started\n"
    host.run(["rm", "/etc/inx/instances.json"])
    incus.wait_ready("web")


@pytest.mark.nixos
def test_how_secrets_come_in(incus: Incus, host: Host) -> None:
    """Both are there when the first activation begins."""
    incus.adopt("web")
    host.sh(
        """
        echo a key >/etc/ssh/web_host_key
        mkdir -p /srv/secrets; mount -t tmpfs none /srv/secrets
        echo a token >/srv/secrets/token; chmod 600 /srv/secrets/token
        """
    )
    try:
        host.sh("\n".join(commands("Secrets")))
        incus.wait_ready("web")
        incus.sh("web", '[ "$(cat /etc/ssh/ssh_host_ed25519_key)" = "a key" ]')
        incus.sh("web", "[ $(stat -c %u:%g:%a /etc/ssh/ssh_host_ed25519_key) = 0:0:600 ]")
        incus.sh("web", '[ "$(cat /secrets/token)" = "a token" ]; ! touch /secrets/x')
        incus.sh("web", "[ $(stat -c %u:%g:%a /secrets/token) = 0:0:600 ]")
    finally:
        incus("delete", "-f", "web", check=False)
        host.sh("umount --lazy /srv/secrets; rm /etc/ssh/web_host_key")


def test_the_first_example_of_the_page(incus: Incus, host: Host) -> None:
    (line,) = re.findall(r"^incus launch .*$", (REPO / "README.md").read_text(), re.MULTILINE)[:1]
    incus.adopt("web")
    host.sh(line)
    incus.wait_ready("web")


def test_try_it_here() -> None:
    example, tests = commands("Try it here")
    assert tests == "tests/run"
    done = subprocess.run([example], cwd=REPO, capture_output=True, text=True, check=False)
    try:
        assert done.returncode == 0, done.stdout + done.stderr
        for proof in (
            "refused, as it should be",
            "built inside web",
            "| web  | RUNNING |",
            "hello",
        ):
            assert proof in done.stdout
    finally:
        Host("demo").down()


def test_install_again_and_uninstall(host: Host) -> None:
    """The last of this file: the host is without inx for a moment."""
    (uninstall,) = commands("Uninstall")
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/root/wheels"}
    host.sh("incus launch --empty keep --profile inx -c user.inx.flake=/etc/nixos#web </dev/null")
    host.sh("cd /root/inx; ./install", env=offline)
    assert host.sh("incus list keep -f csv -c s").stdout.strip() == "RUNNING"
    refused = host.run(["sh", "-c", f"cd /root/inx; {uninstall}"], check=False)
    assert refused.returncode == 1 and "delete them first" in refused.stderr
    host.sh("incus delete -f keep")
    # What a failed build leaves with systemd goes as well.
    failed = "inx-build-00000000-0000-4000-8000-000000000000.service"
    host.run(["systemd-run", "--quiet", "--wait", f"--unit={failed}", "false"], check=False)
    assert host.run(["systemctl", "is-failed", failed]).stdout.strip() == "failed"
    try:
        host.sh(f"cd /root/inx; {uninstall}")
        left = "/opt/inx /etc/inx/hooks /usr/local/lib/systemd/system/inx* /run/inx"
        assert host.sh(f"ls -d {left} 2>/dev/null || :").stdout == ""
        assert "inx" not in host.sh("incus profile list -f csv; incus image list -f csv").stdout
        assert host.sh("systemctl list-units --all --plain --no-legend 'inx*'").stdout == ""
    finally:
        host.sh("cd /root/inx; ./install", env=offline)
