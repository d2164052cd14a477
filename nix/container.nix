# The module for the configuration of a container that inx runs: it adapts NixOS to Incus and inx.
#
# A configuration with `boot.isContainer = true` and without this module boots as well. docs/nixos.md says what it lacks.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.virtualisation.inx.container;
  own = cfg.ownStore;

  # Stronger than the definitions of a configuration that other machines share, weaker than mkForce.
  override = lib.mkOverride 90;
in
{
  options.virtualisation.inx.container.dhcp = lib.mkOption {
    type = lib.types.listOf lib.types.str;
    default = [ "eth0" ];
    example = [ ];
    description = ''
      Interfaces that ask for an address by DHCP. Other interfaces stay as Incus and inx set them up
      (`user.inx.net.*`).
    '';
  };

  options.virtualisation.inx.container.ownStore = lib.mkOption {
    type = lib.types.bool;
    default = false;
    description = ''
      Whether Nix works inside, for an instance with `user.inx.store=own`: its nix-daemon runs. Once a week its garbage
      collector deletes generations that are older than 30 days, and all that nothing inside uses.
    '';
  };

  config = {
    boot.isContainer = true;

    # Both need file systems that an unprivileged container cannot mount: erofs, and an overlay with trusted attributes.
    # nixos-init needs the overlay, and an initrd.
    system.etc.overlay.enable = override false;
    system.nixos-init.enable = override false;

    # Without a store of its own: the store belongs to the host. Every Nix client, also with sudo and in services, asks the
    # nix-daemon that inx runs for this instance. The host collects garbage and optimises the store.
    nix.settings.store = lib.mkIf (!own) (lib.mkDefault "daemon");
    nix.gc.automatic = if own then lib.mkDefault true else override false;
    nix.gc.dates = lib.mkIf own (lib.mkDefault "weekly");
    nix.gc.options = lib.mkIf own (lib.mkDefault "--delete-older-than 30d");
    # In a store of its own, it fails at the files that the host shows.
    nix.optimise.automatic = override false;
    systemd.services.nix-daemon.enable = lib.mkIf (!own) (override false);
    systemd.sockets.nix-daemon.enable = lib.mkIf (!own) (override false);

    # Nix makes these directories only if Nix runs as root. home-manager and nix-env of users need them.
    systemd.tmpfiles.rules = [
      "d /nix/var/nix/profiles/per-user 0755 root root -"
      "d /nix/var/nix/gcroots/per-user 0755 root root -"
    ]
    ++ lib.concatMap (user: [
      "d /nix/var/nix/profiles/per-user/${user.name} 0755 ${user.name} root -"
      "d /nix/var/nix/gcroots/per-user/${user.name} 0755 ${user.name} root -"
    ]) (lib.filter (user: user.isNormalUser) (lib.attrValues config.users.users));

    # NixOS makes this directory immutable where root may do that: in a privileged container. Incus then cannot delete the
    # instance. systemd-tmpfiles applies the lines for one path in the order of the names of their files.
    systemd.tmpfiles.settings.zz-inx."/var/empty".h.argument = "-i";

    # On a host with AppArmor, without security.nesting, AppArmor refuses mounts that the sandboxing and the credentials of
    # services need. There, this generator of the images of Incus takes both from all units, so that they start. On other
    # hosts all of it works.
    systemd.generators.inx-apparmor = "${pkgs.writeShellScript "inx-apparmor-generator" ''
      parameter=/sys/module/apparmor/parameters/enabled
      [ -e $parameter ] && read -r enabled <$parameter && [ "$enabled" = Y ] || exit 0
      exec ${pkgs.distrobuilder.generator}/lib/systemd/system-generators/lxc "$@"
    ''}";

    # NixOS lets all groups use ping. The kernel refuses group ids that a user namespace does not have, and the unit that
    # sets them fails. Stronger than the default of NixOS, weaker than a definition of the configuration.
    boot.kernel.sysctl."net.ipv4.ping_group_range" = lib.mkOverride 900 "0 65534";

    # The host name is the name of the instance, also after a copy or a rename.
    networking.hostName = lib.mkDefault "";

    networking.useDHCP = lib.mkDefault false;
    networking.useNetworkd = lib.mkDefault true;
    networking.useHostResolvConf = lib.mkOverride 900 false;
    systemd.network.networks = lib.listToAttrs (
      map (
        name:
        lib.nameValuePair "10-${name}" {
          matchConfig.Name = name;
          networkConfig = {
            DHCP = lib.mkDefault "yes";
            # networkd must not remove the static addresses that inx set.
            KeepConfiguration = lib.mkDefault "static";
          };
          # A copied instance has the machine-id of its original.
          dhcpV4Config.ClientIdentifier = lib.mkDefault "mac";
          # The host name is that of the instance; networkd has no hostnamed to set another one.
          dhcpV4Config.UseHostname = lib.mkDefault false;
          dhcpV6Config.UseHostname = lib.mkDefault false;
        }
      ) cfg.dhcp
    );
    systemd.network.wait-online.enable = lib.mkDefault (cfg.dhcp != [ ]);
    # Incus makes /sys writable. With a writable /sys, networkd waits until udev has announced the interfaces. A container
    # runs no udev.
    systemd.services.systemd-networkd = lib.mkIf config.systemd.network.enable {
      serviceConfig.BindReadOnlyPaths = [ "/sys" ];
    };

    # For `incus console`.
    systemd.services.console-getty.enable = lib.mkOverride 900 true;
  };
}
