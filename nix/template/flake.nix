# A NixOS host that runs containers with inx, and one container.
#
#   nixos-rebuild switch --flake .#host
#   incus launch --empty web --profile inx -c user.inx.flake=/etc/nixos
{
  inputs = {
    nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";
    inx.url = "git+file:///srv/inx"; # the path or URL of this repository
    inx.inputs.nixpkgs.follows = "nixpkgs";
  };

  outputs =
    { inx, nixpkgs, ... }:
    {
      nixosConfigurations.host = nixpkgs.lib.nixosSystem {
        modules = [
          inx.nixosModules.host
          ./hardware-configuration.nix
          {
            boot.loader.systemd-boot.enable = true;
            networking.hostName = "host";
            system.stateVersion = "26.05";

            virtualisation.inx.enable = true;

            # A declared container: `nixos-rebuild switch` of the host creates, starts and changes it.
            virtualisation.inx.containers.git = {
              autoStart = true;
              config = {
                services.forgejo.enable = true;
                networking.firewall.allowedTCPPorts = [ 3000 ];
                system.stateVersion = "26.05";
              };
            };
          }
        ];
      };

      # A container that is launched by hand. `incus config set web user.inx.update="$(date)"` updates it.
      nixosConfigurations.web = nixpkgs.lib.nixosSystem {
        modules = [
          inx.nixosModules.container
          (
            { pkgs, ... }:
            {
              nixpkgs.hostPlatform = "x86_64-linux";
              services.nginx = {
                enable = true;
                virtualHosts.default.root = pkgs.writeTextDir "index.html" "Hello from NixOS.\n";
              };
              networking.firewall.allowedTCPPorts = [ 80 ];
              system.stateVersion = "26.05";
            }
          )
        ];
      };
    };
}
