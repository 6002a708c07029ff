#!/bin/bash
# The compliance suite for the GlusterFS driver, on a volume of one brick; then a server that goes away. Locks, many calls at once and the
# other formats are code of the file driver, which nfs-v42 and `make check` on a file SR show; with LONG=y here as well.
# guest: uml
# bins: sm
# memory: 1024
# disks: 2G
# takes: 120
# tools: glusterd gluster mount.glusterfs mkfs.ext4
# shellcheck disable=SC2016,SC2034 # eval expands them, and uses V
set -u
if [ -z "${ALONE-}" ]; then
  ALONE=yes exec unshare -mn --propagation private bash "$0" "$@"
fi
# shellcheck source-path=SCRIPTDIR source=claims.inc
. "$ROOT/tests/guest/claims.inc"
# shellcheck source-path=SCRIPTDIR source=compliance.inc
. "$ROOT/tests/guest/compliance.inc"
HOST=10.9.9.9 BRICK=$SCRATCH/brick
ip link set lo up
# A server refuses a brick on 127.0.0.1.
ip addr add $HOST/32 dev lo
for dir in /run /var/lib/glusterd /var/log/glusterfs; do mkdir -p $dir && mount -t tmpfs t $dir; done
mkdir -p /run/lock /run/gluster /var/log/glusterfs/bricks "$BRICK"
modprobe -a loop fuse nbd 2> /dev/null
mkfs.ext4 -q -F "$DISKS" && mount -t ext4 "$DISKS" "$BRICK" && mkdir "$BRICK/b"
volume() { timeout 60 gluster --mode=script volume "$@"; }
ready() { timeout 20 gluster pool list; }
glusterd
wait_until 'glusterd answers' eval 'ready > /dev/null'
volume create gv0 "$HOST:$BRICK/b" force && volume start gv0 || exit
online() { volume status gv0 | grep -q '^Brick.* Y '; }
wait_until 'the volume is there' online
DCONF=$HOST:/gv0
status=0
complies_by_turns 1 4 'words locks many' -t glusterfs -d "$DCONF" || status=1
run() { "$BIN/sm" "$1" -t glusterfs -d "$DCONF" "$SR" "${@:2}"; }
mounted() { grep -q "^$HOST:/gv0/$SR /run/sr-mount/$SR fuse.glusterfs .*nosuid" /proc/mounts; }
V=$(vdi 1)
claim 'a server that is not there: ENODEV' within 20 fails_with ENODEV "$BIN/sm" sr_attach -t glusterfs -d 10.9.9.8:/gv0 "$SR"
claim 'a volume that is not there' fails_with 'ENODEV|EIO' "$BIN/sm" sr_create -t glusterfs -d "$HOST:/none" "$SR"
claim 'sr_create' run sr_create
claim 'sr_attach' run sr_attach
claim '  again' run sr_attach
claim '  it is the directory of the SR that is mounted' mounted
claim 'sm sr_list has it' eval '"$BIN/sm" sr_list -t glusterfs | grep -q "$SR"'
claim 'a disk, and a snapshot of it' eval 'run vdi_create "$V" 20M && run vdi_snapshot "$V" "$(vdi 2)"'
claim 'sr_detach' run sr_detach
claim 'what is below the mountpoint is no SR' eval 'mkdir -p "/run/sr-mount/$SR" && fails_with ESRBUSY run vdi_create "$(vdi 3)" 4M && ! ls -A "/run/sr-mount/$SR" | grep .'
claim 'sr_attach' run sr_attach
# The process that is the client ends, as by a crash.
crashed() { kill -9 $(pgrep -f "glusterfs .*/run/sr-mount/$SR") && ! ls "/run/sr-mount/$SR" 2> /dev/null; }
claim 'the client crashes' crashed
claim '  a scan is an error, which says what to do' fails_with ESRBUSY run sr_scan
claim '  sr_attach mounts it again' run sr_attach
claim '  with its disks' eval 'run sr_scan | grep -q "$V"'
gone() { pkill_all && within 60 run sr_detach && ! grep fuse.glusterfs /proc/mounts; }
pkill_all() { kill $(pgrep -x glusterd) $(pgrep -x glusterfsd) && wait_until 'the servers are gone' eval '! pgrep -x glusterfsd'; }
claim 'sr_detach of a server that is gone' gone
summary && exit $status
