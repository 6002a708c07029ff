#!/bin/bash
# sm target --fabric nvme-tcp: disks published by NVMe over TCP, with the kernel's own initiator; kills; a reboot's loss.
# guest: qemu
# bins: sm
# memory: 1024
# takes: 60
# tools: mkfs.ext4 strace
# Names have no blanks; a command before && fails only where the claim has failed.
# shellcheck disable=SC2015,SC2086,SC2012,SC2231
set -u
# shellcheck source-path=SCRIPTDIR source=claims.inc
. "$ROOT/tests/guest/claims.inc"
modprobe -a loop fuse ext4 nvme-tcp
mkdir -p /srv/fs
N=/sys/kernel/config/nvmet
ME=nqn.2014-08.org.nvmexpress:uuid:1a11866e-b035-4b1a-a571-0000000000aa
OTHER=nqn.2014-08.org.nvmexpress:uuid:1a11866e-b035-4b1a-a571-0000000000bb
RAW=1a11866e-b035-4b1a-a571-000000000001 VHD=2a11866e-b035-4b1a-a571-000000000002
sm() { "$BIN/sm" "$@"; }
truncate -s 256M /srv/fs.img && mkfs.ext4 -q /srv/fs.img && mount -o loop /srv/fs.img /srv/fs
sm sr_create --name fast -t file -d /srv/fs/sr "$SR" || exit 1
sm vdi_create fast "$RAW" 16M --type raw --label raw
sm vdi_create fast "$VHD" 16M --label vhd
published() { sm target publish "$1" --fabric nvme-tcp --portal "${PORTAL:-127.0.0.1}" --no-auth --to "${2:-$ME}" "${@:3}"; }

# Nothing of ours is left in the kernel, in the records, on the disks.
nothing_left() {
  local left
  left=$(ls -d $N/subsystems/* $N/hosts/* $N/ports/* /var/lib/sm/targets/* /var/lock/sm/targets/* 2> /dev/null)
  is "$left" '' || return
  # The loop device of /srv/fs is the only one.
  left=$(echo /sys/block/loop*/loop/backing_file) && is "$left" /sys/block/loop0/loop/backing_file
}
proves() { # TEXT FUNCTION: a claim that failed leaves the next one a clean host
  local before=$FAILED name
  claim "$1" "$2"
  [ $FAILED != $before ] || return
  {
    for name in /sys/class/nvme/nvme*/delete_controller; do [ ! -e "$name" ] || echo 1 > "$name"; done
    for name in fast/raw fast/vhd; do sm target unpublish $name --force; sm vdi_detach $name; done
  } > /dev/null 2>&1
}
connect() { # TARGET [HOST [PORT]]
  printf 'transport=tcp,traddr=127.0.0.1,trsvcid=%s,nqn=%s,hostnqn=%s,hostid=%s,nr_io_queues=1,reconnect_delay=1,ctrl_loss_tmo=3' \
    "${3:-4420}" "$1" "${2:-$ME}" "${2:-${ME##*:}}" | sed "s/hostid=nqn[^,]*:/hostid=/" > /dev/nvme-fabrics
}
disk_of() { # VDI: the disk that the host has
  local n disk
  for n in {1..100}; do
    for disk in /sys/block/nvme*; do
      [ "$(cat "$disk/uuid" 2> /dev/null)" != "$1" ] || [ ! -b "/dev/${disk##*/}" ] || { echo "/dev/${disk##*/}"; return; }
    done
    sleep 0.1
  done
  return 1
}
disconnect() { for name in /sys/class/nvme/nvme*/delete_controller; do echo 1 > "$name"; done; }

written() {
  local target disk vdi controller n verb
  for vdi in raw:$RAW vhd:$VHD; do
    target=$(published fast/${vdi%:*}) && is "$(published fast/${vdi%:*})" "$target" || return
    connect "$target" && disk=$(disk_of "${vdi#*:}") || return
    is "$(cat "/sys/block/${disk#/dev/}/nguid")" "${vdi#*:}" || return
    echo "written to $vdi" | dd of="$disk" bs=4k seek=100 conv=fsync,sync status=none || return
  done
  controller=$(grep -l "$VHD" /sys/class/nvme/nvme*/subsysnqn)
  is "$(tr -d ' ' < "${controller%/*}/serial")" 2a11866eb0354b1a || return
  sm target list --format table | grep -q "$RAW *nvme-tcp *published *$ME *nqn" || { sm target list --format table; return 1; }
  sm target check || return
  # One port for both.
  is "$(ls $N/ports)" 30000 || return
  for verb in vdi_delete vdi_detach vdi_clone; do fails_with EVDIBUSY sm $verb fast/raw || return; done
  fails_with EVDIBUSY sm target unpublish fast/raw && grep -q 'a host at 127.0.0.1 that is connected' "$SCRATCH/stderr" || return
  sm vdi_resize fast/vhd 24M || return
  for n in {1..50}; do [ "$(blockdev --getsize64 "$disk")" = $((24 << 20)) ] && break; sleep 0.1; done
  is "$(blockdev --getsize64 "$disk")" $((24 << 20)) || return
  disconnect
  for vdi in raw vhd; do
    sm target unpublish fast/$vdi || return
    disk=$(sm vdi_attach fast/$vdi) && dd if="$disk" bs=4k skip=100 count=1 status=none | grep -qa "written to $vdi" || return
    sm vdi_detach fast/$vdi || return
  done
  nothing_left
}
proves 'raw and VHD disks at a host: names, and what was written is found; in use for every other command' written

strangers() {
  local target
  target=$(published fast/raw) || return
  ! connect "$target" "$OTHER" 2> /dev/null || { echo 'another host'; return 1; }
  fails_with EVDIBUSY published fast/raw "$OTHER" || return
  fails_with EPERM published fast/vhd "$ME" --read-only || return
  # A subsystem that no host has used is nobody's loss.
  sm target unpublish fast/raw && nothing_left
}
proves 'another host: no connection' strangers

two_hosts() {
  local target disk
  target=$(published fast/raw $ME --shared) && is "$(published fast/raw $OTHER)" "$target" || return
  connect "$target" $OTHER && disk=$(disk_of $RAW) || return
  fails_with EVDIBUSY sm target unpublish fast/raw --to $ME || return
  sm target unpublish fast/raw --to $OTHER --force || return
  is "$(ls $N/hosts)" $ME || return
  # It may not come back.
  sleep 2
  ! timeout 20 dd if="$disk" of=/dev/null bs=4k count=1 iflag=direct status=none 2> /dev/null || { echo 'it reads on'; return 1; }
  connect "$target" && disk=$(disk_of $RAW) && dd if=/dev/urandom of="$disk" bs=1M count=4 oflag=direct status=none || return
  sm target unpublish fast/raw --force || return
  # A reader gets an error, and never zeroes.
  ! timeout 20 dd if="$disk" of=/dev/null bs=1M count=4 iflag=direct status=none 2> /dev/null || return
  disconnect
  nothing_left
}
proves 'two hosts; one that is cut off gets an error' two_hosts

# reboot: the kernel forgets, the records stay.
forget() {
  local dir
  for dir in $N/subsystems/*/namespaces/1; do echo 0 > "$dir/enable"; done
  find $N/ports/*/subsystems $N/subsystems/*/allowed_hosts -type l -delete
  rmdir $N/subsystems/*/namespaces/1 $N/subsystems/* $N/ports/* $N/hosts/*
  sm vdi_detach fast/raw && sm vdi_detach fast/vhd
}
tree() { (cd $N && find . | sort && cat subsystems/*/attr_* subsystems/*/namespaces/*/{device_uuid,device_nguid,enable} ports/*/addr_*) 2> /dev/null; }
reboots() {
  published fast/vhd > /dev/null && published fast/raw $OTHER --portal 127.0.0.1:4421 > /dev/null || return
  is "$(echo $N/ports/*)" "$N/ports/30000 $N/ports/30001" || return
  tree > "$SCRATCH/before"
  forget || return
  ! sm target check > /dev/null 2>&1 || return
  sm target restore && sm target check && sm target restore || return
  tree > "$SCRATCH/after"
  diff "$SCRATCH/before" "$SCRATCH/after" || return
  sm target unpublish fast/vhd && sm target unpublish fast/raw && nothing_left
}
proves 'a reboot: restore makes the same tree' reboots

foreign() {
  local before left target
  mkdir $N/hosts/$ME $N/ports/1 $N/subsystems/theirs && echo tcp > $N/ports/1/addr_trtype && echo 127.0.0.1 > $N/ports/1/addr_traddr &&
    echo 4420 > $N/ports/1/addr_trsvcid || return
  before=$(tree)
  fails_with EFOREIGN published fast/raw || return
  is "$(tree)" "$before" || return
  target=$(PORTAL=127.0.0.1:4421 published fast/raw) && sm target unpublish fast/raw && is "$(tree)" "$before" || return
  # Its name is ours, and it is not.
  mkdir -p $N/subsystems/$target/namespaces/7
  before=$(tree)
  PORTAL=127.0.0.1:4421 fails_with EFOREIGN published fast/raw && is "$(tree)" "$before" || return
  rmdir $N/subsystems/$target/namespaces/7 $N/subsystems/* $N/ports/1 $N/hosts/$ME
  nothing_left
}
proves 'objects of others stay as they are' foreign

# The record came back from a backup, or was damaged: the kernel publishes the disk all the same.
lost_records() {
  local way target disk
  for way in gone damaged; do
    target=$(published fast/raw) && connect "$target" && disk=$(disk_of $RAW) || return
    case $way in gone) rm /var/lib/sm/targets/$RAW.json ;; damaged) : > /var/lib/sm/targets/$RAW.json ;; esac
    sm target check > "$SCRATCH/check" 2>&1
    is $? 116 && grep -q $RAW "$SCRATCH/check" || { cat "$SCRATCH/check"; return 1; }
    [ $way = damaged ] || grep -q "subsystems/$target, and no record" "$SCRATCH/check" || { cat "$SCRATCH/check"; return 1; }
    # The kernel does not tell which hosts use it.
    case $way in
    gone) fails_with EVDIBUSY sm target unpublish fast/raw || return ;;
    damaged) fails_with EIO sm target unpublish fast/raw && grep -q 'unpublish --force ends' "$SCRATCH/stderr" || return ;;
    esac
    fails_with EVDIBUSY sm vdi_delete --yes fast/raw && [ -d $N/subsystems/$target/namespaces/1 ] || return
    sm target unpublish fast/raw --force || return
    # A reader gets an error, and never zeroes.
    ! timeout 20 dd if="$disk" of=/dev/null bs=4k count=1 iflag=direct status=none 2> /dev/null || { echo 'it reads on'; return 1; }
    disconnect
    sm target check && nothing_left || { echo "record $way"; return 1; }
  done
  # Another disk at the same port stays published, and a disk that no host ever used needs force as well.
  published fast/vhd > /dev/null && published fast/raw > /dev/null && rm /var/lib/sm/targets/$RAW.json || return
  fails_with EVDIBUSY sm target unpublish fast/raw && sm target unpublish fast/raw --force && sm target check || return
  connect "$(basename $N/subsystems/*)" && disk=$(disk_of $VHD) && dd if="$disk" of=/dev/null bs=4k count=1 iflag=direct status=none || return
  disconnect
  sm target unpublish fast/vhd --force && nothing_left
}
proves 'a publication whose record is lost or damaged is ended by unpublish' lost_records

kills() {
  local direction call n killed points=0
  for direction in publish unpublish; do
    for call in $CALLS; do
      n=$(today ${EVERY[$call]:-1})
      while :; do
        n=$((n + 1))
        [ $direction = publish ] || published fast/raw > /dev/null || return
        killed=0
        set -- target unpublish fast/raw
        [ $direction = unpublish ] || set -- target publish fast/raw --fabric nvme-tcp --portal 127.0.0.1 --no-auth --to $ME
        strace -f -qq -o /dev/null -e "trace=$call" -e "inject=$call:signal=KILL:when=$n" "$BIN/sm" "$@" > /dev/null 2>&1 || killed=$?
        [ $killed = 137 ] || break
        points=$((points + 1))
        # The ways on, in turns.
        case $((points % 3)) in
        0) sm target restore --format table && sm target check --format table || { echo "restore after kill at $call $n of $direction"; return 1; } ;;
        1) published fast/raw > /dev/null || { echo "publish after kill at $call $n of $direction"; return 1; } ;;
        esac
        sm target unpublish fast/raw && nothing_left || { echo "after kill at $call $n of $direction"; return 1; }
        n=$((n + ${EVERY[$call]:-1} - 1))
      done
      sm target unpublish fast/raw || return
    done
  done
  echo "$points kills"
  [ $points -gt 2 ]
}
# Programs are slow in this guest: it kills at some calls, every day at others.
case $(today 3) in 0) CALLS='symlink write' ;; 1) CALLS='mkdir symlink' ;; *) CALLS='rmdir write' ;; esac
declare -A EVERY=([write]=12 [mkdir]=3 [rmdir]=3)
[ -z "${LONG:-}" ] || CALLS='mkdir symlink write rename unlink rmdir' EVERY=()
proves 'kills in publish and unpublish: restore, or the next call, goes on, and nothing is left' kills
summary
