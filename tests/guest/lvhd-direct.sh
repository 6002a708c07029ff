#!/bin/bash
# A group is read from its devices, without a process of LVM, and what is read is what LVM says: after each of LVM's changes, with
# disks that are attached. Where anything is odd, LVM is asked: mirrors, a missing device, a copy of one, damage, a change that is
# being made, settings that hide devices. A device whose I/O waits is let be.
# guest: uml
# bins: sm
# memory: 512
# disks: 200M 200M 200M
# takes: 90
# tools: lvcreate wipefs dmsetup strace flock
# UUIDs have no spaces.
# shellcheck disable=SC2086,SC2119
set -u
# shellcheck source-path=SCRIPTDIR source=lvm.inc
. "$ROOT/tests/guest/lvm.inc"
C=7e57ab1e-0000-4000-8000-00000000000c
read -r ONE TWO THREE <<< "$DISKS"
# Where LVM has a list of its devices, it is asked. This LVM does not use the list.
LIST=/etc/lvm/devices/system.devices
asking() { mkdir -p "${LIST%/*}" && : > $LIST; }
answers() { # FILE
  local verb
  for verb in sr_scan vdi_tree sr_get_params sr_check; do sm $verb $SR --format json; done > "$1" 2>&1
}
# same: what is read is what LVM says, and LVM is not asked for it.
same() {
  rm -f $LIST
  answers "$SCRATCH/direct"
  strace -f -qq -e trace=execve -o "$SCRATCH/trace" "$BIN/sm" sr_scan -t lvm -d "$DCONF" $SR > /dev/null
  is "$(grep -c 'execve.*= 0$' "$SCRATCH/trace")" 1 'the programs that a scan runs, itself among them'
  as_asked
}
as_asked() {
  asking
  answers "$SCRATCH/asked"
  rm -f $LIST
  cmp "$SCRATCH/direct" "$SCRATCH/asked" || fail "read: $(cat "$SCRATCH/direct")
LVM says: $(cat "$SCRATCH/asked")"
}
# asked: the answers are LVM's, which is asked.
asked() {
  answers "$SCRATCH/direct"
  strace -f -qq -e trace=execve -o "$SCRATCH/trace" "$BIN/sm" sr_scan -t lvm -d "$DCONF" $SR > /dev/null
  grep -q 'execve.*"fullreport".*= 0$' "$SCRATCH/trace" || fail 'LVM was not asked'
  as_asked
}
lvm_does() { "$@" > "$SCRATCH/lvm" 2>&1 || fail "$*: $(cat "$SCRATCH/lvm")"; }

claim 'thin and thick: disks that are made, attached, written to, copied'
ALL="$ONE,$TWO"
for allocation in thin thick; do
  DCONF="((device . \"$ALL\") (lvhd . \"true\") (allocation . \"$allocation\"))" must sm sr_create $SR
  DCONF=$ALL
  same
  must sm vdi_create $SR $A 16 --label one
  must sm vdi_create $SR $B 8 --type raw
  must sm vdi_lock $SR $B somebody
  same
  d=$(sm vdi_attach $SR $A) || fail vdi_attach
  must sm vdi_attach $SR $B
  dd if=/dev/urandom of="$d" bs=1M count=3 conv=fsync,notrunc status=none
  same
  must sm vdi_snapshot $SR $A $C
  same
  must sm vdi_detach $SR $A
  must sm vdi_detach $SR $B
  same
  # One of the devices leads to the group.
  DCONF=$TWO same
  DCONF=$ALL
  must sm vdi_unlock $SR $B somebody
  [ $allocation = thick ] || must sm sr_delete --yes $SR
done

claim 'after changes that LVM made: tags, sizes, stripes, another device, extents that were moved, a name'
lvm_does lvchange --addtag zz --addtag aa $VG/VHD-$A
lvm_does lvextend -l +3 $VG/VHD-$C "$TWO"
lvm_does vgchange --addtag two --addtag one $VG
same
lvm_does lvcreate -an -Zn -Wn -y -i 2 -l 4 -n VHD-7e57ab1e-0000-4000-8000-00000000000d $VG
same
grep -q 'is striped' "$SCRATCH/direct" || fail 'no word of the stripes'
lvm_does vgextend --metadatasize 10M $VG "$THREE"
same
lvm_does lvremove -y $VG/VHD-7e57ab1e-0000-4000-8000-00000000000d
modprobe -q dm_mirror
lvm_does pvmove -i 1 "$TWO"
same
lvm_does vgreduce $VG "$TWO"
same
lvm_does vgcfgbackup -f "$SCRATCH/backup" $VG

claim 'a device that a change has just left does not lead to the group'
DCONF=$TWO sm sr_scan $SR > "$SCRATCH/left" 2>&1
asking
DCONF=$TWO sm sr_scan $SR > "$SCRATCH/asked" 2>&1
rm $LIST
cmp "$SCRATCH/left" "$SCRATCH/asked" || fail "$(cat "$SCRATCH/left" "$SCRATCH/asked")"

claim 'a mirror, a volume that is not to be activated, a group that is not to be resized: LVM is asked'
DCONF=$ONE
lvm_does lvcreate -an -Zn -Wn -y --type raid1 -m 1 --nosync -l 1 -n mirror $VG
asked
lvm_does lvremove -y $VG/mirror
same
lvm_does lvchange -ky $VG/VHD-$C
asked
lvm_does lvchange -kn $VG/VHD-$C
lvm_does vgchange -xn $VG
asked
lvm_does vgchange -xy $VG
same

claim 'the volume of a disk is suspended: LVM is asked'
must sm vdi_attach $SR $A
dmsetup suspend --noflush --nolockfs "${VG//-/--}-VHD--${A//-/--}"
strace -f -qq -e trace=execve -o "$SCRATCH/trace" "$BIN/sm" sr_get_params -t lvm -d "$DCONF" $SR > /dev/null
grep -q 'execve.*"fullreport".*= 0$' "$SCRATCH/trace" || fail 'LVM was not asked'
dmsetup resume "${VG//-/--}-VHD--${A//-/--}"
must sm vdi_detach $SR $A
same

claim 'settings of LVM: names that are rejected by their beginning are known, of all else LVM is asked'
settings() { echo "$1" > /etc/lvm/lvmlocal.conf; }
for plain in 'devices { filter=[ "r|/dev/nbd|" ] global_filter=[ "r|^/dev/xvd.*|" ] }' 'activation { process_priority = -18 }'; do
  settings "$plain"
  same
done
for odd in "devices { filter=[ \"a|$ONE|\", \"a|$TWO|\", \"a|$THREE|\", \"r|.*|\" ] }" "devices { filter=[ \"r|$THREE\$|\" ] }" \
  "devices { global_filter=[ \"r|$THREE|\" ] }" 'devices { scan_lvs=1 }' "global { locking_dir=\"$SCRATCH/locks\" }"; do
  settings "$odd"
  asked
done
rm /etc/lvm/lvmlocal.conf
same

claim 'a device that lies on one whose I/O waits is let be'
truncate -s 50M "$SCRATCH/stuck"
stuck=$(losetup -f --show "$SCRATCH/stuck")
sectors=$(blockdev --getsz "$stuck")
dmsetup create below --table "0 $sectors linear $stuck 0"
dmsetup create above --table "0 $sectors linear /dev/mapper/below 0"
over=$(losetup -f --show /dev/mapper/above)
sm sr_scan $SR > "$SCRATCH/before"
dmsetup suspend --noflush --nolockfs below
sm sr_scan $SR > "$SCRATCH/meanwhile" 2>&1 &
scan=$!
for ((n = 0; n < 1200; n++)); do
  kill -0 $scan 2> /dev/null || break
  sleep 0.1
done
dmsetup resume below
wait $scan || fail "the scan: $(cat "$SCRATCH/meanwhile")"
[ $n -lt 1200 ] || fail 'the scan waited for the device'
cmp "$SCRATCH/before" "$SCRATCH/meanwhile" || fail "$(cat "$SCRATCH/meanwhile")"
losetup -d "$over"
dmsetup remove above
dmsetup remove below
losetup -d "$stuck"
same

claim 'an LVM command that changes the group is waited for'
exec 8> /run/lock/lvm/V_$VG
flock -x 8
sm sr_scan $SR > "$SCRATCH/waited" 8>&- &
scan=$!
# It asks LVM, which waits for the lock.
for ((n = 0; n < 600; n++)); do
  [ -z "$(pgrep -f 'lvm fullreport')" ] || break
  kill -0 $scan 2> /dev/null || fail 'the scan did not wait'
  sleep 0.1
done
[ $n -lt 600 ] || fail 'LVM was not asked'
is "$(cat "$SCRATCH/waited")" '' 'the answer'
exec 8>&-
wait $scan || fail 'the scan'
is "$(cat "$SCRATCH/waited")" "$(sm sr_scan $SR)" 'the answer in the end'

claim 'a device is gone: LVM is asked, and says so'
truncate -s 100M "$SCRATCH/loop"
loop=$(losetup -f --show "$SCRATCH/loop")
lvm_does vgextend --metadatasize 10M $VG "$loop"
same
losetup -d "$loop"
asked
loop=$(losetup -f --show "$SCRATCH/loop")
same

claim 'a copy of a device, beside it: refused, with both named'
dd if="$loop" of="$TWO" bs=1M count=12 conv=fsync status=none
fails_with EBUSY sm sr_scan $SR && says "$loop" && says "$TWO"
asked
wipefs -qa "$TWO"
same

claim 'a group of the same name on another device: LVM is asked, and says so'
truncate -s 100M "$SCRATCH/other"
other=$(losetup -f --show "$SCRATCH/other")
lvm_does vgcreate other "$other"
# LVM makes no second group of the name where it sees the first, or links to volumes of it.
[ ! -e /dev/$VG ] || mv /dev/$VG /dev/links
lvm_does vgrename --config "devices{filter=[\"a|^$other\$|\",\"r|.*|\"]}" other $VG
[ ! -e /dev/links ] || mv /dev/links /dev/$VG
strace -f -qq -e trace=execve -o "$SCRATCH/trace" "$BIN/sm" sr_scan -t lvm -d "$DCONF" $SR > /dev/null 2>&1
grep -q 'execve.*"fullreport".*= 0$' "$SCRATCH/trace" || fail 'LVM was not asked'
wipefs -qa "$other"
losetup -d "$other"
same

claim 'damage on one device, an older text on one: LVM is asked'
header=4096
dd if="$loop" of="$SCRATCH/header" bs=512 skip=$((header / 512)) count=1 status=none
lvm_does lvchange --addtag newer $VG/VHD-$A
dd if="$loop" of="$SCRATCH/newer" bs=512 skip=$((header / 512)) count=1 status=none
dd if="$SCRATCH/header" of="$loop" bs=512 seek=$((header / 512)) conv=fsync,notrunc status=none
asked
printf x | dd of="$loop" bs=1 seek=$((header + 100)) conv=fsync,notrunc status=none
asked
dd if="$SCRATCH/newer" of="$loop" bs=512 seek=$((header / 512)) conv=fsync,notrunc status=none
same
must sm sr_delete --yes $SR
losetup -d "$loop"
summary
