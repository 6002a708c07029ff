#!/bin/bash
# As on a real host: two CPUs and udevd, which opens every device that appears or is closed after writing. Nothing
# may be "busy" for it, links are there when a call returns, and none is left.
# guest: qemu
# bins: sm
# memory: 1024
# disks: 1G 1G
# takes: 140
# tools: lvcreate wipefs udevadm thin_check
set -u
# shellcheck source-path=SCRIPTDIR source=lvm.inc
. "$ROOT/tests/guest/lvm.inc"
modprobe -a dm_thin_pool
unset DM_DISABLE_UDEV
/lib/systemd/systemd-udevd --daemon
udevadm trigger --action=add --subsystem-match=block
udevadm settle
read -r -a disks <<< "$DISKS"
uuid() { printf '7e57ab1e-0000-4000-8000-%012d' "$1"; }

# One VDI's life, as fast as it goes; writing and closing makes udev look again.
life() { # NUMBER ROUNDS
  local vdi device i
  vdi=$(uuid "$1")
  for ((i = 1; i <= $2; i++)); do
    sm vdi_create $SR "$vdi" 16 || return
    device=$(sm vdi_attach $SR "$vdi") || return
    [ -L "$device" ] || { echo "$device is no link of udev's"; return 1; }
    mkfs.ext2 -q "$device" || return
    sm vdi_resize $SR "$vdi" 24 || return
    sm vdi_detach $SR "$vdi" || return
    [ ! -e "$device" ] || { echo "$device is still there"; return 1; }
    sm vdi_attach $SR "$vdi" --read-only > /dev/null || return
    sm vdi_detach $SR "$vdi" || return
    sm vdi_delete $SR "$vdi" || return
  done
}

lives='1 2' rounds=1
[ -z "${LONG-}" ] || lives='1 2 3' rounds=3
for allocation in thick thin; do
  DCONF="((device . \"${disks[0]},${disks[1]}\") (allocation . \"$allocation\"))"
  must sm sr_create $SR
  must sm sr_attach $SR
  for n in $lives; do
    life "$n" $rounds > "$SCRATCH/life$n" 2>&1 &
    pids[n]=$!
  done
  for n in $lives; do wait "${pids[n]}" || fail "$allocation, VDI $n: $(cat "$SCRATCH/life$n")"; done
  claim "$allocation: nothing is left"
  must sm sr_detach $SR
  udevadm settle
  is "$(dmsetup ls)" 'No devices found' "the devices of a detached $allocation SR"
  must sm sr_attach $SR
  must sm sr_delete --yes $SR
done
summary
