#!/bin/bash
# A disk has another name after a restart, or another disk has its name: the SR is found by what its disks say. A copy of a
# disk, and a disk that is not there, are told by name.
# guest: uml
# bins: sm
# memory: 512
# disks: 100M 100M
# takes: 30
# tools: lvcreate wipefs mkfs.ext4 e2fsck
# UUIDs have no spaces.
# shellcheck disable=SC2086,SC2119
set -u
# shellcheck source-path=SCRIPTDIR source=lvm.inc
. "$ROOT/tests/guest/lvm.inc"
OTHER=7e57ab1e-0000-4000-8000-0000000000fe
vdis() { sm sr_scan $SR | grep -o 'vdi (uuid' | wc -l; }
where() { sm sr_get_params $SR | sed 's/.*(location \. "\([^"]*\)").*/\1/'; }
files=("$SCRATCH/one" "$SCRATCH/two" "$SCRATCH/other")
# attach FILE…: the files as loop devices, in this order from /dev/loop10 on
attach() {
  local n=10 file
  for file; do
    [ -e /dev/loop$n ] || mknod /dev/loop$n b 7 $n
    losetup /dev/loop$n "$file" || fail "losetup $file"
    n=$((n + 1))
  done
}
detach() { losetup -D; }
python3 -c "
import socket, os
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.bind('/dev/log')
out = open('$SCRATCH/syslog', 'wb', 0)
while True: out.write(s.recv(65536) + b'\n')
" &
logger=$!
wait_until 'the log is there' test -S /dev/log || exit

for TYPE in lvm ext; do
  claim "$TYPE"
  : > "$SCRATCH/syslog"
  for file in "${files[@]}"; do rm -f "$file"; truncate -s 100M "$file"; done
  attach "${files[@]}"
  DCONF=/dev/loop10,/dev/loop11
  must sm sr_create $SR
  DCONF=/dev/loop12 must sm sr_create $OTHER
  must sm sr_attach $SR
  must sm vdi_create $SR $A 8 --label one
  d=$(sm vdi_attach $SR $A)
  echo content | dd of="$d" conv=fsync,notrunc status=none
  must sm vdi_detach $SR $A
  is "$(where)" "$DCONF" 'where it is'
  must sm sr_detach $SR
  grep -q "SR $SR is on" "$SCRATCH/syslog" && fail 'a word where nothing moved'

  claim "$TYPE: names change places; one leads to the disk of another SR"
  detach
  attach "${files[2]}" "${files[1]}" "${files[0]}"
  must sm sr_attach $SR
  is "$(vdis)" 1 'the disks'
  is "$(where | tr , '\n' | sort | tr '\n' ' ')" '/dev/loop11 /dev/loop12 ' 'where it is'
  d=$(sm vdi_attach $SR $A)
  is "$(head -c 7 "$d")" content 'the contents'
  must sm vdi_detach $SR $A
  must sm vdi_create $SR $B 8
  must sm vdi_delete $SR $B
  must sm sr_detach $SR
  grep -q "SR $SR is on .*/dev/loop10 holds no part of it" "$SCRATCH/syslog" || fail "the log: $(cat "$SCRATCH/syslog")"
  fails_with EEXIST sm sr_create $SR && says $SR
  DCONF=/dev/loop10 fails_with EBUSY sm sr_create 7e57ab1e-0000-4000-8000-0000000000fd && says $OTHER

  claim "$TYPE: names are gone"
  detach
  for n in 13 14; do mknod /dev/loop$n b 7 $n 2> /dev/null; done
  losetup /dev/loop13 "${files[0]}"
  losetup /dev/loop14 "${files[1]}"
  mv /dev/loop10 /dev/loop11 "$SCRATCH"
  must sm sr_attach $SR
  is "$(vdis)" 1 'the disks'
  must sm sr_detach $SR
  mv "$SCRATCH"/loop1? /dev

  claim "$TYPE: a disk is missing"
  uuid=$(pvs --noheadings -o pv_uuid /dev/loop14 2> /dev/null | tr -d ' ')
  detach
  attach "${files[0]}"
  losetup /dev/loop11 "${files[2]}"
  case $TYPE in
  # Each disk counts for itself: this one lies on the device that is there.
  lvm)
    must sm sr_attach $SR
    is "$(vdis)" 1 'the disks'
    must sm sr_detach $SR ;;
  # A filesystem needs all of its devices.
  *) fails_with ENODEV sm sr_attach $SR && says "physical volume $uuid of SR $SR is missing" ;;
  esac

  claim "$TYPE: a copy of a disk is here as well"
  detach
  cp "${files[1]}" "$SCRATCH/copy"
  attach "${files[0]}" "${files[1]}" "$SCRATCH/copy"
  fails_with EBUSY sm sr_attach $SR && says '/dev/loop11'
  fails_with EBUSY sm sr_attach $SR && says '/dev/loop12'
  fails_with EBUSY env DCONF=/dev/loop12 "$BIN/sm" sr_create -t $TYPE -d /dev/loop12 --force $OTHER && says "$SR"
  detach
  attach "${files[0]}" "${files[1]}"
  must sm sr_attach $SR
  is "$(vdis)" 1 'the disks'
  DCONF=/dev/loop15
  must sm sr_delete --yes $SR
  is "$(vgs --noheadings 2> /dev/null)" '' 'the groups'
  detach
done
kill $logger
summary
