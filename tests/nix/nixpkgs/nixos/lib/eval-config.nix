# A stand-in for NixOS' own: the system is a text that tells what it was made of.
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
