"""One connection to systemd on the message bus of the host: calls, and the ends of jobs.

The messages are those of the D-Bus Specification, and what is called is described in
org.freedesktop.systemd1(5).
"""

import asyncio
from typing import Any, Final

from jeepney import DBusAddress, HeaderFields, Message, MessageType, new_method_call
from jeepney.auth import BEGIN, Authenticator
from jeepney.bus_messages import message_bus
from jeepney.low_level import calc_msg_size

from inx_sidecar.base import paths

# Until systemd has answered a call; a job may take longer.
_ANSWER_SECONDS: Final = 2.0
# After so long without news of a job, systemd is asked whether it still exists: its name on the bus
# is a new one after a daemon-reexec, so the end is not told by whoever has answered the call.
_LOOK_SECONDS: Final = 1.0

_PATH: Final = "/org/freedesktop/systemd1"
_NAME: Final = "org.freedesktop.systemd1"
_INTERFACE: Final = "org.freedesktop.systemd1.Manager"
_MANAGER: Final = DBusAddress(_PATH, _NAME, _INTERFACE)
_JOB_ENDED: Final = "JobRemoved"
_JOBS: Final = (
    f"type='signal',sender='{_NAME}',path='{_PATH}',interface='{_INTERFACE}',member='{_JOB_ENDED}'"
)

# The fixed part of a header, and in it the place of the type.
_FIXED_BYTES: Final = 16
_TYPE: Final = 1
_ANSWERS: Final = (MessageType.method_return.value, MessageType.error.value)
_ANSWER_MAX: Final = 1 << 16
# The end of a job has a name of at most 255 bytes, and little else.
_SIGNAL_MAX: Final = 1 << 10

_Job = tuple[str, str]


class BusError(Exception):
    """The bus or systemd does not answer, or refuses what was asked for."""


class NoUnitError(BusError):
    """systemd has not loaded the unit, so nothing of it runs."""


class SystemdBus(asyncio.Protocol):
    """`open` gives a connection. It is closed if an answer does not come.

    Every user of the host may send signals to this connection. So a signal that is long, or not
    the end of a job, is dropped unread; and the end of a job counts only if it comes from whoever
    has answered the call that made the job: the bus lets nobody else answer a call.
    """

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._login = Authenticator()
        self._logged_in: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._received = bytearray()
        self._serial = 0
        # The calls without an answer, by serial number; None if the connection ends before.
        self._calls: dict[int, asyncio.Future[Message | None]] = {}
        self._job_calls: dict[int, asyncio.Future[str]] = {}
        # The results of jobs that run.
        self._jobs: dict[_Job, asyncio.Future[str]] = {}

    @classmethod
    async def open(cls) -> "SystemdBus":
        """BusError if there is no bus, or if it does not answer."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                _, bus = await loop.create_unix_connection(cls, paths.SYSTEM_BUS)
        except OSError as error:
            raise BusError(f"{paths.SYSTEM_BUS}: {error}") from None
        try:
            done, _ = await asyncio.wait([bus._logged_in], timeout=_ANSWER_SECONDS)
            if not done or not bus._logged_in.result():
                raise BusError("no login")
            # systemd sends signals as long as one client of the bus has subscribed to them.
            await asyncio.gather(
                bus._call(message_bus.Hello()),
                bus._call(message_bus.AddMatch(_JOBS)),
                bus._call(new_method_call(_MANAGER, "Subscribe")),
            )
        except BaseException:
            bus.close()
            raise
        return bus

    @property
    def is_closed(self) -> bool:
        return self._transport is None or self._transport.is_closing()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    async def call(self, method: str, signature: str, *arguments: object) -> tuple[Any, ...]:
        """What `method` of systemd's manager returns.

        NoUnitError if it says that there is no such unit, BusError for every other error.
        """
        return await self._call(new_method_call(_MANAGER, method, signature, arguments))

    async def is_loaded(self, unit: str) -> bool:
        """Whether systemd has `unit` in memory. Every unit of which something runs is loaded."""
        try:
            await self.call("GetUnit", "s", unit)
        except NoUnitError:
            return False
        return True

    async def run_job(self, method: str, unit: str) -> None:
        """Have systemd do `method`, StartUnit or StopUnit, and wait until it is done.

        BusError if it was not done.
        """
        ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        message = new_method_call(_MANAGER, method, "ss", (unit, "replace"))
        (path,) = await self._call(message, ended)
        number = int(path.rpartition("/")[2])
        try:
            while not (await asyncio.wait([ended], timeout=_LOOK_SECONDS))[0]:
                # BusError if the job has gone unnoticed.
                await self.call("GetJob", "u", number)
        finally:
            self._jobs = {job: future for job, future in self._jobs.items() if future is not ended}
        if ended.result() not in ("done", "skipped"):
            raise BusError(f"{method} {unit}: {ended.result()}")

    async def _call(
        self, message: Message, job: asyncio.Future[str] | None = None
    ) -> tuple[Any, ...]:
        """`job` gets the result of the job whose path the answer has."""
        if self._transport is None or self.is_closed:
            raise BusError("the connection is closed")
        self._serial += 1
        serial = self._serial
        answer: asyncio.Future[Message | None] = asyncio.get_running_loop().create_future()
        self._calls[serial] = answer
        if job is not None:
            self._job_calls[serial] = job
        self._transport.write(message.serialise(serial=serial))
        try:
            await asyncio.wait([answer], timeout=_ANSWER_SECONDS)
        finally:
            del self._calls[serial]
            self._job_calls.pop(serial, None)
        answered = answer.result() if answer.done() else None
        if answered is None:
            self.close()
            raise BusError("no answer")
        if answered.header.message_type is MessageType.error:
            name = answered.header.fields.get(HeaderFields.error_name)
            kind = NoUnitError if name == f"{_NAME}.NoSuchUnit" else BusError
            raise kind(f"{name}: {answered.body}")
        return tuple(answered.body)

    # What follows is called by asyncio.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(self._login.data_to_send() or b"")

    def data_received(self, data: bytes) -> None:
        try:
            if self._login.authenticated:
                self._received += data
                while (raw := self._next_message()) is not None:
                    if is_wanted(raw):
                        self._take(Message.from_buffer(raw))
                return
            self._login.feed(data)
            if self._login.authenticated and self._transport is not None:
                self._transport.write(BEGIN)
                _set(self._logged_in, True)
        except Exception:
            self.close()  # what comes is no D-Bus

    def connection_lost(self, exc: Exception | None) -> None:
        _set(self._logged_in, False)
        for call in self._calls.values():
            _set(call, None)
        for job in self._jobs.values():
            _set(job, "the connection was closed")

    def _next_message(self) -> bytes | None:
        """The next message that is complete. ValueError if it is too long for an answer."""
        if len(self._received) < _FIXED_BYTES:
            return None
        size = calc_msg_size(bytes(self._received[:_FIXED_BYTES]))
        if size > _ANSWER_MAX:
            raise ValueError(f"a message of {size} bytes")
        if len(self._received) < size:
            return None
        raw = bytes(self._received[:size])
        del self._received[:size]
        return raw

    def _take(self, message: Message) -> None:
        fields = message.header.fields
        sender = fields.get(HeaderFields.sender)
        if message.header.message_type is MessageType.signal:
            if fields.get(HeaderFields.signature) == "uoss":
                _, path, _, result = message.body
                _set(self._jobs.pop((sender, path), None), result)
            return
        serial = fields.get(HeaderFields.reply_serial)
        if serial in self._job_calls and message.header.message_type is not MessageType.error:
            # The end of the job may be the next message, before the task that waits for this one.
            self._jobs[(sender, message.body[0])] = self._job_calls[serial]
        _set(self._calls.get(serial), message)


def is_wanted(raw: bytes) -> bool:
    """Whether a message may be an answer or the end of a job: then it is worth to be read."""
    if raw[_TYPE] in _ANSWERS:
        return True
    is_signal = raw[_TYPE] == MessageType.signal.value
    return is_signal and len(raw) <= _SIGNAL_MAX and _JOB_ENDED.encode() in raw


def _set(future: asyncio.Future[Any] | None, value: object) -> None:
    if future is not None and not future.done():
        future.set_result(value)
