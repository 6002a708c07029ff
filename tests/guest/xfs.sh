#!/bin/bash
# The compliance suite for the xfs driver in its default format, on two striped devices; then what the drivers for ext4 and xfs, whose
# groups have the same names, say to each other's SRs. Locks, many calls at once and the other formats are code of the file driver,
# which file-ext4 and `make check` on a file SR show; with LONG=y here as well.
# guest: uml
# bins: sm
# memory: 768
# disks: 700M 600M
# takes: 90
# tools: lvcreate wipefs mkfs.xfs mkfs.ext4 e2fsck
# shellcheck disable=SC2016 # eval expands them
set -eu
modprobe -a dm_mod loop fuse nbd xfs 2> /dev/null || :
read -r ONE TWO <<< "$DISKS"
# shellcheck source-path=SCRIPTDIR source=compliance.inc
. "$ROOT/tests/guest/compliance.inc"
complies_by_turns 0 2 'words locks many' -t xfs -d "$ONE,$TWO"
if [ -n "${LONG-}" ]; then
  for format in raw qcow2; do "$ROOT/tests/sh/test1.sh" -t xfs -d "$ONE" -f $format; done
fi

# shellcheck source-path=SCRIPTDIR source=claims.inc
. "$ROOT/tests/guest/claims.inc"
set +e
GROUP=XSLocalEXT-$SR V=$(vdi 1)
on() { # TYPE VERB ARG…
  "$BIN/sm" "$2" -t "$1" -d "$ONE" "$SR" "${@:3}"
}
probed() { "$BIN/sm" sr_probe -t "$1" -d "$ONE" | grep -q "$SR"; }
listed() { "$BIN/sm" sr_list --format table > "$SCRATCH/list" && is "$(grep -c "$SR" "$SCRATCH/list")" 1 && grep "$SR" "$SCRATCH/list" | grep -qw "$1"; }
empty() { ! vgs "$GROUP" 2> /dev/null; }
made() {
  vgcreate -q --metadatasize 10M "$GROUP" "$ONE" && lvcreate -q -n "$SR" -l 100%FREE "$GROUP" -W y --yes &&
    "mkfs.$1" -q "/dev/$GROUP/$SR" && lvchange -an "$GROUP/$SR"
}

for type in xfs ext; do
  other=ext
  [ $type = xfs ] || other=xfs
  echo "# an SR of type $type as the Python drivers make it"
  claim 'it is made' made "${type/ext/ext4}"
  claim 'sr_probe finds it' probed "$type"
  claim "  sr_probe of the type $other does not" eval '! probed $other'
  claim "  sr_attach as $other is refused, with its type" fails_with ENOSR on $other sr_attach
  claim '  nothing is active' eval '! [ -e "/dev/mapper/${GROUP//-/--}-${SR//-/--}" ]'
  claim 'sr_attach' on $type sr_attach
  claim '  again' on $type sr_attach
  claim '  it is mounted as such' grep -q " /run/sr-mount/$SR ${type/ext/ext4} .*nosuid,nodev,noexec" /proc/mounts
  claim '  sm sr_list has it, and as this type alone' listed $type
  claim 'a disk' on $type vdi_create "$V" 20M
  claim '  a snapshot' on $type vdi_snapshot "$V" "$(vdi 2)"
  exec 7< "/run/sr-mount/$SR/$V.vhd"
  named() { ! on "$type" sr_detach 2> "$SCRATCH/said" && grep -q bash "$SCRATCH/said"; }
  claim 'sr_detach while a process works there names it' named
  exec 7<&-
  claim 'sr_detach' on $type sr_detach
  mkdir -p "/run/sr-mount/$SR"
  claim 'the directory below the mountpoint is no SR' fails_with ESRBUSY on $type vdi_create "$(vdi 3)" 4M
  claim '  nothing is written to it' eval '! ls -A "/run/sr-mount/$SR" | grep .'
  claim 'sr_attach takes it' on $type sr_attach
  claim '  with its disks' eval 'on $type sr_scan | grep -q "$V"'
  claim 'sr_delete' on $type sr_delete --yes
  claim '  nothing is left' empty
done

echo '# a filesystem that is damaged'
damaged() {
  on xfs sr_create && lvchange -ay "$GROUP/$SR" && dd if=/dev/zero of="/dev/$GROUP/$SR" bs=4096 seek=0 count=1 conv=notrunc,fsync status=none
  # The first superblock says that it is xfs; the rest of it is gone.
  printf XFSB | dd of="/dev/$GROUP/$SR" conv=notrunc,fsync status=none
  lvchange -an "$GROUP/$SR"
  ! on xfs sr_attach 2> "$SCRATCH/said" && grep -q xfs_repair "$SCRATCH/said"
}
claim 'sr_attach of one that cannot be mounted says how to repair it' damaged
claim '  nothing is mounted' eval '! grep " /run/sr-mount/$SR " /proc/mounts'
repaired() { lvchange -ay "$GROUP/$SR" && xfs_repair "/dev/$GROUP/$SR" > "$SCRATCH/said" 2>&1 && lvchange -an "$GROUP/$SR" && on xfs sr_attach; }
claim '  and then it is attached' repaired
claim 'sr_delete' on xfs sr_delete --yes
summary
