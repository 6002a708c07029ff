#!/bin/bash
# What a call of the NFS driver costs, beside mount(8) and the same file operations by hand on a plain mount, in turns in
# one run: the medians, and the median of the ratios pair by pair. Runs in a guest: tests/guest/run uml benches/nfs.sh DIR
# guest: uml
# tools: rpc.nfsd rpc.mountd rpcbind mount.nfs mkfs.ext4
# bins: sm
# memory: 1024
# disks: 1G
# timeout: 600
# shellcheck disable=SC2016 # what pair is given is evaluated in each round
set -eu
# shellcheck source=/dev/null
. "$ROOT/tests/guest/nfs.inc"
serve
R=${ROUNDS:-15}
HAND=$SCRATCH/hand
mkdir -p "$HAND" "$SCRATCH/out"
DCONF=nfs@127.0.0.1:/@$SCRATCH/mnt
# The executable itself, not the front end: what an agent calls.
ours() { local verb=$1; shift; NFSSR "$verb" -d "$DCONF" "$SR" "$@"; }

now() { echo "${EPOCHREALTIME/[.,]/}"; }
median() { sort -n | awk '{ v[NR] = $1 } END { print NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'; }
# pair NAME OURS HAND [AFTER]: each is a command in which $i is the number of the round.
pair() {
  local i a b c name=$1
  : > "$SCRATCH/out/a"; : > "$SCRATCH/out/b"; : > "$SCRATCH/out/r"
  for ((i = 1; i <= R; i++)); do
    a=$(now); eval "$2" > /dev/null 2>&1; b=$(now); eval "$3" > /dev/null 2>&1; c=$(now)
    eval "${4-:}" > /dev/null 2>&1
    echo $((b - a)) >> "$SCRATCH/out/a"; echo $((c - b)) >> "$SCRATCH/out/b"
    awk "BEGIN { print ($b - $a) / ($c - $b) }" >> "$SCRATCH/out/r"
  done
  awk -v n="$name" -v a="$(median < "$SCRATCH/out/a")" -v b="$(median < "$SCRATCH/out/b")" -v r="$(median < "$SCRATCH/out/r")" \
    'BEGIN { printf "%-46s %9.1f ms %9.1f ms %6.2f\n", n, a / 1000, b / 1000, r }'
}
U='98de866e-b035-4b1a-a571-$(printf %012d $i)'
V='77de866e-b035-4b1a-a571-$(printf %012d $i)'
echo "NFS driver: each call beside the same by hand, over version 4.2, medians of $R pairs"
printf '%-46s %12s %12s %6s\n' call call 'by hand' ratio
ours sr_create
mkdir "$SRV/plain"
OPTS=vers=4.2,hard,proto=tcp
pair 'nothing: --version | true' 'NFSSR --version' '/bin/true'
pair 'sr_attach, sr_detach | mount -t nfs, umount' 'ours sr_attach; ours sr_detach' \
  "mount -t nfs -o $OPTS 127.0.0.1:/plain $HAND; umount $HAND"
pair 'sr_probe | mount, ls, umount' 'NFSSR sr_probe -d "$DCONF"' "mount -t nfs -o $OPTS 127.0.0.1:/ $HAND; ls $HAND/*; umount $HAND"
ours sr_attach
mount -t nfs -o "$OPTS" 127.0.0.1:/plain "$HAND"
pair 'vdi_create 64 MB | truncate, sync' "ours vdi_create $U 64 --type raw" "truncate -s 64M $HAND/$U.raw; sync $HAND/$U.raw $HAND"
pair 'sr_scan of these | ls -ls' 'ours sr_scan' "ls -ls $HAND"
pair 'vdi_get_params | stat' "ours vdi_get_params $U" "stat $HAND/$U.raw"
pair 'vdi_attach, vdi_detach | losetup' "ours vdi_attach $U; ours vdi_detach $U" "losetup -d \$(losetup -f --show $HAND/$U.raw)"
for ((i = 1; i <= R; i++)); do
  for dir in "$SRV/$SR" "$SRV/plain"; do dd if=/dev/urandom of="$dir/$(eval echo "$U").raw" bs=1M count=8 conv=notrunc status=none; done
done
pair 'vdi_clone, 8 of 64 MB | cp --sparse=always, sync' "ours vdi_clone $U $V" "cp --sparse=always $HAND/$U.raw $HAND/$V.raw; sync $HAND/$V.raw $HAND"
pair 'vdi_lock, vdi_unlock | ln, rm' "ours vdi_lock $U FALSE me; ours vdi_unlock $U FALSE me" "ln $HAND/$U.raw $HAND/l; rm $HAND/l"
pair 'vdi_delete | rm, sync' "ours vdi_delete $V" "rm $HAND/$V.raw; sync $HAND"
umount "$HAND"
ours sr_detach
stop_serving
