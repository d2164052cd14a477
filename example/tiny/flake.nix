# Small systems, built without nixpkgs and without network, to try and to test inx. `./gather DIR` copies this flake to DIR,
# and writes DIR/deps.json: the store paths of this machine's busybox, Nix client and systemd.
{
  outputs =
    { self }:
    let
      # deps.json has the store paths as plain strings. The string context makes them dependencies of the systems, and the
      # flake itself stays a few kilobytes.
      inStore = path: builtins.appendContext path { ${path}.path = true; };
      gathered = builtins.fromJSON (builtins.readFile ./deps.json);
      deps = builtins.mapAttrs (name: value: if name == "system" then value else inStore value) gathered;

      nixos = toplevel: { config.system.build.toplevel = toplevel; };
      systems = {
        web = import ./system.nix {
          inherit deps;
          name = "web";
        };
        second = import ./system.nix {
          inherit deps;
          name = "second";
          version = "2";
          extra.greeting = "hello from the second system\n";
        };
        systemd = import ./systemd.nix {
          inherit deps;
          name = "systemd";
        };
      };
    in
    {
      nixosConfigurations = builtins.mapAttrs (_: nixos) systems;
    };
}
