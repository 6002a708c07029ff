#!/bin/bash
# An empty device becomes an LVHD SR, thick or thin, which grows with its device, is repaired and deleted; disks go back to snapshots and are
# locked. Each of these calls is killed before and after each LVM command; a sixteenth of the points is taken, with LONG=y, all.
# guest: uml
# bins: sm
# memory: 512
# disks: 200M 200M
# takes: 60
# tools: lvcreate wipefs dmsetup strace python3 losetup
# What is in single quotes is evaluated later; UUIDs have no spaces.
# shellcheck disable=SC2016,SC2086,SC2119
set -u
# shellcheck source-path=SCRIPTDIR source=lvhd.inc
. "$ROOT/tests/guest/lvhd.inc"
all=$DCONF
made() { echo "((device . \"${2-$all}\") (lvhd . \"true\") (allocation . \"$1\"))"; }

dirty
claim 'an empty device becomes an SR that the Python drivers read'
DCONF=$(made thin)
must sm sr_create $SR
look
is "$(volumes) $(vgs --noheadings -o vg_tags $VG | tr -d ' ')" 'MGT  ' 'the volumes and the tags of a new SR'
is "$(lvs --noheadings --units m --nosuffix -o lv_size $VG/MGT | tr -d ' ')" 4.00 'the size of MGT'
lvchange -qq -ay $VG/MGT
is "$(dd if=/dev/$VG/MGT bs=512 count=2 status=none | tr -s ' ')" "XSSM:2048 :1:2 <?xml version=\"1.0\" ?><uuid>$SR</uuid><allocation>thin</allocation> " 'what MGT says'
lvchange -qq -an $VG/MGT
DCONF=$all
fails_with EEXIST sm sr_create $SR && says "$SR"
must sm vdi_create $SR $A 16 --label disk
head -c 3000000 /dev/urandom > "$SCRATCH/data"
must written $A 1
one=$NOW
look
is "$(field_of $A 2) $(field_of $A 6)" "$one 8" 'a disk in it, thin'

claim 'a disk is locked, by tags that a snapshot leaves to it'
must sm vdi_lock $SR $A FALSE 'me & you'
fails_with EVDIBUSY sm vdi_delete $SR $A && says 'me & you'
fails_with ENOLCK sm vdi_lock $SR $A FALSE other && says 'me & you'
must sm vdi_snapshot $SR $A $B --label monday
look
base=$(field_of $A 4)
is "$(lvs --noheadings -o lv_tags $VG/VHD-$base | tr -d ' ')" '' 'the tags of the base'
fails_with EVDIBUSY sm vdi_delete $SR $A && says 'me & you'
fails_with EVDIBUSY sm sr_delete $SR --yes && says 'me & you'
must sm vdi_delete $SR $B
must sm sr_collect $SR
look
is "$(wc -l <<< "$LOOK") $(field_of $A 2)" "1 $one" 'the disk after the merge'
fails_with EVDIBUSY sm vdi_delete $SR $A && says 'me & you'
must sm vdi_unlock $SR $A FALSE 'me & you'

claim 'a disk goes back to a snapshot'
must sm vdi_snapshot $SR $A $B --label monday
must written $A 4
two=$NOW
must sm vdi_resize $SR $A 20
programs 1 vdi_revert $SR $A $B
look
is "$(field_of $A 2) $(field_of $A 3) $(field_of $A 7)" "$one $((16 << 20)) disk" 'the disk that went back'
is "$(field_of $B 2) $(wc -l <<< "$LOOK")" "$one 3" 'its snapshot, and the images'
must sm vdi_revert $SR $A $B
must sm vdi_delete $SR $A
must sm sr_collect $SR
is "$(sm vdi_create $SR $A 16 > /dev/null; sm vdi_revert $SR $A $B 2>&1 | grep -c 'share no image')" 1 'a disk that shares nothing with it'
must sm vdi_delete $SR $A
must sm vdi_clone $SR $B $A
later() { written $A 4 && two=$NOW; }
ahead() { later && [ "$two" != "$one" ]; }
killed vdi_revert ahead : "has 3 && holds $A $one && holds $B $one" '' vdi_revert $SR $A $B
look
is "$(wc -l <<< "$LOOK")" 3 'the images after the kills'

claim 'half done as a Python driver would find it: both sides read the disk that was'
must ahead
lvcreate -qq -y -ay -Zn -Wn -l 1 --addtag journaler -n leaf_${A}_1 $VG 2> /dev/null
look_at() { lvs --noheadings -o lv_name $VG | grep -c "VHD-OLD_$A"; }
base=$(sm vdi_get_params $SR $A | sed 's/.*(parent \. "\{0,1\}\([0-9a-f-]*\).*/\1/')
printf '36 %-509s' "$base" | dd of=/dev/$VG/leaf_${A}_1 bs=512 conv=fsync status=none
lvchange -qq -an $VG/leaf_${A}_1
lvrename -qq $VG VHD-$A VHD-OLD_$A > /dev/null
must holds $A "$two"
must sm vdi_create $SR $C 8
is "$(look_at)" 0 'the old leaf after the recovery'
must holds $A "$two"
must sm vdi_delete $SR $C

claim 'sr_check --repair ends what was begun, and mends MGT'
lvcreate -qq -y -an -Zn -Wn -l 1 --addtag journaler -n inflate_${A}_$((12 << 20)) $VG 2> /dev/null
lvextend -qq -y -l 7 $VG/VHD-$A > /dev/null
lvchange -qq -ay $VG/MGT
# The record of a disk is torn, and the first sector is not.
at=$(grep -abo "<uuid>$B" /dev/$VG/MGT | head -1 | cut -d: -f1)
printf 'torn' | dd of=/dev/$VG/MGT bs=1 seek=$((at + 2)) conv=fsync,notrunc status=none
lvchange -qq -an $VG/MGT
status=0
sm sr_check $SR --format table > "$SCRATCH/check" 2> /dev/null || status=$?
is $status 5 'the status of sr_check'
sm sr_check $SR --repair --format table > "$SCRATCH/check" 2> /dev/null || fail "$(cat "$SCRATCH/check")"
if ! grep -q 'inflate_' "$SCRATCH/check" || ! grep -q 'records cannot be read' "$SCRATCH/check"; then fail "$(cat "$SCRATCH/check")"; fi
must sm sr_check $SR
must sm vdi_set $SR $B --label tuesday
look
is "$(field_of $B 7) $(field_of $A 2)" "tuesday $two" 'the disks after the repair'

claim 'not where another host is the master'
DCONF="((device . \"$all\") (SRmaster . \"false\"))"
for call in 'sr_delete --yes' 'sr_check --repair' "vdi_lock $A FALSE me" "vdi_revert $A $B --yes"; do
  read -r verb rest <<< "$call"
  fails_with EPERM sm $verb $SR $rest && says 'SRmaster'
done
DCONF=$all

claim 'an SR is deleted with its disks, but not while one is attached'
must attached $A
fails_with EVDIBUSY sm sr_delete $SR --yes
must sm vdi_detach $SR $A
must sm sr_delete $SR --yes
is "$(vgs --noheadings -o vg_name 2> /dev/null; pvs --noheadings 2> /dev/null; ls /run/sm/refcount 2> /dev/null)" '' 'what is left'
must sm sr_delete $SR

DCONF=$(made thick)
there() { DCONF=$all sm sr_get_params $SR > /dev/null && look && [ -z "$LOOK" ] && [ "$(volumes)" = 'MGT ' ]; }
gone() { [ -z "$(vgs --noheadings -o vg_name 2> /dev/null)" ]; }
killed sr_create : "sm sr_delete $SR" there 17 sr_create $SR
DCONF=$all
full() { DCONF=$(made thick) sm sr_create $SR && sm vdi_create $SR $A 8 > /dev/null; }
killed sr_delete full : gone '' sr_delete $SR --yes

claim 'an SR grows with its device when it is attached'
modprobe loop 2> /dev/null
truncate -s 100M "$SCRATCH/image"
device=$(losetup -f --show "$SCRATCH/image")
DCONF=$(made thick "$device")
must sm sr_create $SR
must sm vdi_create $SR $A 16
fails_with ENOSPC sm vdi_create $SR $B 120
truncate -s 300M "$SCRATCH/image"
losetup -c "$device"
must sm sr_attach $SR
must sm vdi_create $SR $B 120
look
is "$(field_of $B 3)" $((120 << 20)) 'a disk in what was added'
must sm sr_delete $SR --yes
losetup -d "$device"
summary
