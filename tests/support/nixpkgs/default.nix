# The packages.
{
  system ? builtins.currentSystem,
  config ? { },
  overlays ? [ ],
  lib ? import ./lib,
}:
let
  # deps.json has store paths as plain strings. The string context makes them dependencies of what is built.
  inStore = path: builtins.appendContext path { ${path}.path = true; };
  gathered = builtins.fromJSON (builtins.readFile ./tiny/deps.json);
  deps = builtins.mapAttrs (name: value: if name == "system" then value else inStore value) gathered;

  runCommand =
    name: variables: script:
    derivation (
      variables
      // {
        inherit name system;
        builder = "${deps.busybox}/bin/sh";
        args = [
          "-euc"
          script
        ];
        PATH = "${deps.busybox}/bin";
      }
    )
    // {
      inherit name;
      meta = { };
    };
  write = name: path: executable: text: runCommand name { inherit text; } ''
    mkdir -p "$(dirname "$out${path}")"
    printf %s "$text" >"$out${path}"
    ${lib.optionalString executable ''chmod +x "$out${path}"''}
  '';
  script = text: "#!${deps.busybox}/bin/sh\n${text}";

  packages = rec {
    inherit
      config
      deps
      lib
      runCommand
      ;
    path = ./.;
    stdenv.hostPlatform = { inherit system; };
    busybox = deps.busybox;
    nix = deps.nix;
    hello = writeShellScriptBin "hello" "echo 'Hello, world!'";
    nginx = writeShellScriptBin "nginx" "echo nginx";
    distrobuilder.generator = runCommand "distrobuilder-generator" { } "mkdir $out";
    writeText = name: write name "" false;
    writeTextDir = path: write (baseNameOf path) "/${path}" false;
    writeShellScript = name: text: write name "" true (script text);
    writeShellScriptBin = name: text: write name "/bin/${name}" true (script text);
    symlinkJoin = { name, paths }: runCommand name { } ''
      mkdir $out
      for path in ${toString paths}; do cp -rs "$path"/. $out; done
    '';
  };
in
assert system == deps.system;
builtins.foldl' (prev: overlay: let final = prev // overlay final prev; in final) packages overlays
