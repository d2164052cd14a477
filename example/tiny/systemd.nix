# A small system with the systemd of Debian (see gather) as PID 1, with D-Bus and networkd, as in NixOS.
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

  # Without a machine-id, systemd treats each boot as the first boot, and asks questions on the console.
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
      # An address that inx has set stays.
      KeepConfiguration=static
      [DHCPv4]
      # Not the machine-id: a copied instance has the machine-id of its original.
      ClientIdentifier=mac
      UseHostname=no
    '';
    # Incus makes /sys writable. Then networkd leaves eth0 "pending" until udev has announced it. This system has no udev.
    # (ReadOnlyPaths= does not change /sys.)
    "systemd/system/systemd-networkd.service.d/container.conf" = ''
      [Service]
      BindReadOnlyPaths=/sys
    '';
    "systemd/system/multi-user.target.d/networkd.conf" = ''
      [Unit]
      Wants=systemd-networkd.service
    '';

    # An empty unit file masks the unit. The first two units need programs that gather does not copy. The last unit adds the
    # users that /etc/passwd above has already.
    "systemd/system/console-getty.service" = "";
    "systemd/system/ldconfig.service" = "";
    "systemd/system/systemd-sysusers.service" = "";
  }
  // extra;
}
