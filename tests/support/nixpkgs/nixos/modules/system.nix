# The system: a small one of example/tiny, with a file for each option that a test may ask for.
{
  config,
  lib,
  options,
  pkgs,
  ...
}:
let
  inherit (lib) concatLines mapAttrsToList mkDefault mkIf;
  cfg = config.system;
  nixpkgs = config.nixpkgs;

  platform =
    if options.nixpkgs.hostPlatform.isDefined then
      nixpkgs.hostPlatform.system or nixpkgs.hostPlatform
    else if options.nixpkgs.system.isDefined then
      nixpkgs.system
    else
      throw "Neither nixpkgs.hostPlatform nor the legacy option nixpkgs.system has been set.\nYou can set nixpkgs.hostPlatform in hardware-configuration.nix by re-running\na recent version of nixos-generate-config.\nThe option nixpkgs.system is still fully supported for NixOS 22.05 interoperability,\nbut will be deprecated in the future, so we recommend to set nixpkgs.hostPlatform.";

  users = lib.filter (user: user.isNormalUser || user.isSystemUser) (lib.attrValues config.users.users);
  units =
    kind:
    lib.mapAttrs' (name: unit: lib.nameValuePair "systemd/system/${name}.${kind}" { text = unitText unit; }) (
      lib.filterAttrs (_: unit: unit.enable) config.systemd.${kind + "s"}
    );
  unitText = unit: "[Service]\n${concatLines (mapAttrsToList (name: value: "${name}=${toString value}") unit.serviceConfig)}${
    lib.optionalString (unit.script != "") "ExecStart=${pkgs.writeShellScript "script" unit.script}\n"
  }";

  # The text of a file, or the link to its source.
  etc = lib.mapAttrs (_: file: if file.text != null then file.text else builtins.readFile file.source) (
    lib.filterAttrs (_: file: file.enable) config.environment.etc
  );

  tiny = import ../../tiny/system.nix {
    inherit (pkgs) deps;
    inherit (cfg) name;
    version = cfg.nixos.label;
    extra = etc;
    path = map (package: "${package}/bin") config.environment.systemPackages;
    activate = lib.concatStringsSep "\n" (lib.attrValues cfg.activationScripts);
  };
  wrong = map (check: check.message) (lib.filter (check: !check.assertion) config.assertions);
in
{
  options.system.stateVersion = lib.mkOption {
    type = lib.types.str;
    default = cfg.nixos.release;
    apply =
      value:
      lib.warnIf (options.system.stateVersion.highestPrio == 1500)
        "system.stateVersion is not set, defaulting to ${value}. Read why this matters on https://nixos.org/manual/nixos/stable/options.html#opt-system.stateVersion."
        value;
  };

  config = {
    _module.args.pkgs = lib.mkOptionDefault (
      if options.nixpkgs.pkgs.isDefined then
        nixpkgs.pkgs
      else
        import ../../. {
          inherit lib;
          inherit (nixpkgs) config overlays;
          system = platform;
        }
    );

    system.build.toplevel =
      if wrong != [ ] then
        throw "\nFailed assertions:\n${lib.concatMapStringsSep "\n" (message: "- ${message}") wrong}"
      else
        lib.foldl' (system: warning: lib.warn warning system) tiny config.warnings;

    environment.etc = lib.mkMerge [
      (units "service")
      (units "socket")
      {
        "os-release".text = ''
          NAME=NixOS
          ID=nixos
          VERSION_ID="${cfg.nixos.release}"
          BUILD_ID="${cfg.nixos.version}"
        '';
        "nixos-revision".text = if cfg.nixos.revision == null then "null" else cfg.nixos.revision;
        published.text = if builtins.pathExists ../../published then builtins.readFile ../../published else "";
        "state-version".text = cfg.stateVersion;
        "host-platform".text = platform;
        "set-environment".text = concatLines (
          mapAttrsToList (name: value: "export ${name}=${lib.escapeShellArg value}") config.environment.variables
        );
        hostname = mkIf (config.networking.hostName != "") { text = "${config.networking.hostName}\n"; };
        "nix/registry.json" = mkIf (nixpkgs.flake.source != null) {
          text = builtins.toJSON {
            version = 2;
            flakes = [
              {
                exact = true;
                from = { type = "indirect"; id = "nixpkgs"; };
                to = { type = "path"; path = nixpkgs.flake.source; };
              }
            ];
          };
        };
        passwd.text = ''
          root:x:0:0:root:/root:/bin/sh
          ${concatLines (lib.imap1 (n: user: "${user.name}:x:${toString (if user.uid == null then 999 + n else user.uid)}:100:${user.description}:${user.home}:/bin/sh") users)}nobody:x:65534:65534:nobody:/:/bin/false
        '';
        "nginx/nginx.conf" = mkIf config.services.nginx.enable {
          text = concatLines (
            mapAttrsToList (name: host: "server { server_name ${name}; root ${toString host.root}; }") config.services.nginx.virtualHosts
          ) + config.services.nginx.appendConfig;
        };
      }
    ];

    systemd.services.nginx = mkIf config.services.nginx.enable {
      serviceConfig.ExecStart = "${pkgs.nginx}/bin/nginx";
      wantedBy = [ "multi-user.target" ];
    };
    systemd.services.sshd = mkIf config.services.openssh.enable { wantedBy = [ "multi-user.target" ]; };
    system.activationScripts.users = lib.concatMapStrings (user: "mkdir -p ${user.home}\n") users;
    users.users.root = {
      home = "/root";
      uid = 0;
    };
  };
}
