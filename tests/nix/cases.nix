# Configurations of hosts. Names that begin with "inside" are configurations of containers.
{ lib }:
let
  enabled = {
    virtualisation.inx.enable = true;
  };
  containers =
    containers: lib.recursiveUpdate enabled { virtualisation.inx = { inherit containers; }; };
in
{
  nothing = { };

  plain = enabled;

  tuned = {
    boot.kernel.sysctl."fs.leases-enable" = 1;
    virtualisation.inx = {
      enable = true;
      pool = "fast";
      createPool = false;
      network = "lan";
      createNetwork = false;
      settings = {
        allowed_flakes = [ "/etc/nixos" ];
        build_user = "builder";
        max_builds = 4;
      };
    };
    virtualisation.incus.preseed = {
      storage_pools = [
        {
          name = "fast";
          driver = "zfs";
        }
      ];
      profiles = [ { name = "small"; } ];
    };
    networking.firewall.enable = false;
    networking.nftables.enable = false;
    nix.settings.allowed-users = [
      "root"
      "@builder"
    ];
  };

  members = lib.recursiveUpdate enabled {
    networking.hostName = "host1";
    virtualisation.inx.members = {
      host1 = {
        address = "192.0.2.1";
        publicKey = "ssh-ed25519 AAAAone root@host1";
      };
      host2 = {
        address = "192.0.2.2";
        publicKey = "ssh-ed25519 AAAAtwo";
      };
    };
  };

  # tests/nix/example.json is the declaration of this configuration.
  example = {
    virtualisation.inx = {
      enable = true;
      containers = {
        web = {
          flake = "/etc/nixos#web";
          autoStart = true;
          bindMounts."/data".hostPath = "/srv/data";
          forwardPorts = [
            {
              hostPort = 8080;
              containerPort = 80;
            }
          ];
          settings."limits.memory" = "1GiB";
        };
        db = {
          path = "/srv/system";
          autoStart = true;
          hostAddress = "10.231.136.1";
          localAddress = "10.231.136.2";
          restartIfChanged = false;
        };
        vault = {
          flake = "/etc/nixos#second";
          isolated = true;
          ephemeral = true;
          privateUsers = "pick";
          tmpfs = [ "/scratch" ];
        };
      };
    };
  };

  modules = containers {
    one.config = {
      networking.hostName = "called-one";
    };
    two.config.imports = [ { } ];
  };

  # Modules that inx evaluates.
  texts = containers {
    text = {
      configText = "services.nginx.enable = true;";
      localAddress = "10.7.0.2/24";
      hostBridge = "br0";
    };
    file = {
      configFile = "/etc/nixos/web.nix";
      nixpkgs = "/srv/nixpkgs";
    };
    literal.configFile = ./cases.nix;
    empty.configText = "";
    both = {
      flake = "/etc/nixos#web";
      configText = "networking.hostName = \"both\";";
      localAddress = "10.7.0.3/24";
      hostBridge = "br0";
    };
  };

  everything = containers {
    all = {
      file = "/srv/all.nix";
      attr = "all";
      project = "work";
      description = "all of it";
      profiles = [
        "small"
        "inx"
      ];
      daemon = false;
      settings = {
        "boot.autostart" = true;
        "user.inx.keep" = 10;
      };
      devices."bind-data".path = "/elsewhere";
      devices.gpu.type = "gpu";
      lxc = "lxc.cap.drop = sys_chroot";
      bindMounts."/data" = {
        hostPath = "/srv/data";
        isReadOnly = false;
      };
      bindMounts.same.mountPoint = "/srv";
      tmpfs = [
        "/scratch"
        "/var/tmp"
      ];
      forwardPorts = [
        { hostPort = 22; }
        {
          protocol = "udp";
          hostPort = 5300;
          containerPort = 53;
        }
      ];
      allowedDevices = [ { node = "/dev/ttyUSB0"; } ];
      interfaces = [ "eth7" ];
      macvlans = [ "eth8" ];
      hostBridge = "br0";
      localAddress = "10.7.0.2/24";
      localAddress6 = "fd07::2/64";
      localMacAddress = "de:b7:73:01:10:90";
      extraVeths.ve1 = {
        hostAddress = "10.233.2.1";
        localAddress = "10.233.2.2";
        hostAddress6 = "fd02::1";
      };
      extraVeths.ve2.hostBridge = "br1";
      privateUsers = 2000000;
    };
    privileged = {
      privateUsers = "no";
      bindMounts."/data" = { };
      localMacAddress = "de:b7:73:01:10:91";
      localAddress = "10.7.0.3/24";
    };
    same.privateUsers = "identity";
  };

  mounts = containers {
    web = {
      autoStart = true;
      requireMounts = true;
      project = "work";
      bindMounts."/data".hostPath = "/srv/data";
      bindMounts."/srv/same" = { };
      settings."security.protection.delete" = true;
      devices.eth0 = {
        type = "nic";
        network = "incusbr0";
        "ipv4.address" = "10.1.2.3";
        "ipv6.address" = "none";
      };
    };
    by-hand.requireMounts = true;
    plain.bindMounts."/data" = { };
  };

  dropped = lib.recursiveUpdate enabled { virtualisation.inx.droppedContainers = "delete"; };

  # Wrong configurations: the assertions of the modules report each error.
  wrong-host = {
    virtualisation.inx.enable = true;
    virtualisation.incus = {
      enable = false;
      package = {
        name = "incus";
        version = "0.6";
      };
      preseed = {
        profiles = [ { name = "inx"; } ];
        storage_pools = [ { name = "default"; } ];
        networks = [ { name = "incusbr0"; } ];
      };
    };
    networking.nftables.enable = false;
    nix.enable = false;
    nix.package = {
      name = "nix";
      version = "2.3.18";
    };
    nix.daemonUser = "nix-daemon";
    nix.settings.allowed-users = [ "root" ];
  };

  wrong-containers = containers {
    "under_score" = { };
    two-sources = {
      flake = "/etc/nixos";
      system = "/srv/system";
    };
    two-kinds = {
      config = { };
      file = "/srv/web.nix";
    };
    two-modules = {
      configText = "";
      file = "/srv/web.nix";
    };
    two-ways = {
      config = { };
      configFile = "/srv/web.nix";
    };
    arguments = {
      configText = "";
      specialArgs.x = 1;
    };
    two-nixpkgs = {
      configText = "";
      flake = "/etc/nixos";
      nixpkgs = "/srv/nixpkgs";
    };
    attr.attr = "web";
    hooks.settings."raw.lxc" = "lxc.cap.drop = sys_chroot";
    own = {
      store = "own";
      daemon = true;
      system = "/srv/system";
    };
    kinds-of-store = {
      isolated = true;
      store = "own";
      system = "/srv/system";
    };
    isolated = {
      isolated = true;
      daemon = true;
    };
    gone = {
      requireMounts = true;
      ephemeral = true;
    };
    bridge = {
      hostBridge = "br0";
      hostAddress = "10.7.0.1";
    };
  };

  replaced-options = containers {
    web = {
      additionalCapabilities = [ "CAP_NET_ADMIN" ];
      copyResolvConf = false;
      enableTun = true;
      extraFlags = [ "--drop-capability=CAP_SYS_CHROOT" ];
      networkNamespace = "/run/netns/vpn";
      pkgs = { };
      privateNetwork = true;
      timeoutStartSec = "5min";
    };
  };

  inside = { };

  inside-with-a-store-of-its-own.virtualisation.inx.container.ownStore = true;

  inside-with-options-of-other-machines = {
    networking.hostName = "fixed";
    nix.gc.automatic = true;
    nix.optimise.automatic = true;
    system.etc.overlay.enable = true;
    system.nixos-init.enable = true;
    systemd.services.nix-daemon.enable = true;
    users.users.alice.isNormalUser = true;
    users.users.nginx = { };
    virtualisation.inx.container.dhcp = [ ];
  };
}
