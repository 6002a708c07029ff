#!/bin/bash
# The compliance suite for the ZFS driver, on a dataset of zfs-fuse, as no kernel of the tests has ZFS; then a dataset that is not
# mounted, and another one at its place. Locks, many calls at once and the other formats are code of the file driver, which
# `make check` shows on a file SR; with LONG=y here as well.
# guest: uml
# bins: sm
# memory: 1024
# disks: 2G
# takes: 90
# tools: zfs-fuse zpool zfs
# shellcheck disable=SC2016 # eval expands them
set -u
# shellcheck source-path=SCRIPTDIR source=claims.inc
. "$ROOT/tests/guest/claims.inc"
# shellcheck source-path=SCRIPTDIR source=compliance.inc
. "$ROOT/tests/guest/compliance.inc"
modprobe -a loop fuse nbd 2> /dev/null
for dir in /etc/zfs /var/run/zfs /var/lib/zfs; do mkdir -p $dir && mount -t tmpfs t $dir; done
mkdir -p /run/lock
zfs-fuse -n > "$SCRATCH/zfs-fuse" 2>&1 &
answers() { timeout 10 zpool list > /dev/null 2>&1; }
wait_until 'zfs-fuse answers' answers || { cat "$SCRATCH/zfs-fuse"; exit 1; }
zpool create -f tank "$DISKS" && zfs create tank/xcp && zfs create tank/other || exit
DCONF=/tank/xcp
status=0
complies_by_turns 3 4 'words locks many' -t zfs -d "$DCONF" || status=1
run() { "$BIN/sm" "$1" -t zfs -d "$DCONF" "$SR" "${@:2}"; }
V=$(vdi 1)
claim 'a directory in a dataset is no dataset' eval 'mkdir /tank/dir && fails_with ESRBUSY "$BIN/sm" sr_create -t zfs -d /tank/dir "$SR" && ! ls -A /tank/dir | grep .'
claim 'sr_create' run sr_create
claim 'sr_attach' run sr_attach
claim '  again' run sr_attach
claim '  the dataset is mounted there too' grep -q "^tank/xcp /run/sr-mount/$SR fuse.zfs " /proc/mounts
claim 'sm sr_list has it' eval '"$BIN/sm" sr_list -t zfs | grep -q "$SR"'
claim 'a disk, and a snapshot of it' eval 'run vdi_create "$V" 20M && run vdi_snapshot "$V" "$(vdi 2)"'
claim '  they are in the dataset' ls "$DCONF/$V.vhd"
claim 'a dataset that is unmounted at its place' umount "$DCONF"
claim '  is an error, which says what to do' eval 'fails_with ESRBUSY run sr_scan && says "zfs mount"'
claim '  nothing is written below it' eval 'fails_with ESRBUSY run vdi_create "$(vdi 3)" 4M && ! ls -A "$DCONF" | grep .'
claim '  sr_detach works' run sr_detach
claim '  sr_attach does not' fails_with ESRBUSY run sr_attach
claim '  and makes no mount' eval '! grep "/run/sr-mount/$SR" /proc/mounts'
claim 'zfs mount' zfs mount tank/xcp
claim '  sr_attach works, with its disks' eval 'run sr_attach && run sr_scan | grep -q "$V"'
claim 'another dataset at its place' eval 'zfs umount tank/xcp; umount "$DCONF" 2> /dev/null; zfs set mountpoint=/tank/xcp tank/other'
claim '  is refused, with both names' eval 'fails_with ESRBUSY run sr_scan && says tank/other'
claim '  sr_detach' run sr_detach
claim 'the first one is back' eval 'zfs set mountpoint=/tank/other tank/other && zfs mount tank/xcp'
claim '  with its disks' eval 'run sr_attach && run sr_scan | grep -q "$V"'
claim 'sr_delete' run sr_delete --yes
claim '  nothing is left' eval '! ls -A "$DCONF" | grep . && ! grep "/run/sr-mount/$SR" /proc/mounts'
summary && exit $status
