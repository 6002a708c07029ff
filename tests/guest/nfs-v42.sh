#!/bin/bash
# The compliance suite for the NFS driver, over version 4.2.
# guest: uml
# needs: nfsd nfs loop ext4
# tools: rpc.nfsd rpc.mountd rpcbind mount.nfs mkfs.ext4
# bins: sm
# memory: 1024
# disks: 1G
# takes: 65
set -e
# shellcheck source=/dev/null
. "$ROOT/tests/guest/nfs.inc"
serve
status=0
# The rest of the stress is for a longer run: on this host's own filesystems it is done each time.
quick=--quick
[ -z "${LONG-}" ] || quick=''
# shellcheck disable=SC2086 # no word, if empty
"$ROOT/tests/sh/test1.sh" $quick -t nfs -d "nfs@127.0.0.1:/@$SCRATCH/mnt" || status=$?
claim 'no mount is left' sh -c '! grep " nfs4\? " /proc/mounts'
claim 'nothing is left on the export' sh -c "! ls $SRV | grep -v lost+found"
stop_serving
summary && exit $status
