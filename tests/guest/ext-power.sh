#!/bin/bash
# A power cut between the calls, and at some of the writes of each: the SR is as it was before, or as it is after; what was
# acknowledged is there after sr_attach. Before that, sr_probe writes nothing.
# guest: uml
# bins: sm
# memory: 768
# disks: 64M 400M 64M
# takes: 80
# tools: lvcreate wipefs mkfs.ext4 e2fsck dmsetup python3
set -u
# shellcheck disable=SC2034 # power.inc reads it
LOOKS=2
[ -z "${LONG-}" ] || LOOKS=20
# What is in single quotes is evaluated later; UUIDs have no spaces.
# shellcheck disable=SC2086,SC2016
# shellcheck source-path=SCRIPTDIR source=ext.inc
. "$ROOT/tests/guest/ext.inc"
# shellcheck source-path=SCRIPTDIR source=power.inc
. "$ROOT/tests/guest/power.inc"
modprobe dm_snapshot

# What each acknowledged call promises. sr_attach writes, so it works on a snapshot of the disk.
cat > "$SCRATCH/check" << EOF
. '$ROOT/tests/guest/ext.inc'
rm -f $SCRATCH/cow
truncate -s 32M $SCRATCH/cow
loop=\$(losetup -f --show $SCRATCH/cow)
dmsetup create cut --table "0 \$(blockdev --getsz $REPLAY) snapshot $REPLAY \$loop N 8"
DCONF=/dev/mapper/cut
printf 'devices { global_filter=[ "a|^/dev/mapper/cut$|", "r|.*|" ] }\n' > /etc/lvm/lvmlocal.conf
used=\$(dmsetup status cut)
sm sr_probe > /dev/null 2> $SCRATCH/err
wrote=\$(dmsetup status cut)
vdis=\$(sm sr_attach $SR 2> $SCRATCH/err && sm sr_scan $SR 2> $SCRATCH/err) || vdis="none: \$(cat $SCRATCH/err)"
content=\$(head -c 7 $MNT/$A.raw 2> /dev/null | tr -d '\0')
must sm sr_detach $SR
dmsetup remove cut
losetup -d \$loop
[ "\$used" = "\$wrote" ] || { echo "FAIL sr_probe wrote: \$used, \$wrote"; exit 1; }
tells() { case \$vdis in *"\$1"*) ;; *) return 1 ;; esac; }
promised() { # NUMBER
  case \$1 in
  0 | 11) tells 'none: ENOSR' ;;
  1 | 2 | 10) tells '(sr (uuid' && ! tells '$A' && ! tells '$B' ;;
  3) tells '(uuid . "$A") (label . "a b")' && tells 'virtual_size . 1048576' ;;
  4 | 5) tells '(uuid . "$A")' && [ "\$content" = content ] ;;
  6) tells '(VBDs "me")' && ! tells '$B' && [ "\$content" = content ] ;;
  7) tells '(VBDs "me")' && tells '(uuid . "$B")' && [ "\$content" = content ] ;;
  8) ! tells '(VBDs "me")' && tells '(uuid . "$B")' && [ "\$content" = content ] ;;
  9) tells '(uuid . "$B")' && ! tells '$A' ;;
  esac
}
last=\${MARKS##*-}
last=\${last:-0}
promised \$last || { [ "\$CUT" = write ] && promised \$((last + 1)); } ||
  { echo "FAIL at a \$CUT after '\$MARKS': \$vdis"; exit 1; }
EOF
record
call sr_create $SR
call sr_attach $SR
call vdi_create $SR $A 1 --type raw --label 'a b'
d=$(sm vdi_attach $SR $A)
echo content | dd of="$d" conv=fsync,notrunc status=none || fail 'a write'
mark content-$((++calls))
call vdi_detach $SR $A
call vdi_lock $SR $A FALSE me
call vdi_create $SR $B 8
call vdi_unlock $SR $A FALSE me
call vdi_delete $SR $A
call vdi_delete $SR $B
call sr_delete --yes $SR
stop_recording
replay "bash $SCRATCH/check" || fail 'a state is neither'
summary
