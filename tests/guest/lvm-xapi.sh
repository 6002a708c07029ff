#!/bin/bash
# xapi with SRs of raw volumes, thick and thin, with LVHD SRs, one that the Python driver made among them, and with each by the other type.
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
for name in sm LVMSR LVMRawSR; do ln -sf "$BIN/sm" "$SCRATCH/bin/$name"; done
cd "$ROOT/tests/smapiv1" || exit
LVM_DISKS=$DISKS BIN=$SCRATCH/bin TMPDIR=$SCRATCH exec python3 -B -m unittest -v test_lvm 2>&1
