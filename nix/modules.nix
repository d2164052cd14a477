# The configuration of an instance whose modules stand in its keys `user.inx.config` and `user.inx.module`. inx writes a
# flake.nix that imports this file; HACKING.md shows one.
let
  # A text is a function or an attribute set, as NixOS takes modules. Errors name the key.
  checked =
    { name, value }:
    if builtins.isFunction value || builtins.isAttrs value then
      value
    else
      throw "${name} is a value of the type ${builtins.typeOf value}; give it the body of a module, a function or an attribute set";

  # A path stays one: NixOS then imports a module only once, and names its file in errors.
  module =
    piece:
    if builtins.isPath piece.value then
      piece.value
    else
      {
        _file = piece.name;
        imports = [ (checked piece) ];
      };

  evalConfig =
    nixpkgs: shown:
    let
      file = nixpkgs + "/nixos/lib/eval-config.nix";
    in
    if builtins.pathExists file then file else throw "${shown} is no nixpkgs: it has no nixos/lib/eval-config.nix";
in
{
  # What a build keeps for the next ones.
  factsOf = nixpkgs: shown: {
    release = builtins.seq (evalConfig nixpkgs shown) (import (nixpkgs + "/lib")).trivial.release;
  };

  # `source` has the attributes that Nix gives to an input, if nixpkgs is one. `shown` is its name for errors.
  configuration =
    {
      nixpkgs,
      shown,
      source ? { },
      hostPlatform,
      stateVersion ? null,
      pieces,
    }:
    import (evalConfig nixpkgs shown) {
      # The modules set nixpkgs.hostPlatform.
      system = null;
      modules = [
        ./container.nix
        (
          { lib, options, ... }:
          {
            _file = "inx";
            config = lib.mkMerge [
              {
                nixpkgs.hostPlatform = lib.mkDefault hostPlatform;
                system.stateVersion = lib.mkDefault (
                  if stateVersion == null then lib.trivial.release else stateVersion
                );
              }
              # As the nixosSystem of nixpkgs: the version says the revision, and `nixpkgs` inside is this one.
              (lib.optionalAttrs (source ? outPath && options.nixpkgs ? flake) {
                nixpkgs.flake.source = lib.mkDefault "${nixpkgs}";
              })
              (lib.optionalAttrs (source ? rev) {
                system.nixos.revision = lib.mkDefault source.rev;
              })
              # A path in the store has no date: there, nixpkgs may know its own suffix.
              (lib.optionalAttrs ((source.lastModified or 0) > 1) {
                system.nixos.versionSuffix = lib.mkDefault ".${builtins.substring 0 8 source.lastModifiedDate}.${source.shortRev or "dirty"}";
              })
            ];
          }
        )
      ]
      ++ map module pieces;
    };

  # A configuration of a flake, with more modules.
  extended =
    {
      flake,
      shown,
      attr,
      pieces,
    }:
    let
      all = flake.nixosConfigurations or (throw "${shown} has no nixosConfigurations");
      plain = builtins.filter (name: builtins.match "[A-Za-z0-9._+-]{1,64}" name != null) (
        builtins.attrNames all
      );
      base =
        all.${attr}
          or (throw "${shown} has no nixosConfigurations.${attr}; it has ${builtins.concatStringsSep ", " plain}");
    in
    if base ? extendModules then
      base.extendModules { modules = map module pieces; }
    else
      throw "nixosConfigurations.${attr} of ${shown} has no extendModules, so that no module can be added: make it with nixosSystem of nixpkgs";
}
