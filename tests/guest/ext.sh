#!/bin/bash
# The compliance suite for the ext driver, in each format; the default one on two striped devices.
# guest: uml
# bins: sm
# memory: 768
# disks: 700M 600M
# takes: 200
# tools: lvcreate wipefs mkfs.ext4 e2fsck
set -eu
modprobe -a dm_mod loop fuse nbd 2> /dev/null || :
read -r ONE TWO <<< "$DISKS"
"$ROOT/tests/sh/test1.sh" -t ext -d "$ONE,$TWO"
for format in raw qcow2; do
  "$ROOT/tests/sh/test1.sh" -t ext -d "$ONE" -f $format --quick
done
