# The option that lets the members of a cluster fetch from each other what a moved instance needs.
#
# nix.sshServe is what NixOS has for a store that others read. SSH keys keep containers out, which may reach the same network:
# an HTTP server would show each path of the store also to an isolated container. Paths that containers have built have no
# signature of this host: so the host key of the member vouches for them (trusted=true).
{ config, lib, ... }:
let
  inherit (lib) mkOption types;

  cfg = config.virtualisation.inx;
  own = config.networking.hostName;
  others = lib.filterAttrs (name: _: name != own) cfg.members;
  each = f: lib.mapAttrsToList f others;
  alias = name: "inx-${name}";
in
{
  options.virtualisation.inx.members = mkOption {
    type = types.attrsOf (
      types.submodule {
        options = {
          address = mkOption {
            type = types.strMatching "[A-Za-z0-9.:_-]+";
            example = "192.0.2.1";
            description = "The name or address at which the other members reach the SSH server of this one.";
          };
          publicKey = mkOption {
            type = types.strMatching "ssh-ed25519 [^\n\"]+";
            example = "ssh-ed25519 AAAA...";
            description = "The text of {file}`/etc/ssh/ssh_host_ed25519_key.pub` of this member.";
          };
        };
      }
    );
    default = { };
    description = ''
      The members of a cluster by {option}`networking.hostName`, the same on each of them. They fetch from each other, by SSH
      and with their host keys, what an instance needs that has moved.
    '';
  };

  config = lib.mkIf (cfg.enable && cfg.members != { }) {
    assertions = [
      {
        assertion = cfg.members ? ${own};
        message = "virtualisation.inx.members has no ${own}, which is the networking.hostName of this host: the others would not know its key.";
      }
    ];

    nix.sshServe = {
      enable = true;
      protocol = "ssh";
      keys = each (_: member: member.publicKey);
    };
    nix.settings.extra-allowed-users = [ "nix-ssh" ];
    # Nix asks these only on request: no other build waits for a member that is away.
    nix.settings.trusted-substituters = each (name: _: "ssh://${alias name}?trusted=true");

    programs.ssh.knownHosts = lib.mapAttrs' (
      name: member: lib.nameValuePair (alias name) { inherit (member) publicKey; }
    ) others;
    programs.ssh.extraConfig = lib.concatStrings (
      each (
        name: member: ''
          Host ${alias name}
            HostName ${member.address}
            HostKeyAlias ${alias name}
            User nix-ssh
            IdentityFile /etc/ssh/ssh_host_ed25519_key
            BatchMode yes
            ConnectTimeout 2
        ''
      )
    );
  };
}
