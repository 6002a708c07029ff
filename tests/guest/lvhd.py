#!/usr/bin/python3
"""Makes an LVHD group as the storage managers of XCP-ng and XenServer leave it, also in the middle of changes.

    lvhd.py GROUP DEVICE… > expected

Every byte that it writes follows the formats themselves: the VHD specification and what libvhd adds (batmap, hidden byte), the
records of srmetadata.py and of journaler.py, the qcow2 specification by qemu-img. Nothing of it is made by the package that is
tested. It prints for each VDI: its UUID, the SHA-256 of its disk, its virtual size, its format, its parent or -, and
whether it is hidden (1 or 0)."""

import hashlib
import os
import struct
import subprocess
import sys
import uuid

MIB = 1 << 20
EXTENT = 4 * MIB
BLOCK = 2 * MIB
SECTORS = BLOCK // 512
# Tables are made for 2 TiB, so that a disk can grow without moving anything.
ENTRIES = (2 << 40) // BLOCK
EMPTY = 4329472
GROUP, DEVICES = sys.argv[1], sys.argv[2:]
SR = GROUP.removeprefix("VG_XenStorage-")


def vdi(number):
    return f"7e57ab1e-0000-4000-8000-{number:012x}"


def mapped(volume):
    return f"{GROUP.replace('-', '--')}-{volume.replace('-', '--')}"


def lvm(commands):
    """One process for all: each one takes a tenth of a second in a guest."""
    text = "\n".join(" ".join(words) for words in commands) + "\n"
    done = subprocess.run(["lvm"], input=text, text=True, capture_output=True)
    bad = [line for line in done.stderr.splitlines() if line.strip() and "WARNING" not in line]
    if done.returncode or bad:
        sys.exit(f"{text}{done.stdout}{done.stderr}")


def checksum(data, at):
    return ~(sum(data) - sum(data[at:at + 4])) & 0xffffffff


def footer(kind, size, ident, hidden, cookie=b"conectix"):
    data = bytearray(512)
    struct.pack_into(">8sIIQI4sII", data, 0, cookie, 2, 0x10000, 512, 0x32940000, b"tap\0", 0x10003, 0)
    # The geometry of small disks: 17 sectors a track, 4 heads.
    struct.pack_into(">QQHBBI", data, 0x28, size, size, size // 512 // 17 // 4, 4, 17, kind)
    data[0x44:0x54] = ident.bytes
    data[0x55] = hidden
    struct.pack_into(">I", data, 0x40, checksum(data, 0x40))
    return bytes(data)


class Disk:
    """The sectors that an image shows: its own over those of its parent."""

    def __init__(self, size, parent=None):
        self.size, self.parent, self.own = size, parent, {}

    def read(self):
        data = bytearray(self.size)
        if self.parent:
            below = self.parent.read()
            data[:min(len(below), self.size)] = below[:self.size]
        for sector, byte in self.own.items():
            data[sector * 512:sector * 512 + 512] = bytes([byte]) * 512
        return data

    def fill(self, first, count, byte):
        for sector in range(first, first + count):
            self.own[sector] = byte
        return self


def write_vhd(path, length, disk, ident, parent_name=None, parent_id=None, hidden=0, primary=True, cookie=b"conectix"):
    """A VHD on a device of `length` bytes. `parent_id`: None over a raw parent."""
    kind = 4 if parent_name else 3
    end = footer(kind, disk.size, ident, hidden, cookie)
    head = bytearray(1024)
    struct.pack_into(">8sQQIII", head, 0, b"cxsparse", 2**64 - 1, 1536, 0x10000, ENTRIES, BLOCK)
    map_at = 1536 + 4 * ENTRIES
    locators_at = map_at + 512 + ENTRIES // 8
    locators = b""
    if parent_name:
        head[0x28:0x38] = parent_id.bytes if parent_id else bytes(16)
        struct.pack_into(">I", head, 0x38, 0x32940000)
        name = parent_name.encode("utf-16-be")
        head[0x40:0x40 + len(name)] = name
        unix, windows = f"file://./{parent_name}".encode(), f".\\{parent_name}".encode("utf-16-le")
        for slot, (code, text) in enumerate((("MacX", unix), ("W2ku", windows), ("W2ru", windows))):
            struct.pack_into(">4sIIIQ", head, 0x240 + 24 * slot, code.encode(), 512, len(text), 0, locators_at + 512 * slot)
            locators += text.ljust(512, b"\0")
    struct.pack_into(">I", head, 0x24, checksum(head, 0x24))
    table = bytearray(b"\xff" * (4 * ENTRIES))
    full = bytearray(ENTRIES // 8)
    sector = (locators_at + len(locators)) // 512
    blocks = []
    for block in sorted({number // SECTORS for number in disk.own}):
        while (sector + 1) % 8:
            sector += 1
        struct.pack_into(">I", table, 4 * block, sector)
        bits = bytearray(512)
        present = [number - block * SECTORS for number in disk.own if number // SECTORS == block]
        for number in present:
            bits[number // 8] |= 0x80 >> number % 8
        if len(present) == SECTORS:
            full[block // 8] |= 0x80 >> block % 8
        # What was never written is what the extents held before.
        data = bytearray(b"?" * BLOCK)
        for number in present:
            data[number * 512:number * 512 + 512] = bytes([disk.own[block * SECTORS + number]]) * 512
        blocks.append((sector * 512, bytes(bits) + bytes(data)))
        sector += 1 + SECTORS
    used = 512 * max(1, -(-(disk.size >> 24) // 512))
    batmap = bytearray(512)
    struct.pack_into(">8sQIII", batmap, 0, b"tdbatmap", map_at + 512, ENTRIES // 8 // 512, 0x10002,
                     ~sum(full[:used]) & 0xffffffff)
    with open(path, "r+b") as device:
        device.write(end + head + table + batmap + full + locators)
        for at, data in blocks:
            device.seek(at)
            device.write(data)
        assert device.tell() <= length - 512, (path, device.tell(), length)
        device.seek(length - 512)
        device.write(end if primary else bytes(512))
        device.flush()
        os.fsync(device.fileno())


def needed(disk):
    """Bytes of the volume of an image that holds nothing more than it has to."""
    blocks = len({number // SECTORS for number in disk.own})
    return -(-(EMPTY + 4096 + blocks * (BLOCK + 4096)) // EXTENT) * EXTENT


def full_size(size):
    return -(-(size + EMPTY + 4096 * -(-size // BLOCK)) // EXTENT) * EXTENT


volumes, expected, records = [], [], []


def volume(name, size, *options):
    volumes.append((name, size, options))
    return f"/dev/{GROUP}/{name}"


def expect(ident, disk, form, parent=None, hidden=0):
    expected.append((ident, disk, form, parent or "-", hidden))


def escaped(text):
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def record(ident, label, kind="vhd", snapshot_of="", time="", base=False, raw_label=None, deleted=0):
    label = raw_label if raw_label is not None else escaped(label)
    first = f"<vdi><name_label>{label}</name_label><name_description>about {label}</name_description>"
    second = (f"<uuid>{ident}</uuid><is_a_snapshot>{int(bool(snapshot_of))}</is_a_snapshot><snapshot_of>{snapshot_of}"
              f"</snapshot_of><snapshot_time>{time}</snapshot_time><type>user</type><vdi_type>{kind}</vdi_type><read_only>"
              f"{int(base)}</read_only><managed>{int(not base)}</managed><metadata_of_pool></metadata_of_pool><deleted>{deleted}"
              "</deleted></vdi>")
    records.append((first, second))


def write_records(path):
    def sector(text):
        data = text.encode()
        assert len(data) <= 512, text
        return data.ljust(512, b" ")
    length = 2048 + 1024 * len(records)
    data = sector(f"XSSM:{length:<10}:1:2")
    data += sector(f'<?xml version="1.0" ?><uuid>{SR}</uuid><allocation>thin</allocation>')
    data += sector("<name_label>a pool&apos;s SR</name_label>") + sector("<name_description></name_description>")
    for first, second in records:
        data += sector(first) + sector(second)
    with open(path, "r+b") as device:
        device.write(data)
        device.flush()
        os.fsync(device.fileno())


def write_journal(path, value):
    with open(path, "r+b") as device:
        device.write(f"{len(value)} {value}".encode().ljust(512, b" "))
        device.flush()
        os.fsync(device.fileno())


def hide_qcow2(path, hidden):
    """The extension `vate` behind the last one; what is behind it, the name of the parent, goes on by 16 bytes."""
    with open(path, "r+b") as device:
        head = bytearray(device.read(4096))
        at = struct.unpack_from(">I", head, 100)[0]
        while struct.unpack_from(">I", head, at)[0]:
            at += 8 + -(-struct.unpack_from(">I", head, at + 4)[0] // 8) * 8
        name_at, name_len = struct.unpack_from(">QI", head, 8)
        name = bytes(head[name_at:name_at + name_len])
        struct.pack_into(">IIB7x", head, at, 0x76617465, 8, hidden)
        struct.pack_into(">II", head, at + 16, 0, 0)
        if name_at:
            head[at + 24:at + 24 + name_len] = name
            struct.pack_into(">Q", head, 8, at + 24)
        device.seek(0)
        device.write(head)
        device.flush()
        os.fsync(device.fileno())


def write_qcow2(path, disk, backing=None, hidden=0):
    options = ["-b", backing, "-F", "qcow2"] if backing else []
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-u", *options, path, str(disk.size)], check=True)
    words = []
    for sector, byte in disk.own.items():
        if sector % 128 == 0:
            words += ["-c", f"write -q -P {byte} {sector * 512} 64k"]
    subprocess.run(["qemu-io", "-f", "qcow2", *words, path], check=True)
    hide_qcow2(path, hidden)


make = []


def vhd(number, disk, form="VHD", size=None, options=(), lv=None, listed=True, parent=None, **header):
    """An image, and how it is to be found: `parent`, another image."""
    ident = vdi(number)
    name = lv or f"VHD-{ident}"
    size = size or needed(disk)
    path = volume(name, size, *options)
    own = uuid.uuid5(uuid.NAMESPACE_OID, name)
    if parent:
        header.setdefault("parent_name", mapped(parent["lv"]))
        header.setdefault("parent_id", parent["id"])
    make.append(lambda: write_vhd(path, size, disk, own, **header))
    if listed:
        expect(ident, disk, "vhd", parent and parent["vdi"], header.get("hidden", 0))
    return {"vdi": ident, "lv": name, "id": own, "disk": disk}


READ_ONLY = ("-pr",)
SIZE = 6 * MIB

volume("MGT", EXTENT)
# A tree: a base that was made smaller, a disk that is inflated, a snapshot.
base = vhd(1, Disk(SIZE).fill(0, SECTORS, 0x42).fill(SECTORS + 8, 100, 0x62), hidden=1, options=READ_ONLY)
vhd(2, Disk(SIZE, base["disk"]).fill(SECTORS + 50, 100, 0x41), size=full_size(SIZE), parent=base)
vhd(3, Disk(SIZE, base["disk"]), parent=base)
record(vdi(1), "base copy", base=True)
record(vdi(2), "web & <db>")
record(vdi(9), "deleted", deleted=1)
record(vdi(3), "monday", snapshot_of=vdi(2), time="20200101T00:00:00Z")
# A raw disk, and a VHD over a raw base.
raw = Disk(EXTENT).fill(0, EXTENT // 512, 0x52)
path_of_raw = volume(f"LV-{vdi(4)}", EXTENT)
expect(vdi(4), raw, "raw")
record(vdi(4), "", kind="aio", raw_label="cut within &am")
raw_base = Disk(EXTENT).fill(0, EXTENT // 512, 0x53)
path_of_base = volume(f"LV-{vdi(5)}", EXTENT, "-pr", "--addtag", "hidden")
expect(vdi(5), raw_base, "raw", hidden=1)
vhd(6, Disk(EXTENT, raw_base).fill(1000, 9, 0x54),
    parent={"lv": f"LV-{vdi(5)}", "id": None, "vdi": vdi(5)})
# qcow2 with a parent.
# Whole clusters of 128 sectors.
qcow2_base = Disk(SIZE).fill(0, 128, 0x51).fill(2048, 128, 0x52)
qcow2_leaf = Disk(SIZE, qcow2_base).fill(4096, 128, 0x53)
paths = [volume(f"QCOW2-{vdi(7)}", EXTENT, "-pr"), volume(f"QCOW2-{vdi(8)}", EXTENT)]
make.append(lambda: write_qcow2(paths[0], qcow2_base, hidden=1))
make.append(lambda: write_qcow2(paths[1], qcow2_leaf, backing=paths[0]))
expect(vdi(7), qcow2_base, "qcow2", hidden=1)
expect(vdi(8), qcow2_leaf, "qcow2", vdi(7))
# A disk that is being inflated: the volume is larger, and no footer is at its end.
vhd(0x10, Disk(SIZE).fill(5, 1, 0x49), size=3 * EXTENT, primary=False)
volume(f"inflate_{vdi(0x10)}_{2 * EXTENT}", EXTENT, "--addtag", "journaler")
# A clone that was begun: the volume has the name of the base, and that of the copy has nothing in it.
undone = vhd(0x11, Disk(SIZE).fill(7, 3, 0x55), lv=f"VHD-{vdi(0x21)}")
volume(f"VHD-{vdi(0x31)}", 2 * EXTENT)
journals = {volume(f"clone_{vdi(0x11)}_1", EXTENT, "--addtag", "journaler"): f"{vdi(0x21)}_{vdi(0x31)}"}
# A clone of which the base was not hidden yet.
half = vhd(0x22, Disk(SIZE).fill(7, 3, 0x56), listed=False)
expect(vdi(0x22), half["disk"], "vhd", hidden=1)
vhd(0x12, Disk(SIZE, half["disk"]), parent=half)
vhd(0x32, Disk(SIZE, half["disk"]), parent=half)
journals[volume(f"clone_{vdi(0x12)}_1", EXTENT, "--addtag", "journaler")] = f"{vdi(0x22)}_{vdi(0x32)}"
# A leaf that is being merged into its parent: the leaf was renamed, the parent not yet.
into = vhd(0x23, Disk(SIZE).fill(9, 9, 0x57), listed=False)
expect(vdi(0x23), into["disk"], "vhd", hidden=1)
vhd(0x13, Disk(SIZE, into["disk"]).fill(11, 2, 0x58), lv=f"VHD-OLD_{vdi(0x13)}", parent=into)
journals[volume(f"leaf_{vdi(0x13)}_1", EXTENT, "--addtag", "journaler")] = vdi(0x23)
# The same, and both were renamed.
merged = vhd(0x14, Disk(SIZE).fill(9, 9, 0x59).fill(11, 2, 0x5a))
vhd(0x14, Disk(SIZE).fill(11, 2, 0x5a), lv=f"VHD-OLD_{vdi(0x14)}", listed=False, hidden=1,
    parent={"lv": f"VHD-{vdi(0x24)}", "id": merged["id"], "vdi": vdi(0x24)})
journals[volume(f"leaf_{vdi(0x14)}_1", EXTENT, "--addtag", "journaler")] = vdi(0x24)
# A raw base that was made larger: what is behind its old end is not its own yet.
grown = Disk(EXTENT).fill(0, EXTENT // 512, 0x5b)
path_of_grown = volume(f"LV-{vdi(0x15)}", 2 * EXTENT, "--addtag", "hidden")
expect(vdi(0x15), grown, "raw", hidden=1)
volume(f"zero_{vdi(0x15)}_{EXTENT}", EXTENT, "--addtag", "journaler")
vhd(0x16, Disk(SIZE, grown).fill(0, 1, 0x5c), parent={"lv": f"LV-{vdi(0x15)}", "id": None, "vdi": vdi(0x15)})
# Markers, and a size that is being changed.
volume(f"relink_{vdi(1)}_1", EXTENT, "--addtag", "journaler")
volume(f"coalesce_{vdi(1)}_1", EXTENT, "--addtag", "journaler")
vhd(0x17, Disk(SIZE), listed=False, cookie=b"v_poison")
volume(f"jvhd_{vdi(0x17)}", 2 * EXTENT, "--addtag", "jvhd")
volume(f"{vdi(2)}.cbtlog", EXTENT, "--addtag", "cbtlog")
record(vdi(0x11), "being cloned")
record(vdi(0x99), "dummy vdi for space check")

# Two devices, so that some volumes are of two pieces: the first has room for all but the last few.
commands = [["vgcreate", "-qq", "--metadatasize", "10M", GROUP, *DEVICES]]
for name, size, options in volumes:
    commands.append(["lvcreate", "-qq", "-y", "-Zn", "-Wn", "-L", f"{size // MIB}m", "-n", name,
                     *[option for option in options if option != "-pr"], GROUP])
lvm(commands)
for action in make:
    action()
for path, disk, rest in ((path_of_raw, raw, b""), (path_of_base, raw_base, b""), (path_of_grown, grown, b"!" * EXTENT)):
    with open(path, "r+b") as raw_device:
        raw_device.write(bytes(disk.read()) + rest)
        raw_device.flush()
        os.fsync(raw_device.fileno())
write_records(f"/dev/{GROUP}/MGT")
for path, value in journals.items():
    write_journal(path, value)
lvm([["vgchange", "-qq", "-an", GROUP]]
    + [["lvchange", "-qq", "-pr", f"{GROUP}/{name}"] for name, _, options in volumes if "-pr" in options])
for ident, disk, form, parent, hidden in sorted(expected, key=lambda row: row[0]):
    print(ident, hashlib.sha256(disk.read()).hexdigest(), disk.size, form, parent, hidden)
