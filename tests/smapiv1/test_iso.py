"""ISOSR as xapi uses it: disks that are called by their file's name."""

import os
import unittest
import uuid

from agent import Agent
from test_file import MiB, ROOT, Case, checksum


class Iso(Case):
    executable = "ISOSR"

    def setUp(self):
        super().setUp()
        self.agent = Agent(self.xapi, self.driver, {"location": self.location, "legacy_mode": "true"}, sr_type="iso")
        os.mkdir(self.location)
        for name, size in (("a b <&> é.iso", 2), ("UPPER.ISO", 1), ("x.img", 1), ("notes.txt", 1)):
            with open(os.path.join(self.location, name), "wb") as file:
                file.truncate(size * MiB)
        os.mkdir(os.path.join(self.location, "directory.iso"))
        os.symlink("nowhere", os.path.join(self.location, "dangling.iso"))

    def names(self):
        return {v["location"]: r for r, v in self.xapi.of(self.agent.sr_ref).items()}

    def test_the_files_are_the_disks(self):
        before = checksum(self.location)
        self.agent.create_sr()
        self.agent.attach_sr()
        self.assertEqual(set(self.names()), {"a b <&> é.iso", "UPPER.ISO", "x.img"})
        record = self.xapi.vdis[self.names()["a b <&> é.iso"]]
        self.assertEqual((record["name_label"], record["virtual_size"]), ("a b <&> é.iso", str(2 * MiB)))
        self.assertEqual((record["read_only"], record["managed"], record["sm_config"]), (True, True, {}))
        self.xapi.calls()
        self.agent.call("sr_scan")
        self.assertEqual(self.xapi.methods(), ["VDI.get_all_records_where"])
        self.assertEqual(checksum(self.location), before)
        os.unlink(os.path.join(self.location, "x.img"))
        self.agent.scan()
        self.assertEqual(set(self.names()), {"a b <&> é.iso", "UPPER.ISO"})
        self.agent.call("sr_detach")
        self.agent.call("sr_delete")

    def test_a_record_keeps_the_uuid_that_another_driver_gave_it(self):
        mine = str(uuid.uuid4())
        self.xapi.VDI_db_introduce(
            mine, "Debian", "", self.agent.sr_ref, "user", False, True, {}, "UPPER.ISO", {},
            {"read-caching-enabled-on-x": "false"}, True, str(MiB), "0", "OpaqueRef:NULL", False, "", "OpaqueRef:NULL",
            False)
        self.agent.attach_sr()
        self.assertEqual(self.xapi.vdis[self.names()["UPPER.ISO"]]["uuid"], mine)
        self.assertEqual(self.xapi.vdis[self.names()["UPPER.ISO"]]["name_label"], "Debian")
        if ROOT:
            vdi = self.names()["UPPER.ISO"]
            link = self.agent.call("vdi_attach", "false", vdi=vdi)["params"]
            self.assertTrue(link.endswith(mine))
            self.agent.call("vdi_activate", "false", vdi=vdi)
            with open(link, "rb") as device:
                self.assertEqual(device.seek(0, os.SEEK_END), MiB)
            self.fails(16, self.agent.call, "sr_detach")
            self.agent.call("vdi_deactivate", vdi=vdi)
            self.agent.call("vdi_detach", vdi=vdi)

    def test_what_is_not_there_and_what_is_not_done(self):
        self.agent.attach_sr()
        vdi = self.names()["UPPER.ISO"]
        before = checksum(self.location)
        self.fails(38, self.agent.call, "vdi_delete", vdi=vdi)
        self.fails(38, self.agent.copy, "vdi_clone", vdi)
        self.fails(38, self.agent.create, MiB, sm_config={"path": "new.iso"})
        for name in ("../sr/UPPER.ISO", "no.iso", "notes.txt", "directory.iso"):
            self.fails(144, self.agent.call, "vdi_attach", "false", vdi_ref="OpaqueRef:x", vdi_location=name,
                       vdi_uuid=str(uuid.uuid4()))
        self.agent.device_config = {"location": "server:/export", "type": "nfs_iso", "SRmaster": "true"}
        self.assertIn("legacy_mode", self.fails(38, self.agent.create_sr))
        self.agent.device_config = {"location": "/does/not/exist", "legacy_mode": "true", "SRmaster": "true"}
        self.fails(226, self.agent.attach_sr)
        self.assertEqual(checksum(self.location), before)


del Case

if __name__ == "__main__":
    unittest.main()
