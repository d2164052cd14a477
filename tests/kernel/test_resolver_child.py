"""The child that resolves links has a time limit and only the rights of the container's root."""

import asyncio
import os
from pathlib import Path

import pytest
from support.descriptors import open_descriptors
from support.fuse import hanging
from support.links import COPY, NAME, ONE, Web, started_web

from inx_sidecar.base.errors import InstanceError, MountError
from inx_sidecar.links import resolver
from inx_sidecar.links.resolver import InitProcess
from inx_sidecar.links.root_directories import RootDirectory, root_directories_of

pytestmark = pytest.mark.gc


def children() -> str:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text()


def test_the_resolver_does_not_wait_for_a_file_system_that_does_not_answer(
    web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolver, "_SECONDS", 0.3)
    web.link("/root/result")
    with hanging(web, "/mnt/hang"):
        before = children()
        texts = ["/root/result", "/mnt/hang/result", "/root/other"]
        resolved = asyncio.run(resolver.resolve_links(NAME, web.process, texts))
        assert resolved.unanswered == "/mnt/hang/result" and resolved.child_exited is not None
        assert {text: link.targets for text, link in resolved.links.items()} == {
            "/root/result": {ONE: True}
        }
        assert children() == before, "no child is left"
        assert web.resolve("/root/result").targets == {ONE: True}, "other links can be resolved"


def test_the_resolver_does_not_wait_for_the_copy_on_such_a_file_system(
    web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolver, "_SECONDS", 0.3)
    web.link("/root/result")
    with hanging(web, f"/{COPY}"):
        resolved = asyncio.run(resolver.resolve_links(NAME, web.process, ["/root/result"]))
        assert resolved.links["/root/result"].targets == {ONE: True}
        assert resolved.child_exited and resolved.problem.startswith(
            "copies and snapshots lack roots: "
        )
        with pytest.raises(MountError, match="took over"):
            asyncio.run(resolver.remove_registrations_inside(NAME, web.process, ["/root/result"]))


def test_the_event_loop_comes_before_a_look(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A root that is made at once must not wait for the processor that looks at others."""
    place = tmp_path / "niceness"

    def spy(pid: int, started: int) -> tuple[list[RootDirectory], bool]:
        place.write_text(f"{os.nice(0)}")
        return root_directories_of(pid, started)

    monkeypatch.setattr(resolver, "root_directories_of", spy)
    web.link("/root/result")
    assert web.resolve("/root/result").targets == {ONE: True}
    assert int(place.read_text()) == min(19, os.nice(0) + 10)


def test_a_container_that_has_ended_is_an_error(tmp_path: Path) -> None:
    with started_web(tmp_path / "rootfs") as web:
        web.link("/root/result")
    for call in (resolver.resolve_links, resolver.remove_registrations_inside):
        with pytest.raises(InstanceError, match="of 'web' is gone"):
            asyncio.run(call(NAME, web.process, ["/root/result"]))


def test_another_process_with_the_same_pid_is_an_error(web: Web) -> None:
    web.link("/root/result")
    later = InitProcess(web.process.pid, web.process.started + 1)
    for call in (resolver.resolve_links, resolver.remove_registrations_inside):
        with pytest.raises(InstanceError, match="of 'web' is gone"):
            asyncio.run(call(NAME, later, ["/root/result"]))
    assert not os.path.lexists(web.rootfs / "nix")


def test_the_resolver_leaves_no_descriptor_open(web: Web) -> None:
    web.link("/root/result")
    before = open_descriptors()
    web.resolve("/root/result")
    asyncio.run(resolver.remove_registrations_inside(NAME, web.process, ["/root/result"]))
    assert open_descriptors() == before


def test_links_are_resolved_as_the_containers_root(
    web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child keeps no rights on the host."""

    namespace = os.readlink(f"/proc/{web.sandbox.pid}/ns/user")

    def spy(*_: object) -> dict[str, object]:
        lines = Path("/proc/self/status").read_text().splitlines()
        ids = [line.split()[1:] for line in lines if line.startswith(("Uid:", "Gid:", "Groups:"))]
        raise AssertionError(f"{ids} {os.readlink('/proc/self/ns/user') == namespace}")

    monkeypatch.setattr(resolver, "look_up", spy)
    with pytest.raises(RuntimeError) as caught:
        web.resolve("/root/result")
    assert str(caught.value).rstrip().endswith(f"{[['0'] * 4] * 2 + [[]]} True")


def test_the_sidecar_itself_stays_in_its_namespaces(web: Web) -> None:
    """Only a forked child enters the namespaces of the container."""
    kinds = ("user", "mnt", "pid", "net")
    before = [os.readlink(f"/proc/self/ns/{kind}") for kind in kinds], os.getuid(), os.getcwd()
    web.resolve("/root/result")
    after = [os.readlink(f"/proc/self/ns/{kind}") for kind in kinds], os.getuid(), os.getcwd()
    assert before == after
