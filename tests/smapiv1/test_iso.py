"""ISOSR as xapi uses it: disks that are called by their file's name."""

import os
import unittest
import uuid

from agent import Agent, Fault
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
        for command in ("vdi_clone", "vdi_snapshot"):
            self.fails(38, self.agent.copy, command, vdi)
        self.fails(79, self.agent.resize, vdi, 2 * MiB)
        self.fails(38, self.agent.create, MiB, sm_config={"type": "vhd"})
        self.fails(38, self.agent.create, MiB, sm_config={}, read_only="true")
        for name in ("../sr/UPPER.ISO", "no.iso", "notes.txt", "directory.iso"):
            self.fails(144, self.agent.call, "vdi_attach", "false", vdi_ref="OpaqueRef:x", vdi_location=name,
                       vdi_uuid=str(uuid.uuid4()))
        self.agent.device_config = {"location": "/does/not/exist", "legacy_mode": "true", "SRmaster": "true"}
        self.fails(226, self.agent.attach_sr)
        self.fails(226, self.agent.create_sr)
        self.assertEqual(checksum(self.location), before)

    def test_a_link_that_leads_out_of_the_directory_is_not_served(self):
        self.agent.attach_sr()
        secret = os.path.join(self.scratch, "secret")
        with open(secret, "wb") as file:
            file.write(b"secret" * 512)
        below = os.path.join(self.location, "below")
        os.mkdir(below)
        with open(os.path.join(below, "real"), "wb") as file:
            file.write(b"real".ljust(512))
        before = set(self.names())
        os.symlink("below/real", os.path.join(self.location, "inside.iso"))
        os.symlink(os.path.join(below, "real"), os.path.join(self.location, "absolute.iso"))
        os.symlink(secret, os.path.join(self.location, "outside.iso"))
        os.symlink("../secret", os.path.join(self.location, "relative.iso"))
        os.symlink(os.path.dirname(secret), os.path.join(below, "up"))
        os.symlink("below/up/secret", os.path.join(self.location, "indirect.iso"))
        # The record of one that was served before is neither forgotten nor changed.
        os.unlink(os.path.join(self.location, "x.img"))
        os.symlink(secret, os.path.join(self.location, "x.img"))
        record = dict(self.xapi.vdis[self.names()["x.img"]])
        self.agent.scan()
        self.assertEqual(set(self.names()), before | {"inside.iso", "absolute.iso"})
        self.assertEqual(self.xapi.vdis[self.names()["x.img"]], record)
        logged = self.logged()
        for name in ("outside.iso", "relative.iso", "indirect.iso", "x.img"):
            self.assertTrue([line for line in logged if name in line and "leads out of" in line], name)
            if ROOT:
                with self.assertRaises(Fault) as raised:
                    self.agent.call("vdi_attach_from_config", vdi_ref="OpaqueRef:x", vdi_location=name,
                                    vdi_uuid=str(uuid.uuid4()))
                self.assertIn("leads out of", str(raised.exception))
        if ROOT:
            for name in ("inside.iso", "absolute.iso"):
                vdi = self.names()[name]
                link = self.agent.call("vdi_attach", "false", vdi=vdi)["params"]
                self.agent.call("vdi_activate", "false", vdi=vdi)
                self.assertEqual(self.agent.call("vdi_attach", "false", vdi=vdi)["params"], link)
                with open(link, "rb") as device:
                    self.assertEqual(device.read(4), b"real")
                self.agent.call("vdi_deactivate", vdi=vdi)
                self.agent.call("vdi_detach", vdi=vdi)

    def test_a_path_below_the_location_that_leads_out_of_it_is_refused(self):
        os.symlink("/", os.path.join(self.location, "up"))
        os.mkdir(os.path.join(self.location, "below"))
        for path, fault in (("up/etc", True), ("below", False)):
            self.agent.device_config = {"location": self.location, "legacy_mode": "true", "iso_path": path,
                                        "SRmaster": "true"}
            if fault:
                with self.assertRaises(Fault) as raised:
                    self.agent.attach_sr()
                self.assertIn("leads out of", str(raised.exception))
            else:
                self.agent.attach_sr()

    def test_a_name_that_xml_cannot_carry_changes_nothing(self):
        self.agent.attach_sr()
        before = self.names()
        for name in ("a\x01b.iso", "c\ufffed.img"):
            with open(os.path.join(self.location, name), "wb"):
                pass
        os.symlink("loop.iso", os.path.join(self.location, "loop.iso"))
        for _ in range(2):
            self.agent.call("sr_scan")
            self.assertEqual(self.names(), before)
        self.assertTrue([line for line in self.logged() if "rename it without control characters" in line])

    def test_a_disk_is_made_filled_and_deleted(self):
        self.agent.attach_sr()
        left = ".tmp-" + str(uuid.uuid4())
        for name in (left, ".tmp-mine"):
            with open(os.path.join(self.location, name), "wb"):
                pass
        vdi = self.agent.create(MiB + 1, sm_config={})
        record = self.xapi.vdis[vdi]
        self.assertEqual(record["location"], record["uuid"] + ".img")
        self.assertEqual((record["virtual_size"], record["read_only"]), (str(MiB + 512), False))
        names = os.listdir(self.location)
        self.assertNotIn(left, names)
        self.assertIn(".tmp-mine", names)
        self.agent.scan()
        self.assertEqual(len(self.names()), 4)
        self.assertFalse(self.xapi.vdis[vdi]["read_only"])
        if ROOT:
            link = self.agent.call("vdi_attach", "true", vdi=vdi)["params"]
            self.agent.call("vdi_activate", "true", vdi=vdi)
            with open(link, "r+b") as device:
                device.write(b"filled")
            self.fails(24, self.agent.call, "vdi_delete", vdi=vdi)
            self.agent.call("vdi_deactivate", vdi=vdi)
            self.agent.call("vdi_detach", vdi=vdi)
            with open(os.path.join(self.location, record["location"]), "rb") as file:
                self.assertEqual(file.read(6), b"filled")
        self.agent.delete(vdi)
        self.agent.delete(self.names()["x.img"])
        self.agent.call("sr_scan")
        self.assertEqual(set(self.names()), {"a b <&> é.iso", "UPPER.ISO"})
        self.assertFalse(os.path.exists(os.path.join(self.location, "x.img")))

    def test_a_server_that_is_not_there_and_keys_that_are_wrong(self):
        def configured(**keys):
            self.agent.device_config = dict(keys, SRmaster="true")
            return self.agent.call
        for command in ("sr_create", "sr_attach"):
            args = ["0"] if command == "sr_create" else []
            silent = {"options": "-o port=1"}
            self.fails(108, configured(location="127.0.0.1:/isos", **silent), command, *args)
            self.fails(222, configured(location="//127.0.0.1/isos", **silent), command, *args)
            self.fails(140, configured(location="//no-such-host.invalid/isos"), command, *args)
        for code, keys in (
                (94, {}), (225, {"location": "isos"}), (225, {"location": "/srv/isos"}),
                (225, {"location": "/srv/isos", "type": "nfs_iso"}), (225, {"location": "//filer", "type": "cifs"}),
                (1, {"location": "filer:/isos", "type": "http"}), (72, {"location": "filer:/isos", "nfsversion": "5"}),
                (227, {"location": "//filer/isos", "vers": "4"}), (115, {"location": "//filer/isos", "username": "a"}),
                (1, {"location": "//filer/isos", "iso_path": "../x"})):
            self.fails(code, configured(**keys), "sr_attach")
        self.assertEqual(os.listdir(os.path.join(self.host, "sr-mount")), [])

    def test_no_password_is_seen(self):
        share = {"location": "//127.0.0.1/isos", "username": "me", "SRmaster": "true"}
        said = []
        for keys in ({"cifspassword": "hunter2"}, {"cifspassword": "hunter2\t"}, {"options": "ro,password=hunter2"},
                     {"cifspassword": "x", "options": "pass=hunter2"}):
            self.agent.device_config = dict(share, **{"options": "port=1"} | keys)
            with self.assertRaises(Fault) as raised:
                self.agent.call("sr_attach")
            said.append(raised.exception.text)
        secret = str(uuid.uuid4())
        self.agent.device_config = dict(share, cifspassword_secret=secret, options="port=1")
        self.fails(20, self.agent.call, "sr_attach")
        self.xapi.secrets["OpaqueRef:s"] = {"uuid": secret, "value": "hunter2"}
        said.append(self.fails(222, self.agent.call, "sr_attach"))
        said += self.logged()
        self.assertEqual([text for text in said if "hunter2" in text], [])
        self.assertGreater(len(said), 10)


del Case

if __name__ == "__main__":
    unittest.main()
