#!/bin/bash
# The space of LVHD SRs: what sr_space says that a deletion and sr_collect free, they free; and what a snapshot of a disk of 1 TiB costs.
# guest: uml
# bins: sm
# memory: 512
# disks: 200M 1200G
# takes: 60
# tools: lvcreate wipefs dmsetup python3
# UUIDs have no spaces.
# shellcheck disable=SC2086,SC2119
set -u
# shellcheck source-path=SCRIPTDIR source=lvhd.inc
. "$ROOT/tests/guest/lvhd.inc"
read -r small large <<< "$DISKS"
thin() { echo "((device . \"$1\") (lvhd . \"true\") (allocation . \"thin\"))"; }
free() { vgs --noheadings --units b --nosuffix -o vg_free $VG | tr -d ' '; }
# space: what sr_space says. Each image takes its volume, whole, and a disk or a base has no other volume.
space() {
  sm sr_space $SR --format json > "$SCRATCH/space" || fail 'sr_space'
  lvs --noheadings --units b --nosuffix -o lv_name,lv_size $VG > "$SCRATCH/lvs"
  python3 - "$SCRATCH/space" "$SCRATCH/lvs" << 'END' || fail "sr_space: $(cat "$SCRATCH/space")"
import json, sys
volumes = dict(line.split() for line in open(sys.argv[2]))
said = json.load(open(sys.argv[1]))
sizes = {name.partition("-")[2]: int(size) for name, size in volumes.items() if name != "MGT"}
assert said["physical_utilisation"] == sum(sizes.values()), sizes
assert {image["uuid"]: image["holds"] for image in said["images"]} == sizes, sizes
assert {image["uuid"]: image["physical_utilisation"] for image in said["images"]} == sizes, sizes
assert all(image["exact"] and (image["frees"] is None) == image["hidden"] for image in said["images"])
END
}
# of KEY [VDI]: a number that sr_space said, of the SR or of an image.
of() {
  python3 -c 'import json, sys
said = json.load(open(sys.argv[1]))
print(([i for i in said["images"] if i["uuid"] == sys.argv[3]][0] if len(sys.argv) > 3 else said)[sys.argv[2]])' "$SCRATCH/space" "$@"
}
# frees VDI: deletes the disk, and compares what that frees with what was said.
frees() {
  local said before
  space
  said=$(of frees $1) before=$(free)
  must sm vdi_delete $SR $1
  is $(($(free) - before)) "$said" "what the deletion of $1 frees"
}
# collects: runs the collector, which merges one image. What it frees was said to within an extent.
collects() {
  local said before freed
  space
  said=$(of collectable) before=$(free)
  is "$(of to_merge)" 1 'images to merge'
  must sm sr_collect $SR
  freed=$(($(free) - before))
  echo "sr_collect frees $freed bytes, and was said to free $said"
  (((said - freed) ** 2 < (4 << 20) ** 2)) || fail "sr_collect freed $freed bytes, not $said"
  space
  is "$(of collectable)" 0 'what is left to collect'
}

claim 'a deletion and sr_collect free what sr_space says'
DCONF=$(thin $small)
must sm sr_create $SR
DCONF=$small
head -c 3000000 /dev/urandom > "$SCRATCH/data"
must sm vdi_create $SR $A 16
must written $A 1
must sm vdi_snapshot $SR $A $B
must written $A 5
must sm vdi_snapshot $SR $A $C
D=7e57ab1e-0000-4000-8000-00000000000d
must sm vdi_create $SR $D 8 --type raw
space
is "$(of longest_chain) $(of collectable) $(of disks "$(sm vdi_get_params $SR $B | sed 's/.*(parent \. "\{0,1\}\([0-9a-f-]*\).*/\1/')")" '3 0 3' 'the chain, what is to collect, and the disks above the first base'
frees $D
frees $B
# The base with one child becomes one with it.
collects
frees $C
collects
frees $A
must sm sr_delete $SR

claim 'a snapshot of a disk of 1 TiB that holds 50 GiB'
DCONF=$(thin $large)
must sm sr_create $SR
DCONF=$large
must sm vdi_create $SR $A $((1 << 20))
# The disk holds 25600 blocks of 2 MiB, as their table says, of which nothing was written.
blocks=25600
lvextend -qq -y -L 51G $VG/VHD-$A > /dev/null
lvchange -qq -ay $VG/VHD-$A
python3 - /dev/$VG/VHD-$A $blocks << 'END' || fail 'the table'
import os, struct, sys
with open(sys.argv[1], "r+b") as device:
    footer = device.read(512)
    device.seek(512 + 16)
    table, = struct.unpack(">Q", device.read(8))
    # Behind the tables, with the data at a page.
    first = 8463
    device.seek(table)
    device.write(struct.pack(f">{sys.argv[2]}I", *(first + 4104 * n for n in range(int(sys.argv[2])))))
    device.seek(-512, os.SEEK_END)
    device.write(footer)
    os.fsync(device.fileno())
END
lvchange -qq -an $VG/VHD-$A
must sm vdi_attach $SR $A > "$SCRATCH/device"
must sm vdi_detach $SR $A
space
is "$(($(of holds $A) >> 20))" $((50 * 1024 + 100 + 8)) 'MiB that the disk holds'
before=$(free)
must sm vdi_attach $SR $A > "$SCRATCH/device"
attached=$(free)
must sm vdi_snapshot $SR $A $B --label monday
cost=$((attached - $(free)))
echo "the snapshot of the attached disk costs $((cost >> 20)) MiB"
[ $cost -le $(((51 << 30) + (4 << 20))) ] || fail "the snapshot costs $cost bytes"
must sm vdi_detach $SR $A
cost=$((before - $(free)))
echo "the disk detached, it costs $((cost >> 20)) MiB"
is $((cost >> 20)) 16 'MiB of the snapshot, and of the disk that has nothing of its own'
before=$(free)
must sm vdi_snapshot $SR $A $C
is $(((before - $(free)) >> 20)) 8 'MiB of one more snapshot'
space
is "$(of frees $B) $(of frees $C)" "$((8 << 20)) $((8 << 20))" 'what their deletion frees'
must sm vdi_delete $SR $B
must sm vdi_delete $SR $C
must sm sr_collect $SR
space
is "$(($(of holds $A) >> 20)) $(of longest_chain)" "$((50 * 1024 + 108)) 1" 'MiB that the disk holds after the merge'
must sm sr_delete $SR --yes
summary
