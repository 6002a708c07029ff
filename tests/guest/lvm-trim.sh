#!/bin/bash
# sr_trim tells the devices what is free in an SR and nothing else: raw volumes, LVHD, ext. The files below the devices become smaller, and
# every disk holds what it held, also where the call is killed before and after each program that it starts. Who may not is refused. A
# device that takes no discards keeps no other from being told, and other calls get their turn while a large group is trimmed.
# guest: uml
# bins: sm
# memory: 768
# takes: 110
# tools: lvcreate dmsetup wipefs mkfs.ext4 e2fsck
# What is in single quotes is evaluated later; UUIDs have no spaces.
# shellcheck disable=SC2016,SC2034,SC2086,SC2119
set -u
modprobe -a dm_mod dm_delay loop fuse dm_thin_pool 2> /dev/null || :
FILES="$SCRATCH/0.disk $SCRATCH/1.disk"
truncate -s 96M $FILES
DISKS=''
for file in $FILES; do DISKS+="${DISKS:+ }$(losetup -f --show "$file")"; done
# shellcheck source-path=SCRIPTDIR source=lvm.inc
. "$ROOT/tests/guest/lvm.inc"
# shellcheck source-path=SCRIPTDIR source=kill.inc
. "$ROOT/tests/guest/kill.inc"
interpose lvm lvchange lvcreate lvremove lvs dmsetup
C=7e57ab1e-0000-4000-8000-00000000000c
LIST=$DCONF
config() { DCONF="((device . \"$LIST\")$1)"; }
trims() { sm sr_trim $SR; }
# taken: KiB that the files below the devices take.
taken() { sync; du -sk $FILES | awk '{ sum += $1 } END { print sum }'; }
# digests DISK…: sets DIGESTS to what the disks hold, read as they are attached.
digests() {
  local disk device
  DIGESTS=''
  for disk; do
    device=$(sm vdi_attach $SR "$disk" --read-only) || return
    DIGESTS+="$(sha256sum < "$device") "
    sm vdi_detach $SR "$disk" || return
  done
}
unchanged() {
  digests $A $B || return
  [ "$DIGESTS" = "$HELD" ] || { echo "the disks hold $DIGESTS, and held $HELD"; false; }
}
fill() { # DISK: SIZE of data, not where it begins
  local device
  device=$(sm vdi_attach $SR "$1") || return
  head -c ${SIZE:-6000000} /dev/urandom | dd of="$device" bs=1M seek=1 conv=fsync,notrunc status=none && sm vdi_detach $SR "$1"
}
free() { sm sr_get_params $SR --format json | sed 's/.*"free":\([0-9]*\).*/\1/'; }
# The volume that a kill leaves.
left() { lvcreate -qq -y -an -Zn -Wn -l 100%FREE -n ${SR}_trim_lv $VG 2> /dev/null; }
# tells WORD: sr_check says so of that volume.
tells() { sm sr_check $SR "${@:2}" --format table 2> /dev/null | grep -q "_trim_lv.*$1"; }

# The group has the disks A and B. OTHERS: the other volumes.
is_trimmed() {
  local before after
  digests $A $B || fail 'what the disks hold'
  HELD=$DIGESTS
  VOLUMES_BEFORE=$(volumes) FREE=$(free) before=$(taken)
  must trims
  after=$(taken)
  is "$((before - after > 81920))" 1 "80 MiB less in the files: $before and $after KiB"
  is "$(volumes) $(free)" "$VOLUMES_BEFORE $FREE" 'the volumes and the free space'
  must unchanged
}
# The same call, killed; then each call that needs the room.
is_killed() {
  dirty_free
  PARTS=1 boundaries "$1" : : '[ "$(volumes)" = "$VOLUMES_BEFORE" ] && unchanged' '' sr_trim $SR
  must left
  is "$(free)" "$FREE" 'the free space beside what a kill left'
  must tells 'sr_trim'
  must sm sr_check $SR --repair
  is "$(volumes)" "$VOLUMES_BEFORE" 'the volumes after sr_check --repair'
  must left
  must sm vdi_create $SR $C 8
  must sm vdi_delete $SR $C
  is "$(volumes)" "$VOLUMES_BEFORE" 'the volumes after vdi_create'
  must left
  must sm vdi_resize $SR $A 20
  is "$(volumes)" "$VOLUMES_BEFORE" 'the volumes after vdi_resize'
  digests $A $B || fail 'what the disks hold'
}
# Old bytes in what is free, of which the files take room again.
dirty_free() {
  lvcreate -qq -y -ay -Zn -Wn -l 100%FREE -n dirty $VG 2> /dev/null || fail 'a volume of all that is free'
  head -c 8388608 /dev/urandom > "$SCRATCH/old"
  while cat "$SCRATCH/old"; do :; done > /dev/$VG/dirty 2> /dev/null
  rm "$SCRATCH/old"
  lvremove -qq -f -y $VG/dirty 2> /dev/null || fail 'the volume of all that is free'
}

claim 'an SR of raw disks, thick'
dirty
config ' (lvhd . "false")'
must sm sr_create $SR
must sm vdi_create $SR $A 16
must sm vdi_create $SR $B 8
must fill $A
is_trimmed
device=$(sm vdi_attach $SR $A) || fail 'vdi_attach'
dirty_free
must trims
is "$(sha256sum < "$device") " "${HELD%%-*}- " 'what an attached disk holds'
must sm vdi_detach $SR $A
is_killed 'sr_trim of raw disks'
HELD=$DIGESTS
must unchanged

claim 'who may not trim is refused, and nothing is changed'
before=$(taken)
config ' (SRmaster . "false")'
fails_with EPERM trims && says master
config ''
must lvcreate -qq -y -an -Zn -Wn -l 100%FREE --addtag xcp.maker=another -n ${SR}_trim_lv $VG
fails_with ENOSPC trims
must tells 'another host'
must lvremove -qq -f -y $VG/${SR}_trim_lv
must lvcreate -qq -y -an -Zn -Wn -l 100%FREE -n other $VG
fails_with ENOSPC trims
must lvremove -qq -f -y $VG/other
is "$(volumes)" "$VOLUMES_BEFORE" 'the volumes'
is "$(taken)" "$before" 'KiB of the files'
must sm sr_delete --yes $SR
config ' (allocation . "thin")'
must sm sr_create $SR
fails_with EPERM trims && says 'its pool'
must sm sr_delete --yes $SR

claim 'an LVHD SR'
dirty
config ' (lvhd . "true")'
must sm sr_create $SR
must sm vdi_create $SR $A 16
must fill $A
must sm vdi_snapshot $SR $A $B
must fill $A
is_trimmed
is_killed 'sr_trim of an LVHD SR'
config ' (SRmaster . "false")'
fails_with EPERM trims && says master
config ''
must sm sr_delete --yes $SR

claim 'a device that takes no discards keeps no other from being told'
must mkdir "$SCRATCH/ram"
must mount -t ramfs ram "$SCRATCH/ram"
must truncate -s 96M "$SCRATCH/ram/disk"
deaf=$(losetup -f --show "$SCRATCH/ram/disk")
is "$(cat "/sys/block/${deaf##*/}/queue/discard_max_bytes")" 0 'the discards that a file in memory takes'
LIST=$deaf,$LIST
dirty
config ' (lvhd . "true")'
must sm sr_create $SR
must sm vdi_create $SR $A 16
must fill $A
must sm vdi_snapshot $SR $A $B
is_trimmed
must sm sr_delete --yes $SR
LIST=${LIST#*,}
losetup -d "$deaf"
umount "$SCRATCH/ram"

claim 'other calls get their turn while a large group is trimmed'
must truncate -s 80G "$SCRATCH/large"
large=$(losetup -f --show "$SCRATCH/large")
# LVM is not to find the label on the loop device as well.
SECTORS=$(($(blockdev --getsz "$large") - 2048))
must dmsetup create slow --table "0 $SECTORS delay $large 2048 0 $large 2048 150"
DCONF='((device . "/dev/mapper/slow") (lvhd . "true"))'
must sm sr_create $SR
sm sr_trim $SR --wait 900 > "$SCRATCH/trimmed" 2>&1 &
trim=$!
for ((n = 0; n < 1200; n++)); do
  [ ! -e /dev/$VG/${SR}_trim_lv ] || break
  kill -0 $trim 2> /dev/null || fail "sr_trim ended: $(cat "$SCRATCH/trimmed")"
  sleep 0.1
done
[ $n -lt 1200 ] || fail 'sr_trim did not begin'
must sm vdi_create $SR $A 8 --wait 900
kill -0 $trim 2> /dev/null || fail 'vdi_create waited for all of sr_trim'
# It goes on fast.
must dmsetup suspend --nolockfs slow
must dmsetup load slow --table "0 $SECTORS linear $large 2048"
must dmsetup resume slow
wait $trim || fail "sr_trim: $(cat "$SCRATCH/trimmed")"
is "$(volumes)" "MGT VHD-$A " 'the volumes'
must sm sr_delete --yes $SR
must dmsetup remove slow
losetup -d "$large"

claim 'an ext SR: its filesystem knows what is free'
TYPE=ext DCONF=$LIST
must sm sr_create $SR
fails_with ESRBUSY trims
must sm sr_attach $SR
must sm vdi_create $SR $A 32 --type raw
must sm vdi_create $SR $B 34 --type raw
must fill $A
SIZE=32M must fill $B
digests $A || fail 'what the disk holds'
HELD=$DIGESTS
must sm vdi_delete $SR $B
sync
before=$(taken)
must trims
after=$(taken)
is "$((before - after > 30720))" 1 "30 MiB less in the files: $before and $after KiB"
digests $A && is "$DIGESTS" "$HELD" 'what the disk holds'
must sm sr_detach $SR
must sm sr_delete --yes $SR
TYPE=file DCONF=$SCRATCH/files
must mkdir "$SCRATCH/files"
must sm sr_create $SR
must sm sr_attach $SR
fails_with EPERM trims && says 'fstrim trims'
must sm sr_detach $SR
must sm sr_delete --yes $SR
for device in $DISKS; do losetup -d "$device"; done
summary
