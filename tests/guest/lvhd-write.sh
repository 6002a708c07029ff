#!/bin/bash
# LVHD groups are changed: disks are made, written to, made larger, copied, deleted and merged, thick and thin, as lvhd-look.py reads
# them. What a Python driver left half done is ended.
# guest: uml
# bins: sm
# memory: 512
# disks: 200M 200M
# takes: 60
# tools: lvcreate wipefs dmsetup python3
# UUIDs have no spaces.
# shellcheck disable=SC2086,SC2119
set -u
# shellcheck source-path=SCRIPTDIR source=lvhd.inc
. "$ROOT/tests/guest/lvhd.inc"

dirty
claim 'a group that is empty but for MGT: disks are made, thick'
empty_group
group thick
is "$(sm sr_scan $SR | grep -c '(vdi (uuid')" 0 'the VDIs'
programs 1 vdi_create $SR $A 16 --label 'the <first>'
must sm vdi_create $SR $B 8 --type raw
fails_with EEXIST sm vdi_create $SR $A 8 && says $A
fails_with ENOSPC sm vdi_create $SR $C 4096
look
is "$(field_of $A 2)" "$(head -c 16M /dev/zero | sha256sum | cut -d' ' -f1)" 'the digest of a new VHD'
is "$(field_of $B 2)" "$(head -c 8M /dev/zero | sha256sum | cut -d' ' -f1)" 'the digest of a new raw disk'
is "$(field_of $A 6) $(field_of $A 7) $(field_of $B 6)" '24 the 8' 'the volumes'
nothing_active || fail 'active'

claim 'a disk is attached and written to'
head -c 3000000 /dev/urandom > "$SCRATCH/data"
programs 1 vdi_attach $SR $A
read -r d < "$SCRATCH/out"
is "$(counts)" '0a:0 1 ' 'the counts'
dd if="$SCRATCH/data" of="$d" bs=1M seek=1 conv=fsync,notrunc status=none
now=$(digest_of "$d")
must sm vdi_detach $SR $A
nothing_active || fail 'active'
look
is "$(field_of $A 2)" "$now" 'the digest of the disk that was written to'
must attached $B
dd if="$SCRATCH/data" of="$d" bs=1M seek=1 conv=fsync,notrunc status=none
must sm vdi_detach $SR $B
must sm vdi_resize $SR $B 12
must attached $B
is "$(blockdev --getsize64 "$d")" $((12 << 20)) 'the size of the raw disk'
is "$(cmp -n 3000000 -i 0:1048576 "$SCRATCH/data" "$d" && cmp -n $((4 << 20)) -i $((8 << 20)):0 "$d" /dev/zero && echo same)" same 'what it holds'
must sm vdi_detach $SR $B
must sm vdi_delete $SR $B
must sm vdi_resize $SR $A 20
fails_with EPERM sm vdi_resize $SR $A 8
look
is "$(field_of $A 3) $(field_of $A 6)" "$((20 << 20)) 28" 'the size and the volume of the larger disk'

claim 'a snapshot and a clone, of a disk that is attached and of one that is not'
must attached $A
now=$(digest_of "$d")
programs 1 vdi_snapshot $SR $A $B --label monday
is "$(counts | wc -w)" 4 'the counts of the disk and its base'
echo changed | dd of="$d" conv=fsync,notrunc status=none
later=$(digest_of "$d")
must sm vdi_detach $SR $A
is "$(counts; ls /run/sm/refcount)" '' 'the counts'
nothing_active || fail 'active'
look
is "$(field_of $A 2) $(field_of $B 2)" "$later $now" 'the digests of the disk and its snapshot'
is "$(field_of $A 6) $(field_of $B 6)" '28 8' 'their volumes'
base=$(field_of $A 4)
is "$(field_of $base 6)" 12 'the volume of the base'
must sm vdi_clone $SR $B $C --label tuesday
look
is "$(field_of $C 2) $(field_of $C 6)" "$now 28" 'the clone of the snapshot, one more child of the base'
is "$(field_of $C 4)" "$base" 'its parent'
must attached $C
dd if="$SCRATCH/data" of="$d" bs=1M seek=9 conv=fsync,notrunc status=none
now=$(digest_of "$d")
must sm vdi_detach $SR $C
look
is "$(field_of $C 2)" "$now" 'the clone after it was written to'

claim 'deleted disks give their space back, and what is left is merged'
must sm vdi_delete $SR $B
must sm vdi_delete $SR $C
must sm sr_collect $SR
look
is "$(wc -l <<< "$LOOK")" 1 'the images after sr_collect'
is "$(field_of $A 2) $(field_of $A 4) $(field_of $A 6)" "$later - 28" 'the disk that was merged'
must sm vdi_snapshot $SR $A $B
must attached $A
dd if="$SCRATCH/data" of="$d" bs=1M seek=12 conv=fsync,notrunc status=none
later=$(digest_of "$d")
must sm vdi_snapshot $SR $A $C
must sm vdi_delete $SR $B
must sm sr_collect $SR
is "$(digest_of "$d")" "$later" 'the attached disk after a merge below it'
must sm vdi_delete $SR $C
must sm sr_collect $SR
is "$(digest_of "$d")" "$later" 'the attached disk after it was merged'
echo again | dd of="$d" conv=fsync,notrunc status=none
later=$(digest_of "$d")
is "$(counts)" '0a:0 1 ' 'the counts'
must sm vdi_detach $SR $A
look
is "$(wc -l <<< "$LOOK") $(field_of $A 2) $(field_of $A 6)" "1 $later 28" 'the disk after all merges'
nothing_active || fail 'active'
must sm vdi_delete $SR $A
is "$(volumes)" 'MGT ' 'the volumes at the end'

claim 'thin: a volume has room for all of its disk while that is attached for writing'
group thin
must sm vdi_create $SR $A 16 --label thin
look
is "$(field_of $A 6)" 8 'the volume of a new disk'
programs 1 vdi_attach $SR $A
read -r d < "$SCRATCH/out"
is "$(blockdev --getsize64 /dev/mapper/*-VHD--*)" $((24 << 20)) 'the volume of the attached disk'
dd if="$SCRATCH/data" of="$d" bs=1M seek=1 conv=fsync,notrunc status=none
must sm vdi_resize $SR $A 20
is "$(blockdev --getsize64 "$d") $(blockdev --getsize64 /dev/mapper/*-VHD--*)" "$((20 << 20)) $((28 << 20))" 'the disk and its volume, larger'
now=$(digest_of "$d")
must sm vdi_snapshot $SR $A $B
must sm vdi_detach $SR $A
look
is "$(field_of $A 2) $(field_of $B 2)" "$now $now" 'the digests of the disk and its snapshot'
is "$(field_of $A 6) $(field_of $B 6) $(field_of "$(field_of $A 4)" 6)" '8 8 12' 'their volumes and that of the base'
must sm vdi_delete $SR $B
must sm sr_collect $SR
look
is "$(wc -l <<< "$LOOK") $(field_of $A 2) $(field_of $A 6)" "1 $now 12" 'the disk that was merged'

claim 'what a Python driver left of a volume that was to be larger is undone'
lvcreate -qq -y -an -Zn -Wn -l 1 --addtag journaler -n inflate_${A}_$((12 << 20)) $VG 2> /dev/null
lvextend -qq -y -l 7 $VG/VHD-$A > /dev/null
must sm vdi_create $SR $B 8
look
is "$(field_of $A 2) $(field_of $A 6)" "$now 12" 'the disk and its volume'
must sm vdi_delete $SR $A
must sm vdi_delete $SR $B
summary
