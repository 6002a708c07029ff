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
# says STATUS WORDS… [-- OPTION…]: sr_check ends with the status, with a line that has each of the words
says() {
  local status=$1 out found=0 words=()
  shift
  while [ $# -gt 0 ] && [ "$1" != -- ]; do words+=("$1"); shift; done
  out=$(sm sr_check $SR --format table "${@:2}" 2> "$SCRATCH/err") || found=$?
  is "the status of sr_check ${*:2}" "$found" "$status"
  is "the lines of sr_check ${*:2}: $out" "$(echo "$out" | wc -l)" "${#words[@]}"
  local word
  for word in "${words[@]}"; do
    case $out in *"$word"*) echo "ok   ${*:2} $word" ;; *) fail "sr_check ${*:2} should say '$word': $out $(cat "$SCRATCH/err")" ;; esac
  done
}
whole() { says 0 'nothing is wrong' -- "$@"; }
volume() { lvcreate -qq -y -an -ky -Zn -Wn -l 2 -n "$1" "${@:2}" $VG > /dev/null; }

echo '== thick: a whole SR'
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

echo '== thick: what killed calls left is told, and mended as the next call would'
before=$(volumes $VG)
volume NEW-$A
volume NEW-$C
says 5 "NEW-$A: a vdi_resize or vdi_import that was killed" "NEW-$C: " 
is 'the volumes after a look' "$(volumes $VG | wc -w)" 4
says 0 "NEW-$A: a vdi_resize or vdi_import that was killed left it: it is to be removed (mended)" "NEW-$C: " -- --repair
is 'the volumes' "$(volumes $VG)" "$before"
whole
echo '-- what a call works on is no fault, and what it leaves when it is killed is one'
mkfifo "$SCRATCH/pipe"
sm vdi_import $SR $C - --file-type raw --size 8M < "$SCRATCH/pipe" &
exec 7> "$SCRATCH/pipe"
for _ in $(seq 600); do
  case $(volumes $VG) in *NEW-$C*) break ;; esac
  sleep 0.1
done
is 'the volumes while an import waits' "$(volumes $VG)" "LV-$A LV-$B NEW-$C "
whole --repair
kill -9 "$(pgrep -f "^$BIN/sm vdi_import")"
exec 7>&-
wait
says 5 "NEW-$C: "
says 0 "NEW-$C: " -- --repair
is 'the volumes' "$(volumes $VG)" "$before"
echo '-- another host'\''s is left to it'
volume NEW-$A --addtag xcp.maker=another
says 0 "NEW-$A: another host fills it" -- --repair
is 'the volumes' "$(volumes $VG)" "${before}NEW-$A "
must lvremove -qq -y $VG/NEW-$A

echo '== thick: suspended, lent, another size than the volume'
d=$(sm vdi_attach $SR $A)
dmsetup suspend --noflush --nolockfs "$(dm LV-$A)"
says 5 "LV-$A: an LVM command that was killed left it suspended"
is 'what is suspended after a look' "$(suspended)" 1
says 0 "LV-$A: an LVM command that was killed left it suspended" -- --repair
is 'what is suspended' "$(suspended)" 0
whole
lvextend -qq -y -l +1 --driverloaded n $VG/LV-$A > /dev/null 2>&1
says 5 "LV-$A: its device has 8MiB, and the volume 12MiB"
says 0 "LV-$A: its device has 8MiB, and the volume 12MiB" -- --repair
is 'the size of the device' "$(blockdev --getsize64 "$d")" $((12 << 20))
whole
must sm vdi_detach $SR $A
must lvchange -qq --addtag xcp.lent $VG/LV-$A
must lvchange -qq -ay -K $VG/LV-$A
says 5 "LV-$A: a vdi_export that was killed left it active"
says 0 "LV-$A: a vdi_export that was killed left it active" -- --repair
is 'what is active' "$(dmsetup ls)" 'No devices found'
whole

echo '== thick: names and tags that nobody knows'
volume home
volume LV-of-somebody
must lvchange -qq --addtag xcp.colour=red $VG/LV-$A
must lvchange -qq --addtag xcp.cut=soon $VG/LV-$B
must vgchange -qq --addtag xcp.allocation=thin $VG
says 5 'its tag xcp.allocation=thin says that it has the pool POOL' 'home: no volume of an SR has such a name' \
  'LV-of-somebody: its name is like that of a VDI' "LV-$A: its tag xcp.colour=red says nothing" \
  "LV-$B: broken: " -- --repair
must vgchange -qq --deltag xcp.allocation=thin $VG
must lvchange -qq --deltag xcp.colour=red $VG/LV-$A
must lvchange -qq --deltag xcp.cut=soon $VG/LV-$B
must lvremove -qq -y $VG/home $VG/LV-of-somebody
whole

echo '== a device is missing: told, and nothing is changed'
must sm vdi_create $SR $C 200
volume NEW-$A
mkdir -p /etc/lvm
printf 'devices { global_filter=[ "r|^%s$|" ] }\n' "$TWO" > /etc/lvm/lvmlocal.conf
says 5 'is missing, and nothing can be changed' "LV-$C: broken: LVM says that it is partial" "NEW-$A: " -- --repair
rm /etc/lvm/lvmlocal.conf
is 'the volumes' "$(volumes $VG)" "LV-$A LV-$B LV-$C NEW-$A "
says 0 "NEW-$A: " -- --repair
must sm vdi_unlock $SR $B FALSE me
must sm sr_delete --yes $SR

echo '== the device is smaller than LVM knows it'
begin_shaky "$ONE"
must sm sr_create $SR
must sm vdi_create $SR $A 8
whole
swap "0 $((sectors - 65536)) linear $ONE 0"
says 5 '/dev/mapper/shaky: the device has '
swap "$good"
whole
must sm sr_delete --yes $SR
end_shaky

echo '== thin: what killed calls left'
DCONF="((device . \"$ONE\") (allocation . \"thin\"))"
must sm sr_create $SR
must sm sr_attach $SR
must sm vdi_create $SR $A 160 --label one
must sm vdi_snapshot $SR $A $B
whole
case $(sm sr_space $SR) in *'(exact . #f)'*) ;; *) fail "sr_space: $(sm sr_space $SR)" ;; esac
lvcreate -qq -y -s -an -ky -n REV-$A $VG/LV-$B > /dev/null
says 5 "REV-$A: a vdi_revert that was killed left it: it is to be removed"
says 0 "REV-$A: a vdi_revert that was killed left it: it is to be removed (mended)" -- --repair
lvcreate -qq -y -s -an -ky -n REV-$A $VG/LV-$B > /dev/null
must lvremove -qq -y $VG/LV-$A
says 5 "REV-$A: a vdi_revert that was killed left the VDI here: it is to become LV-$A"
says 0 "REV-$A: a vdi_revert that was killed left the VDI here: it is to become LV-$A (mended)" -- --repair
is 'the volumes' "$(volumes $VG)" "LV-$A LV-$B POOL "
must lvchange -qq --addtag xcp.cut=$((120 << 20)) $VG/LV-$A
says 5 "LV-$A: a vdi_resize to 120MiB was killed"
says 0 "LV-$A: a vdi_resize to 120MiB was killed" -- --repair
is 'the size' "$(size $A)" $((120 << 20))
whole

echo '== thin: a pool that is nearly full, and full; a pool that is suspended'
must sm vdi_resize $SR $A 200
pool=$(sm sr_get_params $SR | sed 's/.*(data_size \. \([0-9]*\)).*/\1/')
d=$(sm vdi_attach $SR $A)
dd if=/dev/urandom of="$d" bs=1M count=$((pool * 90 / 100 >> 20)) conv=fsync status=none
says 0 'of its data is in use; from 95.00 % on'
dd if=/dev/urandom of="$d" bs=1M count=$((pool * 975 / 1000 >> 20)) conv=fsync status=none
says 5 'of its data is in use, and vdi_create'
fails_with ENOSPC data sm vdi_create $SR $C 8
metrics=$("$BIN/sm" sr_metrics -t lvm -d "$DCONF" $SR)
for line in "sm_sr_up{sr=\"$SR\",name=\"\",type=\"lvm\"} 1" "sm_sr_vdis_attached{sr=\"$SR\",name=\"\",type=\"lvm\"} 1" \
  "sm_sr_pool_data_size_bytes{sr=\"$SR\",name=\"\",type=\"lvm\"} $pool"; do
  case $metrics in *"$line"*) ;; *) fail "sr_metrics should say $line: $metrics" ;; esac
done
must sm vdi_detach $SR $A
must sm vdi_delete $SR $A --yes
dmsetup suspend --noflush --nolockfs "$(dm POOL)-tpool"
says 5 'POOL: an LVM command that was killed left it suspended'
says 0 'POOL: an LVM command that was killed left it suspended' -- --repair
is 'what is suspended' "$(suspended)" 0
whole
must sm sr_delete --yes $SR
finish
