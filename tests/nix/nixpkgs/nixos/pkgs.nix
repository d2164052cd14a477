# Stand-ins for what the modules of inx take from nixpkgs: what is generated is shown as it would stand in the file.
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
  distrobuilder.generator = package "distrobuilder-generator";
  formats.toml = _: format;
  formats.yaml = _: format;
  git = package "git";
  path = ../.;
  stdenv.hostPlatform.system = "x86_64-linux";
  util-linux = package "util-linux";
  writeText = _: text: builtins.fromJSON (builtins.unsafeDiscardStringContext text);
}
