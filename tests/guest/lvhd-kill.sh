#!/bin/bash
# Killed before and after each LVM command, also within a script of several, and at each flush of what it writes itself, a call on an LVHD
# SR leaves what the next one completes. A sixteenth of the points is taken, which ones depends on the day; with LONG=y, all.
# guest: uml
# bins: sm
# memory: 512
# disks: 200M 200M
# takes: 105
# tools: lvcreate wipefs dmsetup strace python3
# What is in single quotes is evaluated later; UUIDs have no spaces.
# shellcheck disable=SC2016,SC2086,SC2119
set -u
# shellcheck source-path=SCRIPTDIR source=lvhd.inc
. "$ROOT/tests/guest/lvhd.inc"

dirty
empty_group
group thin
head -c 3000000 /dev/urandom > "$SCRATCH/data"
empty=$(head -c 8M /dev/zero | sha256sum | cut -d' ' -f1)
killed vdi_create : "sm vdi_delete $SR $A" "has 1 && holds $A $empty" 17 vdi_create $SR $A 8 --label x
killed 'vdi_create of a raw disk' : "sm vdi_delete $SR $A" "has 1 && holds $A $empty" 17 vdi_create $SR $A 8 --type raw
killed vdi_delete "sm vdi_create $SR $A 8" : 'has 0' '' vdi_delete $SR $A
must sm vdi_create $SR $A 8
must written $A 1
one=$NOW
killed vdi_snapshot : "sm vdi_delete $SR $B && sm sr_collect $SR" "has 3 && holds $A $one && holds $B $one" 17 vdi_snapshot $SR $A $B
killed 'vdi_snapshot of an attached disk' "sm vdi_attach $SR $A > /dev/null" "sm vdi_detach $SR $A && sm vdi_delete $SR $B && sm sr_collect $SR" \
  "is_on $A 3 $one && holds $B $one" 17 vdi_snapshot $SR $A $B
filled() { lvcreate -qq -y -an -Zn -Wn -l $(($(vgs --noheadings -o vg_free_count $VG) - 8)) -n filler $VG 2> /dev/null && sm vdi_attach $SR $A > /dev/null; }
emptied() { lvremove -qq -f -y $VG/filler && sm vdi_detach $SR $A && sm vdi_delete $SR $B && sm sr_collect $SR; }
roomy() { [ "$(blockdev --getsize64 /dev/$VG/VHD-$A)" = $((16 << 20)) ] && is_on $A 4 $one && holds $B $one; }
LAST=9 killed 'vdi_snapshot of an attached disk that gets its room from its base' filled emptied roomy 17 vdi_snapshot $SR $A $B
must sm vdi_snapshot $SR $A $B
killed 'vdi_clone of a disk without data of its own' : "sm vdi_delete $SR $C" "has 4 && holds $C $one" 17 vdi_clone $SR $B $C
look
must sm vdi_delete $SR $B
must sm sr_collect $SR
must has 1
inflated() { is_on $A 1 $one && [ "$(blockdev --getsize64 /dev/mapper/*-VHD--*)" = $((16 << 20)) ]; }
killed 'vdi_attach of a disk whose volume is too small' "sm vdi_detach $SR $A" : inflated '' vdi_attach $SR $A
must sm vdi_detach $SR $A
above() { # a disk above a base, which another disk was above
  sm vdi_snapshot $SR $A $B && written $A 2 && sm vdi_delete $SR $B
}
killed 'sr_collect, a disk into its base' above : 'has 1 && holds $A $NOW' '' sr_collect $SR
two() { # a base in the middle
  sm vdi_snapshot $SR $A $B && written $A 3 && sm vdi_snapshot $SR $A $C && sm vdi_delete $SR $B && sm vdi_clone $SR $C $B
}
killed 'sr_collect, a base into its base' two "sm vdi_delete $SR $B; sm vdi_delete $SR $C; sm sr_collect $SR" \
  'has 4 && holds $A $NOW && holds $C $NOW && holds $B $NOW' '' sr_collect $SR
look
summary
