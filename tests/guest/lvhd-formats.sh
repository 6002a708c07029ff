#!/bin/bash
# Raw disks and qcow2s of an LVHD group: made, attached, copied, made larger, merged, reverted and deleted, as lvhd-look.py reads them, which
# asks qemu-img. What a Python driver left half done is ended. Calls are killed before and after each LVM command; a sixteenth of the points
# is taken, with LONG=y, all.
# guest: uml
# bins: sm
# memory: 512
# disks: 200M 200M
# takes: 100
# tools: lvcreate wipefs dmsetup strace python3 qemu-img
# What is in single quotes is evaluated later; UUIDs have no spaces.
# shellcheck disable=SC2016,SC2086,SC2119
set -u
# shellcheck source-path=SCRIPTDIR source=lvhd.inc
. "$ROOT/tests/guest/lvhd.inc"

dirty
empty_group
group thick
head -c 3000000 /dev/urandom > "$SCRATCH/data"
empty=$(head -c 8M /dev/zero | sha256sum | cut -d' ' -f1)
claim 'a snapshot of a raw disk: its volume becomes a base of two VHDs'
must sm vdi_create $SR $A 8 --type raw --label raw
must written $A 1
one=$NOW
must attached $A
fails_with EVDIBUSY sm vdi_snapshot $SR $A $B && says 'cannot be paused'
must sm vdi_detach $SR $A
programs 1 vdi_snapshot $SR $A $B --label monday
look
base=$(field_of $A 4)
is "$(field_of $A 2) $(field_of $A 4) $(field_of $A 7)" "$one $(field_of $B 4) raw" 'the disk over its raw base'
is "$(field_of $B 2) $(field_of $B 7) $(field_of $base 5) $(field_of $base 6)" "$one monday 1 8" 'the snapshot and the base'
fails_with EPERM sm vdi_snapshot $SR $base $C
must written $A 3
two=$NOW
must sm vdi_clone $SR $B $C
must sm vdi_delete $SR $B
look
is "$(field_of $A 2) $(field_of $C 2)" "$two $one" 'the disk that was written to, and a clone'
claim 'images above a raw base are merged into it, and the last of them takes it along'
must sm vdi_snapshot $SR $A $B
must sm vdi_delete $SR $C
must sm sr_collect $SR
look
is "$(field_of $A 2) $(field_of $B 2) $(wc -l <<< "$LOOK")" "$two $two 3" 'after sr_collect'
must attached $A
is "$(digest_of "$d")" "$two" 'the disk over its raw base, attached'
must sm vdi_detach $SR $A
must sm vdi_delete $SR $A
must sm vdi_delete $SR $B
must sm sr_collect $SR
is "$(volumes)" 'MGT ' 'the volumes'

raw() { sm vdi_create $SR $A 8 --type raw > /dev/null && written $A 1 && one=$NOW; }
away() { sm vdi_delete $SR $A; sm vdi_delete $SR $B; sm sr_collect $SR; }
killed 'vdi_snapshot of a raw disk' raw away 'has 3 && holds $A $one && holds $B $one' 17 vdi_snapshot $SR $A $B
must raw
must sm vdi_snapshot $SR $A $B
look
must away

claim 'a journal of a Python driver over a raw base is ended: undone where a child is missing'
must raw
lvcreate -qq -y -ay -Zn -Wn -l 1 --addtag journaler -n clone_${A}_1 $VG 2> /dev/null
printf '73 %-509s' "${C}_$B" | dd of=/dev/$VG/clone_${A}_1 bs=512 conv=fsync status=none
lvchange -qq -an $VG/clone_${A}_1
lvrename -qq $VG LV-$A LV-$C > /dev/null
lvchange -qq --addtag hidden -pr $VG/LV-$C 2> /dev/null
lvcreate -qq -y -ay -Wn -l 2 -n VHD-$A $VG 2> /dev/null
lvchange -qq -an $VG/VHD-$A
must holds $A "$one"
must sm vdi_create $SR $B 8
look
is "$(field_of $A 2) $(field_of $A 4)" "$one -" 'the raw disk again'
must sm vdi_delete $SR $A
must sm vdi_delete $SR $B

for allocation in thick thin; do
  group $allocation
  claim "qcow2, $allocation"
  programs 1 vdi_create $SR $A 16 --type qcow2 --label q
  look
  full=20 small=4
  [ $allocation = thick ] || full=4
  is "$(field_of $A 2) $(field_of $A 6)" "$(head -c 16M /dev/zero | sha256sum | cut -d' ' -f1) $full" 'a new disk'
  must written $A 1
  one=$NOW
  [ $allocation = thick ] || small=4 full=4
  look
  is "$(field_of $A 2) $(field_of $A 6)" "$one $full" 'the disk that was written to'
  must attached $A
  is "$(blockdev --getsize64 /dev/$VG/QCOW2-$A)" $((20 << 20)) 'the volume of the attached disk'
  programs 1 vdi_snapshot $SR $A $B --label monday
  dd if="$SCRATCH/data" of="$d" bs=1M count=2 seek=4 conv=fsync,notrunc status=none
  must sm vdi_resize $SR $A 24
  is "$(blockdev --getsize64 "$d")" $((24 << 20)) 'the larger disk'
  dd if="$SCRATCH/data" of="$d" bs=1M count=2 seek=22 conv=fsync,notrunc status=none
  two=$(digest_of "$d")
  must sm vdi_detach $SR $A
  nothing_active || fail 'active'
  look
  is "$(field_of $A 2) $(field_of $B 2) $(field_of $B 6)" "$two $one $small" 'the disk and its snapshot'
  is "$(field_of "$(field_of $A 4)" 6)" 4 'the base, as small as what it holds'
  must sm vdi_clone $SR $B $C
  must written $C 6
  three=$NOW
  look
  is "$(field_of $C 2) $(field_of $C 4)" "$three $(field_of $A 4)" 'a clone of the snapshot'
  must sm vdi_delete $SR $C
  must sm vdi_delete $SR $B
  must attached $A
  must sm sr_collect $SR
  is "$(digest_of "$d")" "$two" 'the attached disk after it was merged'
  must sm vdi_detach $SR $A
  look
  is "$(wc -l <<< "$LOOK") $(field_of $A 2)" "1 $two" 'the disk that was merged'
  must sm vdi_snapshot $SR $A $B
  must written $A 9
  must sm vdi_snapshot $SR $A $C
  later=$NOW
  must sm vdi_delete $SR $B
  must sm sr_collect $SR
  must sm vdi_revert $SR $A $C
  look
  is "$(field_of $A 2) $(field_of $C 2)" "$later $later" 'after a base was merged into its base'
  must sm vdi_delete $SR $C
  must sm vdi_delete $SR $A
  must sm sr_collect $SR
  is "$(volumes)" 'MGT ' 'the volumes'
done

for format in vhd qcow2; do
  claim "a $format that is written to from end to end fits its volume, also after merges"
  must sm vdi_create $SR $A 48 --type $format
  must attached $A
  must head -c 48M /dev/urandom > "$d"
  must sm vdi_snapshot $SR $A $B
  must head -c 48M /dev/urandom > "$d"
  two=$(digest_of "$d")
  must sm vdi_delete $SR $B
  must sm sr_collect $SR
  is "$(digest_of "$d")" "$two" 'the disk'
  must head -c 48M /dev/urandom > "$d"
  two=$(digest_of "$d")
  must sm vdi_detach $SR $A
  look
  is "$(field_of $A 2) $(wc -l <<< "$LOOK")" "$two 1" 'the disk after all'
  must sm vdi_delete $SR $A
done

must sm vdi_create $SR $A 8 --type qcow2
must written $A 1
one=$NOW
killed 'vdi_snapshot of a qcow2' : "sm vdi_delete $SR $B && sm sr_collect $SR" "has 3 && holds $A $one && holds $B $one" 17 vdi_snapshot $SR $A $B
above() { sm vdi_snapshot $SR $A $B && written $A 2 && sm vdi_delete $SR $B; }
killed 'sr_collect of a qcow2' above : 'has 1 && holds $A $NOW' '' sr_collect $SR
must sm vdi_delete $SR $A
killed 'vdi_create of a qcow2' : "sm vdi_delete $SR $A" "has 1 && holds $A $empty" 17 vdi_create $SR $A 8 --type qcow2
summary
