"""Changed block tracking as xapi and its clients use it. The logs are read and written by code of this file's own, by the
layout that cbt-util has."""

import base64
import os
import struct
import unittest
import uuid

from test_file import ROOT, Case, MiB, checksum

BLOCK = 64 << 10
NONE = uuid.UUID(int=0)


class Log:
    """A log of changed blocks: 16 bytes parent, 16 child, 4 flag, 4 padding, 8 size, bitmap with the lowest bit first."""

    def __init__(self, path):
        self.path = path
        with open(path, "rb") as file:
            head = file.read(48)
            self.bitmap = file.read()
        parent, child, self.consistent, self.size = struct.unpack("<16s16si4xQ", head)
        self.parent, self.child = uuid.UUID(bytes=parent), uuid.UUID(bytes=child)
        assert len(self.bitmap) == -(-(-(-self.size // BLOCK)) // 8), (len(self.bitmap), self.size)

    def blocks(self):
        return {8 * at + bit for at, byte in enumerate(self.bitmap) for bit in range(8) if byte >> bit & 1}

    def put(self, **fields):
        vars(self).update(fields)
        with open(self.path, "r+b") as file:
            file.write(struct.pack("<16s16si4xQ", self.parent.bytes, self.child.bytes, self.consistent, self.size))
            file.write(self.bitmap)


def told(answer):
    bitmap = base64.b64decode(answer, validate=True)
    return {8 * at + bit for at, byte in enumerate(bitmap) for bit in range(8) if byte << bit & 0x80}


class Tracking(Case):
    def setUp(self):
        super().setUp()
        self.an_sr()

    def a_disk(self, image_format="vhd", size=20 * MiB):
        disk = self.agent.create(size, sm_config={"image-format": image_format})
        self.agent.call("vdi_enable_cbt", vdi=disk)
        # xapi's own work.
        self.xapi.vdis[disk]["cbt_enabled"] = True
        return disk

    def log_of(self, vdi):
        return Log(self.path(vdi, "cbtlog"))

    def uuid(self, vdi):
        return uuid.UUID(self.xapi.vdis[vdi]["uuid"])

    def changed(self, first, second):
        return told(self.agent.call("vdi_list_changed_blocks", second, vdi=first))

    def write(self, vdi, *blocks, attached=False):
        """Writes the last sector of each of these blocks through the disk's device."""
        if not ROOT:
            self.skipTest("root makes devices")
        if not attached:
            self.agent.call("vdi_activate", "true", vdi=vdi)
        with open(self.agent.call("vdi_attach", "true", vdi=vdi)["params"], "r+b", buffering=0) as device:
            for block in blocks:
                os.pwrite(device.fileno(), os.urandom(512), block * BLOCK + BLOCK - 512)
            os.fsync(device.fileno())
        if not attached:
            self.agent.call("vdi_deactivate", vdi=vdi)

    def mark(self, vdi, *blocks):
        """What a tapdisk of the Python storage managers leaves."""
        log = self.log_of(vdi)
        bitmap = bytearray(log.bitmap)
        for block in blocks:
            bitmap[block // 8] |= 1 << block % 8
        log.put(bitmap=bytes(bitmap))

    def test_a_log_is_what_cbt_util_makes(self):
        disk = self.agent.create(20 * MiB, sm_config={"type": "vhd"})
        for _ in range(2):
            self.agent.call("vdi_enable_cbt", vdi=disk)
            with open(self.path(disk, "cbtlog"), "rb") as file:
                self.assertEqual(file.read(), bytes(32) + struct.pack("<iIQ", 1, 0, 20 * MiB) + bytes(40))
        self.xapi.calls()
        self.agent.call("sr_scan")
        self.assertEqual(self.telling(), ["VDI.get_all_records_where", "VDI.set_cbt_enabled", "SR.get_record"])
        self.assertIs(self.xapi.vdis[disk]["cbt_enabled"], True)
        # What xapi knows already is not told once more.
        self.agent.call("sr_scan")
        self.assertEqual(self.telling(), ["VDI.get_all_records_where"])
        for _ in range(2):
            self.agent.call("vdi_disable_cbt", vdi=disk)
            self.assertFalse(os.path.exists(self.path(disk, "cbtlog")))
        self.agent.call("sr_scan")
        self.assertIs(self.xapi.vdis[disk]["cbt_enabled"], False)

    def test_what_cannot_be_tracked_is_refused(self):
        raw, disk = self.agent.create(MiB), self.a_disk()
        snapshot = self.agent.snapshot(disk)
        before = checksum(self.location)
        for command in ("vdi_enable_cbt", "vdi_disable_cbt"):
            self.fails(66, self.agent.call, command, vdi=raw)
            self.fails(66, self.agent.call, command, vdi=snapshot)
        self.fails(66, self.agent.call, "vdi_data_destroy", vdi=disk)
        self.fails(460, self.changed, disk, disk)
        self.fails(460, self.changed, disk, snapshot)
        self.fails(460, self.changed, raw, disk)
        self.fails(460, self.changed, snapshot, raw)
        config = dict(self.agent.device_config, SRmaster="false")
        for command in ("vdi_enable_cbt", "vdi_data_destroy", "vdi_list_changed_blocks"):
            self.fails(58, self.agent.call, command, disk, vdi=snapshot, device_config=config)
        self.assertEqual(checksum(self.location), before)

    def test_a_snapshot_takes_over_what_was_written(self):
        disk = self.a_disk()
        first = self.agent.snapshot(disk)
        self.assertIs(self.xapi.vdis[first]["cbt_enabled"], True)
        self.mark(disk, 0, 319)
        second = self.agent.snapshot(disk)
        self.mark(disk, 7, 8)
        logs = [self.log_of(vdi) for vdi in (first, second, disk)]
        uuids = [self.uuid(vdi) for vdi in (first, second, disk)]
        self.assertEqual([log.parent for log in logs], [NONE, uuids[0], uuids[1]])
        self.assertEqual([log.child for log in logs], [uuids[1], uuids[2], NONE])
        self.assertEqual([log.blocks() for log in logs], [set(), {0, 319}, {7, 8}])
        self.assertEqual([log.consistent for log in logs], [1, 1, 1])
        self.assertEqual(self.changed(first, second), {0, 319})
        self.assertEqual(self.changed(second, disk), {7, 8})
        self.assertEqual(self.changed(first, disk), {0, 7, 8, 319})
        answer = self.agent.call("vdi_list_changed_blocks", second, vdi=first)
        self.assertEqual(base64.b64decode(answer), b"\x80" + bytes(38) + b"\x01")
        # A clone leaves the log where it is.
        self.agent.copy("vdi_clone", disk)
        self.assertEqual(self.changed(first, disk), {0, 7, 8, 319})

    def test_logs_of_the_python_storage_managers_are_read(self):
        disk = self.a_disk()
        names = [uuid.uuid4() for _ in range(3)] + [self.uuid(disk)]
        for at, name in enumerate(names):
            log = Log.__new__(Log)
            log.path = os.path.join(self.location, f"{name}.cbtlog")
            with open(log.path, "wb"):
                pass
            log.put(parent=names[at - 1] if at else NONE, child=names[at + 1] if at < 3 else NONE, consistent=1,
                    size=20 * MiB, bitmap=bytes([1 << at]) + bytes(39))
        self.agent.scan()
        found = {v["location"]: (r, v) for r, v in self.xapi.vdis.items()}
        for name in names[:3]:
            record = found[str(name)][1]
            self.assertEqual((record["type"], record["cbt_enabled"], record["managed"]), ("cbt_metadata", True, True))
            self.assertEqual((record["virtual_size"], record["physical_utilisation"]), ("88", "88"))
            self.assertEqual((record["name_label"], record["sm_config"], record["read_only"]), ("", {}, False))
        first, second, third = (found[str(name)][0] for name in names[:3])
        self.assertEqual(self.changed(first, third), {1, 2})
        self.assertEqual(self.changed(first, disk), {1, 2, 3})
        self.agent.delete(second)
        self.assertEqual(self.changed(first, third), {1, 2})
        self.assertEqual(self.log_of(third).blocks(), {1, 2})
        self.assertEqual((self.log_of(first).child, self.log_of(third).parent), (names[2], names[0]))
        os.unlink(os.path.join(self.location, f"{names[0]}.cbtlog"))
        self.agent.scan()
        self.assertNotIn(first, self.xapi.vdis)

    def test_data_can_be_destroyed_and_the_changes_are_still_told(self):
        disk = self.a_disk()
        first = self.agent.snapshot(disk)
        self.mark(disk, 5)
        second = self.agent.snapshot(disk)
        self.mark(disk, 9)
        for _ in range(2):
            self.agent.call("vdi_data_destroy", vdi=first)
            self.assertFalse(os.path.exists(self.path(first, "vhd")))
        self.xapi.vdis[first]["type"] = "cbt_metadata"
        self.agent.call("vdi_update", vdi=first)
        self.agent.scan()
        self.assertEqual(self.xapi.vdis[first]["virtual_size"], "88")
        self.assertEqual(self.changed(first, second), {5})
        self.agent.call("vdi_data_destroy", vdi=second)
        self.assertEqual(self.changed(first, disk), {5, 9})
        third = self.agent.snapshot(disk)
        self.agent.delete(second)
        self.assertEqual(self.changed(first, third), {5, 9})
        self.agent.delete(first)
        self.assertFalse(os.path.exists(self.path(disk, "cbtlog").replace(str(self.uuid(disk)), str(first))))
        self.assertEqual(self.log_of(third).parent, NONE)
        self.agent.delete(disk)
        self.assertEqual(self.log_of(third).child, NONE)

    def test_a_disk_that_grows_is_tracked_on(self):
        disk = self.a_disk()
        first = self.agent.snapshot(disk)
        self.mark(disk, 319)
        second = self.agent.snapshot(disk)
        self.agent.resize(disk, 22 * MiB)
        self.assertEqual(self.log_of(disk).size, 22 * MiB)
        self.mark(disk, 320)
        self.assertEqual(self.changed(first, second), {319})
        self.assertEqual(self.changed(first, disk), {319, 320})
        answer = self.agent.call("vdi_list_changed_blocks", disk, vdi=first)
        self.assertEqual(len(base64.b64decode(answer)), 44)

    def test_what_may_lack_blocks_is_no_answer(self):
        disk = self.a_disk()
        first = self.agent.snapshot(disk)
        self.log_of(disk).put(consistent=0)
        self.fails(459, self.changed, first, disk)
        self.agent.snapshot(disk)
        self.assertFalse(os.path.exists(self.path(disk, "cbtlog")))
        self.assertIs(self.xapi.vdis[disk]["cbt_enabled"], False)
        ((name, priority, cls, of, _),) = self.xapi.messages
        self.assertEqual((name, priority, cls, of), ("VDI_CBT_SNAPSHOT_FAILED", "3", "VDI", str(self.uuid(disk))))
        self.assertEqual(self.log_of(first).child, NONE)
        # Enabled anew, the disk continues nothing.
        self.agent.call("vdi_enable_cbt", vdi=disk)
        self.fails(460, self.changed, first, disk)
        # Smaller than before is not what a disk becomes.
        second = self.agent.snapshot(disk)
        third = self.agent.snapshot(disk)
        log = self.log_of(third)
        log.put(size=30 * MiB, bitmap=log.bitmap + bytes(20))
        self.fails(459, self.changed, second, disk)

    def test_a_revert_keeps_the_tracking(self):
        disk = self.a_disk()
        first = self.agent.snapshot(disk)
        self.mark(disk, 1)
        second = self.agent.snapshot(disk)
        self.mark(disk, 2)
        for _ in range(2):
            self.agent.call("vdi_revert", disk, vdi=first)
            self.assertEqual(self.changed(second, disk), {1})
            self.assertEqual(self.log_of(disk).consistent, 1)
        self.mark(disk, 3)
        third = self.agent.snapshot(disk)
        self.assertEqual(self.changed(second, third), {1, 3})
        self.agent.call("vdi_revert", disk, vdi=third)
        self.assertEqual(self.changed(third, disk), set())
        self.assertIs(self.xapi.vdis[disk]["cbt_enabled"], True)
        # A snapshot that is not in the chain says nothing of what differs.
        os.unlink(self.path(first, "cbtlog"))
        self.agent.call("vdi_revert", disk, vdi=first)
        self.assertFalse(os.path.exists(self.path(disk, "cbtlog")))
        self.assertIs(self.xapi.vdis[disk]["cbt_enabled"], False)

    def test_what_a_device_writes_is_told(self):
        for image_format in ("vhd", "qcow2"):
            with self.subTest(image_format):
                disk = self.a_disk(image_format)
                first = self.agent.snapshot(disk)
                self.write(disk, 0, 9)
                self.assertEqual(self.log_of(disk).consistent, 1)
                second = self.agent.snapshot(disk)
                self.agent.call("vdi_activate", "true", vdi=disk)
                self.assertEqual(self.log_of(disk).consistent, 0)
                self.write(disk, 100, attached=True)
                self.assertEqual(self.changed(second, disk), {100})
                third = self.agent.snapshot(disk)
                self.assertEqual(self.log_of(disk).consistent, 0)
                self.write(disk, 200, attached=True)
                self.agent.delete(third)
                self.write(disk, 201, attached=True)
                fourth = self.agent.snapshot(disk)
                self.agent.call("vdi_deactivate", vdi=disk)
                self.assertEqual(self.log_of(disk).consistent, 1)
                self.assertEqual(self.changed(first, second), {0, 9})
                self.assertEqual(self.changed(second, fourth), {100, 200, 201})
                self.assertEqual(self.changed(fourth, disk), set())

    def test_a_disk_in_use_can_be_tracked_and_no_longer(self):
        if not ROOT:
            self.skipTest("root makes devices")
        disk = self.agent.create(20 * MiB, sm_config={"type": "vhd"})
        self.agent.call("vdi_activate", "true", vdi=disk)
        self.write(disk, 1, attached=True)
        self.agent.call("vdi_enable_cbt", vdi=disk)
        self.write(disk, 2, attached=True)
        self.assertEqual((self.log_of(disk).blocks(), self.log_of(disk).consistent), ({2}, 0))
        self.agent.call("vdi_disable_cbt", vdi=disk)
        self.write(disk, 3, attached=True)
        self.agent.call("vdi_enable_cbt", vdi=disk)
        self.write(disk, 4, attached=True)
        # A reader takes no part.
        self.agent.call("vdi_deactivate", vdi=disk)
        self.assertEqual((self.log_of(disk).blocks(), self.log_of(disk).consistent), ({4}, 1))
        self.agent.call("vdi_activate", "false", vdi=disk)
        self.assertEqual(self.log_of(disk).consistent, 1)
        self.log_of(disk).put(consistent=0)
        self.agent.call("vdi_deactivate", vdi=disk)
        self.assertEqual(self.log_of(disk).consistent, 0)
        # What a crash left is not trusted: the disk is attached, and tracked no longer.
        self.xapi.vdis[disk]["cbt_enabled"] = True
        self.agent.call("vdi_activate", "true", vdi=disk)
        self.assertFalse(os.path.exists(self.path(disk, "cbtlog")))
        self.assertIs(self.xapi.vdis[disk]["cbt_enabled"], False)
        self.assertEqual([m[0] for m in self.xapi.messages], ["VDI_CBT_METADATA_INCONSISTENT"])
        self.agent.call("vdi_deactivate", vdi=disk)


if __name__ == "__main__":
    unittest.main()
