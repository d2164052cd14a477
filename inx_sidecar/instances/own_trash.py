"""Delete what former starts have left of a store of its own, beside the instance that runs.

These are paths that a start has moved away in the root file system, and the layers of former views.
"""

import asyncio
import shutil
from collections.abc import Iterable

from inx_sidecar.base.errors import InxError
from inx_sidecar.base.journal import instance_log
from inx_sidecar.container.namespaces import Container
from inx_sidecar.container.upper_layer import empty_trash, has_trash
from inx_sidecar.incus.instance import Instance
from inx_sidecar.incus.running_record import Running
from inx_sidecar.instances.own_view import other_views


class OwnTrash:
    """One task for each start. What a task does not delete, as when the instance stops, the next
    start finds."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def empty_soon(self, instance: Instance) -> None:
        """`instance` has started, and is recorded as running."""
        running = Running.load(instance.uuid)
        if running is not None and running.view:
            # Found now: the layer of a later start is not among them.
            layers = other_views(instance.uuid, running.view)
            task = asyncio.create_task(_empty(instance, running, layers))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)


async def _empty(instance: Instance, running: Running, layers: Iterable[str]) -> None:
    for layer in layers:
        await asyncio.to_thread(shutil.rmtree, layer, ignore_errors=True)
    if not has_trash(instance.rootfs, instance.name):
        return
    try:
        with Container(running.pid, instance.lxc_name) as container:
            now = Running.load(instance.uuid)
            if now is not None and (now.pid, now.started) == (running.pid, running.started):
                await empty_trash(container)
    except InxError as error:
        instance_log(instance.lxc_name).info("%s", error)
