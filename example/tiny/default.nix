# The systems of flake.nix without flakes: `nix-build -A web`.
let
  flake = (import ./flake.nix).outputs { self = flake; };
in
builtins.mapAttrs (_: nixos: nixos.config.system.build.toplevel) flake.nixosConfigurations
