#!/bin/bash
# The compliance suite for the file driver on ext4, which copies disks byte by byte.
# guest: host uml
# needs: loop ext4
# tools: mkfs.ext4
# bins: sm
# memory: 768
# disks: 1G
# takes: 30
set -e
# shellcheck source=/dev/null
. "$ROOT/tests/guest/file.inc"
compliance_on ext4 -q -F
