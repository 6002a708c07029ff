#!/bin/bash
# The compliance suite for the file driver on btrfs, whose copies share their blocks and which checks its own sums.
# guest: host uml
# needs: loop btrfs
# tools: mkfs.btrfs
# bins: sm
# memory: 768
# disks: 1G
# takes: 30
set -e
# shellcheck source=/dev/null
. "$ROOT/tests/guest/file.inc"
compliance_on btrfs -q
