"""tapdisk opens the image itself. Alone: BIN=target/debug [TAPDISK=DIRECTORY] python3 -m unittest -v test_tapdisk."""

import base64
import os
import random
import re
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from pathlib import Path

import test_file
import test_migrate
import vhd
from blktap import SOCKETS, Client, connect
from driver import Fault, Plugin, image_servers
from test_file import MiB, ROOT

SIZE, SECTOR, BLOCK = 8 * MiB, 512, 65536
# A writer has this part of a disk to itself.
STRIPE = 6 * MiB


class Guest:
    """A disk in use, and what it should hold."""

    def __init__(self, pool, vdi, dice):
        self.pool, self.vdi, self.dice = pool, vdi, dice
        self.data, self.changed = bytearray(SIZE), set()
        self.client = pool.activate(vdi)
        self.writer = self.failure = None

    def put(self, offset, data):
        self.client.write(offset, data)
        self.data[offset:offset + len(data)] = data
        self.changed.update(range(offset // BLOCK, (offset + len(data) - 1) // BLOCK + 1))

    def scribble(self):
        for count in (1, 1, 8, 40, 300):
            self.put(self.dice.randrange(STRIPE // SECTOR - count) * SECTOR, self.dice.randbytes(count * SECTOR))

    def write_on(self):
        """Writes to the rest of the disk without end, over a connection of its own, until [rest]."""
        client, stop, dice = Client(connect(os.path.realpath(self.link()))), threading.Event(), random.Random(1)

        def work():
            try:
                while not stop.is_set():
                    at = STRIPE + dice.randrange((SIZE - STRIPE) // SECTOR - 16) * SECTOR
                    data = dice.randbytes(SECTOR * dice.randrange(1, 16))
                    client.write(at, data)
                    self.data[at:at + len(data)] = data
                client.close()
            except OSError as error:
                self.failure = error
        thread = threading.Thread(target=work)
        thread.start()
        self.writer = (thread, stop)

    def rest(self):
        thread, stop = self.writer
        stop.set()
        thread.join(60)
        assert not thread.is_alive() and self.failure is None, self.failure

    def link(self):
        return f"{self.pool.host}/blktap-control/nbd/{self.pool.agent.sr_uuid}/{self.vdi_uuid()}"

    def vdi_uuid(self):
        return self.pool.xapi.vdis[self.vdi]["uuid"]

    def close(self):
        self.client.close()
        self.pool.deactivate(self.vdi)


@unittest.skipUnless(ROOT, "needs root")
class ByImage(unittest.TestCase):
    """With the tapdisk in the directory TAPDISK, or else a double of it."""

    def setUp(self):
        self.scratch = tempfile.mkdtemp(prefix="tapdisk-")
        self.addCleanup(shutil.rmtree, self.scratch)
        self.real = os.environ.get("TAPDISK")
        tools = {"PATH": self.scratch, "LD_LIBRARY_PATH": os.environ.get("LD_LIBRARY_PATH", "")}
        os.makedirs(SOCKETS, exist_ok=True)
        words = [f"{self.real}/tap-ctl"] if self.real else [sys.executable, "-I", "-S", os.path.abspath("blktap.py")]
        # It writes down what it is told. At the call whose number is in the file `kill` it kills its caller, or the process whose
        # number is in `victim`, once: before the call, or after it. Each word in the file `refuse` is refused once, in their order.
        tap_ctl = Path(self.scratch, "tap-ctl")
        tap_ctl.write_text(f"""#!/bin/sh
cd {self.scratch}
echo "$*" >> told
if [ -e refuse ] && [ "$(head -n 1 refuse)" = "$1" ]; then
    sed -i 1d refuse
    [ -s refuse ] || rm refuse
    echo "refused by the test" >&2
    exit 22
fi
victim=$PPID
[ ! -e victim ] || read -r victim < victim
at=none
if [ -e kill ]; then
    read -r number at < kill
    if [ "$number" = 1 ]; then rm kill; else echo "$((number - 1)) $at" > kill; at=none; fi
fi
[ "$at" != before ] || kill -9 "$victim"
{shlex.join(words)} "$@"
status=$?
[ "$at" != after ] || kill -9 "$victim"
exit $status
""", encoding="ascii")
        tap_ctl.chmod(0o755)
        self.dice = random.Random(7)
        self.pool = test_migrate.Pool(self.scratch, "pool", tools, "vhd qcow2")
        self.addCleanup(self.pool.close)
        self.agent, self.xapi = self.pool.agent, self.pool.xapi

    def disk(self, image_format="vhd", size=SIZE):
        return self.agent.create(size, sm_config={"type": image_format})

    def image(self, vdi):
        return Path(self.pool.location, self.xapi.vdis[vdi]["uuid"] + ".vhd")

    def listed(self, vdi):
        """The lines of tap-ctl list that lead to a disk's image."""
        lines = self.pool.tap_ctl("list").splitlines()
        return [line for line in lines if line.endswith("args=vhd:" + os.path.realpath(self.image(vdi)))]

    def holds(self, vdi, data):
        disk = self.pool.activate(vdi, writable=False)
        held = disk.read(0, SIZE)
        disk.close()
        self.pool.deactivate(vdi)
        wrong = [at for at in range(0, SIZE, SECTOR) if held[at:at + SECTOR] != data[at:at + SECTOR]]
        self.assertEqual(wrong[:8], [])

    def records(self):
        return list(Path(self.pool.host, "sm", "datapath").glob("*.tap"))

    def keepers(self):
        """The processes that keep a tapdisk of this test."""
        return [pid for pid, words in image_servers() if words[2].startswith(b"tapdisk-") and os.fsencode(self.scratch) in words[5]]

    def started(self):
        """The processes of tapdisks, and of tap-ctl that starts one, of this test."""
        found, mark = [], b"XCP_SM_STARTING=" + os.fsencode(self.pool.host)
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if any(it.startswith(mark) for it in path.read_bytes().split(b"\0")):
                    found.append(int(path.parent.name))
            except OSError:
                pass
        return found

    def await_none(self, what):
        until = time.monotonic() + 30
        while (left := what()) and time.monotonic() < until:
            time.sleep(0.02)
        self.assertEqual(left, [])

    def nothing_is_left(self):
        self.await_none(self.keepers)
        self.await_none(self.started)
        self.assertEqual(list(Path(self.pool.host, "sm", "starting").glob("*")), [])
        self.assertEqual(self.records(), [])
        self.assertNotIn(self.scratch, self.pool.tap_ctl("list"))
        done = self.pool.sm("sr_check", "--deep")
        self.assertEqual(done.returncode, 0, done)

    def told(self, word):
        return [line for line in Path(self.scratch, "told").read_text(encoding="ascii").splitlines() if line.startswith(word)]

    def tap_ctls(self):
        """The calls of tap-ctl that run: whoever was killed does not see the end of what it began."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                # Nothing else works in this directory but the doubles that it started.
                is_ours, words = os.readlink(process / "cwd") == self.scratch, (process / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if is_ours and b"serve" not in words and not words[0].endswith(b"tapdisk"):
                found.append(words)
        return found

    def unsettled(self, vdi):
        """The calls of tap-ctl that run, and the tapdisk of a disk if it is paused."""
        running = self.tap_ctls()
        return running + [it for it in self.listed(vdi) if not re.search(r"state=(0x)?0 ", it)]

    def test_the_image_is_in_the_list_and_snapshots_beside_it(self):
        guest = Guest(self.pool, self.disk(), self.dice)
        guest.scribble()
        first, before = self.pool.snapshot(guest.vdi), bytes(guest.data)
        guest.scribble()
        self.pool.activate(first, writable=False).close()
        for vdi in (guest.vdi, first):
            self.assertEqual(len(self.listed(vdi)), 1)
            # Again: the same.
            self.agent.call("vdi_activate", "true" if vdi == guest.vdi else "false", vdi=vdi)
            self.assertEqual(len(self.listed(vdi)), 1)
        # What vhd-tool looks for: the leaf by its path, and parents by the names in it, in its directory.
        chain = vhd.Image(str(self.image(first)), True)
        self.assertEqual(os.path.dirname(chain.parent.path), self.pool.location)
        self.assertTrue(chain.read(0, SIZE) == before)
        chain.close()
        done = self.pool.sm("vdi_get_params", self.xapi.vdis[guest.vdi]["uuid"])
        self.assertIn(b"(attached . #t)", done.stdout, done)
        asked = len(self.told("list"))
        doctor = subprocess.run([os.path.join(test_file.BIN, "sm"), "doctor", "--format", "json"], env=self.pool.driver.env,
                                check=False, capture_output=True, timeout=100)
        self.assertGreater(len(self.told("list")), asked)
        self.assertNotIn(f"{self.pool.location}/", doctor.stdout.decode(), "a disk of ours")
        self.pool.deactivate(first)
        guest.close()
        self.nothing_is_left()
        self.holds(guest.vdi, guest.data)
        self.holds(first, before)
        self.nothing_is_left()

    def test_trees_change_below_a_disk_that_is_written(self):
        guest = Guest(self.pool, self.disk(), self.dice)
        guest.scribble()
        kept = {}
        for number in range(4):
            snapshot = self.pool.snapshot(guest.vdi)
            kept[snapshot] = bytes(guest.data)
            guest.write_on()
            guest.scribble()
            for _ in range(2):
                extra = self.pool.snapshot(guest.vdi)
                guest.scribble()
                self.agent.delete(extra)
                # A base below it, and the leaf itself.
                done = self.pool.sm("sr_collect")
                self.assertEqual(done.returncode, 0, done)
                guest.scribble()
            guest.rest()
            if number % 2:
                doomed = self.dice.choice(sorted(kept))
                del kept[doomed]
                self.agent.delete(doomed)
            # By the disk itself, while it is in use.
            self.assertTrue(guest.client.read(0, SIZE) == guest.data)
        self.assertEqual(len(self.listed(guest.vdi)), 1)
        for snapshot, data in kept.items():
            self.holds(snapshot, data)
            self.agent.delete(snapshot)
        self.assertEqual(self.pool.tidy(), {guest.vdi})
        self.assertTrue(guest.client.read(0, SIZE) == guest.data)
        guest.close()
        self.nothing_is_left()
        self.holds(guest.vdi, guest.data)

    def test_what_tapdisk_cannot_follow_is_refused_while_it_has_the_image_open(self):
        guest = Guest(self.pool, self.disk(), self.dice)
        guest.scribble()
        snapshot, data = self.pool.snapshot(guest.vdi), bytes(guest.data)
        guest.scribble()
        uuid = self.xapi.vdis[guest.vdi]["uuid"]
        for words in (("vdi_resize", uuid, "64MiB"), ("vdi_attach", uuid, "1"), ("vdi_detach", uuid), ("vdi_delete", uuid),
                      ("vdi_clone", uuid), ("sr_detach",)):
            done = self.pool.sm(*words)
            self.assertNotEqual(done.returncode, 0, (words, done))
            self.assertIn(b"tapdisk" if words[0] in ("vdi_resize", "vdi_detach") else b"", done.stderr, words)
        for command, args in (("vdi_resize", [str(2 * SIZE)]), ("vdi_clone", [])):
            with self.assertRaises(Fault):
                self.agent.call(command, *args, vdi=guest.vdi)
        with self.assertRaises(Fault):
            self.agent.call("vdi_revert", guest.vdi, vdi=snapshot)
        guest.scribble()
        self.assertTrue(guest.client.read(0, SIZE) == guest.data)
        guest.close()
        self.nothing_is_left()
        self.holds(guest.vdi, guest.data)
        self.agent.call("vdi_revert", guest.vdi, vdi=snapshot)
        self.holds(guest.vdi, data)
        self.agent.call("vdi_resize", str(2 * SIZE), vdi=guest.vdi)
        client = self.pool.activate(guest.vdi)
        self.assertEqual(client.size, 2 * SIZE)
        client.close()
        self.pool.deactivate(guest.vdi)

    def changes(self, older, newer):
        """The blocks that differ, as an agent hears of them."""
        bits = base64.b64decode(self.agent.call("vdi_list_changed_blocks", newer, vdi=older))
        return {at * 8 + bit for at, byte in enumerate(bits) for bit in range(8) if byte & 0x80 >> bit}

    def log(self, vdi):
        return self.image(vdi).with_suffix(".cbtlog")

    def test_changed_blocks_are_exact(self):
        vdi = self.disk()
        guest = Guest(self.pool, vdi, self.dice)
        guest.scribble()
        # While it is in use, as backup programs do.
        self.agent.call("vdi_enable_cbt", vdi=vdi)
        snapshots = []
        for _ in range(3):
            snapshots.append((self.pool.snapshot(vdi), set(guest.changed)))
            guest.changed.clear()
            guest.scribble()
            done = self.pool.sm("sr_collect")
            self.assertEqual(done.returncode, 0, done)
            guest.scribble()
        last = set(guest.changed)
        self.assertEqual(self.changes(snapshots[0][0], snapshots[1][0]), snapshots[1][1])
        self.assertEqual(self.changes(snapshots[0][0], snapshots[2][0]), snapshots[1][1] | snapshots[2][1])
        # Of a disk in use, and of one that was detached.
        self.assertEqual(self.changes(snapshots[2][0], vdi), last)
        self.assertEqual(self.log(vdi).read_bytes()[32], 0)
        guest.close()
        self.assertEqual(self.log(vdi).read_bytes()[32], 1)
        self.assertEqual(self.changes(snapshots[2][0], vdi), last)
        self.nothing_is_left()

    def test_a_killed_tapdisk_loses_nothing_that_was_answered_and_ends_tracking(self):
        vdi = self.disk()
        self.agent.call("vdi_enable_cbt", vdi=vdi)
        guest = Guest(self.pool, vdi, self.dice)
        for _ in range(5):
            guest.scribble()
        os.kill(int(self.pool.tapdisk(vdi)[0]), signal.SIGKILL)
        self.await_none(self.keepers)
        self.assertEqual(self.records(), [])
        with self.assertRaises(OSError):
            guest.client.read(0, SECTOR)
        guest.client.connection.close()
        # The same call as before a start.
        client = self.pool.activate(vdi)
        self.assertFalse(self.log(vdi).exists())
        self.assertTrue(client.read(0, SIZE) == guest.data)
        client.close()
        self.pool.deactivate(vdi)
        self.nothing_is_left()

    def test_a_killed_keeper_is_replaced_and_its_tapdisk_goes_on(self):
        vdi = self.disk()
        self.agent.call("vdi_enable_cbt", vdi=vdi)
        guest = Guest(self.pool, vdi, self.dice)
        guest.scribble()
        for revive in (lambda: self.pool.snapshot(vdi), self.agent.scan,
                       lambda: self.agent.call("vdi_activate", "true", vdi=vdi)):
            (keeper,), tapdisk = self.keepers(), self.pool.tapdisk(vdi)
            os.kill(keeper, signal.SIGKILL)
            self.await_none(self.keepers)
            guest.scribble()
            # Not free for others meanwhile.
            done = self.pool.sm("vdi_delete", self.xapi.vdis[vdi]["uuid"])
            self.assertNotEqual(done.returncode, 0, done)
            revive()
            self.assertEqual(len(self.keepers()), 1)
            self.assertEqual(self.pool.tapdisk(vdi), tapdisk)
            guest.scribble()
            self.assertTrue(guest.client.read(0, SIZE) == guest.data)
        os.kill(self.keepers()[0], signal.SIGKILL)
        self.await_none(self.keepers)
        guest.close()
        self.nothing_is_left()
        self.holds(vdi, guest.data)

    def calls(self):
        """Calls that use tap-ctl, with a disk in use, and one that is not."""
        return {
            "vdi_snapshot": lambda guest, idle: self.agent.call("vdi_snapshot", vdi=guest.vdi),
            "vdi_enable_cbt": lambda guest, idle: self.agent.call("vdi_enable_cbt", vdi=guest.vdi),
            "vdi_activate": lambda guest, idle: self.agent.call("vdi_activate", "true", vdi=idle),
            "vdi_deactivate": lambda guest, idle: self.agent.call("vdi_deactivate", vdi=guest.vdi),
        }

    def kill_at_each(self, verb, prepare=lambda: None):
        """Kills at each call of tap-ctl that a verb makes, until none is left to be killed."""
        call = self.calls()[verb]
        vdi, idle = self.disk(), self.disk()
        guest = Guest(self.pool, vdi, self.dice)
        # Before a call is after the one before it; the double takes its time.
        for at in ("before", "after") if self.real else ("before",):
            armed = False
            for number in range(1, 12):
                guest.scribble()
                prepare()
                Path(self.scratch, "kill").write_text(f"{number} {at}\n", encoding="ascii")
                try:
                    call(guest, idle)
                except (AssertionError, Fault):
                    pass
                armed = Path(self.scratch, "kill").exists()
                for name in ("kill", "victim", "arm"):
                    Path(self.scratch, name).unlink(missing_ok=True)
                with self.subTest(at=at, number=number):
                    self.agent.call("sr_scan")
                    # Nothing is paused, and the disk does what a disk does.
                    self.await_none(lambda: self.unsettled(vdi))
                    if verb == "vdi_deactivate":
                        guest.client.connection.close()
                        self.pool.deactivate(vdi)
                        self.await_none(self.keepers)
                        self.assertEqual(self.listed(vdi), [])
                        guest.client = self.pool.activate(vdi)
                    guest.scribble()
                    self.assertTrue(guest.client.read(0, SIZE) == guest.data)
                    if verb == "vdi_activate":
                        # An image server may have taken the place of a keeper that was killed.
                        for _ in range(2):
                            client = self.pool.activate(idle)
                            client.write(0, b"x" * SECTOR)
                            client.close()
                            is_listed = bool(self.listed(idle))
                            self.pool.deactivate(idle)
                            self.assertEqual(self.listed(idle), [])
                        self.assertTrue(is_listed)
                    elif verb == "vdi_enable_cbt":
                        self.agent.call("vdi_disable_cbt", vdi=vdi)
                if armed:
                    break
            self.assertTrue(armed, "it was killed each time")
            self.assertGreater(number, 1)
        guest.close()
        self.nothing_is_left()
        self.holds(vdi, guest.data)

    def test_a_keeper_that_is_killed_at_any_step_leaves_no_paused_tapdisk(self):
        for verb in self.calls() if self.real else ("vdi_snapshot", "vdi_deactivate"):
            with self.subTest(verb):
                self.kill_at_each(verb)

    def test_a_driver_that_is_killed_at_any_step_leaves_no_paused_tapdisk(self):
        # It says its number before it is the driver.
        starter = Path(self.scratch, "starter")
        starter.write_text(f'#!/bin/sh\ncd {self.scratch}\n[ ! -e arm ] || {{ rm arm; echo $$ > victim; }}\nexec "$@"\n',
                           encoding="ascii")
        starter.chmod(0o755)
        self.pool.driver.prefix = [str(starter)]
        for verb in self.calls() if self.real else ("vdi_snapshot",):
            with self.subTest(verb):
                self.kill_at_each(verb, Path(self.scratch, "arm").touch)

    def test_a_start_that_is_killed_leaves_no_tapdisk(self):
        guest = Guest(self.pool, self.disk(), self.dice)
        mine = self.pool.tapdisk(guest.vdi)[0]
        self.assertEqual(self.started(), [int(mine)])
        # One that opens the image, by its keeper; one over the block device of an image server, by the driver.
        for image_format in ("vhd", "qcow2"):
            for number in range(1, 12):
                vdi = self.disk(image_format)
                Path(self.scratch, "kill").write_text(f"{number} before\n", encoding="ascii")
                try:
                    self.agent.call("vdi_activate", "true", vdi=vdi)
                except (AssertionError, Fault):
                    pass
                armed = Path(self.scratch, "kill").exists()
                Path(self.scratch, "kill").unlink(missing_ok=True)
                with self.subTest(image_format, number=number):
                    self.agent.call("sr_scan")
                    self.assertEqual(list(Path(self.pool.host, "sm", "starting").glob("*")), [])
                    self.agent.call("vdi_activate", "true", vdi=vdi)
                    theirs = self.pool.tapdisk(vdi)[0]
                    self.await_none(lambda: [pid for pid in self.started() if str(pid) not in (mine, theirs)])
                    self.agent.call("vdi_deactivate", vdi=vdi)
                    self.agent.call("vdi_detach", vdi=vdi)
                    self.agent.delete(vdi)
                if armed:
                    break
            self.assertTrue(armed, "it was killed each time")
            self.assertGreater(number, 3)
        guest.scribble()
        self.assertTrue(guest.client.read(0, SIZE) == guest.data)
        guest.close()
        self.nothing_is_left()

    def refuse(self, *words):
        Path(self.scratch, "refuse").write_text("".join(word + "\n" for word in words), encoding="ascii")

    def test_a_pause_that_failed_is_no_pause_for_the_next_call(self):
        guest = Guest(self.pool, self.disk(), self.dice)
        guest.scribble()
        # It neither paused nor could be asked whether it did.
        self.refuse("pause", "list")
        with self.assertRaises(Fault):
            self.agent.call("vdi_snapshot", vdi=guest.vdi)
        self.assertFalse(Path(self.scratch, "refuse").exists())
        guest.scribble()
        before, paused = bytes(guest.data), len(self.told("pause"))
        snapshot = self.pool.snapshot(guest.vdi)
        self.assertEqual(len(self.told("pause")), paused + 1)
        guest.scribble()
        self.assertTrue(guest.client.read(0, SIZE) == guest.data)
        guest.close()
        self.holds(snapshot, before)
        self.holds(guest.vdi, guest.data)
        self.nothing_is_left()

    def test_a_disk_that_could_not_go_on_is_tried_again_without_a_call(self):
        guest = Guest(self.pool, self.disk(), self.dice)
        guest.scribble()
        self.refuse("unpause")
        try:
            self.agent.call("vdi_snapshot", vdi=guest.vdi)
        except Fault:
            pass
        self.assertFalse(Path(self.scratch, "refuse").exists())
        self.await_none(lambda: self.unsettled(guest.vdi))
        guest.scribble()
        self.assertTrue(guest.client.read(0, SIZE) == guest.data)
        guest.close()
        self.holds(guest.vdi, guest.data)

    def test_a_tapdisk_that_does_not_answer_is_left_alone(self):
        guest = Guest(self.pool, self.disk(), self.dice)
        guest.scribble()
        (keeper,), pid = self.keepers(), int(self.pool.tapdisk(guest.vdi)[0])
        os.kill(pid, signal.SIGSTOP)
        try:
            os.kill(keeper, signal.SIGKILL)
            self.await_none(self.keepers)
            # What another keeper finds is none that has nothing open.
            self.agent.call("sr_scan")
            self.await_none(self.keepers)
            with self.assertRaises(Fault) as raised:
                self.agent.call("vdi_snapshot", vdi=guest.vdi)
            self.assertIn(f"kill -CONT {pid}", raised.exception.text)
            done = self.pool.sm("vdi_delete", guest.vdi_uuid())
            self.assertNotEqual(done.returncode, 0, done)
        finally:
            os.kill(pid, signal.SIGCONT)
        guest.scribble()
        self.pool.snapshot(guest.vdi)
        guest.scribble()
        self.assertTrue(guest.client.read(0, SIZE) == guest.data)
        guest.close()
        self.nothing_is_left()
        self.holds(guest.vdi, guest.data)

    def test_a_process_that_has_the_number_of_a_tapdisk_is_none(self):
        vdi = self.disk()
        other = subprocess.Popen(["sleep", "1000"])
        self.addCleanup(other.wait)
        self.addCleanup(other.kill)
        # What a tapdisk that was killed has left, once its number has passed to another process.
        left = Path(SOCKETS, f"nbd{other.pid}.0")
        self.addCleanup(left.unlink, missing_ok=True)
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(left))
        link = Path(self.pool.host, "blktap-control", "nbd", self.agent.sr_uuid, self.xapi.vdis[vdi]["uuid"])
        link.parent.mkdir(parents=True)
        link.symlink_to(left)
        began = Path(f"/proc/{other.pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()[19]
        record = Path(self.pool.host, "sm", "datapath", "99999999.tap")
        record.parent.mkdir(parents=True, exist_ok=True)
        for format_and_image in (f"vhd\n{os.path.realpath(self.image(vdi))}", "vhd\n/elsewhere/x.vhd"):
            record.write_text(f"{other.pid} 0 {began} rw {format_and_image}", encoding="ascii")
            self.agent.call("sr_scan")
            self.assertIsNone(other.poll())
            for left_record in self.records():
                left_record.unlink()
        # Of an earlier process.
        record.write_text(f"{other.pid} 0 1 rw vhd\n{os.path.realpath(self.image(vdi))}", encoding="ascii")
        client = self.pool.activate(vdi)
        client.write(0, b"x" * SECTOR)
        client.close()
        self.assertNotEqual(self.pool.tapdisk(vdi)[0], str(other.pid))
        self.pool.deactivate(vdi)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(left)
        self.agent.call("vdi_deactivate", vdi=vdi)
        self.assertFalse(link.is_symlink())
        self.nothing_is_left()
        self.assertIsNone(other.poll())

    def test_another_format_is_served_as_before(self):
        vdi = self.disk("qcow2")
        client = self.pool.activate(vdi)
        client.write(0, b"x" * SECTOR)
        lines = [line for line in self.pool.tap_ctl("list").splitlines() if f"pid={self.pool.tapdisk(vdi)[0]} " in line]
        # blktap 4 does not know it, nor does the double.
        self.assertIn("args=aio:/dev/loop", lines[0])
        self.assertEqual((self.records(), self.keepers()), ([], []))
        self.assertEqual(client.read(0, SECTOR), b"x" * SECTOR)
        client.close()
        self.pool.deactivate(vdi)
        self.nothing_is_left()

    def test_an_image_whose_parent_is_another_by_its_path_is_served_as_before(self):
        guest = Guest(self.pool, self.disk(), self.dice)
        guest.scribble()
        self.pool.snapshot(guest.vdi)
        guest.scribble()
        guest.close()
        leaf = self.image(guest.vdi)
        chain = vhd.Image(str(leaf), True)
        parent = Path(chain.parent.path)
        chain.close()
        # The path leads to a copy in another directory, of which this package knows only the name.
        other = parent.parent / "x"
        other.mkdir()
        shutil.copy(parent, other / parent.name)
        with leaf.open("r+b") as file:
            header_at = struct.unpack_from(">Q", file.read(512), 16)[0]
            file.seek(header_at)
            header = bytearray(file.read(1024))
            for number in range(8):
                code, length, at = struct.unpack_from(">4s4xI4xQ", header, 576 + 24 * number)
                text = {b"MacX": f"file://./x/{parent.name}".encode(), b"W2ru": f".\\x\\{parent.name}".encode("utf-16-le"),
                        b"W2ku": f"{other}/{parent.name}".encode("utf-16-le")}.get(code)
                if text:
                    assert len(text) <= 512, "the space of a locator"
                    struct.pack_into(">I", header, 576 + 24 * number + 8, len(text))
                    file.seek(at)
                    file.write(text)
            struct.pack_into(">I", header, 36, 0)
            struct.pack_into(">I", header, 36, ~sum(header) & 0xffffffff)
            file.seek(header_at)
            file.write(header)
        client = self.pool.activate(guest.vdi, writable=False)
        self.assertTrue(client.read(0, SIZE) == guest.data)
        self.assertEqual(self.listed(guest.vdi), [])
        client.close()
        self.pool.deactivate(guest.vdi)
        self.assertEqual((self.records(), self.keepers()), ([], []))

    def test_another_host_pauses_it_by_the_plugin(self):
        guest = Guest(self.pool, self.disk(), self.dice)
        link, plugin = os.path.join(self.scratch, "FileSR"), os.path.join(self.scratch, "tapdisk-pause")
        for path in (link, plugin):
            os.symlink(os.path.abspath(os.path.join(test_file.BIN, "sm")), path)
        self.xapi.driver_filenames["file"] = link
        pause = Plugin(plugin, self.pool.host, self.xapi.session)
        pause.env.update(self.pool.driver.env)
        args = {"sr_uuid": self.agent.sr_uuid, "vdi_uuid": guest.vdi_uuid()}
        self.xapi.vdis[guest.vdi]["sm_config"]["paused"] = "true"
        self.assertEqual(pause("pause", args), "True")
        self.assertRegex(self.listed(guest.vdi)[0], "state=(0x)?2a")
        # A write waits.
        written = threading.Thread(target=guest.scribble)
        written.start()
        written.join(0.2)
        self.assertTrue(written.is_alive())
        self.assertEqual(pause("unpause", args), "True")
        written.join(60)
        self.assertFalse(written.is_alive())
        del self.xapi.vdis[guest.vdi]["sm_config"]["paused"]
        self.assertEqual(pause("refresh", args), "True")
        self.assertTrue(guest.client.read(0, SIZE) == guest.data)
        guest.close()
        self.nothing_is_left()

