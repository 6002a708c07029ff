"""LVMSR on two hosts of a pool that share the disks of an LVHD group: what happens to a disk that one of them uses, when the other, the
master, changes its tree, by the plug-ins of this package and beside those of the Python drivers. Run by tests/guest/lvhd-pool.sh, which
makes the hosts: HOST_A and HOST_B are processes in their namespaces. One kernel has the volumes of both, so the master uses a
disk only while the other does not. tests/guest/lvmoiscsi-pool.sh runs some of it on a LUN: POOL_TYPE and POOL_CONFIG are the SR's.
"""

import json
import os
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

from agent import Agent, Driver, Fault
from driver import Plugin
from test_file import BIN, MiB
from test_pool import read, uuid_of, write
from xapi import Refusal, Xapi

TYPE = os.environ.get("POOL_TYPE", "lvm")
CONFIG = json.loads(os.environ.get("POOL_CONFIG", "{}")) or {
    "device": os.environ.get("LVM_DISKS", "").replace(" ", ","), "allocation": "thin"}
EXECUTABLE = {"lvm": "LVMSR", "lvmoiscsi": "LVMoISCSISR"}[TYPE]
PLUGINS = ("tapdisk-pause", "on-slave", "lvhd-thin")


def run(*words):
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


class Host:
    """A host: its directories, its driver and its plug-ins."""

    def __init__(self, case, name):
        self.case, self.name, self.ref = case, name, f"OpaqueRef:host-{name}"
        self.prefix = ["nsenter", "-t", os.environ[f"HOST_{name}"], "-m", "-u", "--"]
        self.dir = os.path.join(case.scratch, name)
        os.makedirs(os.path.join(self.dir, "plugins"))
        os.symlink(case.xapi.path, os.path.join(self.dir, "xapi"))
        self.driver = Driver(case.driver_file, self.dir, self.prefix)
        self.driver.env["DM_DISABLE_UDEV"] = "1"
        session = f"OpaqueRef:session-{name}"
        case.xapi.sessions[session] = self.ref
        for plugin in PLUGINS:
            os.symlink(case.sm, os.path.join(self.dir, "plugins", plugin))
            call = Plugin(os.path.join(self.dir, "plugins", plugin), self.dir, session, self.prefix)
            call.env["DM_DISABLE_UDEV"] = "1"
            case.xapi.plugins[self.ref, plugin] = case.noted(name, plugin, call)
        config = dict(CONFIG)
        case.xapi.pbds[f"OpaqueRef:pbd-{name}"] = {
            "uuid": uuid_of(name), "SR": case.sr_ref, "host": self.ref, "device_config": config, "currently_attached": True}
        self.agent = Agent.__new__(Agent)
        self.agent.__dict__.update(xapi=case.xapi, driver=self.driver, sr_uuid=case.sr_uuid, sr_ref=case.sr_ref,
                                   device_config=dict(config, SRmaster="true" if name == "A" else "false"))
        common = self.agent.common
        self.agent.common = lambda command, args: dict(common(command, args), host_ref=self.ref)
        other_config = {"iscsi_iqn": os.environ.get("INITIATOR", ""), "multipathing": "false"}
        case.xapi.hosts[self.ref] = {"uuid": uuid_of(name), "name_label": f"host {name}", "other_config": other_config}

    def activate(self, vdi, mode="true"):
        link = self.agent.call("vdi_attach", mode, vdi=vdi)["params"]
        self.agent.call("vdi_activate", mode, vdi=vdi)
        return os.path.realpath(link)

    def deactivate(self, vdi):
        self.agent.call("vdi_deactivate", vdi=vdi)
        self.agent.call("vdi_detach", vdi=vdi)

    def counts(self):
        """How many volumes have users on this host."""
        counts = []
        for file in Path(self.dir).glob(f"**/refcount/lvm-{self.case.sr_uuid}/*"):
            counts.append(file.read_text(encoding="ascii").strip())
        return sorted(counts)


@unittest.skipUnless("HOST_A" in os.environ, "tests/guest/lvhd-pool.sh makes the hosts")
class TwoHosts(unittest.TestCase):
    def setUp(self):
        self.scratch = tempfile.mkdtemp(prefix="smapiv1-")
        self.xapi = Xapi(os.path.join(self.scratch, "xapi"))
        self.sm = os.path.abspath(os.path.join(BIN, "sm"))
        self.driver_file = os.path.join(self.scratch, EXECUTABLE)
        os.symlink(self.sm, self.driver_file)
        self.xapi.driver_filenames[TYPE] = self.driver_file
        first = Agent(self.xapi, None, {}, sr_type=TYPE)
        self.sr_uuid, self.sr_ref = first.sr_uuid, first.sr_ref
        self.xapi.srs[self.sr_ref]["shared"] = True
        self.group = "VG_XenStorage-" + self.sr_uuid
        self.asked, self.instead = [], {}
        self.a, self.b = Host(self, "A"), Host(self, "B")
        self.xapi.host_ref = self.a.ref
        self.a.agent.create_sr()
        self.a.agent.attach_sr()
        self.b.agent.attach_sr()
        self.disk = self.a.agent.create(16 * MiB, sm_config={"type": "vhd"})
        self.asked.clear()

    def tearDown(self):
        for host in (self.b, self.a):
            try:
                host.deactivate(self.disk)
            except Fault:
                pass
        self.assertEqual([v["sm_config"] for v in self.xapi.vdis.values() if "paused" in v["sm_config"]], [])
        run("vgchange", "-an", self.group)
        disks = run("vgs", "--noheadings", "-o", "pv_name", self.group).split()
        run("vgremove", "-ff", "-y", self.group)
        for disk in disks:
            run("wipefs", "-qa", disk)
        for host in (self.b, self.a):
            host.agent.call("sr_detach")
        self.xapi.close()
        shutil.rmtree(self.scratch)
        self.assertEqual(self.xapi.misuses, [])

    def noted(self, name, plugin, call):
        """A plug-in whose calls are noted, and answered otherwise by what stands in `instead`."""
        def noted(function, args):
            actions = [args[f"action{n}"] for n in range(1, 9) if f"action{n}" in args]
            self.asked.append((name, " ".join([function, *actions])))
            instead = self.instead.get((name, function))
            return instead(args) if instead else call(function, args)
        return noted

    def size(self, vdi):
        name = self.volume(vdi)
        return int(run("lvs", "--noheadings", "--units", "b", "--nosuffix", "-o", "lv_size", f"{self.group}/{name}"))

    def volume(self, vdi):
        return "VHD-" + self.xapi.vdis[vdi]["uuid"]

    def seqno(self):
        return run("vgs", "--noheadings", "-o", "vg_seqno", self.group)

    def collect(self):
        done = subprocess.run([*self.a.prefix, self.sm, "sr_collect", "--from-xapi", self.sr_uuid], env=self.a.driver.env,
                              capture_output=True, text=True, timeout=120, check=False)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stderr

    def goes_on(self, device, text):
        writing = write(device, text)
        writing.join(20)
        self.assertFalse(writing.is_alive(), "B's disk hangs")
        self.assertEqual(read(device), text)

    def takes_all(self, device, byte):
        """All of B's disk can be written to, and is."""
        text = byte * (16 * MiB)
        written = subprocess.run(["dd", f"of={device}", "oflag=direct", "conv=notrunc,fsync", "bs=1M", "iflag=fullblock"],
                                 input=text, capture_output=True, timeout=60, check=False)
        self.assertEqual(written.returncode, 0, written.stderr)
        held = subprocess.run(["dd", f"if={device}", "iflag=direct", "bs=1M"], capture_output=True, timeout=60, check=True).stdout
        self.assertTrue(held == text, f"B's disk does not hold what was written: {byte}")

    def has(self, host, vdi, text):
        self.assertEqual(read(host.activate(vdi, "false" if self.xapi.vdis[vdi]["read_only"] else "true")), text)
        host.deactivate(vdi)

    def fails(self, code, function, *args, **kwargs):
        with self.assertRaises(Fault) as raised:
            function(*args, **kwargs)
        self.assertEqual(raised.exception.code, code, raised.exception.text)
        return raised.exception.text

    def test_the_master_gives_a_disk_room_and_takes_it_back(self):
        before = self.size(self.disk)
        self.assertEqual(before, 8 * MiB)
        device = self.b.activate(self.disk)
        self.assertEqual(self.asked, [("A", "attach")])
        self.assertEqual(self.size(self.disk), 24 * MiB)
        self.goes_on(device, b"of B")
        self.b.deactivate(self.disk)
        self.assertEqual(self.asked[1:], [("A", "detach")])
        self.assertEqual(self.size(self.disk), 8 * MiB)
        self.has(self.a, self.disk, b"of B")
        # Nor does a host that only reads.
        seqno = self.seqno()
        self.assertEqual(read(self.b.activate(self.disk, "false")), b"of B")
        self.b.deactivate(self.disk)
        self.assertEqual(self.seqno(), seqno)
        # The master refuses: no device, and no claim.
        self.instead["A", "attach"] = lambda args: "False"
        self.fails(58, self.b.activate, self.disk)
        self.assertNotIn(f"host_{self.b.ref}", self.xapi.vdis[self.disk]["sm_config"])
        self.assertEqual(self.b.counts(), [])

    def test_a_disk_that_b_uses_is_snapshotted_and_merged_by_a(self):
        device = self.b.activate(self.disk)
        self.goes_on(device, b"old")
        self.asked.clear()
        snapshot = self.a.agent.snapshot(self.disk)
        self.assertEqual(self.asked, [("B", "serves"), ("B", "pause"), ("B", "multi deactivateNoRefcount"),
                                      ("B", "multi activate refresh"), ("B", "unpause")])
        self.assertNotIn("paused", self.xapi.vdis[self.disk]["sm_config"])
        self.assertEqual(self.b.counts(), ["0 1", "1 0"])
        seqno = self.seqno()
        self.goes_on(device, b"new")
        self.assertEqual(self.seqno(), seqno)
        self.has(self.a, snapshot, b"old")
        second = self.a.agent.snapshot(self.disk)
        self.goes_on(device, b"newest")
        self.assertEqual(self.b.counts(), ["0 1", "1 0", "1 0"])
        self.has(self.a, second, b"new")
        # Bases are merged under B's disk, and the disk itself.
        self.a.agent.delete(snapshot)
        self.collect()
        self.assertEqual(self.b.counts(), ["0 1", "1 0"])
        self.assertEqual(read(device), b"newest")
        self.goes_on(device, b"after")
        self.a.agent.delete(second)
        self.asked.clear()
        self.collect()
        self.assertIn(("B", "pause"), self.asked)
        self.assertEqual(read(device), b"after")
        self.goes_on(device, b"last")
        self.assertEqual(self.b.counts(), ["0 1"])
        self.b.deactivate(self.disk)
        self.assertEqual(self.b.counts(), [])
        self.has(self.a, self.disk, b"last")
        volumes = run("lvs", "--noheadings", "-o", "lv_name", self.group).split()
        self.assertEqual(sorted(volumes), sorted(["MGT", self.volume(self.disk)]))

    def test_a_disk_that_b_writes_to_keeps_room_for_all_of_it(self):
        device = self.b.activate(self.disk)
        self.goes_on(device, b"old")
        snapshot = self.a.agent.snapshot(self.disk)
        self.assertEqual(self.size(self.disk), 24 * MiB)
        self.goes_on(device, b"new")
        # A base that holds little takes the place of the disk.
        self.a.agent.delete(snapshot)
        self.collect()
        self.assertEqual(self.b.counts(), ["0 1"])
        self.assertEqual(self.size(self.disk), 24 * MiB)
        self.takes_all(device, b"1")
        snapshot = self.a.agent.snapshot(self.disk)
        self.assertEqual(self.size(self.disk), 24 * MiB)
        self.takes_all(device, b"2")
        self.b.deactivate(self.disk)
        self.has(self.a, snapshot, b"1" * 4096)
        self.has(self.a, self.disk, b"2" * 4096)

    def test_what_would_take_the_disk_from_b_is_refused(self):
        snapshot = self.a.agent.snapshot(self.disk)
        device = self.b.activate(self.disk)
        self.goes_on(device, b"of B")
        seqno, records = self.seqno(), dict(self.xapi.vdis)
        for command, *args in (("vdi_delete",), ("vdi_resize", str(32 * MiB)), ("vdi_clone",), ("vdi_activate", "true")):
            with self.subTest(command):
                more = {"driver_params": {}} if command == "vdi_clone" else {}
                with self.assertRaises(Fault) as raised:
                    self.a.agent.call(command, *args, vdi=self.disk, **more)
                self.assertIn("host B", raised.exception.text)
        with self.assertRaises(Fault):
            self.a.agent.call("vdi_revert", self.disk, vdi=snapshot)
        self.assertEqual((self.seqno(), dict(self.xapi.vdis)), (seqno, records))
        self.goes_on(device, b"still")

    def test_a_host_that_does_not_follow_keeps_the_disk_as_it_is(self):
        device = self.b.activate(self.disk)
        self.goes_on(device, b"of B")

        def refuse(args):
            raise Refusal("XENAPI_PLUGIN_FAILURE", "multi", "CommandException", "no")
        for function in ("pause", "multi"):
            with self.subTest(function):
                self.instead = {("B", function): refuse}
                before = run("lvs", "--noheadings", "-o", "lv_name", self.group)
                with self.assertRaises(Fault) as raised:
                    self.a.agent.snapshot(self.disk)
                self.assertIn("host B", raised.exception.text)
                self.assertEqual(run("lvs", "--noheadings", "-o", "lv_name", self.group), before)
                last, self.instead = self.asked[-1], {}
                self.a.agent.call("sr_scan")
                self.goes_on(device, b"goes on")
                # A host that may not have the volume is not let go.
                self.assertEqual(last, ("B", "unpause" if function == "pause" else "multi refresh"))

    def test_beside_the_python_plug_ins(self):
        """They know no function `serves`."""
        device = self.b.activate(self.disk)
        self.goes_on(device, b"old")

        def unknown(args):
            raise Refusal("UNKNOWN_XENAPI_PLUGIN_FUNCTION", "serves")
        self.instead["B", "serves"] = unknown
        snapshot = self.a.agent.snapshot(self.disk)
        self.goes_on(device, b"new")
        self.has(self.a, snapshot, b"old")


if __name__ == "__main__":
    unittest.main()
