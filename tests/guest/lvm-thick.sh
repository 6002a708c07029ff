#!/bin/bash
# The compliance suite for the LVM driver on two disks, every volume with extents of its own.
# guest: uml
# bins: sm
# memory: 512
# disks: 600M 600M
# takes: 230
# tools: lvcreate wipefs
set -e
modprobe dm_mod
# shellcheck disable=SC2086
"$ROOT/tests/sh/test1.sh" -t lvm -d "$(echo $DISKS | tr ' ' ,)"
