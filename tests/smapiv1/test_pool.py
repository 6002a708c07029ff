"""NFSSR on two hosts of a pool: what happens to a disk that one of them uses, when the other, the master, changes its tree.
Run by tests/guest/nfs-pool.sh, which makes the hosts: HOST_A and HOST_B are processes in their namespaces.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import unittest
from pathlib import Path

from agent import Agent, Driver, Fault
from driver import Plugin, request
from test_cbt import Log, told
from test_file import BIN, MiB, checksum
from xapi import Refusal, Xapi

SERVED = os.environ.get("SERVED")


class Host:
    """A host: its directories, its driver and its plug-in."""

    def __init__(self, case, name, number):
        self.name, self.ref = name, f"OpaqueRef:host-{name}"
        self.prefix = ["nsenter", "-t", os.environ[f"HOST_{name}"], "-m", "-n", "-u", "--"]
        self.dir = os.path.join(case.scratch, name)
        os.makedirs(os.path.join(self.dir, "plugins"))
        os.symlink(case.xapi.path, os.path.join(self.dir, "xapi"))
        plugin = os.path.join(self.dir, "plugins", "tapdisk-pause")
        os.symlink(case.sm, plugin)
        self.driver = Driver(case.driver_file, self.dir, self.prefix)
        self.plugin = Plugin(plugin, self.dir, case.xapi.session, self.prefix)
        self.agent = Agent.__new__(Agent)
        self.agent.__dict__.update(
            xapi=case.xapi, driver=self.driver, sr_uuid=case.sr_uuid, sr_ref=case.sr_ref,
            device_config={"server": f"10.0.{number}.1", "serverpath": "/", "nfsversion": "4.2",
                           "SRmaster": "true" if name == "A" else "false"})
        common = self.agent.common
        self.agent.common = lambda command, args: dict(common(command, args), host_ref=self.ref)
        case.xapi.hosts[self.ref] = {"uuid": str(uuid_of(name)), "name_label": f"host {name}", "other_config": {}}

    def activate(self, vdi):
        link = self.agent.call("vdi_attach", "true", vdi=vdi)["params"]
        self.agent.call("vdi_activate", "true", vdi=vdi)
        return os.path.realpath(link)

    def deactivate(self, vdi):
        self.agent.call("vdi_deactivate", vdi=vdi)
        self.agent.call("vdi_detach", vdi=vdi)


def uuid_of(name):
    return f"00000000-0000-4000-8000-00000000000{name.lower()}"


def write(device, text):
    """Starts to write; the thread ends when it is on the disk."""
    def work():
        subprocess.run(["dd", f"of={device}", "oflag=direct", "conv=notrunc,sync,fsync", "bs=4096", "status=none"],
                       input=text, check=True)
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def read(device):
    done = subprocess.run(["dd", f"if={device}", "iflag=direct", "bs=4096", "count=1", "status=none"], check=True,
                          capture_output=True)
    return done.stdout.rstrip(b"\0")


@unittest.skipUnless(SERVED, "tests/guest/nfs-pool.sh makes the hosts")
class TwoHosts(unittest.TestCase):
    def setUp(self):
        self.scratch = tempfile.mkdtemp(prefix="smapiv1-")
        self.xapi = Xapi(os.path.join(self.scratch, "xapi"))
        self.sm = os.path.abspath(os.path.join(BIN, "sm"))
        self.driver_file = os.path.join(self.scratch, "NFSSR")
        os.symlink(self.sm, self.driver_file)
        self.xapi.driver_filenames["nfs"] = self.driver_file
        first = Agent(self.xapi, None, {}, sr_type="nfs")
        self.sr_uuid, self.sr_ref = first.sr_uuid, first.sr_ref
        self.a, self.b = Host(self, "A", 1), Host(self, "B", 2)
        self.xapi.host_ref = self.a.ref
        self.install(self.b.plugin)
        self.a.agent.create_sr()
        self.a.agent.attach_sr()
        self.b.agent.attach_sr()
        self.disk = self.a.agent.create(4 * MiB, sm_config={"type": "vhd"})
        self.sm_config = self.xapi.vdis[self.disk]["sm_config"]
        self.device = self.b.activate(self.disk)
        write(self.device, b"old").join()
        self.asked = []

    def tearDown(self):
        self.install(self.b.plugin)
        self.a.driver.env.pop("XCP_SM_PATIENCE", None)
        self.xapi.behaviour = lambda method, number: None
        self.a.agent.call("sr_scan")
        with contextlib.suppress(Fault):
            self.b.deactivate(self.disk)
        self.b.agent.call("sr_detach")
        self.assertEqual([v["sm_config"] for v in self.xapi.vdis.values() if "paused" in v["sm_config"]], [])
        for vdi in [r for r, v in self.xapi.vdis.items() if v["managed"]]:
            self.a.agent.delete(vdi)
        self.assertEqual(list(Path(SERVED, self.sr_uuid).glob("*.vhd")), [])
        # xapi destroys an SR that is attached on one host.
        self.a.agent.call("sr_delete")
        self.a.agent.call("sr_detach")
        self.xapi.close()
        shutil.rmtree(self.scratch)
        self.assertEqual(self.xapi.misuses, [])

    def install(self, plugin, before=lambda function: None, after=lambda function: None):
        """What B has as its plug-in, and what happens around its calls."""
        def call(function, args):
            self.asked.append(function)
            before(function)
            answer = plugin(function, args)
            after(function)
            return answer
        self.asked = []
        self.xapi.plugins = {(self.b.ref, "tapdisk-pause"): call}

    def on_storage(self):
        return checksum(os.path.join(SERVED, self.sr_uuid))

    def on_images(self):
        return {path.name: path.read_bytes() for path in Path(SERVED, self.sr_uuid).glob("[0-9a-f]*")}

    def fails(self, code, function, *args, **kwargs):
        with self.assertRaises(Fault) as raised:
            function(*args, **kwargs)
        self.assertEqual(raised.exception.code, code, raised.exception.text)
        return raised.exception.text

    def goes_on(self, text=b"goes on"):
        writing = write(self.device, text)
        writing.join(20)
        self.assertFalse(writing.is_alive(), "B's disk hangs")
        self.assertEqual(read(self.device), text)

    def has(self, host, vdi, text):
        device = host.activate(vdi)
        self.assertEqual(read(device), text)
        host.deactivate(vdi)

    def test_a_disk_that_b_uses_is_snapshotted_by_a(self):
        stop, failed = threading.Event(), []

        def work():
            while not stop.is_set():
                try:
                    write(self.device, b"busy").join()
                except Exception as error:  # pylint: disable=broad-except
                    failed.append(error)
        worker = threading.Thread(target=work)
        self.xapi.calls()
        snapshot = self.a.agent.copy("vdi_snapshot", self.disk)
        self.assertEqual(self.asked, ["serves", "pause", "unpause"])
        calls = self.xapi.methods()
        # Whether it is encrypted, the pause, whether the pause was seen.
        self.assertEqual(calls[:3], ["VDI.get_record", "VDI.add_to_sm_config", "VDI.get_sm_config"])
        self.assertNotIn("paused", self.sm_config)
        self.goes_on(b"new")
        worker.start()
        second = self.a.agent.copy("vdi_snapshot", self.disk)
        stop.set()
        worker.join()
        self.assertEqual(failed, [])
        self.goes_on(b"newest")
        # Not into the base that A made of B's image.
        self.has(self.a, snapshot, b"old")
        self.assertIn(self.read_once(second), (b"new", b"busy"))
        self.b.deactivate(self.disk)
        self.has(self.a, self.disk, b"newest")

    def put(self, block):
        """Writes into this block of 64 KiB of B's disk."""
        subprocess.run(["dd", f"of={self.device}", "oflag=direct", "conv=notrunc,sync,fsync", "bs=4096", "status=none",
                        f"seek={block * 16 + 15}"], input=os.urandom(4096), check=True)

    def changed(self, first, second):
        return told(self.a.agent.call("vdi_list_changed_blocks", second, vdi=first))

    def test_what_b_writes_is_tracked(self):
        agent = self.a.agent
        agent.call("vdi_enable_cbt", vdi=self.disk)
        self.assertEqual(self.asked, ["serves", "pause", "unpause", "tracks"])
        log = os.path.join(SERVED, self.sr_uuid, f"{self.xapi.vdis[self.disk]['uuid']}.cbtlog")
        first = agent.snapshot(self.disk)
        self.put(3)
        self.put(60)
        second = agent.snapshot(self.disk)
        self.put(7)
        third = agent.snapshot(self.disk)
        self.put(8)
        self.assertEqual(self.changed(first, second), {3, 60})
        # What B has not written to the server yet, A cannot tell.
        self.fails(24, self.changed, third, self.disk)
        self.asked = []
        agent.delete(third)
        self.assertEqual(self.asked, ["serves", "pause", "unpause"])
        self.put(9)
        fourth = agent.snapshot(self.disk)
        self.assertEqual(self.changed(second, fourth), {7, 8, 9})
        self.put(1)
        self.b.deactivate(self.disk)
        self.assertEqual(Log(log).consistent, 1)
        self.assertEqual(self.changed(fourth, self.disk), {1})
        # B is killed, or has a release that logs nothing: it vouches for nothing.
        self.device = self.b.activate(self.disk)
        self.put(2)

        def silent(function):
            if function == "tracks":
                raise Refusal("UNKNOWN_XENAPI_PLUGIN_FUNCTION", function)
        self.install(self.b.plugin, before=silent)
        agent.snapshot(self.disk)
        self.assertFalse(os.path.exists(log))
        self.assertEqual([m[0] for m in self.xapi.messages], ["VDI_CBT_SNAPSHOT_FAILED"])
        self.fails(457, agent.call, "vdi_enable_cbt", vdi=self.disk)
        self.assertFalse(os.path.exists(log))
        self.goes_on()

    def read_once(self, vdi):
        device = self.a.activate(vdi)
        text = read(device)
        self.a.deactivate(vdi)
        return text

    def test_without_claims_nobody_is_asked(self):
        self.b.deactivate(self.disk)
        snapshot = self.a.agent.copy("vdi_snapshot", self.disk)
        self.assertEqual(self.asked, [])
        self.assertNotIn("paused", self.sm_config)
        self.has(self.a, snapshot, b"old")

    def refused(self, *words):
        before, records = self.on_storage(), dict(self.xapi.vdis)
        text = self.fails(82, self.a.agent.copy, "vdi_snapshot", self.disk)
        for word in words:
            self.assertIn(word, text)
        self.assertNotIn(self.xapi.session, text)
        self.assertEqual(self.xapi.vdis, records)
        self.assertNotIn("paused", self.sm_config)
        self.goes_on()
        return before

    def test_a_host_without_the_plugin(self):
        self.xapi.plugins = {}
        self.refused("host B", "XENAPI_MISSING_PLUGIN", "installed there")

    def test_a_host_with_the_python_plugin(self):
        def stock(function, _args):
            self.asked.append(function)
            if function not in ("pause", "unpause", "refresh"):
                raise Refusal("UNKNOWN_XENAPI_PLUGIN_FUNCTION", function)
            return "True"
        self.xapi.plugins = {(self.b.ref, "tapdisk-pause"): stock}
        self.refused("host B", "UNKNOWN_XENAPI_PLUGIN_FUNCTION")
        self.assertEqual(self.asked, ["serves"])

    def test_a_host_that_does_not_pause(self):
        def refuse(function):
            if function == "pause":
                raise Refusal("XENAPI_PLUGIN_FAILURE", "pause", "VDIUnavailable", "not today")
        self.install(self.b.plugin, before=refuse)
        self.refused("host B", "not today")
        self.install(lambda function, args: "False" if function == "pause" else "True")
        self.refused("host B", 'answered "False" to pause')

    def test_nothing_changes_where_a_host_does_not_pause(self):
        # B is idle, so that the storage can be compared. The first call makes the file that is locked.
        self.xapi.plugins = {}
        self.fails(82, self.a.agent.copy, "vdi_snapshot", self.disk)
        before = self.on_storage()
        self.fails(82, self.a.agent.copy, "vdi_snapshot", self.disk)
        self.assertEqual(self.on_storage(), before)

    def test_an_answer_that_is_lost(self):
        for when in ("before", "after"):
            with self.subTest(when):
                late = threading.Event()
                hold = lambda function: function == "pause" and late.wait(20)  # pylint: disable=cell-var-from-loop
                self.a.driver.env["XCP_SM_PATIENCE"] = "2"
                self.install(self.b.plugin, **{when: hold})
                start = time.monotonic()
                self.refused("host B", "no answer within 2 s")
                self.assertLess(time.monotonic() - start, 18)
                # The request reaches B now, or B's answer us: nobody waits for it.
                late.set()
                time.sleep(2)
                self.goes_on(b"late")

    def test_a_host_that_left_the_pool(self):
        self.b.deactivate(self.disk)
        self.sm_config["host_OpaqueRef:gone"] = "RW"
        self.a.agent.copy("vdi_snapshot", self.disk)
        self.assertNotIn("host_OpaqueRef:gone", self.sm_config)

    def test_a_host_that_does_not_go_on_is_tried_again(self):
        def refuse(function):
            if function == "unpause":
                raise Refusal("HOST_OFFLINE", self.b.ref)
        self.install(self.b.plugin, before=refuse)
        snapshot = self.a.agent.copy("vdi_snapshot", self.disk)
        self.assertIn("paused", self.sm_config)
        self.assertIn("dirty", self.xapi.srs[self.sr_ref]["other_config"])
        writing = write(self.device, b"waits")
        writing.join(0.5)
        self.assertTrue(writing.is_alive())
        self.a.agent.call("sr_scan")
        self.assertIn("paused", self.sm_config)
        self.install(self.b.plugin)
        self.a.agent.call("sr_scan")
        writing.join(20)
        self.assertFalse(writing.is_alive())
        self.has(self.a, snapshot, b"old")

    def snapshot_killed(self, at, when):
        """A vdi_snapshot that is killed before or after B was asked `at`."""
        members = self.a.agent.members("vdi_snapshot", vdi=self.disk, driver_params={})
        call = subprocess.Popen(  # pylint: disable=consider-using-with
            [*self.a.prefix, self.driver_file, request("vdi_snapshot", members)], env=self.a.driver.env,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        killed = []

        def kill(function):
            if function == at and not killed:
                killed.append(at)
                call.send_signal(signal.SIGKILL)
                call.wait()
        self.install(self.b.plugin, **{when: kill})
        call.wait(60)
        self.assertEqual(killed, [at])
        time.sleep(0.5)

    def test_a_kill_leaves_what_the_next_call_repairs(self):
        for at, when in (("serves", "before"), ("pause", "before"), ("pause", "after"), ("unpause", "before"),
                         ("unpause", "after")):
            for repair in ("sr_scan", "vdi_snapshot", "sr_attach"):
                with self.subTest(at=at, when=when, repair=repair):
                    text = f"{at} {when} {repair}".encode()
                    write(self.device, b"was " + text).join()
                    self.snapshot_killed(at, when)
                    self.assertIn("paused", self.sm_config)
                    self.install(self.b.plugin)
                    writing = write(self.device, b"is " + text)
                    if repair == "vdi_snapshot":
                        self.a.agent.copy("vdi_snapshot", self.disk)
                    else:
                        self.a.agent.call(repair)
                    self.assertNotIn("paused", self.sm_config)
                    writing.join(20)
                    self.assertFalse(writing.is_alive(), "B's disk hangs")
                    self.assertEqual(read(self.device), b"is " + text)
                    self.a.agent.scan()
                    # Snapshots hold what was there before, never what was written after.
                    for vdi, record in list(self.xapi.vdis.items()):
                        if vdi != self.disk and record["managed"]:
                            if repair != "vdi_snapshot":
                                self.has(self.a, vdi, b"was " + text)
                            self.a.agent.delete(vdi)
                    self.a.agent.scan()

    def test_another_master_repairs_what_is_paused_on_itself(self):
        self.snapshot_killed("pause", "after")
        writing = write(self.device, b"waits")
        self.b.agent.device_config["SRmaster"], self.a.agent.device_config["SRmaster"] = "true", "false"
        self.b.agent.call("sr_scan")
        self.assertNotIn("paused", self.sm_config)
        writing.join(20)
        self.assertEqual(read(self.device), b"waits")
        self.b.agent.device_config["SRmaster"], self.a.agent.device_config["SRmaster"] = "false", "true"

    def test_a_disk_that_is_being_changed_is_not_attached(self):
        self.b.deactivate(self.disk)
        self.sm_config["paused"] = "true"
        self.b.driver.env["XCP_SM_PATIENCE"] = "2"
        self.assertIn("paused for 2 s", self.fails(46, self.b.agent.call, "vdi_activate", "true", vdi=self.disk))
        del self.b.driver.env["XCP_SM_PATIENCE"]
        self.assertNotIn(f"host_{self.b.ref}", self.sm_config)
        activating = threading.Thread(target=self.b.activate, args=(self.disk,))
        activating.start()
        snapshot = self.a.agent.copy("vdi_snapshot", self.disk)
        activating.join()
        self.assertEqual(self.sm_config[f"host_{self.b.ref}"], "RW")
        self.has(self.a, snapshot, b"old")

    def test_activations_and_snapshots_at_once(self):
        self.b.deactivate(self.disk)
        stop, failed = threading.Event(), []

        def work():
            number = 0
            while not stop.is_set():
                number += 1
                try:
                    device = self.b.activate(self.disk)
                    write(device, b"%d" % number).join()
                    if read(device) != b"%d" % number:
                        failed.append(number)
                    self.b.deactivate(self.disk)
                except Exception as error:  # pylint: disable=broad-except
                    failed.append(error)
        worker = threading.Thread(target=work)
        worker.start()
        snapshots = {}
        for _ in range(8):
            snapshot = self.a.agent.copy("vdi_snapshot", self.disk)
            snapshots[snapshot] = self.read_once(snapshot)
        stop.set()
        worker.join()
        self.assertEqual(failed, [])
        for snapshot, text in snapshots.items():
            self.has(self.a, snapshot, text)

    def test_what_can_not_be_done_to_a_disk_that_b_uses(self):
        before = self.on_storage()
        self.assertIn("host B (RW)", self.fails(24, self.a.agent.copy, "vdi_clone", self.disk))
        self.assertIn("host B (RW)", self.fails(24, self.a.agent.resize, self.disk, 8 * MiB))
        self.assertIn("host B (RW)", self.fails(24, self.a.agent.call, "vdi_delete", vdi=self.disk))
        self.assertEqual(self.on_storage(), before)
        # A person who does not ask xapi.
        images = self.on_images()
        dconf = '((server . "10.0.1.1") (serverpath . "/") (nfsversion . "4.2"))'
        name = self.xapi.vdis[self.disk]["uuid"]
        for verb, args, status in (("vdi_snapshot", [name, uuid_of("c")], 103), ("vdi_clone", [name, uuid_of("c")], 103),
                                   ("sr_collect", [], 0)):
            done = subprocess.run([*self.a.prefix, self.sm, verb, "-t", "nfs", "-d", dconf, self.sr_uuid, *args],
                                  env=self.a.driver.env, capture_output=True, check=False)
            self.assertEqual((done.returncode, done.stdout), (status, b""), done.stderr)
            self.assertEqual(self.on_images(), images)
        raw = self.a.agent.create(MiB, sm_config={"type": "raw"})
        self.b.activate(raw)
        self.assertIn("host B (RW)", self.fails(24, self.a.agent.copy, "vdi_snapshot", raw))
        self.b.deactivate(raw)
        self.a.agent.delete(self.a.agent.copy("vdi_snapshot", raw))
        self.goes_on()

    def test_a_disk_that_both_read(self):
        self.b.deactivate(self.disk)
        for host in (self.a, self.b):
            host.agent.call("vdi_attach", "false", vdi=self.disk)
            host.agent.call("vdi_activate", "false", vdi=self.disk)
        snapshot = self.a.agent.copy("vdi_snapshot", self.disk)
        self.assertEqual(self.asked, ["serves", "pause", "unpause"])
        for host in (self.a, self.b):
            link = host.agent.call("vdi_attach", "false", vdi=self.disk)["params"]
            self.assertEqual(read(os.path.realpath(link)), b"old")
            host.deactivate(self.disk)
        self.has(self.b, snapshot, b"old")


if __name__ == "__main__":
    unittest.main()
