#!/bin/bash
# The compliance suite for the NFS driver, over version 3. What is refused for its words alone, `make check` shows on
# a file SR; with LONG=y here as well.
# guest: uml
# needs: nfsd nfs loop ext4
# tools: rpc.nfsd rpc.mountd rpcbind mount.nfs mkfs.ext4
# bins: sm
# memory: 1024
# disks: 1G
# takes: 60
set -e
# shellcheck source=/dev/null
. "$ROOT/tests/guest/nfs.inc"
# shellcheck source-path=SCRIPTDIR source=compliance.inc
. "$ROOT/tests/guest/compliance.inc"
serve
status=0
complies words -f raw -t nfs -d "((server . \"127.0.0.1\") (serverpath . \"$SRV\") (nfsversion . \"3\") (mountpoint . \"$SCRATCH/mnt\"))" || status=$?
claim 'no mount is left' sh -c '! grep " nfs4\? " /proc/mounts'
claim 'nothing is left on the export' sh -c "! ls $SRV | grep -v lost+found"
stop_serving
summary && exit $status
