{
  description = "NixOS containers on Incus that share the host's /nix/store";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs =
    { self, nixpkgs }:
    let
      inherit (nixpkgs) lib;
      eachSystem =
        make:
        lib.genAttrs [
          "x86_64-linux"
          "aarch64-linux"
        ] (system: make nixpkgs.legacyPackages.${system});
    in
    {
      packages = eachSystem (pkgs: rec {
        inx = pkgs.callPackage ./nix/package.nix { };
        default = inx;
      });

      overlays.default = final: _: { inx = final.callPackage ./nix/package.nix { }; };

      nixosModules = {
        host = ./nix/host.nix;
        container = ./nix/container.nix;
        default = ./nix/host.nix;
      };

      # Each test boots a NixOS host with Incus, and NixOS containers on this host.
      checks = eachSystem (
        pkgs:
        lib.mapAttrs (_: test: pkgs.testers.runNixOSTest test) (import ./nix/tests { inherit self; })
        // {
          inherit (self.packages.${pkgs.stdenv.hostPlatform.system}) inx;
        }
      );

      devShells = eachSystem (pkgs: {
        default = pkgs.mkShell {
          inputsFrom = [ self.packages.${pkgs.stdenv.hostPlatform.system}.inx ];
          packages = [
            pkgs.nixfmt
            (pkgs.python3.withPackages (
              python: with python; [
                hypothesis
                mypy
                pytest
                pytest-rerunfailures
                pytest-timeout
                types-pyyaml
              ]
            ))
            pkgs.ruff
          ];
        };
      });

      formatter = eachSystem (pkgs: pkgs.nixfmt-tree);

      templates.default = {
        path = ./nix/template;
        description = "A container, and the host that it runs on";
      };
    };
}
