#!/bin/bash
# The compliance suite for the ext driver in its default format, on two striped devices. Locks, many calls at once and the other
# formats are code of the file driver, which file-ext4 and `make check` on a file SR show; with LONG=y here as well.
# guest: uml
# bins: sm
# memory: 768
# disks: 700M 600M
# takes: 65
# tools: lvcreate wipefs mkfs.ext4 e2fsck
set -eu
modprobe -a dm_mod loop fuse nbd 2> /dev/null || :
read -r ONE TWO <<< "$DISKS"
# shellcheck source-path=SCRIPTDIR source=compliance.inc
. "$ROOT/tests/guest/compliance.inc"
complies 'words locks many' -t ext -d "$ONE,$TWO"
if [ -n "${LONG-}" ]; then
  for format in raw qcow2; do "$ROOT/tests/sh/test1.sh" -t ext -d "$ONE" -f $format; done
fi
