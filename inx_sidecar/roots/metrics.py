"""What a monitoring system wants to know of instances, as a file that it reads by itself.

The text is OpenMetrics, which the textfile collector of Prometheus' node_exporter reads too
(https://prometheus.io/docs/specs/om/open_metrics_spec). A child process collects: many instances
have many roots, and the sizes of closures take time.
"""

import asyncio
import logging
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Final

from inx_sidecar.base import paths
from inx_sidecar.base.errors import InxError, UnsupportedError
from inx_sidecar.builds import build_counts
from inx_sidecar.config.settings import load_settings
from inx_sidecar.kernel import forked
from inx_sidecar.nix.store_paths import valid_paths
from inx_sidecar.roots import direct_roots, system_roots
from inx_sidecar.roots.held_bytes import held_bytes, host_roots

_PERIOD_SECONDS: Final = 300.0
_LONGEST_SECONDS: Final = 120.0
_LOWEST_PRIORITY: Final = 19
_READABLE: Final = 0o644
_GENERATION: Final = "system-"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class InstanceFigures:
    """What is known of one instance; `name` is that in LXC, `system` what runs or ran last."""

    name: str
    uuid: str
    system: str
    generations: int
    roots: int
    lost_roots: int
    held_bytes: int
    builds: int
    failed_builds: int


async def keep_writing() -> None:
    """Write the file every five minutes, while the setting `metrics` is on, until this task is
    cancelled. An error is logged once."""
    told = ""
    while True:
        problem = ""
        try:
            if load_settings().metrics:
                await write()
        except (InxError, OSError, RuntimeError) as error:
            problem = str(error)
        if problem and problem != told:
            log.warning("no metrics are written: %s", problem)
        told = problem
        await asyncio.sleep(_PERIOD_SECONDS)


async def write() -> None:
    """Replace the file paths.METRICS; an InxError, and the file as it was, if that fails."""
    file = paths.METRICS

    def collect_and_write() -> forked.Result:
        os.nice(_LOWEST_PRIORITY)
        text = "".join(f"{line}\n" for line in render(collect()))
        os.makedirs(os.path.dirname(file), exist_ok=True)
        # The collector of node_exporter reads files that end in .prom.
        temporary = f"{file}.new"
        with open(temporary, "w", encoding="utf-8") as new:
            os.fchmod(new.fileno(), _READABLE)
            new.write(text)
        os.rename(temporary, file)
        return None, []

    await forked.run_in_child(
        collect_and_write, f"writing {file}", _LONGEST_SECONDS, group="metrics"
    )


def collect() -> list[InstanceFigures]:
    """The figures of all instances that have roots; UnsupportedError without Nix's database."""
    roots = {
        owner: direct_roots.read(direct_roots.directory(*owner))
        for owner in sorted(direct_roots.owners())
    }
    try:
        with closing(sqlite3.connect(f"file:{paths.NIX_DB}?mode=ro", uri=True, timeout=5)) as db:
            held = held_bytes(
                db, {owner: set(own.values()) for owner, own in roots.items()}, host_roots()
            )
    except sqlite3.Error as error:
        raise UnsupportedError(f"cannot read Nix's database {paths.NIX_DB}: {error}") from None
    return [_figures(*owner, own, held[owner]) for owner, own in roots.items()]


def _figures(name: str, uuid: str, roots: Mapping[str, str], held: int) -> InstanceFigures:
    valid = valid_paths(roots.values())
    return InstanceFigures(
        name,
        uuid,
        system=roots.get(system_roots.ACTIVE) or roots.get(system_roots.BOOTED, ""),
        generations=sum(root.startswith(_GENERATION) for root in roots),
        roots=len(roots),
        lost_roots=sum(path not in valid for path in roots.values()),
        held_bytes=held,
        builds=build_counts.ended[uuid],
        failed_builds=build_counts.failed[uuid],
    )


_GAUGES: Final[tuple[tuple[str, str, Callable[[InstanceFigures], int]], ...]] = (
    ("inx_generations", "Generations of the system.", lambda item: item.generations),
    ("inx_roots", "GC roots on the host.", lambda item: item.roots),
    ("inx_lost_roots", "GC roots whose store path is missing.", lambda item: item.lost_roots),
    (
        "inx_held_bytes",
        "What a collection would delete if the instance was deleted.",
        lambda item: item.held_bytes,
    ),
)
_COUNTERS: Final[tuple[tuple[str, str, Callable[[InstanceFigures], int]], ...]] = (
    ("inx_builds", "Builds of the system since the sidecar began.", lambda item: item.builds),
    ("inx_failed_builds", "Builds of these that failed.", lambda item: item.failed_builds),
)


def render(instances: Iterable[InstanceFigures]) -> Iterator[str]:
    """The lines of the file."""
    present = list(instances)
    yield "# TYPE inx_system gauge"
    yield "# HELP inx_system The system that the instance runs, or ran last."
    for item in present:
        if item.system:
            yield f'inx_system{{{_labels(item)},path="{_escaped(item.system)}"}} 1'
    for name, help_text, value in _GAUGES:
        yield f"# TYPE {name} gauge"
        yield f"# HELP {name} {help_text}"
        for item in present:
            yield f"{name}{{{_labels(item)}}} {value(item)}"
    for name, help_text, value in _COUNTERS:
        yield f"# TYPE {name} counter"
        yield f"# HELP {name} {help_text}"
        for item in present:
            yield f"{name}_total{{{_labels(item)}}} {value(item)}"
    yield "# EOF"


def _labels(item: InstanceFigures) -> str:
    return f'instance="{_escaped(item.name)}",uuid="{_escaped(item.uuid)}"'


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
