#!/bin/bash
# The compliance suite for the LVM driver with a thin pool on two disks.
# guest: uml
# bins: sm
# memory: 512
# disks: 600M 600M
# takes: 200
# tools: lvcreate wipefs thin_check
set -e
modprobe -a dm_mod dm_thin_pool
# The rest of the stress is for a longer run: on this host's own filesystems it is done each time.
quick=--quick
[ -z "${LONG-}" ] || quick=''
# shellcheck disable=SC2086
"$ROOT/tests/sh/test1.sh" $quick -t lvm -d "((device . \"$(echo $DISKS | tr ' ' ,)\") (allocation . \"thin\"))"
