"""Roots outlive crashes: of Incus, of the sidecar, of an instance's Nix daemon, and of the host."""

import shlex
import threading

import pytest
from support.disposable import Host
from support.gc import (
    SIDECAR,
    SIDECAR_UNITS,
    add_to_store,
    all_roots,
    assert_gone,
    assert_kept,
    assert_link_works,
    build,
    collect,
    collect_in_time,
    expression,
    holders,
    in_store,
    launch,
    left,
    main_pid,
    make_links,
    make_roots,
    register,
    send_signal,
    unlink,
    wait_rooted,
    without,
)
from support.incus import Incus

pytestmark = pytest.mark.gc

HOLD = "/run/hold-sidecar"
DROP_IN = "/run/systemd/system/inx-sidecar.service.d/hold.conf"
EARLY = "/etc/systemd/system/early-gc.service"


def kill_all_of(host: Host, unit: str) -> None:
    """Kill all processes of the unit."""
    host.run(["systemctl", "kill", "--signal=KILL", unit])


def wait_for_another_sidecar(incus: Incus, pid: int) -> None:
    """Wait until a sidecar with another number than `pid` runs. It may still be starting."""
    incus.eventually(lambda: main_pid(incus.host) not in (0, pid), incus.story)


def test_links_outlive_a_crash_of_incus(incus: Incus, host: Host) -> None:
    name = launch(incus)
    before = build(incus, name, "before")
    pid = incus.pid(name)
    kill_all_of(host, "incus.service")
    collect(host)
    assert in_store(host, before)
    incus.eventually(lambda: incus.pid(name) == pid, incus.story)
    assert_link_works(incus, name, "before")
    after = build(incus, name, "after", link="/root/after")
    assert_kept(incus, before, after)
    unlink(incus, name)
    assert_gone(incus, before)
    assert_kept(incus, after)


def test_a_collection_waits_for_the_sidecar_that_follows_one_that_crashed(
    incus: Incus, host: Host
) -> None:
    name = launch(incus)
    before = build(incus, name, "before", link="/root/before")
    gate = f"[Service]\nExecStartPre=sh -c 'while [ -e {HOLD} ]; do sleep 0.05; done'\n"
    host.sh(
        'mkdir -p "${D%/*}"; cat >"$D"; systemctl daemon-reload', env={"D": DROP_IN}, input=gate
    )
    try:
        host.run(["touch", HOLD])
        kill_all_of(host, SIDECAR)
        # The sidecar cannot come back yet: nobody sees what is registered now.
        path = build(incus, name, "thing")
        unlink(incus, name, "/root/before")
        assert path not in all_roots(host) and before in all_roots(host)
        host.sh(f"""
            nix-store --gc & collection=$!
            until ss -Hxl src /run/inx/sidecar.sock | awk '{{ exit !$3 }}'; do sleep 0.05; done
            kill -0 $collection
            rm {HOLD}
            wait $collection
        """)
        assert path in all_roots(host) and in_store(host, path)
        assert before not in all_roots(host) and not in_store(host, before)
    finally:
        host.sh(f'rm -f {HOLD} "$D"; systemctl daemon-reload', env={"D": DROP_IN})
    assert_link_works(incus, name, "thing")
    assert_kept(incus, path)
    unlink(incus, name)
    assert_gone(incus, path)


@pytest.mark.parametrize("link", ["/root/link", "/root/new"], ids=["same-link", "new-link"])
def test_what_was_linked_before_a_stop_while_no_sidecar_ran_is_held(
    incus: Incus, host: Host, link: str
) -> None:
    name = launch(incus)
    assert_kept(incus, build(incus, name, "before"))
    with without(host, *SIDECAR_UNITS):
        path = build(incus, name, "thing", link=link)
        incus("stop", "-f", name)
        assert holders(host, path) == set()
    assert_kept(incus, path)
    incus.start(name)
    assert_link_works(incus, name, "thing", link=link)
    unlink(incus, name, link)
    assert_gone(incus, path)


def test_a_sidecar_killed_again_and_again_loses_no_registration(incus: Incus, host: Host) -> None:
    first, second = add_to_store(incus, "killed"), add_to_store(incus, "killed-too")
    name = incus.launch(flake="/etc/nixos#web")
    links = {f"/root/l{count}": second if count % 2 else first for count in range(900)}
    make_links(incus, name, links)
    # One link to each path is registered at once: a collection may come at any moment.
    make_roots(incus, name, dict([links.popitem(), links.popitem()]))
    texts = list(links)
    ended = threading.Event()
    troubles: list[Exception] = []

    def register_all() -> None:
        try:
            for begin in range(0, len(texts), 10):
                register(incus, name, texts[begin : begin + 10])
        except Exception as error:
            troubles.append(error)
        finally:
            ended.set()

    registering = threading.Thread(target=register_all)
    registering.start()
    kills = 0
    try:
        while kills < 30 or not ended.is_set():
            before = main_pid(host)
            send_signal(host, "KILL")
            kills += 1
            if kills % 10 == 0:
                collect_in_time(host)
            wait_for_another_sidecar(incus, before)
    finally:
        registering.join(60)
    assert not troubles
    wait_rooted(incus, name, links)
    collect(host)
    assert left(host, first, second) == {first, second}
    incus.wait_status(name, "ready$")


def test_links_outlive_a_crash_of_the_instances_nix_daemon(incus: Incus, host: Host) -> None:
    name = launch(incus)
    path = build(incus, name, "thing")
    daemon = f"inx-nix-daemon@{incus.uuid(name)}.service"
    kill_all_of(host, daemon)
    assert_kept(incus, path)
    # The build ends with its daemon. Nix never makes a link to a path that was not built.
    endless = shlex.quote(expression(incus.name("endless"), "while :; do :; done"))
    script = f"nix-build --expr {endless} -o /root/endless >/root/log 2>&1 & echo $!"
    incus.sh(name, script)
    incus.eventually(lambda: "building '" in incus.said(name, "cat", "/root/log"), incus.story)
    kill_all_of(host, daemon)
    incus.eventually(lambda: "error: " in incus.said(name, "cat", "/root/log"), incus.story)
    assert incus.run(name, "test", "-L", "/root/endless", check=False).returncode == 1
    assert_kept(incus, path)
    after = build(incus, name, "after", link="/root/after")
    assert_kept(incus, path, after)
    unlink(incus, name)
    assert_gone(incus, path)
    assert_kept(incus, after)


def test_roots_exist_before_the_first_collection_after_a_reboot(incus: Incus, host: Host) -> None:
    unit = """
        [Service]
        Type=oneshot
        ExecStart=nix-store --gc
        [Install]
        WantedBy=multi-user.target
    """
    host.sh(f"cat >{EARLY}; systemctl enable {EARLY.rpartition('/')[2]}", input=unit)
    running, stopped = launch(incus, "running"), launch(incus, "stopped")
    held = build(incus, stopped, "stopped")
    incus("snapshot", "create", stopped, "snap")
    only = build(incus, stopped, "only")
    incus("stop", stopped)
    path = build(incus, running, "running")
    host.reboot()
    done = host.run(["journalctl", "-b", "-u", "early-gc", "--no-pager"]).stdout
    assert "store paths deleted" in done
    assert left(host, path, held, only) == {path, held, only}, all_roots(host)
    for each in path, held, only:
        assert f"-> {each}\n" in all_roots(host)
    assert_kept(incus, path, held, only)
    assert_link_works(incus, running, "running")
    incus.start(stopped)
    assert_link_works(incus, stopped, "only")
    unlink(incus, running)
    unlink(incus, stopped)
    assert_gone(incus, path, only)
    assert_kept(incus, held)
