#!/bin/bash
# xapi with the LVM driver, thick and thin, and an SR that the Python driver made (LVHD).
# guest: uml
# needs: dm_mod loop
# tools: lvcreate vgcreate python3
# bins: sm
# memory: 768
# disks: 600M 600M
# takes: 90
set -u
modprobe -a dm_mod loop dm_thin_pool 2> /dev/null
export PATH=$PATH:/usr/sbin:/sbin
mkdir -p "$SCRATCH/bin"
for name in sm LVMSR; do ln -sf "$BIN/sm" "$SCRATCH/bin/$name"; done
cd "$ROOT/tests/smapiv1" || exit
LVM_DISKS=$DISKS BIN=$SCRATCH/bin TMPDIR=$SCRATCH exec python3 -B -m unittest -v test_lvm 2>&1
