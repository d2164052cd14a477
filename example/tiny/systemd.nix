# A small system with the systemd of Debian (see gather) as PID 1, with D-Bus and networkd, as in NixOS.
{
  deps,
  name,
  version ? "1",
  extra ? { },
  snippets ? { }, # more snippets of the activation: shell text by name
}:
let
  inherit (deps) systemd;
  out = builtins.placeholder "out";

  # As in NixOS, a snippet that fails is named, and the next one runs.
  activation = {
    usr = ''
      for dir in lib lib64 sbin; do
        ln -sfn "usr/$dir" "/$dir"
      done
    '';
    # Without a machine-id, systemd treats each boot as the first boot, and asks questions on the console.
    machine-id = ''
      [ -s /etc/machine-id ] || tr -d - </proc/sys/kernel/random/uuid >/etc/machine-id
    '';
  }
  // snippets;
  snippet = snippetName: text: ''
    (
      set -e
      ${text}
    )
    _localstatus=$?
    if [ $_localstatus -gt 0 ]; then
      _status=1
      printf "Activation script snippet '%s' failed (%s)\n" ${snippetName} $_localstatus
    fi
  '';
  # The services that run and whose unit files differ.
  changed = ''
    export PATH=${out}/sw/bin
    changed=
    for unit in ${out}/etc/systemd/system/*.service; do
      name=''${unit##*/}
      systemctl is-active --quiet "$name" || continue
      cmp -s "$unit" "/etc/systemd/system/$name" || changed="$changed $name"
    done
  '';
in
import ./system.nix {
  inherit deps name version;

  usr = "${systemd}/usr";
  path = [
    "${systemd}/usr/bin"
    "${systemd}/usr/sbin"
  ];

  activate = builtins.concatStringsSep "\n" (builtins.attrValues (builtins.mapAttrs snippet activation));

  # What switch-to-configuration of NixOS does, as far as it concerns a system without users that log in: it activates,
  # reloads systemd, applies tmpfiles, restarts services that changed, starts new ones, and reports units that failed.
  switch = ''
    ${changed}
    echo "activating the configuration..." >&2
    result=0
    ${out}/activate || {
      echo "Failed to run activate script" >&2
      result=2
    }
    systemctl reset-failed
    systemctl daemon-reload
    echo "restarting sysinit-reactivation.target" >&2
    systemd-tmpfiles --create --remove --exclude-prefix=/dev
    if [ -n "$changed" ]; then
      echo "restarting the following units: $(echo $changed | sed 's/ /, /g')" >&2
      systemctl restart $changed || result=4
    fi
    systemctl start multi-user.target || result=4
    failed=$(systemctl list-units --failed --plain --no-legend | cut -d " " -f 1 | sort)
    if [ -n "$failed" ]; then
      echo "warning: the following units failed: $(echo $failed | sed 's/ /, /g')" >&2
      systemctl status --no-pager --full $failed >&2
      result=4
    fi
    exit $result
  '';

  dryActivate = ''
    ${changed}
    echo "would activate the configuration..." >&2
    if [ -n "$changed" ]; then
      echo "would restart the following units: $(echo $changed | sed 's/ /, /g')" >&2
    fi
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
