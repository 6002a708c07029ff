#!/bin/bash
# The compliance suite for the ext driver in its default format, on two striped devices. With LONG=y also in the others, whose
# code is that of the file driver.
# guest: uml
# bins: sm
# memory: 768
# disks: 700M 600M
# takes: 100
# tools: lvcreate wipefs mkfs.ext4 e2fsck
set -eu
modprobe -a dm_mod loop fuse nbd 2> /dev/null || :
read -r ONE TWO <<< "$DISKS"
if [ -z "${LONG-}" ]; then
  "$ROOT/tests/sh/test1.sh" --quick -t ext -d "$ONE,$TWO"
else
  "$ROOT/tests/sh/test1.sh" -t ext -d "$ONE,$TWO"
  for format in raw qcow2; do "$ROOT/tests/sh/test1.sh" -t ext -d "$ONE" -f $format; done
fi
