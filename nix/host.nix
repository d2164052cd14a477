# The module for a NixOS host with inx: `virtualisation.inx.enable = true`, and options that declare containers.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkOption types;

  cfg = config.virtualisation.inx;
  incus = config.virtualisation.incus;

  toml = pkgs.formats.toml { };
  profile = import ./profile.nix { inherit (cfg) pool network; };
  declaration = pkgs.writeText "inx-instances.json" (
    builtins.toJSON {
      version = 1;
      dropped = cfg.droppedContainers;
      instances = lib.mapAttrsToList (import ./instance.nix {
        inherit lib profile;
        incus = incus.package.version or "6.0";
      }) cfg.containers;
    }
  );

  named = kind: name: lib.filter (entry: entry.name or null == name) (incus.preseed.${kind} or [ ]);
  allowedUsers = config.nix.settings.allowed-users or [ "*" ];

  # A switch restarts these units in place: no instance can start between a stop and a start of them.
  unit = more: { stopIfChanged = false; } // more;
in
{
  imports = [
    ./containers.nix
    ./members.nix
  ];

  options.virtualisation.inx = {
    enable = lib.mkEnableOption "NixOS containers on Incus that share this host's Nix store";

    package = mkOption {
      type = types.package;
      default = pkgs.callPackage ./package.nix { };
      defaultText = lib.literalExpression "pkgs.callPackage ./package.nix { }";
      description = "The package of inx.";
    };

    settings = mkOption {
      type = types.submodule {
        freeformType = toml.type;
        options = import ./settings.nix { inherit lib; };
      };
      default = { };
      description = "The settings of the host in {file}`/etc/inx/config.toml`.";
    };

    pool = mkOption {
      type = types.str;
      default = "default";
      description = "The storage pool of the profile `inx`.";
    };

    network = mkOption {
      type = types.str;
      default = "incusbr0";
      description = "The network of the profile `inx`.";
    };

    createPool = mkOption {
      type = types.bool;
      default = true;
      description = "Whether to make the storage pool {option}`pool`, with the driver `dir`, if the pool does not exist.";
    };

    createNetwork = mkOption {
      type = types.bool;
      default = true;
      description = ''
        Whether to make the network {option}`network` if it does not exist. The network is a bridge with addresses that Incus
        chooses. The firewall of the host then allows DHCP and DNS requests from containers on the bridge.
      '';
    };
  };

  config = lib.mkIf cfg.enable {
    assertions = [
      {
        assertion = incus.enable;
        message = "virtualisation.inx needs Incus: set virtualisation.incus.enable = true.";
      }
      {
        assertion = lib.versionAtLeast (incus.package.version or "6.0") "6.0";
        message = "virtualisation.inx needs Incus 6.0 or newer; virtualisation.incus.package is ${incus.package.version}.";
      }
      {
        assertion = config.networking.firewall.enable -> config.networking.nftables.enable;
        message = "virtualisation.inx needs nftables, as Incus does: set networking.nftables.enable = true.";
      }
      {
        assertion = config.nix.enable;
        message = "virtualisation.inx needs Nix on this host: set nix.enable = true.";
      }
      {
        assertion = lib.versionAtLeast (config.nix.package.version or "2.18") "2.18";
        message = "virtualisation.inx needs Nix 2.18 or newer; nix.package is ${config.nix.package.version}.";
      }
      {
        # Only root can enter the directories of roots, and a collector passes over what it cannot read.
        assertion = (config.nix.daemonUser or "root") == "root";
        message = "virtualisation.inx needs a Nix daemon of root, which sees the roots of instances: set nix.daemonUser = \"root\".";
      }
      {
        # A source that several users can change is built by a user of that build alone, in this group.
        assertion = lib.any (who: lib.elem who allowedUsers) [
          "*"
          "@${cfg.settings.build_user}"
        ];
        message = "virtualisation.inx builds as the group ${cfg.settings.build_user}, which may not use Nix: add \"@${cfg.settings.build_user}\" to nix.settings.allowed-users.";
      }
      {
        assertion = cfg.createPool -> lib.length (named "storage_pools" cfg.pool) == 1;
        message = "The storage pool ${cfg.pool} is made by virtualisation.incus.preseed and by virtualisation.inx: set virtualisation.inx.createPool = false.";
      }
      {
        assertion = cfg.createNetwork -> lib.length (named "networks" cfg.network) == 1;
        message = "The network ${cfg.network} is made by virtualisation.incus.preseed and by virtualisation.inx: set virtualisation.inx.createNetwork = false.";
      }
      {
        assertion = lib.length (named "profiles" profile.name) == 1;
        message = "The profile ${profile.name} is the one of virtualisation.inx: give yours in virtualisation.incus.preseed another name, and use both.";
      }
    ];

    warnings =
      lib.optional (lib.versionOlder (incus.package.version or "6.0.6") "6.0.6")
        "virtualisation.inx: Incus ${incus.package.version} lets whoever may edit an instance pass on newlines in environment.* keys to hooks; use 6.0.6 or newer.";

    virtualisation.incus = {
      enable = lib.mkDefault true;
      preseed = {
        profiles = [ profile ];
        storage_pools = lib.mkIf cfg.createPool [
          {
            name = cfg.pool;
            driver = "dir";
          }
        ];
        # Without keys, so that the addresses that Incus has chosen stay when the preseed is applied again.
        networks = lib.mkIf cfg.createNetwork [
          {
            name = cfg.network;
            type = "bridge";
          }
        ];
      };
    };

    networking.nftables.enable = lib.mkDefault true;
    networking.firewall.interfaces = lib.mkIf cfg.createNetwork {
      ${cfg.network} = {
        allowedTCPPorts = [ 53 ];
        allowedUDPPorts = [
          53
          67
          547
        ];
      };
    };

    users.users.${cfg.settings.build_user} = {
      isSystemUser = lib.mkDefault true;
      group = lib.mkDefault cfg.settings.build_user;
      description = lib.mkDefault "inx builds";
      home = lib.mkDefault "/var/lib/inx-build";
    };
    users.groups.${cfg.settings.build_user} = { };

    # These paths never change: the database of Incus and the mounts of containers name them.
    environment.etc = {
      "inx/hooks".source = "${cfg.package}/share/inx/hooks";
      "inx/profile.yaml".source = (pkgs.formats.yaml { }).generate "inx-profile.yaml" profile;
      "inx/config.toml".source = toml.generate "inx-config.toml" cfg.settings;
      "inx/instances.json".source = declaration;
    };
    environment.systemPackages = [ cfg.package ];

    # The nixpkgs of this system, for modules in keys. With flakes it is a store path, which this string keeps; nothing is
    # copied. An instance keeps the nixpkgs of its last build until `user.inx.update` changes, so a newer one rebuilds none.
    virtualisation.inx.settings.nixpkgs = lib.mkDefault (
      toString (if config.nixpkgs.flake.source or null != null then config.nixpkgs.flake.source else pkgs.path)
    );

    # Root of a container with a shared store could take leases on files of the store. A lease holds the next open of the file
    # for up to 45 s. Samba (kernel oplocks) and the NFS server of the kernel (delegations) use leases: set 1 to keep them.
    boot.kernel.sysctl."fs.leases-enable" = lib.mkDefault 0;

    # The package has the units, the same as on every other host.
    systemd.packages = [ cfg.package ];
    systemd.tmpfiles.rules = [
      "d /nix/var/nix/gc-socket 0755 root root -"
      "d /nix/var/nix/gcroots/inx 0700 root root -"
      "d /run/systemd/system.control 0755 root root -"
      "d /var/lib/inx-build 0700 ${cfg.settings.build_user} ${cfg.settings.build_user} -"
      "e /var/log/inx 0700 root root 30d"
    ];
    systemd.sockets.inx-sidecar.wantedBy = [ "sockets.target" ];
    systemd.services = {
      inx-sidecar = unit {
        wantedBy = [ "multi-user.target" ];
        path = [
          config.nix.package
          config.programs.ssh.package
          config.systemd.package
          pkgs.git
        ];
        environment =
          config.networking.proxy.envVars
          # The build of a Nix file finds <nixpkgs> as a build by hand does.
          // lib.optionalAttrs (config.nix.nixPath != [ ]) {
            NIX_PATH = lib.concatStringsSep ":" config.nix.nixPath;
          };
      };
      inx-barrier = unit { wantedBy = [ "multi-user.target" ]; };
      inx-guard = unit { wantedBy = [ "multi-user.target" ]; };
      inx-sync.wantedBy = [ "nix-gc.service" ];
      inx-instances = unit {
        wantedBy = [ "multi-user.target" ];
        restartTriggers = [ declaration ];
      };
      "inx-nix-daemon@" = {
        # A daemon that runs may be building. The next start of an instance uses the new Nix.
        restartIfChanged = false;
        # No variable of config.nix.envVars or of a proxy: they may hold credentials.
        path = [ config.nix.package ];
      };
    };
  };
}
