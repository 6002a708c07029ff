#!/bin/bash
# SRs on LUNs of iSCSI targets, thick and thin: login and logout, sr_probe in its stages, several SRs by one target, portals, CHAP, strangers' sessions.
# guest: uml
# bins: sm
# memory: 768
# takes: 90
# tools: iscsiadm iscsid lvcreate mkfs.ext4 strace
# Names have no blanks; a command before && fails only where the claim has failed.
# shellcheck disable=SC2015
set -u
# shellcheck source-path=SCRIPTDIR source=claims.inc
. "$ROOT/tests/guest/claims.inc"
# shellcheck source-path=SCRIPTDIR source=iscsi.inc
. "$ROOT/tests/guest/iscsi.inc"
sm() { "$BIN/sm" "$@"; }
TWO=iqn.2003-01.org.example:T2 SIX=iqn.2003-01.org.example:t6
SR2=87b8646b-b800-9500-cb7b-af3b74e02f5d
lun 1 100M && lun 2 100M && lun 3 100M && lun 4 64M || exit 1
target $IQN 127.0.0.1:3260 127.0.0.2:3260 && maps $IQN 0 1 && maps $IQN 1 2 && target $TWO 127.0.0.1:3260 && maps $TWO 0 3 || exit 1
target $SIX '[::1]:3261' && maps $SIX 0 4 || exit 1
id 1 && ONE=$ID && id 2 && SECOND=$ID && id 3 && THIRD=$ID && id 4 && FOURTH=$ID
initiator
one() { "$BIN/sm" "$1" -t lvmoiscsi -d "iscsi@127.0.0.1/$IQN/$ONE" "${@:2}"; }
second() { "$BIN/sm" "$1" -t lvmoiscsi -d "iscsi@127.0.0.1/$IQN/$SECOND" "${@:2}"; }
said() { grep -q -- "$1" "$SCRATCH/stderr" || { cat "$SCRATCH/stderr"; return 1; }; }
# proves TEXT FUNCTION: a claim that failed leaves the next one a clean host.
proves() {
  local before=$FAILED
  claim "$1" "$2"
  [ $FAILED = $before ] && return
  vgchange -an > /dev/null 2>&1
  iscsiadm -m session -u > /dev/null 2>&1
  rm -rf /run/sr-ref /run/sm/iscsi /etc/iscsi/nodes
}

life() {
  one sr_create $SR || return
  nothing_left || return
  fails_with ESRBUSY one sr_scan $SR && said 'not connected on this host' || return
  one sr_attach $SR && is "$(sessions)" 1 && is "$(portals)" '127.0.0.1 ' && one sr_attach $SR && is "$(sessions)" 1 || return
  is "$(cat /run/sr-ref/$IQN)" $SR || return
  one vdi_create $SR "$(vdi 1)" 20M > /dev/null || return
  local disk
  disk=$(one vdi_attach $SR "$(vdi 1)") && echo words | dd of="$disk" bs=4k conv=sync,fsync status=none || return
  fails_with EVDIBUSY one sr_detach $SR && is "$(sessions)" 1 || return
  one vdi_detach $SR "$(vdi 1)" && one sr_detach $SR && one sr_detach $SR && nothing_left || return
  one sr_attach $SR && disk=$(one vdi_attach $SR "$(vdi 1)") && is "$(head -c 5 "$disk")" words && one vdi_detach $SR "$(vdi 1)" || return
  one sr_get_params $SR | grep -q '(type . "lvmoiscsi").*(location . "iscsi@127.0.0.1/' || { one sr_get_params $SR; return 1; }
  sm sr_list --format table | grep -q "$SR.*lvmoiscsi" || { sm sr_list --format table; return 1; }
  one vdi_delete --yes $SR "$(vdi 1)" && one sr_delete $SR && nothing_left
}
proves 'an SR from create to delete, and no session is left after each' life

two_srs() {
  one sr_create $SR && second sr_create $SR2 && one sr_attach $SR && second sr_attach $SR2 || return
  is "$(sessions)" 1 && is "$(wc -l < /run/sr-ref/$IQN)" 2 || return
  one sr_detach $SR && is "$(sessions)" 1 && second sr_scan $SR2 > /dev/null || return
  fails_with ESRBUSY one sr_scan $SR || return
  # A user of another storage manager.
  echo 00000000-0000-4000-8000-000000000001 >> /run/sr-ref/$IQN
  second sr_detach $SR2 && is "$(sessions)" 1 || return
  one sr_attach $SR && rm /run/sr-ref/$IQN && echo $SR > /run/sr-ref/$IQN && one sr_detach $SR && nothing_left || return
  # At the same time.
  one sr_attach $SR & second sr_attach $SR2 & wait
  is "$(sessions)" 1 && is "$(sort /run/sr-ref/$IQN | tr '\n' ' ')" "$SR $SR2 " || return
  one sr_detach $SR & second sr_detach $SR2 & wait
  nothing_left && second sr_delete $SR2 && nothing_left
}
proves 'two SRs by one target have one session, until both are detached' two_srs

restart() {
  one sr_attach $SR && one vdi_create $SR "$(vdi 1)" 8M > /dev/null && one vdi_attach $SR "$(vdi 1)" > /dev/null || return
  # The kernel and /run forget.
  vgchange -an > /dev/null && iscsiadm -m session -u > /dev/null && rm -rf /run/sr-ref /run/sm && pkill -x iscsid
  iscsid
  fails_with ESRBUSY one sr_scan $SR || return
  one sr_attach $SR && one sr_scan $SR | grep -q "$(vdi 1)" && one vdi_attach $SR "$(vdi 1)" > /dev/null && one vdi_detach $SR "$(vdi 1)" || return
  one vdi_delete --yes $SR "$(vdi 1)" && one sr_detach $SR && nothing_left
}
proves 'after a restart of the host sr_attach logs in again' restart

strangers() {
  # Somebody else's session stays, and so does one with a disk in use.
  iscsiadm -m node -o new -T $IQN -p 127.0.0.1:3260 > /dev/null && iscsiadm -m node -T $IQN -p 127.0.0.1:3260 --login > /dev/null || return
  one sr_attach $SR && one sr_scan $SR > /dev/null && one sr_detach $SR && is "$(sessions)" 1 || return
  # By two SRs of ours as well, and by one that another storage manager left to us.
  one sr_attach $SR && second sr_create $SR2 && second sr_attach $SR2 && second sr_detach $SR2 && one sr_detach $SR && is "$(sessions)" 1 || return
  second sr_delete $SR2 && is "$(sessions)" 1 && [ ! -e /run/sm/iscsi/$IQN ] || return
  mkdir -p /run/sr-ref && echo $SR2 > /run/sr-ref/$IQN && sm sr_probe -t lvmoiscsi -d "iscsi@127.0.0.1/$IQN/$ONE" > /dev/null || return
  [ ! -e /run/sm/iscsi/$IQN ] && one sr_attach $SR && echo $SR > /run/sr-ref/$IQN && one sr_detach $SR && nothing_left || return
  iscsiadm -m node -o new -T $IQN -p 127.0.0.1:3260 > /dev/null && iscsiadm -m node -T $IQN -p 127.0.0.1:3260 --login > /dev/null || return
  iscsiadm -m session -u > /dev/null && iscsiadm -m node -o delete && one sr_attach $SR || return
  local disk
  for disk in /sys/block/sd*; do grep -aq 2a1ab1e0 "$disk/device/vpd_pg80" && break; done
  disk=/dev/${disk##*/}
  vgremove -qq -ff -y VG_XenStorage-$SR2 2> /dev/null
  wipefs -qa "$disk" && mkfs.ext4 -q "$disk" && mkdir -p /mnt/t && mount "$disk" /mnt/t || return
  one sr_detach $SR && is "$(sessions)" 1 || return
  umount /mnt/t && wipefs -qa "$disk" && one sr_attach $SR && one sr_detach $SR && nothing_left
}
proves 'a session that somebody else opened or uses is not ended' strangers

records() {
  # The administrator's record, which logs in when the host starts, and has no session now.
  local record at
  for at in 127.0.0.1:3260,1 127.0.0.1:3260; do
    iscsiadm -m node -o new -T $IQN -p $at > /dev/null && iscsiadm -m node -T $IQN -p 127.0.0.1:3260 -o update -n node.startup -v automatic || return
    record=$(find /etc/iscsi/nodes -type f) && cp "$record" "$SCRATCH/record" || return
    echo 1 > $TARGETS/iscsi/$IQN/tpgt_1/attrib/authentication
    fails_with EACCES one sr_attach $SR && is "$(find /etc/iscsi/nodes -type f)" "$record" && cmp "$record" "$SCRATCH/record" || return
    echo 0 > $TARGETS/iscsi/$IQN/tpgt_1/attrib/authentication
    one sr_attach $SR && one sr_detach $SR && is "$(sessions)" 0 && is "$(find /etc/iscsi/nodes -type f)" "$record" || return
    grep -qx 'node.startup = automatic' "$record" && iscsiadm -m node -o delete && nothing_left || return
  done
}
proves 'a record that logs in when the host starts survives a refused login, and a logout' records

stages() {
  probe() { sm sr_probe -t lvmoiscsi -d "$@"; }
  fails_with EINVAL probe "iscsi@127.0.0.1" && said "targetIQN.*$TWO (127.0.0.1), $IQN (127.0.0.1), $IQN (127.0.0.2)\|targetIQN.*$IQN (127.0.0.1)" || return
  fails_with ENODEV probe "iscsi@127.0.0.1/iqn.a" && said "no targetIQN \"iqn.a\".*$IQN" || return
  fails_with EINVAL probe "iscsi@127.0.0.1/$IQN" && said "SCSIid.*$ONE (LUN 0, 100MiB), $SECOND (LUN 1, 100MiB)" || return
  fails_with ENODEV probe "iscsi@127.0.0.1/$IQN/$THIRD" && said "no SCSIid \"$THIRD\".*$ONE" || return
  fails_with EINVAL probe "iscsi@127.0.0.1/*" && said "$THIRD.*$ONE.*$SECOND" || return
  probe "iscsi@127.0.0.1/$IQN/$ONE" | grep -q "(uuid . \"$SR\")" || return
  ! probe "iscsi@127.0.0.1/$IQN/$SECOND" | grep -q uuid || return
  fails_with ENODEV probe "iscsi@127.0.0.1:3261/$IQN" && said 'does not answer' || return
  fails_with ENODEV probe "iscsi@no-such-host.invalid/$IQN" && said 'its name is not known' || return
  fails_with EINVAL probe "((target . \"127.0.0.1\") (port . \"70000\"))" && said 'between 1 and 65535' || return
  nothing_left || return
  # Looking at an SR that is attached ends nothing.
  one sr_attach $SR && probe "iscsi@127.0.0.1/$IQN/$ONE" | grep -q "(uuid . \"$SR\")" && fails_with EINVAL probe "iscsi@127.0.0.1/$IQN" || return
  is "$(sessions)" 1 && one sr_scan $SR > /dev/null && one sr_detach $SR && nothing_left
}
proves 'sr_probe says what each key may be' stages

anywhere() {
  local all="iscsi@127.0.0.1/*/$THIRD"
  sm sr_create -t lvmoiscsi -d "$all" $SR2 && nothing_left && sm sr_attach -t lvmoiscsi -d "$all" $SR2 || return
  is "$(cat /sys/class/iscsi_session/*/targetname)" "$TWO" && sm sr_scan -t lvmoiscsi -d "$all" $SR2 > /dev/null || return
  sm sr_delete -t lvmoiscsi -d "$all" $SR2 && nothing_left
}
proves 'the LUN is found among all targets, and the others are logged out' anywhere

thin() {
  local keys="((target . \"::1\") (port . \"3261\") (targetIQN . \"$SIX\") (SCSIid . \"$FOURTH\") (allocation . \"thin\"))"
  six() { "$BIN/sm" "$1" -t lvmoiscsi -d "$keys" "${@:2}"; }
  fails_with EINVAL sm sr_probe -t lvmoiscsi -d "iscsi@[::1]:3261/$SIX" && said "$FOURTH (LUN 0, 64MiB)" || return
  six sr_create $SR2 && nothing_left && six sr_attach $SR2 && six vdi_create $SR2 "$(vdi 1)" 20M > /dev/null || return
  six vdi_snapshot $SR2 "$(vdi 1)" "$(vdi 2)" > /dev/null && fails_with EINVAL six sr_delete $SR2 && six sr_detach $SR2 && nothing_left || return
  six sr_attach $SR2 && six sr_scan $SR2 | grep -q "$(vdi 2)" && six sr_delete $SR2 --yes && nothing_left
}
proves 'a thin SR by a portal with an IPv6 address' thin

later() {
  # A LUN that is mapped while the session is open.
  one sr_attach $SR && id 4 && maps $IQN 4 4 && sm sr_create -t lvmoiscsi -d "iscsi@127.0.0.1/$IQN/$ID" $SR2 || return
  sm sr_delete -t lvmoiscsi -d "iscsi@127.0.0.1/$IQN/$ID" $SR2 && one sr_detach $SR && unmaps $IQN 4 && nothing_left
}
proves 'a LUN that comes while the session is open is found' later

chap() {
  local dir=$TARGETS/iscsi/$IQN/tpgt_1 keys word record
  echo 1 > "$dir/attrib/authentication" && echo 0 > "$dir/attrib/generate_node_acls" && mkdir "$dir/acls/$ME" || return
  for word in userid:host1 password:secret-of-host1 userid_mutual:store password_mutual:secret-of-store; do
    printf %s "${word#*:}" > "$dir/acls/$ME/auth/${word%:*}" || return
  done
  mkdir "$dir/acls/$ME/lun_0" && ln -s "$dir/lun/lun_0" "$dir/acls/$ME/lun_0/it" || return
  keys="(target . \"127.0.0.1\") (targetIQN . \"$IQN\") (SCSIid . \"$ONE\")"
  with() { "$BIN/sm" "$1" -t lvmoiscsi -d "($keys $2)" "${@:3}"; }
  fails_with EACCES one sr_attach $SR && said 'it refuses this host or user' && nothing_left || return
  fails_with EACCES with sr_attach '(chapuser . "host1") (chappassword . "wrong-of-host1")' $SR && nothing_left || return
  ! grep -q wrong-of-host1 "$SCRATCH/stderr" || { echo 'a secret is told'; return 1; }
  fails_with EACCES with sr_attach '(chapuser . "host1") (chappassword . "secret-of-host1") (incoming_chapuser . "store") (incoming_chappassword . "wrong-of-store")' $SR &&
    nothing_left || return
  word='(chapuser . "host1") (chappassword . "secret-of-host1") (incoming_chapuser . "store") (incoming_chappassword . "secret-of-store")'
  strace -f -qq -s 4096 -e trace=execve -o "$SCRATCH/arguments" "$BIN/sm" sr_attach -t lvmoiscsi -d "($keys $word)" $SR || return
  # The first line is that of sm itself.
  ! tail -n +2 "$SCRATCH/arguments" | grep -q 'secret-of' && grep -q 'iscsiadm.*--login' "$SCRATCH/arguments" || { echo 'a secret is an argument'; return 1; }
  record=$(find /etc/iscsi/nodes -type f) && is "$(stat -c %a "$record")" 600 && grep -q '^node.session.auth.password_in = secret-of-store$' "$record" || return
  with sr_scan "$word" $SR > /dev/null && with sr_detach "$word" $SR && nothing_left || return
  ! grep -rq secret-of /etc/iscsi /run || { echo 'a secret is left'; return 1; }
  # One way only.
  with sr_attach '(chapuser . "host1") (chappassword . "secret-of-host1")' $SR && one sr_detach $SR && nothing_left || return
  # The discovery asks for the secret as well.
  printf 'host1' > $TARGETS/iscsi/discovery_auth/userid && printf 'secret-of-host1' > $TARGETS/iscsi/discovery_auth/password &&
    echo 1 > $TARGETS/iscsi/discovery_auth/enforce_discovery_auth || return
  fails_with EACCES one sr_attach $SR || return
  with sr_attach '(chapuser . "host1") (chappassword . "secret-of-host1")' $SR && one sr_detach $SR && nothing_left || return
  echo 0 > $TARGETS/iscsi/discovery_auth/enforce_discovery_auth
  echo 0 > "$dir/attrib/authentication" && rm "$dir/acls/$ME/lun_0/it" && rmdir "$dir/acls/$ME/lun_0" "$dir/acls/$ME" && echo 1 > "$dir/attrib/generate_node_acls"
}
proves 'CHAP, one way and both ways; no secret is an argument or is left' chap

names() {
  # Another name of the initiator than that of the daemon.
  fails_with EBUSY sm sr_attach -t lvmoiscsi -d "((target . \"127.0.0.1\") (targetIQN . \"$IQN\") (SCSIid . \"$ONE\") (localIQN . \"iqn.2003-01.org.example:host2\"))" $SR || return
  is "$(cat /etc/iscsi/initiatorname.iscsi)" "InitiatorName=$ME" || return
  pkill -x iscsid
  fails_with ENODEV one sr_attach $SR && said 'iscsid does not run' || return
  iscsid
  for bad in '-u' 'iqn.a/../b' 'iqn.a b'; do
    fails_with EINVAL sm sr_attach -t lvmoiscsi -d "((target . \"127.0.0.1\") (targetIQN . \"$bad\") (SCSIid . \"$ONE\"))" $SR || return
  done
  fails_with EINVAL sm sr_attach -t lvmoiscsi -d "((target . \"127.0.0.1\") (targetIQN . \"$IQN\"))" $SR || return
  nothing_left
}
proves 'the name of the initiator, and names that are none' names

summary
