#!/bin/bash
# The compliance suite for the LVM driver on two disks, every volume with extents of its own.
# guest: uml
# bins: sm
# memory: 512
# disks: 600M 600M
# takes: 160
# tools: lvcreate wipefs
set -e
modprobe dm_mod
# The rest of the stress is for a longer run: on this host's own filesystems it is done each time.
quick=--quick
[ -z "${LONG-}" ] || quick=''
# shellcheck disable=SC2086
"$ROOT/tests/sh/test1.sh" $quick -t lvm -d "$(echo $DISKS | tr ' ' ,)"
