# The package of inx for nixpkgs: the files that `pip install` installs, with absolute paths in hooks and units.
{
  lib,
  pkgsStatic,
  python3,
}:
let
  inherit (python3.pkgs) buildPythonApplication hatchling;
  project = (lib.importTOML ../pyproject.toml).project;
in
buildPythonApplication {
  pname = project.name;
  inherit (project) version;
  pyproject = true;

  src = lib.fileset.toSource {
    root = ../.;
    fileset = lib.fileset.unions [
      ../pyproject.toml
      ../README.md
      ../LICENSE
      ../inx_sidecar
      ../hooks
      ./container.nix
      ./modules.nix
      ../profiles
      ../systemd
    ];
  };

  build-system = [ hatchling ];

  # pyproject.toml names the dependencies. nixpkgs has the same names in lower case.
  dependencies = map (
    requirement:
    python3.pkgs.${lib.toLower (lib.head (builtins.match "([A-Za-z0-9._-]+).*" requirement))}
  ) project.dependencies;

  # The sidecar copies this busybox. It runs as PID 1 of a container until the system of the container exists.
  makeWrapperArgs = [
    "--suffix"
    "PATH"
    ":"
    "${pkgsStatic.busybox}/bin"
  ];

  # The hooks start with the static busybox. `init` keeps the path of busybox in the container.
  dontPatchShebangs = true;

  # A hook needs only the plain interpreter.
  postInstall = ''
    share=$out/share/inx
    chmod 755 $share/hooks/*
    mkdir -p $out/libexec/inx
    ln -s $out/${python3.sitePackages}/inx_sidecar/hook.py $out/libexec/inx/hook
    for hook in pre-start mount stop; do
      substituteInPlace $share/hooks/$hook \
        --replace-fail /opt/inx/libexec/inx/busybox ${pkgsStatic.busybox}/bin/busybox \
        --replace-fail /opt/inx/bin/python ${python3.interpreter} \
        --replace-fail /opt/inx/libexec/inx/hook $out/libexec/inx/hook
    done

    # inx 0.1 called this hook start-host, and raw.lxc of older instances uses that name.
    ln -s mount $share/hooks/start-host

    for unit in $share/systemd/*.service $share/systemd/*.socket $share/systemd/*.slice; do
      install -D -m 644 $unit -t $out/lib/systemd/system
    done
    sed -i "s,/opt/inx/,$out/," $out/lib/systemd/system/*
    install -D -m 644 $share/systemd/inx.sysusers.conf $out/lib/sysusers.d/inx.conf
    install -D -m 644 $share/systemd/inx.tmpfiles.conf $out/lib/tmpfiles.d/inx.conf

    share=$out/share
    mkdir -p $share/bash-completion/completions $share/zsh/site-functions $share/fish/vendor_completions.d
    _INX_SIDECAR_COMPLETE=bash_source $out/bin/inx-sidecar >$share/bash-completion/completions/inx-sidecar
    _INX_SIDECAR_COMPLETE=zsh_source $out/bin/inx-sidecar >$share/zsh/site-functions/_inx-sidecar
    _INX_SIDECAR_COMPLETE=fish_source $out/bin/inx-sidecar >$share/fish/vendor_completions.d/inx-sidecar.fish
  '';

  # The tests boot hosts with Incus. The checks of the flake run tests on NixOS.
  doCheck = false;
  pythonImportsCheck = [
    "inx_sidecar.cli"
    "inx_sidecar.command"
    "inx_sidecar.declared.converge"
    "inx_sidecar.hook"
    "inx_sidecar.server"
  ];

  meta = {
    inherit (project) description;
    license = lib.licenses.mit;
    platforms = lib.platforms.linux;
    mainProgram = "inx-sidecar";
  };
}
