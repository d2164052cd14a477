# Small systems without nixpkgs and without network, for trying and testing inx. `./gather DIR` makes a copy of this flake in DIR and writes
# deps.json there: where in the store this machine's busybox, Nix client and systemd lie.
{
  outputs =
    { self }:
    let
      # The paths come as plain strings: the context makes them dependencies, while the flake itself stays a few kilobytes.
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
