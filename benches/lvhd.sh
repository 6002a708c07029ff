#!/bin/bash
# Figures of LVHD groups beside the bare LVM commands that each call needs, in the same run: the median of a call, and the ratio. Then so many
# snapshots at once, and a scan beside one lvs. Wants a kernel with device-mapper:
#
#   truncate -s 8G SHARE_DIR/DISK; ROOT=$PWD BIN=… DISKS=/dev/ubda SCRATCH=/tmp PASS='ROOT BIN DISKS SCRATCH' \
#     tests/guest/run uml benches/lvhd.sh SHARE_DIR ubd0=DISK
#
# environment: N calls of a kind (15), VOLUMES in the SR that is listed (500), AT_ONCE snapshots (100)
# What is in single quotes is evaluated later; UUIDs have no spaces.
# shellcheck disable=SC2016,SC2034,SC2086,SC2119
set -eu
# shellcheck source-path=SCRIPTDIR/../tests/guest source=lvm.inc
. "$ROOT/tests/guest/lvm.inc"
N=${N:-15} VOLUMES=${VOLUMES:-500} AT_ONCE=${AT_ONCE:-100}
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

all=$DCONF
DCONF="((device . \"$all\") (lvhd . \"true\") (allocation . \"thin\"))"
sm sr_create $SR
DCONF=$all
printf '%-62s %9s %9s\n' 'LVHD, thin' sm bare
compare 'vdi_create, lvcreate + lvrename' '' 'sm vdi_create $SR $(uuid $i) 8 --label bench' \
  'quiet lvcreate -y -an -Zn -Wn -n N-$i -L 8m $VG && quiet lvrename $VG N-$i B-$i'
compare 'vdi_attach, lvs + lvchange -ay' '' 'sm vdi_attach $SR $(uuid $i)' 'quiet lvs $VG && quiet lvchange -ay $VG/B-$i'
for ((i = 1; i <= N; i++)); do # so that a snapshot makes a base
  d=$(sm vdi_attach $SR "$(uuid $i)") && dd if=/dev/zero of="$d" bs=4096 count=1 conv=fsync,notrunc status=none
done
compare 'vdi_detach, lvs + lvchange -an' '' 'sm vdi_detach $SR $(uuid $i)' 'quiet lvs $VG && quiet lvchange -an $VG/B-$i'
compare 'vdi_snapshot, 2 lvcreate + lvrename' 1.5 'sm vdi_snapshot $SR $(uuid $i) $(uuid $((i + 1000)))' \
  'quiet lvcreate -y -an -Zn -Wn -n S-$i -L 8m $VG && quiet lvcreate -y -an -Zn -Wn -n T-$i -L 8m $VG && quiet lvrename $VG B-$i C-$i'
compare 'vdi_snapshot of a disk without data, lvcreate + lvrename' 1.5 'sm vdi_snapshot $SR $(uuid $i) $(uuid $((i + 2000)))' \
  'quiet lvcreate -y -an -Zn -Wn -n U-$i -L 8m $VG && quiet lvrename $VG U-$i V-$i'
compare 'vdi_delete, lvs + lvremove' '' 'sm vdi_delete $SR $(uuid $((i + 2000)))' 'quiet lvs $VG && quiet lvremove -y $VG/V-$i'

# Of one disk, by turns and at once.
serial=$(took eval 'for ((i = 1; i <= 10; i++)); do sm vdi_snapshot $SR $(uuid 1) $(uuid $((i + 3000))); done')
one() { took sm vdi_snapshot $SR "$(uuid 1)" "$(uuid "$1")" --wait 3600 > "$SCRATCH/at.$1"; }
start=${EPOCHREALTIME/[.,]/}
for ((i = 1; i <= AT_ONCE; i++)); do one $((i + 4000)) & done
wait
total=$((${EPOCHREALTIME/[.,]/} - start))
cat "$SCRATCH"/at.* | sort -n | awk -v n="$AT_ONCE" -v serial="$serial" -v cores="$(nproc)" -v total="$total" '{ v[NR] = $1 } END {
  p95 = v[int(NR * 0.95)]; limit = 2 * serial * n / 10 / cores
  printf "%d of %d snapshots at once: p95 %.0f ms, all %.0f ms; one after the other they take %.0f ms: %s, limit %.0f ms\n",
    NR, n, p95 / 1e3, total / 1e3, serial * n / 1e4, p95 <= limit && NR == n ? "ok" : "MISSED", limit / 1e3 }'

# Volumes with the beginning of the VHD of one disk, which is all that a scan reads: LVM makes them in a tenth of the time.
EXTENT=$((4 << 20))
block() { echo $(((begins + first * EXTENT) / 65536)); } # of 64 KiB on the device, where the extent FIRST is
read -r range _ < <(lvs --noheadings -o seg_pe_ranges "$VG/VHD-$(uuid 2)")
first=${range#*:} first=${first%-*}
begins=$(pvs --noheadings --units b --nosuffix -o pe_start "${range%:*}")
dd if="${range%:*}" of="$SCRATCH/head" bs=64k skip="$(block)" count=1 status=none
{
  echo '#!lvm'
  for ((i = 1; i <= VOLUMES; i++)); do echo "lvcreate -y -an -Zn -Wn -l 2 -n VHD-$(uuid $((i + 5000))) $VG"; done
} > "$SCRATCH/script"
quiet lvm "$SCRATCH/script"
lvs --noheadings -o lv_name,seg_pe_ranges "$VG" | while read -r name range; do
  # Numbers from 5001 on.
  [[ $name == VHD-7e57ab1e-0000-4000-8000-0000000[0-9][5-9][0-9][0-9][0-9] ]] || continue
  first=${range#*:} first=${first%-*}
  dd if="$SCRATCH/head" of="${range%:*}" bs=64k seek="$(block)" conv=notrunc status=none
done
sync
found=$(sm sr_scan $SR | grep -o '(vdi ' | wc -l)
columns=lv_name,lv_size,lv_tags,lv_attr,lv_layout,lv_health_status,data_percent,metadata_percent,vg_size,vg_free,vg_tags
compare "sr_scan of $found VDIs, one lvs with the same columns" 1.3 'sm sr_scan $SR' \
  'lvs --reportformat json --units b --nosuffix -o $columns $VG'
sm sr_delete --yes $SR
