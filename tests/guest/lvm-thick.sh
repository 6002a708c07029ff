#!/bin/bash
# The compliance suite for the LVM driver on two disks, every volume with extents of its own. What many calls at once do to a
# volume group is shown by lvm-thin, and what is refused for its words alone by `make check` on a file SR; with LONG=y here as well.
# guest: uml
# bins: sm
# memory: 512
# disks: 600M 600M
# takes: 105
# tools: lvcreate wipefs
set -e
modprobe dm_mod
# shellcheck source-path=SCRIPTDIR source=compliance.inc
. "$ROOT/tests/guest/compliance.inc"
complies 'words many' -t lvm -d "${DISKS// /,}"
