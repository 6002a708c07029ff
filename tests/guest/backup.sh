#!/bin/bash
# sm backup of disks on logical volumes, thick and thin, and on NFS: exported, imported into SRs of other kinds, and live from
# snapshots of a thin pool. An increment of a thin disk reads what the metadata of the pool tells.
# guest: uml
# needs: nfsd nfs loop ext4
# tools: rpc.nfsd rpc.mountd rpcbind mount.nfs mkfs.ext4 lvcreate dmsetup thin_delta strace debugfs fsfreeze
# bins: sm
# memory: 1024
# disks: 200M 300M 100M
# takes: 90
set -u
# shellcheck source=/dev/null
. "$ROOT/tests/guest/nfs.inc"
export PATH=$PATH:/usr/sbin:/sbin XCP_SM_RUN_DIR=$SCRATCH/run
modprobe -a dm_mod dm_thin_pool 2> /dev/null || :
# shellcheck disable=SC2153 # the suite is given them
read -r _ THIN THICK <<< "$DISKS"
serve
mkdir -m 700 "$SCRATCH/run" "$SCRATCH/store"
echo "store: name=nas path=$SCRATCH/store" > "$SCRATCH/run/stores.conf"
# The disks have UUIDs: an import into their own SR has their labels too.
WEB=thin/$(vdi 1) DATA=thick/$(vdi 2) MAIL=nfs/$(vdi 3)
sr() { printf '7e57ab1e-0000-4000-8000-%012d' "$1"; }
# sum DISK: the digest of its bytes; of an attached thin one, by its device
sum() {
  local device
  device=/dev/VG_XenStorage-$(sr 1)/LV-${1#thin/}
  if [ -b "$device" ]; then sha256sum < "$device"; else sm vdi_export "$1" "$SCRATCH/raw" --type raw && sha256sum < "$SCRATCH/raw" && rm "$SCRATCH/raw"; fi
}
# put DISK MIB COUNT: random bytes at a place of an attached disk
put() { dd if=/dev/urandom of="$(sm vdi_attach "$1")" bs=1M seek="$2" count="$3" conv=notrunc,fsync status=none; }
export_of() { sm backup export "$@" --to nas --since last --keep 9 --format table > "$SCRATCH/run-of" || return; }
# comes_back SET SR… DISK…: each disk of the newest export of a set has in another SR the bytes that the disks named after it have
comes_back() {
  local set=$1 new disks came srs=() maps=()
  shift
  while [[ $1 != */* ]]; do maps+=(--map "${#srs[@]}=$1") srs+=("$1"); shift; done
  sm backup import "$set" --from nas --sr "${srs[0]}" "${maps[@]}" --format json > "$SCRATCH/new" || return
  mapfile -t disks < <(grep -o '"uuid":"[^"]*"' "$SCRATCH/new" | cut -d '"' -f 4)
  [ ${#disks[@]} = $# ] || { echo "${#disks[@]} disks: $(< "$SCRATCH/new")"; return 1; }
  for new in "${!disks[@]}"; do
    came=$(sum "${srs[new]}/${disks[new]}") || return
    [ "$(sum "$1")" = "$came" ] || { echo "$1 differs"; return 1; }
    sm vdi_delete "${srs[new]}/${disks[new]}" || return
    shift
  done
}
# reads LEAST MOST COMMAND…: so many MiB of devices of volumes
reads() {
  local least=$1 most=$2 bytes
  shift 2
  strace -f -qq -y -e trace=read,pread64 -o "$SCRATCH/trace" "$@" > /dev/null || return
  bytes=$(awk '/<\/dev\/(dm-|mapper\/|VG)/ { sum += $NF } END { print sum + 0 }' "$SCRATCH/trace")
  echo "$bytes bytes"
  [ "$bytes" -ge $((least << 20)) ] && [ "$bytes" -le $((most << 20)) ]
}
live=(sm backup export web --to nas --live --since last --keep 9)
# stored COUNT: the newest export has so many lines in its map
stored() { [ "$(wc -l < "$SCRATCH/store/web/current/disk0.map")" = "$1" ]; }
# steps LINE…: all of them
steps() {
  local line
  # shellcheck disable=SC2086 # the words of a line
  for line; do $line || return; done
}
ours() { [ "$(sm sr_scan thin --format json | grep -o "backup:$1:" | wc -l)" = "$2" ]; }

echo '# SRs of three kinds'
claim 'a thin one' sm sr_create --name thin -t lvm -d "((device . \"$THIN\") (allocation . \"thin\"))" "$(sr 1)"
claim 'a thick one' sm sr_create --name thick -t lvm -d "$THICK" "$(sr 2)"
claim 'one on NFS' sm sr_create --name nfs -t nfs -d "nfs@127.0.0.1:/@$SCRATCH/mnt" "$(sr 3)"
claim '  attached' sm sr_attach nfs
claim 'a store' sm backup store-init nas
claim 'disks' steps "sm vdi_create $WEB 120M" "sm vdi_create $DATA 16M" "sm vdi_create $MAIL 24M --type vhd"
claim '  with data' steps "put $WEB 0 30" "put $WEB 100 1" "put $DATA 3 5" "put $MAIL 9 2"
claim '  detached' steps "sm vdi_detach $WEB" "sm vdi_detach $DATA" "sm vdi_detach $MAIL"

echo '# each kind into each other'
claim 'exported' export_of all --disk "$WEB" --disk "$DATA" --disk "$MAIL"
claim '  each comes back in an SR of another kind' comes_back all nfs thin thick "$WEB" "$DATA" "$MAIL"
claim 'the thin disk has one snapshot' ours all 1
claim '  and none without its set' steps "sm backup undefine all" "ours all 0"

echo '# increments of a thin disk that is in use'
claim 'a set' sm backup define web --disk "$WEB"
claim 'attached' sm vdi_attach "$WEB"
claim 'in use without --live: EVDIBUSY' fails_with EVDIBUSY sm backup export web --to nas
claim 'a whole export reads what the pool has given to it' reads 31 38 "${live[@]}"
put "$WEB" 50 1
claim 'after 1 MiB: no more than two blocks are read' reads 1 8 "${live[@]}"
claim '  and one is stored' stored 1
claim '  the disk comes back' comes_back web nfs "$WEB"
blkdiscard -o 0 -l $((8 << 20)) "$(sm vdi_attach "$WEB")"
claim 'after a discard' reads 0 8 "${live[@]}"
claim '  it is told as zeroes' grep -q zero "$SCRATCH/store/web/current/disk0.map"
claim 'one snapshot is kept' ours web 1
dmsetup message "VG_XenStorage--$(sr 1 | sed 's/-/--/g')-POOL-tpool" 0 reserve_metadata_snap
put "$WEB" 20 1
claim 'a killed call left a snapshot of the metadata' reads 1 8 "${live[@]}"
claim '  the disk comes back' comes_back web nfs "$WEB"
touch "$SCRATCH/writing"
while [ -e "$SCRATCH/writing" ]; do put "$WEB" 70 1; done &
claim 'live under a writer' "${live[@]}"
rm "$SCRATCH/writing"
wait
claim '  verified' sm backup verify web

echo '# a disk that is larger than its pool'
HUGE=thin/$(vdi 8)
claim 'made' sm vdi_create "$HUGE" 64G
claim '  an empty one is exported' reads 0 2 sm backup export huge --disk "$HUGE" --to nas
put "$HUGE" 40000 3
claim '  detached' sm vdi_detach "$HUGE"
claim 'what it has is exported' reads 3 6 sm backup export huge --disk "$HUGE" --to nas
claim '  and copied' reads 3 6 sm vdi_copy "$HUGE" "nfs/$(vdi 9)" --type qcow2
claim '  the same bytes at the same place' steps "sm vdi_export nfs/$(vdi 9) $SCRATCH/huge --type raw" \
  "cmp -i 41943040000 -n 3145728 $SCRATCH/huge $(sm vdi_attach "$HUGE")"
rm "$SCRATCH/huge"
claim '  deleted' steps "sm vdi_detach $HUGE" "sm vdi_delete $HUGE" "sm vdi_delete nfs/$(vdi 9)"

echo '# reverted, and without the program'
claim 'a snapshot of the user' sm vdi_snapshot "$WEB" "$(vdi 7)"
put "$WEB" 90 2
claim 'an increment' "${live[@]}"
claim 'detached and reverted' steps "sm vdi_detach $WEB" "sm vdi_revert $WEB $(vdi 7)"
claim 'an increment of what went back' reads 1 12 sm backup export web --to nas --since last --keep 9
claim '  the disk comes back' comes_back web nfs "$WEB"
printf '#!/bin/sh\nexit 1\n' > "$SCRATCH/bin/thin_delta"
chmod +x "$SCRATCH/bin/thin_delta"
dd if=/dev/urandom of="$(sm vdi_attach "$WEB")" bs=1M seek=33 count=1 conv=notrunc,fsync status=none
sm vdi_detach "$WEB"
claim 'a program that fails: all of it is read and compared' reads 100 121 sm backup export web --to nas --since last --keep 9
claim '  and one block is stored' stored 1
claim 'without its set no snapshot is left' steps "sm backup undefine web" "ours web 0"
echo '# a thick volume: read in a long pause, zeroed by a program, and deleted once it is exported'
# hook DIRECTORY LINE…: the only program of it
hook() {
  (umask 077; mkdir -p "$SCRATCH/run/hooks/$1")
  printf '%s\n' '#!/bin/sh' "${@:2}" > "$SCRATCH/run/hooks/$1/vm"
  chmod 700 "$SCRATCH/run/hooks/$1/vm"
}
FS=$SCRATCH/fs
mkdir "$FS"
hook backup-pause.d "echo late > $FS/late" "fsfreeze -f $FS" "echo pause >> $SCRATCH/hooks"
hook backup-resume.d "fsfreeze -u $FS" "echo resume >> $SCRATCH/hooks"
DEV=$(sm vdi_attach "$DATA")
claim 'a filesystem on it' steps "mkfs.ext4 -q -F $DEV" "mount $DEV $FS" "cp $0 $FS/file"
paused=(sm backup export data --disk "$DATA" --to nas --pause --compress zstd)
claim 'no snapshot: ENOSNAP' fails_with ENOSNAP "${paused[@]}"
claim '  and it goes on' steps "touch $FS/other" "rm $FS/other"
claim 'a long pause' "${paused[@]}" --long-pause
claim '  paused and resumed once each time' [ "$(tr '\n' ' ' < "$SCRATCH/hooks")" = 'pause resume pause resume ' ]
claim '  and it goes on' touch "$FS/other"
# of COPY FILE: a file of the filesystem in a copy
of() { sm vdi_export "$1" "$SCRATCH/raw" --type raw && debugfs -R "cat $2" "$SCRATCH/raw" 2> /dev/null; rm -f "$SCRATCH/raw"; }
copy() { sm backup import data --from nas --sr nfs --disk 0 --label copy > /dev/null; }
same_file() { [ "$(of nfs/copy /file | sha256sum)" = "$(sha256sum < "$0")" ] && [ "$(of nfs/copy /late)" = late ]; }
claim '  imported' copy
claim '  with what was written just before' same_file
claim '  deleted' steps 'sm vdi_delete nfs/copy' "umount $FS" "sm vdi_detach $DATA"
stored_bytes() { stat -c %b "$SCRATCH/store/data/current/disk0.raw.zst"; }
DEV=$(sm vdi_attach "$DATA")
claim 'a file that is deleted again' steps "mount $DEV $FS" "dd if=/dev/urandom of=$FS/noise bs=1M count=6 conv=fsync status=none" "rm $FS/noise" "umount $FS" "sm vdi_detach $DATA"
zeroed=(sm backup export data --disk "$DATA" --to nas --compress zstd)
claim 'exported with what was deleted' "${zeroed[@]}"
before=$(stored_bytes)
hook backup-zero.d "exec unshare -m sh -c 'mount \$SM_DISK0_PATH $FS; dd if=/dev/zero of=$FS/zero bs=1M status=none; rm $FS/zero; umount $FS'"
claim 'zeroed before' "${zeroed[@]}" --zero-free
claim '  takes less' [ $((before - $(stored_bytes))) -gt $((4 << 11)) ]
claim '  imported' copy
claim '  the file is there' [ "$(of nfs/copy /file | sha256sum)" = "$(sha256sum < "$0")" ]
# killed WORD: the call, while its program has the disk
killed() {
  hook backup-zero.d "touch $SCRATCH/zeroing" 'exec sleep 60'
  "${zeroed[@]}" --zero-free > /dev/null 2>&1 &
  for _ in {1..300}; do [ ! -e "$SCRATCH/zeroing" ] || break; sleep 0.1; done
  [ -e "$SCRATCH/zeroing" ] && kill -9 $! && wait $!
  [ -b "$DEV" ] || { echo 'it was not attached'; return 1; }
  sm backup list > /dev/null || return
  sm vdi_get_params "$DATA" | grep -q '(attached . #f).*(lock . 0)' || { sm vdi_get_params "$DATA"; return 1; }
  [ -z "$(ls "$SCRATCH"/run/backup/*.json 2> /dev/null)" ] && ! pgrep -f 'sleep 60' && sm backup verify data
}
claim 'a call that is killed meanwhile: the next one detaches the disk' killed
claim 'exported and deleted' sm backup export data --disk "$DATA" --to nas --remove-source
claim '  the disk is gone' fails_with ENOVDI sm vdi_get_params "$DATA"
claim '  deleted' sm vdi_delete nfs/copy
claim '  and comes back' steps copy "sm vdi_get_params nfs/copy"
sm sr_detach nfs
stop_serving
summary
