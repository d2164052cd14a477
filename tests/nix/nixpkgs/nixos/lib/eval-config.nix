# A stand-in for eval-config.nix of NixOS: the toplevel is a text with the host name of the configuration.
{
  modules,
  prefix ? [ ],
  specialArgs ? { },
  system ? null,
}:
assert system == null;
let
  lib = import <nixpkgs/lib>;
in
lib.evalModules {
  inherit prefix;
  specialArgs = {
    pkgs = import ../pkgs.nix { inherit lib; };
  }
  // specialArgs;
  modules = modules ++ [
    ../options.nix
    (
      { config, ... }:
      {
        system.build.toplevel = "/nix/store/11111111111111111111111111111111-nixos-system-${config.networking.hostName}";
      }
    )
  ];
}
