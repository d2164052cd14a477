# The settings of a host, as README.md lists them; a test keeps them and inx_sidecar/config/settings.py equal.
{ lib }:
let
  inherit (lib) types;
  setting =
    type: default: description:
    lib.mkOption { inherit type default description; };
in
{
  default_flake = setting types.str "/etc/nixos" "The flake of instances that name no source.";

  allowed_flakes = setting (types.listOf types.str) [ "" ] ''
    Prefixes of flake references and files that may be built, whole path components.
  '';

  build_user = setting (types.strMatching "[a-z_][a-z0-9_-]{0,31}") "inx-build" ''
    Who builds what is fetched, or does not belong to one user.
  '';

  build_memory_max = setting (types.strMatching "[1-9][0-9]*[KMGT%]?|infinity") "50%" ''
    Memory of one evaluation, as systemd's `MemoryMax=`.
  '';

  build_timeout = setting types.ints.positive 7200 "Seconds that one build may take.";

  max_builds = setting types.ints.positive 2 "Builds at once; others wait their turn.";

  max_roots_per_instance = setting types.ints.positive 20000 ''
    Links that one instance may keep; newer ones are not kept, its status says so.
  '';
}
