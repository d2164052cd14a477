"""What Nix does inside an instance with a store of its own: fetch, install, and fill the disk."""

import pytest
from support.incus import Incus
from support.isolated import restart
from support.own import BIG, NIX_CONFIG, build, is_right, own, part_of, system
from support.storage import small_pool
from support.store import NIX

pytestmark = pytest.mark.isolated

APP = """
let
  gathered = builtins.fromJSON (builtins.readFile /etc/nixos/deps.json);
  box = builtins.storePath gathered.busybox;
in
derivation {
  name = "app-%(token)s";
  inherit (gathered) system;
  PATH = "${box}/bin";
  builder = "${box}/bin/sh";
  args = [ "-euc" "mkdir -p $out/bin; printf '#!${box}/bin/sh\\necho works\\n' >$out/bin/app; chmod +x $out/bin/app" ];
}
"""  # noqa: E501
PORT = 8123


def test_nix_fetches_from_a_cache_on_the_network_of_the_container(incus: Incus) -> None:
    host, token = incus.host, incus.prefix
    host.sh('cat >"$P"', env={"P": f"/srv/{token}-app.nix"}, input=APP % {"token": token})
    app = host.run(["nix-build", "--no-out-link", f"/srv/{token}-app.nix"]).stdout.strip()
    host.run([*NIX, "copy", "--to", f"file:///srv/{token}-cache", app])
    address = host.sh("ip -4 -o addr show dev incusbr0 | awk '{ print $4 }'").stdout.split("/")[0]
    server = ["python3", "-m", "http.server", str(PORT), "--bind", address]
    unit = f"{token}-cache"
    options = [f"--unit={unit}", f"--working-directory=/srv/{token}-cache"]
    host.run(["systemd-run", "--quiet", *options, *server])
    try:
        name = own(incus, system(incus, 1))
        incus.eventually(
            lambda: incus.inside(name, "ip -4 -o addr show dev eth0 | grep -q inet"), incus.story
        )
        assert not incus.inside(name, f"test -e {app}")
        config = f"substituters = http://{address}:{PORT}\nrequire-sigs = false\n{NIX_CONFIG}"
        script = f"""
            export HOME=/root USER=root NIX_CONFIG='{config}'
            nix-store -r {app}
            [ "$({app}/bin/app)" = works ]
            nix-env -i {app}
            nix profile install --profile /root/profile {app}
            nix-collect-garbage -d
            [ "$(/nix/var/nix/profiles/default/bin/app)" = works ]
            [ "$(/root/profile/bin/app)" = works ]
        """
        incus.sh(name, script)
        is_right(incus, name)
        inside = incus.sh(name, "ip -4 -o addr show dev eth0 | awk '{ print $4 }'").stdout
        log = host.run(["journalctl", "--quiet", "--no-pager", f"--unit={unit}"]).stdout
        assert inside.split("/")[0] in log, "the container fetches, not the host"
        restart(incus, name)
        incus.wait_ready(name)
        assert incus.inside(name, "[ $(/root/profile/bin/app) = works ]")
        is_right(incus, name)
    finally:
        host.run(["systemctl", "stop", unit])


def test_a_full_disk_ends_a_build_and_delays_a_new_system(incus: Incus) -> None:
    one, two = system(incus, 1), system(incus, 2)
    with small_pool(incus, "size=24m") as pool:
        name = own(incus, one, "-s", pool.name)
        build(incus, name, "small", part_of(incus, one), "/root/small")
        done = incus.sh(name, BIG, check=False)
        assert done.returncode != 0 and "No space left on device" in done.stdout + done.stderr
        is_right(incus, name)
        incus.sh(name, "nix-store --gc")
        build(incus, name, "after", part_of(incus, one), "/root/after")
        is_right(incus, name)

        incus("stop", "-f", name)
        incus.set(name, f"user.inx.system={two}")
        pool.fill()
        incus.start(name)
        incus.wait_status(name, ".*the Nix database inside .* cannot be written: its disk is full")
        incus.wait_inside(name)
        assert incus.inside(name, f"[ $(readlink -f /run/current-system) = {one} ]")
        pool.empty()
        incus("restart", "-f", name)
        incus.wait_ready(name)
        assert incus.inside(name, f"[ $(readlink -f /run/current-system) = {two} ]")
        is_right(incus, name)
