#!/bin/bash
# The compliance suite for the MooseFS driver, on a master and one chunkserver; then a client that crashes. Locks, many calls at once and
# the other formats are code of the file driver, which nfs-v42 and `make check` on a file SR show; with LONG=y here as well.
# guest: uml
# bins: sm
# memory: 2048
# disks: 3G
# takes: 120
# tools: mfsmaster mfschunkserver mfsmount mkfs.ext4
# shellcheck disable=SC2016 # eval expands them
set -u
if [ -z "${ALONE-}" ]; then
  ALONE=yes exec unshare -mn --propagation private bash "$0" "$@"
fi
# shellcheck source-path=SCRIPTDIR source=claims.inc
. "$ROOT/tests/guest/claims.inc"
# shellcheck source-path=SCRIPTDIR source=compliance.inc
. "$ROOT/tests/guest/compliance.inc"
HOST=10.9.9.9 CHUNKS=$SCRATCH/chunks
ip link set lo up
# A chunkserver refuses to be on 127.0.0.1.
ip addr add $HOST/32 dev lo
for dir in /run /etc/mfs /var/lib/mfs; do mkdir -p $dir && mount -t tmpfs t $dir; done
mkdir -p /run/lock "$CHUNKS"
modprobe -a loop fuse nbd 2> /dev/null
mkfs.ext4 -q -F "$DISKS" && mount -t ext4 "$DISKS" "$CHUNKS"
: > /etc/mfs/mfsmaster.cfg
: > /etc/mfs/mfstopology.cfg
echo '* / rw,alldirs,maproot=0' > /etc/mfs/mfsexports.cfg
mkdir "$CHUNKS/c"
echo "$CHUNKS/c" > /etc/mfs/mfshdd.cfg
echo "MASTER_HOST = $HOST" > /etc/mfs/mfschunkserver.cfg
printf 'MFSM NEW' > /var/lib/mfs/metadata.mfs
chown -R mfs:mfs /var/lib/mfs "$CHUNKS"
mfsmaster start > "$SCRATCH/master" 2>&1 || { cat "$SCRATCH/master"; exit 1; }
mfschunkserver start > "$SCRATCH/chunkserver" 2>&1 || { cat "$SCRATCH/chunkserver"; exit 1; }
mkdir -p "$SCRATCH/look"
mount -t moosefs "$HOST:9421:/" "$SCRATCH/look" > /dev/null || exit
has_space() { [ "$(timeout 10 stat -f -c %b "$SCRATCH/look")" -gt 0 ]; }
wait_until 'the chunkserver is there' has_space || { cat "$SCRATCH/chunkserver" "$SCRATCH/master"; df "$SCRATCH/look" "$CHUNKS"; }
mkdir "$SCRATCH/look/xcp"
DCONF=$HOST:/xcp
status=0
complies_by_turns 2 4 'words locks many' -t moosefs -d "$DCONF" || status=1
run() { "$BIN/sm" "$1" -t moosefs -d "$DCONF" "$SR" "${@:2}"; }
V=$(vdi 1)
claim 'a master that is not there: ENODEV' within 20 fails_with ENODEV "$BIN/sm" sr_attach -t moosefs -d "$HOST:9:/xcp" "$SR"
claim 'sr_create' run sr_create
claim 'sr_attach' run sr_attach
claim '  again' run sr_attach
claim 'a disk, and a snapshot of it' eval 'run vdi_create "$V" 20M && run vdi_snapshot "$V" "$(vdi 2)"'
claim '  they are in the directory of the SR' ls "$SCRATCH/look/xcp/$SR/$V.vhd"
claim 'sr_detach' run sr_detach
claim 'what is below the mountpoint is no SR' eval 'mkdir -p "/run/sr-mount/$SR" && fails_with ESRBUSY run vdi_create "$(vdi 3)" 4M && ! ls -A "/run/sr-mount/$SR" | grep .'
claim 'sr_attach' run sr_attach
# The process that is the client ends, as by a crash.
crashed() { kill -9 $(pgrep -f "mfsmount.*/run/sr-mount/$SR") && wait_until 'the client is gone' eval '! ls "/run/sr-mount/$SR" 2> /dev/null'; }
claim 'the client crashes' crashed
claim '  a scan is an error, which says what to do' fails_with ESRBUSY run sr_scan
claim '  sr_attach mounts it again' run sr_attach
claim '  with its disks' eval 'run sr_scan | grep -q "$V"'
claim 'sr_delete' run sr_delete --yes
claim '  nothing is left' eval '! ls -A "$SCRATCH/look/xcp" | grep .'
umount "$SCRATCH/look"
mfschunkserver stop > /dev/null 2>&1
mfsmaster stop > /dev/null 2>&1
summary && exit $status
