#!/bin/bash
# ISOSR on an NFS export: as xapi calls it, as a person does, and a server that goes away.
# guest: uml
# needs: nfsd nfs loop ext4
# tools: rpc.nfsd rpc.mountd rpcbind mount.nfs mkfs.ext4 python3
# bins: sm
# memory: 1024
# disks: 256M
# takes: 40
set -u
# shellcheck source=/dev/null
. "$ROOT/tests/guest/nfs.inc"
ln -sf "$BIN/sm" "$SCRATCH/bin/ISOSR"
export BIN=$SCRATCH/bin
serve
status=0
for keys in '{"type": "nfs_iso", "nfsversion": "3"}' '{"options": "-o nconnect=1"}'; do
  echo "# $keys"
  (cd "$ROOT/tests/smapiv1" && ISO_LOCATION=127.0.0.1:$SRV ISO_KEYS=$keys ISO_DIR=$SRV \
    python3 -B -m unittest -v test_iso_server) || status=1
done

echo '# a person'
mkdir "$SRV/linux"
head -c 3M /dev/urandom > "$SRV/linux/a b.iso"
DCONF=nfs@127.0.0.1:/linux@$SCRATCH/mnt
run() { local verb=$1; shift; sm "$verb" -t iso -d "$DCONF" "$SR" "$@"; }
claim 'sr_create' run sr_create
claim 'nothing is mounted then' sh -c '! grep " nfs4\? " /proc/mounts'
claim 'sr_attach' run sr_attach
claim '  again' run sr_attach
iso=$(run sr_scan | sed 's/.*VDIs "\([^"]*\)").*/\1/')
reads() { device=$(run vdi_attach "$iso") && cmp "$SRV/linux/a b.iso" "$device"; }
claim 'a CD is read' reads
claim 'sr_detach while it is attached: EVDIBUSY' fails_with EVDIBUSY run sr_detach
claim 'vdi_delete while it is attached: EVDIBUSY' fails_with EVDIBUSY run vdi_delete "$iso"
claim 'vdi_detach' run vdi_detach "$iso"
echo "$SRV *(ro,no_subtree_check,insecure,fsid=0)" > "$SCRATCH/exports"
exportfs -ra
claim 'vdi_create on an export that is read-only: EACCES' fails_with EACCES run vdi_create "$(vdi 1)" 1
claim 'vdi_delete there: EACCES' fails_with EACCES run vdi_delete "$iso"

echo '# gone'
stop_nfsd
gone() { fails_with 'ESRBUSY|EIO' run sr_scan --wait 3; }
claim 'sr_scan of a server that is gone: an error, never an empty SR' within 60 gone
claim 'sr_detach works' within 60 run sr_detach
claim '  nothing is mounted' sh -c '! grep " nfs4\? " /proc/mounts'
claim 'sr_attach: ENODEV' within 20 fails_with ENODEV run sr_attach
start_nfsd
claim 'and when it is back, it is attached again' run sr_attach
claim '  with its CD' reads
run vdi_detach "$iso"
claim '  sr_delete leaves the CD' sh -c "sm sr_delete -t iso -d $DCONF $SR && [ -s '$SRV/linux/a b.iso' ]"
claim '  and no mount' sh -c '! grep " nfs4\? " /proc/mounts'
stop_serving
summary && exit $status
