#!/bin/bash
# A power cut at any write or flush of a mutating call: the group is as it was before, or as it is after; what was
# acknowledged is there. dm-log-writes records what the disk was told, in order, and when it was told to flush.
# guest: uml
# bins: sm
# memory: 768
# disks: 128M 600M 128M
# takes: 55
# tools: lvcreate wipefs dmsetup python3
set -u
# What is in single quotes is evaluated later; UUIDs have no spaces.
# shellcheck disable=SC2086,SC2016
# shellcheck source-path=SCRIPTDIR source=lvm.inc
. "$ROOT/tests/guest/lvm.inc"
# shellcheck source-path=SCRIPTDIR source=power.inc
. "$ROOT/tests/guest/power.inc"

# What each acknowledged call promises, on the disk as it is after the cut. At a mark, all of it; between two
# marks the disk is as one of the two calls leaves it.
cat > "$SCRATCH/check" << EOF
. '$ROOT/tests/guest/lvm.inc'
DCONF=$REPLAY
vdis=\$(sm sr_scan $SR 2> $SCRATCH/err) || vdis="none: \$(cat $SCRATCH/err)"
tells() { case \$vdis in *"\$1"*) ;; *) return 1 ;; esac; }
promised() { # NUMBER
  case \$1 in
  0 | 10) tells 'none: ENOSR' ;;
  1) tells '(sr (uuid' && ! tells '$A' ;;
  2 | 3) tells '(uuid . "$A") (label . "a b")' && tells 'virtual_size . 8388608' ;;
  4 | 6 | 7) tells 'virtual_size . 16777216' && tells '(VBDs)' ;;
  5) tells 'virtual_size . 16777216' && tells '(VBDs "me")' ;;
  8) tells '$A' && tells '$B' ;;
  9) ! tells '$A' && tells '$B' ;;
  esac
}
last=\${MARKS##*-}
last=\${last:-0}
promised \$last || { [ "\$CUT" = write ] && promised \$((last + 1)); } ||
  { echo "FAIL at a \$CUT after '\$MARKS': \$vdis"; exit 1; }
EOF
record
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
stop_recording
replay "bash $SCRATCH/check" || fail 'a state is neither'
summary
