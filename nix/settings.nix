# The settings of a host. A test checks that docs/keys.md and inx_sidecar/config/settings.py agree with them.
{ lib }:
let
  inherit (lib) types;
  setting =
    type: default: description:
    lib.mkOption { inherit type default description; };
in
{
  default_flake = setting types.str "/etc/nixos" "The flake of instances that name no source.";

  nixpkgs = setting types.str "flake:nixpkgs" ''
    The nixpkgs of instances whose configuration consists of modules: a flake reference, a path, or the name of a channel.
  '';

  allowed_flakes = setting (types.listOf types.str) [ "" ] ''
    Prefixes of flake references and files that may be built. A prefix matches whole path components.
  '';

  build_user = setting (types.strMatching "[a-z_][a-z0-9_-]{0,31}") "inx-build" ''
    The user that builds fetched sources. Its groups also build sources that several users or an instance can change.
  '';

  build_memory_max = setting (types.strMatching "[1-9][0-9]*[KMGT%]?|infinity") "50%" ''
    The memory limit of one evaluation, in the format of systemd's `MemoryMax=`.
  '';

  build_timeout = setting types.ints.positive 7200 "Seconds that one build may take.";

  max_builds = setting types.ints.positive 2 "The number of builds that may run at once. Other builds wait.";

  max_roots_per_instance = setting types.ints.positive 20000 ''
    Links that one instance may keep. Newer links are not kept, and the status of the instance says so.
  '';

  daemon_memory_max = setting (types.strMatching "[1-9][0-9]*[KMGT%]?|infinity") "50%" ''
    The memory limit of the Nix daemon of an instance without `limits.memory`, and of its builds.
  '';

  daemon_tasks_max = setting types.ints.positive 4096 ''
    Processes and threads of the Nix daemon of an instance without `limits.processes`, and of its builds.
  '';

  builds_per_instance = setting (types.ints.between 1 32) 8 ''
    Builds of one instance that run at once. Other builds of that instance wait.
  '';

  first_build_id = setting (types.ints.between 65536 2147483648) 65536 ''
    The first of 34464 user ids for builds of instances. Each instance with a Nix daemon gets 32 of them.
  '';

  lock_patience = setting types.ints.positive 25 ''
    Seconds that the host waits for a lock that the Nix daemon of an instance holds.
  '';

  max_failures = setting types.ints.unsigned 0 ''
    So many failed updates end a change of a profile. Instances whose update has not begun keep their system.
  '';

  metrics = setting types.bool false ''
    Whether `/run/inx/metrics/inx.prom` gets metrics of all instances every five minutes.
  '';
}
