"""LVMRawSR and LVMSR as xapi uses them. Run by tests/guest/lvm-xapi.sh, which has devices for it: LVM_DISKS."""

import hashlib
import os
import subprocess
import unittest
import uuid

import test_file
import test_plugin
from test_file import KNOWN, MiB

DISKS = os.environ.get("LVM_DISKS", "").split()


def run(*words):
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def checksum():
    """Of every byte on the devices, and of what LVM says."""
    digest = hashlib.sha256()
    for disk in DISKS:
        fd = os.open(disk, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        with open(fd, "rb") as device:
            while piece := device.read(MiB):
                digest.update(piece)
    digest.update(run("lvs", "-o", "lv_name,lv_size,lv_active,lv_tags").encode())
    return digest.hexdigest()


@unittest.skipUnless(DISKS, "tests/guest/lvm-xapi.sh has the devices")
class Case(test_file.Case):
    executable = "LVMRawSR"
    sr_type = "lvmraw"
    allocation = "thick"

    def setUp(self):
        super().setUp()
        self.addCleanup(self.wipe)
        self.agent.device_config = {"device": ",".join(DISKS), "allocation": self.allocation, "SRmaster": "true"}
        self.serve_by(self.executable, self.sr_type)
        self.group = "VG_XenStorage-" + self.agent.sr_uuid

    def serve_by(self, executable, sr_type):
        """xapi has the SR by this type from here on."""
        self.driver.executable = os.path.join(test_file.BIN, executable)
        # The guest has no udevd, so LVM makes the nodes.
        self.driver.env["DM_DISABLE_UDEV"] = "1"
        self.xapi.srs[self.agent.sr_ref]["type"] = sr_type

    def probed(self):
        members = self.agent.members("sr_probe", sr_sm_config={})
        del members["sr_ref"], members["sr_uuid"]
        return self.driver.call("sr_probe", members)

    def wipe(self):
        for group in run("vgs", "--noheadings", "-o", "vg_name").split():
            run("vgremove", "-ff", "-y", group)
        for disk in DISKS:
            subprocess.run(["wipefs", "-qa", disk], check=True)

    def volumes(self):
        return set(run("lvs", "--noheadings", "-o", "lv_name", self.group).split())

    def device(self, vdi):
        return f"/dev/{self.group}/LV-{self.xapi.vdis[vdi]['uuid']}"


class Owners(Case):
    """What sm says of a device that nothing but xapi's database says the owner of."""

    def sm(self, *words):
        env = dict(os.environ, XCP_SM_RUN_DIR=self.host, DM_DISABLE_UDEV="1")
        return subprocess.run([os.path.join(test_file.BIN, "sm"), *words], env=env, capture_output=True, text=True, check=False)

    def test_a_device_of_a_pbd_has_its_sr_for_owner_and_a_plan_never_takes_it(self):
        backing, model = os.path.join(self.scratch, "backing"), os.path.join(self.scratch, "r.model")
        with open(backing, "wb") as file:
            file.truncate(64 * MiB)
        loop = run("losetup", "-f", "--show", backing).strip()
        self.addCleanup(subprocess.run, ["losetup", "-d", loop], check=True)
        with open(model, "w", encoding="ascii") as file:
            file.write(f"layout: r\nlvm: dev={loop} index=0\n")
        with open(os.path.join(self.host, "sm.conf"), "w", encoding="ascii") as file:
            file.write("min_size=8M\n")
        self.assertIn(f"make an SR on {loop}", self.sm("plan", "-m", model, "--format", "table").stdout)
        config = {"device": loop}
        self.xapi.pbds["OpaqueRef:pbd"] = {"uuid": str(uuid.uuid4()), "SR": self.agent.sr_ref, "host": self.xapi.host_ref,
                                           "device_config": config, "currently_attached": True}
        owner = f"SR {self.agent.sr_uuid}, which xapi has"
        listed = self.sm("devices", "--format", "table", "-o", "dev,state,owner").stdout
        self.assertRegex(listed, f"{loop} +claimed +{owner}")
        for words, error in ((("plan", "-m", model), "ENOMATCH"), (("devices", "claim", loop), "EBUSY")):
            done = self.sm(*words)
            self.assertTrue(done.stderr.startswith(error) and owner in done.stderr, done)
        # As that of the slot, it is what the plan wants.
        self.xapi.srs[self.agent.sr_ref]["name_label"] = "r-lvm-0"
        self.assertEqual(self.sm("plan", "-m", model, "--format", "table").stdout, "layout r: nothing to change\n")


class Lvm(Case):
    def test_what_is_announced_works_and_what_is_not_is_refused(self):
        info = test_file.Info.info(self)
        announced = set(info["capabilities"])
        self.assertLessEqual(announced, KNOWN)
        # xapi activates no disk of a driver that does not ask for it.
        self.assertLessEqual({"VDI_ACTIVATE", "VDI_DEACTIVATE"}, announced)
        self.assertEqual(info["supported_image_formats"], ["raw"])
        self.assertEqual([key["key"] for key in info["configuration"]], ["device", "allocation", "shared"])
        self.an_sr()
        vdi = self.agent.create(8 * MiB, sm_config={})
        works = {
            "SR_PROBE": self.probe,
            "SR_TRIM": self.trim,
            "SR_UPDATE": lambda: self.agent.call("sr_update"),
            "VDI_CREATE": lambda: self.agent.create(8 * MiB),
            "VDI_DELETE": lambda: self.agent.delete(self.agent.create(8 * MiB)),
            "VDI_ATTACH": lambda: self.agent.call("vdi_attach", "true", vdi=vdi),
            "VDI_ACTIVATE": lambda: self.agent.call("vdi_activate", "true", vdi=vdi),
            "VDI_DEACTIVATE": lambda: self.agent.call("vdi_deactivate", vdi=vdi),
            "VDI_DETACH": lambda: self.agent.call("vdi_detach", vdi=vdi),
            "VDI_UPDATE": lambda: self.agent.call("vdi_update", vdi=vdi),
            "VDI_RESIZE": lambda: self.agent.resize(vdi, 12 * MiB),
            "VDI_RESIZE_ONLINE": lambda: self.resize_online(vdi),
            "VDI_CLONE": lambda: self.copies("vdi_clone", vdi),
            "VDI_SNAPSHOT": lambda: self.copies("vdi_snapshot", vdi),
        }
        self.assertEqual(set(works), announced)
        for capability, does in works.items():
            with self.subTest(capability):
                does()
        for command in ("vdi_enable_cbt", "vdi_disable_cbt", "vdi_data_destroy", "vdi_list_changed_blocks",
                        "vdi_compose", "vdi_revert"):
            with self.subTest(command):
                self.fails(38, self.agent.call, command, vdi, vdi=vdi)
        self.agent.call("vdi_epoch_begin", vdi=vdi)
        self.agent.call("vdi_epoch_end", vdi=vdi)

    def copies(self, command, vdi):
        # What is announced is so of thin groups.
        if self.allocation == "thick":
            self.fails(38, self.agent.copy, command, vdi)
        else:
            self.agent.copy(command, vdi)

    def trim(self):
        answer = test_plugin.trim(self)
        if self.allocation == "thin":
            self.assertIn("<value>UnsupportedSRForTrim</value>", answer)
            return
        self.assertEqual(answer, "True")
        self.assertRegex(self.xapi.srs[self.agent.sr_ref]["other_config"]["trim_last_triggered"], r"^\d+\.\d\d$")

    def probe(self):
        self.assertIn(f"<UUID>{self.agent.sr_uuid}</UUID>", self.probed())

    def resize_online(self, vdi):
        self.agent.call("vdi_activate", "true", vdi=vdi)
        self.agent.resize(vdi, 16 * MiB)
        with open(self.agent.call("vdi_attach", "true", vdi=vdi)["params"], "rb") as device:
            self.assertEqual(device.seek(0, os.SEEK_END), 16 * MiB)
        self.agent.call("vdi_deactivate", vdi=vdi)

    def test_an_sr_from_create_to_delete(self):
        self.agent.create_sr()
        self.fails(42, self.agent.create_sr)
        self.agent.attach_sr()
        self.agent.attach_sr()
        self.xapi.calls()
        vdi = self.agent.create(10 * MiB, "näme <&>", "what it is", sm_config={})
        record = self.xapi.vdis[vdi]
        # A whole number of extents.
        self.assertEqual(record["virtual_size"], str(12 * MiB))
        self.assertEqual((record["name_label"], record["location"]), ("näme <&>", record["uuid"]))
        self.assertEqual((record["read_only"], record["managed"]), (False, True))
        self.assertEqual(self.xapi.methods(),
                         ["VDI.db_introduce", "SR.set_virtual_allocation", "SR.set_physical_utilisation"])
        link = self.agent.call("vdi_attach", "true", vdi=vdi)["params"]
        self.assertFalse(os.path.lexists(link))
        for _ in range(2):
            self.agent.call("vdi_activate", "true", vdi=vdi)
        self.assertEqual(os.path.realpath(link), os.path.realpath(self.device(vdi)))
        self.assertEqual(record["sm_config"][f"host_{self.xapi.host_ref}"], "RW")
        with open(link, "r+b") as device:
            self.assertEqual(device.read(MiB), bytes(MiB))
            device.seek(0)
            device.write(b"data")
            device.flush()
            os.fsync(device.fileno())
        self.fails(24, self.agent.call, "vdi_delete", vdi=vdi)
        self.fails(16, self.agent.call, "sr_detach")
        for _ in range(2):
            self.agent.call("vdi_deactivate", vdi=vdi)
        self.agent.call("vdi_detach", vdi=vdi)
        self.assertFalse(os.path.lexists(link))
        self.assertEqual(record["sm_config"], {"image-format": "raw", "vdi_type": "aio"})
        self.fails(79, self.agent.resize, vdi, 4 * MiB)
        if self.allocation == "thick":
            self.fails(44, self.agent.create, 4 << 30, sm_config={})
        self.fails(39, self.agent.call, "sr_delete")
        self.agent.call("sr_detach")
        self.agent.attach_sr()
        self.agent.call("vdi_activate", "false", vdi=vdi)
        with open(link, "rb") as device:
            self.assertEqual(device.read(4), b"data")
        self.agent.call("vdi_deactivate", vdi=vdi)
        self.agent.delete(vdi)
        self.agent.call("sr_delete")
        self.agent.call("sr_detach")
        self.assertEqual(run("vgs", "--noheadings"), "")

    def test_a_scan_tells_what_is_there(self):
        self.an_sr()
        stays, goes = self.agent.create(8 * MiB, sm_config={}), self.agent.create(8 * MiB, sm_config={})
        self.xapi.vdis[stays]["sm_config"]["mine"] = "1"
        run("lvremove", "-y", f"{self.group}/LV-{self.xapi.vdis[goes]['uuid']}")
        new = str(uuid.uuid4())
        if self.allocation == "thick":
            run("lvcreate", "-y", "-an", "-Zn", "-Wn", "-l", "1", "-n", f"LV-{new}", self.group)
        else:
            run("lvcreate", "-y", "-an", "-V", "4m", "--thinpool", "POOL", "-n", f"LV-{new}", self.group)
        self.agent.scan()
        records = self.xapi.of(self.agent.sr_ref)
        self.assertEqual({v["uuid"] for v in records.values()}, {self.xapi.vdis[stays]["uuid"], new})
        self.assertEqual(records[stays]["sm_config"], {"image-format": "raw", "vdi_type": "aio", "mine": "1"})
        self.xapi.calls()
        self.agent.scan()
        self.assertEqual(self.telling(), ["VDI.get_all_records_where", "SR.get_record"])

    def test_an_sr_that_xapi_has_by_type_lvm_is_served_as_before(self):
        self.an_sr()
        vdi = self.agent.create(8 * MiB, sm_config={})
        self.assertIn(self.agent.sr_uuid, self.probed())
        self.agent.call("sr_detach")
        self.serve_by("LVMSR", "lvm")
        # As it was made by LVMSR before there was a type of its own.
        for more in {}, {"lvhd": "false"}:
            self.agent.device_config.update(more)
            self.agent.attach_sr()
            self.agent.scan()
            self.agent.call("vdi_attach", "true", vdi=vdi)
            self.agent.call("vdi_activate", "true", vdi=vdi)
            self.assertTrue(os.path.exists(self.device(vdi)))
            self.agent.call("vdi_deactivate", vdi=vdi)
            self.agent.call("vdi_detach", vdi=vdi)
            self.agent.delete(self.agent.create(8 * MiB, sm_config={}))
            # Whoever introduces what type lvm finds would take it for LVHD.
            self.assertNotIn(self.agent.sr_uuid, self.probed())
            self.agent.call("sr_detach")
        self.agent.attach_sr()
        self.agent.delete(vdi)
        self.agent.call("sr_delete")
        self.assertEqual(run("vgs", "--noheadings"), "")

    def test_names_come_back_after_the_sr_was_forgotten(self):
        self.an_sr()
        vdi = self.agent.create(8 * MiB, "first", "old words", sm_config={})
        record = self.xapi.vdis[vdi]
        record["name_label"], record["name_description"] = "r\u00f6\u00f6t <&> 'disk'", "d" * 3000
        self.agent.call("vdi_update", vdi=vdi)
        tags = run("lvs", "--noheadings", "-o", "lv_tags", f"{self.group}/LV-{record['uuid']}")
        self.assertNotIn("first", tags)
        seqno = run("vgs", "--noheadings", "-o", "vg_seqno", self.group)
        self.agent.call("vdi_update", vdi=vdi)
        self.agent.device_config["SRmaster"] = "false"
        self.xapi.vdis[vdi] = dict(record, name_label="of another host")
        self.agent.call("vdi_update", vdi=vdi)
        self.assertEqual(run("vgs", "--noheadings", "-o", "vg_seqno", self.group), seqno)
        self.agent.device_config["SRmaster"] = "true"
        del self.xapi.vdis[vdi]
        self.agent.scan()
        (found,) = self.xapi.of(self.agent.sr_ref).values()
        self.assertEqual(found["uuid"], record["uuid"])
        self.assertEqual((found["name_label"], found["name_description"]),
                         (record["name_label"], record["name_description"]))

    def test_a_disk_that_xapi_does_not_hear_of_is_not_made(self):
        self.an_sr()
        before = self.volumes()
        self.xapi.behaviour = lambda method, number: "close" if method == "VDI.db_introduce" else None
        self.fails(154, self.agent.create, 8 * MiB, sm_config={})
        self.assertEqual(self.volumes(), before)

    def test_what_is_not_the_masters(self):
        self.an_sr()
        self.agent.device_config["SRmaster"] = "false"
        before = self.volumes()
        self.fails(58, self.agent.create, 8 * MiB, sm_config={})
        self.fails(58, self.agent.call, "sr_scan")
        self.assertEqual(self.volumes(), before)


class Thin(Lvm):
    allocation = "thin"


class Lvhd(Case):
    """What xapi gets by type lvm."""
    executable = "LVMSR"
    sr_type = "lvm"

    def test_what_is_announced(self):
        self.assertEqual(test_file.Info.info(self)["supported_image_formats"], ["vhd", "raw", "qcow2"])

    def test_no_sr_of_raw_volumes_is_made(self):
        before = checksum()
        self.agent.device_config["lvhd"] = "false"
        self.assertIn("xe sr-create type=lvmraw", self.fails(1, self.agent.create_sr))
        self.assertEqual(checksum(), before)

    def test_it_is_none_of_type_lvmraw(self):
        self.an_sr()
        self.assertIn(self.agent.sr_uuid, self.probed())
        disk = self.agent.create(8 * MiB, sm_config={"type": "raw"})
        self.agent.call("vdi_attach", "true", vdi=disk)
        self.agent.call("vdi_activate", "true", vdi=disk)
        self.serve_by("LVMRawSR", "lvmraw")
        self.assertNotIn(self.agent.sr_uuid, self.probed())
        before, records = checksum(), dict(self.xapi.vdis)
        for code, command, *args in ((47, "sr_attach"), (47, "sr_scan"), (47, "sr_delete"), (47, "sr_detach")):
            with self.subTest(command):
                self.assertIn("type lvm (LVMSR)", self.fails(code, self.agent.call, command, *args))
        for command, *args in ("vdi_deactivate",), ("vdi_delete",), ("vdi_resize", str(32 * MiB)):
            with self.subTest(command):
                self.assertIn("type lvm (LVMSR)", self.fails(47, self.agent.call, command, *args, vdi=disk))
        self.fails(42, self.agent.create_sr)
        self.agent.device_config["lvhd"] = "true"
        self.assertIn("type lvm (LVMSR)", self.fails(1, self.agent.create_sr))
        del self.agent.device_config["lvhd"]
        self.assertEqual((checksum(), self.xapi.vdis), (before, records))
        self.assertTrue(os.path.exists(self.device(disk)))
        self.serve_by("LVMSR", "lvm")
        self.agent.call("vdi_deactivate", vdi=disk)
        self.agent.call("vdi_detach", vdi=disk)
        self.agent.delete(disk)
        self.agent.call("sr_delete")

    def test_an_sr_of_vhds_and_qcow2s(self):
        self.an_sr()
        self.assertEqual(self.volumes(), {"MGT"})
        self.assertEqual(test_plugin.trim(self), "True")
        for sm_config, prefix in (({}, "VHD-"), ({"image-format": "qcow2"}, "QCOW2-"), ({"type": "raw"}, "LV-")):
            with self.subTest(prefix):
                disk = self.agent.create(8 * MiB, "a disk", sm_config=sm_config)
                uuid_of = self.xapi.vdis[disk]["uuid"]
                self.assertIn(prefix + uuid_of, self.volumes())
                self.write(disk, b"old")
                snapshot = self.agent.snapshot(disk)
                self.write(disk, b"new")
                above = "QCOW2-" if prefix == "QCOW2-" else "VHD-"
                self.assertLessEqual({above + uuid_of, above + self.xapi.vdis[snapshot]["uuid"]}, self.volumes())
                self.assertEqual(self.xapi.vdis[disk]["sm_config"]["vdi_type"], above[:-1].lower())
                (base,) = [v for v in self.xapi.of(self.agent.sr_ref).values() if not v["managed"]]
                self.assertEqual(self.xapi.vdis[disk]["sm_config"]["vhd-parent"], base["uuid"])
                self.assertEqual(self.read(snapshot), b"old")
                clone = self.agent.copy("vdi_clone", snapshot)
                self.assertEqual((self.read(disk), self.read(clone)), (b"new", b"old"))
                self.agent.call("vdi_revert", disk, vdi=snapshot)
                self.assertEqual(self.read(disk), b"old")
                for vdi in disk, clone, snapshot:
                    self.agent.delete(vdi)
                self.agent.scan()
                self.assertEqual(self.volumes(), {"MGT"})
                self.assertEqual(self.xapi.of(self.agent.sr_ref), {})
        self.agent.call("sr_delete")
        self.agent.call("sr_detach")
        self.assertEqual(run("vgs", "--noheadings"), "")

    def test_xapi_knows_that_a_python_driver_tracks_a_disk(self):
        self.an_sr()
        disk = self.agent.create(8 * MiB, "a disk", sm_config={})
        log = f"{self.xapi.vdis[disk]['uuid']}.cbtlog"
        run("lvcreate", "-qq", "-y", "-an", "-Zn", "-Wn", "-l", "1", "--addtag", "cbtlog", "-n", log, self.group)
        self.xapi.vdis[disk]["cbt_enabled"] = True
        for command in (lambda: self.agent.call("sr_scan"), lambda: self.agent.call("vdi_update", vdi=disk)):
            command()
            self.assertTrue(self.xapi.vdis[disk]["cbt_enabled"])
        run("lvremove", "-qq", "-y", f"{self.group}/{log}")
        self.agent.call("sr_scan")
        self.assertFalse(self.xapi.vdis[disk]["cbt_enabled"])
        self.agent.delete(disk)

    def test_what_the_python_driver_finds_of_xapi_in_the_group_is_kept(self):
        sr = self.xapi.srs[self.agent.sr_ref]
        self.an_sr()
        self.assertEqual(sr["sm_config"], {"allocation": "thick", "use_vhd": "true"})
        sr.update(name_label="the <SR>", name_description="é")
        sr["sm_config"] = {"allocation": "thin", "of": "others"}
        self.agent.call("sr_update")
        self.assertEqual(sr["sm_config"], {"allocation": "thick", "use_vhd": "true", "of": "others"})
        with open(DISKS[0], "rb") as device:
            text = device.read(64 * MiB)
        self.assertIn(b"<name_label>the &lt;SR&gt;</name_label> ", text)
        self.assertIn("<name_description>é</name_description> ".encode(), text)
        seqno = run("vgs", "--noheadings", "-o", "vg_seqno", self.group)
        self.xapi.calls()
        self.agent.call("sr_update")
        self.assertNotIn("SR.set_sm_config", self.xapi.methods())
        self.assertEqual(run("vgs", "--noheadings", "-o", "vg_seqno", self.group), seqno)
        disk = self.agent.create(8 * MiB, "a disk", sm_config={}, vdi_type="suspend")
        snapshot = self.agent.snapshot(disk)
        kept = {v["uuid"]: v["type"] for v in self.xapi.of(self.agent.sr_ref).values()}
        self.assertEqual([kept[self.xapi.vdis[vdi]["uuid"]] for vdi in (disk, snapshot)], ["suspend", "suspend"])
        self.xapi.vdis.clear()
        self.agent.scan()
        found = {v["uuid"]: v["type"] for v in self.xapi.of(self.agent.sr_ref).values()}
        self.assertEqual({vdi: found.get(vdi) for vdi in kept}, kept)

    def write(self, vdi, text):
        link = self.agent.call("vdi_attach", "true", vdi=vdi)["params"]
        self.agent.call("vdi_activate", "true", vdi=vdi)
        with open(link, "r+b") as device:
            device.write(text)
            device.flush()
            os.fsync(device.fileno())
        self.agent.call("vdi_deactivate", vdi=vdi)
        self.agent.call("vdi_detach", vdi=vdi)

    def read(self, vdi):
        link = self.agent.call("vdi_attach", "false", vdi=vdi)["params"]
        self.agent.call("vdi_activate", "false", vdi=vdi)
        with open(link, "rb") as device:
            text = device.read(3)
        self.agent.call("vdi_deactivate", vdi=vdi)
        self.agent.call("vdi_detach", vdi=vdi)
        return text


class OfThePythonDriver(Case):
    """LVHD: VHD images in volumes, a metadata volume, journals."""
    executable = "LVMSR"
    sr_type = "lvm"

    def test_it_is_read_and_left_as_it_is(self):
        run("vgcreate", "-qq", "--metadatasize", "10M", self.group, *DISKS)
        disk, raw, clone = (str(uuid.uuid4()) for _ in range(3))
        for name, size in (("MGT", 4), (f"VHD-{disk}", 12), (f"VHD-{clone}", 8), (f"LV-{raw}", 8),
                           (f"inflate_{disk}_{8 * MiB}", 4), (f"clone_{disk}_1", 4), (f"jvhd_{disk}", 8),
                           (f"{disk}.cbtlog", 4)):
            run("lvcreate", "-qq", "-y", "-Zn", "-Wn", "-L", f"{size}m", "-n", name, self.group)
            with open(f"/dev/{self.group}/{name}", "r+b") as device:
                device.write(name.encode() * 1000)
                device.flush()
                os.fsync(device.fileno())
        run("vgchange", "-qq", "-an", self.group)
        del self.agent.device_config["allocation"]
        record = self.xapi.VDI_db_introduce(disk, "a disk", "", self.agent.sr_ref, "user", False, False, {}, disk, {},
                                            {"vdi_type": "vhd"}, True, str(4 * MiB), str(12 * MiB), "OpaqueRef:NULL",
                                            False, "19700101T00:00:00Z", "OpaqueRef:NULL", False)
        known, before = dict(self.xapi.vdis[record]), checksum()
        self.agent.call("sr_attach")
        self.agent.call("sr_scan")
        # The record of what cannot be read stays as it is; the raw disk is introduced.
        self.assertEqual(self.xapi.vdis[record], known)
        self.assertEqual({vdi["uuid"] for vdi in self.xapi.vdis.values()}, {disk, raw})
        records = dict(self.xapi.vdis)
        whole = next(ref for ref, vdi in self.xapi.vdis.items() if vdi["uuid"] == raw)
        self.fails(39, self.agent.call, "sr_delete")
        self.fails(65, self.agent.call, "vdi_attach", "true", vdi=record)
        self.agent.device_config["SRmaster"] = "false"
        for vdi in record, whole:
            for command, *args in ("vdi_resize", str(32 * MiB)), ("vdi_delete",), ("vdi_snapshot",), ("vdi_clone",):
                with self.subTest(command):
                    more = {"driver_params": {}} if command in ("vdi_snapshot", "vdi_clone") else {}
                    self.fails(58, self.agent.call, command, *args, vdi=vdi, **more)
                    self.assertEqual(self.xapi.vdis, records)
        self.fails(58, self.agent.create, 8 * MiB, sm_config={})
        self.agent.device_config["SRmaster"] = "true"
        self.fails(42, self.agent.create_sr)
        self.agent.call("sr_detach")
        self.assertEqual(checksum(), before)


if __name__ == "__main__":
    unittest.main()
