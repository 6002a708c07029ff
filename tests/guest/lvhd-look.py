#!/usr/bin/python3
"""Looks at an LVHD group as the storage managers of XCP-ng and XenServer do, and says what they would find.

    lvhd-look.py GROUP

For each VDI a line: UUID, SHA-256 of its disk, virtual size, parent or -, hidden (1 or 0), MiB of the volume, label. Nothing of the
package that is tested is used: VHDs are read as the VHD specification says, qcow2s by qemu-img, records by a parser of XML, as
srmetadata.py has one. Ends
with status 1 and the reasons if something is not as these managers want it: a journal is left; a volume has a name that means
nothing; a footer at the end of a volume differs from that at its start; tables are not for 2 TiB; a name of a parent is not
that of its device; a base can be written to; a leaf is read-only or hidden; a record is missing, or is of no volume."""

import hashlib
import json
import os
import struct
import subprocess
import sys
import xml.dom.minidom

GROUP = sys.argv[1]
SR = GROUP.removeprefix("VG_XenStorage-")
BLOCK = 2 << 20
bad = []
row = subprocess.run(["lvs", "--noheadings", "--separator", ":", "--units", "b", "--nosuffix", "-o", "lv_name,lv_size,lv_attr,lv_tags",
                      GROUP], check=True, capture_output=True, text=True).stdout
volumes = {}
for line in row.split():
    name, size, attr, tags = line.split(":")
    volumes[name] = (int(size), attr, tags)
active = {name for name, (_, attr, _) in volumes.items() if attr[4] == "a"}
subprocess.run(["vgchange", "-qq", "-ay", GROUP], check=True, stdout=subprocess.DEVNULL)


def checksum(data, at):
    return ~(sum(data) - sum(data[at:at + 4])) & 0xffffffff


class Vhd:
    def __init__(self, name, size):
        self.device = open(f"/dev/{GROUP}/{name}", "rb")
        first = self.at(0, 512)
        self.device.seek(size - 512)
        last = self.device.read(512)
        if first[:8] != b"conectix" or struct.unpack(">I", first[0x40:0x44])[0] != checksum(first, 0x40):
            bad.append(f"{name}: no footer at its start")
        if first != last:
            bad.append(f"{name}: its footers differ")
        self.size, kind = struct.unpack(">Q", first[0x30:0x38])[0], struct.unpack(">I", first[0x3c:0x40])[0]
        self.ident, self.hidden = first[0x44:0x54], first[0x55]
        head = self.at(512, 1024)
        if head[:8] != b"cxsparse" or struct.unpack(">I", head[0x24:0x28])[0] != checksum(head, 0x24):
            bad.append(f"{name}: no header")
        table_at, entries, block = struct.unpack(">Q4xII", head[0x10:0x24])
        if entries < (2 << 40) // BLOCK or block != BLOCK:
            bad.append(f"{name}: {entries} entries of {block} bytes")
        self.entries = struct.unpack(f">{entries}I", self.at(table_at, 4 * entries))
        self.parent = None
        if kind == 4:
            said = head[0x40:0x240].decode("utf-16-be").rstrip("\0")
            for slot in range(8):
                code, space, length, at = struct.unpack(">4sII4xQ", head[0x240 + 24 * slot:0x258 + 24 * slot])
                if code == b"MacX" and self.at(at, length) != f"file://./{said}".encode():
                    bad.append(f"{name}: its locators say {self.at(at, length)}, its header {said}")
            self.parent, self.parent_id = said, head[0x28:0x38]
        batmap_at = table_at + 4 * entries
        batmap = self.at(batmap_at, 512)
        if batmap[:8] != b"tdbatmap":
            bad.append(f"{name}: no batmap")
        used = [entry for entry in self.entries if entry != 0xffffffff]
        self.end = 512 * max([entry + 1 + BLOCK // 512 for entry in used], default=0)
        if self.end + 512 > size:
            bad.append(f"{name}: its data goes on to byte {self.end}")
        self.blocks = len(used)

    def at(self, offset, length):
        self.device.seek(offset)
        return self.device.read(length)

    def over(self, disk):
        for number, entry in enumerate(self.entries[:self.size // BLOCK]):
            if entry == 0xffffffff:
                continue
            data = self.at(512 * entry, 512 + BLOCK)
            for sector in range(BLOCK // 512):
                if data[sector // 8] >> (7 - sector % 8) & 1:
                    at = number * BLOCK + sector * 512
                    disk[at:at + 512] = data[512 + sector * 512:1024 + sector * 512]
        return disk


class Qcow2:
    """A qcow2 by qemu-img, but for the mark, which Python drivers look for at these bytes."""
    ident = None

    def __init__(self, name, size):
        self.path = f"/dev/{GROUP}/{name}"
        said = json.loads(self.img("info", "--output=json", self.path))
        self.size, self.parent = said["virtual-size"], said.get("backing-filename")
        if self.parent and said["backing-filename-format"] != ("raw" if "/LV-" in self.parent else "qcow2"):
            bad.append(f"{name}: its backing format is {said['backing-filename-format']}")
        self.img("check", "-q", self.path)
        with open(self.path, "rb") as device:
            head = device.read(1024)
        at = struct.unpack(">I", head[100:104])[0]
        self.hidden = None
        while at + 16 <= 1024:
            kind, length = struct.unpack(">II", head[at:at + 8])
            if kind == 0x76617465 and length == 8:
                self.hidden = head[at + 8]
            at += 8 + (length + 7) // 8 * 8
            if kind == 0:
                break
        if self.hidden is None:
            bad.append(f"{name}: it has no mark")
        if said.get("image-end-offset", 0) > size:
            bad.append(f"{name}: it goes on to byte {said['image-end-offset']}")

    @staticmethod
    def img(*words):
        done = subprocess.run(["qemu-img", *words], capture_output=True, text=True)
        if done.returncode:
            bad.append(f"qemu-img {words}: {done.stderr}{done.stdout}")
        return done.stdout


def digest(ident):
    image = images[ident]
    if isinstance(image, Vhd):
        return hashlib.sha256(disk(ident)).hexdigest()
    image.img("convert", "-f", "qcow2", "-O", "raw", image.path, "/tmp/.look")
    with open("/tmp/.look", "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


images, raw = {}, {}
for name, (size, attr, tags) in volumes.items():
    kind, _, rest = name.partition("-")
    if kind in ("VHD", "QCOW2") and not rest.startswith("OLD_"):
        images[rest] = (Vhd if kind == "VHD" else Qcow2)(name, size)
    elif kind == "LV":
        raw[rest] = name
    elif name != "MGT":
        bad.append(f"{name}: is left")
with open(f"/dev/{GROUP}/MGT", "rb") as device:
    text = device.read(1 << 20).replace(b"\0", b"").decode()
if not text.startswith("XSSM:") or not text[15:].startswith(":1:2"):
    bad.append(f"MGT: {text[:20]!r}")
length = int(text[5:15])
document = xml.dom.minidom.parseString("<all>" + text[512:length].replace('<?xml version="1.0" ?>', "") + "</all>")
records = {}
for record in document.getElementsByTagName("vdi"):
    fields = {node.tagName: "".join(child.data for child in node.childNodes) for node in record.childNodes if node.nodeType == 1}
    if fields["deleted"] != "1":
        records[fields["uuid"]] = fields


def named(parent):
    """The VDI that an image calls its parent: a VHD by the name of the device, a qcow2 by the path of the volume."""
    if parent.startswith("/"):
        name = parent.removeprefix(f"/dev/{GROUP}/")
    else:
        name = parent.removeprefix(GROUP.replace("-", "--") + "-").replace("--", "-")
    kind, _, ident = name.partition("-")
    if kind not in (("QCOW2", "LV") if parent.startswith("/") else ("VHD", "LV")):
        bad.append(f"a parent is called {parent}")
    return ident


def disk(ident):
    vhd = images[ident]
    below = bytearray(vhd.size)
    if vhd.parent:
        parent = images.get(named(vhd.parent))
        if named(vhd.parent) in raw:
            if vhd.parent_id != bytes(16):
                bad.append(f"{ident}: it names an identity of its raw parent")
            with open(f"/dev/{GROUP}/{raw[named(vhd.parent)]}", "rb") as device:
                data = device.read(vhd.size)
            below[:len(data)] = data
        elif not parent or parent.ident != vhd.parent_id:
            bad.append(f"{ident}: its parent {vhd.parent} is missing, or is another image")
        else:
            data = disk(named(vhd.parent))[:vhd.size]
            below[:len(data)] = data
    return vhd.over(below)


parents = {named(vhd.parent) for vhd in images.values() if vhd.parent}
for ident, vhd in sorted(images.items()):
    volume = ("VHD-" if isinstance(vhd, Vhd) else "QCOW2-") + ident
    is_read_only = volumes[volume][1][1] == "r"
    is_base = ident in parents
    if (bool(vhd.hidden), is_read_only) != (is_base, is_base):
        bad.append(f"{ident}: base {is_base}, hidden {vhd.hidden}, read-only {is_read_only}")
    label = records.get(ident, {}).get("name_label")
    if label is None:
        bad.append(f"{ident}: it has no record")
    elif (records[ident]["managed"], records[ident]["vdi_type"]) != ("0" if is_base else "1", "vhd" if isinstance(vhd, Vhd) else "qcow2"):
        bad.append(f"{ident}: its record says {records[ident]}")
    print(ident, digest(ident), vhd.size, named(vhd.parent) if vhd.parent else "-", int(is_base),
          volumes[volume][0] >> 20, label)
for ident, name in sorted(raw.items()):
    is_base, (_, attr, tags) = ident in parents, volumes[name]
    if ("hidden" in tags, attr[1] == "r") != (is_base, is_base):
        bad.append(f"{ident}: base {is_base}, tags {tags}, {attr}")
    if records.get(ident, {}).get("vdi_type") != "aio" or records[ident]["managed"] != ("0" if is_base else "1"):
        bad.append(f"{ident}: its record says {records.get(ident)}")
    with open(f"/dev/{GROUP}/{name}", "rb") as device:
        print(ident, hashlib.sha256(device.read()).hexdigest(), volumes[name][0], "-", int(is_base), volumes[name][0] >> 20,
              records.get(ident, {}).get("name_label"))
for ident in records:
    if ident not in images and ident not in raw:
        bad.append(f"{ident}: it has a record, and no volume")
for vhd in images.values():
    if isinstance(vhd, Vhd):
        vhd.device.close()
idle = [f"{GROUP}/{name}" for name in volumes if name not in active]
if idle:
    subprocess.run(["lvchange", "-qq", "-an", *idle], check=True, stdout=subprocess.DEVNULL)
if bad:
    print(*bad, sep="\n", file=sys.stderr)
    sys.exit(1)
