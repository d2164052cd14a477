"""File handles (open_by_handle_at(2)): names of files that need no path."""

import ctypes
import errno
import os
import struct
import sys

from support.attacker.kernel import AT_FDCWD, AT_HANDLE_FID, libc

Handle = tuple[int, str]  # its type, and its bytes as hexadecimal digits


def _handle_of(path: str, flags: int) -> Handle | None:
    buffer = ctypes.create_string_buffer((128).to_bytes(4, sys.byteorder), 136)
    mount_id = ctypes.byref(ctypes.c_int())
    if libc.name_to_handle_at(AT_FDCWD, os.fsencode(path), buffer, mount_id, flags):
        return None
    length, kind = struct.unpack_from("=Ii", buffer.raw)
    return kind, buffer.raw[8 : 8 + length].hex()


def _packed(handle: Handle) -> bytes:
    kind, value = handle
    raw = bytes.fromhex(value)
    return struct.pack("=Ii", len(raw), kind) + raw


def handles_of(paths: list[str]) -> dict[str, Handle]:
    """The handle of each path that has one."""
    found = {path: _handle_of(path, 0) for path in paths}
    return {path: handle for path, handle in found.items() if handle}


def open_handle(base: str, handle: Handle) -> None:
    """Open the file with this handle on the file system of `base`."""
    fd = libc.open_by_handle_at(os.open(base, os.O_RDONLY), _packed(handle), os.O_RDONLY)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "")


def open_handles(known: dict[str, Handle], bases: list[str]) -> dict[str, str]:
    """Open each handle at each base, as a file and as a directory: "opened", or the error."""
    outcome = {}
    for base in bases:
        base_fd = os.open(base, os.O_RDONLY)
        for path, handle in known.items():
            for flags in (os.O_RDONLY, os.O_RDONLY | os.O_DIRECTORY, os.O_PATH | os.O_DIRECTORY):
                fd = libc.open_by_handle_at(base_fd, _packed(handle), flags)
                how = "opened" if fd >= 0 else errno.errorcode[ctypes.get_errno()]
                outcome[f"{path} at {base} with {flags:o}"] = how
                if fd >= 0:
                    os.close(fd)
        os.close(base_fd)
    return outcome


def wrapped(known: dict[str, Handle], path: str) -> dict[str, Handle]:
    """The handles as the overlay at `path` would write them (fs/overlayfs/overlayfs.h, ovl_fh)."""
    pattern = _handle_of(path, AT_HANDLE_FID)
    if not pattern:
        raise OSError(ctypes.get_errno(), "name_to_handle_at")
    made = {path: pattern}
    for name, (inner, value) in known.items():
        fid = bytes.fromhex(value)
        head = bytearray(bytes.fromhex(pattern[1])[: 3 + 21])
        head[3 + 2], head[3 + 4] = 21 + len(fid), inner
        made[f"wrapped {name}"] = (pattern[0], bytes(head + fid).hex())
    return made
