#!/bin/bash
# The compliance suite for the file driver on xfs, whose copies share their blocks.
# guest: host uml
# needs: loop xfs
# tools: mkfs.xfs
# bins: sm
# memory: 768
# disks: 1G
# takes: 30
set -e
# shellcheck source=/dev/null
. "$ROOT/tests/guest/file.inc"
compliance_on xfs -q -m reflink=1
