# Options that nix/container.nix and usual configurations set. What system.nix does not use changes nothing.
{ config, lib, ... }:
let
  inherit (lib) mkEnableOption mkOption types;
  option = type: default: mkOption { inherit type default; };
  any = types.attrsOf types.anything;
  texts = types.listOf types.str;
  unit = {
    freeformType = any;
    options.enable = option types.bool true;
    options.script = option types.lines "";
    options.serviceConfig = option any { };
    options.wantedBy = option texts [ ];
  };
  units = types.attrsOf (types.submodule unit);
in
{
  options = {
    assertions = option (types.listOf types.unspecified) [ ];
    warnings = option texts [ ];

    boot.isContainer = option types.bool false;
    boot.kernel.sysctl = option any { };

    environment = {
      etc = option (types.attrsOf (
        types.submodule (
          { config, ... }:
          {
            options.enable = option types.bool true;
            options.text = option (types.nullOr types.lines) null;
            options.source = mkOption { type = types.path; };
            options.mode = option types.str "symlink";
          }
        )
      )) { };
      systemPackages = option (types.listOf types.package) [ ];
      variables = option (types.attrsOf types.str) { };
    };

    i18n.defaultLocale = option types.str "en_US.UTF-8";

    networking = {
      firewall = {
        allowedTCPPorts = option (types.listOf types.port) [ ];
        allowedUDPPorts = option (types.listOf types.port) [ ];
        enable = option types.bool true;
      };
      hostName = option types.str "nixos";
      nameservers = option texts [ ];
      useDHCP = option types.bool true;
      useHostResolvConf = option types.bool false;
      useNetworkd = option types.bool false;
    };

    nix = {
      gc.automatic = option types.bool false;
      gc.dates = option types.str "03:15";
      gc.options = option types.str "";
      optimise.automatic = option types.bool false;
      registry = option any { };
      settings = option any { };
    };

    nixpkgs = {
      config = option any { };
      flake.source = option (types.nullOr types.str) null;
      hostPlatform = mkOption { type = types.either types.str types.attrs; };
      overlays = option (types.listOf types.unspecified) [ ];
      pkgs = mkOption { type = types.unspecified; };
      system = mkOption { type = types.str; };
    };

    programs.git.enable = mkEnableOption "git";
    programs.vim.enable = mkEnableOption "vim";

    services.nginx = {
      enable = mkEnableOption "Nginx Web Server";
      virtualHosts = option (types.attrsOf (
        types.submodule {
          options.root = option (types.nullOr types.path) null;
          options.default = option types.bool false;
          options.locations = option any { };
        }
      )) { };
      appendConfig = option types.lines "";
    };
    services.openssh.enable = mkEnableOption "the OpenSSH secure shell daemon";
    services.openssh.settings = option any { };
    services.postgresql.enable = mkEnableOption "PostgreSQL Server";

    system = {
      build = option (types.attrsOf types.unspecified) { };
      etc.overlay.enable = option types.bool false;
      name = option types.str (if config.networking.hostName == "" then "unnamed" else config.networking.hostName);
      nixos = {
        label = option types.str config.system.nixos.version;
        release = mkOption { readOnly = true; type = types.str; default = lib.trivial.release; };
        revision = option (types.nullOr types.str) (lib.trivial.revisionWithDefault null);
        version = option types.str (config.system.nixos.release + config.system.nixos.versionSuffix);
        versionSuffix = option types.str lib.trivial.versionSuffix;
      };
      nixos-init.enable = option types.bool false;
      activationScripts = option (types.attrsOf types.lines) { };
    };

    systemd = {
      generators = option (types.attrsOf types.path) { };
      network.enable = option types.bool config.networking.useNetworkd;
      network.networks = option (types.attrsOf (types.submodule { freeformType = any; })) { };
      network.wait-online.enable = option types.bool true;
      services = option units { };
      sockets = option units { };
      timers = option units { };
      tmpfiles.rules = option texts [ ];
      tmpfiles.settings = option any { };
    };

    time.timeZone = option (types.nullOr types.str) null;

    users.groups = option (types.attrsOf (types.submodule { freeformType = any; })) { };
    users.users = option (types.attrsOf (
      types.submodule (
        { name, ... }:
        {
          options.name = option types.str name;
          options.description = option types.str "";
          options.extraGroups = option texts [ ];
          options.home = option types.path "/home/${name}";
          options.isNormalUser = option types.bool false;
          options.isSystemUser = option types.bool false;
          options.group = option types.str "";
          options.openssh.authorizedKeys.keys = option texts [ ];
          options.packages = option (types.listOf types.package) [ ];
          options.uid = option (types.nullOr types.int) null;
        }
      )
    )) { };
  };
}
