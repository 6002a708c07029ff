#!/bin/bash
# SRs on LUNs of iSCSI targets: sr_attach and sr_detach are killed at each program that they start and at each name that they change.
# guest: uml
# bins: sm
# memory: 768
# takes: 110
# tools: iscsiadm iscsid lvcreate strace
# Names have no blanks; a command before && fails only where the claim has failed.
# shellcheck disable=SC2015
set -u
# shellcheck source-path=SCRIPTDIR source=claims.inc
. "$ROOT/tests/guest/claims.inc"
# shellcheck source-path=SCRIPTDIR source=iscsi.inc
. "$ROOT/tests/guest/iscsi.inc"
lun 1 64M && target $IQN 127.0.0.1:3260 && maps $IQN 0 1 || exit 1
initiator
DCONF=iscsi@127.0.0.1/$IQN/$ID
one() { "$BIN/sm" "$1" -t lvmoiscsi -d "$DCONF" "${@:2}"; }
# killed VERB CALL N: it was killed at the Nth call.
killed() {
  ! strace -f -qq -o /dev/null -e "inject=$2:signal=KILL:when=$3" "$BIN/sm" "$1" -t lvmoiscsi -d "$DCONF" $SR > /dev/null 2>&1
}
one sr_create $SR && one sr_attach $SR && one vdi_create $SR "$(vdi 1)" 8M > /dev/null && one sr_detach $SR || exit 1
points=0

attach() {
  local n call
  for call in execve renameat unlinkat rename; do
    for ((n = 1; ; n++)); do
      killed sr_attach $call $n || break
      points=$((points + 1))
      # Either way on.
      [ $((n % 2)) = 0 ] || one sr_attach $SR || { echo "sr_attach after a kill at $call $n"; return 1; }
      one sr_detach $SR && nothing_left || { echo "sr_detach after a kill at $call $n"; return 1; }
    done
    one sr_detach $SR && nothing_left || return
  done
}
claim 'a killed sr_attach is completed by the next one, and undone by sr_detach' attach

detach() {
  local n call
  for call in execve renameat unlinkat; do
    for ((n = 1; ; n++)); do
      one sr_attach $SR || return
      killed sr_detach $call $n || break
      points=$((points + 1))
      [ $((n % 2)) = 0 ] || { one sr_attach $SR && one sr_scan $SR | grep -q "$(vdi 1)"; } || { echo "sr_attach after a kill at $call $n"; return 1; }
      one sr_detach $SR && nothing_left || { echo "sr_detach after a kill at $call $n"; return 1; }
    done
  done
  one sr_attach $SR && one vdi_delete --yes $SR "$(vdi 1)" && one sr_delete $SR && nothing_left
}
claim 'a killed sr_detach is completed by the next one' detach
echo "# $points kills"
summary
