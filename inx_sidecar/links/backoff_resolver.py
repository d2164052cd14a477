"""Resolve the links of one instance, and bear with file systems in it that do not answer.

A path that did not answer keeps what it held. It is looked at again after a backoff.
"""

from collections.abc import Iterable, Mapping
from typing import Final

from inx_sidecar.base.errors import quoted
from inx_sidecar.base.journal import instance_log
from inx_sidecar.kernel.forked import TookTooLongError
from inx_sidecar.links import resolver
from inx_sidecar.links.backoff import Backoff
from inx_sidecar.links.link_state import LinkState
from inx_sidecar.links.resolver import InitProcess, Resolution, ResolvedLink

# After so many paths that do not answer, the others wait for the next turn.
_MAX_UNANSWERED: Final = 2
_UNSURE: Final = ResolvedLink(sure=False)


class BackoffResolver:
    """`process` is None if the instance does not run: then its root file system is looked at."""

    def __init__(self, lxc_name: str, rootfs: str, process: InitProcess | None) -> None:
        self._lxc_name = lxc_name
        self._rootfs = rootfs
        self._process = process
        self._journal = instance_log(lxc_name)
        self._backoff = Backoff()
        self._unanswered: dict[str, Backoff] = {}
        self._problem = ""
        self._chances = _MAX_UNANSWERED
        # The state of the paths of the last call of `resolve`; None if it is not known.
        self.state: LinkState | None = None

    @property
    def unresponsive(self) -> bool:
        """A file system in the instance did not answer of late: no task waits for this instance."""
        return self._backoff.lasts()

    @property
    def incomplete(self) -> bool:
        """A path did not answer when it was last looked at."""
        return self.unresponsive or bool(self._unanswered)

    @property
    def unanswered(self) -> str | None:
        """A path whose file system does not answer."""
        texts = (text for text, backoff in self._unanswered.items() if backoff.lasts())
        return next(texts, None)

    def begin_turn(self) -> None:
        """Every file system gets a chance to answer again."""
        self._chances = _MAX_UNANSWERED

    async def resolve(
        self, texts: Iterable[str], last_found: Mapping[str, frozenset[str]] | None = None
    ) -> dict[str, ResolvedLink]:
        """The link at each path; nothing is sure of a path that does not answer. For `last_found`,
        see `resolver.resolve_links`.

        TookTooLongError if none answered in time; InstanceError if the container has ended.
        """
        self.state = None
        links = dict.fromkeys(texts, _UNSURE)
        left = [text for text in links if not self._backs_off(text)]
        while left and self._chances:
            resolution = await self._resolve_once(left, last_found)
            links |= resolution.links
            if resolution.child_exited is not None:
                self._backoff = self._backoff.longer(resolution.child_exited)
            silent = resolution.unanswered
            if silent is None:
                self.state = resolution.state if len(resolution.links) == len(links) else None
                self._unanswered = {
                    text: backoff for text, backoff in self._unanswered.items() if backoff.lasts()
                }
                break
            self._unanswered[silent] = self._backoff
            self._chances -= 1
            self._journal.warning(
                "the file system at %s does not answer; what is linked there is kept as it is",
                quoted(silent),
            )
            left = left[left.index(silent) + 1 :]
        return links

    def _backs_off(self, text: str) -> bool:
        return text in self._unanswered and self._unanswered[text].lasts()

    async def _resolve_once(
        self, texts: list[str], last_found: Mapping[str, frozenset[str]] | None
    ) -> Resolution:
        try:
            if self._process is None:
                return await resolver.resolve_links_offline(self._lxc_name, self._rootfs, texts)
            resolution = await resolver.resolve_links(
                self._lxc_name, self._process, texts, last_found
            )
        except TookTooLongError as error:
            self._backoff = self._backoff.longer(error.ended)
            raise
        if resolution.problem and resolution.problem != self._problem:
            self._journal.warning("%s", resolution.problem)
        self._problem = resolution.problem
        return resolution
