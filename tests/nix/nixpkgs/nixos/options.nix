# Stand-ins for the options of NixOS that the modules of inx set, with the types that decide how definitions merge.
{ config, lib, ... }:
let
  inherit (lib) mkOption types;
  option = type: default: mkOption { inherit type default; };
  any = types.attrsOf types.anything;
  # Definitions of one unit are merged.
  units = types.attrsOf (types.submodule { freeformType = any; });
  # Only options that nixos/lib/systemd-unit-options.nix has.
  socket = {
    enable = option types.bool true;
    wantedBy = option (types.listOf types.str) [ ];
    restartTriggers = option (types.listOf types.unspecified) [ ];
    socketConfig = option any { };
    unitConfig = option any { };
  };
  service = {
    inherit (socket)
      enable
      wantedBy
      restartTriggers
      unitConfig
      ;
    after = option (types.listOf types.str) [ ];
    description = option types.str "";
    environment = option (types.attrsOf types.str) { };
    path = option (types.listOf types.unspecified) [ ];
    preStop = option types.lines "";
    restartIfChanged = option types.bool true;
    script = option types.lines "";
    serviceConfig = option any { };
    stopIfChanged = option types.bool true;
    wants = option (types.listOf types.str) [ ];
  };
  closed = options: types.attrsOf (types.submodule { inherit options; });
  # The type of pkgs.formats.yaml.
  yaml = types.nullOr (
    types.oneOf [
      types.bool
      types.int
      types.float
      types.str
      types.path
      (types.attrsOf yaml)
      (types.listOf yaml)
    ]
  );
in
{
  options = {
    assertions = option (types.listOf types.unspecified) [ ];
    warnings = option (types.listOf types.str) [ ];

    boot.isContainer = option types.bool false;
    boot.kernel.sysctl = option (types.attrsOf types.anything) { };

    system.etc.overlay.enable = option types.bool false;
    system.nixos-init.enable = option types.bool false;

    environment.etc = option (types.attrsOf (
      types.submodule { options.source = mkOption { type = types.unspecified; }; }
    )) { };
    environment.systemPackages = option (types.listOf types.unspecified) [ ];

    networking = {
      firewall.allowedTCPPorts = option (types.listOf types.port) [ ];
      firewall.enable = option types.bool true;
      firewall.interfaces = option any { };
      extraHosts = option types.lines "";
      hostName = option types.str "nixos";
      nftables.enable = option types.bool false;
      proxy.envVars = option (types.attrsOf types.str) { };
      useDHCP = option types.bool true;
      useHostResolvConf = option types.bool false;
      useNetworkd = option types.bool false;
    };

    nix = {
      daemonUser = option types.str "root";
      enable = option types.bool true;
      envVars = option (types.attrsOf types.str) { };
      gc.automatic = option types.bool false;
      gc.dates = option types.str "03:15";
      gc.options = option types.str "";
      nixPath = option (types.listOf types.str) [ "nixpkgs=/etc/nixpkgs" ];
      optimise.automatic = option types.bool false;
      package = option types.unspecified {
        name = "nix";
        version = "2.31.2";
      };
      # nixos/modules/services/misc/nix-ssh-serve.nix
      sshServe = {
        enable = option types.bool false;
        keys = option (types.listOf types.str) [ ];
        protocol = option (types.enum [
          "ssh"
          "ssh-ng"
        ]) "ssh";
        write = option types.bool false;
      };
      settings = option (types.submodule {
        freeformType = any;
        options.allowed-users = option (types.listOf types.str) [ "*" ];
      }) { };
    };

    nixpkgs.flake.source = option (types.nullOr (types.either types.str types.path)) null;
    nixpkgs.hostPlatform = option types.unspecified null;

    programs.ssh = {
      extraConfig = option types.lines "";
      knownHosts = option (closed {
        publicKey = option (types.nullOr types.str) null;
      }) { };
      package = option types.unspecified { name = "openssh"; };
    };

    services = option any { };

    system.build.toplevel = option types.unspecified null;
    system.stateVersion = option types.str "26.05";

    systemd = {
      generators = option (types.attrsOf types.str) { };
      network.enable = option types.bool config.networking.useNetworkd;
      network.networks = option units { };
      network.wait-online.enable = option types.bool true;
      package = option types.unspecified { name = "systemd"; };
      packages = option (types.listOf types.unspecified) [ ];
      services = option (closed service) { };
      sockets = option (closed socket) { };
      tmpfiles.settings = option any { };
      tmpfiles.rules = option (types.listOf types.str) [ ];
    };

    users.groups = option units { };
    users.users = option (types.attrsOf (
      types.submodule (
        { name, ... }:
        {
          freeformType = any;
          options.name = option types.str name;
          options.isNormalUser = option types.bool false;
        }
      )
    )) { };

    virtualisation.incus = {
      enable = option types.bool false;
      package = option types.unspecified {
        name = "incus-lts";
        version = "6.0.6";
      };
      preseed = option (types.nullOr (types.submodule { freeformType = yaml; })) null;
    };
  };
}
