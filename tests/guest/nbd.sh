#!/bin/bash
# The data path over the kernel's nbd: the same tests that the host runs over FUSE and a loop device.
# guest: uml
# needs: nbd loop
# tools: mkfs.ext4 blkdiscard
# memory: 1024
# timeout: 300
set -e
modprobe -a nbd loop ext4 2> /dev/null || :
# In the test's own directory: what `cargo test` built last.
test=$(find "$ROOT/target" -path '*/deps/datapath-*' -type f -perm -1 -printf '%T@ %p\n' | sort -n | tail -n 1 | cut -d' ' -f2-)
[ -x "$test" ] || { echo "no tests built: cargo test --no-run --test datapath"; exit 77; }
mkdir -p "$SCRATCH"
for transport in nbd fuse; do
  echo "$transport:"
  TMPDIR=$SCRATCH XCP_SM_DATAPATH=$transport "$test"
done
