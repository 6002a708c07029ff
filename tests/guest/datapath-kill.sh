#!/bin/bash
# The server of a disk, and the calls on it, killed at every fifth of their system calls (at each with LONG=y): no process
# hangs, other disks go on.
# guest: uml
# needs: fuse loop
# memory: 768
# takes: 70
set -e
modprobe -a fuse loop 2> /dev/null || :
test=$(find "$ROOT"/target/*/deps "$ROOT"/target/*/*/deps -name 'datapath-*' -type f -perm -1 -printf '%T@ %p\n' 2> /dev/null |
  sort -n | tail -n 1 | cut -d' ' -f2-)
[ -x "$test" ] || { echo "no tests built: cargo test --no-run --test datapath"; exit 77; }
[ -z "${LONG-}" ] || export KILL_STEP=1
IN_A_GUEST=yes TMPDIR=$SCRATCH "$test" harms_nobody
