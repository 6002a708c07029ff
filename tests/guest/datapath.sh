#!/bin/bash
# Images served as block devices on a distribution's kernel, which is older than many a host's.
# guest: uml
# needs: fuse loop
# tools: mkfs.ext4 blkdiscard qemu-nbd
# memory: 1024
# takes: 70
set -e
modprobe -a ext4 2> /dev/null || :
# shellcheck source-path=SCRIPTDIR source=datapath.inc
. "$ROOT/tests/guest/datapath.inc"
# The long ones are the suite datapath-kill.
"$test" --skip=harms_nobody
