"""Kills of image servers and of calls while changed blocks are tracked. For guests: what is killed here may wedge loop devices.

Whatever was killed, what is told covers each block in which the data of two VDIs differs."""

import os
import random
import signal
import subprocess
import time

from agent import Fault
from driver import image_servers, request
from test_cbt import BLOCK, Tracking
from test_file import MiB

SIZE = 8 * MiB
SEED = int(os.environ.get("SEED") or time.time())


class Killed(Tracking):
    def setUp(self):
        super().setUp()
        self.dice = random.Random(SEED)
        print(f"SEED={SEED}", flush=True)

    def servers(self):
        return [pid for pid, _ in image_servers()]

    def kill_servers(self):
        for server in self.servers():
            os.kill(server, signal.SIGKILL)
        end = time.monotonic() + 60
        while self.servers():
            self.assertLess(time.monotonic(), end, "a server lives on")
            time.sleep(0.01)

    def data(self, vdi):
        """The blocks of a VDI that no process has."""
        self.agent.call("vdi_activate", "false", vdi=vdi)
        with open(self.agent.call("vdi_attach", "false", vdi=vdi)["params"], "rb") as device:
            data = device.read()
        self.agent.call("vdi_deactivate", vdi=vdi)
        return [data[at:at + BLOCK] for at in range(0, len(data), BLOCK)]

    def scribble(self, disk):
        """Writes on an attached disk, as far as there is a server."""
        blocks = [self.dice.randrange(SIZE // BLOCK) for _ in range(self.dice.randrange(1, 6))]
        try:
            self.write(disk, *blocks, attached=True)
        except OSError:
            pass

    def check(self, *chain):
        """How many pairs are told of."""
        data, told = [self.data(vdi) for vdi in chain], 0
        for i, first in enumerate(chain):
            for j in range(i + 1, len(chain)):
                try:
                    changed = self.changed(first, chain[j])
                except Fault as fault:
                    self.assertIn(fault.code, (459, 460), fault.text)
                    continue
                told += 1
                differ = {at for at, (a, b) in enumerate(zip(data[i], data[j])) if a != b}
                self.assertLessEqual(differ, changed, f"from {i} to {j} of {len(chain)}")
        return told

    def test_a_server_that_is_killed_ends_the_tracking_and_no_answer_is_wrong(self):
        for image_format in ("vhd", "qcow2"):
            disk = self.a_disk(image_format, SIZE)
            chain = [self.agent.snapshot(disk)]
            self.write(disk, 1, 2)
            chain.append(self.agent.snapshot(disk))
            self.agent.call("vdi_activate", "true", vdi=disk)
            self.scribble(disk)
            chain.append(self.agent.snapshot(disk))
            self.scribble(disk)
            self.kill_servers()
            self.agent.call("vdi_deactivate", vdi=disk)
            self.fails(459, self.changed, chain[-1], disk)
            # A reader comes and goes, and vouches for nothing.
            self.data(disk)
            self.fails(459, self.changed, chain[-1], disk)
            self.xapi.messages.clear()
            self.agent.call("vdi_activate", "true", vdi=disk)
            self.assertEqual([m[0] for m in self.xapi.messages], ["VDI_CBT_METADATA_INCONSISTENT"])
            self.assertIs(self.xapi.vdis[disk]["cbt_enabled"], False)
            self.agent.call("vdi_enable_cbt", vdi=disk)
            self.scribble(disk)
            chain += [self.agent.snapshot(disk)]
            self.scribble(disk)
            self.agent.call("vdi_deactivate", vdi=disk)
            # Of the first three each pair, and of the last two theirs.
            self.assertEqual(self.check(*chain, disk), 3 + 1)
            for vdi in [*chain, disk]:
                self.agent.delete(vdi)
            self.assertEqual([name for name in os.listdir(self.location) if name.endswith("cbtlog")], [])

    def killed_call(self, command, vdi, delay):
        members = self.agent.members(command, vdi=vdi, driver_params={})
        with subprocess.Popen([self.driver.executable, request(command, members)], env=self.driver.env, cwd="/",
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as call:
            try:
                call.wait(timeout=delay)
            except subprocess.TimeoutExpired:
                call.kill()

    def test_calls_that_are_killed_leave_nothing_out(self):
        told = 0
        begun = time.monotonic()
        for round_ in range(1000):
            if time.monotonic() - begun > 12:
                break
            disk = self.a_disk(self.dice.choice(("vhd", "qcow2")), SIZE)
            self.agent.call("vdi_activate", "true", vdi=disk)
            chain = [self.agent.snapshot(disk)]
            for _ in range(3):
                self.scribble(disk)
                if self.dice.random() < 0.4 and len(chain) > 1:
                    doomed = self.dice.choice(chain)
                    self.killed_call("vdi_delete", doomed, self.dice.uniform(0, 0.15))
                    if doomed in self.xapi.vdis:
                        self.agent.delete(doomed)
                    chain.remove(doomed)
                else:
                    self.killed_call("vdi_snapshot", disk, self.dice.uniform(0, 0.25))
                    self.scribble(disk)
                    chain.append(self.agent.snapshot(disk))
            self.agent.call("vdi_deactivate", vdi=disk)
            told += self.check(*chain, disk)
            for vdi in [*chain, disk]:
                self.agent.delete(vdi)
            self.agent.scan()
            for vdi in list(self.xapi.of(self.agent.sr_ref)):
                if self.xapi.vdis.get(vdi, {}).get("managed"):
                    self.agent.delete(vdi)
        print(f"{round_} rounds, {told} pairs are told of", flush=True)
        self.assertGreater(told, round_)
