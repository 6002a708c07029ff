"""Storage migration: what a driver does for it. Alone: BIN=target/debug python3 -m unittest -v test_migrate."""

import json
import os
import random
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import test_file
from agent import Agent, Driver, Fault
from blktap import SOCKETS, Client, connect, pass_socket
from driver import Plugin, request
from test_file import MiB, ROOT, checksum
from xapi import Refusal, Xapi

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


class Pool:
    """A pool of one host with one SR."""

    def __init__(self, scratch, name, tools, opens=""):
        self.host, self.location = os.path.join(scratch, name), os.path.join(scratch, "sr-" + name)
        os.mkdir(self.host)
        self.log = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.log.bind(os.path.join(self.host, "log"))
        self.xapi = Xapi(os.path.join(self.host, "xapi"))
        self.driver = Driver(os.path.join(test_file.BIN, "FileSR"), self.host)
        self.driver.env.update(tools, PATH=f"{tools['PATH']}:{self.driver.env['PATH']}")
        if opens:
            Path(self.host, "xapi.conf").write_text(f'TAPDISK_OPENS="{opens}"\n', encoding="ascii")
        self.agent = Agent(self.xapi, self.driver, {"location": self.location})
        self.agent.create_sr()
        self.agent.attach_sr()
        self.active = set()

    def close(self):
        for vdi in list(self.active):
            self.deactivate(vdi)
        self.xapi.close()
        self.log.close()
        subprocess.run(["umount", "-l", os.path.join(self.host, "sr-mount", self.agent.sr_uuid)], check=False,
                       capture_output=True)

    def sm(self, *words):
        return subprocess.run([os.path.join(test_file.BIN, "sm"), words[0], "-t", "file", "-d", self.location,
                               self.agent.sr_uuid, *words[1:]], env=self.driver.env, check=False, capture_output=True,
                              timeout=100)

    def create(self, image_format, **sm_config):
        return self.agent.create(SIZE, sm_config=dict(sm_config, type=image_format, **{"image-format": image_format}))

    def snapshot(self, vdi, **driver_params):
        """As xapi: it keeps base_mirror in the record of the snapshot."""
        driver_params = dict(self.xapi.vdis[vdi]["sm_config"], **driver_params)
        snapshot = self.agent.found(self.agent.call("vdi_snapshot", vdi=vdi, driver_params=driver_params))
        self.xapi.vdis[snapshot].update(is_a_snapshot=True, snapshot_of=vdi)
        if "base_mirror" in driver_params:
            self.xapi.vdis[snapshot]["sm_config"]["base_mirror"] = driver_params["base_mirror"]
        self.agent.call("vdi_update", vdi=snapshot)
        return snapshot

    def activate(self, vdi, writable=True):
        """An NBD client of the disk's tapdisk."""
        how = "true" if writable else "false"
        answer = self.agent.call("vdi_attach", how, vdi=vdi)
        self.agent.call("vdi_activate", how, vdi=vdi)
        self.active.add(vdi)
        return Client(connect(self.socket(answer)))

    @staticmethod
    def socket(answer):
        # The link is too long a path for a socket here.
        return os.path.realpath(answer["params_nbd"].removeprefix("nbd:unix:").split(":")[0])

    def tapdisk(self, vdi):
        """Process and number of the disk's tapdisk, as xapi finds it."""
        path = self.socket(self.agent.call("vdi_attach", "true", vdi=vdi))
        return re.fullmatch(r"nbd(\d+)\.(\d+)", os.path.basename(path)).groups()

    def tap_ctl(self, *words):
        return subprocess.run([os.path.join(os.path.dirname(self.host), "tap-ctl"), *words], env=self.driver.env, check=True, capture_output=True, text=True,
                              timeout=60).stdout

    def deactivate(self, vdi):
        if vdi in self.active:
            self.active.remove(vdi)
            self.agent.call("vdi_deactivate", vdi=vdi)
            self.agent.call("vdi_detach", vdi=vdi)

    def delete(self, vdi):
        """As at the end of a migration: what cannot be deleted is left."""
        if vdi in self.xapi.vdis:
            self.deactivate(vdi)
            self.agent.delete(vdi)

    def tidy(self):
        """The disks, once everything is merged that can be."""
        done = self.sm("sr_collect")
        assert done.returncode == 0, done
        done = self.sm("sr_check", "--deep")
        assert done.returncode == 0, done
        self.agent.scan()
        return set(self.xapi.of(self.agent.sr_ref))


class Migration:
    """xapi's steps, ocaml/xapi/storage_smapiv1_migrate.ml, with a guest that writes between any two of them."""

    def __init__(self, source, dest, image_format, dice):
        self.source, self.dest, self.format, self.dice = source, dest, image_format, dice
        self.disk = source.agent.create(SIZE, sm_config={"type": image_format})
        self.data, self.ends = bytearray(SIZE), []
        self.id = f"{source.agent.sr_uuid}/{source.xapi.vdis[self.disk]['location']}"
        self.dp = "mirror_vbd/7/xvda"
        self.leaf = self.dummy = self.parent = self.snapshot = None
        self.guest = source.activate(self.disk)
        self.put(0, self.dice.randbytes(3 * MiB))
        source.agent.delete(source.snapshot(self.disk))

    def put(self, offset, data):
        self.guest.write(offset, data)
        self.data[offset:offset + len(data)] = data

    def scribble(self):
        """Single sectors, and a longer piece."""
        for count in (1, 1, 3, 40):
            self.put(self.dice.randrange((SIZE // SECTOR) - count) * SECTOR, self.dice.randbytes(count * SECTOR))

    def steps(self):
        return [self.create_leaf, self.make_it_a_child, self.activate_leaf, self.create_parent, self.connect, self.begin,
                self.copy_half, self.copy_rest, self.delete_snapshot, self.scan]

    def create_leaf(self):
        self.source.agent.scan()
        self.dest.agent.scan()
        self.leaf = self.dest.create(self.format, base_mirror=self.id)
        assert self.dest.xapi.vdis[self.leaf]["sm_config"]["base_mirror"] == self.id

    def make_it_a_child(self):
        self.dummy = self.dest.snapshot(self.leaf)
        if self.format == "qcow2":
            header = Path(self.dest.location, self.dest.xapi.vdis[self.leaf]["uuid"] + ".qcow2").read_bytes()[:104]
            # Clusters of 16 KiB, in which each sector is there or not.
            assert (header[23], header[79]) == (14, 1 << 4), header

    def activate_leaf(self):
        self.dest.activate(self.leaf).close()

    def create_parent(self):
        self.parent = self.dest.create(self.format, base_mirror=self.id)

    def connect(self):
        ours, theirs = socket.socketpair()
        pid, minor = self.dest.tapdisk(self.leaf)
        pass_socket(f"{SOCKETS}/nbdserver{pid}.{minor}", self.dp, theirs)
        pass_socket(f"{SOCKETS}/nbdclient{self.source.tapdisk(self.disk)[0]}", self.dp, ours)
        ours.close()
        theirs.close()

    def begin(self):
        self.snapshot = self.source.snapshot(self.disk, mirror="nbd:" + self.dp, base_mirror=self.id)

    def copy(self, begin, end):
        source, dest = self.source.activate(self.snapshot, writable=False), self.dest.activate(self.parent)
        for at in range(begin, end, MiB // 2):
            piece = source.read(at, MiB // 2)
            if any(piece):
                dest.write(at, piece)
            self.scribble()
        source.close()
        dest.close()

    def copy_half(self):
        self.copy(0, SIZE // 2)

    def copy_rest(self):
        self.copy(SIZE // 2, SIZE)
        self.source.deactivate(self.snapshot)
        self.dest.deactivate(self.parent)

    def delete_snapshot(self):
        self.source.delete(self.snapshot)

    def scan(self):
        self.dest.agent.scan()
        assert self.leaf in self.dest.xapi.vdis

    def failed(self):
        pid, minor = self.source.tapdisk(self.disk)
        return json.loads(self.source.tap_ctl("stats", "-p", pid, "-m", minor))["nbd_mirror_failed"]

    def move(self):
        self.guest.close()
        self.source.deactivate(self.disk)
        self.dest.deactivate(self.leaf)
        self.dest.agent.call("vdi_compose", self.parent, vdi=self.leaf)
        self.dest.delete(self.dummy)
        self.dest.xapi.vdis[self.leaf]["sm_config"].pop("base_mirror")
        self.source.delete(self.disk)

    def abort(self):
        """DATA.MIRROR.stop; before the snapshot there is only the destination to be tidied up."""
        if self.snapshot:
            self.source.agent.scan()
            self.source.delete(self.source.snapshot(self.disk, mirror="null"))
            self.source.delete(self.snapshot)
        for vdi in (self.dummy, self.leaf, self.parent):
            self.dest.delete(vdi)


@NEEDS_ROOT
class Migrated(unittest.TestCase):
    """With the tapdisk in the directory TAPDISK, or else a double of it. It opens the block devices of image servers."""

    # The formats that tapdisk opens by itself.
    OPENS = ""

    def setUp(self):
        self.scratch = tempfile.mkdtemp(prefix="migrate-")
        self.addCleanup(shutil.rmtree, self.scratch)
        real = os.environ.get("TAPDISK")
        tools = {"PATH": self.scratch, "LD_LIBRARY_PATH": os.environ.get("LD_LIBRARY_PATH", "")}
        os.makedirs(SOCKETS, exist_ok=True)
        words = [f"{real}/tap-ctl"] if real else [sys.executable, "-I", "-S", os.path.abspath("blktap.py")]
        # It writes down what it is told. With the file `kill`, it kills the driver instead of ending a pause, once; with the file `forget`,
        # the double opens its image at the second try at the next end of a pause.
        tap_ctl = Path(self.scratch, "tap-ctl")
        tap_ctl.write_text(f"""#!/bin/sh
echo "$*" >> {self.scratch}/told
[ "$1" != unpause ] || ! rm {self.scratch}/kill 2> /dev/null || {{ kill -9 $PPID; exit 1; }}
[ "$1" != unpause ] || ! rm {self.scratch}/forget 2> /dev/null || set -- "$@" -F
exec {shlex.join(words)} "$@"
""", encoding="ascii")
        tap_ctl.chmod(0o755)
        self.dice = random.Random(7)
        self.pools = [Pool(self.scratch, name, tools, self.OPENS) for name in ("source", "dest")]
        for pool in self.pools:
            self.addCleanup(pool.close)

    def holds(self, pool, vdi, data):
        disk = pool.activate(vdi, writable=False)
        held = disk.read(0, SIZE)
        disk.close()
        pool.deactivate(vdi)
        wrong = [at for at in range(0, SIZE, SECTOR) if held[at:at + SECTOR] != data[at:at + SECTOR]]
        self.assertEqual(wrong, [])

    def test_a_disk_in_use_moves_with_all_that_its_guest_writes(self):
        source, dest = self.pools
        for image_format in ("vhd", "qcow2"):
            with self.subTest(image_format):
                migration = Migration(source, dest, image_format, self.dice)
                for step in migration.steps():
                    step()
                    migration.scribble()
                self.assertEqual(migration.failed(), 0)
                migration.move()
                self.holds(dest, migration.leaf, migration.data)
                self.assertEqual(source.tidy(), set())
                self.assertEqual(dest.tidy(), {migration.leaf})
                self.holds(dest, migration.leaf, migration.data)
                dest.delete(migration.leaf)

    def test_it_can_be_given_up_after_each_step(self):
        source, dest = self.pools
        number = len(Migration.steps(Migration.__new__(Migration)))
        for count in range(1, number + 1):
            with self.subTest(count):
                migration = Migration(source, dest, ("vhd", "qcow2")[count % 2], self.dice)
                for step in migration.steps()[:count]:
                    step()
                    migration.scribble()
                migration.abort()
                migration.scribble()
                if migration.snapshot:
                    self.assertEqual(migration.failed(), 0)
                self.assertEqual(dest.tidy(), set())
                migration.guest.close()
                source.deactivate(migration.disk)
                self.holds(source, migration.disk, migration.data)
                self.assertEqual(source.tidy(), {migration.disk})
                source.delete(migration.disk)

    def told(self, word):
        lines = Path(self.scratch, "told").read_text(encoding="ascii").splitlines()
        return [re.sub(r"[0-9]+", "N", line) for line in lines if line.startswith(word)]

    def begun(self):
        """A migration before the first step at which the disk itself is touched."""
        migration = Migration(*self.pools, "vhd", self.dice)
        for step in migration.steps()[:5]:
            step()
        return migration

    def end(self, migration):
        migration.abort()
        migration.scribble()
        migration.guest.close()
        migration.source.deactivate(migration.disk)
        self.holds(migration.source, migration.disk, migration.data)
        self.assertEqual(migration.source.tidy(), {migration.disk})
        self.assertEqual(migration.dest.tidy(), set())

    def test_a_call_that_is_killed_leaves_no_disk_paused(self):
        migration = self.begun()
        source = migration.source
        Path(self.scratch, "kill").touch()
        # The driver itself is killed, or the process that keeps the tapdisk for it.
        with self.assertRaises((AssertionError, Fault)):
            migration.begin()
        pid, minor = source.tapdisk(migration.disk)
        self.assertRegex(source.tap_ctl("list"), f"pid={pid} minor={minor} state=(0x)?2a")
        source.agent.call("sr_scan")
        self.assertEqual(list(Path(source.host).rglob("paused/*/*")), [])
        migration.scribble()
        migration.begin()
        migration.scribble()
        self.end(migration)

    def test_a_snapshot_that_fails_ends_what_is_sent(self):
        migration = self.begun()
        xapi = migration.source.xapi
        xapi.behaviour = lambda method, number: ["NO", "no"] if method == "VDI.db_introduce" else None
        with self.assertRaises(Fault):
            migration.begin()
        xapi.behaviour = lambda method, number: None
        told = [line for line in self.told("unpause") if not line.endswith("-m N")]
        self.assertEqual(told[-2:], [f"unpause -p N -m N -N nbd:{migration.dp.replace('7', 'N')}",
                                     "unpause -p N -m N -N null"])
        migration.scribble()
        self.end(migration)

    def test_what_cannot_be_mirrored_is_refused(self):
        source = self.pools[0]
        agent = source.agent
        self.assertIn("VDI_MIRROR", source.driver.call("sr_get_driver_info", {
            "host_ref": "OpaqueRef:h1", "command": "sr_get_driver_info", "args": [], "device_config": {}})["capabilities"])
        raw, disk = agent.create(SIZE), source.create("vhd")
        for code, vdi, params in ((38, raw, {"mirror": "nbd:x"}), (38, raw, {"base_mirror": "a/b"}), (46, disk, {"mirror": "nbd:x"}),
                                  (143, disk, {"mirror": "aio:/etc/passwd"}), (143, disk, {"mirror": ""})):
            with self.subTest(params), self.assertRaises(Fault) as raised:
                agent.call("vdi_snapshot", vdi=vdi, driver_params=params)
            self.assertEqual(raised.exception.code, code, raised.exception.text)
        # Ended where nothing is sent; nor does a clone care.
        source.delete(source.snapshot(disk, mirror="null"))
        agent.delete(agent.found(agent.call("vdi_clone", vdi=disk, driver_params={"base_mirror": "a/b", "mirror": "nbd:x"})))
        self.assertEqual(source.tidy(), {raw, disk})

    def test_another_host_is_asked_by_the_plugin(self):
        migration = self.begun()
        source = migration.source
        link, plugin = os.path.join(self.scratch, "FileSR"), os.path.join(self.scratch, "tapdisk-pause")
        for path in (link, plugin):
            os.symlink(os.path.abspath(os.path.join(test_file.BIN, "sm")), path)
        source.xapi.driver_filenames["file"] = link
        pause = Plugin(plugin, source.host, source.xapi.session)
        pause.env.update(source.driver.env)
        args = {"sr_uuid": source.agent.sr_uuid, "vdi_uuid": source.xapi.vdis[migration.disk]["uuid"]}
        for secondary in ("nbd:" + migration.dp, "null"):
            self.assertEqual(pause("refresh", dict(args, secondary=secondary)), "True")
            self.assertTrue(self.told("unpause")[-1].endswith(re.sub("[0-9]+", "N", secondary)))
            migration.scribble()
        for function, secondary in (("refresh", "aio:/x"), ("pause", "null")):
            with self.assertRaises(Refusal):
                pause(function, dict(args, secondary=secondary))
        idle = source.create("vhd")
        args["vdi_uuid"] = source.xapi.vdis[idle]["uuid"]
        self.assertEqual(pause("refresh", dict(args, secondary="null")), "False")
        source.delete(idle)
        self.end(migration)


class MigratedByImage(Migrated):
    """The same. It opens the image of a VHD by itself, and of a qcow2 if it knows the format."""

    OPENS = "vhd qcow2"

    @unittest.skipIf("TAPDISK" in os.environ, "needs the double, which forgets at a word")
    def test_what_tapdisk_forgets_to_send_is_told(self):
        migration = self.begun()
        # At the beginning it is a failure.
        Path(self.scratch, "forget").touch()
        with self.assertRaises(Fault) as raised:
            migration.begin()
        self.assertIn("does not send to nbd:" + migration.dp, raised.exception.text)
        migration.scribble()
        migration.begin()
        migration.scribble()
        self.assertEqual(migration.failed(), 0)
        # Later xapi asks for it, and gives up the migration.
        Path(self.scratch, "forget").touch()
        migration.source.delete(migration.source.snapshot(migration.disk))
        self.assertFalse(Path(self.scratch, "forget").exists())
        self.assertEqual(migration.failed(), 1)
        migration.scribble()
        self.end(migration)

    # As with a block device.
    test_what_cannot_be_mirrored_is_refused = None
    if "TAPDISK" not in os.environ:
        test_it_can_be_given_up_after_each_step = None


del Disks
