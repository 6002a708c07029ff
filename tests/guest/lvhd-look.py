#!/usr/bin/python3
"""Looks at an LVHD group as the storage managers of XCP-ng and XenServer do, and says what they would find.

    lvhd-look.py GROUP

For each VDI a line: UUID, SHA-256 of its disk, virtual size, parent or -, hidden (1 or 0), MiB of the volume, label. Nothing of the
package that is tested is used: VHDs are read as the VHD specification says, records by a parser of XML, as srmetadata.py has one. Ends
with status 1 and the reasons if something is not as these managers want it: a journal is left; a volume has a name that means
nothing; a footer at the end of a volume differs from that at its start; tables are not for 2 TiB; a name of a parent is not
that of its device; a base can be written to; a leaf is read-only or hidden; a record is missing, or is of no volume."""

import hashlib
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


images, raw = {}, {}
for name, (size, attr, tags) in volumes.items():
    kind, _, rest = name.partition("-")
    if kind == "VHD" and not rest.startswith("OLD_"):
        images[rest] = Vhd(name, size)
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
    start = f"{GROUP.replace('-', '--')}-VHD--"
    if not parent.startswith(start):
        bad.append(f"a parent is called {parent}")
    return parent[len(start):].replace("--", "-")


def disk(ident):
    vhd = images[ident]
    below = bytearray(vhd.size)
    if vhd.parent:
        parent = images.get(named(vhd.parent))
        if not parent or parent.ident != vhd.parent_id:
            bad.append(f"{ident}: its parent {vhd.parent} is missing, or is another image")
        else:
            data = disk(named(vhd.parent))[:vhd.size]
            below[:len(data)] = data
    return vhd.over(below)


parents = {named(vhd.parent) for vhd in images.values() if vhd.parent}
for ident, vhd in sorted(images.items()):
    is_read_only = volumes[f"VHD-{ident}"][1][1] == "r"
    is_base = ident in parents
    if (bool(vhd.hidden), is_read_only) != (is_base, is_base):
        bad.append(f"{ident}: base {is_base}, hidden {vhd.hidden}, read-only {is_read_only}")
    label = records.get(ident, {}).get("name_label")
    if label is None:
        bad.append(f"{ident}: it has no record")
    elif (records[ident]["managed"], records[ident]["vdi_type"]) != ("0" if is_base else "1", "vhd"):
        bad.append(f"{ident}: its record says {records[ident]}")
    print(ident, hashlib.sha256(disk(ident)).hexdigest(), vhd.size, named(vhd.parent) if vhd.parent else "-", int(is_base),
          volumes[f"VHD-{ident}"][0] >> 20, label)
for ident, name in sorted(raw.items()):
    with open(f"/dev/{GROUP}/{name}", "rb") as device:
        print(ident, hashlib.sha256(device.read()).hexdigest(), volumes[name][0], "-", 0, volumes[name][0] >> 20,
              records.get(ident, {}).get("name_label"))
for ident in records:
    if ident not in images and ident not in raw:
        bad.append(f"{ident}: it has a record, and no volume")
for vhd in images.values():
    vhd.device.close()
idle = [f"{GROUP}/{name}" for name in volumes if name not in active]
if idle:
    subprocess.run(["lvchange", "-qq", "-an", *idle], check=True, stdout=subprocess.DEVNULL)
if bad:
    print(*bad, sep="\n", file=sys.stderr)
    sys.exit(1)
