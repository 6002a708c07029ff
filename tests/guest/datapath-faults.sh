#!/bin/bash
# Disks whose servers were killed or do not answer, loop devices that other processes want as well, and filesystems that are full.
# guest: uml
# needs: fuse loop ext4
# bins: sm
# tools: losetup python3 mkfs.ext4 fallocate
# memory: 512
# takes: 35
# What follows || is meant for both that come before.
# shellcheck disable=SC2015
set -u
# shellcheck source-path=SCRIPTDIR source=claims.inc
. "$ROOT/tests/guest/claims.inc"
modprobe -a fuse loop ext4 2> /dev/null || :
A=$(vdi 1) B=$(vdi 2) RAW=$(vdi 3)
sm() { local verb=$1; shift; timeout 100 "$BIN/sm" "$verb" -t file -d "$SCRATCH/sr" "$SR" "$@"; }
server() { # VDI: the process that serves it
  local backing
  for backing in /sys/block/loop*/loop/backing_file; do
    sed -n "s|^/sm-datapath/\([0-9]*\)/.*/$1\..*|\1|p" "$backing" 2> /dev/null
  done
}
refuses() { # TEXT COMMAND…: the command fails and says it
  local text=$1
  shift
  "$@" > "$SCRATCH/out" 2> "$SCRATCH/err" && { echo "it worked"; return 1; }
  grep -q -- "$text" "$SCRATCH/err" || { cat "$SCRATCH/err"; return 1; }
}
reports() { sm vdi_get_params "$1" | grep -q -- "$2"; }

sm sr_create && sm vdi_create "$A" 16 && sm vdi_create "$B" 16 && sm vdi_create "$RAW" 4 --type raw || exit

killed() {
  local device pid
  device=$(sm vdi_attach "$A") && echo hello | dd of="$device" bs=512 conv=sync,fsync status=none && pid=$(server "$A") || return
  reports "$A" '(attached . #t)' && ! reports "$A" 'server died' || return
  kill -9 "$pid"
  wait_until 'the server is gone' eval "! grep -q serve-image /proc/$pid/cmdline" || return
  reports "$A" '(attached . #t).*(state . "server died")' && sm sr_scan | grep -q "$A.*server died" &&
    sm sr_scan --format table | grep -q "$A.*server died" || return
  # The doctor finds the device without being told of the SR.
  "$BIN/sm" doctor --format json > "$SCRATCH/told"
  [ $? -eq 5 ] && grep -q "$A.*an image server that died" "$SCRATCH/told" || { cat "$SCRATCH/told"; return 1; }
  device=$(sm vdi_attach "$A") && ! reports "$A" 'server died' && [ "$(head -c 5 "$device")" = hello ] && sm vdi_detach "$A" &&
    "$BIN/sm" doctor
}
claim 'a disk whose server was killed says so, and the next attach serves it again' killed

# A stopped server stands for one that hangs in its storage.
hung() {
  local pid
  sm vdi_attach "$A" > /dev/null && sm vdi_attach "$B" > /dev/null && pid=$(server "$A") || return
  kill -STOP "$pid"
  within 8 refuses "process $pid, which has not answered for 3 s (it is stopped; kill -CONT $pid" sm vdi_snapshot "$A" "$(vdi 11)" --wait 3 &&
    within 8 refuses "process $pid" sm vdi_detach "$A" --wait 3 && within 8 refuses "process $pid" sm vdi_resize "$A" 32 --wait 3 || return
  within 3 sm vdi_get_params "$A" --wait 1 > /dev/null && within 3 sm sr_scan --wait 1 > /dev/null || return
  # Another disk's tree is not waited for.
  sm vdi_snapshot "$A" "$(vdi 12)" --wait 90 2> /dev/null &
  sleep 1
  within 5 sm vdi_snapshot "$B" "$(vdi 13)" --wait 4 || return
  kill -CONT "$pid"
  wait $! || return
  sm vdi_detach "$A" && sm vdi_detach "$B" && sm vdi_delete "$(vdi 12)" && sm vdi_delete "$(vdi 13)"
}
claim 'a server that does not answer holds up its own disk, as long as --wait says, and no other' hung

# Another program takes and frees loop devices all the time: their numbers go from hand to hand.
strangers() {
  local n device pids=() failures=0
  for n in 1 2; do
    truncate -s 1M "$SCRATCH/strange$n"
    while [ ! -e "$SCRATCH/enough" ]; do
      # Whoever took its device away would be seen by that.
      device=$(losetup -f --show "$SCRATCH/strange$n" 2> /dev/null) || continue
      [ "$(losetup -n -O BACK-FILE "$device")" = "$SCRATCH/strange$n" ] && [ "$(losetup -n -O AUTOCLEAR "$device" | tr -d ' ')" = 0 ] &&
        losetup -d "$device" || echo "$device" >> "$SCRATCH/robbed"
    done &
    pids+=($!)
  done
  for ((n = 0; n < ${ROUNDS:-15}; n++)); do
    for v in "$RAW" "$A"; do
      if ! { sm vdi_attach "$v" > /dev/null && sm vdi_detach "$v"; } 2> "$SCRATCH/err"; then
        cat "$SCRATCH/err"
        failures=$((failures + 1))
      fi
    done
  done
  touch "$SCRATCH/enough"
  wait "${pids[@]}"
  [ ! -e "$SCRATCH/robbed" ] || { echo "taken away: $(cat "$SCRATCH/robbed")"; return 1; }
  [ $failures = 0 ]
}
claim 'attach and detach do not meet the loop devices of others' strangers

exclusive() {
  local device pid
  # Open exclusively and without a file: the kernel names it as the next free one again and again.
  device=$(losetup -f)
  [ -b "$device" ] || mknod "$device" b 7 "${device#/dev/loop}"
  passed_over() {
    for v in "$RAW" "$A"; do
      within 20 sm vdi_attach "$v" > "$SCRATCH/out" && [ "$(cat "$SCRATCH/out")" != "$device" ] && sm vdi_detach "$v" || return
    done
  }
  python3 -c "
import os, sys, time
fd = os.open('$device', os.O_RDONLY | os.O_EXCL)
open('$SCRATCH/held', 'w')
time.sleep(1000)" &
  pid=$!
  wait_until 'the device is held' test -e "$SCRATCH/held" || return
  [ "$(losetup -f)" = "$device" ] || { echo "the kernel names another"; return 1; }
  passed_over && kill $pid
}
claim 'a free loop device that another process holds is passed over' exclusive

# Writes without the page cache of the device, so that the server has them.
poke() { # DEVICE OFFSET_KIB TEXT
  echo "$3" | dd of="$1" bs=4k seek=$(($2 / 4)) oflag=direct conv=sync,notrunc status=none
}
peek() { dd if="$1" bs=4k skip=$(($2 / 4)) count=1 iflag=direct status=none | tr -d '\0'; } # DEVICE OFFSET_KIB
small() { "$BIN/sm" "$1" -t file -d "$SCRATCH/small/sr" "$SR" "${@:2}"; }
# No block is free afterwards. Without a sync of everything, because that would flush the device as well.
fill() {
  local size n=0
  for size in 1M 64K 4K; do
    while fallocate -l $size "$SCRATCH/small/ballast$n" 2> /dev/null; do n=$((n + 1)); done
  done
}
full() { # FORMAT VDI SNAPSHOT MEBIBYTES STEP_KIB WORDS [ROOM]
  local device pid before n
  mkdir -p "$SCRATCH/small"
  truncate -s 48M "$SCRATCH/small.img"
  mkfs.ext4 -q -F -b 4096 -m 0 -O ^has_journal "$SCRATCH/small.img" && mount -o loop "$SCRATCH/small.img" "$SCRATCH/small" || return
  small sr_create && small vdi_create "$2" "$4" --type "$1" > /dev/null && device=$(small vdi_attach "$2") || return
  poke "$device" 0 old && sync "$device" && pid=$(server "$2") || return
  # The data has space. ROOM that is left is enough for all that the caller writes. It is not enough for what the server has
  # to write before it can pause: 60 L2 tables of a qcow2.
  [ -z "${7:-}" ] || fallocate -l "$7" "$SCRATCH/small/reserve"
  for n in {1..60}; do
    poke "$device" $((n * $5)) new || return
  done
  fill
  rm -f "$SCRATCH/small/reserve"
  before=$(find "$SCRATCH/small/sr" | sort)
  fails_with ENOSPC small vdi_snapshot "$2" "$3" && grep -q "$6.*No space left on device" "$SCRATCH/stderr" &&
    [ "$(find "$SCRATCH/small/sr" | sort)" = "$before" ] || { echo "snapshot"; df "$SCRATCH/small"; return 1; }
  fill
  { poke "$device" $((61 * $5)) lost; } 2>&1 | grep -q 'No space left on device' || { echo "the words of a write that has no space"; return 1; }
  # What has its space is written and read as before, and made durable.
  poke "$device" 0 same && sync "$device"
  [ "$(peek "$device" 0)" = same ] && [ "$(peek "$device" "$5")" = new ] && kill -0 "$pid" || { echo "data while full"; return 1; }
  rm "$SCRATCH"/small/ballast*
  sync "$device" && small vdi_snapshot "$2" "$3" > /dev/null && poke "$device" "$5" newer && small vdi_detach "$2" || return
  device=$(small vdi_attach "$2") && [ "$(peek "$device" 0)" = same ] && [ "$(peek "$device" "$5")" = newer ] && small vdi_detach "$2" &&
    device=$(small vdi_attach "$3") && [ "$(peek "$device" 0)" = same ] && [ "$(peek "$device" $((60 * $5)))" = new ] && small vdi_detach "$3" || return
  small sr_delete --yes && umount "$SCRATCH/small"
}
cleared() { umount "$SCRATCH/small" 2> /dev/null || umount -l "$SCRATCH/small" 2> /dev/null || :; rm -f "$SCRATCH/small.img"; }
claim 'a full filesystem: a snapshot of a VHD in use says ENOSPC, loses nothing, and works once there is space' full vhd "$(vdi 21)" "$(vdi 22)" 2048 2048 "cannot write"
cleared
claim 'a full filesystem: so does a snapshot of a qcow2 whose image server meets it' full qcow2 "$(vdi 23)" "$(vdi 24)" 65536 524288 "image server" 128K

claim 'all is deleted' sm sr_delete --yes
summary
