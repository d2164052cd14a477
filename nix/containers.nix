# virtualisation.inx.containers.NAME: containers that the configuration of the host declares. `settings` and `devices` take
# the keys and devices of Incus. The other options have the names of the options of `containers.NAME` in NixOS.
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

  veth = {
    hostBridge = optional types.str "br0" "The bridge of the host that the interface is connected to.";
    hostAddress =
      optional types.str "10.231.136.1"
        "The IPv4 address of the host on a point-to-point link to the container.";
    hostAddress6 =
      optional types.str "fc00::1"
        "The IPv6 address of the host on a point-to-point link to the container.";
    localAddress = optional types.str "10.231.136.2" "The container's IPv4 address.";
    localAddress6 = optional types.str "fc00::2" "The container's IPv6 address.";
    localMacAddress =
      optional (types.strMatching "([0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}") "de:b7:73:01:10:90"
        "The MAC address of the interface in the container.";
  };

  bindMount =
    { name, ... }:
    {
      options = {
        mountPoint = mkOption {
          type = types.str;
          default = name;
          description = "The path in the container.";
        };
        hostPath =
          optional types.str "/home/alice"
            "The path on the host. With null, the path is {option}`mountPoint`.";
        isReadOnly = mkOption {
          type = types.bool;
          default = true;
          description = "Whether the mount is read-only.";
        };
      };
    };

  # The addresses of a container that its declaration gives: static ones, and leases of Incus' DHCP server.
  addressesOf =
    one:
    let
      nics = lib.filter (device: device.type or "nic" == "nic") (lib.attrValues one.devices);
      leases = lib.concatMap (device: [
        (device."ipv4.address" or null)
        (device."ipv6.address" or null)
      ]) nics;
      given = [
        one.localAddress
        one.localAddress6
      ]
      ++ leases;
      split = lib.concatMap (lib.splitString ",") (lib.filter (value: value != null) given);
    in
    lib.filter (address: address != "none") (
      map (address: lib.head (lib.splitString "/" address)) split
    );

  sourcesOf =
    one:
    map (mount: if mount.hostPath == null then mount.mountPoint else mount.hostPath) (
      lib.attrValues one.bindMounts
    );

  needMounts = lib.filterAttrs (_: one: one.requireMounts) cfg.containers;

  withMounts =
    name: one:
    let
      place = "--project ${lib.escapeShellArg one.project}";
      state = "incus list ${place} --format csv --columns s '^${name}$'";
    in
    {
      description = "Container ${name} of inx, with the mounts that it needs";
      wantedBy = lib.optional one.autoStart "multi-user.target";
      wants = [ "inx-instances.service" ];
      after = [
        "incus.service"
        "inx-instances.service"
        "inx-sidecar.service"
      ];
      unitConfig.RequiresMountsFor = sourcesOf one;
      # inx-instances.service changes the container. A changed unit does not restart the container.
      restartIfChanged = false;
      path = [ (config.virtualisation.incus.clientPackage or config.virtualisation.incus.package) ];
      serviceConfig = {
        Type = "oneshot";
        RemainAfterExit = true;
        TimeoutStopSec = "3min";
      };
      script = ''
        [ "$(${state})" = RUNNING ] || incus start ${place} ${name}
      '';
      preStop = ''
        [ "$(${state})" != RUNNING ] || incus stop ${place} --timeout 60 ${name} || incus stop ${place} --force ${name}
      '';
    };

  forwardedPort.options = {
    protocol = mkOption {
      type = types.enum [
        "tcp"
        "udp"
      ];
      default = "tcp";
      description = "The protocol of the port.";
    };
    hostPort = mkOption {
      type = types.port;
      description = "The port on the host.";
    };
    containerPort =
      optional types.port 80
        "The port in the container. With null, the port is {option}`hostPort`.";
  };

  allowedDevice.options = {
    node = mkOption {
      type = types.str;
      example = "/dev/ttyUSB0";
      description = "The path of the character device on the host.";
    };
    modifier = mkOption {
      type = types.strMatching "r?w?m?";
      default = "rw";
      description = "Accepted because `containers.NAME` has this option. In the container, the mode of the device decides.";
    };
  };

  # Options that `containers.NAME` has and inx does not have. The text says what to use instead.
  replacedOptions = lib.mapAttrsToList (name: instead: lib.mkRemovedOptionModule [ name ] instead) {
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
      # `config` sets `system`, so a message names `config` if the operator has set `config`.
      sources = map (
        source: if source == "system" && options.config.isDefined then "config" else source
      ) given;
      modules = lib.filter (module: config.${module} != null) [
        "configText"
        "configFile"
      ];
    in
    {
      imports = replacedOptions ++ [ (lib.mkAliasOptionModule [ "path" ] [ "system" ]) ];

      options = {
        config = mkOption {
          description = ''
            The configuration of the container, as a NixOS module. It is evaluated and built with the configuration of the host;
            {option}`configText` and {option}`configFile` are evaluated by inx.
          '';
          type = lib.mkOptionType {
            name = "NixOS configuration";
            merge =
              _: definitions:
              (import "${toString config.nixpkgs}/nixos/lib/eval-config.nix" {
                modules = [
                  ./container.nix
                  {
                    nixpkgs.hostPlatform = lib.mkDefault pkgs.stdenv.hostPlatform;
                    # With static addresses, inx sets the addresses, and the interface needs no DHCP.
                    virtualisation.inx.container.dhcp = lib.mkIf (lib.any (address: config.${address} != null) [
                      "localAddress"
                      "localAddress6"
                    ]) (lib.mkDefault [ ]);
                    virtualisation.inx.container.ownStore = lib.mkIf (config.store == "own") (
                      lib.mkDefault true
                    );
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
            "The store path of a system, or a link on the host that leads to a system (`user.inx.system`).";

        flake = optional types.str "/etc/nixos#web" "The flake to build (`user.inx.flake`).";

        file = optional types.str "/srv/web.nix" "The Nix file to build (`user.inx.file`).";

        attr = optional types.str "web" "The attribute of {option}`file` (`user.inx.attr`).";

        configText = optional types.lines "services.nginx.enable = true;" ''
          The text of a NixOS module, whole or its body alone (`user.inx.config`). inx evaluates it after the switch of the host.
          With {option}`flake`, it extends that configuration.
        '';

        configFile = optional types.path "/etc/nixos/web.nix" ''
          The absolute path of a NixOS module on the host (`user.inx.module`). inx evaluates it after the switch of the host. A
          path without quotes is copied into the store. With {option}`flake`, it extends that configuration.
        '';

        nixpkgs = mkOption {
          type = types.path;
          default = pkgs.path;
          defaultText = lib.literalExpression "pkgs.path";
          description = ''
            The nixpkgs that {option}`config` is evaluated with, and, if it is set, {option}`configText` and
            {option}`configFile` (`user.inx.nixpkgs`).
          '';
        };

        nixpkgsKey = mkOption {
          type = types.nullOr types.str;
          internal = true;
          description = "The value of `user.inx.nixpkgs`.";
        };

        specialArgs = mkOption {
          type = types.attrsOf types.unspecified;
          default = { };
          description = "Arguments for the modules in {option}`config`. Other modules take `_module.args`.";
        };

        project = mkOption {
          type = types.str;
          default = "default";
          description = "The project of the instance in Incus.";
        };

        description = mkOption {
          type = types.singleLineStr;
          default = "";
          description = "The description of the instance in Incus.";
        };

        profiles = mkOption {
          type = types.listOf types.str;
          default = [ "inx" ];
          description = "The profiles of the instance, in their order. One of them must have the hooks of inx.";
        };

        autoStart = mkOption {
          type = types.bool;
          default = false;
          description = "Whether the container starts when the host boots, and when it is declared.";
        };

        requireMounts = mkOption {
          type = types.bool;
          default = false;
          description = ''
            Whether the container needs the mounts of the sources of {option}`bindMounts`. A unit `inx-container-NAME.service`
            then starts the container after their mount units, and stops the container before them; `autoStart` enables
            this unit. `incus start` does not start mount units.
          '';
        };

        ephemeral = mkOption {
          type = types.bool;
          default = false;
          description = ''
            Whether Incus deletes the container when it stops. The next boot or switch of the host creates the container
            again.
          '';
        };

        restartIfChanged = mkOption {
          type = types.bool;
          default = true;
          description = ''
            Whether a changed system is activated in the running container, and whether the container is restarted if Incus
            cannot change a device of the running container. A changed system never restarts the container.
          '';
        };

        target =
          optional types.singleLineStr "host2"
            "The member of the Incus cluster on which the container is created, or `@` and a group of members.";

        isolated = mkOption {
          type = types.bool;
          default = false;
          description = "Whether the container sees only the closure of its own system in the store: the same as `store = \"isolated\"`.";
        };

        store =
          optional
            (types.enum [
              "shared"
              "isolated"
              "own"
            ])
            "own"
            ''
              What the container sees of the store (`user.inx.store`). With `own`, Nix works inside; a {option}`flake`, a
              {option}`file` or a {option}`system` then has to set `virtualisation.inx.container.ownStore`.
            '';

        daemon =
          optional types.bool false
            "Whether the container may use the Nix of this host (`user.inx.daemon`).";

        settings = mkOption {
          type = types.attrsOf scalar;
          default = { };
          example = {
            "limits.memory" = "2GiB";
            "user.inx.keep" = 10;
          };
          description = "Configuration keys of the instance in Incus.";
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
          description = "Lines that are added to the hooks in `raw.lxc`.";
        };

        bindMounts = mkOption {
          type = types.attrsOf (types.submodule bindMount);
          default = { };
          description = "Directories of the host that are mounted in the container, with the same owners.";
        };

        tmpfs = mkOption {
          type = types.listOf types.str;
          default = [ ];
          example = [ "/var" ];
          description = "Paths in the container where a tmpfs is mounted.";
        };

        forwardPorts = mkOption {
          type = types.listOf (types.submodule forwardedPort);
          default = [ ];
          description = "Ports of the host that are forwarded to the container.";
        };

        allowedDevices = mkOption {
          type = types.listOf (types.submodule allowedDevice);
          default = [ ];
          description = "Character devices of the host that the container may use.";
        };

        interfaces = mkOption {
          type = types.listOf types.str;
          default = [ ];
          description = "Interfaces of the host that are moved into the container.";
        };

        macvlans = mkOption {
          type = types.listOf types.str;
          default = [ ];
          description = ''
            Interfaces of the host. For each of them, the container has a macvlan interface with the prefix `mv-`.
          '';
        };

        extraVeths = mkOption {
          type = types.attrsOf (types.submodule { options = veth; });
          default = { };
          description = "More interfaces. Each is connected to a bridge or to the host alone.";
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
            "The IDs of the container on the host. null: the range that Incus has for all instances. `\"pick\"`: a range of its own. A number: the first ID of such a range. `\"identity\"`: the same IDs. `\"no\"`: the container is privileged.";

        assertions = mkOption {
          type = types.listOf types.unspecified;
          default = [ ];
          internal = true;
          description = "Assertions of this container, which become assertions of the host.";
        };
      }
      // veth;

      config = {
        system = lib.mkIf options.config.isDefined (lib.mkDefault config.config.system.build.toplevel);

        # 1500 is the priority of a default.
        nixpkgsKey =
          if modules != [ ] && options.nixpkgs.highestPrio < 1500 then toString config.nixpkgs else null;

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
            assertion = modules == [ ] || lib.elem sources [ [ ] [ "flake" ] ];
            message = "set one of ${
              lib.concatStringsSep ", " (sources ++ modules)
            } alone: only a flake can be extended by configText and configFile.";
          }
          {
            assertion = modules == [ ] || config.specialArgs == { };
            message = "specialArgs goes with config; set _module.args in ${lib.concatStringsSep ", " modules}.";
          }
          {
            assertion = config.nixpkgsKey == null || config.flake == null;
            message = "nixpkgs and flake exclude each other: the flake has its own nixpkgs.";
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
            assertion = !(config.store == "own" && config.daemon == true);
            message = "store = \"own\" and daemon exclude each other: the container has a Nix daemon of its own.";
          }
          {
            assertion = config.isolated -> config.store == null || config.store == "isolated";
            message = "isolated and store = \"${toString config.store}\" exclude each other; set store alone.";
          }
          {
            assertion = !(config.requireMounts && config.ephemeral);
            message = "requireMounts and ephemeral exclude each other: the unit of the container would start a container that is gone.";
          }
          {
            assertion = !(config.settings ? "raw.lxc");
            message = "settings.\"raw.lxc\" would replace the hooks; add lines by the option lxc.";
          }
          {
            assertion =
              config.hostBridge == null || (config.hostAddress == null && config.hostAddress6 == null);
            message = "hostAddress is the host's end of a veth pair for this container alone; on the bridge ${toString config.hostBridge} the host has its own.";
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
      description = "Containers that the configuration of this host declares.";
    };

    droppedContainers = mkOption {
      type = types.enum [
        "keep"
        "delete"
      ];
      default = "keep";
      description = ''
        What happens to a container that is no longer declared. `keep` leaves the container unchanged. `delete` deletes the
        container with its data. Instances that were made by hand are never changed.
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

    # The addresses that are known here, as for `containers.NAME`.
    networking.extraHosts = lib.concatStrings (
      lib.concatLists (
        lib.mapAttrsToList (
          name: one: map (address: "${address} ${name}.containers\n") (addressesOf one)
        ) cfg.containers
      )
    );

    systemd.services =
      lib.mapAttrs' (
        name: one: lib.nameValuePair "inx-container-${name}" (withMounts name one)
      ) needMounts
      // lib.optionalAttrs (needMounts != { }) {
        # Incus makes no container with a source that does not exist. A mount that fails keeps no other container back.
        inx-instances.unitConfig.WantsMountsFor = lib.unique (
          lib.concatMap sourcesOf (lib.attrValues needMounts)
        );
      };
  };
}
