"""`inx-sidecar`: the command of the systemd units and of administrators; users need only incus."""

import asyncio
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

from inx_sidecar.base import paths
from inx_sidecar.base.errors import DeclarationError, InxError, UnsupportedError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="inx")
def main() -> None:
    """The host's side of inx. Containers are driven by plain incus."""


def _only_root() -> None:
    """Without the rights of root, everything looks broken."""
    if os.geteuid():
        click.echo("inx: error: only root may do this; run it as root", err=True)
        sys.exit(1)


@contextmanager
def _report_errors(prefix: str) -> Iterator[None]:
    """Print an expected failure in one line, after `prefix`, and exit with its status."""
    try:
        yield
    except InxError as error:
        click.echo(f"{prefix}{error}", err=True)
        sys.exit(error.status)


@contextmanager
def _start_without_support() -> Iterator[None]:
    """Tell systemd that a service has started which this kernel cannot run, and let it end.

    Else its start is a failure (Type=notify), which ends `install` and a switch of NixOS.
    """
    from inx_sidecar.base.systemd_notify import notify

    try:
        yield
    except UnsupportedError as error:
        notify(f"READY=1\nSTATUS={error}")
        raise


@main.command()
def run() -> None:
    """Serve the hooks; started by inx-sidecar.socket."""
    from inx_sidecar import server
    from inx_sidecar.base import journal

    journal.log_to_journal()
    with _report_errors("<3>"):
        asyncio.run(server.serve(server.listening_socket()))


@main.command()
def barrier() -> None:
    """Hold collections until all roots stand; started by inx-barrier.service."""
    _only_root()
    from inx_sidecar.base import journal
    from inx_sidecar.roots import barrier

    journal.log_to_journal()
    with _report_errors("<3>"), _start_without_support():
        asyncio.run(barrier.guard())


@main.command()
def guard() -> None:
    """Keep containers from the lock files of the store; started by inx-guard.service."""
    _only_root()
    from inx_sidecar.base import journal
    from inx_sidecar.config import settings
    from inx_sidecar.incus import running_record
    from inx_sidecar.nix import store_locks

    journal.log_to_journal()
    with _report_errors("<3>"), _start_without_support():
        store_locks.guard(settings.lock_patience, running_record.name_of)


@main.command()
def sync() -> None:
    """Compare the GC roots of all instances with their links, now."""
    from inx_sidecar.base import sidecar_client

    with _report_errors("inx: error: "):
        status, sentence = asyncio.run(sidecar_client.ask(sidecar_client.SYNC))
        click.echo(sentence, err=bool(status))
        sys.exit(status)


def _owners(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """For the completion of a shell: the instances that have roots. Only root can list them."""
    from inx_sidecar.roots import direct_roots

    try:
        return sorted({name for name, _ in direct_roots.owners() if name.startswith(incomplete)})
    except OSError:
        return []


@main.command()
@click.argument("instance", required=False, shell_complete=_owners)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array.")
def roots(instance: str | None, as_json: bool) -> None:
    """List what instances keep from the garbage collector: path, age, size of the closure, link."""
    _only_root()
    from inx_sidecar.base import terminal
    from inx_sidecar.roots import roots_command

    with _report_errors("inx: error: "), terminal.Progress() as progress:
        found = roots_command.read(instance, progress.tell)
    if as_json:
        click.echo(json.dumps([root.as_json() for root in found], indent=1))
        return
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    rows = [roots_command.HEADINGS, *(root.row() for root in found)]
    for line in terminal.table(rows, width, roots_command.NUMBERS):
        click.echo(line)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array.")
def check(as_json: bool) -> None:
    """Look whether this host has what inx needs: one line each, 'ok' or what to do."""
    _only_root()
    sys.exit(0 if asyncio.run(_check(as_json)) else 1)


async def _check(as_json: bool) -> bool:
    """Print each finding as soon as it is known; True if nothing has to be done."""
    from inx_sidecar.base import terminal
    from inx_sidecar.check import run_checks

    findings = []
    with terminal.Progress() as progress:
        async for finding in run_checks(progress.tell):
            findings.append(finding)
            if not as_json:
                progress.clear()
                click.echo(finding.describe())
    if as_json:
        click.echo(json.dumps([finding.as_json() for finding in findings], indent=1))
    return all(finding.ok for finding in findings)


@main.command()
@click.argument("instance")
@click.option("--project", default="default", show_default=True, help="The project of INSTANCE.")
@click.option("--update", help="The value of user.inx.update to wait for; else the present one.")
@click.option("--timeout", type=float, help="Give up after so many seconds.")
def wait(instance: str, project: str, update: str | None, timeout: float | None) -> None:
    """Wait until inx has dealt with INSTANCE; exit status 0 if it is ready."""
    _only_root()
    from inx_sidecar.incus import update_wait

    with _report_errors("inx: error: "):
        end = asyncio.run(update_wait.wait(project, instance, update, timeout))
    click.echo(f"{instance}: {end.sentence}", err=not end.is_ready)
    sys.exit(0 if end.is_ready else 1)


@main.command()
@click.argument("file", default=paths.DECLARED)
def converge(file: str) -> None:
    """Make instances what FILE declares; without, /etc/inx/instances.json."""
    from inx_sidecar.declared import converge, declaration_file

    with _report_errors("inx: error: "):
        failures = asyncio.run(
            converge.converge(declaration_file.read_declaration(file), click.echo)
        )
    for sentence in failures:
        click.echo(f"inx: error: {sentence}", err=True)
    sys.exit(DeclarationError.status if failures else 0)
