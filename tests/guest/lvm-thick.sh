#!/bin/bash
# The compliance suite for raw volumes on two disks, every volume with extents of its own. What many calls at once do to a
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
status=0
complies 'words many' -t lvmraw -d "${DISKS// /,}" || status=1
# By the type that served them before they had one of their own, as all suites lvm-* have them.
"$ROOT/tests/sh/test1.sh" --quick --chapter birth -t lvm -d "${DISKS// /,}" || status=1
exit $status
