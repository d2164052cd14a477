# A NixOS configuration of modules.
{
  system ? builtins.currentSystem,
  lib ? import ../../lib,
  modules,
  specialArgs ? { },
  prefix ? [ ],
}@args:
let
  file = (builtins.unsafeGetAttrPos "modules" args).file or null;
  located = if file == null then modules else map (lib.setDefaultModuleLocation file) modules;

  withMore =
    evaluated:
    evaluated
    // {
      inherit lib;
      inherit (evaluated._module.args) pkgs;
      extendModules = more: withMore (evaluated.extendModules more);
    };
in
withMore (
  lib.evalModules {
    inherit prefix;
    class = "nixos";
    specialArgs = {
      modulesPath = toString ../modules;
    }
    // specialArgs;
    modules = [
      ../modules/options.nix
      ../modules/system.nix
      {
        _file = ./eval-config.nix;
        nixpkgs = lib.optionalAttrs (system != null) { system = lib.mkDefault system; };
      }
    ]
    ++ located;
  }
)
