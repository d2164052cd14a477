"""Which messages of the bus are read."""

import pytest
from jeepney import DBusAddress, Message, new_error, new_method_call, new_method_return, new_signal

from inx_sidecar.base.systemd_bus import is_wanted

MANAGER = DBusAddress("/org/freedesktop/systemd1", "a.b", "org.freedesktop.systemd1.Manager")
CALL = new_method_call(MANAGER, "JobRemoved", "s", ("JobRemoved",))
CALL.header.serial = 1
UNIT = "x" * 255


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (True, new_signal(MANAGER, "JobRemoved", "uoss", (1 << 31, "/job", UNIT, "dependency"))),
        (True, new_method_return(CALL, "o", ("/job",))),
        (True, new_error(CALL, "a.b.NoSuchUnit", "s", ("x" * 5000,))),
        (False, CALL),
        (False, new_signal(MANAGER, "UnitNew", "so", (UNIT, "/unit"))),
        (False, new_signal(MANAGER, "JobRemoved", "s", ("x" * 2000,))),
    ],
)
def test_what_is_read(wanted: bool, message: Message) -> None:
    assert is_wanted(message.serialise(serial=7)) is wanted
