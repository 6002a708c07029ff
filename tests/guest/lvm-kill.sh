#!/bin/bash
# Killed before and after each program it starts, a call leaves the old state or the new one: the same call again
# completes it, and no volume and no device is left over or lost.
# guest: uml
# bins: sm
# memory: 512
# disks: 200M 200M
# timeout: 2400
# tools: lvcreate wipefs thin_check
# What is in single quotes is evaluated later; UUIDs have no spaces.
# shellcheck disable=SC2016,SC2086,SC2119
set -u
# shellcheck source-path=SCRIPTDIR source=lvm.inc
. "$ROOT/tests/guest/lvm.inc"
modprobe dm_thin_pool

# shellcheck source-path=SCRIPTDIR source=kill.inc
. "$ROOT/tests/guest/kill.inc"
interpose lvm lvchange lvcreate lvextend lvreduce lvremove lvrename lvs vgchange vgcreate vgremove pvremove wipefs dmsetup

has() { [ "$(volumes)" = "$*${*:+ }" ] || { echo "volumes: $(volumes)"; false; }; }
active() { [ "$(dmsetup ls | grep -c LV--)" = "$1" ] || { dmsetup ls; false; }; }
attached_zero() { local d; d=$(sm vdi_attach $SR $A) && zeroes "$d" && sm vdi_detach $SR $A; }
pattern() { local d; d=$(sm vdi_attach $SR $A) && echo content | dd of="$d" conv=fsync,notrunc status=none && sm vdi_detach $SR $A; }
has_pattern() { local d; d=$(sm vdi_attach $SR "$1") && [ "$(head -c 7 "$d")" = content ] && sm vdi_detach $SR "$1"; }
tail_is_zero() { local d; d=$(sm vdi_attach $SR $A) && cmp -n $((12 << 20)) -i $((8 << 20)):0 "$d" /dev/zero && has_pattern $A; }

everything() { # thick|thin
  local kind=$1 pool=''
  [ "$kind" = thick ] || pool=POOL
  # shellcheck disable=SC2086
  {
    ONCE=yes boundaries "$kind sr_create" : "sm sr_delete --yes $SR" "has $pool && sm sr_attach $SR" 17 sr_create $SR
    must sm sr_create $SR
    ONCE=yes boundaries "$kind vdi_create" : "sm vdi_delete $SR $A" "has LV-$A $pool && active 0 && [ \$(size $A) = $((8 << 20)) ]" 17 \
      vdi_create $SR $A 8 --label 'a b' --shareable
    # A pool's chunks are zeroes: on a thin SR the first vdi_attach is as any.
    if [ "$kind" = thick ]; then
      boundaries "$kind vdi_attach of a new VDI" "sm vdi_create $SR $A 8" "sm vdi_detach $SR $A && sm vdi_delete $SR $A" \
        "active 1 && zeroes \$(device $A)" '' vdi_attach $SR $A
      boundaries "$kind vdi_attach of a new read-only VDI" "sm vdi_create $SR $A 8 --read-only" "sm vdi_detach $SR $A && sm vdi_delete $SR $A" \
        "active 1 && zeroes \$(device $A) && [ \$(blockdev --getro \$(device $A)) = 1 ]" '' vdi_attach $SR $A
    fi
    ONCE=yes boundaries "$kind vdi_import" : "sm vdi_delete $SR $A" "has LV-$A $pool && active 0 && has_image $A" 17 \
      vdi_import $SR $A $SCRATCH/image.raw --label 'a b'
    must sm vdi_import $SR $A $SCRATCH/image.raw
    ONCE=yes boundaries "$kind vdi_export" : : "active 0 && exported && has_image $A" 22 vdi_export $SR $A $SCRATCH/copy.raw
    must sm vdi_delete $SR $A
    must sm vdi_create $SR $A 8
    pattern
    ONCE=yes boundaries "$kind vdi_attach" : "sm vdi_detach $SR $A" 'active 1' '' vdi_attach $SR $A
    ONCE=yes boundaries "$kind vdi_detach" "sm vdi_attach $SR $A > /dev/null" : 'active 0' '' vdi_detach $SR $A
    ONCE=yes boundaries "$kind vdi_lock" : "sm vdi_unlock $SR $A TRUE me" "sm vdi_get_params $SR $A | grep -q 'VBDs .me.'" 37 vdi_lock $SR $A FALSE me
    ONCE=yes boundaries "$kind vdi_unlock" "sm vdi_lock $SR $A FALSE me" : "sm vdi_get_params $SR $A | grep -q 'lock . 0'" 37 vdi_unlock $SR $A FALSE me
    boundaries "$kind vdi_resize" : "sm vdi_resize $SR $A 8 --allow-shrink" \
      "has LV-$A $pool && [ \$(size $A) = $((20 << 20)) ] && tail_is_zero && active 0" '' vdi_resize $SR $A 20
    boundaries "$kind vdi_resize, attached" "sm vdi_attach $SR $A > /dev/null" "sm vdi_detach $SR $A; sm vdi_resize $SR $A 8 --allow-shrink" \
      "has LV-$A $pool && [ \$(blockdev --getsize64 \$(device $A)) = $((20 << 20)) ] && tail_is_zero" '' vdi_resize $SR $A 20
    boundaries "$kind vdi_resize, smaller" "sm vdi_resize $SR $A 20" "sm vdi_resize $SR $A 8 --allow-shrink" \
      "has LV-$A $pool && [ \$(size $A) = $((12 << 20)) ] && has_pattern $A && active 0" '' vdi_resize $SR $A 12 --allow-shrink
    if [ "$kind" = thin ]; then
      ONCE=yes boundaries "$kind vdi_clone" : "sm vdi_delete $SR $B" "has LV-$A LV-$B POOL && has_pattern $A && has_pattern $B" 17 vdi_clone $SR $A $B
      ONCE=yes boundaries "$kind vdi_snapshot" : "sm vdi_delete $SR $B" "has LV-$A LV-$B POOL && has_pattern $A && has_pattern $B" 17 vdi_snapshot $SR $A $B
      ONCE=yes boundaries "$kind sr_attach" "sm sr_detach $SR" : 'dmsetup ls | grep -q POOL' '' sr_attach $SR
      ONCE=yes boundaries "$kind sr_detach" "sm sr_attach $SR" : 'dmsetup ls 2>&1 | grep -q "No devices"' '' sr_detach $SR
    fi
    ONCE=yes boundaries "$kind vdi_delete" "sm vdi_create $SR $B 8" : "has LV-$A $pool && has_pattern $A" '' vdi_delete $SR $B
    must sm sr_delete --yes $SR
    ONCE=yes boundaries "$kind sr_delete" "sm sr_create $SR && sm vdi_create $SR $A 8 && sm vdi_create $SR $B 8" : \
      "has '' && ! sm sr_attach $SR 2> /dev/null" '' sr_delete --yes $SR
    ONCE=yes boundaries "$kind sr_create --force" "mkfs.ext2 -q ${DISKS%% *}" "sm sr_delete --yes $SR" "has $pool && sm sr_attach $SR" '16 17' sr_create $SR --force
    is "devices" "$(dmsetup ls)" 'No devices found'
  }
}
# Of 8 MiB and a sector; the disk gets whole extents, and zeroes where nothing came.
{ head -c 100000 /dev/zero; head -c 3000000 /dev/urandom; head -c 5289120 /dev/zero; } > "$SCRATCH/image.raw"
has_image() {
  local d; d=$(sm vdi_attach $SR "$1") && cmp -n 8389120 "$SCRATCH/image.raw" "$d" &&
    cmp -n $(((12 << 20) - 8389120)) -i 8389120:0 "$d" /dev/zero && sm vdi_detach $SR "$1"
}
# A killed vdi_export leaves a part of the file, and the next one refuses to overwrite it.
exported() {
  rm "$SCRATCH/copy.raw" && sm vdi_export $SR $A "$SCRATCH/copy.raw" &&
    cmp -n 8389120 "$SCRATCH/image.raw" "$SCRATCH/copy.raw" && rm "$SCRATCH/copy.raw"
}
dirty
everything thick
DCONF="((device . \"$DCONF\") (allocation . \"thin\"))"
everything thin
finish
