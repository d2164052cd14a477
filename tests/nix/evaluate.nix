# Evaluate the modules with a configuration, and give the values that can be checked without NixOS. `name` names a
# configuration of cases.nix; `case` replaces this configuration.
{
  name,
  lib ? import <nixpkgs/lib>,
  case ? (import ./cases.nix { inherit lib; }).${name},
}:
let
  pkgs = import ./nixpkgs/nixos/pkgs.nix { inherit lib; };

  evaluated =
    module:
    (lib.evalModules {
      specialArgs = { inherit pkgs; };
      modules = [
        ./nixpkgs/nixos/options.nix
        module
        case
      ];
    }).config;

  result =
    config: more:
    {
      wrong = map (check: check.message) (lib.filter (check: !check.assertion) config.assertions);
      inherit (config) warnings;
    }
    // more;

  host =
    let
      config = evaluated ../../nix/host.nix;
    in
    result config {
      etc = lib.mapAttrs (_: file: file.source) config.environment.etc;
      firewall = config.networking.firewall.interfaces;
      hosts = config.networking.extraHosts;
      inherit (config.systemd) services sockets;
      packages = config.systemd.packages;
      inherit (config.boot.kernel) sysctl;
      tmpfiles = config.systemd.tmpfiles.rules;
      users = lib.attrNames config.users.users;
      inherit (config.virtualisation.incus) enable preseed;
      ssh = lib.optionalAttrs config.nix.sshServe.enable {
        serve = config.nix.sshServe;
        caches = config.nix.settings.trusted-substituters;
        allowed = config.nix.settings.extra-allowed-users;
        inherit (config.programs.ssh) knownHosts extraConfig;
      };
    };

  container =
    let
      config = evaluated ../../nix/container.nix;
    in
    result config {
      inherit (config.boot) isContainer;
      etcOverlay = config.system.etc.overlay.enable;
      nixosInit = config.system.nixos-init.enable;
      nix = {
        inherit (config.nix) settings;
        gc = config.nix.gc.automatic;
        optimise = config.nix.optimise.automatic;
      };
      inherit (config.networking) hostName useNetworkd useDHCP;
      inherit (config.systemd.network) networks;
      waits = config.systemd.network.wait-online.enable;
      inherit (config.systemd) services sockets;
      inherit (config.systemd) generators;
      sysctl = config.boot.kernel.sysctl;
      packages = config.systemd.packages;
      settings = config.systemd.tmpfiles.settings;
      tmpfiles = config.systemd.tmpfiles.rules;
    };
in
if lib.hasPrefix "inside" name then container else host
