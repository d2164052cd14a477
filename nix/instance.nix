# Translate one container of virtualisation.inx.containers into the instance that `inx-sidecar converge` reads.
# `incus` is the version of Incus.
{
  lib,
  profile,
  incus,
}:
name: container:
let
  # security.idmap.base takes ids for one container alone; older versions ignore it without security.idmap.isolated.
  baseExcludesIsolated =
    lib.versionAtLeast incus "7.0.2" && !(lib.versionAtLeast incus "7.1" && lib.versionOlder incus "7.4");
  dropNulls = lib.filterAttrs (_: value: value != null);
  known = lib.filter (value: value != null);
  joined = values: if known values == [ ] then null else lib.concatStringsSep "," (known values);
  flat = lib.replaceStrings [ "/" ] [ "-" ];

  # The NIC device and the keys of one interface. `veth` has the options of extraVeths. eth0 of the profile stays if the
  # container sets no option that needs another device.
  nic =
    interface: veth:
    let
      ends = joined [
        veth.hostAddress
        veth.hostAddress6
      ];
      private = ends != null;
      connection =
        if veth.hostBridge != null then
          {
            nictype = "bridged";
            parent = veth.hostBridge;
          }
        else if private || interface != "eth0" then
          { nictype = "p2p"; }
        else
          { inherit (profile.devices.eth0) network; };
    in
    {
      devices =
        lib.optionalAttrs
          (interface != "eth0" || private || veth.hostBridge != null || veth.localMacAddress != null)
          {
            ${interface} = dropNulls (
              {
                type = "nic";
                name = interface;
                hwaddr = veth.localMacAddress;
              }
              // connection
            );
          };
      config = dropNulls {
        "user.inx.net.${interface}.address" = joined [
          veth.localAddress
          veth.localAddress6
        ];
        "user.inx.net.${interface}.host_address" = ends;
        # eth0 has the default route, as for `containers.NAME`. With several NICs, inx does not choose one by itself.
        "user.inx.net.${interface}.gateway" = if interface == "eth0" then ends else null;
      };
    };
  nics = lib.mapAttrsToList nic ({ eth0 = container; } // container.extraVeths);

  devicesOf =
    prefix: make: names:
    lib.listToAttrs (map (name: lib.nameValuePair "${prefix}${flat name}" (make name)) names);

  bindMounts = lib.mapAttrs' (
    _: mount:
    lib.nameValuePair "bind${flat mount.mountPoint}" (
      {
        type = "disk";
        source = if mount.hostPath == null then mount.mountPoint else mount.hostPath;
        path = mount.mountPoint;
      }
      // lib.optionalAttrs mount.isReadOnly { readonly = true; }
      // lib.optionalAttrs (container.privateUsers != "no") { shift = true; }
    )
  ) container.bindMounts;

  ports = lib.listToAttrs (
    map (
      port:
      let
        inside = if port.containerPort == null then port.hostPort else port.containerPort;
      in
      lib.nameValuePair "port-${port.protocol}-${toString port.hostPort}" {
        type = "proxy";
        listen = "${port.protocol}:0.0.0.0:${toString port.hostPort}";
        connect = "${port.protocol}:127.0.0.1:${toString inside}";
      }
    ) container.forwardPorts
  );

  devices = [
    bindMounts
    ports
    (devicesOf "dev" (node: {
      type = "unix-char";
      source = node;
      path = node;
    }) (map (allowed: allowed.node) container.allowedDevices))
    (devicesOf "" (interface: {
      type = "nic";
      nictype = "physical";
      parent = interface;
      name = interface;
    }) container.interfaces)
    (devicesOf "mv-" (interface: {
      type = "nic";
      nictype = "macvlan";
      parent = interface;
      name = "mv-${interface}";
    }) container.macvlans)
  ];

  users =
    if container.privateUsers == null then
      { }
    else if container.privateUsers == "pick" then
      { "security.idmap.isolated" = true; }
    else if container.privateUsers == "identity" then
      { "raw.idmap" = "both 0-65535 0-65535"; }
    else if container.privateUsers == "no" then
      { "security.privileged" = true; }
    else
      { "security.idmap.base" = container.privateUsers; }
      // lib.optionalAttrs (!baseExcludesIsolated) { "security.idmap.isolated" = true; };

  # As for `config`: what the configuration has to know of the instance. A flake says it itself.
  isText =
    container.flake == null && (container.configText != null || container.configFile != null);
  # inx sets static addresses, and the interface needs no DHCP.
  static = isText && (container.localAddress != null || container.localAddress6 != null);

  # A unit of the host starts a container that needs mounts: Incus would not wait for them.
  started = container.autoStart && !container.requireMounts;

  lxc =
    lib.concatMapStrings (
      place: "lxc.mount.entry = tmpfs ${lib.removePrefix "/" place} tmpfs create=dir 0 0\n"
    ) container.tmpfs
    + container.lxc;

  config =
    dropNulls {
      "boot.autostart" = started;
      "raw.lxc" = if lxc == "" then null else "${profile.config."raw.lxc"}${lib.removeSuffix "\n" lxc}\n";
      "user.inx.activate" = if container.restartIfChanged then null else "boot";
      "user.inx.attr" = container.attr;
      # An empty key is none: the instance would get the default flake.
      "user.inx.config" = if container.configText == "" then "{ }" else container.configText;
      "user.inx.config.static-addresses" =
        if static then "virtualisation.inx.container.dhcp = mkDefault [ ];" else null;
      "user.inx.config.own-store" =
        if isText && container.store == "own" then
          "virtualisation.inx.container.ownStore = mkDefault true;"
        else
          null;
      "user.inx.daemon" = container.daemon;
      "user.inx.file" = container.file;
      "user.inx.flake" = container.flake;
      # A path that is no string is copied into the store: the declaration refers to the copy.
      "user.inx.module" = if container.configFile == null then null else "${container.configFile}";
      "user.inx.nixpkgs" = container.nixpkgsKey;
      "user.inx.store" = if container.isolated then "isolated" else container.store;
      "user.inx.system" = if container.system == null then null else toString container.system;
    }
    // users;

  merged = lib.foldl' (all: more: all // more) { };
in
{
  inherit name;
  inherit (container)
    description
    ephemeral
    profiles
    project
    ;
  start = started;
  restart = container.restartIfChanged;
  config = merged (map (one: one.config) nics ++ [ config ]) // container.settings;
  devices = lib.recursiveUpdate (merged (map (one: one.devices) nics ++ devices)) container.devices;
}
// dropNulls { inherit (container) target; }
