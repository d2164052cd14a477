# For the configuration of a container that inx runs: what NixOS needs to be at home in one.
#
# A configuration that has `boot.isContainer = true` alone boots as well; docs/nixos.md says what it lacks.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.virtualisation.inx.container;

  # Stronger than what a configuration that is shared with other machines says, weaker than mkForce.
  override = lib.mkOverride 90;
in
{
  options.virtualisation.inx.container.dhcp = lib.mkOption {
    type = lib.types.listOf lib.types.str;
    default = [ "eth0" ];
    example = [ ];
    description = ''
      Interfaces that ask for an address. Others are left as Incus and inx set them up
      (`user.inx.net.*`).
    '';
  };

  config = {
    boot.isContainer = true;

    # The store is the host's: every Nix client asks the daemon that inx has for this instance, also by sudo and from
    # services; collecting and optimising are the host's affair.
    nix.settings.store = lib.mkDefault "daemon";
    nix.gc.automatic = override false;
    nix.optimise.automatic = override false;
    systemd.services.nix-daemon.enable = override false;
    systemd.sockets.nix-daemon.enable = override false;

    # Nix makes these only where it runs as root; home-manager and nix-env of users expect them.
    systemd.tmpfiles.rules = [
      "d /nix/var/nix/profiles/per-user 0755 root root -"
      "d /nix/var/nix/gcroots/per-user 0755 root root -"
    ]
    ++ lib.concatMap (user: [
      "d /nix/var/nix/profiles/per-user/${user.name} 0755 ${user.name} root -"
      "d /nix/var/nix/gcroots/per-user/${user.name} 0755 ${user.name} root -"
    ]) (lib.filter (user: user.isNormalUser) (lib.attrValues config.users.users));

    # Which of systemd's sandboxing and credentials a container may use depends on security.nesting: this generator, which
    # Incus' own images have, looks at boot.
    systemd.packages = [ pkgs.distrobuilder.generator ];

    # The instance's own name, also after a copy or rename.
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
            # Static addresses that inx gave it are not networkd's to take away.
            KeepConfiguration = lib.mkDefault "static";
          };
          # A copy keeps the machine-id.
          dhcpV4Config.ClientIdentifier = lib.mkDefault "mac";
        }
      ) cfg.dhcp
    );
    systemd.network.wait-online.enable = lib.mkDefault (cfg.dhcp != [ ]);
    # With a writable /sys, which Incus gives, networkd waits for udev to name its links; there is none in a container.
    systemd.services.systemd-networkd = lib.mkIf config.systemd.network.enable {
      serviceConfig.BindReadOnlyPaths = [ "/sys" ];
    };

    # For `incus console`.
    systemd.services.console-getty.enable = lib.mkOverride 900 true;
  };
}
