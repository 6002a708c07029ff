#!/bin/bash
# A power cut at any write or flush of a mutating call: the group is as it was before, or as it is after; what was
# acknowledged is there. dm-log-writes records what the disk was told, in order, and when it was told to flush.
# guest: uml
# bins: sm
# memory: 768
# disks: 128M 600M 128M
# timeout: 1800
# tools: lvcreate wipefs dmsetup python3
set -u
# What is in single quotes is evaluated later; UUIDs have no spaces.
# shellcheck disable=SC2086,SC2016
# shellcheck source-path=SCRIPTDIR source=lvm.inc
. "$ROOT/tests/guest/lvm.inc"
modprobe dm_log_writes
read -r DISK LOG REPLAY <<< "$DISKS"
# LVM must see one of the two at a time.
only() { printf 'devices { global_filter=[ "a|^%s$|", "r|.*|" ] }\n' "$1" > /etc/lvm/lvmlocal.conf; }
record() { # starts a record of the disk as it is
  dd if=/dev/zero of="$LOG" bs=1M count=1 conv=fsync status=none
  dd if="$DISK" of="$REPLAY" bs=1M conv=fsync status=none
  dmsetup create lw --table "0 $(blockdev --getsz "$DISK") log-writes $DISK $LOG"
  DCONF=/dev/mapper/lw
  only $DCONF
}
# The states of the disk at each entry of the log, one after the other on REPLAY: with every write that was issued so far,
# and, at each mark, with only those that a flush had made durable.
replay() { # COMMAND: run for each state, with $MARKS, the marks that came before, and $AT, what came last
  python3 - "$LOG" "$REPLAY" "$1" << 'EOF'
import os, struct, subprocess, sys
log, disk = open(sys.argv[1], 'rb', 0), os.open(sys.argv[2], os.O_RDWR)
magic, version, entries, sector = struct.unpack('<QQQI', log.read(512)[:28])
assert magic == 0x6a736677736872, 'no log'
marks, states = [], 0
def look(what):
    global states
    states += 1
    os.fsync(disk)
    subprocess.run(['bash', '-c', sys.argv[3]], check=True, env=dict(os.environ, AT=what, MARKS=' '.join(marks)))
look('mark')
at = sector
for i in range(entries):
    log.seek(at)
    head = log.read(sector)
    where, count, flags, length = struct.unpack('<QQQQ', head[:32])
    at += sector
    if flags & 8:
        marks.append(head[32:32 + length].split(b'\0')[0].decode())
        look('mark')
    elif flags & 4:
        os.pwrite(disk, b'\0' * (count * 512), where * 512)
    elif count:
        data = log.read(count * 512)
        at += (count * 512 + sector - 1) // sector * sector
        os.pwrite(disk, data, where * 512)
        look('write')
print(states, 'states')
EOF
}
mark() { dmsetup message lw 0 mark "$1"; }
call() { must sm "$@"; mark "$1-$((++calls))"; }

# What each acknowledged call promises, on the disk as it is after the cut. At a mark, all of it; between two
# marks the disk is as one of the two calls leaves it.
cat > "$SCRATCH/check" << EOF
. $ROOT/tests/guest/lvm.inc
DCONF=$REPLAY
vdis=\$(sm sr_scan $SR 2> $SCRATCH/err) || vdis="none: \$(cat $SCRATCH/err)"
says() { case \$vdis in *"\$1"*) ;; *) return 1 ;; esac; }
promised() { # NUMBER
  case \$1 in
  0 | 10) says 'none: ENOSR' ;;
  1) says '(sr (uuid' && ! says '$A' ;;
  2 | 3) says '(uuid . "$A") (label . "a b")' && says 'virtual_size . 8388608' ;;
  4 | 6 | 7) says 'virtual_size . 16777216' && says '(VBDs)' ;;
  5) says 'virtual_size . 16777216' && says '(VBDs "me")' ;;
  8) says '$A' && says '$B' ;;
  9) ! says '$A' && says '$B' ;;
  esac
}
last=\${MARKS##*-}
last=\${last:-0}
promised \$last || { [ "\$AT" = write ] && promised \$((last + 1)); } ||
  { echo "FAIL at a \$AT after '\$MARKS': \$vdis"; exit 1; }
EOF
record
calls=0
call sr_create $SR
call vdi_create $SR $A 8 --label 'a b'
call vdi_attach $SR $A > /dev/null
call vdi_resize $SR $A 16
call vdi_lock $SR $A FALSE me
call vdi_unlock $SR $A FALSE me
call vdi_detach $SR $A
call vdi_create $SR $B 8
call vdi_delete $SR $A
call sr_delete --yes $SR
dmsetup remove lw
only "$REPLAY"
export ROOT BIN DISKS
replay "bash $SCRATCH/check" || fail 'a state is neither'
finish
