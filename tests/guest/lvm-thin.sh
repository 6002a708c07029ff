#!/bin/bash
# The compliance suite for raw volumes in a thin pool on two disks. A lock is a tag of a volume, thick or thin: lvm-thick shows
# locks, and `make check` on a file SR what is refused for its words alone; with LONG=y here as well.
# guest: uml
# bins: sm
# memory: 512
# disks: 600M 600M
# takes: 160
# tools: lvcreate wipefs thin_check
set -e
modprobe -a dm_mod dm_thin_pool
# shellcheck source-path=SCRIPTDIR source=compliance.inc
. "$ROOT/tests/guest/compliance.inc"
complies 'words locks' -t lvmraw -d "((device . \"${DISKS// /,}\") (allocation . \"thin\"))"
