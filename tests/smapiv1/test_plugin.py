"""The host plug-in tapdisk-pause on one host. Alone: BIN=target/debug python3 -m unittest -v test_plugin."""

import os
import subprocess
import threading
import unittest

import test_file
from driver import Plugin
from test_file import MiB, ROOT
from xapi import Refusal

STOCK = """#!/bin/sh
printf '%s' "$1" > "$0.told"
echo '<?xml version="1.0"?><methodResponse><params><param><value><struct><member><name>Status</name><value>Success</value>'
echo '</member><member><name>Value</name><value>from the stock</value></member></struct></value></param></params></methodResponse>'
"""


def trim(case):
    """What the host plug-in trim answers for the SR of a case."""
    sm, directory = os.path.abspath(os.path.join(test_file.BIN, "sm")), os.path.join(case.scratch, "trims")
    os.makedirs(directory, exist_ok=True)
    path = os.path.join(directory, "trim")
    if not os.path.lexists(path):
        os.symlink(sm, path)
    record = case.xapi.srs[case.agent.sr_ref]
    case.xapi.driver_filenames.setdefault(record["type"], sm)
    config = {key: value for key, value in case.agent.device_config.items() if key != "SRmaster"}
    case.xapi.pbds["OpaqueRef:trims"] = {"uuid": str(test_file.uuid.uuid4()), "SR": case.agent.sr_ref, "host": case.xapi.host_ref,
                                         "device_config": config, "currently_attached": True}
    plugin = Plugin(path, case.host, case.xapi.session)
    plugin.env["DM_DISABLE_UDEV"] = "1"
    try:
        return plugin("do_trim", {"sr_uuid": case.agent.sr_uuid})
    finally:
        del case.xapi.pbds["OpaqueRef:trims"]


class Case(test_file.Case):
    def setUp(self):
        super().setUp()
        self.directory = os.path.join(self.scratch, "plugins")
        os.mkdir(self.directory)
        path = os.path.join(self.directory, "tapdisk-pause")
        os.symlink(os.path.abspath(os.path.join(test_file.BIN, "sm")), path)
        # As an installed driver is: a link to the executable that the plug-in is.
        self.driver_file = os.path.join(self.scratch, "FileSR")
        os.symlink(os.path.abspath(os.path.join(test_file.BIN, "sm")), self.driver_file)
        self.agent.driver = self.driver = test_file.Driver(self.driver_file, self.host)
        self.xapi.driver_filenames["file"] = self.driver_file
        self.plugin = Plugin(path, self.host, self.xapi.session)
        self.an_sr()

    def install_stock(self):
        stock = os.path.join(self.directory, "tapdisk-pause.stock")
        with open(stock, "w", encoding="ascii") as file:
            file.write(STOCK)
        os.chmod(stock, 0o755)
        return stock

    def args(self, vdi, **more):
        return {"sr_uuid": self.agent.sr_uuid, "vdi_uuid": self.xapi.vdis[vdi]["uuid"], "failfast": "False", **more}

    def refused(self, function, args):
        with self.assertRaises(Refusal) as raised:
            self.plugin(function, args)
        return list(raised.exception.args)


class Words(Case):
    def test_it_says_which_srs_it_serves(self):
        self.assertEqual(self.plugin("serves", {"sr_uuid": self.agent.sr_uuid}), "True")
        self.assertEqual(self.refused("fly", self.args(self.agent.create(MiB)))[0], "UNKNOWN_XENAPI_PLUGIN_FUNCTION")

    def test_srs_of_other_drivers_are_for_the_stock_plugin(self):
        vdi = self.agent.create(MiB)
        for what in ("another type", "another driver"):
            with self.subTest(what):
                if what == "another type":
                    self.xapi.srs[self.agent.sr_ref]["type"] = "lvmoiscsi"
                else:
                    self.xapi.srs[self.agent.sr_ref]["type"] = "file"
                    self.xapi.driver_filenames["file"] = "/bin/sh"
                words = self.refused("pause", self.args(vdi))
                self.assertEqual(words[:2], ["XENAPI_PLUGIN_FAILURE", "pause"])
                self.assertIn("tapdisk-pause.stock", words[3])
                stock = self.install_stock()
                for function in ("pause", "unpause", "refresh", "serves", "anything"):
                    self.assertEqual(self.plugin(function, self.args(vdi, secondary="x")), "from the stock")
                    with open(stock + ".told", encoding="ascii") as file:
                        told = file.read()
                    self.assertIn(f"<methodName>{function}</methodName>", told)
                    self.assertIn(self.xapi.session, told)
                os.unlink(stock)

    def test_an_sr_without_devices_of_its_own_is_not_trimmed(self):
        answer = trim(self)
        self.assertIn("<key>errcode</key><value>UnsupportedSRForTrim</value>", answer)
        self.assertNotIn("trim_last_triggered", self.xapi.srs[self.agent.sr_ref]["other_config"])
        self.xapi.driver_filenames["file"] = "/bin/sh"
        with self.assertRaises(Refusal) as raised:
            trim(self)
        self.assertIn("trim.stock", raised.exception.args[3])

    def test_an_sr_that_nobody_knows_is_for_nobody(self):
        self.install_stock()
        words = self.refused("pause", dict(self.args(self.agent.create(MiB)), sr_uuid=test_file.uuid.uuid4().hex))
        self.assertEqual(words[0], "XENAPI_PLUGIN_FAILURE")
        self.xapi.close()
        os.unlink(self.xapi.path)
        self.addCleanup(self.start_xapi)
        self.assertIn("xapi does not answer", self.refused("serves", {"sr_uuid": self.agent.sr_uuid})[3])

    def test_what_is_not_attached_is_paused_already(self):
        vdi = self.agent.create(MiB, sm_config={"type": "vhd"})
        self.xapi.vdis[vdi]["sm_config"]["paused"] = "true"
        for function in ("pause", "unpause", "refresh"):
            self.assertEqual(self.plugin(function, self.args(vdi)), "True")
        self.assertIn("secondary", self.refused("unpause", self.args(vdi, secondary="nbd:…"))[3])


@unittest.skipUnless(ROOT, "block devices want root")
class Disks(Case):
    def setUp(self):
        super().setUp()
        self.disk = self.agent.create(4 * MiB, sm_config={"type": "vhd"})
        self.link = self.activate(self.disk)
        self.sm_config = self.xapi.vdis[self.disk]["sm_config"]

    def activate(self, vdi):
        link = self.agent.call("vdi_attach", "true", vdi=vdi)["params"]
        self.agent.call("vdi_activate", "true", vdi=vdi)
        return link

    def tearDown(self):
        self.sm_config.pop("paused", None)
        self.plugin("unpause", self.args(self.disk))
        self.agent.call("vdi_deactivate", vdi=self.disk)

    def write(self, text):
        """Starts to write; the thread ends when it is on the disk."""
        def work():
            subprocess.run(["dd", f"of={os.path.realpath(self.link)}", "oflag=direct", "conv=notrunc,sync", "bs=4096",
                            "status=none"], input=text, check=True)
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        return thread

    def read(self, link=None):
        done = subprocess.run(["dd", f"if={os.path.realpath(link or self.link)}", "iflag=direct", "bs=4096", "count=1",
                               "status=none"], check=True, capture_output=True)
        return done.stdout.rstrip(b"\0")

    def waits(self, thread):
        thread.join(0.5)
        return thread.is_alive()

    def test_a_paused_disk_waits_after_the_plugin_has_ended(self):
        self.sm_config["paused"] = "true"
        for _ in range(2):
            self.assertEqual(self.plugin("pause", self.args(self.disk)), "True")
        writing = self.write(b"late")
        self.assertTrue(self.waits(writing))
        for _ in range(2):
            self.assertEqual(self.plugin("unpause", self.args(self.disk)), "True")
        writing.join(10)
        self.assertFalse(writing.is_alive())
        self.assertEqual(self.read(), b"late")
        self.assertEqual(self.plugin("refresh", self.args(self.disk)), "True")
        self.assertEqual(self.read(), b"late")

    def test_a_pause_that_nobody_waits_for_is_undone(self):
        self.assertIn("has ended: the VDI's sm_config has no key 'paused'", self.refused("pause", self.args(self.disk))[3])
        writing = self.write(b"goes on")
        self.assertFalse(self.waits(writing))

    def test_a_snapshot_meanwhile_does_not_end_it(self):
        self.write(b"old").join()
        self.sm_config["paused"] = "true"
        self.plugin("pause", self.args(self.disk))
        snapshot = self.agent.copy("vdi_snapshot", self.disk)
        writing = self.write(b"new")
        self.assertTrue(self.waits(writing))
        self.plugin("unpause", self.args(self.disk))
        writing.join(10)
        self.assertEqual(self.read(), b"new")
        link = self.activate(snapshot)
        self.assertEqual(self.read(link), b"old")
        self.agent.call("vdi_deactivate", vdi=snapshot)

    def test_it_waits_for_an_activation(self):
        self.sm_config["paused"] = "true"
        path = os.path.join(self.host, "lock", self.xapi.vdis[self.disk]["uuid"], "activation")
        with open(path, "r+b") as file:
            test_file.fcntl.lockf(file, test_file.fcntl.LOCK_EX)
            words = self.refused("pause", self.args(self.disk, failfast="True"))
            self.assertIn("activates or pauses it", words[3])

    def test_raw_disks_can_not_be_paused(self):
        raw = self.agent.create(MiB)
        self.activate(raw)
        self.xapi.vdis[raw]["sm_config"]["paused"] = "true"
        self.assertIn("a raw disk cannot be paused", self.refused("pause", self.args(raw))[3])
        del self.xapi.vdis[raw]["sm_config"]["paused"]
        self.agent.call("vdi_deactivate", vdi=raw)

    def test_the_log_holds_no_session(self):
        self.sm_config["paused"] = "true"
        self.plugin("pause", self.args(self.disk))
        self.plugin.session = "OpaqueRef:old-secret"
        self.assertNotIn("old-secret", " ".join(self.refused("unpause", self.args(self.disk))))
        self.plugin.session = self.xapi.session
        log = "\n".join(self.logged())
        self.assertIn("tapdisk-pause pause of VDI", log)
        self.assertNotIn("old-secret", log)
        self.assertNotIn(self.xapi.session, log)


if __name__ == "__main__":
    unittest.main()
