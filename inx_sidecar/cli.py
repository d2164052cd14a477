"""`inx-sidecar`: what the units start, and what an administrator may ask. Users have incus."""

import asyncio
import sys

import click

from inx_sidecar.errors import InxError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="inx")
def main() -> None:
    """The host's side of inx. Containers are driven by plain incus."""


@main.command()
def run() -> None:
    """Serve the hooks; started by inx-sidecar.socket."""
    from inx_sidecar import server

    server.log_to_journal()
    try:
        asyncio.run(server.serve(server.listening_socket()))
    except InxError as error:
        click.echo(f"<3>{error}", err=True)
        sys.exit(error.status)


@main.command()
def check() -> None:
    """Look whether this host has what inx needs: one line each, 'ok' or what to do."""
    from inx_sidecar.check import everything

    findings = asyncio.run(everything())
    for finding in findings:
        click.echo(finding.describe())
    sys.exit(0 if all(finding.ok for finding in findings) else 1)
