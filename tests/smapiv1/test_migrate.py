"""Storage migration: what a driver does for it. Alone: BIN=target/debug python3 -m unittest -v test_migrate."""

import os
import shutil
import subprocess
import unittest

import test_file
from driver import request
from test_file import MiB, ROOT, checksum

SIZE = 8 * MiB
SECTOR = 512
NEEDS_ROOT = unittest.skipUnless(ROOT, "needs root")


class Disks(test_file.Case):
    def setUp(self):
        super().setUp()
        self.an_sr()

    def sm(self, *words, check=True):
        env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "XCP_SM_RUN_DIR": self.host}
        return subprocess.run([os.path.join(test_file.BIN, "sm"), words[0], "-t", "file", "-d", self.location,
                               self.agent.sr_uuid, *words[1:]], env=env, check=check, capture_output=True, timeout=100)

    def write(self, vdi, data):
        """Writes bytes at offsets of a disk."""
        self.agent.call("vdi_activate", "true", vdi=vdi)
        disk = os.open(self.agent.call("vdi_attach", "true", vdi=vdi)["params"], os.O_RDWR)
        for offset, piece in data.items():
            os.pwrite(disk, piece, offset)
        os.fsync(disk)
        os.close(disk)
        self.agent.call("vdi_deactivate", vdi=vdi)

    def read(self, vdi):
        self.agent.call("vdi_activate", "false", vdi=vdi)
        with open(self.agent.call("vdi_attach", "false", vdi=vdi)["params"], "rb") as device:
            data = device.read()
        self.agent.call("vdi_deactivate", vdi=vdi)
        return data

    def disk(self, image_format="vhd", size=SIZE):
        return self.agent.create(size, sm_config={"type": image_format})

    def leaf(self, image_format="vhd"):
        """A disk that is a child of an empty base, and the snapshot that made it one."""
        leaf = self.disk(image_format)
        return leaf, self.agent.copy("vdi_snapshot", leaf)

    def compose(self, leaf, parent):
        return self.agent.call("vdi_compose", parent, vdi=leaf)

    def check(self):
        done = self.sm("sr_check", "--deep", check=False)
        self.assertEqual(done.returncode, 0, done)


class Compose(Disks):
    @NEEDS_ROOT
    def test_a_disk_shows_what_it_holds_and_its_new_parent_elsewhere(self):
        for image_format in ("vhd", "qcow2"):
            with self.subTest(image_format):
                leaf, dummy = self.leaf(image_format)
                parent = self.disk(image_format)
                self.write(leaf, {MiB: b"l" * 65536})
                self.write(parent, {MiB - 65536: b"p" * (4 * 65536)})
                uuid = self.xapi.vdis[parent]["uuid"]
                allocation = int(self.xapi.srs[self.agent.sr_ref]["virtual_allocation"])
                wanted = bytearray(SIZE)
                wanted[MiB - 65536:MiB + 3 * 65536] = b"p" * (4 * 65536)
                wanted[MiB:MiB + 65536] = b"l" * 65536
                for _ in range(2):
                    self.compose(leaf, parent)
                    self.assertEqual(self.xapi.vdis[leaf]["sm_config"]["vhd-parent"], uuid)
                    record = self.xapi.vdis[parent]
                    self.assertEqual((record["managed"], record["read_only"]), (False, True))
                    self.assertEqual(int(self.xapi.srs[self.agent.sr_ref]["virtual_allocation"]), allocation - SIZE)
                self.xapi.calls()
                self.agent.call("sr_scan")
                self.assertEqual([m for m in self.xapi.methods() if ".set_" in m or "introduce" in m or "forget" in m], [])
                self.check()
                self.assertTrue(self.read(leaf) == wanted)
                self.agent.delete(dummy)
                self.agent.scan()
                self.assertEqual(len(self.xapi.of(self.agent.sr_ref)), 2)
                # Merged, it is one disk that holds all of it.
                self.sm("sr_collect")
                self.agent.scan()
                self.assertEqual(list(self.xapi.of(self.agent.sr_ref)), [leaf])
                self.assertTrue(self.read(leaf) == wanted)
                self.check()
                self.agent.delete(leaf)

    def test_the_base_that_made_the_disk_a_child_goes_with_its_last_child(self):
        leaf, dummy = self.leaf()
        parent = self.disk()
        self.agent.delete(dummy)
        self.compose(leaf, parent)
        self.agent.scan()
        self.assertEqual(set(self.xapi.of(self.agent.sr_ref)), {leaf, parent})
        # A smaller one is a parent as well.
        leaf, _ = self.leaf()
        small = self.disk(size=2 * MiB)
        self.compose(leaf, small)
        self.check()

    def test_what_does_not_go_together_is_refused_and_nothing_is_changed(self):
        leaf, dummy = self.leaf()
        parent, alone, raw, qcow2 = self.disk(), self.disk(), self.agent.create(SIZE), self.disk("qcow2")
        large = self.disk(size=2 * SIZE)
        child, child_dummy = self.leaf()
        tracked = self.disk()
        self.agent.call("vdi_enable_cbt", vdi=tracked)
        by_uuid = {v["uuid"]: r for r, v in self.xapi.vdis.items()}
        base = by_uuid[self.xapi.vdis[leaf]["sm_config"]["vhd-parent"]]
        locked = self.disk()
        self.sm("vdi_lock", self.xapi.vdis[locked]["uuid"], "somebody")
        before = checksum(self.location)
        for code, disk, below, words in (
                (38, raw, parent, ""), (202, leaf, raw, "is raw"), (202, leaf, qcow2, "a qcow2"), (202, leaf, large, "has 16MiB"),
                (202, alone, parent, "has no parent"), (202, leaf, leaf, "in one chain"), (202, leaf, tracked, "tracked"),
                (46, base, parent, "base"), (46, child, base, "base"), (24, leaf, locked, "somebody")):
            with self.subTest(words, code=code):
                text = self.fails(code, self.compose, disk, below)
                self.assertIn(words, text)
                self.assertEqual(checksum(self.location), before)
        elsewhere = self.xapi.vdis[parent]
        sr, elsewhere["SR"] = elsewhere["SR"], "OpaqueRef:sr-other"
        self.fails(143, self.compose, leaf, parent)
        elsewhere["SR"] = sr
        config = dict(self.agent.device_config, SRmaster="false")
        self.fails(58, self.agent.call, "vdi_compose", parent, vdi=leaf, device_config=config)
        self.assertEqual(checksum(self.location), before)
        if ROOT:
            for used in (leaf, parent):
                self.agent.call("vdi_activate", "false", vdi=used)
                self.fails(24, self.compose, leaf, parent)
                self.agent.call("vdi_deactivate", vdi=used)
            # A parent that holds data is not taken away.
            self.write(child, {0: b"x" * 4096})
            self.agent.copy("vdi_snapshot", child)
            self.assertIn("would lose", self.fails(202, self.compose, child, parent))
        self.assertEqual(self.xapi.vdis[parent]["managed"], True)
        del dummy, child_dummy

    @unittest.skipUnless(ROOT and shutil.which("strace"), "needs root and strace")
    def test_killed_anywhere_it_has_happened_or_not_and_the_next_call_completes_it(self):
        calls = "linkat,renameat,renameat2,unlinkat,fsync,fdatasync,pwrite64,pwritev,write,ftruncate"
        for image_format in ("vhd", "qcow2"):
            for number in range(1, 60):
                leaf, dummy = self.leaf(image_format)
                parent = self.disk(image_format)
                self.write(leaf, {MiB: b"l" * 65536})
                self.write(parent, {0: b"p" * (2 * MiB)})
                before = self.read(leaf)
                after = b"p" * MiB + b"l" * 65536 + b"p" * (MiB - 65536) + bytes(SIZE - 2 * MiB)
                members = self.agent.members("vdi_compose", parent, vdi=leaf)
                killed = subprocess.run(
                    ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"inject={calls}:signal=KILL:when={number}",
                     self.driver.executable, request("vdi_compose", members)],
                    env=self.driver.env, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, timeout=100, check=False)
                self.assertIn(self.read(leaf), (before, after), (image_format, number))
                self.compose(leaf, parent)
                self.assertTrue(self.read(leaf) == after, (image_format, number))
                self.agent.delete(dummy)
                self.agent.scan()
                self.assertEqual(set(self.xapi.of(self.agent.sr_ref)), {leaf, parent}, (image_format, number))
                self.check()
                self.agent.delete(leaf)
                self.agent.scan()
                if killed.returncode == 0:
                    break
            self.assertEqual(killed.returncode, 0, "it was killed each time")
            self.assertGreater(number, 4, image_format)


del Disks
