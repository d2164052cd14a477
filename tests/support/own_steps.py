"""Steps in the life of an instance with a store of its own, in any order, and a look after each."""

from collections.abc import Callable, Iterable

from support.incus import Incus
from support.isolated import restart
from support.own import BUILD, NIX_CONFIG, RIGHT, own, part_of, system
from support.services import restart_sidecar, sync
from support.store import collect

# The store inside is right, what was built and is rooted can be read, and `$system` runs.
_LOOK = f"""
    {RIGHT}
    for link in /root/rooted-*; do
        [ ! -L "$link" ] || grep -q part "$link/part"
    done
    [ "$(readlink -f /run/current-system)" = "$system" ]
    cat "$system/etc/part" "$(cat "$system/etc/part")" >/dev/null
"""
# Every path that the host shows is valid on the host.
_SHOWN = """
    ls "/proc/$P/root/nix/.inx" | sed 's,^,/nix/store/,' | xargs nix-store --check-validity
"""


class Life:
    """An instance that has been shown `systems`, and runs one of them. `steps` are by name."""

    def __init__(self, incus: Incus, count: int = 3) -> None:
        self.incus = incus
        self.systems = [system(incus, number + 1) for number in range(count)]
        self._parts = {toplevel: part_of(incus, toplevel) for toplevel in self.systems}
        self._number = 0
        self._booted = 0
        self._built = 0
        self.name = own(incus, self.systems[0])
        self.steps: dict[str, Callable[[], object]] = {
            "update": lambda: self._update(1),
            "roll back": lambda: self._update(-1),
            "restart": self._restart,
            "restart the sidecar": lambda: restart_sidecar(incus.host),
            "build": lambda: self._build("/root/rooted-$name"),
            "build without a root": lambda: self._build("/root/loose; trap 'rm /root/loose' EXIT"),
            "unroot": lambda: self._sh("rm -f /root/rooted-*"),
            "collect": lambda: self._sh("nix-store --gc"),
            "collect all": lambda: self._sh("nix-collect-garbage -d"),
            "delete one": self._delete,
            "remove one": self._remove,
            "collect on the host": self._collect_on_the_host,
            "drop on the host": self._drop_on_the_host,
        }

    @property
    def current(self) -> str:
        return self.systems[self._number]

    def run(self, names: Iterable[str]) -> None:
        """Run these steps, with a look after each."""
        done: list[str] = []
        for name in names:
            done.append(name)
            try:
                self.steps[name]()
                self.look()
            except Exception as error:
                raise AssertionError(f"after {', '.join(done)}: {error}") from error

    def look(self) -> None:
        pid = self.incus.pid(self.name)
        self.incus.host.sh(_SHOWN, env={"P": str(pid)})
        look = f"system={self.current}\n{_LOOK}"
        done = self.incus.sh(self.name, look, check=False)
        assert done.returncode == 0, done.stdout + done.stderr + self.incus.story()

    def _sh(self, script: str) -> None:
        self.incus.sh(self.name, script)

    def _update(self, step: int) -> None:
        self._number = (self._number + step) % len(self.systems)
        incus, name = self.incus, self.name
        assert system(incus, self._number + 1) == self.current  # it may have been collected
        incus.set(name, f"user.inx.system={self.current}")
        incus.eventually(
            lambda: (
                incus.get(name, "user.inx.status.system") == self.current
                and incus.status(name).startswith("ready")
            ),
            incus.story,
        )

    def _build(self, link: str) -> None:
        self._built += 1
        part = self._parts[self.current]
        self._sh(f"name=built-{self._built}; part={part}; link={link}\n{BUILD}")

    def _restart(self) -> None:
        restart(self.incus, self.name)
        self._booted = self._number

    def _others(self) -> str:
        """Shell text: the systems that no process uses."""
        used = {self.current, self.systems[self._booted]}
        return " ".join(path for path in self.systems if path not in used)

    def _delete(self) -> None:
        """Nix deletes each of the others that nothing inside keeps."""
        self._sh(f"""
            export NIX_CONFIG='{NIX_CONFIG}'
            for path in {self._others()}; do nix-store --delete "$path" || :; done
        """)

    def _remove(self) -> None:
        """Root removes the others itself, and Nix takes note of it."""
        self._sh(f"rm -rf {self._others()}; nix-store --verify || :")

    def _collect_on_the_host(self) -> None:
        sync(self.incus.host)
        collect(self.incus.host)

    def _drop_on_the_host(self) -> None:
        """Nothing on the host keeps the systems any more but the instance."""
        links = [
            f"/srv/{self.incus.prefix}-own-s{number + 1}" for number in range(len(self.systems))
        ]
        self.incus.host.run(["rm", "-f", *links])
        self._collect_on_the_host()
