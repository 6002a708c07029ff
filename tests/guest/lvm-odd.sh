#!/bin/bash
# Odd hosts: a volume that a killed LVM command left suspended, lvm.conf with issue_discards, names that an agent gave, a
# group that other hosts have as well, a disk that no pool can hold.
# guest: uml
# bins: sm
# memory: 512
# disks: 200M 200M
# takes: 65
# tools: lvcreate wipefs mkfs.ext4 e2fsck dmsetup thin_check strace
# UUIDs have no spaces.
# shellcheck disable=SC2086,SC2119
set -u
# shellcheck source-path=SCRIPTDIR source=lvm.inc
. "$ROOT/tests/guest/lvm.inc"
modprobe -a dm_thin_pool
read -r ONE _ <<< "$DISKS"
dm() { echo "${VG//-/--}-${1//-/--}"; }
suspended() { cat /sys/block/dm-*/dm/suspended 2> /dev/null | grep -c 1; }
# in_time COMMAND…: it succeeds, and does not wait for I/O that never comes
in_time() { timeout 100 "$@" > "$SCRATCH/out" 2> "$SCRATCH/err" || fail "in time: $*: $? $(cat "$SCRATCH/err")"; }
tags() { lvs --noheadings -o lv_tags "$VG/LV-$1" 2> /dev/null | tr -d ' '; }
pattern() { local d; d=$(sm vdi_attach $SR $A) && echo content | dd of="$d" conv=fsync,notrunc status=none && sm vdi_detach $SR $A; }
content() { is "$(head -c 7 "$(device $A)")" content "the contents of $A"; }

claim 'suspended: a killed command had loaded a larger table of extents that the volume never got'
DCONF=$ONE
must sm sr_create $SR
must sm vdi_create $SR $A 8
pattern
must sm vdi_create $SR $B 8
in_the_middle() {
  sm vdi_attach $SR $A > /dev/null
  local table
  table=$(dmsetup table "$(dm LV-$A)")
  dmsetup load "$(dm LV-$A)" --table "$table
$((8 << 11)) 8192 linear $ONE 200000"
  dmsetup suspend --noflush --nolockfs "$(dm LV-$A)"
  is "$(suspended)" 1 'what is suspended'
}
for call in "vdi_attach $SR $A" "vdi_resize $SR $A 12" "vdi_detach $SR $A" "sr_attach $SR"; do
  in_the_middle
  in_time "$BIN/sm" ${call%% *} -t lvm -d "$DCONF" ${call#* }
  is "$(suspended)" 0 "what is suspended after $call"
  d=$(sm vdi_attach $SR $A)
  is "$(blockdev --getsize64 "$d")" "$(size $A)" "the size after $call"
  content
  must sm vdi_detach $SR $A
  must sm vdi_resize $SR $A 8 --allow-shrink
done
in_the_middle
is "$(timeout 60 "$BIN/sm" sr_scan -t lvm -d "$DCONF" $SR | grep -o '(vdi (uuid' | wc -l)" 2 'a listing'
in_time "$BIN/sm" vdi_get_params -t lvm -d "$DCONF" $SR $A
in_time "$BIN/sm" vdi_detach -t lvm -d "$DCONF" $SR $A
claim 'and one that has no table at all'
id=$(lvs --noheadings -o vg_uuid,lv_uuid $VG/LV-$A | tr -d ' -')
dmsetup create "$(dm LV-$A)" --uuid "LVM-$id" --notable
d=$(timeout 100 "$BIN/sm" vdi_attach -t lvm -d "$DCONF" $SR $A) || fail 'vdi_attach'
content
must sm vdi_detach $SR $A
must sm sr_delete --yes $SR

claim 'suspended: a thin pool and its disk; an ext SR'
DCONF="((device . \"$ONE\") (allocation . \"thin\"))"
must sm sr_create $SR
must sm vdi_create $SR $A 8
pattern
sm vdi_attach $SR $A > /dev/null
dmsetup suspend --noflush --nolockfs "$(dm LV-$A)"
dmsetup suspend --noflush --nolockfs "$(dm POOL)-tpool"
in_time "$BIN/sm" vdi_snapshot -t lvm -d "$DCONF" $SR $A $B
is "$(suspended)" 0 'what is suspended'
content
must sm vdi_detach $SR $A
must sm sr_delete --yes $SR
DCONF=$ONE
TYPE=ext must sm sr_create $SR
TYPE=ext must sm sr_attach $SR
dmsetup suspend --noflush --nolockfs XSLocalEXT--${SR//-/--}-${SR//-/--}
in_time "$BIN/sm" vdi_create -t ext -d "$DCONF" $SR $A 8
dmsetup suspend --noflush --nolockfs XSLocalEXT--${SR//-/--}-${SR//-/--}
in_time "$BIN/sm" sr_detach -t ext -d "$DCONF" $SR
TYPE=ext must sm sr_delete --yes $SR

claim 'a pool does not promise what no pool can hold'
DCONF="((device . \"$ONE\") (allocation . \"thin\"))"
must sm sr_create $SR
fails_with E2BIG sm vdi_create $SR $A 10240TiB && says '1024 times'
must sm vdi_create $SR $A 100GiB
fails_with E2BIG sm vdi_resize $SR $A 1024TiB && says '1024 times'
is "$(volumes $VG)" "LV-$A POOL " 'the volumes'
must sm sr_delete --yes $SR

claim 'issue_discards: what was zeroed for a disk to grow by is not discarded before the disk has it'
# After a discard a loop device reads as zeroes, and others need not: so the trace tells.
mkdir -p /etc/lvm
printf 'devices { issue_discards=1 }\n' > /etc/lvm/lvmlocal.conf
truncate -s 200M "$SCRATCH/loop"
loop=$(losetup -f --show "$SCRATCH/loop")
tr '\0' x < /dev/zero | dd of="$SCRATCH/loop" bs=1M count=200 conv=notrunc status=none 2> /dev/null
DCONF=$loop
must sm sr_create $SR
must sm vdi_create $SR $A 8
pattern
strace -f -qq -s 200 -e trace=execve -o "$SCRATCH/trace" "$BIN/sm" vdi_resize -t lvm -d "$DCONF" $SR $A 60 || fail vdi_resize
grep 'execve.*lvremove' "$SCRATCH/trace" | grep -q 'issue_discards=0' || fail "lvremove discards: $(grep lvremove "$SCRATCH/trace")"
d=$(sm vdi_attach $SR $A)
cmp -n $((52 << 20)) -i $((8 << 20)):0 "$d" /dev/zero || fail 'what it grew by is not zeroes'
must sm vdi_detach $SR $A
must sm sr_delete --yes $SR
losetup -d "$loop"
rm /etc/lvm/lvmlocal.conf

claim 'other hosts have the group: a new disk is zeroed by the host that makes it'
dirty
DCONF="((device . \"$ONE\") (shared . \"true\"))"
must sm sr_create $SR
DCONF="((device . \"$ONE\") (SRmaster . \"true\"))"
must sm vdi_create $SR $A 8
case $(tags $A) in *xcp.zero*) fail 'it is zeroed at its first attachment' ;; esac
DCONF="((device . \"$ONE\") (SRmaster . \"false\"))"
before=$(vgs --noheadings -o vg_seqno $VG)
d=$(sm vdi_attach $SR $A) || fail 'vdi_attach on another host'
zeroes "$d" || fail 'a new disk is not zeroes'
must sm vdi_detach $SR $A
is "$(vgs --noheadings -o vg_seqno $VG)" "$before" 'the number of changes of the group'
DCONF=$ONE
must sm sr_delete --yes $SR
must sm sr_create $SR
must sm vdi_create $SR $A 8
DCONF="((device . \"$ONE\") (SRmaster . \"false\"))" fails_with ESRBUSY sm vdi_attach $SR $A && says 'attach it there once'
is "$(dmsetup ls)" 'No devices found' 'what is active'
must sm vdi_attach $SR $A > /dev/null
must sm vdi_detach $SR $A
DCONF="((device . \"$ONE\") (SRmaster . \"false\"))" must sm vdi_attach $SR $A > /dev/null
must sm vdi_detach $SR $A
fails_with EINVAL env "$BIN/sm" sr_attach -t lvm -d "((device . \"$ONE\") (shared . \"maybe\"))" $SR && says 'true or false'
must sm sr_delete --yes $SR

claim 'what a killed call left in a disk'\''s cache is flushed before it is said to be there'
DCONF=$ONE
must sm sr_create $SR
must sm vdi_create $SR $A 8
flushed() { # NAME STATUS VERB …: the call fails so, or succeeds with 0, and syncs the device
  local status=0
  strace -f -qq -y -e trace=fsync,fdatasync -o "$SCRATCH/trace" "$BIN/sm" "$3" -t lvm -d "$DCONF" "${@:4}" > /dev/null 2>&1 || status=$?
  is $status "$2" "the status of $1"
  grep -q "fsync([0-9]*<$ONE" "$SCRATCH/trace" || fail "$1 does not flush $ONE"
}
flushed 'sr_create of what exists' 17 sr_create $SR
flushed 'vdi_create of what exists' 17 vdi_create $SR $A 8
flushed 'vdi_delete of what is gone' 0 vdi_delete $SR $B
flushed 'vdi_resize to the size that it has' 0 vdi_resize $SR $A 8
must sm sr_delete --yes $SR
flushed 'sr_delete of what is gone' 0 sr_delete --yes $SR
summary
