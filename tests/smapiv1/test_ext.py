"""EXTSR as xapi uses it, on the block devices in DISKS; tests/guest/ext-smapiv1.sh runs it."""

import os
import subprocess
import unittest
import uuid

import test_file
import test_plugin
from agent import Agent
from test_file import MiB

DISKS = os.environ["DISKS"].split()


def run(*words):
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


class Ext(test_file.Case):
    executable = "EXTSR"

    def setUp(self):
        super().setUp()
        self.agent = Agent(self.xapi, self.driver, {"device": DISKS[0]}, sr_type="ext")
        self.location = os.path.join(self.host, "sr-mount", self.agent.sr_uuid)
        self.group = f"XSLocalEXT-{self.agent.sr_uuid}"

        self.more = {"SR_TRIM": lambda: self.assertEqual(test_plugin.trim(self), "True")}

    def clean(self):
        subprocess.run(["umount", self.location], check=False, capture_output=True)
        for disk in DISKS:
            subprocess.run(["vgremove", "-ff", "-y", self.group], check=False, capture_output=True)
            subprocess.run(["wipefs", "-qaf", disk], check=True)
        super().clean()

    info, resize_online, introduce, revert, track, reset = (
        test_file.Info.info, test_file.Info.resize_online, test_file.Info.introduce, test_file.Info.revert, test_file.Info.track,
        test_file.Info.reset)
    # What xapi relies on is the same wherever the files are.
    test_driver_info = test_file.Info.test_driver_info_is_what_xapi_reads
    test_announced = test_file.Info.test_what_is_announced_works_and_what_is_not_is_refused
    test_lifecycle = test_file.Lifecycle.test_an_sr_from_create_to_delete
    test_probe = test_file.Lifecycle.test_probe_lists_srs

    def test_an_sr_is_whole_or_not_there(self):
        self.an_sr()
        vdi = self.agent.create(4 * MiB, sm_config={})
        self.assertEqual(self.xapi.vdis[vdi]["sm_config"], {"image-format": "vhd"})
        self.assertTrue(os.path.exists(self.path(vdi, "vhd")))
        self.assertTrue(os.path.ismount(self.location))
        self.agent.call("vdi_activate", "true", vdi=vdi)
        self.fails(16, self.agent.call, "sr_detach")
        self.agent.call("vdi_deactivate", vdi=vdi)
        self.agent.call("sr_detach")
        self.xapi.calls()
        # A mountpoint without its mount is not an SR without disks.
        os.makedirs(self.location)
        for command, args in (("sr_scan", []), ("sr_update", []), ("vdi_snapshot", [])):
            self.fails(47, self.agent.call, command, *args, vdi=vdi)
        self.assertIn(vdi, self.xapi.vdis)
        self.assertLessEqual(set(self.xapi.methods()), {"VDI.get_all_records_where", "VDI.get_record"})
        members = self.agent.members("sr_probe", sr_sm_config={})
        del members["sr_ref"], members["sr_uuid"]
        self.assertIn(self.agent.sr_uuid, self.driver.call("sr_probe", members))
        self.agent.attach_sr()
        self.agent.call("sr_scan")
        self.assertIn(vdi, self.xapi.vdis)
        self.agent.call("sr_detach")
        self.fails(39, self.agent.call, "sr_delete")

    def made_by_python(self):
        run("vgcreate", "--metadatasize", "10M", self.group, DISKS[0])
        run("lvcreate", "-n", self.agent.sr_uuid, "-l", "100%FREE", self.group, "-W", "y", "--yes")
        run("mkfs.ext4", "-F", f"/dev/{self.group}/{self.agent.sr_uuid}")

    def test_a_volume_without_a_filesystem_is_an_error_of_its_mount(self):
        self.made_by_python()
        run("wipefs", "-a", f"/dev/{self.group}/{self.agent.sr_uuid}")
        self.assertIn("e2fsck -f", self.fails(52, self.agent.attach_sr))
        self.assertFalse(os.path.exists(self.location))

    def test_an_empty_sr_of_the_python_driver_is_attached(self):
        self.made_by_python()
        self.xapi.VDI_db_introduce(
            str(uuid.uuid4()), "gone", "", self.agent.sr_ref, "user", False, False, {}, "x", {}, {}, True, "1", "0",
            "OpaqueRef:NULL", False, "19700101T00:00:00Z", "OpaqueRef:NULL", False)
        self.agent.attach_sr()
        # Its mount proves that it has no disks.
        self.assertEqual(list(self.xapi.of(self.agent.sr_ref)), [])
        self.assertEqual(os.listdir(self.location), ["lost+found"])
        self.agent.call("sr_detach")
        self.agent.call("sr_delete")

    def test_devices_that_are_not_for_an_sr(self):
        run("mkfs.ext4", "-q", "-F", "-L", "letters", DISKS[1])
        for device, code in ((DISKS[1], 16), ("/dev/nonexistent", 19), ("sdb", 91), (f"{DISKS[0]},{DISKS[0]}", 91)):
            self.agent.device_config["device"] = device
            self.fails(code, self.agent.create_sr)
        del self.agent.device_config["device"]
        self.fails(90, self.agent.create_sr)
        self.agent.device_config["device"] = DISKS[0]
        self.fails(44, self.agent.create_sr, str(1 << 50))
        self.fails(47, self.agent.attach_sr)


if __name__ == "__main__":
    unittest.main()
