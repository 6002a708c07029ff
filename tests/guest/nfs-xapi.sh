#!/bin/bash
# NFSSR as xapi calls it, on a real server: every fault of the error table, and what sr_probe lists.
# guest: uml
# needs: nfsd nfs loop ext4
# tools: rpc.nfsd rpc.mountd rpcbind mount.nfs mkfs.ext4 showmount python3
# bins: sm
# memory: 1024
# disks: 256M
# takes: 40
set -eu
# shellcheck source=/dev/null
. "$ROOT/tests/guest/nfs.inc"
serve
export BIN=$SCRATCH/bin
rmdir "$SRV/lost+found"
status=0
for export in "127.0.0.1:$SRV" 127.0.0.1:/; do
  echo "# $export"
  (cd "$ROOT/tests/smapiv1" && NFS_EXPORT=$export NFS_DIR=$SRV python3 -B -m unittest -v test_nfs) || status=1
done
claim 'no mount is left' sh -c '! grep " nfs4\? " /proc/mounts'
claim 'nothing is left on the export' sh -c "! ls $SRV | grep ."
stop_serving
summary && exit $status
