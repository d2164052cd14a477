# A small system whose PID 1 is a real systemd (Debian's, as gathered) with D-Bus and networkd, because that is what NixOS boots.
{
  deps,
  name,
  version ? "1",
  extra ? { },
}:
let
  inherit (deps) systemd;
in
import ./system.nix {
  inherit deps name version;

  usr = "${systemd}/usr";
  path = [
    "${systemd}/usr/bin"
    "${systemd}/usr/sbin"
  ];

  # Without a machine-id systemd takes the boot for the first one and asks questions on the console.
  activate = ''
    for dir in lib lib64 sbin; do
      ln -sfn "usr/$dir" "/$dir"
    done
    [ -s /etc/machine-id ] || tr -d - </proc/sys/kernel/random/uuid >/etc/machine-id
    [ ! -d /run/systemd/system ] || systemctl daemon-reload
  '';

  init = "${systemd}/usr/lib/systemd/systemd";

  extra = {
    passwd = ''
      root:x:0:0:root:/root:/bin/sh
      messagebus:x:101:101:D-Bus:/:/bin/false
      systemd-network:x:102:102:systemd networkd:/:/bin/false
      nobody:x:65534:65534:nobody:/:/bin/false
    '';
    group = ''
      root:x:0:
      adm:x:4:
      tty:x:5:
      utmp:x:43:
      messagebus:x:101:
      systemd-network:x:102:
      systemd-journal:x:103:
      nogroup:x:65534:
    '';

    "systemd/network/eth0.network" = ''
      [Match]
      Name=eth0
      [Network]
      DHCP=yes
      # An address that it was given from outside stays.
      KeepConfiguration=static
      [DHCPv4]
      # Not the machine-id, which a copied instance shares with its original.
      ClientIdentifier=mac
      UseHostname=no
    '';
    # Where networkd can write to /sys, as under Incus, it leaves eth0 "pending" until udev has announced it; there is no udev here.
    # (ReadOnlyPaths= spares /sys.)
    "systemd/system/systemd-networkd.service.d/container.conf" = ''
      [Service]
      BindReadOnlyPaths=/sys
    '';
    "systemd/system/multi-user.target.d/networkd.conf" = ''
      [Unit]
      Wants=systemd-networkd.service
    '';

    # Empty is masked: the first two need programs that are not gathered, the last adds the users that stand above.
    "systemd/system/console-getty.service" = "";
    "systemd/system/ldconfig.service" = "";
    "systemd/system/systemd-sysusers.service" = "";
  }
  // extra;
}
