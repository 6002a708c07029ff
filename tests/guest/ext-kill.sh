#!/bin/bash
# Killed before and after programs that it starts, a call leaves the old state or the new one: the same call again completes it,
# and no volume group, no mount and no device is left over or lost. A half of the points, by the day; with LONG=y, all of them.
# guest: uml
# bins: sm
# memory: 512
# disks: 100M 100M
# takes: 65
# tools: lvcreate wipefs mkfs.ext4 e2fsck
# What is in single quotes is evaluated later; UUIDs have no spaces.
# shellcheck disable=SC2016,SC2086,SC2119
set -u
# shellcheck source-path=SCRIPTDIR source=ext.inc
. "$ROOT/tests/guest/ext.inc"
# shellcheck source-path=SCRIPTDIR source=kill.inc
. "$ROOT/tests/guest/kill.inc"
interpose lvm lvchange lvcreate lvremove lvs vgchange vgcreate vgremove pvremove wipefs dmsetup mkfs.ext4 e2fsck

detached() { ! mounted && mapped && is "$MAPPED" '' 'what device-mapper has' && [ ! -e "$MNT" ]; }
gone() { is "$(vgs --noheadings -o vg_name 2> /dev/null)" '' 'the group' && detached; }
content() { local line; mounted && read -r line < "$MNT/$A.raw" && [ "$line" = content ]; }

boundaries sr_create : "sm sr_delete --yes $SR" "detached && sm sr_attach $SR && mounted" 17 sr_create $SR
must sm sr_create $SR
boundaries sr_attach : "sm sr_detach $SR" mounted '' sr_attach $SR
must sm sr_attach $SR
must sm vdi_create $SR $A 1 --type raw
echo content | dd of="$MNT/$A.raw" conv=notrunc,fsync status=none
boundaries sr_detach "sm sr_attach $SR" : "detached && sm sr_attach $SR && content" '' sr_detach $SR
must sm sr_detach $SR
boundaries sr_probe : : "detached && grep -q '$SR.*$A' $SCRATCH/out" '' sr_probe
# A kill within the steps that are no programs: the mountpoint is made; the volume is active.
mkdir -p "$MNT"
lvchange -ay $VG/$SR
must sm sr_detach $SR
detached || fail 'sr_detach leaves what a killed sr_attach made'
mkdir -p "$MNT"
lvchange -ay $VG/$SR
must sm sr_attach $SR
content || fail 'sr_attach takes what a killed one made'
boundaries 'sr_delete, attached' "sm sr_create $SR 2> /dev/null; sm sr_attach $SR" : gone '' sr_delete --yes $SR
boundaries 'sr_delete, not attached' "sm sr_create $SR" : gone '' sr_delete --yes $SR
summary
