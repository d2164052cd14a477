# A NixOS container. Copy this file to /etc/nixos/flake.nix on the host, and change it. Then:
#
#   incus launch --empty web --profile inx -c user.inx.flake=/etc/nixos
{
  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-26.05";

  outputs =
    { nixpkgs, ... }:
    let
      web =
        { pkgs, ... }:
        {
          nixpkgs.hostPlatform = "x86_64-linux";
          boot.isContainer = true; # no kernel and no boot loader
          networking.hostName = ""; # the host name is the name of the instance
          boot.kernel.sysctl."net.ipv4.ping_group_range" = "0 65534"; # an unprivileged container has no more group ids

          # eth0 gets an address by DHCP from the network of the instance.
          networking = {
            useDHCP = false;
            useNetworkd = true;
            useHostResolvConf = false; # use the name servers of the DHCP answer
          };
          systemd.network.networks."10-eth0" = {
            matchConfig.Name = "eth0";
            networkConfig.DHCP = "yes";
            dhcpV4Config = {
              ClientIdentifier = "mac"; # a copied instance has the machine-id of its original
              UseHostname = false;
            };
          };
          # Incus makes /sys writable. Then networkd waits for udev, which a NixOS container does not run.
          systemd.services.systemd-networkd.serviceConfig.BindReadOnlyPaths = [ "/sys" ];

          services.nginx = {
            enable = true;
            virtualHosts.default.root = pkgs.writeTextDir "index.html" "Hello from NixOS.\n";
          };
          networking.firewall.allowedTCPPorts = [ 80 ];

          system.stateVersion = "26.05"; # do not change it when you update nixpkgs
        };
    in
    {
      # An instance gets the configuration that has the name of the instance. With user.inx.flake=/etc/nixos#web, an
      # instance with any name gets this configuration.
      nixosConfigurations.web = nixpkgs.lib.nixosSystem { modules = [ web ]; };
    };
}
