#!/bin/bash
# The server of a disk, and the calls on it, killed at every fifth of their system calls (at each with LONG=y): no process
# hangs, other disks go on.
# guest: uml
# needs: fuse loop
# memory: 768
# takes: 70
set -e
# shellcheck source-path=SCRIPTDIR source=datapath.inc
. "$ROOT/tests/guest/datapath.inc"
[ -z "${LONG-}" ] || export KILL_STEP=1
"$test" harms_nobody
