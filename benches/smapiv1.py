#!/usr/bin/env python3
"""What a command of SMAPIv1 costs, as xapi gives it: one process per call, and the call-backs that it makes.

    BIN=DIR benches/smapiv1.py                 beside the start of a Python that can read the request
    BIN=DIR PEER=EXECUTABLE benches/smapiv1.py beside another FileSR, whose call-backs go to /var/lib/xcp/xapi

BIN has the release executables; BENCH_DIR is a directory on the filesystem to measure, ROUNDS how often each call is
made. The two are called in turns. `call` is from the start of the process to its end; `own` is that without the time
in which it waited for our double of xapi, which a real one takes in another way. Medians in milliseconds.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
import xmlrpc.client

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "../tests/smapiv1"))
import xapi as double  # noqa: E402
from agent import Agent  # noqa: E402
from driver import Driver, request  # noqa: E402

MiB, GiB = 1 << 20, 1 << 30
ROUNDS = int(os.environ.get("ROUNDS", "15"))
# The least that a driver in Python does before it does anything.
PYTHON = ["python3", "-c", "import subprocess, syslog, urllib.parse, xmlrpc.client"]


class Server(double.Server):
    def get_request(self):
        self.accepted = time.perf_counter()
        return super().get_request()


class Handler(double.Handler):
    """Takes the time from a request's first byte, or the connection it comes on at once, to the answer's last."""

    def setup(self):
        super().setup()
        self.connected = self.server.accepted

    def handle_one_request(self):
        self.rfile.peek(1)
        began, self.connected = self.connected or time.perf_counter(), None
        super().handle_one_request()
        with self.server.xapi.lock:
            self.server.xapi.busy += time.perf_counter() - began


class Xapi(double.Xapi):
    def __init__(self, path):
        self.busy = 0
        super().__init__(path)
        self.server.__class__, self.server.RequestHandlerClass = Server, Handler

    def VDI_db_introduce(self, *args):
        # Some write "no reference" as nothing.
        return super().VDI_db_introduce(*[double.NULL if i in (14, 17) and not arg else arg for i, arg in enumerate(args)])


class Timed(Driver):
    """Runs a driver with nothing around it, and keeps what its last call took."""

    def raw(self, *args):
        before = self.xapi.busy
        began = time.perf_counter()
        done = subprocess.run([self.executable, *args], env=self.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              cwd="/", check=True)
        self.wall = time.perf_counter() - began
        self.own = self.wall - (self.xapi.busy - before)
        return done.stdout


class Side:
    """One executable with an SR and a xapi of its own."""

    def __init__(self, executable, scratch, socket):
        self.location, run_dir = os.path.join(scratch, "sr"), os.path.join(scratch, "run")
        os.makedirs(os.path.dirname(socket), exist_ok=True)
        os.makedirs(run_dir, exist_ok=True)
        if os.path.exists(socket):
            os.unlink(socket)
        self.xapi = Xapi(socket)
        inventory = "/etc/xensource-inventory"
        if os.path.exists(inventory):
            with open(inventory, encoding="ascii") as lines:
                words = dict(line.strip().split("=", 1) for line in lines if "=" in line)
            self.xapi.hosts[self.xapi.host_ref]["uuid"] = words["INSTALLATION_UUID"].strip("'")
        self.driver = Timed(executable, run_dir)
        self.driver.xapi = self.xapi
        self.agent = Agent(self.xapi, self.driver, {"location": self.location})
        self.disks = []

    def spent(self, do):
        """What `do`, which makes one call, costs."""
        do(self)
        return self.driver.wall, self.driver.own

    def fill(self, names, image):
        for name in names:
            with open(os.path.join(self.location, name), "wb") as file:
                if isinstance(image, bytes):
                    file.write(image)
                else:
                    file.truncate(image)


def spent_on(command):
    began = time.perf_counter()
    subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True)
    wall = time.perf_counter() - began
    return wall, wall


class Table:
    def __init__(self, ours, peer):
        self.ours, self.peer = ours, peer
        other = "peer" if peer else "python"
        print(f"{'FileSR under SMAPIv1':<34} {'call':>8} {'own':>8} {other:>9} {'own':>9} {'ratio':>6} {'own':>6}")

    def row(self, name, do, rounds=ROUNDS):
        found = []
        for _ in range(rounds):
            theirs = self.peer.spent(do) if self.peer else spent_on(PYTHON)
            found.append((*self.ours.spent(do), *theirs))
        wall, own, their_wall, their_own = (statistics.median(column) * 1e3 for column in zip(*found))
        print(f"{name:<34} {wall:8.2f} {own:8.2f} {their_wall:9.1f} {their_own:9.1f} {their_wall / wall:6.1f} "
              f"{their_own / own:6.1f}", flush=True)


def create(size, kind):
    return lambda side: side.disks.append(side.agent.create(size, "a disk", "", {"type": kind}))


def of_newest(command, *args):
    return lambda side: side.agent.call(command, *args, vdi=side.disks[-1])


def of_each(command):
    """Of another disk each time, the oldest first: a disk's chain stays as short as it is in the first round."""
    def do(side):
        side.disks.insert(0, side.disks.pop())
        side.agent.copy(command, side.disks[0])
    return do


def delete(side):
    side.agent.call("vdi_delete", vdi=side.disks.pop())


def calls(table):
    about = {"host_ref": "h", "command": "sr_get_driver_info", "args": [], "device_config": {}}
    table.row("sr_get_driver_info", lambda side: side.driver.call("sr_get_driver_info", about))
    table.row("sr_create", lambda side: side.agent.create_sr(), 1)
    table.row("sr_attach", lambda side: side.agent.attach_sr())
    table.row("vdi_create, raw", create(10 * MiB, "raw"))
    for command, args in [("vdi_update", ()), ("vdi_epoch_begin", ()), ("vdi_generate_config", ()),
                          ("vdi_attach", ("true",)), ("vdi_detach", ())]:
        table.row(command, of_newest(command, *args))
    table.row("sr_scan", lambda side: side.agent.call("sr_scan"))
    table.row("sr_update", lambda side: side.agent.call("sr_update"))
    table.row("vdi_delete, raw", delete)


def trees(table, size, text):
    table.row(f"vdi_create, VHD of {text}", create(size, "vhd"))
    table.row(f"vdi_snapshot, VHD of {text}", of_each("vdi_snapshot"))
    table.row(f"vdi_clone, VHD of {text}", of_each("vdi_clone"))


def scans(table, kind, image):
    sides = [side for side in (table.ours, table.peer) if side]
    for side in sides:
        side.fill((f"{uuid.uuid4()}.{kind}" for _ in range(1000)), image(side))
    table.row(f"sr_scan, 1,000 new {kind}", lambda side: side.agent.call("sr_scan"), 1)
    table.row(f"sr_scan, 1,000 {kind}, unchanged", lambda side: side.agent.call("sr_scan"), 5)


def first_image(side):
    """A VHD without a parent, as its own driver made it."""
    side.disks.append(side.agent.create(GiB, "a disk", "", {"type": "vhd"}))
    name = side.xapi.vdis[side.disks[-1]]["location"]
    with open(os.path.join(side.location, name + ".vhd"), "rb") as file:
        return file.read()


def start_over(side):
    side.agent.call("sr_detach")
    shutil.rmtree(side.location)
    side.disks.clear()
    side.xapi.vdis.clear()
    side.agent.create_sr()
    side.agent.attach_sr()


def main():
    scratch = tempfile.mkdtemp(prefix="smapiv1-bench.", dir=os.environ.get("BENCH_DIR"))
    sides = []
    try:
        ours = os.path.join(scratch, "ours")
        sides.append(Side(os.path.join(os.environ["BIN"], "FileSR"), ours, os.path.join(ours, "run", "xapi")))
        if "PEER" in os.environ:
            sides.append(Side(os.environ["PEER"], os.path.join(scratch, "peer"), "/var/lib/xcp/xapi"))
        table = Table(sides[0], sides[1] if len(sides) > 1 else None)
        calls(table)
        for size, text in [(100 * GiB, "100 GiB"), (2040 * GiB, "2,040 GiB")]:
            trees(table, size, text)
            for side in sides:
                start_over(side)
        scans(table, "raw", lambda side: MiB)
        for side in sides:
            start_over(side)
        scans(table, "vhd", first_image)
    finally:
        for side in sides:
            side.agent.call("sr_detach")
            side.xapi.close()
        shutil.rmtree(scratch)


main()
