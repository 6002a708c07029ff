#!/bin/bash
# Bad devices: what vanishes, fails, is missing, is there twice, belongs to somebody else. A clear error, nothing lost.
# guest: uml
# bins: sm
# memory: 512
# disks: 200M 200M 200M
# takes: 145
# tools: lvcreate wipefs mkfs.ext2 dmsetup thin_check
# What is in single quotes is evaluated later; UUIDs have no spaces.
# shellcheck disable=SC2016,SC2086,SC2119
set -u
# shellcheck source-path=SCRIPTDIR source=lvm.inc
. "$ROOT/tests/guest/lvm.inc"
modprobe -a dm_thin_pool dm_flakey dm_delay
read -r ONE TWO THREE <<< "$DISKS"
C=7e57ab1e-0000-4000-8000-00000000000c
untouched() { # DISK WRITTEN-BEFORE
  is "$(written "$1")" "$2" "what was written to $1"
}

claim "sr_create takes nobody else's devices"
DCONF=$ONE
mkfs.ext2 -q -L 'old data' "$ONE"
before=$(written "$ONE")
fails_with EBUSY sm sr_create $SR && says 'ext2 "old\x20data"'
fails_with EBUSY sm sr_probe && says ext2
untouched "$ONE" "$before"
mkdir -p "$SCRATCH/mnt"
mount "$ONE" "$SCRATCH/mnt"
fails_with EBUSY sm sr_create $SR && says "the mount on $SCRATCH/mnt"
fails_with EBUSY sm sr_create $SR --force && says "the mount on $SCRATCH/mnt"
umount "$SCRATCH/mnt"
# A partition table: one Linux partition of 4096 sectors from sector 2048.
printf '\0\0\2\0\203\0\0\0\0\10\0\0\0\20\0\0' | dd of="$TWO" bs=1 seek=446 conv=notrunc status=none
printf '\125\252' | dd of="$TWO" bs=1 seek=510 conv=notrunc status=none
DCONF=$TWO fails_with EBUSY sm sr_create $SR && says dos
mkswap -q "$THREE" 2> /dev/null || mkswap "$THREE" > /dev/null
DCONF=$THREE fails_with EBUSY sm sr_create $SR && says swap
swapon "$THREE"
DCONF=$THREE fails_with EBUSY sm sr_create $SR --force && says 'swap has it'
swapoff "$THREE"
wipefs -qa "$TWO" "$THREE"
vgcreate -q -y theirs "$TWO" > /dev/null
lvcreate -q -y -L 8m -n data theirs > /dev/null
DCONF=$TWO fails_with EBUSY sm sr_create $SR && says 'the volume group theirs'
DCONF=$ONE,$TWO fails_with EBUSY sm sr_create $SR && says ext2
DCONF=$TWO fails_with EBUSY sm sr_create $SR --force && says 'data 8MiB'
DCONF=$TWO fails_with EBUSY sm sr_probe && says 'which is no SR'
is "$(volumes theirs)" 'data ' 'their volumes'
vgchange -qan theirs > /dev/null
before=$(written "$TWO")
DCONF=$TWO fails_with EBUSY sm sr_create $SR --force && says 'vgremove theirs'
untouched "$TWO" "$before"
vgremove -qq -y theirs > /dev/null
vgcreate -q -y theirs "$TWO" > /dev/null
DCONF=$TWO must sm sr_create $SR --force
is "$(vgs --noheadings -o vg_name theirs 2> /dev/null)" '' 'their group'
DCONF=$TWO must sm sr_delete $SR
DCONF=$ONE must sm sr_create $SR --force
must sm sr_delete $SR
DCONF=/dev/nonexistent fails_with ENODEV sm sr_create $SR && says /dev/nonexistent
DCONF=/dev/null fails_with ENODEV sm sr_create $SR && says 'not a block device'
DCONF=$ONE,$ONE fails_with EINVAL sm sr_create $SR && says different
ln -s "$ONE" "$SCRATCH/alias"
DCONF=$ONE,$SCRATCH/alias fails_with EBUSY sm sr_create $SR && says 'named twice'
fails_with ENOSPC sm sr_create $SR 10GiB && says "10GiB are asked for"
is "$(sm sr_probe)" '(srs)' 'sr_probe of a blank device'

claim "devices that are not the SR's"
DCONF=$ONE,$TWO
must sm sr_create $SR
must sm vdi_create $SR $A 8 --label one
must sm vdi_create $SR $B 300
must sm vdi_create $SR $C 8
must sm vdi_attach $SR $A > /dev/null
must sm vdi_detach $SR $A
sm sr_probe | grep -q "$SR.*size . 394264576" || fail "sr_probe: $(sm sr_probe)"
fails_with EEXIST sm sr_create $SR && says "$ONE,$TWO"
DCONF=$THREE must sm sr_attach $SR
is "$(DCONF=$THREE sm sr_get_params $SR | grep -o "$ONE,$TWO")" "$ONE,$TWO" 'where it is'

claim 'a physical volume is missing'
mv "$TWO" "$SCRATCH/away"
listing=$(sm sr_scan $SR)
is "$(grep -o 'vdi (uuid' <<< "$listing" | wc -l)" 3 'the VDIs in the listing'
is "$(grep -o 'broken: LVM says that it is partial' <<< "$listing" | wc -l)" 1 'the broken ones'
is "$(sm vdi_get_params $SR $B | grep -o 'broken: LVM says that it is partial' | wc -l)" 1 'the state of the broken one alone'
must sm sr_detach $SR
must sm sr_attach $SR
D=7e57ab1e-0000-4000-8000-00000000000d
fails_with ENODEV sm vdi_create $SR $D 8 && says "$TWO"
fails_with ENODEV sm vdi_lock $SR $A FALSE me && says "$TWO"
fails_with ENODEV sm vdi_delete $SR $C && says "$TWO"
fails_with ENODEV sm sr_delete --yes $SR && says "$TWO"
fails_with ENODEV sm vdi_attach $SR $B && says partial
DCONF=$ONE fails_with ENODEV sm sr_probe && says missing
d=$(sm vdi_attach $SR $A) || fail 'a VDI that is whole can be attached'
zeroes "$d" || fail 'and it is zeroed'
must sm vdi_detach $SR $A
# To attach a new VDI changes metadata, which the missing device would not get.
fails_with ENODEV sm vdi_attach $SR $C && says "$TWO"
must sm vdi_detach $SR $C
mv "$SCRATCH/away" "$TWO"
is "$(sm sr_scan $SR | grep -o 'vdi (uuid' | wc -l)" 3 'all volumes are there again'
must sm vdi_delete $SR $B
must sm vdi_delete $SR $C

claim 'a physical volume is seen twice'
modprobe loop
dd if="$ONE" of=/tmp/copy bs=1M status=none
loop=$(losetup -f --show /tmp/copy)
fails_with EBUSY sm sr_attach $SR && says 'is seen on'
fails_with EBUSY sm vdi_create $SR $C 8 && says 'is seen on'
losetup -d "$loop"
rm /tmp/copy
must sm sr_attach $SR

claim 'the group belongs to another host'
vgchange -y -q --config 'local{system_id="elsewhere" extra_system_ids=["elsewhere"]} global{system_id_source="lvmlocal"}' \
  --systemid elsewhere $VG > /dev/null 2>&1 || fail 'vgchange --systemid'
fails_with ESRBUSY sm sr_attach $SR && says elsewhere
fails_with ESRBUSY sm vdi_create $SR $C 8 && says elsewhere
fails_with ESRBUSY sm sr_delete --yes $SR && says elsewhere
fails_with EEXIST sm sr_create $SR && says "$ONE"
vgchange -y -q --config 'local{system_id="elsewhere"} global{system_id_source="lvmlocal"}' --systemid '' $VG > /dev/null 2>&1 ||
  fail 'vgchange --systemid back'
must sm sr_attach $SR
is "$(volumes $VG)" "LV-$A " 'its VDIs'
must sm sr_delete --yes $SR

claim 'a device vanishes, fails, comes back'
begin_shaky "$THREE"
must sm sr_create $SR
must sm vdi_create $SR $A 8
d=$(sm vdi_attach $SR $A)
echo content | dd of="$d" conv=fsync,notrunc status=none
swap "0 $sectors error"
echo 3 > /proc/sys/vm/drop_caches
fails_with EIO sm sr_scan $SR
fails_with EIO sm sr_attach $SR
fails_with EIO sm vdi_create $SR $B 8
fails_with EIO sm sr_delete --yes $SR
must sm vdi_detach $SR $A
[ ! -e "$d" ] || fail "$d is still there"
must sm sr_detach $SR
is "$(dmsetup ls | cut -f 1)" shaky 'devices'
swap "$good"
is "$(sm sr_scan $SR | grep -o 'vdi (uuid' | wc -l)" 1 'the VDIs'
d=$(sm vdi_attach $SR $A)
is "$(head -c 7 "$d")" content 'the contents'
tail -f /dev/null 9< "$d" &
fails_with EVDIBUSY sm vdi_detach $SR $A && says tail
fails_with EVDIBUSY sm sr_detach $SR && says "$d"
fails_with EVDIBUSY sm sr_delete --yes $SR && says "$d"
kill $!
wait $! 2> /dev/null
must sm vdi_detach $SR $A
# Writes fail, reads do not: an operation that could not be made durable says so.
swap "0 $sectors flakey $THREE 0 0 1800 1 error_writes"
fails_with EIO sm vdi_create $SR $B 8
fails_with EIO sm vdi_lock $SR $A FALSE me
swap "$good"
is "$(volumes $VG)" "LV-$A " 'the VDIs'
must sm vdi_create $SR $B 8
must sm vdi_lock $SR $A FALSE me
fails_with EVDIBUSY sm sr_delete --yes $SR && says me
must sm vdi_unlock $SR $A TRUE you
must sm sr_delete --yes $SR
end_shaky

claim 'no space'
DCONF=$ONE
must sm sr_create $SR
fails_with ENOSPC sm vdi_create $SR $A 1000 && says needed
fails_with E2BIG sm vdi_create $SR $A 8388607TiB
must sm vdi_create $SR $A 100
fails_with ENOSPC sm vdi_resize $SR $A 1000 && says needed
is "$(volumes $VG)" "LV-$A " 'the volumes'
must sm sr_delete --yes $SR
DCONF="((device . \"$ONE\") (allocation . \"thin\"))"
must sm sr_create $SR
must sm vdi_create $SR $A 1000
d=$(sm vdi_attach $SR $A)
must sm vdi_detach $SR $A
head -c 190000000 /dev/urandom > /tmp/large
fails_with ENOSPC sm vdi_import $SR $B - --size 190000000B < /tmp/large && says 'nearly full'
fails_with ENOSPC sm vdi_import $SR $B /tmp/large && says 'nearly full'
rm /tmp/large
is "$(volumes $VG)" "LV-$A POOL " 'what is left of it'
d=$(sm vdi_attach $SR $A)
dd if=/dev/urandom of="$d" bs=1M count=176 conv=fsync,notrunc status=none
before=$(head -c 184549376 "$d" | sha256sum)
sm sr_get_params $SR | grep -o '(pool .*))'
fails_with ENOSPC sm vdi_create $SR $B 8 && says 'nearly full'
fails_with ENOSPC sm vdi_snapshot $SR $A $B && says 'nearly full'
fails_with ENOSPC sm vdi_resize $SR $A 2000 && says 'nearly full'
DCONF="((device . \"$ONE\") (allocation . \"thick\"))" fails_with EINVAL sm sr_attach $SR && says 'created thin'
must sm vdi_detach $SR $A
must sm sr_detach $SR
must sm sr_attach $SR
d=$(sm vdi_attach $SR $A)
is "$(head -c 184549376 "$d" | sha256sum)" "$before" 'the contents'
must sm vdi_detach $SR $A
must sm vdi_delete $SR $A
must sm vdi_create $SR $B 8
must sm sr_delete --yes $SR

claim 'nobody sees what the disk held before, whether or not the device makes zeroes by itself'
for table in linear delay; do
  DISKS=$ONE dirty
  DCONF=/dev/mapper/stale
  printf 'devices { global_filter=[ "a|^/dev/mapper/stale$|", "r|.*|" ] }\n' > /etc/lvm/lvmlocal.conf
  case $table in
  linear) dmsetup create stale --table "0 $(blockdev --getsz "$ONE") linear $ONE 0" ;;
  delay) dmsetup create stale --table "0 $(blockdev --getsz "$ONE") delay $ONE 0 0" ;;
  esac
  number=$(lsblk -dno KNAME /dev/mapper/stale)
  echo "write_zeroes_max_bytes of $table: $(cat "/sys/block/$number/queue/write_zeroes_max_bytes")"
  must sm sr_create $SR --force
  must sm vdi_create $SR $A 8
  is "$(lvs --noheadings -o lv_tags $VG/LV-$A | grep -c xcp.zero)" "$([ $table = linear ] && echo 1 || echo 0)" "new disks still to be zeroed on $table"
  must sm vdi_resize $SR $A 16
  d=$(sm vdi_attach $SR $A)
  zeroes "$d" || fail "a new disk on $table is not zeroes"
  fails_with EVDIBUSY sm vdi_export $SR $A /tmp/out.raw && says "$d"
  printf '%s\n' content | sm vdi_import $SR $B - --size 8 2> /dev/null && fail 'a pipe that ends early'
  is "$(volumes $VG)" "LV-$A " 'what is left of it'
  { head -c 3000000 /dev/zero; echo content; head -c 5388600 /dev/zero; } > /tmp/in.raw
  must sm vdi_import $SR $B /tmp/in.raw --size 12
  must sm vdi_create $SR $C 8
  must sm vdi_export $SR $C /tmp/new.qcow2
  cmp -n 12582912 <(sm vdi_export $SR $B -) <(cat /tmp/in.raw /dev/zero) || fail "a disk that came in on $table is another"
  must sm vdi_export $SR $B /tmp/out.vhd
  must sm vdi_delete $SR $B
  must sm vdi_import $SR $B - --file-type vhd < /tmp/out.vhd
  cmp -n 12582912 <(sm vdi_export $SR $B -) <(cat /tmp/in.raw /dev/zero) || fail "a VHD that came in on $table is another"
  must sm vdi_delete $SR $B
  must sm vdi_import $SR $B /tmp/new.qcow2
  cmp -n 8388608 <(sm vdi_export $SR $B -) /dev/zero || fail "a new disk on $table went out as something"
  fails_with EPERM sm vdi_import $SR 7e57ab1e-0000-4000-8000-00000000000d - --file-type qcow2 < <(cat /tmp/new.qcow2) && says 'give the file'
  is "$(dmsetup ls | grep -c LV--)" 1 'active volumes'
  must sm vdi_delete $SR $B
  must sm vdi_delete $SR $C
  rm -f /tmp/in.raw /tmp/out.vhd /tmp/new.qcow2 /tmp/out.raw
  must sm vdi_resize $SR $A 24
  zeroes "$d" || fail "a disk that grew on $table is not zeroes"
  must sm vdi_detach $SR $A
  must sm sr_delete --yes $SR
  dmsetup remove stale
  rm /etc/lvm/lvmlocal.conf
done

claim "any text survives; other storage managers' volumes are left alone"
DCONF=$ONE
must sm sr_create $SR
label='a "b" \ ,;@$(reboot) ü 😀 --addtag'
must sm vdi_create $SR $A 8 --label "$label" --description "$(printf 'é%.0s' {1..30000})x"
sm vdi_get_params $SR $A --format json | grep -qF "$(printf %s "$label" | sed 's/[\\"]/\\&/g')" || fail "label: $(sm vdi_get_params $SR $A | head -c 300)"
must sm vdi_lock $SR $A FALSE "$label"
fails_with ENOLCK sm vdi_lock $SR $A FALSE other && says 'locked'
must sm vdi_unlock $SR $A FALSE "$label"
lvcreate -qq -y -an -Zn -Wn -l 1 -n "VHD-$C" $VG > /dev/null 2>&1
lvcreate -qq -y -an -Zn -Wn -l 1 -n MGT $VG > /dev/null 2>&1
lvchange -qq --addtag xcp.cut=oops "$VG/LV-$A"
must sm vdi_create $SR $D 8
must sm sr_detach $SR
must sm sr_attach $SR
listing=$(sm sr_scan $SR)
is "$(grep -o 'vdi (uuid' <<< "$listing" | wc -l)" 3 'the VDIs in the listing'
is "$(grep -o "unsupported: VDI $C is a vhd image in a volume" <<< "$listing" | wc -l)" 1 'the state of the LVHD volume'
is "$(grep -o 'broken: [^"]*xcp.cut=oops' <<< "$listing" | wc -l)" 1 'the state of the one with a damaged tag'
fails_with EPERM sm vdi_attach $SR $C && says LVHD
fails_with EPERM sm vdi_delete $SR $C --yes && says LVHD
fails_with EIO sm vdi_attach $SR $A && says 'lvchange --deltag xcp.cut=oops'
fails_with EIO sm vdi_delete $SR $A && says 'xcp.cut=oops'
must sm vdi_attach $SR $D > /dev/null
must sm vdi_detach $SR $D
must sm vdi_delete $SR $D
is "$(volumes $VG)" "LV-$A MGT VHD-$C " 'the volumes'
must sm vdi_delete $SR $A --yes
is "$(volumes $VG)" "MGT VHD-$C " 'the volumes'
# Without the tag that an SR of ours has, the group is another storage manager's, whose records cannot be read.
vgchange -qq --deltag xcp.allocation=thick $VG > /dev/null
must sm sr_attach $SR
must sm sr_scan $SR
is "$(grep -o 'broken: [^"]*there is no valid VHD footer' "$SCRATCH/stdout" | wc -l)" 1 'the state of the LVHD volume'
fails_with EIO sm vdi_create $SR $D 8 && says 'MGT'
# What cannot be read is deleted where the caller says so.
fails_with EINVAL sm sr_delete $SR && says --yes
must sm sr_delete --yes $SR
false_that vgs $VG
summary
