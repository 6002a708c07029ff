"""The collector of an SR of xapi. Alone: BIN=target/debug python3 -m unittest -v test_collector."""

import fcntl
import os
import shlex
import subprocess
import threading
import time
import unittest

import driver
import test_file
import test_plugin
from test_file import MiB, ROOT
from xapi import Refusal

SYSTEMCTL = """#!/bin/sh
echo "$*" >> {told}
[ ! -e {runs} ] || env XCP_SM_RUN_DIR={host} {sm} sr_collect --from-xapi "$(echo "$4" | sed 's/.*@//; s/.service//')" 2>> {told}
"""


class Case(test_file.Case):
    def setUp(self):
        super().setUp()
        self.sm = os.path.abspath(os.path.join(test_file.BIN, "sm"))
        # As an installed driver is: a link to the executable.
        self.driver_file = os.path.join(self.scratch, "FileSR")
        os.symlink(self.sm, self.driver_file)
        self.agent.driver = self.driver = test_file.Driver(self.driver_file, self.host)
        self.xapi.driver_filenames["file"] = self.driver_file
        # systemd, as far as the drivers know it.
        os.mkdir(os.path.join(self.host, "system"))
        tools = os.path.join(self.scratch, "bin")
        os.mkdir(tools)
        self.told, self.runs = os.path.join(self.scratch, "told"), os.path.join(self.scratch, "runs")
        systemctl = os.path.join(tools, "systemctl")
        with open(systemctl, "w", encoding="ascii") as file:
            paths = {"told": self.told, "runs": self.runs, "host": self.host, "sm": self.sm}
            file.write(SYSTEMCTL.format(**{name: shlex.quote(path) for name, path in paths.items()}))
        os.chmod(systemctl, 0o755)
        self.driver.env["PATH"] = tools + ":" + self.driver.env["PATH"]
        self.an_sr()
        self.pbd = {"uuid": str(test_file.uuid.uuid4()), "host": self.xapi.host_ref, "SR": self.agent.sr_ref,
                    "device_config": {"location": self.location}, "currently_attached": True}
        self.xapi.pbds["OpaqueRef:pbd"] = self.pbd

    def started(self):
        """The words of systemctl so far."""
        try:
            with open(self.told, encoding="ascii") as file:
                lines = file.read().splitlines()
            os.unlink(self.told)
        except FileNotFoundError:
            return []
        return lines

    def collect(self, *options, sr=None):
        command = [self.sm, "sr_collect", "--from-xapi", sr or self.agent.sr_uuid, *options]
        return subprocess.run(command, env=self.driver.env, capture_output=True, text=True, timeout=120, check=False)

    def disk(self):
        return self.agent.create(4 * MiB, sm_config={"type": "vhd"})

    def bases(self):
        return {r: v for r, v in self.xapi.of(self.agent.sr_ref).items() if not v["managed"]}

    def parent(self, vdi):
        return self.xapi.vdis[vdi]["sm_config"].get("vhd-parent")


class Starts(Case):
    def test_what_leaves_something_to_merge_starts_the_collector(self):
        unit = f"--quiet --no-block start sm-collect-xapi@{self.agent.sr_uuid}.service"
        disk, plain = self.disk(), self.disk()
        self.agent.scan()
        self.agent.delete(plain)
        snapshot = self.agent.copy("vdi_snapshot", disk)
        self.agent.scan()
        self.assertEqual(self.started(), [])
        self.agent.delete(snapshot)
        self.assertEqual(self.started(), [unit])
        self.agent.call("sr_scan")
        self.assertEqual(self.started(), [unit])
        self.agent.attach_sr()
        self.assertEqual(self.started(), [unit])
        # It is not started a second time for what is merged.
        self.assertEqual(self.collect().returncode, 0)
        self.agent.scan()
        self.assertEqual(self.started(), [])

    def test_a_call_succeeds_where_the_collector_cannot_be_started(self):
        snapshot = self.agent.copy("vdi_snapshot", self.disk())
        with open(self.runs + ".no", "w", encoding="ascii"):
            os.unlink(os.path.join(self.scratch, "bin", "systemctl"))
        self.driver.env["PATH"] = os.path.join(self.scratch, "bin")
        self.agent.delete(snapshot)
        self.assertTrue([line for line in self.logged() if "was not started" in line])
        os.rmdir(os.path.join(self.host, "system"))
        self.agent.call("sr_scan")
        self.assertFalse([line for line in self.logged() if "was not started" in line])

    def write(self, vdi):
        """Puts bytes into a disk, so that its next snapshot makes a base of its own."""
        link = self.agent.call("vdi_attach", "true", vdi=vdi)["params"]
        self.agent.call("vdi_activate", "true", vdi=vdi)
        subprocess.run(["dd", f"of={os.path.realpath(link)}", "oflag=direct", "conv=notrunc,sync", "bs=4096",
                        "status=none"], input=b"x", check=True)
        self.agent.call("vdi_deactivate", vdi=vdi)
        self.agent.call("vdi_detach", vdi=vdi)

    @unittest.skipUnless(ROOT, "block devices want root")
    def test_xapi_knows_what_was_merged_when_the_unit_has_run(self):
        with open(self.runs, "w", encoding="ascii"):
            pass
        disk = self.disk()
        first = self.agent.copy("vdi_snapshot", disk)
        self.write(disk)
        second = self.agent.copy("vdi_snapshot", disk)
        self.assertEqual(len(self.bases()), 2)
        self.agent.delete(first)
        # The two bases are one.
        (base,) = self.bases().values()
        self.assertEqual({self.parent(disk), self.parent(second)}, {base["uuid"]})
        self.agent.delete(second)
        self.assertEqual((self.bases(), self.parent(disk)), ({}, None))
        self.assertEqual(len(self.started()), 2)
        methods = self.xapi.methods()
        # The figures, and no session is left.
        self.assertIn("SR.set_physical_utilisation", methods)
        self.assertEqual(methods.count("session.login_with_password"), methods.count("session.logout"))
        self.agent.scan()
        self.assertFalse([method for method in self.telling() if ".set" in method or ".db" in method])

    @unittest.skipUnless(ROOT, "block devices want root")
    def test_xapi_knows_of_a_disk_at_once_when_it_was_merged(self):
        """An hour of another merge comes between no disk and what xapi knows of it."""
        disk, full = self.disk(), self.disk()
        self.agent.delete(self.agent.copy("vdi_snapshot", disk))
        self.write(full)
        snapshot = self.agent.copy("vdi_snapshot", full)
        self.write(full)
        self.agent.delete(snapshot)
        self.assertTrue(self.parent(disk) and self.parent(full))
        # Of 2 MiB, one byte a second is copied.
        command = [self.sm, "sr_collect", "--from-xapi", self.agent.sr_uuid, "--rate", "1B"]
        with subprocess.Popen(command, env=self.driver.env, stderr=subprocess.DEVNULL) as collector:
            end = time.monotonic() + 60
            while self.parent(disk) and time.monotonic() < end:
                time.sleep(0.05)
            known = self.parent(disk)
            works, other = collector.poll(), self.parent(full)
            collector.kill()
        self.assertEqual((known, works), (None, None))
        self.assertTrue(other)
        # The next run goes on.
        self.assertEqual(self.collect().returncode, 0)
        self.assertEqual((self.bases(), self.parent(full)), ({}, None))


class Refuses(Case):
    def refused(self, status, words, **more):
        done = self.collect(**more)
        self.assertEqual(done.returncode, status, done.stderr)
        self.assertIn(words, done.stderr)

    def test_an_sr_that_this_host_is_not_to_collect_stays_as_it_is(self):
        disk = self.disk()
        self.agent.delete(self.agent.copy("vdi_snapshot", disk))
        self.xapi.calls()
        record = self.xapi.srs[self.agent.sr_ref]
        self.refused(100, "asked xapi", sr=str(test_file.uuid.uuid4()))
        self.pbd["currently_attached"] = False
        self.driver.env["XCP_SM_PATIENCE"] = "1"
        self.refused(102, "xapi has not attached it on this host")
        # xapi notes it only after sr_attach has ended.
        self.driver.env["XCP_SM_PATIENCE"] = "60"
        asked = self.xapi.counts["PBD.get_all_records"]
        self.xapi.behaviour = lambda method, number: (
            self.pbd.update(currently_attached=True) if method == "PBD.get_all_records" and number > asked + 1 else None)
        record["other_config"] = {"gc": "false"}
        self.refused(102, "gc=false")
        self.assertEqual(self.xapi.counts["PBD.get_all_records"], asked + 2)
        record["shared"] = True
        self.xapi.pool_get_master = lambda pool: "OpaqueRef:another"
        self.refused(102, "the master of the pool collects it")
        record["shared"] = False
        for key in ("gc", "coalesce"):
            record["other_config"] = {key: "false"}
            self.refused(102, f"{key}=false")
        record["other_config"] = {}
        self.xapi.driver_filenames["file"] = "/bin/sh"
        self.refused(102, "the driver of another package")
        record["type"] = "lvmoiscsi"
        self.refused(102, "the driver of another package")
        record["type"] = "file"
        methods = self.xapi.methods()
        self.assertEqual(methods.count("session.login_with_password"), methods.count("session.logout"))
        self.assertEqual(len(self.bases()), 1)
        self.xapi.driver_filenames["file"] = self.driver_file
        self.assertEqual(self.collect("--rate", "1GiB", "--progress").returncode, 0)
        self.assertEqual(self.bases(), {})

    def test_what_xapi_was_not_told_the_next_scan_tells(self):
        disk = self.disk()
        self.agent.delete(self.agent.copy("vdi_snapshot", disk))
        self.xapi.behaviour = lambda method, number: ["NO"] if method == "VDI.db_forget" else None
        done = self.collect()
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertTrue([line for line in self.logged() if "xapi was not told" in line])
        self.assertEqual(len(self.bases()), 1)
        self.xapi.behaviour = lambda method, number: None
        self.agent.scan()
        self.assertEqual((self.bases(), self.parent(disk)), ({}, None))

    def test_without_xapi_nothing_is_collected(self):
        self.agent.delete(self.agent.copy("vdi_snapshot", self.disk()))
        self.xapi.close()
        os.unlink(self.xapi.path)
        self.addCleanup(self.start_xapi)
        self.refused(19, "xapi")


class Plugin(Case):
    def setUp(self):
        super().setUp()
        directory = os.path.join(self.scratch, "plugins")
        os.mkdir(directory)
        path = os.path.join(directory, "coalesce-leaf")
        os.symlink(self.sm, path)
        self.stock = path + ".stock"
        self.plugin = driver.Plugin(path, self.host, self.xapi.session)
        self.vm = {"uuid": str(test_file.uuid.uuid4()), "VBDs": ["OpaqueRef:vbd-1", "OpaqueRef:vbd-2"]}
        self.xapi.vms["OpaqueRef:vm"] = self.vm
        self.vdi = self.disk()
        self.xapi.vbds["OpaqueRef:vbd-1"] = {"uuid": "1", "type": "Disk", "VDI": self.vdi}
        self.xapi.vbds["OpaqueRef:vbd-2"] = {"uuid": "2", "type": "CD", "VDI": "OpaqueRef:NULL"}
        self.agent.delete(self.agent.copy("vdi_snapshot", self.vdi))
        self.args = {"vm_uuid": self.vm["uuid"]}

    def refused(self, function, args):
        with self.assertRaises(Refusal) as raised:
            self.plugin(function, args)
        return " ".join(raised.exception.args)

    def test_the_disks_of_a_vm_are_merged_when_it_answers(self):
        self.assertEqual(self.plugin("leaf-coalesce", self.args), "Success")
        self.assertEqual((self.bases(), self.parent(self.vdi)), ({}, None))
        # Nothing is left to do.
        self.assertEqual(self.plugin("leaf-coalesce", self.args), "Success")
        self.assertIn("UUID_INVALID", self.refused("leaf-coalesce", {"vm_uuid": str(test_file.uuid.uuid4())}))
        self.pbd["currently_attached"] = False
        self.plugin.env["XCP_SM_PATIENCE"] = "1"
        self.assertIn("has not attached it on this host", self.refused("leaf-coalesce", self.args))

    def test_a_collector_that_is_at_work_is_waited_for(self):
        lock = os.path.join(self.host, "lock", self.agent.sr_uuid, "gc_active")
        with open(lock, "a", encoding="ascii") as file:
            fcntl.lockf(file, fcntl.LOCK_EX)
            self.plugin.env["XCP_SM_PATIENCE"] = "1"
            self.assertIn("collects it already", self.refused("leaf-coalesce", self.args))
            del self.plugin.env["XCP_SM_PATIENCE"]
            threading.Timer(0.5, lambda: fcntl.lockf(file, fcntl.LOCK_UN)).start()
            self.assertEqual(self.plugin("leaf-coalesce", self.args), "Success")
        self.assertEqual(self.bases(), {})

    def test_disks_of_other_drivers_are_for_the_stock_plugin(self):
        other = self.xapi.add_sr(str(test_file.uuid.uuid4()), "lvmoiscsi")
        self.xapi.vdis["OpaqueRef:other"] = dict(self.xapi.vdis[self.vdi], uuid="x", SR=other)
        self.xapi.vbds["OpaqueRef:vbd-2"].update(type="Disk", VDI="OpaqueRef:other")
        self.assertIn("coalesce-leaf.stock", self.refused("leaf-coalesce", self.args))
        # Ours are merged all the same.
        self.assertEqual(self.bases(), {})
        with open(self.stock, "w", encoding="ascii") as file:
            file.write(test_plugin.STOCK)
        os.chmod(self.stock, 0o755)
        for function in ("leaf-coalesce", "anything"):
            self.assertEqual(self.plugin(function, self.args), "from the stock")
            with open(self.stock + ".told", encoding="ascii") as file:
                self.assertIn(f"<methodName>{function}</methodName>", file.read())


if __name__ == "__main__":
    unittest.main()
