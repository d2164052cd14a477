"""A FUSE file system that answers at once, and says who has asked."""

import errno
import os
import struct
from collections.abc import Set

# include/uapi/linux/fuse.h
LOOKUP, FORGET, GETATTR, SETATTR, READLINK, SYMLINK, MKDIR, RENAME = 1, 2, 3, 4, 5, 6, 9, 12
OPEN, STATFS, RELEASE, FLUSH, INIT, OPENDIR, RELEASEDIR, CREATE = 14, 17, 18, 25, 26, 27, 29, 35
INTERRUPT, BATCH_FORGET, RENAME2 = 36, 42, 45
SILENT = {FORGET, INTERRUPT, BATCH_FORGET}
HEADER = struct.Struct("<IIQQIIII")
DIRECTORY, FILE, LINK = 0o40755, 0o100644, 0o120777


class Answers:
    def __init__(self, fuse: int, report: int, directories: Set[str]) -> None:
        self.fuse, self.report, self.directories = fuse, report, directories
        self.nodes: dict[tuple[int, bytes], tuple[int, int]] = {}

    def serve(self) -> None:
        while True:
            request = os.read(self.fuse, 1 << 20)
            _, opcode, unique, node, _, _, pid, _ = HEADER.unpack_from(request)
            os.write(self.report, f"{pid}\n".encode())
            if opcode in SILENT:
                continue
            answer = self.answer(opcode, node, request[HEADER.size :])
            error, body = (-answer, b"") if isinstance(answer, int) else (0, answer)
            try:
                os.write(self.fuse, struct.pack("<IiQ", 16 + len(body), error, unique) + body)
            except OSError as gone:  # who asked was killed
                if gone.errno != errno.ENOENT:
                    raise

    def answer(self, opcode: int, node: int, body: bytes) -> int | bytes:
        if opcode == INIT:
            return struct.pack("<IIIIHHIIHHI7I", 7, 31, 4096, 0, 8, 8, 4096, 1, 0, 0, 0, *[0] * 7)
        if opcode == LOOKUP:
            return self.look_up(node, body.rstrip(b"\0"))
        if opcode in (GETATTR, SETATTR):
            return struct.pack("<QII", 3600, 0, 0) + attributes(node, self.mode(node))
        if opcode == MKDIR:
            return self.entry(node, body[8:].rstrip(b"\0"), DIRECTORY)
        if opcode == SYMLINK:
            return self.entry(node, body.split(b"\0")[0], LINK)
        if opcode == CREATE:
            return self.entry(node, body[16:].rstrip(b"\0"), FILE) + bytes(16)
        if opcode in (OPEN, OPENDIR):
            return bytes(16)
        if opcode == STATFS:
            return struct.pack("<5Q10I", *[0] * 5, 4096, 255, *[0] * 8)
        if opcode in (RENAME, RENAME2, RELEASE, RELEASEDIR, FLUSH):
            return b""
        return errno.ENOSYS

    def look_up(self, node: int, name: bytes) -> int | bytes:
        if (node, name) in self.nodes:
            return self.entry(node, name, self.nodes[node, name][1])
        return (
            self.entry(node, name, DIRECTORY)
            if name.decode() in self.directories
            else (errno.ENOENT)
        )

    def entry(self, node: int, name: bytes, mode: int) -> bytes:
        number, mode = self.nodes.setdefault((node, name), (len(self.nodes) + 2, mode))
        return struct.pack("<QQQQII", number, 0, 3600, 3600, 0, 0) + attributes(number, mode)

    def mode(self, node: int) -> int:
        return dict(self.nodes.values()).get(node, DIRECTORY)


def attributes(node: int, mode: int) -> bytes:
    """struct fuse_attr"""
    return struct.pack("<6Q10I", node, *[0] * 5, *[0] * 3, mode, 1, *[0] * 5)
