# The outputs of flake.nix, and the arguments of nix/package.nix, with stand-ins for the packages of nixpkgs.
{
  lib ? import <nixpkgs/lib>,
}:
let
  python3 = {
    interpreter = "/nix/store/22222222222222222222222222222222-python3/bin/python3";
    sitePackages = "lib/python3/site-packages";
    pkgs =
      lib.genAttrs [
        "click"
        "h11"
        "inotify-simple"
        "jeepney"
        "logging-journald"
        "pyroute2"
        "pyyaml"
      ] (name: name)
      // {
        buildPythonApplication = arguments: arguments;
        hatchling = "hatchling";
      };
  };
  package = import ../../nix/package.nix {
    inherit lib python3;
    pkgsStatic.busybox = "/nix/store/44444444444444444444444444444444-busybox";
  };

  pkgs = {
    inherit lib;
    callPackage = _: _: "the package";
    mkShell = shell: shell;
    nixfmt = "nixfmt";
    nixfmt-tree = "nixfmt-tree";
    path = ./nixpkgs;
    pkgsStatic.busybox = "/nix/store/44444444444444444444444444444444-busybox";
    python3.withPackages = _: "python";
    ruff = "ruff";
    stdenv.hostPlatform.system = "x86_64-linux";
    testers.runNixOSTest =
      test:
      let
        evaluated = test { inherit pkgs; };
      in
      {
        inherit (evaluated) name;
        nodes = lib.attrNames evaluated.nodes;
      };
  };
  outputs = (import ../../flake.nix).outputs {
    self = outputs;
    nixpkgs = {
      inherit lib;
      legacyPackages.x86_64-linux = pkgs;
      legacyPackages.aarch64-linux = pkgs;
    };
  };
in
{
  package = {
    inherit (package) pname version dependencies;
    files = lib.attrNames (builtins.readDir package.src);
  };
  outputs = lib.attrNames outputs;
  checks = outputs.checks.x86_64-linux;
  modules = lib.mapAttrs (_: module: baseNameOf module) outputs.nixosModules;
  template = builtins.pathExists "${outputs.templates.default.path}/flake.nix";
}
