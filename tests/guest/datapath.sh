#!/bin/bash
# Images served as block devices on a distribution's kernel, which is older than many a host's.
# guest: uml
# needs: fuse loop
# tools: mkfs.ext4 blkdiscard qemu-nbd
# memory: 1024
# takes: 70
set -e
modprobe -a fuse loop ext4 2> /dev/null || :
test=$(find "$ROOT"/target/*/deps "$ROOT"/target/*/*/deps -name 'datapath-*' -type f -perm -1 -printf '%T@ %p\n' 2> /dev/null |
  sort -n | tail -n 1 | cut -d' ' -f2-)
[ -x "$test" ] || { echo "no tests built: cargo test --no-run --test datapath"; exit 77; }
# The long ones are the suite datapath-kill.
IN_A_GUEST=yes TMPDIR=$SCRATCH "$test" --skip=harms_nobody
