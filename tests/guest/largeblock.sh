#!/bin/bash
# The compliance suite for the largeblock driver, on a device with sectors of 4,096 bytes; and what it does to others. Locks, many
# calls at once and the other formats are code of the file driver, which file-ext4 and `make check` on a file SR show; with LONG=y here
# as well.
# guest: uml
# bins: sm
# memory: 768
# disks: 1G
# takes: 90
# tools: lvcreate wipefs mkfs.ext4 e2fsck losetup blockdev
# shellcheck disable=SC2016 # eval expands them
set -eu
modprobe -a dm_mod loop fuse nbd 2> /dev/null || :
# A loop device over a file, as LVM would find what is on a disk twice.
mkfs.ext4 -q -F "$DISKS"
mkdir -p "$SCRATCH/disk"
mount "$DISKS" "$SCRATCH/disk"
truncate -s 700M "$SCRATCH/disk/file"
ONE=$(losetup -f --show --sector-size 4096 "$SCRATCH/disk/file")
[ "$(blockdev --getss "$ONE")" = 4096 ]
# shellcheck source-path=SCRIPTDIR source=compliance.inc
. "$ROOT/tests/guest/compliance.inc"
complies_by_turns 1 2 'words locks many' -t largeblock -d "$ONE"
if [ -n "${LONG-}" ]; then
  for format in raw qcow2; do "$ROOT/tests/sh/test1.sh" -t largeblock -d "$ONE" -f $format; done
fi

# shellcheck source-path=SCRIPTDIR source=claims.inc
. "$ROOT/tests/guest/claims.inc"
set +e
GROUP=XSLocalLargeBlock-$SR V=$(vdi 1)
run() { "$BIN/sm" "$1" -t largeblock -d "$ONE" "$SR" "${@:2}"; }
# The device-mapper devices are nodes of their own without udev, and links with it.
loops() { losetup -n -O NAME,LOG-SEC,BACK-FILE | grep '/dev/dm-\|/dev/mapper/'; }
claim 'a device with sectors of 512 bytes is refused' fails_with EINVAL "$BIN/sm" sr_create -t largeblock -d "$DISKS" "$SR"
claim 'two devices are refused' fails_with EINVAL "$BIN/sm" sr_create -t largeblock -d "$ONE,$DISKS" "$SR"
# As the Python driver makes it, but for the loop device that it puts below LVM; what is on the disk is the same.
python() {
  vgcreate -q --metadatasize 10M "$GROUP" "$ONE" && lvcreate -q -n "$SR" -l 100%FREE "$GROUP" -W y --yes &&
    mkfs.ext4 -q -F "/dev/$GROUP/$SR" && lvchange -an "$GROUP/$SR"
}
claim 'an SR of the Python driver' python
claim 'sr_probe finds it' eval '"$BIN/sm" sr_probe -t largeblock -d "$ONE" | grep -q "$SR"'
claim '  and leaves nothing' eval '! loops'
claim 'sr_attach' run sr_attach
claim '  again' run sr_attach
claim '  it is in sectors of 512 bytes' eval 'loops | grep -q " 512 "'
small() { # a write of 512 bytes that goes past the cache of the file
  dd if=/dev/urandom of="/run/sr-mount/$SR/x" bs=512 count=3 oflag=direct status=none && rm "/run/sr-mount/$SR/x"
}
claim '  pieces of 512 bytes are written directly' small
data() {
  local device
  run vdi_create "$V" 20M && device=$(run vdi_attach "$V") && dd if=/dev/urandom of="$SCRATCH/data" bs=1M count=4 status=none &&
    dd if="$SCRATCH/data" of="$device" bs=4k conv=fsync status=none && run vdi_detach "$V"
}
claim 'a disk is written' data
claim 'sr_detach' run sr_detach
claim '  nothing is left of it' eval '! loops && ! dmsetup ls | grep -q LargeBlock'
same() {
  local device
  run sr_attach && device=$(run vdi_attach "$V") && cmp "$SCRATCH/data" <(head -c 4M "$device") && run vdi_detach "$V"
}
claim 'attached again, it is what was written' same
killed() { # the loop device that a killed sr_attach left
  run sr_detach && lvchange -ay "$GROUP/$SR" && losetup -f --sector-size 512 "$(realpath "/dev/$GROUP/$SR")" && run sr_attach &&
    is "$(loops | wc -l)" 1 && run sr_detach && ! loops && run sr_attach
}
claim 'what a killed sr_attach left is taken' killed
claim 'sr_delete' run sr_delete --yes
claim '  nothing is left' eval '! loops && ! vgs "$GROUP" 2> /dev/null'
summary
