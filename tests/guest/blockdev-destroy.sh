#!/bin/bash
# sr_create never destroys an SR with disks unless that SR is named, whatever else is forced, and says what would be lost.
# guest: uml
# bins: sm
# memory: 512
# disks: 100M 100M 100M 400M
# takes: 130
# needs: xfs btrfs
# tools: lvcreate wipefs mkfs.ext4 e2fsck mkfs.xfs mkfs.btrfs
# UUIDs have no spaces.
# shellcheck disable=SC2086,SC2119
set -u
# shellcheck source-path=SCRIPTDIR source=lvm.inc
. "$ROOT/tests/guest/lvm.inc"
modprobe -a dm_thin_pool
read -r ONE TWO THREE FOUR <<< "$DISKS"
NEW=7e57ab1e-0000-4000-8000-0000000000fe
# as TYPE DEVICES VERB …: a call on other devices than DCONF's
as() { "$BIN/sm" "$3" -t "$1" -d "$2" "${@:4}"; }
groups() { vgs --noheadings -o vg_name 2> /dev/null | tr -d ' ' | sort | tr '\n' ' '; }
# The type of the new SR, and how it is forced: each of both here, each pair with LONG=y.
attempts=("lvm" "lvm --force --destroy-sr $NEW" "ext --force")
[ -z "${LONG-}" ] || attempts+=("lvm --force" "ext" "ext --force --destroy-sr $NEW")
# refused TEXT…: sr_create of either type, forced or not, says each TEXT, and changes no byte
refused() {
  local before after attempt type text option out status
  before=$(written $DISKS)
  for attempt in "${attempts[@]}"; do
    type=${attempt%% *} option=${attempt#"${attempt%% *}"}
    status=0
    out=$(as $type "$ONE" sr_create $NEW $option 2>&1) || status=$?
    is $status 16 "the status of $type $option"
    for text; do case $out in *"$text"*) ;; *) fail "$type $option should say '$text': $out" ;; esac; done
    case $out in *'--force overwrites'*) fail "$type $option: --force is recommended" ;; esac
  done

  after=$(written $DISKS)
  is "$after" "$before" 'what was written to the disks'
}

for held in lvm thin ext; do
  claim "$held"
  TYPE=${held/thin/lvm}
  DCONF=$ONE,$TWO
  [ $held != thin ] || DCONF="((device . \"$DCONF\") (allocation . \"thin\"))"
  must sm sr_create $SR
  # Without disks there is nothing to lose.
  fails_with EBUSY as ext "$ONE" sr_create $NEW && says '--force overwrites it'
  must sm sr_attach $SR
  must sm vdi_create $SR $A 8 --label 'root disk'
  must sm vdi_create $SR $B 12
  must sm vdi_lock $SR $A FALSE vm7
  if [ $held = ext ]; then
    fails_with EBUSY as ext "$ONE" sr_create $NEW --force && says 'XSLocalEXT'
    fails_with EBUSY as ext "$ONE" sr_create $NEW --force --destroy-sr $SR && says 'is active'
    must sm sr_detach $SR
  else
    d=$(sm vdi_attach $SR $B)
    fails_with EBUSY as ext "$ONE" sr_create $NEW --destroy-sr $SR && says 'is active'
    is "$(blockdev --getsize64 $d)" $((12 << 20)) 'the device is there'
    must sm vdi_detach $SR $B
    [ $held != thin ] || must sm sr_detach $SR
  fi
  refused "$SR" '2 disks' '"root disk" 8MiB locked by vm7' "$B 12MiB" "--destroy-sr $SR"
  is "$(dmsetup ls)" 'No devices found' 'what is active'

  claim "$held: a device of it is missing"
  mv "$TWO" "$SCRATCH/away"
  case $TYPE in
  lvm) DISKS="$ONE $THREE" refused "$SR" '2 disks' "$B 12MiB" ;;
  ext) DISKS="$ONE $THREE" refused "$SR" 'cannot be listed' 'is missing' ;;
  esac
  mv "$SCRATCH/away" "$TWO"

  claim "$held: LVM is told not to look at it"
  mkdir -p /etc/lvm
  printf 'devices { global_filter=[ "r|%s|", "r|%s|" ] }\n' "$ONE" "$TWO" > /etc/lvm/lvmlocal.conf
  refused "$SR" 'LVM does not show'
  rm /etc/lvm/lvmlocal.conf

  claim "$held: its metadata is damaged"
  for disk in $ONE $TWO; do
    dd if="$disk" of="$SCRATCH/${disk##*/}" bs=1M count=11 status=none
    dd if=/dev/zero of="$disk" bs=512 seek=8 count=1 conv=notrunc,fsync status=none
  done
  refused "$SR" damaged
  # Not even a name is left of it.
  for disk in $ONE $TWO; do dd if=/dev/zero of="$disk" bs=4096 seek=1 count=200 conv=notrunc,fsync status=none; done
  fails_with EBUSY as lvm "$ONE" sr_create $NEW && says 'a volume group whose metadata is damaged'
  for disk in $ONE $TWO; do dd if="$SCRATCH/${disk##*/}" of="$disk" bs=1M conv=notrunc,fsync status=none; done
  must sm sr_attach $SR
  must sm sr_detach $SR

  claim "$held: it is named"
  must as lvm "$ONE" sr_create $NEW --destroy-sr $SR
  is "$(groups)" "VG_XenStorage-$NEW " 'the groups'
  is "$(wipefs --noheadings "$TWO")" '' "what is on $TWO"
  must as lvm "$ONE" sr_delete $NEW
  # A program may say it again.
  must as lvm "$ONE" sr_create $NEW --destroy-sr $SR
  must as lvm "$ONE" sr_delete $NEW
done

claim 'an SR without disks goes with --force'
for TYPE in lvm ext; do
  DCONF=$ONE,$TWO
  must sm sr_create $SR
  must as lvm "$ONE" sr_create $NEW --force
  is "$(groups)" "VG_XenStorage-$NEW " 'the groups'
  must as lvm "$ONE" sr_delete $NEW
  is "$(wipefs --noheadings "$TWO")" '' "what is on $TWO"
done

claim 'LVHD, and filesystems of other storage managers'
VG=VG_XenStorage-$SR
vgcreate -qq --metadatasize 10M $VG "$ONE" > /dev/null
lvcreate -qq -y -an -Zn -Wn -l 1 -n MGT $VG > /dev/null
lvcreate -qq -y -an -Zn -Wn -l 3 -n VHD-$A $VG > /dev/null
lvcreate -qq -y -an -Zn -Wn -l 2 -n LV-$B $VG > /dev/null
refused "$SR" '2 disks' "$A 12MiB" "$B 8MiB"
vgrename -qq $VG XSLocalXFS-$SR > /dev/null
refused "$SR" 'cannot be listed'
vgrename -qq XSLocalXFS-$SR linstor_group > /dev/null
lvrename -qq linstor_group LV-$B xcp-volume-${B}_00000 > /dev/null
refused LINSTOR
lvremove -qq -y linstor_group/xcp-volume-${B}_00000 > /dev/null
fails_with EBUSY as ext "$ONE" sr_create $NEW && says "VHD-$A 12MiB"
fails_with EBUSY as ext "$ONE" sr_create $NEW && says 'vgremove linstor_group'
before=$(written $DISKS)
fails_with EBUSY as ext "$ONE" sr_create $NEW --force && says 'vgremove linstor_group'
is "$(written $DISKS)" "$before" 'what is on the disks'
vgremove -qq -y linstor_group > /dev/null
must as ext "$ONE" sr_create $NEW --force
must as ext "$ONE" sr_delete --yes $NEW

claim 'file SRs in filesystems that are not mounted'
mkdir -p "$SCRATCH/fs"
for below in '' /storage; do
  mkfs.ext4 -q -F "$ONE"
  mount "$ONE" "$SCRATCH/fs"
  mkdir -p "$SCRATCH/fs$below"
  rmdir "$SCRATCH/fs/lost+found"
  TYPE=file DCONF=$SCRATCH/fs$below
  must sm sr_create $SR
  must sm vdi_create $SR $A 8 --label 'in a file'
  umount "$SCRATCH/fs"
  refused "$SR" "a file SR in its ext4" '1 disk' '"in a file" 8MiB' "--destroy-sr $SR"
  is "$(blockdev --getro "$ONE")" 0 'whether the device takes writes'
  mount "$ONE" "$SCRATCH/fs"
  must sm vdi_delete $SR $A
  umount "$SCRATCH/fs"
  fails_with EBUSY as ext "$ONE" sr_create $NEW && says '--force overwrites it'
  mount "$ONE" "$SCRATCH/fs"
  must sm vdi_create $SR $B 8
  # Images of another storage manager.
  [ -z "$below" ] || rm "$SCRATCH/fs$below/.sm-sr"
  umount "$SCRATCH/fs"
  if [ -z "$below" ]; then
    must as ext "$ONE" sr_create $NEW --destroy-sr $SR
  else
    refused "the image of a VDI ($B" 'in /storage' 'wipefs -a'
    wipefs -qa "$ONE"
    must as ext "$ONE" sr_create $NEW
  fi
  must as ext "$ONE" sr_delete --yes $NEW
done

claim 'and in those of other kinds'
modprobe -a xfs btrfs 2> /dev/null
for kind in xfs btrfs; do
  must "mkfs.$kind" -q -f "$FOUR"
  must mount -t $kind "$FOUR" "$SCRATCH/fs"
  TYPE=file DCONF=$SCRATCH/fs
  must sm sr_create $SR
  must sm vdi_create $SR $A 8 --label "in $kind"
  umount "$SCRATCH/fs"
  ONE=$FOUR refused "$SR" "a file SR in its $kind" '1 disk' "\"in $kind\" 8MiB" "--destroy-sr $SR"
  must mount -t $kind "$FOUR" "$SCRATCH/fs"
  must sm vdi_delete $SR $A
  umount "$SCRATCH/fs"
  fails_with EBUSY as lvm "$FOUR" sr_create $NEW && says '--force overwrites it'
  must as lvm "$FOUR" sr_create $NEW --force
  must as lvm "$FOUR" sr_delete $NEW
done

claim 'an SR on a partition'
# One partition for LVM, of 160000 sectors from sector 2048.
printf '\0\0\2\0\216\0\0\0\0\10\0\0\0\161\2\0' | dd of="$THREE" bs=1 seek=446 conv=notrunc status=none
printf '\125\252' | dd of="$THREE" bs=1 seek=510 conv=notrunc,fsync status=none
blockdev --rereadpt "$THREE"
if [ -b "${THREE}1" ]; then
  TYPE=lvm DCONF=${THREE}1
  must sm sr_create $SR
  must sm vdi_create $SR $A 8 --label 'on a partition'
  ONE=$THREE refused "$SR" 'on a partition'
  must as lvm "$THREE" sr_create $NEW --force --destroy-sr $SR
  must as lvm "$THREE" sr_delete $NEW
else
  fail 'no partition'
fi
summary
