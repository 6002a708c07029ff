#!/bin/bash
# The server of a disk, and the calls on it, killed at every seventh of their system calls: no process hangs, other disks go on.
# Which ones depends on the day, so that a week takes them all. LONG=y takes them all at once.
# guest: uml
# needs: fuse loop
# memory: 768
# takes: 55
set -e
# shellcheck source-path=SCRIPTDIR source=datapath.inc
. "$ROOT/tests/guest/datapath.inc"
# shellcheck source-path=SCRIPTDIR source=progress.inc
. "$ROOT/tests/guest/progress.inc"
export KILL_STEP=7 KILL_FIRST
KILL_FIRST=$(($(today 7) + 1))
[ -z "${LONG-}" ] || KILL_STEP=1 KILL_FIRST=1
echo "from system call $KILL_FIRST, every ${KILL_STEP}th"
"$test" harms_nobody
