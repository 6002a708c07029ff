#!/bin/bash
# Bad devices and filesystems: in use, missing, failing, with errors, full, somebody else's. A clear error, nothing lost. And an
# SR as the Python storage managers make it.
# guest: uml
# bins: sm
# memory: 512
# disks: 200M 200M 200M
# takes: 75
# tools: lvcreate wipefs mkfs.ext4 mkfs.ext3 e2fsck debugfs dmsetup python3
# UUIDs have no spaces.
# shellcheck disable=SC2086
set -u
# shellcheck source-path=SCRIPTDIR source=ext.inc
. "$ROOT/tests/guest/ext.inc"
modprobe -a dm_flakey 2> /dev/null || :
read -r ONE TWO THREE <<< "$DISKS"
vdis() { sm sr_scan $SR | grep -o 'vdi (uuid' | wc -l; }
inactive() { is "$(dmsetup ls | grep -c XSLocalEXT)" 0 'what is active'; }
sum() { sha256sum "$1" | cut -d ' ' -f 1; }

claim "sr_create takes nobody else's devices"
DCONF=$ONE
mkfs.ext4 -q -F -L letters "$ONE"
before=$(sum "$ONE")
fails_with EBUSY sm sr_create $SR && says 'ext4 "letters"'
fails_with EBUSY sm sr_probe && says ext4
mkdir -p "$SCRATCH/mnt"
mount "$ONE" "$SCRATCH/mnt"
fails_with EBUSY sm sr_create $SR --force && says "the mount on $SCRATCH/mnt"
umount "$SCRATCH/mnt"
mkfs.ext4 -q -F -L letters "$ONE"
before=$(sum "$ONE")
fails_with EBUSY sm sr_create $SR && says letters
is "$(sum "$ONE")" "$before" 'the contents of the device'
# A partition table: one Linux partition of 4096 sectors from sector 2048.
printf '\0\0\2\0\203\0\0\0\0\10\0\0\0\20\0\0' | dd of="$TWO" bs=1 seek=446 conv=notrunc status=none
printf '\125\252' | dd of="$TWO" bs=1 seek=510 conv=notrunc status=none
DCONF=$TWO fails_with EBUSY sm sr_create $SR && says dos
DCONF=$TWO must sm sr_create $SR --force
DCONF=$TWO fails_with EBUSY "$BIN/sm" sr_create -t lvm -d "$TWO" $SR && says "XSLocalEXT-$SR"
DCONF=$TWO fails_with EBUSY "$BIN/sm" sr_probe -t lvm -d "$TWO" && says 'no SR of this type'
DCONF=$TWO must sm sr_delete $SR
DCONF=/dev/nonexistent fails_with ENODEV sm sr_create $SR && says /dev/nonexistent
DCONF=/dev/null fails_with ENODEV sm sr_create $SR && says 'not a block device'
DCONF=$TWO,$TWO fails_with EINVAL sm sr_create $SR && says different
DCONF=$TWO,$THREE fails_with ENOSPC sm sr_create $SR 10GiB && says "10GiB are asked for"
DCONF=$TWO
is "$(sm sr_probe)" '(srs)' 'sr_probe of a blank device'
fails_with ENOSR sm sr_attach $SR && says "$VG"
wipefs -qa "$ONE"

claim 'an SR of the Python storage managers, on two devices; ext3 is what the old ones made'
for fs in ext3 ext4; do
  DCONF=$ONE,$TWO
  pvcreate -q -ff -y --metadatasize 10M "$ONE" "$TWO" > /dev/null
  vgcreate -q --metadatasize 10M $VG "$ONE" > /dev/null
  vgextend -q $VG "$TWO" > /dev/null
  lvcreate -q -n $SR -i 2 -I 2048 -L 300 $VG -W y --yes > /dev/null 2>&1
  mkfs.$fs -q -F /dev/$VG/$SR
  lvchange -qan $VG/$SR
  is "$(sm sr_probe | grep -c "(uuid . \"$SR\")")" 1 'sr_probe'
  inactive
  must sm sr_attach $SR
  must sm vdi_create $SR $A 8 --label one
  sm sr_detach $SR
  # As its driver would: by hand, with nothing of ours in between.
  lvchange -qay $VG/$SR
  fsck -a /dev/$VG/$SR > /dev/null || fail 'its fsck is content'
  mkdir -p "$MNT"
  mount /dev/$VG/$SR "$MNT"
  [ -f "$MNT/$A.vhd" ] || fail 'it finds the disk by the name that it expects'
  is "$(find "$MNT" -mindepth 1 -name '.*')" '' 'what else it finds'
  is "$(vdis)" 1 'the disks of an SR that it has mounted'
  umount "$MNT"
  if [ $fs = ext3 ]; then
    must sm sr_delete --yes $SR
    is "$(vgs --noheadings 2> /dev/null)" '' 'the groups'
    continue
  fi
  fails_with ESRBUSY sm sr_scan $SR && says 'is not mounted'
  fails_with ESRBUSY sm vdi_create $SR $B 8 && says 'is not mounted'
  [ -d "$MNT" ] || fail 'the mountpoint was meant to be there'
  mount -t tmpfs elsewhere "$MNT"
  fails_with EBUSY sm sr_scan $SR && says elsewhere
  fails_with EBUSY sm sr_attach $SR && says elsewhere
  umount "$MNT"
  mount /dev/$VG/$SR "$SCRATCH/mnt"
  fails_with EBUSY sm sr_attach $SR && says "the mount on $SCRATCH/mnt"
  fails_with EBUSY sm sr_delete --yes $SR && says "the mount on $SCRATCH/mnt"
  umount "$SCRATCH/mnt"
  DCONF=$TWO fails_with EBUSY "$BIN/sm" sr_create -t ext -d "$TWO" 7e57ab1e-0000-4000-8000-00000000005c && says "$VG"
  fails_with EINVAL sm sr_delete $SR && says '1 VDIs'
  must sm sr_attach $SR
  must sm vdi_lock $SR $A FALSE me
  must sm sr_detach $SR
  fails_with EVDIBUSY sm sr_delete --yes $SR && says me
  inactive
  must sm sr_attach $SR
  fails_with EVDIBUSY sm sr_delete --yes $SR && says me
  must sm vdi_unlock $SR $A TRUE you
  must sm sr_delete --yes $SR
  is "$(vgs --noheadings 2> /dev/null)" '' 'the groups'
done
# One whose making the Python driver did not get far with.
vgcreate -q $VG "$ONE" > /dev/null
DCONF=$ONE fails_with ENOSR sm sr_attach $SR && says 'not finished'
DCONF=$ONE must sm sr_create $SR
DCONF=$ONE must sm sr_delete $SR

claim 'a physical volume is missing'
DCONF=$ONE,$TWO
must sm sr_create $SR
is "$(lvs --noheadings -o lv_name,stripes,stripe_size --units k $VG | tr -s ' ')" " $SR 2 2048.00k" 'the layout'
must sm sr_attach $SR
must sm vdi_create $SR $A 8
DCONF=$THREE must sm sr_scan $SR > /dev/null
must sm sr_detach $SR
mv "$TWO" "$SCRATCH/away"
fails_with ENODEV sm sr_attach $SR && says "$TWO"
fails_with ENODEV sm sr_delete --yes $SR && says "$TWO"
DCONF=$ONE fails_with ENODEV sm sr_probe && says missing
mv "$SCRATCH/away" "$TWO"
must sm sr_attach $SR
is "$(vdis)" 1 'the disks'
must sm sr_delete --yes $SR

claim 'a device fails, and comes back'
begin_shaky "$THREE"
must sm sr_create $SR
must sm sr_attach $SR
must sm vdi_create $SR $A 8 --type raw
d=$(sm vdi_attach $SR $A)
echo content | dd of="$d" conv=fsync,notrunc status=none
# Writes fail: the journal can't go on, and the filesystem takes no more.
swap "0 $sectors flakey $THREE 0 0 1800 1 error_writes"
fails_with EIO sm vdi_create $SR $B 8 && says 'cannot sync'
touch "$MNT/note"
sync -f "$MNT" 2> /dev/null
fails_with EIO sm vdi_create $SR $B 8 && says 'sr_detach and sr_attach'
fails_with EIO sm sr_attach $SR && says 'takes no writes'
is "$(vdis)" 1 'the disks that can be read'
swap "0 $sectors error"
echo 3 > /proc/sys/vm/drop_caches
fails_with EIO sm vdi_create $SR $B 8
fails_with EVDIBUSY sm sr_detach $SR && says $A
must sm vdi_detach $SR $A
must sm sr_detach $SR
fails_with EIO sm sr_attach $SR
fails_with EIO sm sr_delete --yes $SR
is "$(dmsetup ls | cut -f 1)" shaky 'devices'
swap "$good"
must sm sr_attach $SR
d=$(sm vdi_attach $SR $A)
is "$(head -c 7 "$d")" content 'the contents'
must sm vdi_detach $SR $A

claim 'a power cut: the journal is replayed, the disks are there'
must sm vdi_create $SR $B 8
swap "0 $sectors error"
umount -l "$MNT"
let_go() { lvchange -qan $VG/$SR || dmsetup remove "${VG//-/--}-${SR//-/--}"; }
wait_until 'the volume is no longer in use' let_go || fail 'the volume stays in use'
rmdir "$MNT"
swap "$good"
must sm sr_attach $SR
is "$(vdis)" 2 'the disks'

claim 'errors in the filesystem: those that can be are corrected, the others are told'
must sm sr_detach $SR
lvchange -qay $VG/$SR
debugfs -w -R 'set_super_value state 2' /dev/$VG/$SR > /dev/null 2>&1
debugfs -w -R 'set_super_value free_blocks_count 7' /dev/$VG/$SR > /dev/null 2>&1
must sm sr_attach $SR
must sm sr_detach $SR
lvchange -qay $VG/$SR
e2fsck -fn /dev/$VG/$SR > /dev/null 2>&1 || fail 'the filesystem was not repaired'
# The root directory's blocks are somebody else's: no answer but a person's.
debugfs -w -R 'set_inode_field <2> mode 0100644' /dev/$VG/$SR > /dev/null 2>&1
debugfs -w -R 'set_super_value state 2' /dev/$VG/$SR > /dev/null 2>&1
lvchange -qan $VG/$SR
fails_with EIO sm sr_attach $SR && says "e2fsck -f /dev/$VG/$SR"
fails_with EIO sm sr_delete $SR && says "e2fsck -f /dev/$VG/$SR"
fails_with EIO sm sr_delete --yes $SR && says 'by hand'
mounted && fail 'what is damaged is not mounted'
inactive
# What is beyond repair is overwritten on purpose only.
OTHER=7e57ab1e-0000-4000-8000-00000000005c
fails_with EBUSY sm sr_create $OTHER && says "$VG"
fails_with EBUSY sm sr_create $OTHER --force && says "--destroy-sr $SR"
must sm sr_create $OTHER --destroy-sr $SR
must sm sr_delete $OTHER
end_shaky

claim 'no space'
DCONF=$ONE
must sm sr_create $SR
must sm sr_attach $SR
must sm vdi_create $SR $A 100 --type raw
d=$(sm vdi_attach $SR $A)
head -c 400M /dev/zero > "$MNT/filler" 2> /dev/null
fails_with ENOSPC sm vdi_create $SR $B 100
is "$(vdis)" 1 'the disks'
dd if=/dev/zero of="$d" bs=1M count=50 conv=fsync status=none 2> /dev/null && fail 'a write to a full SR is an error'
must sm vdi_detach $SR $A
must sm vdi_delete $SR $A
is "$(vdis)" 0 'the disks'
rm "$MNT/filler"
must sm vdi_create $SR $A 100
sleep 600 9< "$MNT" &
fails_with EBUSY sm sr_detach $SR && says sleep
fails_with EBUSY sm sr_delete --yes $SR && says sleep
kill $!
wait $! 2> /dev/null
must sm sr_delete --yes $SR
inactive
summary
