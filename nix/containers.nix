# virtualisation.inx.containers.NAME: containers that the host declares. What has a word in Incus may also be said in that
# word, by `settings` and `devices`; the options beside them are those that `containers.NAME` of NixOS has.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkOption types;

  cfg = config.virtualisation.inx;

  scalar = types.oneOf [
    types.bool
    types.int
    types.str
  ];
  optional =
    type: example: description:
    mkOption {
      type = types.nullOr type;
      default = null;
      inherit example description;
    };

  wire = {
    hostBridge = optional types.str "br0" "The bridge of the host that the interface is on.";
    hostAddress = optional types.str "10.231.136.1" "The host's IPv4 address on a wire to it alone.";
    hostAddress6 = optional types.str "fc00::1" "The host's IPv6 address on a wire to it alone.";
    localAddress = optional types.str "10.231.136.2" "The container's IPv4 address.";
    localAddress6 = optional types.str "fc00::2" "The container's IPv6 address.";
    localMacAddress =
      optional (types.strMatching "([0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}") "de:b7:73:01:10:90"
        "The hardware address inside.";
  };

  bindMount =
    { name, ... }:
    {
      options = {
        mountPoint = mkOption {
          type = types.str;
          default = name;
          description = "Where it is mounted inside.";
        };
        hostPath =
          optional types.str "/home/alice"
            "What is mounted; {option}`mountPoint` on the host if null.";
        isReadOnly = mkOption {
          type = types.bool;
          default = true;
          description = "Whether it is mounted read-only.";
        };
      };
    };

  forwardedPort.options = {
    protocol = mkOption {
      type = types.enum [
        "tcp"
        "udp"
      ];
      default = "tcp";
      description = "The protocol.";
    };
    hostPort = mkOption {
      type = types.port;
      description = "The port of the host.";
    };
    containerPort = optional types.port 80 "The port inside; {option}`hostPort` if null.";
  };

  allowedDevice.options = {
    node = mkOption {
      type = types.str;
      example = "/dev/ttyUSB0";
      description = "The character device.";
    };
    modifier = mkOption {
      type = types.strMatching "r?w?m?";
      default = "rw";
      description = "Accepted for `containers.NAME`; inside, the mode of the device decides.";
    };
  };

  # What `containers.NAME` has and Incus does otherwise, or not at all.
  otherwise = lib.mapAttrsToList (name: instead: lib.mkRemovedOptionModule [ name ] instead) {
    additionalCapabilities = "Not needed: root inside has all capabilities over what is the container's own.";
    copyResolvConf = "Not needed with DHCP; else set networking.nameservers in the configuration.";
    enableTun = "Not needed: /dev/net/tun and /dev/fuse are there.";
    extraFlags = "Say it in LXC's words, by the option lxc.";
    networkNamespace = "Move an interface of it into the container, by the option interfaces.";
    pkgs = "Set nixpkgs.pkgs in the configuration.";
    privateNetwork = "It is always private; use forwardPorts, macvlans or interfaces.";
    timeoutStartSec = "Set virtualisation.inx.settings.build_timeout, or TimeoutStartSec of units inside.";
  };

  container =
    {
      config,
      name,
      options,
      ...
    }:
    let
      given = lib.filter (source: config.${source} != null) [
        "system"
        "flake"
        "file"
      ];
      # A configuration is one as the system that it becomes.
      sources = map (
        source: if source == "system" && options.config.isDefined then "config" else source
      ) given;
    in
    {
      imports = otherwise ++ [ (lib.mkAliasOptionModule [ "path" ] [ "system" ]) ];

      options = {
        config = mkOption {
          description = "The container's configuration, as a NixOS module.";
          type = lib.mkOptionType {
            name = "NixOS configuration";
            merge =
              _: definitions:
              (import "${toString config.nixpkgs}/nixos/lib/eval-config.nix" {
                modules = [
                  ./container.nix
                  {
                    nixpkgs.hostPlatform = lib.mkDefault pkgs.stdenv.hostPlatform;
                    # A wire to the host, or a bridge that was named, has nobody who gives addresses.
                    virtualisation.inx.container.dhcp = lib.mkIf (lib.any (address: config.${address} != null) [
                      "localAddress"
                      "localAddress6"
                    ]) (lib.mkDefault [ ]);
                  }
                ]
                ++ map (definition: definition.value) definitions;
                prefix = [
                  "virtualisation"
                  "inx"
                  "containers"
                  name
                  "config"
                ];
                inherit (config) specialArgs;
                system = null;
              }).config;
          };
        };

        system =
          optional
            (types.oneOf [
              types.str
              types.package
              types.path
            ])
            "/nix/var/nix/profiles/web"
            "A system that exists, or a link on the host that leads to one (`user.inx.system`).";

        flake = optional types.str "/etc/nixos#web" "The flake to build (`user.inx.flake`).";

        file = optional types.str "/srv/web.nix" "The Nix file to build (`user.inx.file`).";

        attr = optional types.str "web" "The attribute of {option}`file` (`user.inx.attr`).";

        nixpkgs = mkOption {
          type = types.path;
          default = pkgs.path;
          defaultText = lib.literalExpression "pkgs.path";
          description = "The nixpkgs that {option}`config` is evaluated with.";
        };

        specialArgs = mkOption {
          type = types.attrsOf types.unspecified;
          default = { };
          description = "Arguments for the modules in {option}`config`.";
        };

        project = mkOption {
          type = types.str;
          default = "default";
          description = "The project of Incus that it is in.";
        };

        description = mkOption {
          type = types.singleLineStr;
          default = "";
          description = "What `incus list` shows as its description.";
        };

        profiles = mkOption {
          type = types.listOf types.str;
          default = [ "inx" ];
          description = "Its profiles, in their order; one of them has the hooks of inx.";
        };

        autoStart = mkOption {
          type = types.bool;
          default = false;
          description = "Whether it is started with the host, and when it is declared.";
        };

        ephemeral = mkOption {
          type = types.bool;
          default = false;
          description = "Whether Incus deletes it when it stops; it is made anew at the next boot or switch.";
        };

        restartIfChanged = mkOption {
          type = types.bool;
          default = true;
          description = ''
            Whether a changed system is activated while it runs, and the container restarted where a device cannot be changed
            otherwise. A changed system does not restart it either way.
          '';
        };

        isolated = mkOption {
          type = types.bool;
          default = false;
          description = "Whether it sees its own system alone of the store (`user.inx.store`).";
        };

        daemon = optional types.bool false "Whether it may use this host's Nix (`user.inx.daemon`).";

        settings = mkOption {
          type = types.attrsOf scalar;
          default = { };
          example = {
            "limits.memory" = "2GiB";
            "user.inx.keep" = 10;
          };
          description = "Keys of the instance's configuration in Incus.";
        };

        devices = mkOption {
          type = types.attrsOf (types.attrsOf scalar);
          default = { };
          example = {
            web = {
              type = "proxy";
              listen = "tcp:0.0.0.0:8080";
              connect = "tcp:127.0.0.1:80";
            };
          };
          description = "Devices of the instance in Incus.";
        };

        lxc = mkOption {
          type = types.lines;
          default = "";
          example = "lxc.cap.drop = sys_chroot";
          description = "What `raw.lxc` has in addition to the hooks.";
        };

        bindMounts = mkOption {
          type = types.attrsOf (types.submodule bindMount);
          default = { };
          description = "Directories of the host that are mounted inside, with the owners that they have.";
        };

        tmpfs = mkOption {
          type = types.listOf types.str;
          default = [ ];
          example = [ "/var" ];
          description = "Where a tmpfs is mounted.";
        };

        forwardPorts = mkOption {
          type = types.listOf (types.submodule forwardedPort);
          default = [ ];
          description = "Ports of the host that lead into the container.";
        };

        allowedDevices = mkOption {
          type = types.listOf (types.submodule allowedDevice);
          default = [ ];
          description = "Character devices of the host.";
        };

        interfaces = mkOption {
          type = types.listOf types.str;
          default = [ ];
          description = "Interfaces of the host that are moved into the container.";
        };

        macvlans = mkOption {
          type = types.listOf types.str;
          default = [ ];
          description = "Interfaces of the host that it has a macvlan of, `mv-` before the name.";
        };

        extraVeths = mkOption {
          type = types.attrsOf (types.submodule { options = wire; });
          default = { };
          description = "More interfaces, each on a bridge or on a wire to the host.";
        };

        privateUsers =
          optional
            (types.either types.ints.u32 (
              types.enum [
                "no"
                "identity"
                "pick"
              ]
            ))
            "pick"
            "Which ids of the host it has: Incus' range for all if null, `\"pick\"` a range of its own; `\"no\"` makes it privileged.";

        assertions = mkOption {
          type = types.listOf types.unspecified;
          default = [ ];
          internal = true;
          description = "Lifted into those of the host.";
        };
      }
      // wire;

      config = {
        system = lib.mkIf options.config.isDefined (lib.mkDefault config.config.system.build.toplevel);

        assertions = [
          {
            assertion = builtins.match "[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?" name != null;
            message = "the name of an instance has letters, digits and, between them, '-'; at most 63.";
          }
          {
            assertion = lib.length sources <= 1;
            message = "set one of ${lib.concatStringsSep ", " sources} alone.";
          }
          {
            assertion = config.attr != null -> config.file != null;
            message = "attr goes with file; a flake takes \"REF#ATTR\".";
          }
          {
            assertion = !(config.isolated && config.daemon == true);
            message = "isolated and daemon exclude each other: a Nix daemon shows every path of the store.";
          }
          {
            assertion = !(config.settings ? "raw.lxc");
            message = "settings.\"raw.lxc\" would replace the hooks; add lines by the option lxc.";
          }
          {
            assertion =
              config.hostBridge == null || (config.hostAddress == null && config.hostAddress6 == null);
            message = "hostAddress is the host's end of a wire to it alone; on the bridge ${toString config.hostBridge} the host has its own.";
          }
        ];
      };
    };
in
{
  options.virtualisation.inx = {
    containers = mkOption {
      type = types.attrsOf (types.submodule container);
      default = { };
      description = "Containers that this host has.";
    };

    droppedContainers = mkOption {
      type = types.enum [
        "keep"
        "delete"
      ];
      default = "keep";
      description = ''
        What becomes of a container that is no longer declared: `keep` leaves it as it is, `delete` deletes it with its data.
        Instances that were made by hand are never touched.
      '';
    };
  };

  config = lib.mkIf cfg.enable {
    assertions = lib.concatLists (
      lib.mapAttrsToList (
        name: one:
        map (
          check: check // { message = "virtualisation.inx.containers.${name}: ${check.message}"; }
        ) one.assertions
      ) cfg.containers
    );
  };
}
