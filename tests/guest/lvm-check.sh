#!/bin/bash
# sr_check of LVM SRs, thick and thin: what killed calls left, volumes and tags that nobody knows, a pool that is nearly full,
# a device that is missing. What --repair mends is what the next call would mend. sr_space and sr_metrics of such SRs.
# guest: uml
# bins: sm
# memory: 512
# disks: 200M 200M
# takes: 90
# tools: lvcreate wipefs dmsetup thin_check
# UUIDs have no spaces.
# shellcheck disable=SC2086,SC2119
set -u
# shellcheck source-path=SCRIPTDIR source=lvm.inc
. "$ROOT/tests/guest/lvm.inc"
modprobe -a dm_thin_pool
read -r ONE TWO <<< "$DISKS"
C=7e57ab1e-0000-4000-8000-00000000000c
dm() { echo "${VG//-/--}-${1//-/--}"; }
suspended() { cat /sys/block/dm-*/dm/suspended 2> /dev/null | grep -c 1; }
# finds STATUS WORDS… [-- OPTION…]: sr_check ends with the status, with a line that has each of the words
finds() {
  local status=$1 out found=0 words=()
  shift
  while [ $# -gt 0 ] && [ "$1" != -- ]; do words+=("$1"); shift; done
  out=$(sm sr_check $SR --format table "${@:2}" 2> "$SCRATCH/err") || found=$?
  is "$found" "$status" "the status of sr_check ${*:2}"
  is "$(echo "$out" | wc -l)" "${#words[@]}" "the lines of sr_check ${*:2}: $out"
  local word
  for word in "${words[@]}"; do
    case $out in *"$word"*) ;; *) fail "sr_check ${*:2} should say '$word': $out $(cat "$SCRATCH/err")" ;; esac
  done
}
whole() { finds 0 'nothing is wrong' -- "$@"; }
volume() { lvcreate -qq -y -an -ky -Zn -Wn -l 2 -n "$1" "${@:2}" $VG > /dev/null; }

claim 'thick: a whole SR'
DCONF=$ONE,$TWO
must sm sr_create $SR
must sm vdi_create $SR $A 8 --label one
must sm vdi_create $SR $B 12
must sm vdi_attach $SR $A > /dev/null
must sm vdi_lock $SR $B FALSE me
whole
whole --repair
space=$(sm sr_space $SR)
case $space in *'(holds . 12582912) (frees . 12582912) (exact . #t)'*) ;; *) fail "sr_space: $space" ;; esac
must sm vdi_detach $SR $A

claim 'thick: what killed calls left is told, and mended as the next call would'
before=$(volumes $VG)
volume NEW-$A
volume NEW-$C
finds 5 "NEW-$A (one): a vdi_resize or vdi_import that was killed" "NEW-$C: " 
is "$(volumes $VG | wc -w)" 4 'the volumes after a look'
finds 0 "NEW-$A (one): a vdi_resize or vdi_import that was killed left it: it is to be removed (mended)" "NEW-$C: " -- --repair
is "$(volumes $VG)" "$before" 'the volumes'
whole
claim 'what a call works on is no fault, and what it leaves when it is killed is one'
mkfifo "$SCRATCH/pipe"
sm vdi_import $SR $C - --file-type raw --size 8M < "$SCRATCH/pipe" &
exec 7> "$SCRATCH/pipe"
for _ in $(seq 600); do
  case $(volumes $VG) in *NEW-$C*) break ;; esac
  sleep 0.1
done
is "$(volumes $VG)" "LV-$A LV-$B NEW-$C " 'the volumes while an import waits'
whole --repair
kill -9 "$(pgrep -f "^$BIN/sm vdi_import")"
exec 7>&-
wait
finds 5 "NEW-$C: "
finds 0 "NEW-$C: " -- --repair
is "$(volumes $VG)" "$before" 'the volumes'
claim 'another host'\''s is left to it'
volume NEW-$A --addtag xcp.maker=another
finds 0 "NEW-$A (one): another host fills it" -- --repair
is "$(volumes $VG)" "${before}NEW-$A " 'the volumes'
must lvremove -qq -y $VG/NEW-$A

claim 'thick: suspended, lent, another size than the volume'
d=$(sm vdi_attach $SR $A)
dmsetup suspend --noflush --nolockfs "$(dm LV-$A)"
finds 5 "LV-$A (one): an LVM command that was killed left it suspended"
is "$(suspended)" 1 'what is suspended after a look'
finds 0 "LV-$A (one): an LVM command that was killed left it suspended" -- --repair
is "$(suspended)" 0 'what is suspended'
whole
lvextend -qq -y -l +1 --driverloaded n $VG/LV-$A > /dev/null 2>&1
finds 5 "LV-$A (one): its device has 8MiB, and the volume 12MiB"
finds 0 "LV-$A (one): its device has 8MiB, and the volume 12MiB" -- --repair
is "$(blockdev --getsize64 "$d")" $((12 << 20)) 'the size of the device'
whole
must sm vdi_detach $SR $A
must lvchange -qq --addtag xcp.lent $VG/LV-$A
must lvchange -qq -ay -K $VG/LV-$A
finds 5 "LV-$A (one): a vdi_export that was killed left it active"
finds 0 "LV-$A (one): a vdi_export that was killed left it active" -- --repair
is "$(dmsetup ls)" 'No devices found' 'what is active'
whole

claim 'thick: names and tags that nobody knows'
volume home
volume LV-of-somebody
must lvchange -qq --addtag xcp.colour=red $VG/LV-$A
must lvchange -qq --addtag xcp.cut=soon $VG/LV-$B
must vgchange -qq --addtag xcp.allocation=thin $VG
finds 5 'its tag xcp.allocation=thin says that it has the pool POOL' 'home: no volume of an SR has such a name' \
  'LV-of-somebody: its name is like that of a VDI' "LV-$A (one): its tag xcp.colour=red says nothing" \
  "LV-$B: broken: " -- --repair
must vgchange -qq --deltag xcp.allocation=thin $VG
must lvchange -qq --deltag xcp.colour=red $VG/LV-$A
must lvchange -qq --deltag xcp.cut=soon $VG/LV-$B
must lvremove -qq -y $VG/home $VG/LV-of-somebody
whole

claim 'a device is missing: told, and nothing is changed'
must sm vdi_create $SR $C 200
volume NEW-$A
mkdir -p /etc/lvm
printf 'devices { global_filter=[ "r|^%s$|" ] }\n' "$TWO" > /etc/lvm/lvmlocal.conf
finds 5 'is missing, and nothing can be changed' "LV-$C: broken: LVM says that it is partial" "NEW-$A (one): " -- --repair
rm /etc/lvm/lvmlocal.conf
is "$(volumes $VG)" "LV-$A LV-$B LV-$C NEW-$A " 'the volumes'
finds 0 "NEW-$A (one): " -- --repair
must sm vdi_unlock $SR $B FALSE me
must sm sr_delete --yes $SR

claim 'the device is smaller than LVM knows it'
begin_shaky "$ONE"
must sm sr_create $SR
must sm vdi_create $SR $A 8
whole
swap "0 $((sectors - 65536)) linear $ONE 0"
finds 5 '/dev/mapper/shaky: the device has '
swap "$good"
whole
must sm sr_delete --yes $SR
end_shaky

claim 'thin: what killed calls left'
DCONF="((device . \"$ONE\") (allocation . \"thin\"))"
must sm sr_create $SR
must sm sr_attach $SR
must sm vdi_create $SR $A 160 --label one
must sm vdi_snapshot $SR $A $B
whole
case $(sm sr_space $SR) in *'(exact . #f)'*) ;; *) fail "sr_space: $(sm sr_space $SR)" ;; esac
lvcreate -qq -y -s -an -ky -n REV-$A $VG/LV-$B > /dev/null
finds 5 "REV-$A (one): a vdi_revert that was killed left it: it is to be removed"
finds 0 "REV-$A (one): a vdi_revert that was killed left it: it is to be removed (mended)" -- --repair
lvcreate -qq -y -s -an -ky -n REV-$A $VG/LV-$B > /dev/null
must lvremove -qq -y $VG/LV-$A
finds 5 "REV-$A: a vdi_revert that was killed left the VDI here: it is to become LV-$A"
finds 0 "REV-$A: a vdi_revert that was killed left the VDI here: it is to become LV-$A (mended)" -- --repair
is "$(volumes $VG)" "LV-$A LV-$B POOL " 'the volumes'
must lvchange -qq --addtag xcp.cut=$((120 << 20)) $VG/LV-$A
finds 5 "LV-$A: a vdi_resize to 120MiB was killed"
finds 0 "LV-$A: a vdi_resize to 120MiB was killed" -- --repair
is "$(size $A)" $((120 << 20)) 'the size'
whole

claim 'thin: a pool that is nearly full, and full; a pool that is suspended'
must sm vdi_resize $SR $A 200
pool=$(sm sr_get_params $SR | sed 's/.*(data_size \. \([0-9]*\)).*/\1/')
d=$(sm vdi_attach $SR $A)
dd if=/dev/urandom of="$d" bs=1M count=$((pool * 90 / 100 >> 20)) conv=fsync status=none
finds 0 'of its data is in use; from 95.00 % on'
dd if=/dev/urandom of="$d" bs=1M count=$((pool * 975 / 1000 >> 20)) conv=fsync status=none
finds 5 'of its data is in use, and vdi_create'
fails_with ENOSPC sm vdi_create $SR $C 8 && says data
metrics=$("$BIN/sm" sr_metrics -t lvm -d "$DCONF" $SR)
for line in "sm_sr_up{sr=\"$SR\",name=\"\",type=\"lvm\"} 1" "sm_sr_vdis_attached{sr=\"$SR\",name=\"\",type=\"lvm\"} 1" \
  "sm_sr_pool_data_size_bytes{sr=\"$SR\",name=\"\",type=\"lvm\"} $pool"; do
  case $metrics in *"$line"*) ;; *) fail "sr_metrics should say $line: $metrics" ;; esac
done
must sm vdi_detach $SR $A
must sm vdi_delete $SR $A --yes
dmsetup suspend --noflush --nolockfs "$(dm POOL)-tpool"
finds 5 'POOL: an LVM command that was killed left it suspended'
finds 0 'POOL: an LVM command that was killed left it suspended' -- --repair
is "$(suspended)" 0 'what is suspended'
whole
must sm sr_delete --yes $SR
summary
