#!/usr/bin/python3
"""A stand-in for systemd on a bus of the test's own: systemd1.py UNITS [old|mute]

UNITS is a file of lines "PID ID FRAGMENT_PATH", read anew for each call. "old" does not know
GetUnitByPIDFD (before systemd 255), "mute" answers nothing. DBUS_SYSTEM_BUS_ADDRESS names the bus.
"""
import os
import sys

from jeepney import HeaderFields, MessageType, new_error, new_method_return
from jeepney.bus_messages import message_bus
from jeepney.io.blocking import open_dbus_connection

NAME = "org.freedesktop.systemd1"
PREFIX = "/org/freedesktop/systemd1/unit/"
units, mode = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else ""


def unit_of(pid):
    for line in open(units):
        fields = line.split()
        if fields and int(fields[0]) == pid:
            return fields[1], fields[2] if len(fields) > 2 else ""
    return None


def pid_of(fd):
    with open("/proc/self/fdinfo/%d" % fd.fileno()) as info:
        return next(int(l.split()[1]) for l in info if l.startswith("Pid:"))


def escape(name):
    return "".join(c if c.isalnum() else "_%02x" % ord(c) for c in name)


def by_path(path):
    for line in open(units):
        fields = line.split()
        if fields and PREFIX + escape(fields[1]) == path:
            return {"Id": fields[1], "FragmentPath": fields[2] if len(fields) > 2 else ""}
    return None


def answer(msg):
    h = msg.header.fields
    method, path = h[HeaderFields.member], h[HeaderFields.path]
    if method in ("GetUnitByPID", "GetUnitByPIDFD"):
        if method == "GetUnitByPIDFD" and mode == "old":
            return new_error(msg, "org.freedesktop.DBus.Error.UnknownMethod", "s", ("Unknown method",))
        pid = pid_of(msg.body[0]) if method == "GetUnitByPIDFD" else msg.body[0]
        print(method, pid, flush=True)
        unit = unit_of(pid)
        if not unit:
            return new_error(msg, NAME + ".NoUnitForPID", "s", ("PID %d does not belong to any loaded unit." % pid,))
        if method == "GetUnitByPIDFD":
            return new_method_return(msg, "osay", (PREFIX + escape(unit[0]), unit[0], bytes(16)))
        return new_method_return(msg, "o", (PREFIX + escape(unit[0]),))
    unit = by_path(path)
    if method == "Get" and unit and msg.body[0] == NAME + ".Unit" and msg.body[1] in unit:
        return new_method_return(msg, "v", (("s", unit[msg.body[1]]),))
    return new_error(msg, "org.freedesktop.DBus.Error.UnknownMethod", "s", ("Unknown method",))


conn = open_dbus_connection(os.environ["DBUS_SYSTEM_BUS_ADDRESS"], enable_fds=True)
conn.send_and_get_reply(message_bus.RequestName(NAME))
print("ready", flush=True)
while True:
    message = conn.receive()
    if message.header.message_type is MessageType.method_call and mode != "mute":
        conn.send(answer(message))
