"""Let the Nix daemon of the instance hold what the host needs: locks and temporary roots."""

import hashlib
import itertools
import os
import threading
import time

from support.nixworker import NixClient, path_of_text

_DAEMON = "/nix/var/nix/daemon-socket/socket"


def add_temporary_roots(megabytes: int) -> int:
    """Add temporary roots by one connection, until their names have this size.

    Gives the size in megabytes when the daemon closed the connection, or `megabytes`.
    """
    sent = 0
    try:
        client = NixClient(_DAEMON)
        for number in itertools.count(0, 200):
            if sent >= megabytes << 20:
                break
            paths = [f"/nix/store/{'0' * 32}-{each:x>200}" for each in range(number, number + 200)]
            client.add_temp_roots(paths)
            sent += sum(map(len, paths))
    except OSError:
        pass
    return sent >> 20


def hold_a_text(name: str, text: str, connections: int = 1) -> None:
    """Begin to add the text by each connection, over and over; tell `"begun"` once.

    One connection has the lock of the path, the others wait for it.
    """
    digest = hashlib.sha256(text.encode()).hexdigest()
    path = path_of_text(name, digest)

    def upload() -> None:
        while True:
            try:
                client = NixClient(_DAEMON)
                client.begin_upload(path, digest)
                client.await_end()
            except OSError:
                time.sleep(0.01)

    for _ in range(connections):
        threading.Thread(target=upload, daemon=True).start()
    while not os.path.exists(f"{path}.lock"):
        time.sleep(0.01)
    print('"begun"', flush=True)
    threading.Event().wait()
