#!/bin/bash
# Figures of the LVM driver beside the bare LVM commands, in the same run: the median of a call, and the ratio. The two are
# measured by turns, so that whatever else the machine does meets both. Wants a kernel with device-mapper:
#
#   truncate -s 4G SHARE_DIR/DISK; ROOT=$PWD BIN=… DISKS=/dev/ubda SCRATCH=/tmp PASS='ROOT BIN DISKS SCRATCH' \
#     tests/guest/run uml benches/lvm.sh SHARE_DIR ubd0=DISK
#
# environment: N calls of a kind (15), VOLUMES in the SR that is listed (500)
# What is in single quotes is evaluated later; UUIDs have no spaces.
# shellcheck disable=SC2016,SC2034,SC2086,SC2119
set -eu
# shellcheck source-path=SCRIPTDIR/../tests/guest source=lvm.inc
. "$ROOT/tests/guest/lvm.inc"
N=${N:-15} VOLUMES=${VOLUMES:-500}
uuid() { printf '7e57ab1e-0000-4000-8000-%012d' "$1"; }
quiet() { "$@" > /dev/null 2>&1; }
took() { local start=${EPOCHREALTIME/[.,]/}; "$@" > /dev/null && echo $((${EPOCHREALTIME/[.,]/} - start)); }
median() { sort -n "$1" | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }
# compare WHAT LIMIT OURS BARE: shell words that use $i, by turns for i = 1 … N
compare() {
  local i
  : > "$SCRATCH/ours"
  : > "$SCRATCH/bare"
  for ((i = 1; i <= N; i++)); do
    took eval "$3" >> "$SCRATCH/ours"
    took eval "$4" >> "$SCRATCH/bare"
  done
  awk -v what="$1" -v limit="$2" -v ours="$(median "$SCRATCH/ours")" -v bare="$(median "$SCRATCH/bare")" 'BEGIN {
    ratio = ours / bare
    verdict = limit == "" ? "" : (ratio <= limit ? "ok" : "MISSED") ", limit " limit "x"
    printf "%-62s %6.0f ms %6.0f ms %5.2fx  %s\n", what, ours / 1e3, bare / 1e3, ratio, verdict }'
}

sm sr_create $SR
printf '%-62s %9s %9s\n' 'LVM, thick' sm bare
compare 'vdi_create, lvcreate + lvchange -an' 1.3 'sm vdi_create $SR $(uuid $i) 8 --label bench' \
  'quiet lvcreate -y -n B-$i -L 8m $VG && quiet lvchange -an $VG/B-$i'
compare 'vdi_attach of a new VDI, which zeroes it, lvchange -ay' '' 'sm vdi_attach $SR $(uuid $i)' 'quiet lvchange -ay $VG/B-$i'
compare 'vdi_detach, lvchange -an' '' 'sm vdi_detach $SR $(uuid $i)' 'quiet lvchange -an $VG/B-$i'
compare 'vdi_attach, lvs + lvchange -ay' '' 'sm vdi_attach $SR $(uuid $i)' 'quiet lvs $VG && quiet lvchange -ay $VG/B-$i'
compare 'vdi_attach again, lvs' '' 'sm vdi_attach $SR $(uuid $i)' 'quiet lvs $VG'
compare 'vdi_detach, lvs + lvchange -an' '' 'sm vdi_detach $SR $(uuid $i)' 'quiet lvs $VG && quiet lvchange -an $VG/B-$i'
compare 'vdi_lock, lvs + lvchange --addtag + lvs' '' 'sm vdi_lock $SR $(uuid $i) FALSE me' \
  'quiet lvs $VG && quiet lvchange --addtag me $VG/B-$i && quiet lvs $VG'
compare 'vdi_unlock' '' 'sm vdi_unlock $SR $(uuid $i) FALSE me' 'quiet lvs $VG && quiet lvchange --deltag me $VG/B-$i && quiet lvs $VG'
compare 'vdi_delete, lvs + lvremove' '' 'sm vdi_delete $SR $(uuid $i)' 'quiet lvs $VG && quiet lvremove -y $VG/B-$i'

# One process makes them all. Archives of each state would fill the guest.
for ((i = 1; i <= VOLUMES; i++)); do
  echo "lvcreate -A n -y -an -ky -Zn -Wn -n LV-$(uuid $i) -l 1 --addtag xcp.zero --addtag xcp.label.0=disk&20$i $VG"
done | quiet lvm
found=$(sm sr_scan $SR | grep -o '(vdi ' | wc -l)
[ "$found" = "$VOLUMES" ] || { echo "$found volumes instead of $VOLUMES"; exit 1; }
columns=lv_name,lv_size,lv_tags,lv_attr,lv_layout,lv_health_status,data_percent,metadata_percent,vg_size,vg_free,vg_tags
compare "sr_scan of $VOLUMES VDIs, one lvs with the same columns" 1.3 'sm sr_scan $SR' \
  'lvs --reportformat json --units b --nosuffix -o $columns $VG'
compare "sr_scan of $VOLUMES VDIs, one lvs with its default columns" '' 'sm sr_scan $SR' 'lvs $VG'
compare "vdi_get_params among $VOLUMES, one lvs with the same columns" '' 'sm vdi_get_params $SR $(uuid 7)' \
  'lvs --reportformat json --units b --nosuffix -o $columns $VG'
sm sr_delete --yes $SR
