"""Errors of the previous and of this comparison, by uuid: an error that stays is logged once."""

from collections.abc import Callable

from inx_sidecar.base.journal import instance_log


class ComparisonErrors:
    """`show` is called with the uuid and the text of each complaint."""

    def __init__(self, show: Callable[[str, str], None]) -> None:
        self._show = show
        self._previous: dict[str, str] = {}
        self._current: dict[str, str] = {}

    def begin_comparison(self) -> None:
        self._previous, self._current = self._current, {}

    def add(self, uuid: str, lxc_name: str, error: Exception) -> None:
        self._show(uuid, str(error))
        logged = self._previous.get(uuid) or self._current.get(uuid)
        self._current[uuid] = str(error)
        if logged != str(error):
            instance_log(lxc_name).error("%s", error)

    @property
    def first(self) -> str:
        """A complaint of this comparison; empty if there is none."""
        return min(self._current.values(), default="")
