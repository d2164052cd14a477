# A complete small system: static busybox and a Nix client, with the layout of a NixOS toplevel.
{
  deps, # store paths by name, and "system"
  name,
  version ? "1",
  extra ? { }, # more files in /etc: text by path
  usr ? null, # the target of the link /usr; null: a /usr with bin/env, as NixOS has it, and bin/sh
  path ? [ ], # directories with programs that take precedence over those of busybox
  activate ? "", # more commands of the activation; _status=N makes it end with exit status N
  switch ? null, # the commands of switch-to-configuration switch|test; null: the activation alone
  dryActivate ? ":", # the commands of switch-to-configuration dry-activate
  init ? null, # the program that is PID 1 once the system is activated; null: a shell
}:
let
  inherit (deps) busybox nix;
  out = builtins.placeholder "out";

  files = {
    # This script names the system by its store path, because a profile link starts it as PID 1.
    "init" = ''
      #!${busybox}/bin/sh
      # Incus sends SIGPWR to stop a container, or SIGRTMIN+3 (37) if PID 1 is systemd. halt and poweroff of busybox send
      # USR1 and USR2.
      trap 'exit 0' PWR TERM USR1 USR2 37
      ${out}/activate
      ln -sfn ${out} /run/booted-system
      export PATH=${out}/sw/bin
      echo "Welcome to ${name} ${version}"
      ${if init == null then shellInit else "exec ${init}"}
    '';

    # This script runs at boot and at every switch. The root file system is empty, or has another of these systems.
    "activate" = ''
      #!${busybox}/bin/sh
      export PATH=${out}/sw/bin
      mkdir -p /etc /root /run /tmp /var
      chmod 1777 /tmp
      grep -q ' /run ' /proc/mounts || mount -t tmpfs -o mode=755,nosuid,nodev tmpfs /run
      ln -sfn ${if usr == null then "${out}/usr" else usr} /usr
      ln -sfn usr/bin /bin
      touch /etc/NIXOS
      ln -sfn ${out}/etc /etc/static
      for link in /etc/*; do
        case $(readlink "$link") in
          /etc/static/*) [ -e "$link" ] || rm "$link" ;;
        esac
      done
      for file in /etc/static/*; do
        ln -sfn "$file" /etc
      done
      ${activate}
      ln -sfn ${out} /run/current-system
      exit "''${_status:-0}"
    '';

    "bin/switch-to-configuration" = ''
      #!${busybox}/bin/sh
      case $1 in
        switch | test) ${if switch == null then "exec ${out}/activate" else switch} ;;
        dry-activate) ${dryActivate} ;;
        boot) ;;
        *)
          echo "usage: $0 switch|boot|test|dry-activate" >&2
          exit 1
          ;;
      esac
    '';

    # The libraries lie beside nix. Only the dynamic linker beside them finds them there.
    "sw/bin/nix" = ''
      #!${busybox}/bin/sh
      exec ${nix}/lib/ld.so --argv0 "''${0##*/}" --library-path ${nix}/lib ${nix}/bin/nix "$@"
    '';

    "system" = deps.system;
    "nixos-version" = version;
  }
  // (if init == null then shellFiles else { });

  # Files of a system that has a shell as PID 1.
  shellFiles = {
    # udhcpc calls this script with the answer of the server in the environment.
    "lib/udhcpc" = ''
      #!${busybox}/bin/sh
      case $1 in
        deconfig)
          ip -4 address flush dev "$interface"
          ip link set "$interface" up
          ;;
        bound | renew)
          ip address replace "$ip/$mask" dev "$interface"
          [ -z "$router" ] || ip route replace default via "''${router%% *}"
          [ -z "$dns" ] || printf 'nameserver %s\n' $dns >/etc/resolv.conf
          ;;
      esac
    '';

    # reboot of busybox would send a signal to PID 1, and a shell cannot restart the container.
    "sw/bin/reboot" = ''
      #!${busybox}/bin/sh
      exec ${busybox}/bin/busybox reboot -f
    '';
  };

  shellInit = ''
    ip link set lo up
    # An address that inx has set stays.
    if [ -e /sys/class/net/eth0 ] && ! ip -4 address show dev eth0 | grep -q inet; then
      udhcpc -f -i eth0 -x "hostname:$(hostname)" -s ${out}/lib/udhcpc &
    fi
    # `wait` also reaps the orphans that PID 1 inherits. Without a child, `wait` returns at once.
    while :; do
      sleep 86400 &
      wait
    done
  '';

  etc = {
    passwd = ''
      root:x:0:0:root:/root:/bin/sh
      nobody:x:65534:65534:nobody:/:/bin/false
    '';
    group = ''
      root:x:0:
      nogroup:x:65534:
    '';
    hosts = ''
      127.0.0.1 localhost
      ::1 localhost
    '';
    "nix/nix.conf" = ''
      experimental-features = nix-command flakes
    '';
  }
  // extra;

  lines = f: set: builtins.concatStringsSep "\n" (builtins.attrValues (builtins.mapAttrs f set));

  write = path: text: ''
    mkdir -p "$(dirname ${out}/${path})"
    printf %s ${quote text} >${out}/${path}
    ${if builtins.substring 0 2 text == "#!" then "chmod +x ${out}/${path}" else ""}
  '';
  quote = text: "'" + builtins.replaceStrings [ "'" ] [ "'\\''" ] text + "'";
in
derivation {
  name = "nixos-system-${name}-${version}";
  inherit (deps) system;
  builder = "${busybox}/bin/sh";
  PATH = "${busybox}/bin";
  args = [
    "-euc"
    ''
      ${lines write files}
      ${lines (name: write "etc/${name}") etc}
      mkdir -p ${out}/usr/bin
      ln -s ${busybox}/bin/sh ${busybox}/bin/env ${out}/usr/bin
      cd ${out}/sw/bin
      for tool in build channel collect-garbage copy-closure env hash instantiate prefetch-url shell store; do
        ln -s nix "nix-$tool"
      done
      for program in ${toString (map (dir: "${dir}/*") path)} ${busybox}/bin/*; do
        [ -e "''${program##*/}" ] || ln -s "$program" .
      done
    ''
  ];
}
