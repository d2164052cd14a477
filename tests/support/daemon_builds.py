"""Builds that root of a container gives to the Nix daemon of its instance."""

import contextlib
import shlex
import uuid
from collections.abc import Iterator

from support.disposable import Host
from support.incus import Incus

# Of a fixed-output derivation the sandbox leaves the network of the daemon; its hash never matches.
EXPRESSION = """{ name, script, fixed ? false, url ? null }:
let
  gathered = builtins.fromJSON (builtins.readFile ./deps.json);
  busybox = builtins.storePath gathered.busybox;
  hash = {
    outputHashMode = "flat"; outputHashAlgo = "sha256";
    outputHash = builtins.hashString "sha256" name;
  };
in derivation (
  (if fixed || url != null then hash else { }) // (if url != null then {
    inherit name url; builder = "builtin:fetchurl"; system = "builtin";
    executable = false; unpack = false; preferLocalBuild = true;
  } else {
    inherit name; system = gathered.system; builder = "${busybox}/bin/sh";
    args = [ "-c" script ]; PATH = "${busybox}/bin";
  })
)
"""

_SERVER = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        print(self.path, self.headers.get("Authorization"), flush=True)
        self.send_response(200); self.end_headers(); self.wfile.write(b"host\\n")
    def log_message(self, *args): pass
http.server.HTTPServer((sys.argv[1], int(sys.argv[2])), Handler).serve_forever()
"""


def launch(incus: Incus, *options: str, name: str = "", nic: bool = True, **config: str) -> str:
    """An instance with the expression in /root/build.nix."""
    name = incus.init(*options, name=name, flake="/etc/nixos#web", **config)
    if not nic:
        incus("config", "device", "add", name, "eth0", "none")
    incus.start(name)
    incus.wait_ready(name)
    for path, text in (
        ("/root/build.nix", EXPRESSION),
        ("/root/deps.json", incus.host.run(["cat", "/etc/nixos/deps.json"]).stdout),
    ):
        incus.sh(name, f"cat >{path}", input=text)
    return name


def command(script: str, *options: str, name: str = "", fixed: bool = False, url: str = "") -> str:
    """The command line, for a shell inside, that builds `script`."""
    name = name or f"probe-{uuid.uuid4().hex}"
    arguments = ["--argstr", "name", name, "--argstr", "script", script]
    arguments += ["--arg", "fixed", "true"] if fixed else []
    arguments += ["--argstr", "url", url] if url else []
    return shlex.join(["nix-build", "--no-out-link", *arguments, *options, "/root/build.nix"])


def file_inside(incus: Incus, name: str, path: str) -> str:
    """Read from the host, since output of incus exec may get lost."""
    return incus.host.run(["cat", f"/proc/{incus.pid(name)}/root{path}"]).stdout


def attempt(
    incus: Incus, name: str, script: str, *options: str, fixed: bool = False, url: str = ""
) -> tuple[int, str]:
    """The exit status of a build inside, and its log."""
    line = command(script, *options, fixed=fixed, url=url)
    incus.sh(name, f"set +e; {line} >/root/log 2>&1; echo $? >/root/status", timeout=200)
    return int(file_inside(incus, name, "/root/status")), file_inside(incus, name, "/root/log")


def begin(incus: Incus, name: str, line: str) -> None:
    """Run a command line inside in the background."""
    incus.sh(name, f"setsid sh -c {shlex.quote(line)} </dev/null >/dev/null 2>&1 &")


@contextlib.contextmanager
def web_server(
    host: Host, port: int, address: str = "127.0.0.1", *, netns_of: int = 0
) -> Iterator[str]:
    """A web server on the host, or in the network namespace of process `netns_of`.

    The block gets the path of a file: a line for each request, with the path and the credentials.
    """
    unit = f"web-{uuid.uuid4().hex}"
    log = f"/root/{unit}"
    enter = ["nsenter", "-n", "-t", str(netns_of)] if netns_of else []
    options = [f"--unit={unit}", f"--property=StandardOutput=file:{log}", "--quiet"]
    serve = [*enter, "python3", "-I", "-c", _SERVER, address, str(port)]
    host.run(["systemd-run", *options, *serve])
    look = shlex.join([*enter, "ss", "-Htln", "sport", "=", f":{port}"])
    host.sh(f'until [ -n "$({look})" ]; do sleep 0.05; done', timeout=120)
    try:
        yield log
    finally:
        host.run(["systemctl", "stop", unit])


def requests(host: Host, log: str) -> list[str]:
    return host.run(["cat", log]).stdout.splitlines()
