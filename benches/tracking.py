#!/usr/bin/env python3
"""What the tracking of changed blocks costs the writes of a disk: two equal disks of a file SR, one of them tracked.

    BIN=DIR benches/tracking.py

BIN has the release executables; BENCH_DIR is a directory on the filesystem to measure, ROUNDS how often each is measured, FORMAT vhd or
qcow2. Both disks are written whole before, so that no write has to find space. The two are written in turns, which of them first in
turns as well, by fio with direct I/O. `first` are writes to blocks that are not logged yet, `again` to blocks that are. Ratios are the
medians of those of the pairs; above 1, tracking costs more. `time` needs a quiet machine; `cpu`, of the image servers, hardly. Needs
root and fio.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "../tests/smapiv1"))
from agent import Agent  # noqa: E402
from driver import Driver  # noqa: E402
from xapi import Xapi  # noqa: E402

MiB = 1 << 20
SIZE = 512 * MiB
ROUNDS = int(os.environ.get("ROUNDS", "7"))
FORMAT = os.environ.get("FORMAT", "vhd")
# Name, options of fio.
JOBS = [
    ("4 KiB, one at a time", ["--rw=randwrite", "--bs=4k", "--iodepth=1", "--io_size=16m"]),
    ("4 KiB, 16 at a time", ["--rw=randwrite", "--bs=4k", "--iodepth=16", "--io_size=64m"]),
    ("1 MiB, in order", ["--rw=write", "--bs=1m", "--iodepth=4", "--io_size=512m"]),
]


def seconds(device, options, seed):
    done = subprocess.run(["fio", "--name=x", f"--filename={device}", "--ioengine=libaio", "--direct=1", f"--randseed={seed}",
                           "--output-format=json", *options], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)["jobs"][0]["write"]["runtime"] / 1000


def cpu(device):
    """Seconds of a core that the image server of a device has taken so far."""
    backing = Path("/sys/block", os.path.basename(device), "loop/backing_file").read_text(encoding="utf-8")
    server = backing.split("/")[2]
    fields = Path("/proc", server, "stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Bench:
    def __init__(self, scratch):
        host = os.path.join(scratch, "host")
        os.mkdir(host)
        self.xapi = Xapi(os.path.join(host, "xapi"))
        driver = Driver(os.path.join(os.path.abspath(os.environ["BIN"]), "FileSR"), host)
        self.agent = Agent(self.xapi, driver, {"location": os.path.join(scratch, "sr")})
        self.agent.create_sr()
        self.agent.attach_sr()
        self.disks = [self.agent.create(SIZE, sm_config={"type": FORMAT}) for _ in range(2)]
        for disk in self.disks:
            self.agent.call("vdi_activate", "true", vdi=disk)
        self.devices = [os.path.realpath(self.agent.call("vdi_attach", "true", vdi=disk)["params"]) for disk in self.disks]

    def forget(self):
        """The tracked disk has an empty log again."""
        self.agent.call("vdi_disable_cbt", vdi=self.disks[1])
        self.agent.call("vdi_enable_cbt", vdi=self.disks[1])

    def close(self):
        for disk in self.disks:
            self.agent.call("vdi_deactivate", vdi=disk)
            self.agent.delete(disk)
        self.agent.call("sr_detach")
        self.xapi.close()

    def measure(self, options):
        times, costs = {"first": [], "again": []}, {"first": [], "again": []}
        for number in range(ROUNDS):
            self.forget()
            for when in ("first", "again"):
                pair, cost = [0.0, 0.0], [0.0, 0.0]
                for which in ((0, 1) if number % 2 else (1, 0)):
                    before = cpu(self.devices[which])
                    pair[which] = seconds(self.devices[which], options, number)
                    cost[which] = cpu(self.devices[which]) - before
                times[when].append(pair)
                costs[when].append(cost)
        for when in ("first", "again"):
            plain, tracked = (statistics.median(pair[which] for pair in times[when]) for which in (0, 1))
            time = statistics.median(pair[1] / pair[0] for pair in times[when])
            # Ticks of 10 ms are too few of a single run.
            cost = sum(pair[1] for pair in costs[when]) / max(sum(pair[0] for pair in costs[when]), 0.01)
            yield when, plain, tracked, time, cost


def main():
    if os.geteuid():
        print("skipped: the cost of changed block tracking, which needs root")
        return
    scratch = tempfile.mkdtemp(prefix="tracking-", dir=os.environ.get("BENCH_DIR"))
    bench = Bench(scratch)
    try:
        for device in bench.devices:
            seconds(device, ["--rw=write", "--bs=1m", "--iodepth=4"], 0)
        print(f"changed block tracking, {FORMAT} of {SIZE // MiB} MiB: seconds without and with, ratios of time and cpu")
        for name, options in JOBS:
            for when, plain, tracked, time, cost in bench.measure(options):
                print(f"  {name + ', ' + when:27} {plain:7.3f} {tracked:7.3f}  time {time:5.2f}  cpu {cost:5.2f}", flush=True)
    finally:
        bench.close()
        shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
