"""FileSR as xapi uses it. Run by `cargo test --test smapiv1`; alone: BIN=target/debug python3 -m unittest -v."""

import calendar
import fcntl
import hashlib
import os
import re
import shutil
import socket
import subprocess
import tempfile
import threading
import time
import unittest
import uuid
import xmlrpc.client
from pathlib import Path

from agent import Agent, Driver, Fault
from driver import request, value
from xapi import Xapi

BIN = os.environ["BIN"]
ROOT = os.geteuid() == 0
MiB = 1 << 20
# xapi's own list, ocaml/xapi/smint.ml.
KNOWN = set("""SR_PROBE SR_UPDATE SR_SUPPORTS_LOCAL_CACHING SR_CACHING SR_METADATA SR_TRIM SR_MULTIPATH SR_STATS
    THIN_PROVISIONING LARGE_VDI VDI_READ_CACHING SR_CREATE SR_DELETE SR_ATTACH SR_DETACH SR_SCAN VDI_ATTACH VDI_DETACH
    VDI_CREATE VDI_DELETE VDI_RESIZE VDI_SNAPSHOT VDI_INTRODUCE VDI_UPDATE VDI_GENERATE_CONFIG VDI_CLONE
    VDI_RESIZE_ONLINE VDI_MIRROR VDI_MIRROR_IN VDI_ACTIVATE VDI_DEACTIVATE VDI_ACTIVATE_READONLY VDI_RESET_ON_BOOT
    VDI_CONFIG_CBT VDI_COMPOSE VDI_REVERT""".split())


def checksum(directory):
    digest = hashlib.sha256()
    for path in sorted(Path(directory).rglob("*")):
        stat = path.lstat()
        digest.update(f"{path} {stat.st_mode} {stat.st_size} {stat.st_ino}".encode())
        if path.is_file() and not path.is_symlink():
            digest.update(path.read_bytes())
    return digest.hexdigest()


class Case(unittest.TestCase):
    executable = "FileSR"

    def setUp(self):
        self.scratch = tempfile.mkdtemp(prefix="smapiv1-")
        self.addCleanup(self.clean)
        self.host = os.path.join(self.scratch, "host")
        os.mkdir(self.host)
        self.location = os.path.join(self.scratch, "sr")
        self.start_log()
        self.start_xapi()
        self.driver = Driver(os.path.join(BIN, self.executable), self.host)
        self.agent = Agent(self.xapi, self.driver, {"location": self.location})

    def telling(self):
        """The calls so far, without what others that use the same filesystem cause."""
        return [method for method in self.xapi.methods() if method != "SR.set_physical_utilisation"]

    def start_xapi(self):
        self.xapi = Xapi(os.path.join(self.host, "xapi"))

    def start_log(self):
        self.log = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.log.bind(os.path.join(self.host, "log"))
        self.log.setblocking(False)
        self.addCleanup(self.log.close)

    def logged(self):
        lines = []
        while True:
            try:
                lines.append(self.log.recv(65536).decode())
            except BlockingIOError:
                return lines

    def clean(self):
        self.xapi.close()
        for link in Path(self.host).glob("sm/backend/*/*"):
            subprocess.run(["losetup", "-d", str(link.resolve())], check=False, capture_output=True)
        for mount in Path(self.host).glob("sr-mount/*"):
            subprocess.run(["umount", "-l", str(mount)], check=False, capture_output=True)
        shutil.rmtree(self.scratch)
        self.assertEqual(self.xapi.misuses, [])

    def an_sr(self):
        self.agent.create_sr()
        self.agent.attach_sr()
        self.xapi.calls()

    def fails(self, code, function, *args, **kwargs):
        with self.assertRaises(Fault) as raised:
            function(*args, **kwargs)
        self.assertEqual(raised.exception.code, code, raised.exception.text)
        return raised.exception.text

    def path(self, vdi, extension="raw"):
        return os.path.join(self.location, f"{self.xapi.vdis[vdi]['uuid']}.{extension}")

    def raws(self):
        return sorted(n[:-4] for n in os.listdir(self.location) if n.endswith(".raw"))

    def plant(self, count=1, size=MiB, extension="raw"):
        """Disks as another storage manager would leave them."""
        names = [str(uuid.uuid4()) for _ in range(count)]
        os.makedirs(self.location, exist_ok=True)
        for name in names:
            with open(os.path.join(self.location, f"{name}.{extension}"), "wb") as file:
                file.truncate(size)
        return names


class Info(Case):
    # What the driver announces beyond every driver of files, each with what shows that it works.
    more = {}

    def info(self):
        return self.driver.call("sr_get_driver_info", {
            "host_ref": "OpaqueRef:h1", "command": "sr_get_driver_info", "args": [], "device_config": {}})

    def test_driver_info_is_what_xapi_reads(self):
        info = self.info()
        for key in ("name", "description", "vendor", "copyright", "driver_version", "required_api_version"):
            self.assertIsInstance(info[key], str)
            self.assertTrue(info[key])
        # sr_health_check loads as Python what says 1.0.
        self.assertEqual(info["required_api_version"], "1.1")
        self.assertRegex(info["driver_version"], r"^\d+(\.\d+)*$")
        names = [re.fullmatch(r"([A-Z_]+)(/[1-9]\d*)?", c)[1] for c in info["capabilities"]]
        self.assertLessEqual(set(names), KNOWN)
        self.assertEqual(len(names), len(set(names)))
        for entry in info["configuration"]:
            self.assertEqual(set(entry), {"key", "description"})
        self.assertLessEqual(set(info["supported_image_formats"]), {"raw", "vhd", "qcow2"})
        self.assertEqual(self.xapi.connections, 0)
        self.assertEqual(self.logged(), [])

    def test_what_is_announced_works_and_what_is_not_is_refused(self):
        announced = {c.split("/")[0] for c in self.info()["capabilities"]}
        self.an_sr()
        vdi = self.agent.create(MiB)
        works = {
            "SR_PROBE": lambda: self.driver.call("sr_probe", {k: v for k, v in self.agent.members(
                "sr_probe", sr_sm_config={}).items() if k not in ("sr_ref", "sr_uuid")}),
            "SR_UPDATE": lambda: self.agent.call("sr_update"),
            "THIN_PROVISIONING": lambda: self.assertLess(int(self.xapi.vdis[vdi]["physical_utilisation"]), MiB),
            "VDI_CREATE": lambda: self.agent.create(MiB),
            "VDI_DELETE": lambda: self.agent.delete(self.agent.create(MiB)),
            "VDI_ATTACH": lambda: self.agent.call("vdi_attach", "true", vdi=vdi),
            "VDI_ACTIVATE": lambda: ROOT and self.agent.call("vdi_activate", "true", vdi=vdi),
            "VDI_DEACTIVATE": lambda: ROOT and self.agent.call("vdi_deactivate", vdi=vdi),
            "VDI_DETACH": lambda: self.agent.call("vdi_detach", vdi=vdi),
            "VDI_CLONE": lambda: self.agent.copy("vdi_clone", vdi),
            "VDI_SNAPSHOT": lambda: self.agent.copy("vdi_snapshot", vdi),
            "VDI_REVERT": self.revert,
            "VDI_RESIZE": lambda: self.agent.resize(vdi, 2 * MiB),
            "VDI_RESIZE_ONLINE": lambda: self.resize_online(vdi),
            "VDI_INTRODUCE": lambda: self.introduce(),
            "VDI_UPDATE": lambda: self.agent.call("vdi_update", vdi=vdi),
            "VDI_GENERATE_CONFIG": lambda: self.agent.call("vdi_generate_config", vdi=vdi),
            "VDI_CONFIG_CBT": self.track,
            "VDI_RESET_ON_BOOT": self.reset,
        }
        works.update(self.more)
        self.assertEqual(set(works), announced)
        for capability, does in works.items():
            with self.subTest(capability):
                does()
        snapshot = self.agent.copy("vdi_snapshot", vdi)
        for command, args in (("vdi_compose", [vdi]),):
            with self.subTest(command):
                before = checksum(self.location)
                self.fails(38, self.agent.call, command, *args, vdi=snapshot)
                self.assertEqual(checksum(self.location), before)

    def reset(self):
        disk = self.agent.create(4 * MiB, sm_config={"type": "vhd"})
        for _ in range(2):
            self.agent.call("vdi_epoch_begin", vdi=disk, vdi_on_boot="reset")
        self.agent.delete(disk)

    def revert(self):
        disk = self.agent.create(4 * MiB, sm_config={"type": "vhd"})
        snapshot = self.agent.copy("vdi_snapshot", disk)
        record, of_snapshot = self.xapi.vdis[disk], self.xapi.vdis[snapshot]
        uuid, name = record["uuid"], record["name_label"]
        self.agent.resize(disk, 8 * MiB)
        self.agent.copy("vdi_snapshot", disk)
        self.assertNotEqual(record["sm_config"]["vhd-parent"], of_snapshot["sm_config"]["vhd-parent"])
        for _ in range(2):
            self.assertIn(self.agent.call("vdi_revert", disk, vdi=snapshot), ("", None))
            self.assertEqual((record["uuid"], record["name_label"]), (uuid, name))
            self.assertEqual(record["virtual_size"], str(4 * MiB))
            self.assertEqual(record["sm_config"]["vhd-parent"], of_snapshot["sm_config"]["vhd-parent"])
        self.xapi.calls()
        self.agent.call("sr_scan")
        self.assertEqual([m for m in self.xapi.methods() if ".set_" in m or "introduce" in m], [])
        # A slave must not, nor is the disk of another SR taken back.
        config = dict(self.agent.device_config, SRmaster="false")
        self.fails(58, self.agent.call, "vdi_revert", disk, vdi=snapshot, device_config=config)
        record["SR"] = "OpaqueRef:sr-other"
        self.fails(143, self.agent.call, "vdi_revert", disk, vdi=snapshot)
        record["SR"] = self.agent.sr_ref

    def test_a_raw_disk_goes_back_and_xapi_says_to_which_snapshot(self):
        self.an_sr()
        disk = self.agent.create(4 * MiB, sm_config={"type": "raw"})
        snapshot = self.agent.copy("vdi_snapshot", disk)
        record = self.xapi.vdis[disk]
        self.agent.resize(disk, 8 * MiB)
        for _ in range(2):
            self.assertIn(self.agent.call("vdi_revert", disk, vdi=snapshot), ("", None))
            self.assertEqual(record["virtual_size"], str(4 * MiB))
        self.xapi.calls()
        self.agent.call("sr_scan")
        self.assertEqual([m for m in self.xapi.methods() if ".set_" in m or "introduce" in m], [])
        # A VM.revert by way of a clone makes the snapshot one of another disk, for xapi.
        for sm_config in ({"type": "raw"}, {"type": "vhd"}):
            disk = self.agent.create(4 * MiB, sm_config=sm_config)
            snapshot = self.agent.copy("vdi_snapshot", disk)
            clone = self.agent.copy("vdi_clone", snapshot)
            self.agent.call("vdi_revert", clone, vdi=snapshot)

    def track(self):
        disk = self.agent.create(4 * MiB, sm_config={"type": "vhd"})
        self.agent.call("vdi_enable_cbt", vdi=disk)
        first, second = self.agent.snapshot(disk), self.agent.snapshot(disk)
        self.assertEqual(self.agent.call("vdi_list_changed_blocks", second, vdi=first), "AAAAAAAAAAA=")
        self.agent.call("vdi_data_destroy", vdi=first)
        self.agent.call("vdi_disable_cbt", vdi=disk)

    def resize_online(self, vdi):
        if not ROOT:
            return
        self.agent.call("vdi_activate", "true", vdi=vdi)
        self.agent.resize(vdi, 4 * MiB)
        self.agent.resize(vdi, 6 * MiB, "vdi_resize_online")
        path = self.agent.call("vdi_attach", "true", vdi=vdi)["params"]
        with open(path, "rb") as device:
            self.assertEqual(device.seek(0, os.SEEK_END), 6 * MiB)
        self.agent.call("vdi_deactivate", vdi=vdi)

    def introduce(self):
        (name,) = self.plant()
        new = str(uuid.uuid4())
        answer = self.agent.call("vdi_introduce", vdi_location=name, vdi_sm_config={"a": "b"}, new_uuid=new)
        record = self.xapi.vdis[self.agent.found(answer)]
        self.assertEqual((record["uuid"], record["location"]), (new, name))
        self.assertEqual(record["sm_config"], {"a": "b", "image-format": "raw", "type": "raw"})
        # Found again by its location, whatever uuid it was given.
        self.agent.scan()
        self.assertIn(new, {v["uuid"] for v in self.xapi.vdis.values()})


class Lifecycle(Case):
    def test_an_sr_from_create_to_delete(self):
        self.agent.create_sr()
        self.assertEqual(self.xapi.calls(), [])
        self.fails(42, self.agent.create_sr)
        self.agent.attach_sr()
        mounted = os.path.join(self.host, "sr-mount", self.agent.sr_uuid)
        self.assertTrue(os.path.samefile(mounted, self.location))
        if ROOT:
            self.assertTrue(os.path.ismount(mounted) or not os.path.islink(mounted))
        self.agent.attach_sr()
        self.xapi.calls()

        vdi = self.agent.create(10 * MiB, "näme <&>", "what it is\nfor")
        record = self.xapi.vdis[vdi]
        self.assertEqual(os.stat(self.path(vdi)).st_size, 10 * MiB)
        self.assertEqual((record["name_label"], record["name_description"]), ("näme <&>", "what it is\nfor"))
        self.assertEqual((record["virtual_size"], record["physical_utilisation"]), (str(10 * MiB), "0"))
        self.assertEqual((record["type"], record["managed"], record["read_only"]), ("user", True, False))
        self.assertEqual(record["sm_config"], {"image-format": "raw", "type": "raw"})
        self.assertEqual(record["location"], record["uuid"])
        self.assertEqual(self.xapi.methods(),
                         ["VDI.db_introduce", "SR.get_virtual_allocation", "SR.set_virtual_allocation",
                          "SR.set_physical_utilisation"])
        self.assertEqual(self.xapi.srs[self.agent.sr_ref]["virtual_allocation"], str(10 * MiB))

        self.agent.resize(vdi, 20 * MiB)
        self.assertEqual(record["virtual_size"], str(20 * MiB))
        self.agent.resize(vdi, 20 * MiB)
        self.fails(79, self.agent.resize, vdi, 10 * MiB)
        with open(self.path(vdi), "r+b") as file:
            file.write(b"hello")
        snapshot, clone = self.agent.copy("vdi_snapshot", vdi), self.agent.copy("vdi_clone", vdi)
        for copy in (snapshot, clone):
            with open(self.path(copy), "rb") as file:
                self.assertEqual(file.read(5), b"hello")
            self.agent.call("vdi_update", vdi=copy)
        self.assertEqual(self.xapi.vdis[clone]["read_only"], False)
        self.xapi.calls()
        self.agent.call("sr_scan")
        self.assertEqual([m for m in self.xapi.methods() if "introduce" in m or "forget" in m], [])

        self.fails(39, self.agent.call, "sr_delete")
        for one in (vdi, snapshot, clone):
            self.agent.delete(one)
        self.agent.call("vdi_delete", vdi_ref="OpaqueRef:gone", vdi_location=str(uuid.uuid4()),
                        vdi_uuid=str(uuid.uuid4()))
        self.agent.call("sr_detach")
        self.assertFalse(os.path.lexists(mounted))
        self.agent.call("sr_detach")
        self.agent.call("sr_delete")
        self.assertFalse(os.path.exists(self.location))

    def test_names_come_back_after_the_sr_was_forgotten(self):
        self.an_sr()
        for label, description in (("r\u00f6\u00f6t <&> 'disk'", "d" * 3000), ("", "")):
            vdi = self.agent.create(8 * MiB, "first", "old words")
            record = self.xapi.vdis[vdi]
            record["name_label"], record["name_description"] = label, description
            for _ in range(2):
                self.agent.call("vdi_update", vdi=vdi)
            del self.xapi.vdis[vdi]
            self.agent.scan()
            ((found, again),) = self.xapi.of(self.agent.sr_ref).items()
            self.assertEqual(again["uuid"], record["uuid"])
            self.assertEqual((again["name_label"], again["name_description"]), (label, description))
            self.agent.delete(found)

    def test_snapshots_come_back_with_their_disk_and_time_after_the_sr_was_forgotten(self):
        self.an_sr()
        for sm_config in ({"type": "raw"}, {"type": "vhd"}, {"image-format": "qcow2"}):
            disk = self.agent.create(8 * MiB, "web", sm_config=sm_config)
            before = time.time()
            snapshot = self.agent.copy("vdi_snapshot", disk)
            clone = self.agent.copy("vdi_clone", snapshot)
            names = {self.xapi.vdis[one]["uuid"]: what for one, what in ((disk, "disk"), (snapshot, "snapshot"), (clone, "clone"))}
            # What xapi says of a snapshot that it knows is its own.
            record = self.xapi.vdis[snapshot]
            record.update(is_a_snapshot=True, snapshot_of=clone, snapshot_time="20200101T00:00:00Z")
            self.agent.scan()
            self.assertEqual((record["snapshot_of"], record["snapshot_time"]), (clone, "20200101T00:00:00Z"))
            for known in (False, True):
                for one in list(self.xapi.of(self.agent.sr_ref)):
                    if not known or self.xapi.vdis[one]["uuid"] == record["uuid"]:
                        del self.xapi.vdis[one]
                self.agent.scan()
                found = {names[v["uuid"]]: (r, v) for r, v in self.xapi.vdis.items() if v["uuid"] in names}
                of_disk, of_clone, (_, again) = found["disk"], found["clone"], found["snapshot"]
                self.assertEqual((again["is_a_snapshot"], again["snapshot_of"]), (True, of_disk[0]))
                at = calendar.timegm(time.strptime(str(again["snapshot_time"]), "%Y%m%dT%H:%M:%SZ"))
                self.assertLess(abs(at - before), 60)
                for _, other in (of_disk, of_clone):
                    self.assertEqual((other["is_a_snapshot"], other["snapshot_of"]), (False, "OpaqueRef:NULL"))
            self.agent.delete(of_disk[0])
            # Its disk is gone: it is a snapshot all the same.
            del self.xapi.vdis[found["snapshot"][0]]
            self.agent.scan()
            found = {v["uuid"]: (r, v) for r, v in self.xapi.vdis.items()}
            again = found[record["uuid"]][1]
            self.assertEqual((again["is_a_snapshot"], again["snapshot_of"]), (True, "OpaqueRef:NULL"))
            for one in (record["uuid"], of_clone[1]["uuid"]):
                self.agent.delete(found[one][0])

    def test_a_name_given_at_creation_comes_back_too(self):
        self.an_sr()
        for sm_config in ({"type": "raw"}, {"type": "vhd"}, {"image-format": "qcow2"}):
            vdi = self.agent.create(8 * MiB, "web <&> 'disk'", "w" * 3000, sm_config=sm_config)
            record = self.xapi.vdis.pop(vdi)
            self.agent.scan()
            ((found, again),) = self.xapi.of(self.agent.sr_ref).items()
            self.assertEqual(again["uuid"], record["uuid"])
            self.assertEqual((again["name_label"], again["name_description"]), ("web <&> 'disk'", "w" * 3000))
            self.agent.delete(found)

    def test_a_name_that_no_sr_holds_is_left_to_xapi(self):
        self.an_sr()
        vdi = self.agent.create(8 * MiB, "l" * 5000, "d" * 70000)
        self.xapi.vdis[vdi]["name_description"] = "d" * (2 << 20)
        self.agent.call("vdi_update", vdi=vdi)
        self.agent.scan()
        self.assertEqual(self.xapi.vdis[vdi]["name_label"], "l" * 5000)
        self.agent.delete(vdi)

    def test_the_figures_of_the_sr_follow(self):
        """By what a call changes, not by a look at every disk; and nothing is lost between two calls."""
        allocation = lambda: int(self.xapi.srs[self.agent.sr_ref]["virtual_allocation"])
        self.agent.create_sr()
        self.agent.attach_sr()
        vdi = self.agent.create(10 * MiB, sm_config={"type": "vhd"})
        self.agent.resize(vdi, 20 * MiB)
        self.assertEqual(allocation(), 20 * MiB)
        snapshot, clone = self.agent.copy("vdi_snapshot", vdi), self.agent.copy("vdi_clone", vdi)
        self.assertEqual(allocation(), 60 * MiB)
        self.agent.delete(snapshot)
        self.assertEqual(allocation(), 40 * MiB)
        made = []
        workers = [threading.Thread(target=lambda: made.extend(self.agent.create(MiB) for _ in range(6))) for _ in range(6)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        self.assertEqual(len(made), 36)
        self.assertEqual(allocation(), 76 * MiB)
        self.agent.delete(made.pop())
        self.assertEqual(allocation(), 75 * MiB)
        os.unlink(self.path(made[0]))
        with self.assertRaises(Fault):
            self.agent.resize(made[0], 2 * MiB)
        # Deleted already: nothing is taken off.
        self.agent.call("vdi_delete", vdi=made[0])
        self.assertEqual(allocation(), 75 * MiB)
        self.agent.scan()
        self.assertEqual(allocation(), 74 * MiB)
        self.xapi.srs[self.agent.sr_ref]["virtual_allocation"] = "-1"
        self.agent.resize(clone, 30 * MiB)
        self.assertEqual(allocation(), 84 * MiB)
        name = self.plant(1, 5 * MiB)[0]
        self.agent.call("vdi_introduce", vdi_location=name, new_uuid=name, vdi_uuid=name, vdi_sm_config={})
        self.assertEqual(allocation(), 89 * MiB)
        for child in (vdi, clone):
            os.unlink(self.path(child, "vhd"))
        self.agent.call("sr_update")
        before = allocation()
        for base in [r for r, v in self.xapi.vdis.items() if not v["managed"]][::-1]:
            self.agent.call("vdi_delete", vdi=base)
        self.assertEqual(allocation(), before)

    def test_a_disk_made_during_sr_update_is_counted_once(self):
        self.an_sr()
        self.agent.create(MiB)
        reached, released = threading.Event(), threading.Event()

        def hold(method, number):
            if method == "SR.get_record" and number == 1:
                reached.set()
                self.xapi.lock.release()
                released.wait(10)
                self.xapi.lock.acquire()

        self.xapi.counts.clear()
        self.xapi.behaviour = hold
        workers = [threading.Thread(target=self.agent.call, args=["sr_update"]),
                   threading.Thread(target=self.agent.create, args=[10 * MiB])]
        workers[0].start()
        self.assertTrue(reached.wait(10))
        workers[1].start()
        workers[1].join(0.3)
        released.set()
        for worker in workers:
            worker.join()
        self.agent.create(100 * MiB)
        self.assertEqual(self.xapi.srs[self.agent.sr_ref]["virtual_allocation"], str(111 * MiB))

    def test_one_connection_serves_a_command(self):
        self.an_sr()
        self.xapi.connections = 0
        self.agent.create(MiB)
        self.assertEqual(self.xapi.connections, 1)

    def test_what_is_not_attached_is_unavailable(self):
        self.agent.create_sr()
        for command, args in (("sr_scan", []), ("sr_update", [])):
            self.fails(47, self.agent.call, command, *args)
        self.fails(47, self.agent.create, MiB)
        self.assertEqual(self.xapi.calls(), [])

    def test_only_the_master_changes_disks(self):
        self.an_sr()
        vdi = self.agent.create(MiB)
        self.agent.device_config["SRmaster"] = "false"
        before = checksum(self.location)
        self.fails(58, self.agent.create, MiB)
        self.fails(58, self.agent.call, "sr_scan")
        self.fails(58, self.agent.delete, vdi)
        self.fails(58, self.agent.resize, vdi, 2 * MiB)
        self.fails(58, self.agent.copy, "vdi_clone", vdi)
        self.assertEqual(checksum(self.location), before)

    def test_a_disk_that_can_not_be(self):
        self.an_sr()
        before = checksum(self.location)
        self.fails(66, self.agent.create, MiB, sm_config={"type": "nonsense"})
        for size in ("0", "-1", "1e9", "", "99999999999999999999999", "18446744073709551615", "x" * 1000):
            self.fails(79, self.agent.create, size)
        self.fails(447, self.agent.create, MiB, label="a\u0080b")
        self.fails(447, self.agent.create, MiB, description="\ufdd0")
        self.assertEqual(checksum(self.location), before)
        self.assertEqual(self.xapi.calls(), [])

    def test_encryption_is_neither_claimed_nor_ignored(self):
        self.an_sr()
        before = checksum(self.location)
        why = self.fails(78, self.agent.create, MiB, sm_config={"type": "vhd", "key_hash": "a" * 64})
        self.assertIn("key_hash", why)
        self.assertEqual(checksum(self.location), before)
        self.assertEqual(self.xapi.calls(), [])
        # A record of an encrypted disk, or of one that an earlier release made for such a request.
        vdi = self.agent.create(2 * MiB, sm_config={"type": "vhd"})
        sm_config = self.xapi.vdis[vdi]["sm_config"]
        sm_config["key_hash"] = "a" * 64
        before, records = checksum(self.location), len(self.xapi.vdis)
        for code, command, args in ((46, "vdi_activate", ["true"]), (46, "vdi_activate", ["false"]),
                                    (82, "vdi_snapshot", []), (81, "vdi_clone", []), (202, "vdi_generate_config", [])):
            why = self.fails(code, self.agent.call, command, *args, vdi=vdi, driver_params={})
            self.assertIn("encrypted", why, command)
        self.assertNotIn(f"host_{self.xapi.host_ref}", sm_config)
        self.assertEqual((checksum(self.location), len(self.xapi.vdis)), (before, records))
        self.agent.scan()
        self.assertEqual(sm_config["key_hash"], "a" * 64)
        del sm_config["key_hash"]
        self.agent.delete(self.agent.copy("vdi_clone", vdi))
        sm_config["key_hash"] = "a" * 64
        self.agent.delete(vdi)

    def test_a_directory_in_use_is_no_place_for_an_sr(self):
        os.mkdir(self.location)
        with open(os.path.join(self.location, "letter.txt"), "w", encoding="ascii") as file:
            file.write("dear")
        before = checksum(self.location)
        self.assertIn("not empty", self.fails(42, self.agent.create_sr))
        self.assertEqual(checksum(self.location), before)
        self.agent.device_config["location"] = "relative"
        self.fails(91, self.agent.create_sr)
        for location in ("", None):
            self.agent.device_config["location"] = location
            if location is None:
                del self.agent.device_config["location"]
            # Clients compare it as a whole.
            self.assertEqual(self.fails(94, self.agent.create_sr), "The request is missing the location parameter")

    def test_a_directory_below_one_that_is_missing_is_no_place_either(self):
        self.agent.device_config["location"] = os.path.join(self.scratch, "missing", "sr")
        self.fails(61, self.agent.create_sr)

    def test_probe_lists_srs(self):
        self.an_sr()
        members = self.agent.members("sr_probe", sr_sm_config={})
        del members["sr_ref"], members["sr_uuid"]
        document = self.driver.call("sr_probe", members)
        self.assertIn(f"<UUID>{self.agent.sr_uuid}</UUID>", document)
        self.assertEqual(xmlrpc.client.loads(self.driver.raw(request("sr_probe", members)))[0][0], document)


class Scan(Case):
    def test_an_unchanged_sr_of_a_thousand_disks_costs_one_reading(self):
        self.an_sr()
        self.plant(1000)
        self.agent.scan()
        self.assertEqual(len(self.xapi.of(self.agent.sr_ref)), 1000)
        self.xapi.calls()
        start = time.monotonic()
        self.agent.call("sr_scan")
        took = time.monotonic() - start
        self.assertEqual(self.xapi.methods(), ["VDI.get_all_records_where"])
        self.agent.call("sr_update")
        self.assertEqual(self.telling(), ["SR.get_record"])
        print(f"sr_scan of 1,000 disks: {took * 1000:.0f} ms", end=" ", flush=True)

    def test_new_gone_and_changed(self):
        self.an_sr()
        stays, goes, grows = (self.agent.create(MiB) for _ in range(3))
        self.xapi.vdis[grows]["sm_config"].update({"host_OpaqueRef:x": "RO", "paused": "true", "vhd-blocks": "x",
                                                   "read-caching-enabled-on-y": "true"})
        self.xapi.vdis[grows]["sm_config"]["type"] = "vhd"
        os.unlink(self.path(goes))
        os.truncate(self.path(grows), 3 * MiB)
        (appears,) = self.plant()
        self.xapi.calls()
        self.agent.call("sr_scan")
        calls = self.xapi.methods()
        self.assertEqual(calls[0], "VDI.get_all_records_where")
        self.assertEqual(sorted(calls[1:5]), ["VDI.add_to_sm_config", "VDI.db_introduce", "VDI.remove_from_sm_config",
                                              "VDI.set_virtual_size"])
        self.assertEqual(calls[5], "VDI.db_forget")
        self.assertEqual(calls[6], "SR.get_record")
        records = self.xapi.of(self.agent.sr_ref)
        self.assertNotIn(goes, records)
        self.assertIn(stays, records)
        self.assertEqual(records[grows]["virtual_size"], str(3 * MiB))
        self.assertEqual(records[grows]["sm_config"], {
            "host_OpaqueRef:x": "RO", "paused": "true", "vhd-blocks": "x", "read-caching-enabled-on-y": "true",
            "image-format": "raw", "type": "raw"})
        self.assertIn(appears, {v["uuid"] for v in records.values()})
        self.xapi.calls()
        self.agent.scan()
        self.assertEqual(self.telling(), ["VDI.get_all_records_where", "SR.get_record"])

    def test_the_record_of_an_image_that_cannot_be_read_stays_as_it_is(self):
        self.an_sr()
        broken, grows = self.agent.create(4 * MiB, sm_config={"type": "vhd"}), self.agent.create(MiB)
        with open(self.path(broken, "vhd"), "r+b") as image:
            image.truncate(100)
        os.truncate(self.path(grows), 3 * MiB)
        (unknown,) = self.plant(extension="vhd")
        record = {**self.xapi.vdis[broken], "sm_config": dict(self.xapi.vdis[broken]["sm_config"])}
        self.logged()
        self.agent.scan()
        self.assertEqual(self.xapi.vdis[broken], record)
        self.assertEqual(self.xapi.vdis[grows]["virtual_size"], str(3 * MiB))
        self.assertNotIn(unknown, {v["uuid"] for v in self.xapi.vdis.values()})
        log = "\n".join(self.logged())
        self.assertRegex(log, f"VDI {record['uuid']} on SR .*: broken: .*; its record stays as it is")
        self.assertRegex(log, f"VDI {unknown} on SR .*: broken: .*; xapi is not told of it")
        # A damaged neighbour stops nothing, and goes by its name.
        self.agent.delete(grows)
        self.agent.delete(broken)
        self.assertFalse(os.path.exists(os.path.join(self.location, f"{record['uuid']}.vhd")))

    def test_nothing_is_forgotten_when_the_directory_is_not_the_sr(self):
        self.an_sr()
        self.agent.create(MiB)
        records = dict(self.xapi.vdis)
        os.rename(self.location, self.location + ".away")
        self.fails(47, self.agent.call, "sr_scan")
        os.mkdir(self.location)
        self.fails(47, self.agent.call, "sr_scan")
        self.assertEqual(self.xapi.vdis, records)
        # After a reboot the mount below is missing: an empty directory is not taken for an empty SR.
        self.agent.call("sr_detach")
        text = self.fails(47, self.agent.attach_sr)
        self.assertIn(self.location, text)
        self.assertEqual(self.xapi.vdis, records)
        self.assertEqual(os.listdir(self.location), [])

    def test_disks_made_during_scans_are_neither_lost_nor_doubled(self):
        self.an_sr()
        errors = []

        def work(what, times):
            for _ in range(times):
                try:
                    what()
                except Exception as error:  # pylint: disable=broad-except
                    errors.append(error)

        workers = [threading.Thread(target=work, args=(lambda: self.agent.create(MiB), 10)) for _ in range(4)]
        workers += [threading.Thread(target=work, args=(lambda: self.agent.call("sr_scan"), 15)) for _ in range(2)]
        workers += [threading.Thread(target=work, args=(lambda: self.agent.delete(self.agent.create(MiB)), 8))]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        self.assertEqual(errors, [])
        self.assertEqual(sorted(v["uuid"] for v in self.xapi.vdis.values()), self.raws())
        self.assertEqual(len(self.raws()), 40)
        self.assertTrue(all(v["name_label"] == "a disk" for v in self.xapi.vdis.values()))


class Existing(Case):
    """SRs that the Python drivers wrote."""

    def test_raw_disks_are_served_as_they_are(self):
        names = self.plant(3)
        with open(os.path.join(self.location, "filelog.txt"), "w", encoding="ascii") as file:
            file.write("log")
        inodes = {n: os.stat(os.path.join(self.location, f"{n}.raw")).st_ino for n in names}
        self.agent.attach_sr()
        self.assertEqual({v["uuid"] for v in self.xapi.vdis.values()}, set(names))
        self.assertEqual(inodes, {n: os.stat(os.path.join(self.location, f"{n}.raw")).st_ino for n in names})

    def test_an_sr_without_disks_is_taken_over_if_xapi_knows_of_none(self):
        os.mkdir(self.location)
        self.agent.attach_sr()
        self.agent.create(MiB)

    def test_a_missing_directory_is_never_made(self):
        self.fails(47, self.agent.attach_sr)
        self.assertFalse(os.path.exists(self.location))

    def test_an_image_that_can_not_be_read_keeps_its_record_and_every_other_disk_is_told(self):
        self.an_sr()
        kept, disk = self.agent.create(MiB), self.agent.create(4 * MiB, sm_config={"type": "vhd"})
        gone = self.agent.create(MiB)
        os.unlink(self.path(gone))
        (stranger,) = self.plant(extension="vhd")
        path = self.path(disk, "vhd")
        with open(path, "wb") as image:
            image.write(b"no image")
        records = {reference: dict(record) for reference, record in self.xapi.vdis.items()}
        self.agent.call("sr_scan")
        self.assertNotIn(gone, self.xapi.vdis)
        self.assertEqual({kept: records[kept], disk: records[disk]}, dict(self.xapi.vdis))
        self.assertNotIn(stranger, {record["uuid"] for record in self.xapi.vdis.values()})
        self.agent.call("sr_update")
        # What cannot be read cannot be used; it can be deleted.
        self.fails(82, self.agent.copy, "vdi_snapshot", disk)
        self.agent.delete(disk)
        self.assertFalse(os.path.exists(path))


class Trees(Case):
    """VHD disks, which xapi is shown as the Python drivers show them."""

    def vhds(self):
        return sorted(n[:-4] for n in os.listdir(self.location) if n.endswith(".vhd"))

    def test_snapshots_and_clones_have_a_base(self):
        self.an_sr()
        disk = self.agent.create(5 * MiB, sm_config={"type": "vhd"})
        record = self.xapi.vdis[disk]
        self.assertEqual(record["virtual_size"], str(6 * MiB))
        self.assertEqual(record["sm_config"], {"image-format": "vhd"})
        record["sm_config"]["host_OpaqueRef:x"] = "RO"
        with open(self.path(disk, "vhd"), "r+b"):
            pass
        snapshot = self.agent.copy("vdi_snapshot", disk)
        (base,) = (v for r, v in self.xapi.vdis.items() if r not in (disk, snapshot))
        self.assertEqual((base["name_label"], base["managed"], base["read_only"]), ("base copy", False, True))
        self.assertEqual(base["sm_config"], {"image-format": "vhd"})
        self.assertEqual(record["sm_config"], {"host_OpaqueRef:x": "RO", "image-format": "vhd",
                                               "vhd-parent": base["uuid"]})
        self.assertEqual(self.xapi.vdis[snapshot]["sm_config"], {"image-format": "vhd", "vhd-parent": base["uuid"]})
        clone = self.agent.copy("vdi_clone", disk)
        self.assertEqual(sorted(v["uuid"] for v in self.xapi.vdis.values()), self.vhds())
        self.xapi.calls()
        self.agent.call("sr_scan")
        self.assertEqual(self.xapi.methods(), ["VDI.get_all_records_where"])
        self.fails(39, self.agent.call, "sr_delete")
        for one in (disk, snapshot, clone):
            self.agent.delete(one)
        self.agent.scan()
        self.assertEqual((self.xapi.vdis, self.vhds()), ({}, []))

    def test_the_parent_that_another_call_told_meanwhile_is_replaced(self):
        self.an_sr()
        disk = self.agent.create(5 * MiB, sm_config={"type": "vhd"})

        def behaviour(method, number):
            # The third is the base's; the record of the disk was read before.
            if (method, number) == ("VDI.db_introduce", 3):
                self.xapi.vdis[disk]["sm_config"]["vhd-parent"] = "another"

        self.xapi.behaviour = behaviour
        snapshot = self.agent.copy("vdi_snapshot", disk)
        (base,) = (v for r, v in self.xapi.vdis.items() if r not in (disk, snapshot))
        self.assertEqual(self.xapi.vdis[disk]["sm_config"]["vhd-parent"], base["uuid"])

    @unittest.skipUnless(ROOT, "block devices want root")
    def test_a_disk_in_use_is_snapshotted_and_grows(self):
        self.an_sr()
        disk = self.agent.create(4 * MiB, sm_config={})
        self.assertTrue(os.path.exists(self.path(disk, "vhd")))
        link = self.agent.call("vdi_attach", "true", vdi=disk)["params"]
        self.agent.call("vdi_activate", "true", vdi=disk)
        self.addCleanup(self.agent.call, "vdi_deactivate", vdi=disk)
        with open(link, "r+b") as device:
            device.write(b"before")
            os.fsync(device.fileno())
        snapshot = self.agent.copy("vdi_snapshot", disk)
        with open(link, "r+b") as device:
            device.write(b"after!")
            os.fsync(device.fileno())
        self.fails(24, self.agent.copy, "vdi_clone", disk)
        self.agent.resize(disk, 6 * MiB)
        with open(link, "rb") as device:
            self.assertEqual(device.read(6), b"after!")
            self.assertEqual(device.seek(0, os.SEEK_END), 6 * MiB)
        old = self.agent.call("vdi_attach", "false", vdi=snapshot)["params"]
        self.agent.call("vdi_activate", "false", vdi=snapshot)
        with open(old, "rb") as device:
            self.assertEqual(device.read(6), b"before")
        self.agent.call("vdi_deactivate", vdi=snapshot)
        self.fails(24, self.agent.call, "vdi_delete", vdi=disk)

    def test_what_xapi_did_not_hear_of_a_tree_the_scan_tells(self):
        self.an_sr()
        disk = self.agent.create(5 * MiB, sm_config={"type": "vhd"})
        self.xapi.behaviour = lambda method, number: "close" if (method, number) == ("VDI.db_introduce", 3) else None
        snapshot = self.agent.copy("vdi_snapshot", disk)
        self.assertNotIn("vhd-parent", self.xapi.vdis[disk]["sm_config"])
        self.agent.scan()
        (base,) = (v for r, v in self.xapi.vdis.items() if r not in (disk, snapshot))
        self.assertEqual((base["name_label"], base["managed"]), ("base copy", False))
        self.assertEqual(self.xapi.vdis[disk]["sm_config"]["vhd-parent"], base["uuid"])

    def test_a_vhd_disk_only_grows(self):
        self.an_sr()
        disk = self.agent.create(4 * MiB, sm_config={"type": "vhd"})
        self.agent.resize(disk, 10 * MiB)
        self.assertEqual(self.xapi.vdis[disk]["virtual_size"], str(10 * MiB))
        self.fails(79, self.agent.resize, disk, 4 * MiB)
        self.fails(79, self.agent.create, 3 << 40, sm_config={"type": "vhd"})

    def test_size_and_device_config_choose_the_format(self):
        self.an_sr()

        def made(size, listed=None, **sm_config):
            self.agent.device_config.pop("preferred-image-formats", None)
            if listed is not None:
                self.agent.device_config["preferred-image-formats"] = listed
            keys = {key.replace("_", "-"): value for key, value in sm_config.items()}
            disk = self.agent.create(size, sm_config=keys)
            made_as = self.xapi.vdis[disk]["sm_config"]["image-format"]
            self.assertTrue(os.path.exists(self.path(disk, made_as)))
            return made_as

        self.assertEqual(made(2040 << 30), "vhd")
        self.assertEqual(made((2040 << 30) + 1), "qcow2")
        self.assertEqual(made(MiB, "qcow2, vhd"), "qcow2")
        self.assertEqual(made(MiB, "nonsense"), "vhd")
        self.assertEqual(made(MiB, "raw"), "raw")
        self.assertEqual(made(MiB, "raw", image_format="qcow2", type="vhd"), "qcow2")
        self.assertEqual(made(MiB, "qcow2", type="vhd"), "vhd")
        largest = 17_589_500_641_280
        self.assertEqual(made(largest), "qcow2")
        self.assertIn("between 1 MB and 16774655 MB", self.fails(79, made, largest + 1))
        self.assertIn("between 1 MB and 2088960 MB", self.fails(79, made, 3 << 40, "vhd"))
        disk = self.agent.create(4 * MiB, sm_config={"image-format": "qcow2"})
        self.fails(79, self.agent.resize, disk, largest + 1)
        self.assertEqual(self.xapi.vdis[disk]["virtual_size"], str(4 * MiB))

    def test_records_of_every_format_name_format_and_parent(self):
        self.an_sr()
        for image in ("vhd", "qcow2"):
            disk = self.agent.create(4 * MiB, sm_config={"image-format": image})
            snapshot = self.agent.copy("vdi_snapshot", disk)
            records = self.xapi.vdis
            (base,) = (v for r, v in records.items() if v["name_label"] == "base copy"
                       and v["sm_config"]["image-format"] == image)
            wanted = {"image-format": image, "vhd-parent": base["uuid"]}
            self.assertEqual((records[disk]["sm_config"], records[snapshot]["sm_config"]), (wanted, wanted))
            self.assertEqual(base["sm_config"], {"image-format": image})
        # What an earlier release wrote, and what another driver left behind.
        records[disk]["sm_config"].update({"type": "qcow2", "vhd-parent": "x", "other": "kept"})
        del records[disk]["sm_config"]["image-format"]
        self.agent.scan()
        self.assertEqual(records[disk]["sm_config"], {**wanted, "other": "kept"})
        self.xapi.calls()
        self.agent.scan()
        self.assertEqual(self.telling(), ["VDI.get_all_records_where", "SR.get_record"])

    def test_a_base_is_refused_with_the_codes_of_the_python_drivers(self):
        self.an_sr()
        disk = self.agent.create(4 * MiB, sm_config={"type": "vhd"})
        self.agent.copy("vdi_snapshot", disk)
        (base,) = (r for r, v in self.xapi.vdis.items() if v["name_label"] == "base copy")
        before = checksum(self.location)
        self.assertIn("hidden base", self.fails(81, self.agent.copy, "vdi_snapshot", base))
        self.fails(81, self.agent.copy, "vdi_clone", base)
        self.fails(46, self.agent.resize, base, 8 * MiB)
        # xapi has a record of it already.
        name = self.xapi.vdis[disk]["uuid"]
        self.fails(46, self.agent.call, "vdi_introduce", vdi_location=name, vdi_sm_config={}, new_uuid=name)
        self.assertEqual(checksum(self.location), before)

    def test_a_chain_ends_at_thirty(self):
        self.an_sr()
        disk = self.agent.create(2 * MiB, sm_config={"type": "vhd"})
        for n in range(1, 30):
            self.agent.copy("vdi_snapshot", disk)
            # An empty disk as large as its base would stay where it is in the tree.
            self.agent.resize(disk, (n + 1) * 2 * MiB)
        self.fails(109, self.agent.copy, "vdi_snapshot", disk)

    def test_a_template_has_any_number_of_clones(self):
        self.an_sr()
        template = self.agent.create(2 * MiB, sm_config={"type": "vhd"})
        for _ in range(40):
            self.agent.copy("vdi_clone", template)
        (base,) = (v["uuid"] for v in self.xapi.vdis.values() if v["name_label"] == "base copy")
        parents = [v["sm_config"].get("vhd-parent") for v in self.xapi.vdis.values()]
        self.assertEqual(parents.count(base), 41)


class AnUnwillingXapi(Case):
    WAYS = ("close", "half", "500", "garbage", "slow", "do and close", ["INTERNAL_ERROR", "no"], ["HANDLE_INVALID", "x"])

    def each_way(self):
        for how in self.WAYS:
            with self.subTest(how=how):
                yield how
                self.xapi.behaviour = lambda method, number: None

    def refuse(self, how, *methods):
        self.xapi.behaviour = lambda method, number: how if method in methods else None

    def test_a_disk_that_xapi_does_not_hear_of_is_not_made(self):
        self.an_sr()
        source = self.agent.create(MiB)
        for how in self.each_way():
            before = self.raws()
            self.refuse(how, "VDI.db_introduce")
            code = {True: 154, False: 78}[isinstance(how, str)]
            self.fails(code, self.agent.create, MiB)
            self.fails(code if code == 154 else 81, self.agent.copy, "vdi_clone", source)
            self.assertEqual(self.raws(), before)
            self.xapi.behaviour = lambda method, number: None
            self.agent.scan()
            self.assertEqual(sorted(v["uuid"] for v in self.xapi.vdis.values()), self.raws())

    def test_what_xapi_may_be_told_later_fails_nothing(self):
        self.an_sr()
        for how in self.each_way():
            self.refuse(how, "SR.set_virtual_allocation", "VDI.db_forget")
            vdi = self.agent.create(MiB)
            path = self.path(vdi)
            self.agent.delete(vdi)
            self.assertFalse(os.path.exists(path))

    def test_a_resize_that_xapi_does_not_hear_of_is_found_by_the_scan(self):
        self.an_sr()
        vdi, size = self.agent.create(MiB), 1
        for how in self.each_way():
            size += 1
            self.refuse(how, "VDI.set_virtual_size")
            with self.assertRaises(Fault) as raised:
                self.agent.resize(vdi, size * MiB)
            self.assertIn(raised.exception.code, (110, 154))
            self.xapi.behaviour = lambda method, number: None
            self.agent.scan()
            self.assertEqual(self.xapi.vdis[vdi]["virtual_size"], str(size * MiB))
            self.agent.resize(vdi, size * MiB)

    def test_a_scan_that_xapi_does_not_answer_forgets_nothing(self):
        self.an_sr()
        gone = self.agent.create(MiB)
        os.unlink(self.path(gone))
        for how in self.each_way():
            if how in ("do and close",):
                continue
            self.plant()
            self.refuse(how, "VDI.get_all_records_where", "VDI.db_introduce", "VDI.db_forget")
            self.xapi.calls()
            with self.assertRaises(Fault) as raised:
                self.agent.call("sr_scan")
            self.assertIn(raised.exception.code, (40, 154))
            self.assertNotIn("VDI.db_forget", self.xapi.methods())
            self.assertIn(gone, self.xapi.vdis)

    def test_a_session_that_is_no_more(self):
        self.an_sr()
        before = self.raws()
        self.xapi.session += "-new"
        members = self.agent.members("sr_scan", session_ref="OpaqueRef:old-secret")
        self.assertNotIn("old-secret", self.fails(40, self.driver.call, "sr_scan", members))
        self.assertEqual(self.raws(), before)

    def test_a_xapi_that_is_down(self):
        self.an_sr()
        vdi = self.agent.create(MiB)
        before = checksum(self.location)
        self.xapi.close()
        os.unlink(self.xapi.path)
        for command, args in (("sr_scan", []), ("sr_update", []), ("sr_attach", []), ("vdi_activate", ["true"]),
                              ("vdi_deactivate", []), ("vdi_update", [])):
            self.fails(154, self.agent.call, command, *args, vdi=vdi)
        self.fails(154, self.agent.create, MiB)
        self.assertEqual(checksum(self.location), before)
        # What needs no word of xapi works.
        self.agent.call("vdi_attach", "true", vdi=vdi)
        self.agent.call("vdi_detach", vdi=vdi)
        self.agent.call("sr_detach")

    def test_a_connection_that_was_closed_meanwhile_is_opened_again(self):
        self.an_sr()
        self.plant(3)
        # Answers, then closes without saying so.
        seen = []

        def close_second(method, number):
            seen.append(method)
            return "close" if method == "SR.get_record" and seen.count(method) == 1 else None

        self.xapi.behaviour = close_second
        self.agent.call("sr_scan")
        self.assertEqual(seen.count("SR.get_record"), 2)


class Hostile(Case):
    def commands(self):
        self.an_sr()
        vdi = self.agent.create(MiB)
        create = ["1048576", "l", "d", "", "false", "19700101T00:00:00Z", "", "false"]
        yield "sr_update", self.agent.members("sr_update")
        yield "sr_scan", self.agent.members("sr_scan")
        yield "sr_attach", self.agent.members("sr_attach")
        yield "vdi_create", self.agent.members("vdi_create", *create, vdi_type="user", vdi_sm_config={})
        yield "vdi_update", self.agent.members("vdi_update", vdi=vdi)
        yield "vdi_attach", self.agent.members("vdi_attach", "true", vdi=vdi)
        yield "vdi_detach", self.agent.members("vdi_detach", vdi=vdi)
        yield "vdi_resize", self.agent.members("vdi_resize", "2097152", vdi=vdi)
        yield "vdi_snapshot", self.agent.members("vdi_snapshot", vdi=vdi, driver_params={})
        yield "vdi_generate_config", self.agent.members("vdi_generate_config", vdi=vdi)
        yield "vdi_epoch_begin", self.agent.members("vdi_epoch_begin", vdi=vdi)
        yield "vdi_epoch_end", self.agent.members("vdi_epoch_end", vdi=vdi)
        yield "vdi_delete", self.agent.members("vdi_delete", vdi=vdi)
        yield "sr_detach", self.agent.members("sr_detach")

    def test_members_unknown_missing_and_of_a_wrong_type(self):
        for command, members in self.commands():
            for name in list(members):
                for broken in ([{k: v for k, v in members.items() if k != name}]
                               + [dict(members, **{name: bad}) for bad in ([["x"]], {"a": ["b"]}, "", "../../x")]):
                    with self.subTest(command=command, member=name, value=broken.get(name, "missing")):
                        before = self.raws()
                        try:
                            self.driver.document(request(command, broken))
                        except Fault as fault:
                            self.assertNotEqual(fault.code, 1200, fault.text)
                        if command in ("vdi_create", "vdi_snapshot", "vdi_delete"):
                            continue
                        self.assertEqual(self.raws(), before)
        for command, members in [("sr_create", self.agent.members("sr_create", "0"))]:
            self.agent.call("sr_detach")
            self.driver.document(request(command + "", dict(members, sr_uuid=str(uuid.uuid4()), something="else",
                                                            device_config={"location": self.location + "2",
                                                                           "unknown": "key", "SRmaster": "true"})))

    def test_what_is_no_request(self):
        info = {"host_ref": "h", "command": "sr_get_driver_info", "args": [], "device_config": {}}
        good = request("sr_get_driver_info", info)
        laughs = "<!DOCTYPE l [<!ENTITY a 'lol'>" + "".join(
            f"<!ENTITY {chr(98 + i)} '{('&' + chr(97 + i) + ';') * 10}'>" for i in range(9)) + "]>"
        for bad in ("<", "<methodCall/>", good[:-1], good[:100], good + good, laughs + good.replace("h<", "&j;<"),
                    "<a>" * 30000, "<methodCall>" * 9000, good.replace("<value>", "<value a='b'>"),
                    request("sr_fly", info), request("", info), "<methodResponse/>", "  <html></html>",
                    good.replace("<struct>", "<struct><member><name>x</name></member>"),
                    "<methodCall><methodName>sr_scan</methodName></methodCall>",
                    f"<methodCall><methodName>sr_scan</methodName><params><param>{value('x')}</param></params></methodCall>",
                    request("sr_scan", {k: v for k, v in info.items() if k != "device_config"}),
                    request("sr_scan", dict(info, device_config="x")),
                    request("sr_scan", dict(info, device_config={"location": ["x"]})),
                    good.replace("sr_get", "sr_g\udcff")):
            with self.subTest(bad[:60]):
                self.fails(143, self.driver.document, bad)
        for args in ([good, good], [good, "x"]):
            answer = xmlrpc.client.loads
            with self.assertRaises(xmlrpc.client.Fault) as raised:
                answer(self.driver.raw(*args))
            self.assertEqual(raised.exception.faultCode, 143)
        self.driver.document(" \n" + good)

    def test_other_words_are_the_sr_api(self):
        for args in (["sr_scan"], ["--help"], [""], ["sr_get_driver_info"]):
            done = subprocess.run([self.driver.executable, *args], capture_output=True, check=False)
            self.assertNotIn(b"methodResponse", done.stdout)

    def test_the_log_and_the_faults_hold_no_secret(self):
        secrets = {"password": "s3cret-one", "cifspassword": "s3cret-two", "chappassword": "s3cret-three",
                   "incoming_chappassword": "s3cret-four", "password_secret": "s3cret-five",
                   "chapPassword": "s3cret-six", "PASSWORD": "s3cret-seven"}
        self.agent.device_config.update(secrets, username="user%s3cret-eight", options="vers=3.0,PASS=s3cret-nine")
        self.an_sr()
        self.agent.create(MiB)
        self.agent.device_config["location"] = "relative-s3cret-one"
        text = self.fails(91, self.agent.call, "sr_scan")
        self.assertNotIn("s3cret", text)
        lines = "\n".join(self.logged())
        self.assertIn("vdi_create", lines)
        self.assertRegex(lines, r"<150>SM: \[\d+\] ")
        self.assertNotIn(self.xapi.session, lines)
        self.assertEqual(lines.count("s3cret"), lines.count("relative-s3cret-one"))

    def test_a_short_secret_leaves_other_words_as_they_are(self):
        self.agent.device_config["password"] = "x"
        self.agent.device_config["location"] = "exactly/x"
        text = self.fails(91, self.agent.call, "sr_scan")
        self.assertIn("exactly/***", text)
        self.assertIn("expected an absolute path", text)


@unittest.skipUnless(ROOT, "loop devices want root")
class Datapath(Case):
    def test_attach_names_the_device_and_activate_makes_it(self):
        self.an_sr()
        vdi = self.agent.create(4 * MiB)
        name, record = self.xapi.vdis[vdi]["uuid"], self.xapi.vdis[vdi]
        answer = self.agent.call("vdi_attach", "true", vdi=vdi)
        self.assertEqual(answer, self.agent.call("vdi_attach", "true", vdi=vdi))
        link = os.path.join(self.host, "sm", "backend", self.agent.sr_uuid, name)
        self.assertEqual(answer["params"], link)
        self.assertEqual(answer["params_nbd"], "")
        self.assertIs(answer["o_direct"], True)
        self.assertEqual(answer["xenstore_data"]["vdi-uuid"], name)
        self.assertFalse(os.path.lexists(link))
        self.xapi.calls()
        self.agent.call("vdi_activate", "true", vdi=vdi)
        self.assertEqual(self.xapi.methods(), ["VDI.get_sm_config", "VDI.add_to_sm_config", "VDI.get_sm_config"])
        self.assertEqual(record["sm_config"][f"host_{self.xapi.host_ref}"], "RW")
        device = os.path.realpath(link)
        self.agent.call("vdi_activate", "true", vdi=vdi)
        self.assertEqual(os.path.realpath(link), device)
        with open(link, "r+b") as disk:
            disk.write(b"data")
            disk.flush()
            os.fsync(disk.fileno())
        self.fails(24, self.agent.call, "vdi_delete", vdi=vdi)
        self.fails(16, self.agent.call, "sr_detach")
        self.agent.call("vdi_deactivate", vdi=vdi)
        self.assertFalse(os.path.lexists(link))
        self.assertNotIn(f"host_{self.xapi.host_ref}", record["sm_config"])
        self.agent.call("vdi_deactivate", vdi=vdi)
        self.agent.call("vdi_detach", vdi=vdi)
        self.agent.call("vdi_detach", vdi=vdi)
        with open(self.path(vdi), "rb") as file:
            self.assertEqual(file.read(4), b"data")
        self.agent.delete(vdi)
        self.fails(46, self.agent.call, "vdi_attach", "true", vdi_ref="OpaqueRef:x", vdi_location=name, vdi_uuid=name)

    def test_a_paused_disk_is_waited_for(self):
        self.an_sr()
        vdi = self.agent.create(MiB)
        self.xapi.vdis[vdi]["sm_config"]["paused"] = "true"
        threading.Timer(1.5, lambda: self.xapi.vdis[vdi]["sm_config"].pop("paused")).start()
        start = time.monotonic()
        self.agent.call("vdi_activate", "true", vdi=vdi)
        self.assertGreater(time.monotonic() - start, 1)
        self.agent.call("vdi_deactivate", vdi=vdi)

    def test_of_two_hosts_one_writes(self):
        self.an_sr()
        vdi = self.agent.create(MiB)
        sm_config = self.xapi.vdis[vdi]["sm_config"]
        self.xapi.hosts["OpaqueRef:host-2"] = {"uuid": str(uuid.uuid4()), "name_label": "two", "other_config": {}}
        sm_config["host_OpaqueRef:host-2"] = "RW"
        self.assertIn("host two (RW)", self.fails(46, self.agent.call, "vdi_activate", "true", vdi=vdi))
        self.fails(46, self.agent.call, "vdi_activate", "false", vdi=vdi)
        self.assertNotIn(f"host_{self.xapi.host_ref}", sm_config)
        sm_config["host_OpaqueRef:host-2"] = "RO"
        self.fails(46, self.agent.call, "vdi_activate", "true", vdi=vdi)
        self.agent.call("vdi_activate", "false", vdi=vdi)
        self.agent.call("vdi_deactivate", vdi=vdi)
        # It has left the pool.
        del self.xapi.hosts["OpaqueRef:host-2"]
        sm_config["host_OpaqueRef:host-2"] = "RW"
        self.agent.call("vdi_activate", "true", vdi=vdi)
        self.assertNotIn("host_OpaqueRef:host-2", sm_config)
        self.agent.call("vdi_deactivate", vdi=vdi)

    def test_sr_attach_clears_what_a_reboot_left_and_not_what_lives(self):
        self.an_sr()
        lives, dead = self.agent.create(MiB), self.agent.create(MiB)
        key = f"host_{self.xapi.host_ref}"
        self.agent.call("vdi_activate", "true", vdi=lives)
        self.xapi.vdis[dead]["sm_config"].update({key: "RW", "paused": "true", "host_OpaqueRef:other": "RO"})
        self.agent.attach_sr()
        self.assertEqual(self.xapi.vdis[dead]["sm_config"], {"image-format": "raw", "type": "raw", "host_OpaqueRef:other": "RO"})
        self.assertEqual(self.xapi.vdis[lives]["sm_config"][key], "RW")
        self.assertIn("dirty", self.xapi.srs[self.agent.sr_ref]["other_config"])
        self.agent.call("vdi_deactivate", vdi=lives)

    def test_an_activation_that_fails_leaves_no_claim(self):
        self.an_sr()
        vdi = self.agent.create(MiB)
        os.rename(self.path(vdi), self.path(vdi) + ".away")
        self.fails(46, self.agent.call, "vdi_activate", "true", vdi=vdi)
        self.assertEqual(self.xapi.vdis[vdi]["sm_config"], {"image-format": "raw", "type": "raw"})

    def test_a_disk_is_attached_without_xapi(self):
        self.an_sr()
        vdi = self.agent.create(MiB)
        config = self.agent.call("vdi_generate_config", vdi=vdi)
        self.agent.call("sr_detach")
        self.xapi.close()
        self.addCleanup(self.start_xapi)
        os.unlink(self.xapi.path)
        answer = self.driver.document(config)
        self.assertNotIn("params_nbd", answer)
        with open(answer["params"], "r+b") as disk:
            self.assertEqual(disk.seek(0, os.SEEK_END), MiB)
        self.assertEqual(self.driver.document(config), answer)
        detach = config.replace("vdi_attach_from_config", "vdi_detach_from_config")
        self.driver.document(detach)
        self.assertFalse(os.path.lexists(answer["params"]))


TAP_CTL = """#!/bin/sh
# A tap-ctl of version 4 that writes down what it is told; `fail` holds the command that is to fail.
echo "$*" >> @DIR@/told
[ "$1" != "$(cat @DIR@/fail 2>/dev/null)" ] || { echo "no $1 today" >&2; exit 5; }
case $1 in
allocate) echo @DIR@/tapdisk-7 ;;
spawn) echo @PID@ ;;
esac
"""


@unittest.skipUnless(ROOT, "block devices want root")
class Tapdisk(Case):
    """A host with blktap: guests get at their disks through a tapdisk only."""

    def setUp(self):
        super().setUp()
        path = os.path.join(self.scratch, "tap-ctl")
        with open(path, "w", encoding="ascii") as file:
            # A tapdisk that does not live is none; this process does.
            self.pid = os.getpid()
            file.write(TAP_CTL.replace("@DIR@", self.scratch).replace("@PID@", str(self.pid)))
        os.chmod(path, 0o755)
        self.driver.env["PATH"] = self.scratch + ":" + self.driver.env["PATH"]
        # The socket of the tapdisk that the double says it started.
        os.makedirs("/run/blktap-control", exist_ok=True)
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.bind(f"/run/blktap-control/nbd{self.pid}.7")
        self.addCleanup(os.unlink, f"/run/blktap-control/nbd{self.pid}.7")
        self.addCleanup(self.socket.close)
        self.an_sr()
        self.disk = self.agent.create(MiB)
        self.link = os.path.join(self.host, "blktap-control/nbd", self.agent.sr_uuid, self.xapi.vdis[self.disk]["uuid"])

    def told(self):
        path = os.path.join(self.scratch, "told")
        with open(path, encoding="ascii") as file:
            lines = file.read().splitlines()
        os.unlink(path)
        return [re.sub("/dev/loop[0-9]+", "LOOP", line) for line in lines]

    def loops(self):
        return subprocess.run(["losetup", "-j", self.path(self.disk)], capture_output=True, check=True).stdout

    def test_a_disk_in_use_has_a_tapdisk(self):
        answer = self.agent.call("vdi_attach", "true", vdi=self.disk)
        name = self.xapi.vdis[self.disk]["uuid"]
        self.assertEqual(answer["params_nbd"], f"nbd:unix:{self.link}:exportname={name}")
        self.assertNotIn("params", answer)
        for _ in range(2):
            self.agent.call("vdi_activate", "true", vdi=self.disk)
        self.assertEqual(os.readlink(self.link), f"/run/blktap-control/nbd{self.pid}.7")
        # A real tapdisk does not open a disk again that has grown, and stays paused.
        self.fails(24, self.agent.resize, self.disk, 2 * MiB)
        self.assertNotIn("VDI_RESIZE_ONLINE", Info.info(self)["capabilities"])
        self.agent.call("vdi_deactivate", vdi=self.disk)
        self.agent.call("vdi_deactivate", vdi=self.disk)
        self.agent.resize(self.disk, 2 * MiB)
        self.agent.call("vdi_detach", vdi=self.disk)
        self.assertEqual(self.told(), [
            "allocate", "spawn", f"attach -p {self.pid} -m 7", f"open -p {self.pid} -m 7 -a aio:LOOP", f"close -p {self.pid} -m 7 -t 120",
            f"detach -p {self.pid} -m 7", "free -m 7"])
        self.assertFalse(os.path.lexists(self.link))
        self.assertEqual(self.loops(), b"")
        self.agent.call("vdi_activate", "false", vdi=self.disk)
        self.assertIn(f"open -p {self.pid} -m 7 -a aio:LOOP -R", self.told())
        self.agent.call("vdi_deactivate", vdi=self.disk)

    def test_a_tapdisk_that_does_not_start_leaves_nothing(self):
        for command in ("allocate", "spawn", "attach", "open"):
            with self.subTest(command):
                with open(os.path.join(self.scratch, "fail"), "w", encoding="ascii") as file:
                    file.write(command)
                text = self.fails(46, self.agent.call, "vdi_activate", "true", vdi=self.disk)
                self.assertIn(f"no {command} today", text)
                self.assertEqual(self.told()[-1], "allocate" if command == "allocate" else "free -m 7")
                self.assertEqual(self.xapi.vdis[self.disk]["sm_config"], {"image-format": "raw", "type": "raw"})
                self.assertEqual(self.loops(), b"")
                self.assertFalse(os.path.lexists(self.link))


class ForPeople(Case):
    def sm(self, *words):
        env = dict(os.environ, XCP_SM_RUN_DIR=self.host)
        return subprocess.run([os.path.join(BIN, "sm"), *words], env=env, capture_output=True, text=True, check=False)

    def test_sr_list_has_the_srs_of_this_hosts_pbds(self):
        self.agent.create_sr()
        self.xapi.hosts["OpaqueRef:host-2"] = {"uuid": str(uuid.uuid4()), "name_label": "two", "other_config": {}}
        other = self.xapi.add_sr(str(uuid.uuid4()), "udev")
        elsewhere = self.xapi.add_sr(str(uuid.uuid4()))
        for sr, host, config in ((self.agent.sr_ref, self.xapi.host_ref, {"location": self.location}),
                                 (other, self.xapi.host_ref, {"password": "hunter2"}),
                                 (elsewhere, "OpaqueRef:host-2", {"location": "/elsewhere"})):
            self.xapi.pbds["OpaqueRef:pbd-" + str(len(self.xapi.pbds))] = {"SR": sr, "host": host, "device_config": config}
        self.xapi.srs[self.agent.sr_ref]["name_label"] = "local disks"
        done = self.sm("sr_list", "--from-xapi")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertIn(f'(sr (name . "local disks") (uuid . "{self.agent.sr_uuid}") (type . "file") (state . "available")',
                      done.stdout)
        self.assertIn('(type . "udev") (state . "failed") (reason . "no driver of this package serves the type udev")', done.stdout)
        self.assertNotIn("hunter2", done.stdout)
        self.assertNotIn("/elsewhere", done.stdout)
        self.assertEqual(self.xapi.methods()[-1], "session.logout")
        self.assertNotIn("local disks", self.sm("sr_list").stdout)

    def test_sr_list_says_that_there_is_no_xapi(self):
        os.unlink(self.xapi.path)
        done = self.sm("sr_list", "--from-xapi")
        self.assertEqual((done.returncode, done.stdout), (19, ""))
        self.assertIn("ENODEV: xapi: no such device or server: xapi does not answer", done.stderr)


if __name__ == "__main__":
    unittest.main()
