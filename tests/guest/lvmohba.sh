#!/bin/bash
# SRs on LUNs of a host bus adapter, which the kernel's simulated one stands for (scsi_debug: an adapter of its own for each LUN):
# the compliance suite, sr_probe, a LUN that is taken away and comes back, one that grows and one that shrinks, two paths.
# What many calls at once do to a volume group is shown by lvm-thin, locks by lvm-thick; with LONG=y here as well.
# guest: uml
# bins: sm
# memory: 1024
# takes: 115
# tools: lvcreate
# Names have no blanks; a command before && fails only where the claim has failed.
# shellcheck disable=SC2015
set -u
# shellcheck source-path=SCRIPTDIR source=claims.inc
. "$ROOT/tests/guest/claims.inc"
# shellcheck source-path=SCRIPTDIR source=compliance.inc
. "$ROOT/tests/guest/compliance.inc"
sm() { "$BIN/sm" "$@"; }
modprobe -a sd_mod dm_mod && modprobe scsi_debug dev_size_mb=400 lbpu=1 lbpws=1 delay=0 vpd_use_hostno=0 || exit 77
wait_until 'the disk is there' test -e /sys/block/sda
said() { grep -q -- "$1" "$SCRATCH/stderr" || { cat "$SCRATCH/stderr"; return 1; }; }
sm sr_probe -t lvmohba -d hba@ 2> "$SCRATCH/stderr"
cat "$SCRATCH/stderr"
ID=$(sed -n 's/.* has \(3[0-9a-f]*\) (LUN 0.*/\1/p' "$SCRATCH/stderr")
on() { "$BIN/sm" "$1" -t lvmohba -d "hba@$ID" "${@:2}"; }

found() {
  is "$ID" "$(/lib/udev/scsi_id -g --device /dev/sda)" || return
  fails_with ENODEV sm sr_probe -t lvmohba -d hba@3nonexistent && said "no SCSIid.*$ID" || return
  fails_with EINVAL sm sr_probe -t lvmohba -d hba@../x
}
claim 'sr_probe lists LUNs by the identifiers of scsi_id' found
complies_by_turns 0 2 'words many locks errors' -t lvmohba -d "hba@$ID" || exit

away() {
  on sr_create $SR && on sr_attach $SR && on vdi_create $SR "$(vdi 1)" 8M > /dev/null && on sr_detach $SR || return
  sm sr_probe -t lvmohba -d "hba@$ID" | grep -q "(uuid . \"$SR\")" || return
  echo 1 > /sys/block/sda/device/delete
  fails_with ESRBUSY on sr_scan $SR && said "no LUN $ID" || return
  # The kernel looks again, and may give it another name.
  on sr_attach $SR && on sr_scan $SR | grep -q "$(vdi 1)" || return
  echo offline > "/sys/block/$(name)/device/state"
  fails_with ESRBUSY on sr_scan $SR && said 'is offline' || return
  echo running > "/sys/block/$(name)/device/state"
  on sr_scan $SR > /dev/null
}
name() { local dir; for dir in /sys/block/sd*; do echo "${dir##*/}"; done | head -n 1; }
claim 'a LUN that goes away and comes back' away

sizes() {
  local before after
  before=$(on sr_get_params $SR | sed 's/.*(size . \([0-9]*\)).*/\1/')
  echo 1 > /sys/bus/pseudo/drivers/scsi_debug/virtual_gb && on sr_attach $SR || return
  after=$(on sr_get_params $SR | sed 's/.*(size . \([0-9]*\)).*/\1/')
  [ "$after" -gt $((before + (500 << 20))) ] || { echo "$before, and then $after"; return 1; }
  echo 0 > /sys/bus/pseudo/drivers/scsi_debug/virtual_gb
  fails_with ESRBUSY on sr_attach $SR && said 'make the LUN larger again' || return
  echo 1 > /sys/bus/pseudo/drivers/scsi_debug/virtual_gb && on sr_attach $SR
}
claim 'a group uses what its LUN grows by, and one that is larger than its LUN is refused' sizes

paths() {
  # A second adapter shows the same LUN.
  echo 1 > /sys/bus/pseudo/drivers/scsi_debug/add_host && wait_until 'two paths' test -e /sys/block/sdb -o -e /sys/block/sdc || return
  if is "$(/lib/udev/scsi_id -g --device "/dev/$(name)")" "$ID"; then :; fi
  fails_with EBUSY on sr_attach $SR && said '2 paths.*no multipath map' || return
  echo -1 > /sys/bus/pseudo/drivers/scsi_debug/add_host
  on sr_attach $SR
}
claim 'two paths without a map are refused' paths

end() {
  on vdi_delete --yes $SR "$(vdi 1)" && on sr_delete $SR || return
  # The disk is taken out of the list of the kernel, and a scan finds it, without an SR.
  ! ls /sys/block/sd* 2> /dev/null || return
  sm sr_probe -t lvmohba -d "hba@$ID" > "$SCRATCH/found" && ! grep -q uuid "$SCRATCH/found"
}
claim 'sr_delete lets the kernel forget the disk' end

kept() {
  local disk other=87b8646b-b800-9500-cb7b-af3b74e02f5d
  disk=$(name)
  # What is done already takes no disk away that something else may have by now.
  on sr_delete $SR && is "$(name)" "$disk" || return
  on sr_create $SR && on sr_attach $SR && on vdi_create $SR "$(vdi 1)" 8M > /dev/null || return
  on sr_delete $other && is "$(name)" "$disk" && on sr_scan $SR | grep -q "$(vdi 1)" || return
  on vdi_delete --yes $SR "$(vdi 1)" || return
  # Of a disk that a process has open, only the SR goes.
  exec 9< "/dev/$disk"
  on sr_delete $SR && is "$(name)" "$disk"
  local status=$?
  exec 9<&-
  return $status
}
claim 'a repeated sr_delete, one of another UUID, and one of a disk in use leave the disk where it is' kept
summary
