"""Every command that README.md and docs/ show is run, in its order.

Those of docs/moving.md by test_moving.py and test_moving_inx.py, the tables of docs/coming-from.md
by test_parity_*.py.
"""

import json
import re
import subprocess
from pathlib import Path

import pytest
from support.disposable import REPO, Host, tree
from support.incus import Incus
from support.pages import PAGES, README, blocks, commands, read, section
from support.services import SERVICE
from support.sources import source

pytestmark = pytest.mark.main

OTHER_LINUX = "Other Linux with systemd, Incus and Nix"
# A section with commands, and who runs them.
RUN = {
    (README, OTHER_LINUX): "test_the_packages_to_install_exist",
    (README, "Try it here"): "test_try_it_here",
    (README, "A configuration in the instance"): "test_docs_configuration.py",
    (README, "Everyday commands"): "test_everyday_commands",
    ("docs/configuration.md", "Launch"): "test_docs_configuration.py",
    ("docs/configuration.md", "Profiles, files and flakes"): "test_docs_configuration.py",
    ("docs/configuration.md", "Which nixpkgs"): "test_docs_configuration.py",
    ("docs/configuration.md", "Look into it"): "test_docs_configuration.py",
    ("docs/updates.md", "A session"): "test_changes.py",
    ("docs/updates.md", "Update, pin, unpin"): "test_how_to_update",
    ("docs/updates.md", "Confirm an update"): "test_how_to_confirm",
    ("docs/updates.md", "Many instances"): "test_how_to_update_many",
    ("docs/updates.md", "Wait for the end"): "test_how_to_wait",
    ("docs/updates.md", "What an update changes"): "test_changes.py",
    ("docs/updates.md", "Try a system first"): "test_changes.py",
    ("docs/updates.md", "Generations"): "test_what_generations_outlive",
    ("docs/network.md", "Examples"): "test_how_to_connect",
    ("docs/garbage-collection.md", "Look, compare, collect"): "test_what_to_see_of_roots",
    ("docs/monitoring.md", "Status and journal"): "test_how_to_watch",
    ("docs/monitoring.md", "Metrics"): "test_how_to_watch",
    ("docs/isolated-store.md", "Launch an isolated container"): (
        "test_what_an_isolated_container_sees"
    ),
    ("docs/isolated-store.md", "A store of its own"): "test_what_a_store_of_its_own_is_for",
    ("docs/nixos.md", "Declared containers on other hosts"): "test_how_to_declare",
    ("docs/secrets-and-deployment.md", "Secrets"): "test_how_secrets_come_in",
    ("docs/secrets-and-deployment.md", "Private sources"): "test_private_sources.py",
    ("docs/cluster.md", "Where instances are created"): "../cluster/test_cluster_page.py",
    ("docs/cluster.md", "Moves"): "../cluster/test_cluster_page.py",
    ("docs/cluster.md", "Members as caches"): "../cluster/test_moves.py",
    ("docs/security.md", "Leases that a host needs"): "test_how_to_keep_leases",
    ("docs/moving.md", "From nixos-container"): "test_moving.py",
    ("docs/moving.md", "From inx-container"): "test_moving_inx.py",
    ("docs/uninstall.md", "Other Linux"): "test_install_again_and_uninstall",
}


def test_no_block_of_commands_is_forgotten() -> None:
    found = [block for page in PAGES for block in blocks(page)]
    shown = [(block.page, block.heading) for block in found if block.language == "sh"]
    assert set(shown) == set(RUN)
    assert {block.language for block in found} == {"sh", "nix", ""}
    (first,) = [block for block in found if block.language == ""]
    assert first == blocks(README)[0], "test_the_first_example_of_the_page runs no other"
    assert sum(read(page).count("```") for page in PAGES) == 2 * len(found)
    for who in RUN.values():
        assert who in globals() or (Path(__file__).parent / who).exists(), who


def test_the_packages_to_install_exist(tmp_path: Path) -> None:
    """apt-get looks them up as on a host of its own, with this machine's network."""
    apt, install = commands(README, OTHER_LINUX)
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


@pytest.mark.sid
def test_everyday_commands(incus: Incus, host: Host) -> None:
    incus.adopt("web")
    launch, look, console, update, delete = commands(README, "Everyday commands")
    host.sh("cp /etc/nixos/flake.nix /root/flake.nix")
    try:
        host.sh(launch)
        incus.wait_ready("web")
        # Incus 7 draws the lines of the table by other characters.
        assert re.search(r"[|│] web +[|│] RUNNING +[|│].*[|│] ready +[|│]", host.sh(look).stdout)
        host.sh(console)
        host.sh(
            r"""sed -i 's/name = "web";/& extra.greeting = "hello\\n";/' /etc/nixos/flake.nix"""
        )
        host.sh(update)
        incus.wait_generation("web", "2")
        incus.sh("web", "[ $(cat /etc/greeting) = hello ]")
        host.sh(delete)
        assert incus("list", "-f", "csv", "-c", "n", "^web$").stdout == ""
    finally:
        host.sh("mv /root/flake.nix /etc/nixos/flake.nix")


@pytest.mark.life
def test_what_generations_outlive(incus: Incus, host: Host) -> None:
    incus.launch(name="web", flake="/etc/nixos#web")
    listing, snapshot, restart, stop, restore, start = commands("docs/updates.md", "Generations")
    incus.eventually(
        lambda: re.match(r"^ +1 .*\(current\)", host.sh(listing).stdout) is not None, incus.story
    )
    host.sh(snapshot)
    incus.sh("web", "touch /root/after; rm /nix/var/nix/profiles/system-1-link")
    host.sh(restart)
    incus.wait_ready("web")
    host.sh(stop)
    host.sh(restore)
    host.sh(start)
    incus.wait_ready("web")
    incus.sh("web", "[ ! -e /root/after ] && [ -L /nix/var/nix/profiles/system-1-link ]")


@pytest.mark.life
def test_how_to_confirm(incus: Incus, host: Host) -> None:
    confirm, update, confirmed = commands("docs/updates.md", "Confirm an update")
    incus.launch(name="web", flake=f"{source(incus, 'one')}#web")
    host.sh(confirm)
    source(incus, "two")
    host.sh(update)
    shown = "unconfirmed: set user.inx.confirmed=2 within 60 s, or generation 1 comes back"
    assert shown in section("docs/updates.md", "Confirm an update")
    assert incus.wait_status("web", "unconfirmed") == shown
    host.sh(confirmed)
    incus.wait_generation("web", "2")
    incus.sh("web", "[ $(cat /etc/greeting) = two ]")


@pytest.mark.life
def test_how_to_update_many(incus: Incus, host: Host) -> None:
    for name in "canary", "web":
        incus.adopt(name)
    *first, update = commands("docs/updates.md", "Many instances")
    try:
        for line in first:
            host.sh(line)
        for name in "canary", "web":
            incus.wait_ready(name)
        host.sh(update)
        wished = incus("profile", "get", "servers", "user.inx.update").stdout
        assert wished.strip()
        for name in "canary", "web":
            incus.wait_generation(name, "1")
    finally:
        incus("delete", "-f", "canary", "web", check=False)
        incus("profile", "delete", "servers")


def test_how_to_watch(incus: Incus, host: Host) -> None:
    incus.launch(name="web", flake="/etc/nixos#web")
    incus.wait_ready("web")
    page = "docs/monitoring.md"
    listed, checked, roots, said = commands(page, "Status and journal")
    assert "ready" in host.sh(listed).stdout
    assert json.loads(host.sh(checked).stdout) and json.loads(host.sh(roots).stdout)
    assert "web: " in host.sh(said).stdout
    (link,) = commands(page, "Metrics")
    metrics, collector = "/run/inx/metrics/inx.prom", "/var/lib/prometheus/node-exporter"
    try:
        host.sh(f"mkdir -p {collector}; echo 'metrics = true' >/etc/inx/config.toml; {link}")
        host.run(["systemctl", "restart", SERVICE])
        there = ["test", "-e", metrics]
        incus.eventually(lambda: host.run(there, check=False).returncode == 0, incus.story)
        text = host.sh(f"cat {collector}/inx.prom").stdout
        names = re.findall(r"^\| `(inx_\w+)`", section(page, "Metrics"), re.M)
        assert len(names) == 7
        for name in names:
            assert re.search(rf'^{name}{{instance="web",', text, re.M), name
    finally:
        host.sh(f"rm -rf /etc/inx/config.toml {collector}")


@pytest.mark.sid
def test_what_to_see_of_roots(incus: Incus, host: Host) -> None:
    incus.launch(name="web", flake="/etc/nixos#web")
    lines = commands("docs/garbage-collection.md", "Look, compare, collect")
    listed, printed, synced, collected = (host.sh(line) for line in lines)
    assert re.search(r"^web +\d+[smhd] +\d+ MiB  /nix/store/\S+ +system-1$", listed.stdout, re.M)
    root = rf'gcroots/inx/web.{incus.uuid("web")}/system-1"? -> /nix/store/'
    assert re.search(root, printed.stdout)
    assert synced.stdout.startswith("compared ")
    assert "store paths deleted" in collected.stdout


@pytest.mark.life
def test_how_to_wait(incus: Incus, host: Host) -> None:
    incus.launch(name="web", flake=incus.flake(greeting="one") + "#web")
    incus.flake(greeting="two")
    (line,) = commands("docs/updates.md", "Wait for the end")
    assert host.sh(line).stdout == "web: ready\n"
    assert incus.inside("web", "[ $(cat /etc/greeting) = two ]")


@pytest.mark.life
def test_how_to_update(incus: Incus, host: Host) -> None:
    incus.launch(name="web", flake=incus.flake(greeting="one") + "#web")
    incus.flake(greeting="two")
    for line, number, greeting in zip(
        commands("docs/updates.md", "Update, pin, unpin"),
        ("2", "1", "2"),
        ("two", "one", "two"),
        strict=True,
    ):
        host.sh(line)
        incus.wait_generation("web", number)
        incus.sh("web", f"[ $(cat /etc/greeting) = {greeting} ]")


@pytest.mark.life
def test_how_to_connect(incus: Incus, host: Host) -> None:
    incus.adopt("web")
    host.sh("ip link add eth0 type veth peer name lan0; ip link set eth0 up; ip link set lan0 up")
    try:
        for line in commands("docs/network.md", "Examples"):
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
    launch, look, include, restart = commands(
        "docs/isolated-store.md", "Launch an isolated container"
    )
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


@pytest.mark.isolated
def test_what_a_store_of_its_own_is_for(incus: Incus, host: Host) -> None:
    incus.adopt("lab")
    launch, add, collect = commands("docs/isolated-store.md", "A store of its own")
    host.sh(launch)
    incus.wait_ready("lab")
    host.sh(add)
    assert incus.inside("lab", "test -e /nix/store/*-passwd")
    host.sh(collect)
    assert not incus.inside("lab", "test -e /nix/store/*-passwd")
    assert incus.inside("lab", "test -e /run/current-system/init")


@pytest.mark.nixos
def test_how_to_declare(incus: Incus, host: Host) -> None:
    incus.adopt("web")
    lines = commands("docs/nixos.md", "Declared containers on other hosts")
    assert host.sh("\n".join(lines)).stdout == "web: created\nweb: started\n"
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
        host.sh("\n".join(commands("docs/secrets-and-deployment.md", "Secrets")))
        incus.wait_ready("web")
        incus.sh("web", '[ "$(cat /etc/ssh/ssh_host_ed25519_key)" = "a key" ]')
        incus.sh("web", "[ $(stat -c %u:%g:%a /etc/ssh/ssh_host_ed25519_key) = 0:0:600 ]")
        incus.sh("web", '[ "$(cat /secrets/token)" = "a token" ]; ! touch /secrets/x')
        incus.sh("web", "[ $(stat -c %u:%g:%a /secrets/token) = 0:0:600 ]")
    finally:
        incus("delete", "-f", "web", check=False)
        host.sh("umount --lazy /srv/secrets; rm /etc/ssh/web_host_key")


def test_how_to_keep_leases(host: Host) -> None:
    command = commands("docs/security.md", "Leases that a host needs")
    apply = command[-1]
    host.run(apply.split())
    assert host.run(["cat", "/proc/sys/fs/leases-enable"]).stdout == "0\n"
    try:
        host.sh("\n".join(command))
        assert host.run(["cat", "/proc/sys/fs/leases-enable"]).stdout == "1\n"
    finally:
        host.sh(f"rm -f /etc/sysctl.d/60-leases.conf; {apply}")


def test_where_to_look(incus: Incus, host: Host) -> None:
    """The reason of a refusal is in each place that the page names for it."""
    table = section("docs/troubleshooting.md", "Where to look")
    places = [code.replace("NAME", "web") for code in re.findall(r"^\| `([^`]+)`", table, re.M)]
    status, info, console, build_log, changes, sidecar, one_instance, hooks_log, check = places
    incus.init(name="web", flake="/etc/nixos#web", keep="0")
    assert incus.start("web", check=False).returncode != 0
    told = "user.inx.keep is '0'; allowed: a number from 1 to 1000"
    assert status == "user.inx.status"
    incus.wait_status("web", f"failed: {told}$")
    shown = host.sh(info).stdout
    assert f"inx - {told}\n" in shown and "Script exited with status 20" in shown
    assert told in host.sh(sidecar).stdout and told in host.sh(one_instance).stdout
    incus.set("web", "user.inx.keep=")
    incus.start("web")
    incus.wait_ready("web")
    host.sh(console)
    uuid = host.sh("incus config get web volatile.uuid").stdout.strip()
    for log in build_log, changes:
        host.run(["test", "-f", log.replace("UUID", uuid)])
    host.run(["test", "-f", hooks_log])
    assert host.sh(check, check=False).stdout.startswith("ok    Linux ")


def test_the_first_example_of_the_page(incus: Incus, host: Host) -> None:
    (line,) = re.findall(r"^incus launch .*$", read(README), re.MULTILINE)[:1]
    assert line == "incus launch --empty web --profile inx -c user.inx.flake=/etc/nixos"
    incus.adopt("web")
    host.sh(line)
    incus.wait_ready("web")


def test_try_it_here() -> None:
    example, tests = commands(README, "Try it here")
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
            assert proof in done.stdout.replace("│", "|")
    finally:
        Host("demo").down()


def test_install_again_and_uninstall(host: Host) -> None:
    """The last of this file: the host is without inx for a moment."""
    (uninstall,) = commands("docs/uninstall.md", "Other Linux")
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/root/wheels"}
    host.sh("incus launch --empty keep --profile inx -c user.inx.flake=/etc/nixos#web </dev/null")
    host.sh("cd /root/inx; ./install", env=offline)
    assert host.sh("incus list keep -f csv -c s").stdout.strip() == "RUNNING"
    refused = host.run(["sh", "-c", f"cd /root/inx; {uninstall}"], check=False)
    assert refused.returncode == 1 and "delete them first" in refused.stderr
    host.sh("incus delete -f keep")
    # What a failed build leaves with systemd goes as well.
    no_network = {"PIP_NO_INDEX": "1"}
    refused = host.run(["sh", "-c", "cd /root/inx; ./install"], check=False, env=no_network)
    assert refused.returncode == 1 and refused.stderr.count("\n") == 1
    assert "pip download" in refused.stderr and "./install --wheels DIR" in refused.stderr
    assert host.sh("inx-sidecar --version; ls -d /opt/inx-*").stdout.count("\n") == 2
    failed = "inx-build-00000000-0000-4000-8000-000000000000.service"
    host.run(["systemd-run", "--quiet", "--wait", f"--unit={failed}", "false"], check=False)
    assert host.run(["systemctl", "is-failed", failed]).stdout.strip() == "failed"
    try:
        host.sh(f"cd /root/inx; {uninstall}")
        left = (
            "/opt/inx* /etc/inx/hooks /usr/local/lib/systemd/system/inx* /run/inx "
            "/usr/local/bin/inx-sidecar"
        )
        assert host.sh(f"ls -d {left} 2>/dev/null || :").stdout == ""
        assert "inx" not in host.sh("incus profile list -f csv; incus image list -f csv").stdout
        assert host.sh("systemctl list-units --all --plain --no-legend 'inx*'").stdout == ""
    finally:
        host.sh("cd /root/inx; ./install", env=offline)
