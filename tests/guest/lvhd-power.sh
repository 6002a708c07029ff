#!/bin/bash
# A power cut at any write or flush of a call that changes an LVHD group: what was acknowledged is there, disks show what they were told to keep, and
# the next call ends what was begun. dm-log-writes records what the disk was told, in order, and when it was told to flush.
# guest: uml
# bins: sm
# memory: 768
# disks: 96M 600M 96M
# takes: 100
# tools: lvcreate wipefs dmsetup python3
set -u
# What is in single quotes is evaluated later; UUIDs have no spaces.
# shellcheck disable=SC2086,SC2016
# shellcheck source-path=SCRIPTDIR source=lvm.inc
. "$ROOT/tests/guest/lvm.inc"
# shellcheck source-path=SCRIPTDIR source=power.inc
. "$ROOT/tests/guest/power.inc"
modprobe -a dm_snapshot loop 2> /dev/null

# What each acknowledged call promises, on the disk as it is after the cut. At a mark, all of it; between two marks the disk is as one of the
# two calls leaves it. A digest is that of the whole disk, through its chain. After that, a call that changes the SR ends what was begun,
# and all is as it was.
cat > "$SCRATCH/check" << EOF
echo "a \$CUT after '\$MARKS'" > "${AT:-/dev/null}"
. '$ROOT/tests/guest/lvm.inc'
DCONF=$REPLAY
empty=\$(head -c 8M /dev/zero | sha256sum | cut -d' ' -f1)
look() {
  vdis=\$(sm sr_scan $SR 2> $SCRATCH/err) || vdis="none: \$(cat $SCRATCH/err)"
  a=\$(sm vdi_export $SR $A - 2> /dev/null | sha256sum | cut -d' ' -f1)
  b=\$(sm vdi_export $SR $B - 2> /dev/null | sha256sum | cut -d' ' -f1)
}
has() { case \$vdis in *"(vdi (uuid . \"\$1\")"*) ;; *) return 1 ;; esac; }
tells() { case \$vdis in *"\$1"*) ;; *) return 1 ;; esac; }
promised() { # NUMBER
  read -r data < $SCRATCH/digest
  case \$1 in
  0 | 10) tells 'none: ENOSR' ;;
  1) tells '(sr (uuid' && ! has $A ;;
  2) has $A && [ "\$a" = "\$empty" ] && tells '"a b"' ;;
  3) has $A && tells '"a b"' ;;
  4) has $A && [ "\$a" = "\$data" ] && ! has $B ;;
  5) has $A && has $B && [ "\$a\$b" = "\$data\$data" ] && tells monday ;;
  6) has $A && has $B && tells 'virtual_size . 16777216' && [ "\$b" = "\$data" ] ;;
  7) has $A && has $B && [ "\$a\$b" = "\$data\$data" ] && ! tells 'virtual_size . 16777216' ;;
  8) has $A && ! has $B && [ "\$a" = "\$data" ] ;;
  9) has $A && ! has $B && [ "\$a" = "\$data" ] ;;
  esac
}
last=\${MARKS##*-}
last=\${last:-0}
fine() { promised \$last || { [ "\$CUT" = write ] && promised \$((last + 1)); }; }
wrong() { echo "FAIL \$1 at a \$CUT after '\$MARKS': \$vdis, a \$a, b \$b"; exit 1; }
look
fine || wrong 'as it is'
case \$vdis in none:*) exit 0 ;; esac
# On a copy: what follows in the log is not of that call.
only() { printf 'devices { global_filter=[ "a|^%s\$|", "r|.*|" ] }\n' "\$1" > /etc/lvm/lvmlocal.conf; }
truncate -s 0 $SCRATCH/cow && truncate -s 64M $SCRATCH/cow && cow=\$(losetup -f --show $SCRATCH/cow) || wrong 'no copy'
dmsetup create copy --table "0 \$(blockdev --getsz $REPLAY) snapshot $REPLAY \$cow N 8" || wrong 'no copy'
original() { dmsetup remove copy; losetup -d "\$cow"; only $REPLAY; }
DCONF=/dev/mapper/copy
only \$DCONF
trap original EXIT
sm vdi_create $SR 7e57ab1e-0000-4000-8000-0000000000ff 2 > /dev/null 2> $SCRATCH/err || wrong "the next call: \$(cat $SCRATCH/err)"
sm vdi_delete $SR 7e57ab1e-0000-4000-8000-0000000000ff > /dev/null || wrong 'the call after that'
look
fine || wrong 'after the next call'
EOF
record
DCONF="((device . \"$DCONF\") (lvhd . \"true\") (allocation . \"thin\"))"
only /dev/mapper/lw
head -c 1M /dev/urandom > "$SCRATCH/data"
{ head -c 1M /dev/zero; cat "$SCRATCH/data"; head -c 6M /dev/zero; } | sha256sum | cut -d' ' -f1 > "$SCRATCH/digest"
written() { # attaches, writes, and detaches
  local d
  d=$("$BIN/sm" vdi_attach -t lvm -d "$DCONF" $SR $A) && dd if="$SCRATCH/data" of="$d" bs=1M seek=1 conv=fsync,notrunc status=none
}
call sr_create $SR
call vdi_create $SR $A 8 --label 'a b'
must written
sync /dev/mapper/lw
mark "vdi_attach-$((++calls))"
call vdi_detach $SR $A
call vdi_snapshot $SR $A $B --label monday
call vdi_resize $SR $A 16
call vdi_revert $SR $A $B
call vdi_delete $SR $B
call sr_collect $SR
call sr_delete --yes $SR
stop_recording
LOOKS=${LOOKS-2}
[ -z "${LONG-}" ] || LOOKS=
replay "bash $SCRATCH/check" || fail 'a state is neither'
summary
