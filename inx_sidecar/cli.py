"""`inx-sidecar`: the command of the systemd units and of administrators; users need only incus."""

import asyncio
import json
import shutil
import sys

import click

from inx_sidecar import services
from inx_sidecar.base import paths
from inx_sidecar.base.errors import DeclarationError
from inx_sidecar.services import only_root, report_errors


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="inx")
def main() -> None:
    """The host's side of inx. Containers are driven by plain incus."""


@main.command()
def run() -> None:
    """Serve the hooks; started by inx-sidecar.socket."""
    services.run()


@main.command()
def barrier() -> None:
    """Hold collections until all roots stand; started by inx-barrier.service."""
    services.barrier()


@main.command()
def guard() -> None:
    """Keep containers from the lock files of the store; started by inx-guard.service."""
    services.guard()


@main.command()
def sync() -> None:
    """Compare the GC roots of all instances with their links, now."""
    from inx_sidecar.base import sidecar_client

    with report_errors("inx: error: "):
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
    only_root()
    from inx_sidecar.base import terminal
    from inx_sidecar.roots import roots_command

    with report_errors("inx: error: "), terminal.Progress() as progress:
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
    only_root()
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
    only_root()
    from inx_sidecar.incus import update_wait

    with report_errors("inx: error: "):
        end = asyncio.run(update_wait.wait(project, instance, update, timeout))
    click.echo(f"{instance}: {end.sentence}", err=not end.is_ready)
    sys.exit(0 if end.is_ready else 1)


@main.command()
@click.argument("file", default=paths.DECLARED)
def converge(file: str) -> None:
    """Make instances what FILE declares; without, /etc/inx/instances.json."""
    from inx_sidecar.declared import converge, declaration_file

    with report_errors("inx: error: "):
        failures = asyncio.run(
            converge.converge(declaration_file.read_declaration(file), click.echo)
        )
    for sentence in failures:
        click.echo(f"inx: error: {sentence}", err=True)
    sys.exit(DeclarationError.status if failures else 0)
