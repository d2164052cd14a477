"""Delete what a start has moved away from a store of its own, beside the instance that runs."""

import asyncio

from inx_sidecar.base.errors import InxError
from inx_sidecar.base.journal import instance_log
from inx_sidecar.container.namespaces import Container
from inx_sidecar.container.upper_layer import empty_trash, has_trash
from inx_sidecar.incus.instance import Instance
from inx_sidecar.incus.running_record import Running


class OwnTrash:
    """One task for each start that has left something. What a task does not delete, as when the
    instance stops, the next start finds."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def empty_soon(self, instance: Instance) -> None:
        if instance.own and has_trash(instance.rootfs, instance.name):
            task = asyncio.create_task(_empty(instance))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)


async def _empty(instance: Instance) -> None:
    try:
        running = Running.load(instance.uuid)
        if running is not None:
            with Container(running.pid, instance.lxc_name) as container:
                if Running.load(instance.uuid) is not None:
                    await empty_trash(container)
    except InxError as error:
        instance_log(instance.lxc_name).info("%s", error)
