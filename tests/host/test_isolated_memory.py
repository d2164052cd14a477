"""Isolated instances share the memory of the files that they map."""

import re

import pytest
from support.disposable import Host
from support.incus import Incus
from support.isolated import init_of, ready_made

pytestmark = pytest.mark.isolated


# A process for each root directory that argv names maps the file argv[1] below it and touches every
# page. The program prints the sum of the proportional shares of all processes, in kB.
MAP = """
import mmap, os, sys
path, *roots = sys.argv[1:]
touched, finish = os.pipe(), os.pipe()
children = []
for root in roots:
    children.append(os.fork())
    if children[-1] == 0:
        os.close(finish[1])
        with open(root + path, "rb") as file:
            view = mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ)
        for offset in range(0, len(view), mmap.PAGESIZE):
            view[offset]
        os.write(touched[1], b".")
        os.read(finish[0], 1)
        os._exit(0)
os.close(touched[1])
for _ in children:
    assert os.read(touched[0], 1) == b"."
total = 0
for child in children:
    with open(f"/proc/{child}/smaps") as file:
        within = False
        for line in file:
            words = line.split()
            if "-" in words[0]:
                within = words[-1].endswith(path)
            elif within and words[0] == "Pss:":
                total += int(words[1])
os.close(finish[1])
for child in children:
    os.waitpid(child, 0)
print(total)
"""


def test_a_file_that_ten_instances_map_is_in_memory_once(incus: Incus, host: Host) -> None:
    big = f"/srv/{incus.prefix}-big"
    host.sh('mkdir "$D"; head -c 50M /dev/urandom >"$D/lib.so"', env={"D": big})
    path = host.run(["nix-store", "--add", big]).stdout.strip()
    names = [
        incus.init(
            name=incus.name(f"n{number}"),
            system=ready_made(incus.host),
            store="isolated",
            store_include=path,
        )
        for number in range(10)
    ]
    incus("start", *names)
    for name in names:
        incus.wait_inside(name)
    roots = [f"/proc/{init_of(incus, name)}/root" for name in names]

    def mapped(file: str) -> float:
        """The memory of the file in megabytes; a shared page counts once."""
        found = host.run(["python3", "-I", "-c", MAP, file, *roots]).stdout
        assert re.fullmatch(r"[0-9]+\n", found)
        return int(found) / 1024

    try:
        assert 49 < mapped(f"{path}/lib.so") < 75
        for name in names:
            incus.run(name, "cp", f"{path}/lib.so", "/copy")
        assert 490 < mapped("/copy") < 525
    finally:
        host.run(["rm", "-r", big])
