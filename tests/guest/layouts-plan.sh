#!/bin/bash
# sm plan on a host with many disks: which media a model takes, which it never takes, and what a change of the media means.
# guest: uml
# bins: sm LVMSR
# memory: 512
# takes: 60
# tools: lvcreate mkfs.ext4 python3
set -u
# shellcheck source-path=SCRIPTDIR source=claims.inc
. "$ROOT/tests/guest/claims.inc"
modprobe -a dm_mod sd_mod
modprobe scsi_debug dev_size_mb=16 num_tgts=1 max_luns=1 add_host=12 per_host_store=1
UUID=6ba7b810-9dad-11d1-80b4-00c04fd430c8
LAYOUT=/var/lib/sm/layouts/r.layout
H=node1
hostname $H
sm() { "$BIN/sm" "$@"; }
mkdir -p /etc/sm/layouts /var/lib/sm/layouts /dev/disk/by-id
echo min_size=8M > /etc/sm/sm.conf
for n in {1..100}; do [ -b /dev/sdl ] && break; sleep 0.1; done

# The names that udev would give, in the order of identities: disk01 to disk12.
n=0
while read -r dev _; do
  n=$((n + 1))
  ln -s "../../${dev#/dev/}" "/dev/disk/by-id/disk$(printf %02d $n)"
done < <(sm devices --format table -o dev,identity | grep '^/dev/sd')
# What a disk is used for: 3 is a PV, 4 is mounted, 5 has a filesystem.
D=/dev/disk/by-id/disk
pvcreate -qq -y ${D}03 && vgcreate -qq idle "$(realpath ${D}03)" && vgchange -qq -an idle
mkfs.ext4 -q ${D}04 && mkdir -p /mnt/c && mount ${D}04 /mnt/c
mkfs.ext4 -q ${D}05

model() { printf '%s\n' 'layout: r' "uuid: $UUID" "$@" > /etc/sm/layouts/r.model; }
# plan: each step but the looks as 'action object'; the plan is left in $SCRATCH/plan
plan() {
  sm plan -m r -o "$SCRATCH/plan" --format json > "$SCRATCH/answer" || return
  python3 - "$SCRATCH/plan" << 'END'
import json, sys
for step in json.load(open(sys.argv[1]))["steps"]:
    if step["action"] != "check":
        print(step["action"], step["object"])
END
}
# install: what the plan leads to is there from now on
install() { plan > /dev/null && python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["target"], end="")' "$SCRATCH/plan" > $LAYOUT; }
# slots: 'index disk' of each slot that is installed
slots() {
  sm layout info r --format json | python3 -c 'import json, sys
for slot in json.load(sys.stdin)["slots"]:
    print(slot["index"], slot["dev"].replace("/dev/disk/by-id/", ""))'
}
# The filesystem that is mounted writes by itself.
sums() { for n in 01 02 03 05 06 07 08 09 10 11 12; do sha256sum < "$D$n"; done; }

free_ones() {
  local before first n
  before=$(sums)
  model "lvm: host=$H dev=/dev/sd."
  install || return
  is "$(slots)" $'0 disk01\n1 disk02\n2 disk06\n3 disk07\n4 disk08\n5 disk09\n6 disk10\n7 disk11\n8 disk12' || return
  first=$(cat $LAYOUT)
  for n in {0..4}; do
    echo '- - -' > "/sys/class/scsi_host/host$n/scan"
    rm $LAYOUT
    install && is "$(cat $LAYOUT)" "$first" || return
  done
  rm $LAYOUT
  is "$(sums)" "$before" && [ ! -e /var/lib/sm/registry ] && [ ! -e /etc/sm/sr.d ]
}
claim 'a pattern takes the disks that are free, in the order of identities, and writes nothing' free_ones

indexes() {
  model "lvm: host=$H dev=.*disk0[126]" && install && is "$(slots)" $'0 disk01\n1 disk02\n2 disk06' && rm $LAYOUT || return
  model "lvm: host=$H dev=.*disk0[126]" "lvm: host=$H dev=${D}07 index=1" && install &&
    is "$(slots)" $'0 disk01\n1 disk07\n2 disk02\n3 disk06' && rm $LAYOUT || return
  model "lvm: host=$H dev=.*disk0[1-9]+ span=all index=4" 'lvm_format: allocation=thin' && install &&
    is "$(slots)" '4 disk01,disk02,disk06,disk07,disk08,disk09' || return
  rm $LAYOUT
}
claim 'indexes, and a slot over several disks' indexes

never() {
  local disk why
  while read -r disk why; do
    model "lvm: host=$H dev=$D$disk"
    fails_with ENOMATCH sm plan -m r && grep -q "line 3: .*$why" "$SCRATCH/stderr" || return
  done << 'END'
03 fits, and is signature:LVM2_member (idle)
04 fits, and is busy (the mount on /mnt/c)
05 fits, and is signature:ext4
END
  sm devices claim ${D}06 && model "lvm: host=$H dev=${D}06" && fails_with ENOMATCH sm plan -m r &&
    grep -q 'is claimed (reserved by hand)' "$SCRATCH/stderr" && sm devices release ${D}06 || return
  model "lvm: host=$H dev=.* size>=1G"
  fails_with ENOMATCH sm plan -m r && grep -q 'its size is 16MiB' "$SCRATCH/stderr"
}
claim 'what is in use, holds something or is claimed is never taken, and the nearest miss is told' never

reserved() {
  sm devices claim ${D}08 --layout r --class lvm --index 5 && model "lvm: host=$H dev=.*disk0[68]" && install &&
    is "$(slots)" $'0 disk06\n5 disk08' && sm devices release ${D}08 && rm $LAYOUT
}
claim 'a disk that is reserved for a slot gets its index' reserved

marked() {
  local sr=7e57ab1e-0000-4000-8000-0000000000fe
  sm sr_create -t lvm -d ${D}07 $sr && vgchange -qq --addtag xcp.slot=$UUID/lvm/3 VG_XenStorage-$sr && rm /var/lib/sm/registry/claims.json || return
  model "lvm: host=$H dev=.*disk0[67]"
  is "$(plan)" $'save layout\nclaim lvm/0\nclaim lvm/3\ncopyconf layout\ncreate lvm/0\nadopt lvm/3\nstart lvm/0\nstart lvm/3' || return
  model "lvm: host=$H dev=${D}07" "lvm: host=$H dev=${D}06 index=3"
  fails_with EINDEX sm plan -m r && grep -q 'line 3: .*is lvm/3 already, and line 4 gives that index to another' "$SCRATCH/stderr" || return
  # It was made for another layout.
  printf '%s\n' 'layout: other' "lvm: host=$H dev=${D}07" > /etc/sm/layouts/other.model
  fails_with ENOMATCH sm plan -m other && grep -q "made for lvm/3 of another layout (a model with the line .uuid: $UUID. takes it over)" "$SCRATCH/stderr" || return
  sm sr_delete -t lvm -d ${D}07 $sr
}
claim 'a disk with the mark of a slot is adopted with its index' marked

grows() {
  local size=/sys/bus/pseudo/drivers/scsi_debug/virtual_gb
  model "lvm: host=$H dev=${D}06" && install && is "$(plan)" '' || return
  echo 1 > $size
  echo 1 > "/sys/block/$(basename "$(realpath ${D}06)")/device/rescan"
  is "$(plan)" $'save layout\ncopyconf layout\ngrow lvm/0' && install && is "$(plan)" '' || return
  echo 0 > $size
  echo 1 > "/sys/block/$(basename "$(realpath ${D}06)")/device/rescan"
  fails_with EFROZEN sm plan -m r && grep -q 'had 1GiB and has 16MiB now' "$SCRATCH/stderr" && rm $LAYOUT
}
claim 'an enlarged LUN grows, and a smaller one is refused' grows

foreign() {
  local before
  before=$(sums)
  model "lvm: host=$H dev=${D}06 index=0" && install && model "lvm: host=$H dev=${D}09 index=0" && fails_with ENODEV sm plan -m r &&
    grep -q 'it is another medium than that of lvm/0' "$SCRATCH/stderr" && is "$(sums)" "$before" || return
  # Another name of the medium is no other medium.
  ln -s "$(realpath ${D}06)" /dev/disk/by-id/second && model "lvm: host=$H dev=/dev/disk/by-id/second index=0" &&
    is "$(plan)" $'stop lvm/0\nsave layout\ncopyconf layout\nstart lvm/0' && rm $LAYOUT
}
claim 'a slot stays on its medium, whatever that is called' foreign

gone() {
  local disk
  disk=$(basename "$(realpath ${D}06)")
  sm devices claim ${D}06 --layout r --class lvm --index 0 && model "lvm: host=$H dev=.*disk06" && install && is "$(plan)" '' || return
  echo 1 > "/sys/block/$disk/device/delete"
  # It comes back some day.
  is "$(plan)" '' && is "$(slots)" '0 disk06'
}
claim 'a claimed disk that is absent keeps its slot' gone
summary
