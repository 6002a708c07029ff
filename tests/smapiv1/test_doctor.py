"""`sm doctor` beside a double of xapi. Alone: BIN=target/debug python3 -m unittest -v test_doctor."""

import json
import os
import re
import subprocess
import tempfile
import uuid
from pathlib import Path

import test_file
from driver import Plugin
from test_file import MiB, checksum
from xapi import Refusal

PYTHON = """#!/usr/bin/python3
import sys, xmlrpc.client
(params,), method = xmlrpc.client.loads(sys.argv[1])
assert method == "sr_get_driver_info", method
print(xmlrpc.client.dumps(({"name": "x", "vendor": "Citrix Systems Inc", "driver_version": "3.2.12", "configuration": [],
      "required_api_version": "1.0", "capabilities": ["VDI_CREATE", "VDI_MIRROR", "SR_TRIM", "ATOMIC_PAUSE"]},),
      methodresponse=True))
"""
# What the Python driver of the type announces and ours does not; the tests below name them.
LOST = "SR_TRIM (trim)"


class Case(test_file.Case):
    def setUp(self):
        super().setUp()
        self.sm = os.path.abspath(os.path.join(test_file.BIN, "sm"))
        self.drivers, self.plugins = (os.path.join(self.host, name) for name in ("drivers", "plugins"))
        os.mkdir(self.drivers)
        os.mkdir(self.plugins)
        self.driver_file = os.path.join(self.drivers, "FileSR")
        os.symlink(self.sm, self.driver_file)
        for name in ("tapdisk-pause", "coalesce-leaf"):
            os.symlink(self.sm, os.path.join(self.plugins, name))
        self.agent.driver = self.driver = test_file.Driver(self.driver_file, self.host)
        self.xapi.driver_filenames["file"] = self.driver_file
        self.features = {name.split("/")[0]: (name + "/1").split("/")[1] for name in self.announced()}
        self.xapi.features = {"file": dict(self.features)}
        self.an_sr()
        self.xapi.pbds["OpaqueRef:pbd"] = {
            "uuid": str(uuid.uuid4()), "SR": self.agent.sr_ref, "host": self.xapi.host_ref, "currently_attached": True,
            "device_config": dict(self.agent.device_config)}

    def announced(self):
        return self.driver.call("sr_get_driver_info", {
            "host_ref": "OpaqueRef:h1", "command": "sr_get_driver_info", "args": [], "device_config": {}})["capabilities"]

    def python(self, name):
        path = os.path.join(self.drivers, name)
        if os.path.lexists(path):
            os.unlink(path)
        Path(path).write_text(PYTHON, encoding="ascii")
        os.chmod(path, 0o755)

    def doctor(self):
        """The findings, after it was checked that nothing was changed and what the status says. SRs of tests that run beside this one
        are found as well, by their mounts; those are left out."""
        before = checksum(self.host), checksum(self.location)
        self.xapi.calls()
        env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "XCP_SM_RUN_DIR": self.host}
        done = subprocess.run([self.sm, "doctor", "--format", "json"], env=env, capture_output=True, timeout=100, check=False)
        self.assertEqual(done.stderr, b"")
        self.assertEqual((checksum(self.host), checksum(self.location)), before)
        for method in self.xapi.methods():
            self.assertRegex(method, r"^(session\.|\w+\.get_|host\.call_plugin)")
        answer = json.loads(done.stdout)
        found = answer["findings"]
        self.assertEqual(done.returncode, 5 if any(it["weight"] != "note" for it in found) else 0, found)
        self.assertEqual(answer["wrong"], sum(it["weight"] == "wrong" for it in found))
        theirs = re.compile(f"{tempfile.gettempdir()}/(?!{os.path.basename(self.scratch)}/)[^/]+/host/sr-mount/")
        return [it for it in found if not theirs.search(it["what"])]

    def told(self, *words, weight="wrong"):
        """The one finding that has these words, which is the only one that is not a note."""
        found = self.doctor()
        self.assertLessEqual(sum(it["weight"] != "note" for it in found), 1, found)
        having = [it for it in found if all(word in json.dumps(it, ensure_ascii=False) for word in words)]
        self.assertEqual([it["weight"] for it in having], [weight], found)
        return having[0]

    def add_host(self, plugin):
        self.xapi.hosts["OpaqueRef:host-2"] = {"uuid": str(uuid.uuid4()), "name_label": "two", "other_config": {}, "enabled": True}
        if plugin:
            self.xapi.plugins["OpaqueRef:host-2", "tapdisk-pause"] = plugin


class Features(Case):
    def test_a_host_as_it_shall_be_has_nothing_wrong(self):
        self.assertEqual(self.doctor(), [])
        # The other host runs the same release.
        plugin = Plugin(os.path.join(self.plugins, "tapdisk-pause"), self.host, self.xapi.session)
        self.add_host(plugin)
        self.assertIn("file 0.", plugin("announces", {}))
        self.assertEqual(self.doctor(), [])

    def test_a_feature_that_the_pool_loses_is_named(self):
        self.python("FileSR.stock")
        self.told("type file", "adds", LOST, weight="note")
        self.xapi.features["file"]["SR_TRIM"] = "1"
        self.told("lost for all hosts", LOST)
        # A version that ours does not reach is another feature.
        self.xapi.features = {"file": dict(self.features, VDI_CLONE="2")}
        self.told("VDI_CLONE/2 (clones)", "lost for all hosts")

    def test_what_would_be_lost_is_said_before_the_installation(self):
        self.python("FileSR")
        self.xapi.driver_filenames["file"] = "/x"
        self.told("served by another driver (Citrix Systems Inc 3.2.12)", "lost is", LOST, weight="note")

    def test_another_host_has_another_driver_or_another_release(self):
        def unknown(function, args):
            raise Refusal("XENAPI_PLUGIN_FAILURE", "non-zero exit", "", "Unknown function")
        self.add_host(unknown)
        self.told("another driver on host two", "drivers")
        self.xapi.plugins["OpaqueRef:host-2", "tapdisk-pause"] = lambda function, args: "file 0.0.1 VDI_CREATE\nnfs 0.0.1\n"
        self.assertIn("VDI_REVERT", self.told("not on host two (release 0.0.1)", "features")["what"])
        del self.xapi.plugins["OpaqueRef:host-2", "tapdisk-pause"]
        self.told("another driver on host two")

        def offline(function, args):
            raise Refusal("HOST_OFFLINE", "OpaqueRef:host-2")
        self.add_host(offline)
        self.told("host two", "not asked", weight="not seen")
        self.python("FileSR")
        self.xapi.features = {"file": {"VDI_CREATE": "1"}}
        self.xapi.plugins["OpaqueRef:host-2", "tapdisk-pause"] = lambda function, args: "file 0.0.1 VDI_CREATE\n"
        self.told("by this package on host two", "another driver here")

    def test_xapi_must_find_the_driver_and_the_plugins(self):
        conf = Path(self.host, "xapi.conf")
        conf.write_text("sm-plugins = ext nfs\n", encoding="ascii")
        self.told("file is not in sm-plugins", "FileSR")
        conf.write_text("sm-plugins = ext FILE\n", encoding="ascii")
        self.assertEqual(self.doctor(), [])
        os.unlink(os.path.join(self.plugins, "tapdisk-pause"))
        self.told("tapdisk-pause", "82")

    def test_a_driver_that_others_can_write_is_not_run(self):
        self.python("FileSR.stock")
        os.chmod(os.path.join(self.drivers, "FileSR.stock"), 0o777)
        self.told("FileSR.stock", "it was not run", weight="not seen")
        os.unlink(os.path.join(self.drivers, "FileSR.stock"))
        os.symlink("/gone/sm", os.path.join(self.drivers, "NFSSR"))
        self.told("NFSSR", "a program that is gone")

    def test_a_driver_that_writes_without_end_is_ended(self):
        self.python("FileSR.stock")
        Path(self.drivers, "FileSR.stock").write_text("#!/bin/sh\nexec yes\n", encoding="ascii")
        self.told("FileSR.stock", "1MiB", weight="not seen")
        os.rename(os.path.join(self.drivers, "FileSR.stock"), self.driver_file)
        self.told("FileSR", "does not describe itself")

    def test_xapi_that_does_not_answer_is_told(self):
        self.xapi.behaviour = lambda method, number: "500"
        self.told("xapi", "does not answer")


class Claims(Case):
    def test_claims_of_hosts_and_calls_that_are_gone(self):
        vdi = self.agent.create(MiB)
        sm_config = self.xapi.vdis[vdi]["sm_config"]
        self.add_host(lambda function, args: "\n".join(["file 9 " + " ".join(self.announced())]))
        for key, words in (("host_OpaqueRef:gone", "has left the pool"), (f"host_{self.xapi.host_ref}", "no other host can"),
                           ("paused", "its VM waits")):
            with self.subTest(key):
                sm_config[key] = "RW"
                found = self.told(words, self.xapi.vdis[vdi]["uuid"])
                self.assertIn(f"param-key={key}", found["remedy"])
                del sm_config[key]
        sm_config["host_OpaqueRef:host-2"] = "RW"
        self.assertEqual(self.doctor(), [])
        self.xapi.hosts["OpaqueRef:host-2"]["enabled"] = False
        self.told("claimed by host two, which is disabled or down")

    def test_what_a_call_has_not_ended_is_no_finding(self):
        vdi = self.agent.create(MiB)
        sm_config = self.xapi.vdis[vdi]["sm_config"]
        sm_config["paused"] = "true"

        def end(method, number):
            if method == "VDI.get_all_records_where" and number > 1:
                sm_config.pop("paused", None)
        self.xapi.counts.clear()
        self.xapi.behaviour = end
        self.assertEqual(self.doctor(), [])
        self.assertNotIn("paused", sm_config)

    def test_links_flags_and_mountpoints(self):
        link = Path(self.host, "sm/backend", self.agent.sr_uuid, "x")
        link.parent.mkdir(parents=True)
        link.symlink_to("/dev/gone")
        self.told(str(link), "/dev/gone")
        link.unlink()
        flag = Path(self.host, "sm/ipc", self.agent.sr_uuid, "abort")
        flag.parent.mkdir(parents=True)
        flag.write_text("4194305", encoding="ascii")
        self.told("asked the collector", weight="note")
        flag.write_text(str(os.getpid()), encoding="ascii")
        self.assertEqual(self.doctor(), [])
        hidden = Path(self.host, "sr-mount", str(uuid.uuid4()))
        hidden.mkdir(parents=True)
        self.assertEqual(self.doctor(), [])
        hidden.joinpath("disk.vhd").touch()
        self.told(str(hidden), "nothing is mounted there")

    def test_an_sr_that_is_missing_and_one_whose_directory_everybody_can_write(self):
        os.chmod(self.location, 0o777)
        self.told(self.agent.sr_uuid, "every user can exchange")
        os.chmod(self.location, 0o700)
        self.assertEqual(self.doctor(), [])
        os.rename(self.location, self.location + ".away")
        os.mkdir(self.location)
        self.told(self.agent.sr_uuid, "srs")
        os.rmdir(self.location)
        os.rename(self.location + ".away", self.location)
        os.chmod(os.path.join(self.host, "lock"), 0o777)
        self.told("every user can write to it", "permissions")

    def test_a_tapdisk_of_another_driver_in_an_sr_of_ours(self):
        tools = os.path.join(self.scratch, "tools")
        os.mkdir(tools)
        image = os.path.join(self.location, "a b.vhd")
        fake = Path(tools, "tap-ctl")
        fake.write_text(f"#!/bin/sh\n[ $1 = list ] && cat {tools}/list\n", encoding="ascii")
        fake.chmod(0o755)
        Path(tools, "list").write_text(f"pid=1 minor=0 state=0 args=vhd:{image}\n", encoding="ascii")
        env = {"PATH": f"{tools}:/usr/sbin:/usr/bin:/sbin:/bin", "XCP_SM_RUN_DIR": self.host}
        done = subprocess.run([self.sm, "doctor", "--format", "table"], env=env, capture_output=True, text=True, timeout=100, check=False)
        # With blktap our driver does not announce VDI_RESIZE_ONLINE.
        self.assertEqual(done.returncode, 5)
        self.assertIn(f"wrong (tapdisks): tapdisk 1.0 (vhd:{image}): another driver opened it", done.stdout)
        self.assertIn("VDI_RESIZE_ONLINE", done.stdout)


del Case
