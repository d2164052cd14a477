# Stand-ins for the packages and functions of nixpkgs that the modules of inx use. A generated file is its value, so that tests can
# compare it.
{ lib }:
let
  package = name: { inherit name; };
  format = {
    type = lib.types.attrsOf lib.types.anything;
    generate = _: value: value;
  };
in
{
  callPackage = _: _: {
    name = "inx";
    outPath = "/nix/store/00000000000000000000000000000000-inx";
  };
  distrobuilder.generator = "/distrobuilder";
  formats.toml = _: format;
  formats.yaml = _: format;
  git = package "git";
  path = ../.;
  stdenv.hostPlatform.system = "x86_64-linux";
  util-linux = package "util-linux";
  writeShellScript = _: text: text;
  writeText = _: text: builtins.fromJSON (builtins.unsafeDiscardStringContext text);
}
