"""Where the links of an instance were last found that are not on its root file system.

`/var/lib/inx/UUID/away.json` keeps it for the next sidecar.
"""

import json
import logging
import os
from typing import Final

from inx_sidecar.base import paths
from inx_sidecar.links.resolver import ResolvedLink

# One for all: each instance is compared at once when a sidecar starts, and most links are at home.
_NOWHERE: Final[frozenset[str]] = frozenset()

log = logging.getLogger(__name__)


class LinkPlaces:
    """The places of each link, by the name of its registration."""

    def __init__(self, uuid: str) -> None:
        self._file = f"{paths.STATE}/{uuid}/away.json"
        self._places = self._load()
        self._saved = dict(self._places)

    def last_found(self, name: str) -> frozenset[str]:
        return self._places.get(name, _NOWHERE)

    def remember(self, name: str, link: ResolvedLink) -> None:
        """Note where `link` was found. If it was found nowhere, the places noted before stay."""
        if any(link.targets.values()):
            self.forget(name)
        elif link.targets:
            self._places[name] = link.found

    def forget(self, name: str) -> None:
        self._places.pop(name, None)

    def save(self) -> None:
        """If the file cannot be written, only this sidecar knows the places."""
        if self._places == self._saved:
            return
        try:
            self._write()
        except OSError as error:
            log.debug("%s", error)

    def _write(self) -> None:
        self._saved = dict(self._places)
        # Each place is written once: many links lie at few places.
        numbers = {
            place: number
            for number, place in enumerate(sorted(set().union(*self._places.values())))
        }
        links = {
            name: sorted(numbers[place] for place in places)
            for name, places in self._places.items()
        }
        with open(f"{self._file}.new", "w") as file:
            json.dump({"places": list(numbers), "links": links}, file)
        os.rename(f"{self._file}.new", self._file)

    def _load(self) -> dict[str, frozenset[str]]:
        try:
            with open(self._file) as file:
                saved = json.load(file)
            if "links" not in saved:  # inx 0.1 wrote the places at each link
                return {name: frozenset(places) for name, places in saved.items()}
            places = saved["places"]
            return {
                name: frozenset(places[number] for number in numbers)
                for name, numbers in saved["links"].items()
            }
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return {}
