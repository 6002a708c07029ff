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
  is "what was written to $1" "$(written "$1")" "$2"
}

echo "== sr_create takes nobody else's devices"
DCONF=$ONE
mkfs.ext2 -q -L 'old data' "$ONE"
before=$(written "$ONE")
fails_with EBUSY 'ext2 "old\x20data"' sm sr_create $SR
fails_with EBUSY ext2 sm sr_probe
untouched "$ONE" "$before"
mkdir -p "$SCRATCH/mnt"
mount "$ONE" "$SCRATCH/mnt"
fails_with EBUSY "the mount on $SCRATCH/mnt" sm sr_create $SR
fails_with EBUSY "the mount on $SCRATCH/mnt" sm sr_create $SR --force
umount "$SCRATCH/mnt"
# A partition table: one Linux partition of 4096 sectors from sector 2048.
printf '\0\0\2\0\203\0\0\0\0\10\0\0\0\20\0\0' | dd of="$TWO" bs=1 seek=446 conv=notrunc status=none
printf '\125\252' | dd of="$TWO" bs=1 seek=510 conv=notrunc status=none
DCONF=$TWO fails_with EBUSY dos sm sr_create $SR
mkswap -q "$THREE" 2> /dev/null || mkswap "$THREE" > /dev/null
DCONF=$THREE fails_with EBUSY swap sm sr_create $SR
swapon "$THREE"
DCONF=$THREE fails_with EBUSY 'swap has it' sm sr_create $SR --force
swapoff "$THREE"
wipefs -qa "$TWO" "$THREE"
vgcreate -q -y theirs "$TWO" > /dev/null
lvcreate -q -y -L 8m -n data theirs > /dev/null
DCONF=$TWO fails_with EBUSY 'the volume group theirs' sm sr_create $SR
DCONF=$ONE,$TWO fails_with EBUSY ext2 sm sr_create $SR
DCONF=$TWO fails_with EBUSY 'data 8MiB' sm sr_create $SR --force
DCONF=$TWO fails_with EBUSY 'which is no SR' sm sr_probe
is 'their volumes' "$(volumes theirs)" 'data '
vgchange -qan theirs > /dev/null
before=$(written "$TWO")
DCONF=$TWO fails_with EBUSY 'vgremove theirs' sm sr_create $SR --force
untouched "$TWO" "$before"
vgremove -qq -y theirs > /dev/null
vgcreate -q -y theirs "$TWO" > /dev/null
DCONF=$TWO must sm sr_create $SR --force
is 'their group' "$(vgs --noheadings -o vg_name theirs 2> /dev/null)" ''
DCONF=$TWO must sm sr_delete $SR
DCONF=$ONE must sm sr_create $SR --force
must sm sr_delete $SR
DCONF=/dev/nonexistent fails_with ENODEV /dev/nonexistent sm sr_create $SR
DCONF=/dev/null fails_with ENODEV 'not a block device' sm sr_create $SR
DCONF=$ONE,$ONE fails_with EINVAL different sm sr_create $SR
ln -s "$ONE" "$SCRATCH/alias"
DCONF=$ONE,$SCRATCH/alias fails_with EBUSY 'named twice' sm sr_create $SR
fails_with ENOSPC needed sm sr_create $SR 10GiB
is 'sr_probe of a blank device' "$(sm sr_probe)" '(srs)'

echo "== devices that are not the SR's"
DCONF=$ONE,$TWO
must sm sr_create $SR
must sm vdi_create $SR $A 8 --label one
must sm vdi_create $SR $B 300
must sm vdi_create $SR $C 8
must sm vdi_attach $SR $A > /dev/null
must sm vdi_detach $SR $A
sm sr_probe | grep -q "$SR.*size . 394264576" || fail "sr_probe: $(sm sr_probe)"
fails_with EEXIST "$ONE,$TWO" sm sr_create $SR
DCONF=$THREE must sm sr_attach $SR
is 'where it is' "$(DCONF=$THREE sm sr_get_params $SR | grep -o "$ONE,$TWO")" "$ONE,$TWO"

echo '== a physical volume is missing'
mv "$TWO" "$SCRATCH/away"
listing=$(sm sr_scan $SR)
is 'the VDIs in the listing' "$(grep -o 'vdi (uuid' <<< "$listing" | wc -l)" 3
is 'the broken ones' "$(grep -o 'broken: LVM says that it is partial' <<< "$listing" | wc -l)" 1
is 'the state of the broken one alone' "$(sm vdi_get_params $SR $B | grep -o 'broken: LVM says that it is partial' | wc -l)" 1
must sm sr_detach $SR
must sm sr_attach $SR
D=7e57ab1e-0000-4000-8000-00000000000d
fails_with ENODEV "$TWO" sm vdi_create $SR $D 8
fails_with ENODEV "$TWO" sm vdi_lock $SR $A FALSE me
fails_with ENODEV "$TWO" sm vdi_delete $SR $C
fails_with ENODEV "$TWO" sm sr_delete --yes $SR
fails_with ENODEV partial sm vdi_attach $SR $B
DCONF=$ONE fails_with ENODEV missing sm sr_probe
d=$(sm vdi_attach $SR $A) || fail 'a VDI that is whole can be attached'
zeroes "$d" || fail 'and it is zeroed'
must sm vdi_detach $SR $A
# To attach a new VDI changes metadata, which the missing device would not get.
fails_with ENODEV "$TWO" sm vdi_attach $SR $C
must sm vdi_detach $SR $C
mv "$SCRATCH/away" "$TWO"
is 'all volumes are there again' "$(sm sr_scan $SR | grep -o 'vdi (uuid' | wc -l)" 3
must sm vdi_delete $SR $B
must sm vdi_delete $SR $C

echo '== a physical volume is seen twice'
modprobe loop
dd if="$ONE" of=/tmp/copy bs=1M status=none
loop=$(losetup -f --show /tmp/copy)
fails_with EBUSY 'is seen on' sm sr_attach $SR
fails_with EBUSY 'is seen on' sm vdi_create $SR $C 8
losetup -d "$loop"
rm /tmp/copy
must sm sr_attach $SR

echo '== the group belongs to another host'
vgchange -y -q --config 'local{system_id="elsewhere" extra_system_ids=["elsewhere"]} global{system_id_source="lvmlocal"}' \
  --systemid elsewhere $VG > /dev/null 2>&1 || fail 'vgchange --systemid'
fails_with ESRBUSY elsewhere sm sr_attach $SR
fails_with ESRBUSY elsewhere sm vdi_create $SR $C 8
fails_with ESRBUSY elsewhere sm sr_delete --yes $SR
fails_with EEXIST "$ONE" sm sr_create $SR
vgchange -y -q --config 'local{system_id="elsewhere"} global{system_id_source="lvmlocal"}' --systemid '' $VG > /dev/null 2>&1 ||
  fail 'vgchange --systemid back'
must sm sr_attach $SR
is 'its VDIs' "$(volumes $VG)" "LV-$A "
must sm sr_delete --yes $SR

echo '== a device vanishes, fails, comes back'
begin_shaky "$THREE"
must sm sr_create $SR
must sm vdi_create $SR $A 8
d=$(sm vdi_attach $SR $A)
echo content | dd of="$d" conv=fsync,notrunc status=none
swap "0 $sectors error"
echo 3 > /proc/sys/vm/drop_caches
fails_with EIO '' sm sr_scan $SR
fails_with EIO '' sm sr_attach $SR
fails_with EIO '' sm vdi_create $SR $B 8
fails_with EIO '' sm sr_delete --yes $SR
must sm vdi_detach $SR $A
[ ! -e "$d" ] || fail "$d is still there"
must sm sr_detach $SR
is 'devices' "$(dmsetup ls | cut -f 1)" shaky
swap "$good"
is 'the VDIs' "$(sm sr_scan $SR | grep -o 'vdi (uuid' | wc -l)" 1
d=$(sm vdi_attach $SR $A)
is 'the contents' "$(head -c 7 "$d")" content
tail -f /dev/null 9< "$d" &
fails_with EVDIBUSY tail sm vdi_detach $SR $A
fails_with EVDIBUSY "$d" sm sr_detach $SR
fails_with EVDIBUSY "$d" sm sr_delete --yes $SR
kill $!
wait $! 2> /dev/null
must sm vdi_detach $SR $A
# Writes fail, reads do not: an operation that could not be made durable says so.
swap "0 $sectors flakey $THREE 0 0 1800 1 error_writes"
fails_with EIO '' sm vdi_create $SR $B 8
fails_with EIO '' sm vdi_lock $SR $A FALSE me
swap "$good"
is 'the VDIs' "$(volumes $VG)" "LV-$A "
must sm vdi_create $SR $B 8
must sm vdi_lock $SR $A FALSE me
fails_with EVDIBUSY me sm sr_delete --yes $SR
must sm vdi_unlock $SR $A TRUE you
must sm sr_delete --yes $SR
end_shaky

echo '== no space'
DCONF=$ONE
must sm sr_create $SR
fails_with ENOSPC needed sm vdi_create $SR $A 1000
fails_with E2BIG '' sm vdi_create $SR $A 8388607TiB
must sm vdi_create $SR $A 100
fails_with ENOSPC needed sm vdi_resize $SR $A 1000
is 'the volumes' "$(volumes $VG)" "LV-$A "
must sm sr_delete --yes $SR
DCONF="((device . \"$ONE\") (allocation . \"thin\"))"
must sm sr_create $SR
must sm vdi_create $SR $A 1000
d=$(sm vdi_attach $SR $A)
must sm vdi_detach $SR $A
head -c 190000000 /dev/urandom > /tmp/large
fails_with ENOSPC 'nearly full' sm vdi_import $SR $B - --size 190000000B < /tmp/large
fails_with ENOSPC 'nearly full' sm vdi_import $SR $B /tmp/large
rm /tmp/large
is 'what is left of it' "$(volumes $VG)" "LV-$A POOL "
d=$(sm vdi_attach $SR $A)
dd if=/dev/urandom of="$d" bs=1M count=176 conv=fsync,notrunc status=none
before=$(head -c 184549376 "$d" | sha256sum)
sm sr_get_params $SR | grep -o '(pool .*))'
fails_with ENOSPC 'nearly full' sm vdi_create $SR $B 8
fails_with ENOSPC 'nearly full' sm vdi_snapshot $SR $A $B
fails_with ENOSPC 'nearly full' sm vdi_resize $SR $A 2000
DCONF="((device . \"$ONE\") (allocation . \"thick\"))" fails_with EINVAL 'created thin' sm sr_attach $SR
must sm vdi_detach $SR $A
must sm sr_detach $SR
must sm sr_attach $SR
d=$(sm vdi_attach $SR $A)
is 'the contents' "$(head -c 184549376 "$d" | sha256sum)" "$before"
must sm vdi_detach $SR $A
must sm vdi_delete $SR $A
must sm vdi_create $SR $B 8
must sm sr_delete --yes $SR

echo '== nobody sees what the disk held before, whether or not the device makes zeroes by itself'
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
  is "new disks still to be zeroed on $table" "$(lvs --noheadings -o lv_tags $VG/LV-$A | grep -c xcp.zero)" "$([ $table = linear ] && echo 1 || echo 0)"
  must sm vdi_resize $SR $A 16
  d=$(sm vdi_attach $SR $A)
  zeroes "$d" || fail "a new disk on $table is not zeroes"
  fails_with EVDIBUSY "$d" sm vdi_export $SR $A /tmp/out.raw
  printf '%s\n' content | sm vdi_import $SR $B - --size 8 2> /dev/null && fail 'a pipe that ends early'
  is 'what is left of it' "$(volumes $VG)" "LV-$A "
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
  fails_with EPERM 'give the file' sm vdi_import $SR 7e57ab1e-0000-4000-8000-00000000000d - --file-type qcow2 < <(cat /tmp/new.qcow2)
  is 'active volumes' "$(dmsetup ls | grep -c LV--)" 1
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

echo "== any text survives; other storage managers' volumes are left alone"
DCONF=$ONE
must sm sr_create $SR
label='a "b" \ ,;@$(reboot) ü 😀 --addtag'
must sm vdi_create $SR $A 8 --label "$label" --description "$(printf 'é%.0s' {1..30000})x"
sm vdi_get_params $SR $A --format json | grep -qF "$(printf %s "$label" | sed 's/[\\"]/\\&/g')" || fail "label: $(sm vdi_get_params $SR $A | head -c 300)"
must sm vdi_lock $SR $A FALSE "$label"
fails_with ENOLCK 'locked' sm vdi_lock $SR $A FALSE other
must sm vdi_unlock $SR $A FALSE "$label"
lvcreate -qq -y -an -Zn -Wn -l 1 -n "VHD-$C" $VG > /dev/null 2>&1
lvcreate -qq -y -an -Zn -Wn -l 1 -n MGT $VG > /dev/null 2>&1
lvchange -qq --addtag xcp.cut=oops "$VG/LV-$A"
must sm vdi_create $SR $D 8
must sm sr_detach $SR
must sm sr_attach $SR
listing=$(sm sr_scan $SR)
is 'the VDIs in the listing' "$(grep -o 'vdi (uuid' <<< "$listing" | wc -l)" 3
is 'the state of the LVHD volume' "$(grep -o "unsupported: VDI $C is a vhd image in a volume" <<< "$listing" | wc -l)" 1
is 'the state of the one with a damaged tag' "$(grep -o 'broken: [^"]*xcp.cut=oops' <<< "$listing" | wc -l)" 1
fails_with EPERM LVHD sm vdi_attach $SR $C
fails_with EPERM LVHD sm vdi_delete $SR $C --yes
fails_with EIO 'lvchange --deltag xcp.cut=oops' sm vdi_attach $SR $A
fails_with EIO 'xcp.cut=oops' sm vdi_delete $SR $A
must sm vdi_attach $SR $D > /dev/null
must sm vdi_detach $SR $D
must sm vdi_delete $SR $D
is 'the volumes' "$(volumes $VG)" "LV-$A MGT VHD-$C "
must sm vdi_delete $SR $A --yes
is 'the volumes' "$(volumes $VG)" "MGT VHD-$C "
# Without the tag that an SR of ours has, the group is another storage manager's: read, and not changed.
vgchange -qq --deltag xcp.allocation=thick $VG > /dev/null
must sm sr_attach $SR
must sm sr_scan $SR > "$SCRATCH/scan"
is 'the state of the LVHD volume' "$(grep -o 'broken: [^"]*there is no valid VHD footer' "$SCRATCH/scan" | wc -l)" 1
fails_with EPERM LVHD sm vdi_create $SR $D 8
fails_with EPERM LVHD sm sr_delete --yes $SR
vgchange -qq --addtag xcp.allocation=thick $VG > /dev/null
must sm sr_delete --yes $SR
finish
