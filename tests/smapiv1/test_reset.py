"""Disks that go back at each start of their VM. Alone: BIN=target/debug python3 -m unittest -v test_reset."""

import os
import shutil
import subprocess
import unittest
from pathlib import Path

import test_file
from driver import request
from test_file import MiB, ROOT

SIZE = 8 * MiB


class Case(test_file.Case):
    def setUp(self):
        super().setUp()
        self.an_sr()
        self.on_boot = {}
        members = self.agent.of_vdi

        def of_vdi(vdi):
            return dict(members(vdi), vdi_on_boot=self.on_boot.get(vdi, "persist"))
        self.agent.of_vdi = of_vdi

    def sm(self, *words, check=True):
        env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "XCP_SM_RUN_DIR": self.host}
        return subprocess.run([os.path.join(test_file.BIN, "sm"), words[0], "-t", "file", "-d", self.location,
                               self.agent.sr_uuid, *words[1:]], env=env, check=check, capture_output=True, timeout=100)

    def write(self, vdi, byte, attached=False):
        """Fills MiBs 1 and 3 of a disk, as its VM would."""
        if not attached:
            self.agent.call("vdi_activate", "true", vdi=vdi)
        with open(self.agent.call("vdi_attach", "true", vdi=vdi)["params"], "r+b") as device:
            for at in (1, 3):
                device.seek(at * MiB)
                device.write(bytes([byte]) * 4096)
            os.fsync(device.fileno())
        if not attached:
            self.agent.call("vdi_deactivate", vdi=vdi)

    def holds(self, vdi):
        """The byte that the disk was filled with last, and its size."""
        path = os.path.join(self.scratch, "export")
        self.sm("vdi_export", "--type", "raw", self.xapi.vdis[vdi]["uuid"], path)
        data = Path(path).read_bytes()
        os.unlink(path)
        found = {data[at * MiB:at * MiB + 4096] for at in (1, 3)}
        self.assertEqual(len(found), 1, "the disk is torn")
        written = found.pop()
        self.assertEqual(len(set(written)), 1)
        self.assertEqual(sum(map(bool, data)), 8192 if written[0] else 0)
        return written[0], len(data)

    def collect(self):
        self.sm("sr_collect")
        return sorted(name for name in os.listdir(self.location) if name.endswith((".vhd", ".qcow2")))

    def begin(self, vdi):
        self.agent.call("vdi_epoch_begin", vdi=vdi)

    def set_on_boot(self, vdi, value):
        """As xapi does it, ocaml/xapi/xapi_vdi.ml: an empty leaf, and no word of what it is for."""
        if value == "reset":
            self.agent.delete(self.agent.copy("vdi_clone", vdi))
        self.on_boot[vdi] = value


class Simple(Case):
    def test_what_has_no_point_to_go_back_to_is_refused(self):
        raw = self.agent.create(SIZE)
        self.begin(raw)
        self.on_boot[raw] = "reset"
        self.assertIn("raw", self.fails(38, self.begin, raw))

    @unittest.skipUnless(ROOT, "needs root")
    def test_a_disk_goes_back_at_each_start_and_keeps_its_point(self):
        for image_format in ("vhd", "qcow2"):
            with self.subTest(image_format):
                disk = self.agent.create(SIZE, sm_config={"type": image_format})
                self.write(disk, 1)
                self.set_on_boot(disk, "reset")
                # Nothing says yet what the base of the empty leaf is for.
                self.assertEqual(len(self.collect()), 1)
                for byte in (2, 3):
                    for _ in range(2):
                        self.begin(disk)
                    self.assertEqual(self.holds(disk), (1, SIZE))
                    self.write(disk, byte)
                    # The collector leaves the disk and its point alone, and xapi is told of both.
                    self.assertEqual(len(self.collect()), 2)
                    self.assertEqual(self.holds(disk), (byte, SIZE))
                self.assertEqual(self.sm("sr_check", "--deep").returncode, 0)
                # A copy would move the point.
                for command in ("vdi_clone", "vdi_snapshot"):
                    self.assertIn("goes back", self.fails(38, self.agent.copy, command, disk))
                self.begin(disk)
                self.assertEqual(self.holds(disk), (1, SIZE))
                # A copy of the empty leaf does not, and does not go back itself.
                copy = self.agent.copy("vdi_clone", disk)
                self.write(copy, 4)
                self.agent.delete(disk)
                self.assertEqual(len(self.collect()), 1)
                self.assertEqual(self.holds(copy), (4, SIZE))
                self.agent.delete(copy)
                self.assertEqual(self.collect(), [])

    @unittest.skipUnless(ROOT, "needs root")
    def test_a_disk_that_grew_goes_back_and_keeps_its_size(self):
        for image_format in ("vhd", "qcow2"):
            with self.subTest(image_format):
                disk = self.agent.create(SIZE, sm_config={"type": image_format})
                self.write(disk, 1)
                self.set_on_boot(disk, "reset")
                self.begin(disk)
                self.agent.resize(disk, 2 * SIZE)
                self.write(disk, 2)
                self.begin(disk)
                self.assertEqual(self.holds(disk), (1, 2 * SIZE))
                self.write(disk, 3)
                self.begin(disk)
                self.assertEqual(self.holds(disk), (1, 2 * SIZE))
                self.agent.delete(disk)

    @unittest.skipUnless(ROOT, "needs root")
    def test_a_disk_that_shall_persist_again_keeps_what_it_holds_and_is_merged(self):
        disk = self.agent.create(SIZE, sm_config={"type": "vhd"})
        self.write(disk, 1)
        self.set_on_boot(disk, "reset")
        self.begin(disk)
        self.write(disk, 2)
        self.set_on_boot(disk, "persist")
        self.begin(disk)
        self.write(disk, 3)
        self.assertEqual(len(self.collect()), 1)
        self.assertEqual(self.holds(disk), (3, SIZE))
        # xapi's copy is one of a disk that persists: the point is what the disk holds now.
        self.set_on_boot(disk, "reset")
        self.begin(disk)
        self.write(disk, 4)
        self.set_on_boot(disk, "persist")
        self.set_on_boot(disk, "reset")
        self.begin(disk)
        self.assertEqual(self.holds(disk), (4, SIZE))

    @unittest.skipUnless(ROOT, "needs root")
    def test_a_disk_is_marked_before_it_is_written_without_the_start_of_a_vm(self):
        disk = self.agent.create(SIZE, sm_config={"type": "vhd"})
        self.write(disk, 1)
        self.set_on_boot(disk, "reset")
        self.collect()
        self.write(disk, 2)
        self.assertEqual(len(self.collect()), 2)
        self.begin(disk)
        self.assertEqual(self.holds(disk), (1, SIZE))
        self.agent.call("vdi_activate", "true", vdi=disk)
        self.fails(24, self.begin, disk)
        self.write(disk, 3, attached=True)
        self.agent.call("vdi_deactivate", vdi=disk)
        self.assertEqual(self.holds(disk), (3, SIZE))

    @unittest.skipUnless(ROOT, "needs root")
    def test_a_mark_that_cannot_be_read_keeps_the_point(self):
        disk = self.agent.create(SIZE, sm_config={"type": "vhd"})
        self.write(disk, 1)
        self.set_on_boot(disk, "reset")
        self.begin(disk)
        record = Path(self.location, self.xapi.vdis[disk]["uuid"] + ".params")
        kept = record.read_bytes()
        record.write_bytes(b"(torn")
        self.sm("sr_collect", check=False)
        self.assertEqual(len([n for n in os.listdir(self.location) if n.endswith(".vhd")]), 2)
        record.write_bytes(kept)
        self.begin(disk)
        self.assertEqual(self.holds(disk), (1, SIZE))

    @unittest.skipUnless(ROOT and shutil.which("strace"), "needs root and strace")
    def test_a_start_that_is_killed_anywhere_leaves_what_the_next_one_completes(self):
        """Before the mark and after it; kills at each call that changes a file or makes it durable."""
        calls = "linkat,renameat,renameat2,unlinkat,fsync,fdatasync,pwrite64,write,ftruncate"
        disk = self.agent.create(SIZE, sm_config={"type": "vhd"})
        self.write(disk, 1)
        self.set_on_boot(disk, "reset")
        for what in ("mark", "reset"):
            survived = False
            for number in range(1, 60):
                if what == "mark":
                    self.on_boot[disk] = "persist"
                    self.write(disk, 1)
                    self.on_boot[disk] = "reset"
                    self.collect()
                else:
                    self.write(disk, 2)
                members = self.agent.members("vdi_epoch_begin", vdi=disk)
                killed = subprocess.run(
                    ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"inject={calls}:signal=KILL:when={number}",
                     self.driver.executable, request("vdi_epoch_begin", members)],
                    env=self.driver.env, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, timeout=100, check=False)
                self.assertIn(self.holds(disk)[0], (1, 2), (what, number))
                self.collect()
                self.begin(disk)
                self.assertEqual(self.holds(disk), (1, SIZE), (what, number))
                self.assertEqual(len(self.collect()), 2, (what, number))
                if killed.returncode == 0:
                    survived = True
                    break
            self.assertTrue(survived, "it was killed each time")
            self.assertGreater(number, 5, what)


del Case
