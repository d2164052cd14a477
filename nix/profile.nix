# The Incus profile of profiles/inx.yaml, for the preseed of a NixOS host. A test checks that both are equal.
{
  pool ? "default",
  network ? "incusbr0",
}:
{
  name = "inx";
  description = "NixOS container that shares the host's /nix/store";
  config."raw.lxc" = ''
    lxc.init.cmd = /dev/.inx/init
    lxc.hook.pre-start = /etc/inx/hooks/pre-start
    lxc.hook.start-host = /etc/inx/hooks/mount
    lxc.hook.stop = /etc/inx/hooks/stop
  '';
  devices = {
    eth0 = {
      type = "nic";
      name = "eth0";
      inherit network;
    };
    root = {
      type = "disk";
      path = "/";
      inherit pool;
    };
  };
}
