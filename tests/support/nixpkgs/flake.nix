# A small stand-in for nixpkgs, for tests. tests/support/nixpkgs.py puts it on a disposable host, with files of example/tiny, and
# says what it has.
{
  outputs =
    { self }:
    let
      lib = (import ./lib).extend (
        _: prev: {
          trivial = prev.trivial // {
            versionSuffix = ".${builtins.substring 0 8 self.lastModifiedDate}.${self.shortRev or "dirty"}";
            revisionWithDefault = default: self.rev or default;
          };
          nixosSystem =
            args:
            import ./nixos/lib/eval-config.nix (
              {
                inherit lib;
                system = null;
              }
              // args
              // {
                modules = args.modules ++ [ { nixpkgs.flake.source = self.outPath; } ];
              }
            );
        }
      );
      system = (builtins.fromJSON (builtins.readFile ./tiny/deps.json)).system;
    in
    {
      inherit lib;
      legacyPackages.${system} = import ./. { inherit system; };
    };
}
