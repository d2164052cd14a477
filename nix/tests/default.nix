# Tests of NixOS containers on a NixOS host, for runNixOSTest: { by-hand, declared }.
{ self }:
let
  # A host with inx. Its store is on a file system that supports idmapped mounts: neither 9p nor an overlay.
  host =
    { pkgs, ... }:
    {
      imports = [ self.nixosModules.host ];
      virtualisation = {
        memorySize = 4096;
        diskSize = 16 * 1024;
        useBootLoader = true;
        useEFIBoot = true;
        fileSystems."/".autoResize = true;
        inx.enable = true;
      };
      boot.loader.systemd-boot.enable = true;
      boot.growPartition = true;
      # The test has no network, so no binary cache.
      nix.settings.substituters = pkgs.lib.mkForce [ ];
      nix.settings.experimental-features = [
        "nix-command"
        "flakes"
      ];
      environment.systemPackages = [ pkgs.jq ];
    };

  # The system of a container with the text `greeting` in /etc/greeting.
  container =
    pkgs: greeting: more:
    (import "${toString pkgs.path}/nixos/lib/eval-config.nix" {
      system = null;
      modules = [
        self.nixosModules.container
        more
        {
          nixpkgs.hostPlatform = pkgs.stdenv.hostPlatform;
          environment.etc.greeting.text = greeting;
          users.users.alice.isNormalUser = true;
          security.sudo.wheelNeedsPassword = false;
          users.users.alice.extraGroups = [ "wheel" ];
          services.nginx.enable = true;
          # A unit with the sandboxing that services use.
          systemd.services.probe = {
            wantedBy = [ "multi-user.target" ];
            serviceConfig = {
              Type = "oneshot";
              RemainAfterExit = true;
              DynamicUser = true;
              PrivateTmp = true;
              ProtectSystem = "strict";
              StateDirectory = "probe";
            };
            script = "echo it ran >/var/lib/probe/said";
          };
          system.stateVersion = "26.05";
        }
      ];
    }).config.system.build.toplevel;

  helpers = ''
    def wait_ready(name):
        host.wait_until_succeeds(f"incus config get {name} user.inx.status | grep -x ready", timeout=300)
        host.wait_until_succeeds(
            f"incus exec {name} -- systemctl is-system-running --wait | grep -x running", timeout=300
        )


    def inside(name, command):
        return host.succeed(f"incus exec {name} -- bash -lc '{command}'")


    host.wait_for_unit("multi-user.target")
    host.wait_for_unit("incus.service")
    host.wait_for_unit("incus-preseed.service")
  '';
in
{
  by-hand =
    { pkgs, ... }:
    let
      one = container pkgs "one" { };
      two = container pkgs "two" { };
      secret = pkgs.writeText "secret" "not in the closure of a container";
      # The test builds this in the container, from paths of the store.
      expression = pkgs.writeText "built.nix" ''
        derivation {
          name = "built-inside";
          system = builtins.currentSystem;
          builder = builtins.storePath ${pkgs.pkgsStatic.busybox} + "/bin/sh";
          args = [ "-c" "echo built >$out" ];
        }
      '';
    in
    {
      name = "inx-by-hand";
      nodes.host = {
        imports = [ host ];
        system.extraDependencies = [
          one
          two
          secret
          expression
          pkgs.pkgsStatic.busybox
        ];
      };
      testScript = ''
        ${helpers}
        with subtest("the host has what inx needs"):
            host.succeed("inx-sidecar check")

        with subtest("a container boots"):
            host.succeed("incus launch --empty web --profile inx -c user.inx.system=${one}")
            wait_ready("web")
            assert inside("web", "cat /etc/greeting").strip() == "one"
            assert inside("web", "hostname").strip() == "web"
            assert inside("web", "stat -c %U /nix/store").strip() == "root"
            inside("web", "! touch /nix/store/x && ! mount -o remount,bind,rw /nix/store")
            inside("web", "cat /var/lib/probe/said")
            host.wait_until_succeeds("incus list web -f csv -c 4 | grep eth0")
            inside("web", "curl -sS -o /dev/null http://localhost")

        with subtest("Nix works inside, for root, by sudo and for users, and outlives a collection"):
            inside("web", "nix-build ${expression} -o /root/result")
            inside("web", "sudo -u alice sudo nix-build ${expression} -o /root/by-sudo")
            inside("web", "su alice -c \"nix-build ${expression} -o /home/alice/result\"")
            host.succeed("nix-collect-garbage")
            inside("web", "cat /root/result /root/by-sudo /home/alice/result")
            inside("web", "rm /root/result /root/by-sudo /home/alice/result")
            host.succeed("inx-sidecar sync", "nix-collect-garbage")
            host.fail("ls -d /nix/store/*-built-inside")

        with subtest("an update from outside keeps PID 1"):
            before = host.succeed("incus list web -f csv -c p").strip()
            host.succeed("incus config set web user.inx.system=${two}")
            host.wait_until_succeeds("incus config get web user.inx.status.generation | grep -x 2")
            assert inside("web", "cat /etc/greeting").strip() == "two"
            assert host.succeed("incus list web -f csv -c p").strip() == before

        with subtest("a switch from inside, as nixos-rebuild does it"):
            inside("web", "nix-env -p /nix/var/nix/profiles/system --set ${one}")
            inside("web", "/nix/var/nix/profiles/system/bin/switch-to-configuration switch")
            assert inside("web", "cat /etc/greeting").strip() == "one"
            inside("web", "nix-env -p /nix/var/nix/profiles/system --list-generations | grep current")

        with subtest("a restored snapshot has its system and generations"):
            host.succeed("incus snapshot create web before")
            host.succeed("incus config set web user.inx.system=${two} user.inx.update=2")
            host.wait_until_succeeds("incus exec web -- grep -x two /etc/greeting")
            host.succeed("incus snapshot restore web before")
            wait_ready("web")
            assert inside("web", "cat /etc/greeting").strip() == "one"

        with subtest("an isolated container sees only the closure of its own system"):
            host.succeed(
                "incus launch --empty vault --profile inx -c user.inx.system=${one} -c user.inx.store=isolated"
            )
            wait_ready("vault")
            inside("vault", "test -e ${one}/init && ! test -e ${secret}")
            seen = int(inside("vault", "ls /nix/store | wc -l"))
            assert seen == int(host.succeed("nix-store -qR ${one} | wc -l"))

        with subtest("containers start again after a reboot of the host"):
            host.succeed("incus config set web boot.autostart=true")
            host.shutdown()
            host.start()
            wait_ready("web")
      '';
    };

  declared =
    { pkgs, ... }:
    let
      declared = greeting: {
        virtualisation.inx.containers = {
          web = {
            autoStart = true;
            forwardPorts = [
              {
                hostPort = 8080;
                containerPort = 80;
              }
            ];
            config = {
              environment.etc.greeting.text = greeting;
              services.nginx.enable = true;
              system.stateVersion = "26.05";
            };
          };
          db = {
            autoStart = true;
            hostAddress = "10.231.136.1";
            localAddress = "10.231.136.2";
            # No DHCP server answers on a point-to-point link to the host.
            path = container pkgs "db" { virtualisation.inx.container.dhcp = [ ]; };
          };
        };
      };
    in
    {
      name = "inx-declared";
      nodes.host = {
        imports = [
          host
          (declared "one")
        ];
        specialisation.two.configuration = {
          virtualisation.inx.containers = pkgs.lib.mkForce (declared "two").virtualisation.inx.containers;
        };
        specialisation.fewer.configuration = {
          virtualisation.inx.containers = pkgs.lib.mkForce { };
          virtualisation.inx.droppedContainers = "delete";
        };
      };
      testScript = ''
        import json

        ${helpers}
        switch = "/run/booted-system/specialisation/{}/bin/switch-to-configuration test"

        with subtest("declared containers start with the host"):
            host.wait_for_unit("inx-instances.service")
            wait_ready("web")
            wait_ready("db")
            assert inside("web", "cat /etc/greeting").strip() == "one"
            host.succeed("curl -sS -o /dev/null http://localhost:8080")
            host.succeed("ping -c1 10.231.136.2")

        with subtest("a switch of the host changes declared containers in place"):
            before = host.succeed("incus list web -f csv -c p").strip()
            host.succeed(switch.format("two"))
            host.wait_until_succeeds("incus exec web -- grep -x two /etc/greeting")
            assert host.succeed("incus list web -f csv -c p").strip() == before

        with subtest("containers that are no longer declared are deleted, instances made by hand stay"):
            host.succeed("incus init --empty mine --profile inx")
            host.succeed(switch.format("fewer"))
            left = json.loads(host.succeed("incus list -f json"))
            assert [instance["name"] for instance in left] == ["mine"]
      '';
    };
}
