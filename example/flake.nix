# A NixOS container, to copy and change. With this file as /etc/nixos/flake.nix on the host:
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
          networking.hostName = ""; # keep the instance's name

          # An address by DHCP from the instance's network.
          networking = {
            useDHCP = false;
            useNetworkd = true;
            useHostResolvConf = false; # ask the name servers that DHCP names
          };
          systemd.network.networks."10-eth0" = {
            matchConfig.Name = "eth0";
            networkConfig.DHCP = "yes";
            dhcpV4Config.ClientIdentifier = "mac"; # a copied instance keeps its machine-id
          };
          # Incus leaves /sys writable; there networkd would wait for udev, which a NixOS container does not run.
          systemd.services.systemd-networkd.serviceConfig.BindReadOnlyPaths = [ "/sys" ];

          services.nginx = {
            enable = true;
            virtualHosts.default.root = pkgs.writeTextDir "index.html" "Hello from NixOS.\n";
          };
          networking.firewall.allowedTCPPorts = [ 80 ];

          system.stateVersion = "26.05"; # stays when nixpkgs moves on
        };
    in
    {
      # An instance gets the configuration of its own name; user.inx.flake=/etc/nixos#web picks this one by any name.
      nixosConfigurations.web = nixpkgs.lib.nixosSystem { modules = [ web ]; };
    };
}
