#!/bin/bash
# sm target passthrough and sm target backstore: SCSI devices of the host, disks and tapes, passed through as they are.
# guest: uml
# bins: sm
# memory: 512
# takes: 70
# tools: iscsiadm iscsid mkfs.ext4 wipefs vgcreate strace
# Names have no blanks; a command before && fails only where the claim has failed.
# shellcheck disable=SC2015,SC2012
set -u
# shellcheck source-path=SCRIPTDIR source=claims.inc
. "$ROOT/tests/guest/claims.inc"
# shellcheck source-path=SCRIPTDIR source=target.inc
. "$ROOT/tests/guest/target.inc"
modprobe -a sd_mod sg st iscsi_tcp
nothing_left() {
  local left
  left=$(ls -d $C/core/*_*/ $C/iscsi/iqn*/ /var/lib/sm/targets/* /var/lock/sm/targets/* 2> /dev/null)
  is "$left" ''
}

# The module is loaded once: UML does not survive that a host of it goes.
D=/sys/bus/pseudo/drivers/scsi_debug
devices() { # COUNT: waits for them
  local n it
  for n in {1..100}; do
    ALL=()
    for it in /sys/bus/scsi/devices/*:*:*:*; do
      ! grep -qs scsi_debug "$it/model" || [ ! -e "$it/scsi_generic" ] || ALL+=("${it##*/}")
    done
    [ ${#ALL[@]} != "$1" ] || return 0
    sleep 0.1
  done
  echo "not $1 devices: ${ALL[*]}"
  return 1
}
modprobe scsi_debug dev_size_mb=16 max_luns=2 num_tgts=1 add_host=2 && devices 4 || exit 1

backstores() {
  local host one other disk
  one=${ALL[0]} other=${ALL[2]} host=${ALL[0]%%:*}
  disk=/dev/$(ls "/sys/bus/scsi/devices/$one/block")
  b() { sm target backstore "$@"; }
  fails_with ENODEV b lookup pscsi --index "$host" || return
  fails_with ENODEV b create pscsi --index 99 --hba physical && [ ! -e $C/core/pscsi_99 ] || return
  b create pscsi --index "$host" --hba physical --format json | grep -q '"hba":"physical".*"fresh":true' || return
  # An empty backstore is used again.
  b create pscsi --index "$host" --hba physical > /dev/null || return
  fails_with EINVAL b any pscsi --index "$host" --hba virtual || return
  fails_with EINVAL b any pscsi --index "$host" --name a --dev "$other" || return
  fails_with EINVAL b any pscsi --index "$host" --name ../a --dev "$one" || return
  b any pscsi --index "$host" --name a --dev "$one" --format json | grep -q '"fresh":true' || return
  b any pscsi --index "$host" --name a --dev "$one" --format json | grep -q '"fresh":false' || return
  b lookup pscsi --index "$host" --name a > /dev/null && fails_with ENODEV b lookup pscsi --index "$host" --name b || return
  fails_with EEXIST b create pscsi --index "$host" || return
  fails_with EINVAL b any pscsi --index "$host" --name a --dev "${ALL[1]}" || return
  # What cannot be made leaves nothing.
  fails_with EBUSY b create pscsi --index 50 --name a --dev "$one" && [ ! -e $C/core/pscsi_50 ] || return
  b list --format table | grep -q "^pscsi_$host *physical *v[0-9.]* *a *sm *0 " || { b list --format table; return 1; }
  fails_with EBUSY b delete "pscsi_$host" || return
  mkdir "$C/core/pscsi_$host/theirs" && echo theirs > "$C/core/pscsi_$host/theirs/alias" && fails_with EFOREIGN b delete "pscsi_$host" --recursive || return
  # An object that another program has not configured yet is neither taken nor removed.
  fails_with EFOREIGN b any pscsi --index "$host" --name theirs --dev "${ALL[1]}" && is "$(cat "$C/core/pscsi_$host/theirs/alias")" theirs || return
  rmdir "$C/core/pscsi_$host/theirs"
  b delete "pscsi_$host/a" && b delete "pscsi_$host/a" && b any pscsi --index "$host" --name c --dev "$one" > /dev/null && b delete "pscsi_$host" --recursive && nothing_left || return
  # An empty backstore of others stays, as it was.
  mkdir "$C/core/pscsi_60" && mkfs.ext4 -q "$disk" || return
  fails_with EBUSY b create pscsi --index 60 --name d --dev "$one" && grep -q 'it holds ext4' "$SCRATCH/stderr" && [ -d "$C/core/pscsi_60" ] || return
  fails_with EBUSY b any pscsi --index 61 --name d --dev "$one" && [ ! -e "$C/core/pscsi_61" ] || return
  b any pscsi --index 60 --name d --dev "$one" --force > /dev/null && b delete pscsi_60 --recursive && wipefs -qa "$disk" && nothing_left
}
claim 'backstores: any, lookup, create, delete, of a virtual and a physical HBA' backstores
twin_of() { # ADDRESS: the disk of the initiator with the wwid of that
  local n it
  for n in {1..50}; do
    for it in /sys/block/sd*; do
      [ "$(realpath "$it/device")" != "$(realpath "/sys/bus/scsi/devices/$1")" ] && [ -b "/dev/${it##*/}" ] &&
        [ "$(cat "$it/device/wwid")" = "$(cat "/sys/bus/scsi/devices/$1/wwid")" ] && echo "/dev/${it##*/}" && return
    done
    sleep 0.1
  done
  return 1
}
# The record came back from a backup, or was damaged: the kernel passes the device on all the same.
lost_records() {
  local way one=${ALL[0]} id hba file
  initiator $ME
  for way in gone damaged; do
    hba=virtual
    [ $way = gone ] || hba=physical
    id=$(sm target passthrough --hctl "$one" --hba $hba --to $ME --portal 127.0.0.1 --no-auth --allow-raw-scsi --format table) && id=${id##*:} || return
    file=/var/lib/sm/targets/$id.json
    login "$id" && twin_of "$one" > /dev/null || { echo 'no disk at the initiator'; return 1; }
    case $way in gone) rm "$file" ;; damaged) : > "$file" ;; esac
    sm target check > "$SCRATCH/check" 2>&1
    is $? 116 && grep -q "$id" "$SCRATCH/check" || { cat "$SCRATCH/check"; return 1; }
    [ $way = damaged ] || grep -q "pscsi_.*/$id, and no record" "$SCRATCH/check" || { cat "$SCRATCH/check"; return 1; }
    sm target list --format table > "$SCRATCH/list" 2>&1
    [ $way = gone ] || grep -q "$id" "$SCRATCH/list" || { cat "$SCRATCH/list"; return 1; }
    # It is not passed through twice.
    fails_with 'EBUSY|EIO' sm target passthrough --hctl "$one" --to $OTHER --portal 127.0.0.1 --no-auth --allow-raw-scsi || return
    case $way in
    gone) fails_with EBUSY sm target unpublish "$id" && grep -q 'force cuts it off' "$SCRATCH/stderr" || return ;;
    damaged) fails_with EIO sm target unpublish "$id" && grep -q 'unpublish --force ends' "$SCRATCH/stderr" || return ;;
    esac
    [ -d "$(echo $C/core/pscsi_*/"$id")" ] || { echo "what was refused is gone"; return 1; }
    sm target unpublish "$id" --force || return
    { iscsiadm -m session -u; iscsiadm -m node -o delete; } > /dev/null 2>&1
    nothing_left || { echo "record $way, $hba"; return 1; }
    ! sm devices --format table | grep 'sm target' || { echo 'it is claimed yet'; return 1; }
    sm target check && sm target unpublish "$id" || return
  done
  # Without a consumer, no force; and the record alone, after a reboot.
  id=$(sm target passthrough --hctl "$one" --to $ME --portal 127.0.0.1 --no-auth --allow-raw-scsi --format table) && id=${id##*:} && rm "/var/lib/sm/targets/$id.json" || return
  sm target unpublish "$id" && nothing_left || return
  : > "/var/lib/sm/targets/$id.json"
  fails_with EIO sm target unpublish "$id" && sm target unpublish "$id" --force && nothing_left
}
claim 'pass-through whose record is lost or damaged is ended by unpublish' lost_records

passthrough() {
  local one other disk id target n it
  one=${ALL[0]} other=${ALL[2]}
  disk=/dev/$(ls "/sys/bus/scsi/devices/$one/block")
  fails_with EINVAL sm target passthrough --dev "$disk" --to $ME --portal 127.0.0.1 --no-auth || return
  fails_with EINVAL sm target passthrough --dev /dev/null --to $ME --portal 127.0.0.1 --no-auth --allow-raw-scsi || return
  fails_with ENODEV sm target passthrough --hctl 99:0:0:0 --to $ME --portal 127.0.0.1 --no-auth --allow-raw-scsi || return
  pass() { sm target passthrough --to $ME --portal 127.0.0.1 --no-auth --allow-raw-scsi --format table "$@"; }
  mkfs.ext4 -q "$disk" && mkdir -p /mnt/t && mount "$disk" /mnt/t && fails_with EBUSY pass --dev "$disk" || return
  umount /mnt/t
  # Nothing uses it now, and yet it is not empty.
  fails_with EBUSY pass --dev "$disk" && grep -q 'it holds ext4' "$SCRATCH/stderr" && wipefs -qa "$disk" || return
  # All devices of scsi_debug show one medium.
  vgcreate -qq --config "devices { global_filter=[ \"a|^$disk\$|\", \"r|.*|\" ] }" group "$disk" || return
  fails_with EBUSY pass --dev "$disk" && grep -q 'the volume group group;' "$SCRATCH/stderr" || return
  nothing_left && target=$(pass --dev "$disk" --force) && sm target unpublish "${target##*:}" && wipefs -qaf "$disk" || return
  sm devices claim "$disk" && fails_with EBUSY pass --dev "$disk" && sm devices release "$disk" || return
  target=$(pass --dev "$disk") && is "$(pass --hctl "$one")" "$target" || return
  id=${target##*:}
  fails_with EEXIST pass --dev "$disk" --hba physical || return
  sm devices --format table | grep "^$disk " | grep -q 'claimed .*sm target' || { sm devices --format table; return 1; }
  fails_with EBUSY sm sr_create -t lvm -d "$disk" "$(vdi 77)" || return
  initiator $ME
  login "$id" && disk=$(twin_of "$one") || { echo 'no disk at the initiator'; return 1; }
  echo 'as it is' | dd of="$disk" bs=4k seek=9 conv=fsync,sync status=none || return
  fails_with EBUSY sm target unpublish "$id" || return
  sm target show "$id" --format table | grep -q "device *$one" || return
  logout "$id"
  tree > "$SCRATCH/before"
  forget
  sm target restore && sm target check || return
  tree > "$SCRATCH/after"
  diff "$SCRATCH/before" "$SCRATCH/after" || return
  sm target unpublish "$id" && sm target unpublish "$id" && nothing_left || return
  sm devices --format table | grep -q 'sm target' && { echo 'it is claimed yet'; return 1; }
  is "$(dd if="/dev/$(ls "/sys/bus/scsi/devices/$one/block")" bs=4k skip=9 count=1 status=none | head -c 8)" 'as it is' || return
  # The HBA is the SCSI host.
  fails_with ENODEV pass --hctl "$one" --hba physical --index 99 || return
  fails_with EINVAL pass --hctl "$one" --hba physical --index "${other%%:*}" || return
  target=$(pass --hctl "$other" --hba physical) && [ -d "$C/core/pscsi_${other%%:*}/${target##*:}" ] && is "$(cat "$C/core/pscsi_${other%%:*}/hba_mode")" 1 || return
  sm target unpublish "${target##*:}" && nothing_left || return
  # New hosts have tapes.
  echo 1 > $D/ptype && echo 1 > $D/add_host && devices 6 || return
  one=${ALL[4]}
  target=$(pass --hctl "$one") || return
  login "${target##*:}" || return
  for n in {1..50}; do [ ! -e /sys/class/scsi_tape/st2 ] || break; sleep 0.1; done
  is "$(cat /sys/class/scsi_tape/st2/device/wwid)" "$(cat "/sys/bus/scsi/devices/$one/wwid")" || return
  logout "${target##*:}"
  sm target unpublish "${target##*:}" && nothing_left
}
claim 'a SCSI device is passed through: disk and tape, virtual and physical HBA' passthrough

# Passed through, given to one more initiator, taken from it, ended: each is killed, and then repeated or restored.
kills() {
  local does call n killed points=0 one=${ALL[1]} id
  given() { sm target passthrough --hctl "$one" --to "$1" --portal 127.0.0.1 --no-auth --allow-raw-scsi --shared --format table; }
  id=$(given $ME) && id=${id##*:} && sm target unpublish "$id" || return
  acls() { ls $C/iscsi/*"$id"/tpgt_1/acls; }
  for does in pass grant revoke end; do
    for call in $CALLS; do
      n=$(today "${EVERY[$call]:-1}")
      while :; do
        n=$((n + 1))
        [ $does = pass ] || given $ME > /dev/null || return
        [ $does != revoke ] || given $OTHER > /dev/null || return
        set -- target passthrough --hctl "$one" --to $ME --portal 127.0.0.1 --no-auth --allow-raw-scsi --shared
        [ $does != grant ] || set -- "${@/$ME/$OTHER}"
        [ $does != revoke ] || set -- target unpublish "$id" --to $OTHER
        [ $does != end ] || set -- target unpublish "$id"
        killed=0
        strace -f -qq -o /dev/null -e "trace=$call" -e "inject=$call:signal=KILL:when=$n" "$BIN/sm" "$@" > /dev/null 2>&1 || killed=$?
        [ $killed = 137 ] || break
        points=$((points + 1))
        if [ $((points % 2)) = 0 ]; then
          sm target restore --format table && sm target check --format table || { echo "restore after kill at $call $n of $does"; return 1; }
        else
          sm "$@" > /dev/null && sm target check --format table || { echo "$does again after kill at $call $n"; return 1; }
          case $does in
          pass | revoke) is "$(acls)" $ME ;;
          grant) is "$(acls | tr '\n' ' ')" "$ME $OTHER " ;;
          esac || { echo "after kill at $call $n of $does"; return 1; }
        fi
        sm target unpublish "$id" && nothing_left && ! sm devices --format table | grep 'sm target' || { echo "left after kill at $call $n of $does"; return 1; }
        n=$((n + ${EVERY[$call]:-1} - 1))
      done
      sm target unpublish "$id" || return
    done
  done
  echo "$points kills"
  [ $points -gt 8 ]
}
# It kills at some calls, every day at others.
case $(today 3) in 0) CALLS='write renameat' ;; 1) CALLS='mkdir symlink linkat' ;; *) CALLS='rmdir unlink unlinkat' ;; esac
declare -A EVERY=([write]=5 [mkdir]=2)
[ -z "${LONG:-}" ] || CALLS='mkdir symlink linkat write renameat unlink unlinkat rmdir' EVERY=()
claim 'kills of pass-through, of one more initiator and one less: the next call goes on, and nothing is left' kills
summary
