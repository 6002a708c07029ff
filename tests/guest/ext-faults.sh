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
inactive() { is 'what is active' "$(dmsetup ls | grep -c XSLocalEXT)" 0; }
sum() { sha256sum "$1" | cut -d ' ' -f 1; }

echo "== sr_create takes nobody else's devices"
DCONF=$ONE
mkfs.ext4 -q -F -L letters "$ONE"
before=$(sum "$ONE")
fails_with EBUSY 'ext4 "letters"' sm sr_create $SR
fails_with EBUSY ext4 sm sr_probe
mkdir -p "$SCRATCH/mnt"
mount "$ONE" "$SCRATCH/mnt"
fails_with EBUSY "the mount on $SCRATCH/mnt" sm sr_create $SR --force
umount "$SCRATCH/mnt"
mkfs.ext4 -q -F -L letters "$ONE"
before=$(sum "$ONE")
fails_with EBUSY letters sm sr_create $SR
is 'the contents of the device' "$(sum "$ONE")" "$before"
# A partition table: one Linux partition of 4096 sectors from sector 2048.
printf '\0\0\2\0\203\0\0\0\0\10\0\0\0\20\0\0' | dd of="$TWO" bs=1 seek=446 conv=notrunc status=none
printf '\125\252' | dd of="$TWO" bs=1 seek=510 conv=notrunc status=none
DCONF=$TWO fails_with EBUSY dos sm sr_create $SR
DCONF=$TWO must sm sr_create $SR --force
DCONF=$TWO fails_with EBUSY "XSLocalEXT-$SR" "$BIN/sm" sr_create -t lvm -d "$TWO" $SR
DCONF=$TWO fails_with EBUSY 'no SR of this type' "$BIN/sm" sr_probe -t lvm -d "$TWO"
DCONF=$TWO must sm sr_delete $SR
DCONF=/dev/nonexistent fails_with ENODEV /dev/nonexistent sm sr_create $SR
DCONF=/dev/null fails_with ENODEV 'not a block device' sm sr_create $SR
DCONF=$TWO,$TWO fails_with EINVAL different sm sr_create $SR
DCONF=$TWO,$THREE fails_with ENOSPC needed sm sr_create $SR 10GiB
DCONF=$TWO
is 'sr_probe of a blank device' "$(sm sr_probe)" '(srs)'
fails_with ENOSR "$VG" sm sr_attach $SR
wipefs -qa "$ONE"

echo '== an SR of the Python storage managers, on two devices; ext3 is what the old ones made'
for fs in ext3 ext4; do
  DCONF=$ONE,$TWO
  pvcreate -q -ff -y --metadatasize 10M "$ONE" "$TWO" > /dev/null
  vgcreate -q --metadatasize 10M $VG "$ONE" > /dev/null
  vgextend -q $VG "$TWO" > /dev/null
  lvcreate -q -n $SR -i 2 -I 2048 -L 300 $VG -W y --yes > /dev/null 2>&1
  mkfs.$fs -q -F /dev/$VG/$SR
  lvchange -qan $VG/$SR
  is 'sr_probe' "$(sm sr_probe | grep -c "(uuid . \"$SR\")")" 1
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
  is 'what else it finds' "$(find "$MNT" -mindepth 1 -name '.*')" ''
  is 'the disks of an SR that it has mounted' "$(vdis)" 1
  umount "$MNT"
  if [ $fs = ext3 ]; then
    must sm sr_delete --yes $SR
    is 'the groups' "$(vgs --noheadings 2> /dev/null)" ''
    continue
  fi
  fails_with ESRBUSY 'is not mounted' sm sr_scan $SR
  fails_with ESRBUSY 'is not mounted' sm vdi_create $SR $B 8
  [ -d "$MNT" ] || fail 'the mountpoint was meant to be there'
  mount -t tmpfs elsewhere "$MNT"
  fails_with EBUSY elsewhere sm sr_scan $SR
  fails_with EBUSY elsewhere sm sr_attach $SR
  umount "$MNT"
  mount /dev/$VG/$SR "$SCRATCH/mnt"
  fails_with EBUSY "the mount on $SCRATCH/mnt" sm sr_attach $SR
  fails_with EBUSY "the mount on $SCRATCH/mnt" sm sr_delete --yes $SR
  umount "$SCRATCH/mnt"
  DCONF=$TWO fails_with EBUSY "$VG" "$BIN/sm" sr_create -t ext -d "$TWO" 7e57ab1e-0000-4000-8000-00000000005c
  fails_with EINVAL '1 VDIs' sm sr_delete $SR
  must sm sr_attach $SR
  must sm vdi_lock $SR $A FALSE me
  must sm sr_detach $SR
  fails_with EVDIBUSY me sm sr_delete --yes $SR
  inactive
  must sm sr_attach $SR
  fails_with EVDIBUSY me sm sr_delete --yes $SR
  must sm vdi_unlock $SR $A TRUE you
  must sm sr_delete --yes $SR
  is 'the groups' "$(vgs --noheadings 2> /dev/null)" ''
done
# One whose making the Python driver did not get far with.
vgcreate -q $VG "$ONE" > /dev/null
DCONF=$ONE fails_with ENOSR 'not finished' sm sr_attach $SR
DCONF=$ONE must sm sr_create $SR
DCONF=$ONE must sm sr_delete $SR

echo '== a physical volume is missing'
DCONF=$ONE,$TWO
must sm sr_create $SR
is 'the layout' "$(lvs --noheadings -o lv_name,stripes,stripe_size --units k $VG | tr -s ' ')" " $SR 2 2048.00k"
must sm sr_attach $SR
must sm vdi_create $SR $A 8
DCONF=$THREE must sm sr_scan $SR > /dev/null
must sm sr_detach $SR
mv "$TWO" "$SCRATCH/away"
fails_with ENODEV "$TWO" sm sr_attach $SR
fails_with ENODEV "$TWO" sm sr_delete --yes $SR
DCONF=$ONE fails_with ENODEV missing sm sr_probe
mv "$SCRATCH/away" "$TWO"
must sm sr_attach $SR
is 'the disks' "$(vdis)" 1
must sm sr_delete --yes $SR

echo '== a device fails, and comes back'
begin_shaky "$THREE"
must sm sr_create $SR
must sm sr_attach $SR
must sm vdi_create $SR $A 8 --type raw
d=$(sm vdi_attach $SR $A)
echo content | dd of="$d" conv=fsync,notrunc status=none
# Writes fail: the journal can't go on, and the filesystem takes no more.
swap "0 $sectors flakey $THREE 0 0 1800 1 error_writes"
fails_with EIO 'cannot sync' sm vdi_create $SR $B 8
touch "$MNT/note"
sync -f "$MNT" 2> /dev/null
fails_with EIO 'sr_detach and sr_attach' sm vdi_create $SR $B 8
fails_with EIO 'takes no writes' sm sr_attach $SR
is 'the disks that can be read' "$(vdis)" 1
swap "0 $sectors error"
echo 3 > /proc/sys/vm/drop_caches
fails_with EIO '' sm vdi_create $SR $B 8
fails_with EVDIBUSY $A sm sr_detach $SR
must sm vdi_detach $SR $A
must sm sr_detach $SR
fails_with EIO '' sm sr_attach $SR
fails_with EIO '' sm sr_delete --yes $SR
is 'devices' "$(dmsetup ls | cut -f 1)" shaky
swap "$good"
must sm sr_attach $SR
d=$(sm vdi_attach $SR $A)
is 'the contents' "$(head -c 7 "$d")" content
must sm vdi_detach $SR $A

echo '== a power cut: the journal is replayed, the disks are there'
must sm vdi_create $SR $B 8
swap "0 $sectors error"
umount -l "$MNT"
let_go() { lvchange -qan $VG/$SR || dmsetup remove "${VG//-/--}-${SR//-/--}"; }
wait_until 'the volume is no longer in use' let_go || fail 'the volume stays in use'
rmdir "$MNT"
swap "$good"
must sm sr_attach $SR
is 'the disks' "$(vdis)" 2

echo '== errors in the filesystem: those that can be are corrected, the others are told'
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
fails_with EIO "e2fsck -f /dev/$VG/$SR" sm sr_attach $SR
fails_with EIO "e2fsck -f /dev/$VG/$SR" sm sr_delete $SR
fails_with EIO 'by hand' sm sr_delete --yes $SR
mounted && fail 'what is damaged is not mounted'
inactive
# What is beyond repair is overwritten on purpose only.
OTHER=7e57ab1e-0000-4000-8000-00000000005c
fails_with EBUSY "$VG" sm sr_create $OTHER
fails_with EBUSY "--destroy-sr $SR" sm sr_create $OTHER --force
must sm sr_create $OTHER --destroy-sr $SR
must sm sr_delete $OTHER
end_shaky

echo '== no space'
DCONF=$ONE
must sm sr_create $SR
must sm sr_attach $SR
must sm vdi_create $SR $A 100 --type raw
d=$(sm vdi_attach $SR $A)
head -c 400M /dev/zero > "$MNT/filler" 2> /dev/null
fails_with ENOSPC '' sm vdi_create $SR $B 100
is 'the disks' "$(vdis)" 1
dd if=/dev/zero of="$d" bs=1M count=50 conv=fsync status=none 2> /dev/null && fail 'a write to a full SR is an error'
must sm vdi_detach $SR $A
must sm vdi_delete $SR $A
is 'the disks' "$(vdis)" 0
rm "$MNT/filler"
must sm vdi_create $SR $A 100
sleep 600 9< "$MNT" &
fails_with EBUSY sleep sm sr_detach $SR
fails_with EBUSY sleep sm sr_delete --yes $SR
kill $!
wait $! 2> /dev/null
must sm sr_delete --yes $SR
inactive
finish
