#!/bin/bash
# The compliance suite for the CephFS driver, on a cluster of one monitor, one manager, one OSD in memory and one MDS, by the kernel's
# client; then a wrong key and an OSD that goes away. Locks, many calls at once and the other formats are code of the file driver, which
# nfs-v42 and `make check` on a file SR show; with LONG=y here as well.
# guest: uml
# bins: sm
# memory: 3072
# takes: 120
# tools: ceph ceph-mon ceph-mgr ceph-osd ceph-mds mount.ceph
# shellcheck disable=SC2016 # eval expands them
set -u
if [ -z "${ALONE-}" ]; then
  ALONE=yes exec unshare -mn --propagation private bash "$0" "$@"
fi
# shellcheck source-path=SCRIPTDIR source=claims.inc
. "$ROOT/tests/guest/claims.inc"
# shellcheck source-path=SCRIPTDIR source=compliance.inc
. "$ROOT/tests/guest/compliance.inc"
HOST=10.9.9.9 FSID=3c1c1c1e-0000-4000-8000-000000000001 LOOK=$SCRATCH/look CEPH=/var/lib/ceph
# An OSD refuses the name of a host that has none.
hostname ceph
ip link set lo up
ip addr add $HOST/32 dev lo
for dir in /run /etc/ceph "$CEPH" /var/log/ceph; do mkdir -p "$dir" && mount -t tmpfs t "$dir"; done
mkdir -p /run/lock /run/ceph $CEPH/mon/ceph-a $CEPH/mgr/ceph-a $CEPH/osd/ceph-0 $CEPH/mds/ceph-a "$SCRATCH/modules" "$LOOK"
modprobe -a loop fuse nbd ceph 2> /dev/null
cat > /etc/ceph/ceph.conf << EOF
[global]
fsid = $FSID
mon host = [v2:$HOST:3300,v1:$HOST:6789]
public addr = $HOST
cluster addr = $HOST
osd objectstore = memstore
memstore device bytes = 1000000000
osd pool default size = 1
osd pool default min size = 1
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mgr module path = $SCRATCH/modules
mgr stats period = 1
EOF
key() { # name keyring caps…: a new key, which the monitor knows from its beginning
  ceph-authtool --create-keyring "$2" --gen-key -n "$1" "${@:3}" && ceph-authtool "$SCRATCH/keys" --import-keyring "$2"
}
all=(--cap mon 'allow *' --cap osd 'allow *' --cap mds 'allow *' --cap mgr 'allow *')
cluster() {
  ceph-authtool --create-keyring "$SCRATCH/keys" --gen-key -n mon. --cap mon 'allow *' &&
    key client.admin /etc/ceph/ceph.client.admin.keyring "${all[@]}" && key mds.a $CEPH/mds/ceph-a/keyring "${all[@]}" &&
    key osd.0 $CEPH/osd/ceph-0/keyring "${all[@]}" && key mgr.a $CEPH/mgr/ceph-a/keyring "${all[@]}" &&
    monmaptool --create --addv a "[v2:$HOST:3300,v1:$HOST:6789]" --fsid $FSID "$SCRATCH/monmap" &&
    ceph-mon --mkfs -i a --monmap "$SCRATCH/monmap" --keyring "$SCRATCH/keys" && ceph-mon -i a &&
    timeout 60 ceph osd new 3c1c1c1e-0000-4000-8000-000000000002 0 && ceph-mgr -i a &&
    ceph-osd -i 0 --mkfs --osd-uuid 3c1c1c1e-0000-4000-8000-000000000002 && ceph-osd -i 0 && ceph-mds -i a &&
    timeout 60 ceph osd pool create meta 8 && timeout 60 ceph osd pool create data 8 && timeout 60 ceph fs new x meta data
}
cluster > "$SCRATCH/cluster" 2>&1 || { cat "$SCRATCH/cluster"; exit 1; }
sed -n 's/^\tkey = //p' /etc/ceph/ceph.client.admin.keyring > /etc/ceph/secret
KEY=name=admin,secretfile=/etc/ceph/secret
wait_until 'the filesystem is there' mount -t ceph "$HOST:6789:/" "$LOOK" -o $KEY || { cat "$SCRATCH/cluster"; exit 1; }
has_space() { [ "$(timeout 10 stat -f -c %b "$LOOK")" -gt 0 ]; }
wait_until 'the manager knows its space' has_space || { timeout 60 ceph status; exit 1; }
mkdir "$LOOK/xcp"
DCONF="((server . \"$HOST\") (serverpath . \"/xcp\") (options . \"$KEY\"))"
status=0
complies_by_turns 0 4 'words locks many' -t cephfs -d "$DCONF" || status=1
with() { "$BIN/sm" "$2" -t cephfs -d "((server . \"$1\") (serverpath . \"/xcp\") (options . \"$KEY\"))" "$SR" "${@:3}"; }
run() { with "$HOST" "$@"; }
mounted() { grep -q "^$HOST:6789:/xcp/$SR /run/sr-mount/$SR ceph .*nosuid" /proc/mounts; }
V=$(vdi 1)
claim 'a monitor that is not there: ENODEV' within 20 fails_with ENODEV with 10.9.9.8 sr_attach
ceph-authtool --gen-print-key > /etc/ceph/other
other_key() { "$BIN/sm" sr_create -t cephfs -d "((server . \"$HOST\") (serverpath . \"/xcp\") (options . \"name=admin,secretfile=/etc/ceph/other\"))" "$SR"; }
# mount.ceph says the same of it as of a cluster without a metadata server.
claim 'a wrong key is refused, and the key named' eval 'fails_with EIO other_key && says "its key"'
secret_given() { "$BIN/sm" sr_create -t cephfs -d "((server . \"$HOST\") (serverpath . \"/xcp\") (options . \"name=admin,secret=sesame\"))" "$SR"; }
claim 'a key among the options is refused, and not repeated' eval 'fails_with EINVAL secret_given && ! secret_given 2>&1 | grep sesame'
claim 'sr_create' run sr_create
claim 'sr_attach' run sr_attach
claim '  again' run sr_attach
claim '  it is the directory of the SR that is mounted' mounted
claim 'sm sr_list has it' eval '"$BIN/sm" sr_list -t cephfs | grep -q "$SR"'
claim 'a disk, and a snapshot of it' eval 'run vdi_create "$V" 20M && run vdi_snapshot "$V" "$(vdi 2)"'
claim '  they are in the directory of the SR' ls "$LOOK/xcp/$SR/$V.vhd"
claim 'sr_detach' run sr_detach
claim 'what is below the mountpoint is no SR' eval 'mkdir -p "/run/sr-mount/$SR" && fails_with ESRBUSY run vdi_create "$(vdi 3)" 4M && ! ls -A "/run/sr-mount/$SR" | grep .'
claim 'several monitors, one of which is not there' with "10.9.9.8,$HOST" sr_attach
claim '  with its disks' eval 'with "10.9.9.8,$HOST" sr_scan | grep -q "$V"'
claim '  sr_detach' with "10.9.9.8,$HOST" sr_detach
claim 'sr_attach' run sr_attach
stopped() { kill -STOP $(pgrep -x ceph-mon) $(pgrep -x ceph-mds) $(pgrep -x ceph-osd); }
claim 'the cluster stops' stopped
says_so() { XCP_SM_PATIENCE=25 fails_with ESRBUSY run sr_scan && says 'takes connections'; }
claim '  a call ends all the same, though its monitor takes connections' within 40 says_so
kill -CONT $(pgrep -x ceph-mon) $(pgrep -x ceph-mds) $(pgrep -x ceph-osd)
claim '  it comes back, and the SR is as it was' eval 'wait_until "the cluster answers" eval "run sr_scan > /dev/null" && run sr_scan | grep -q "$V"'
claim 'sr_delete' run sr_delete --yes
claim '  nothing is left' eval '! ls -A "$LOOK/xcp" | grep .'
umount "$LOOK"
summary && exit $status
