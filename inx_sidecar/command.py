"""`inx-sidecar`: the services start without click and OpenSSL, all other commands by click."""

import sys

from inx_sidecar import services


def main() -> None:
    if len(sys.argv) == 2 and (service := services.SERVICES.get(sys.argv[1])):
        service()
    else:
        from inx_sidecar import cli

        cli.main()
