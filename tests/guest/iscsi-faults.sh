#!/bin/bash
# SRs on LUNs of iSCSI targets: several portals with dm-multipath, paths that are lost, a target that goes away and comes back while
# other SRs are used.
# guest: uml
# bins: sm
# memory: 768
# disks: 64M
# takes: 110
# tools: iscsiadm iscsid lvcreate multipathd multipath udevadm iptables-legacy
# Names have no blanks; a command before && fails only where the claim has failed.
# shellcheck disable=SC2015
set -u
# shellcheck source-path=SCRIPTDIR source=claims.inc
. "$ROOT/tests/guest/claims.inc"
# shellcheck source-path=SCRIPTDIR source=iscsi.inc
. "$ROOT/tests/guest/iscsi.inc"
modprobe -a dm_multipath dm_service_time dm_round_robin iptable_filter loop || exit 1
sm() { "$BIN/sm" "$@"; }
LOCAL=87b8646b-b800-9500-cb7b-af3b74e02f5e
lun 1 100M && target $IQN 127.0.0.1:3260 127.0.0.2:3260 && maps $IQN 0 1 || exit 1
initiator
KEYS="(target . \"127.0.0.1\") (targetIQN . \"$IQN\") (SCSIid . \"$ID\")"
one() { "$BIN/sm" "$1" -t lvmoiscsi -d "($KEYS ${MORE-})" "${@:2}"; }
said() { grep -q -- "$1" "$SCRATCH/stderr" || { cat "$SCRATCH/stderr"; return 1; }; }
lost() { iptables-legacy -I INPUT -p tcp -d "$1" --dport 3260 -j DROP; }
found() { iptables-legacy -D INPUT -p tcp -d "$1" --dport 3260 -j DROP; }
state() { cat /sys/block/sd*/device/state 2> /dev/null | sort -u | tr '\n' ' '; }
is_away() { [ "$(state)" = "$1 " ]; }
map() { dmsetup ls 2> /dev/null | grep -o "^$ID"; }
is_map() { [ "$(map)" = "$ID" ]; }

alone() {
  one sr_create $SR && sm sr_create -t lvm -d "$DISKS" $LOCAL && one sr_attach $SR && one vdi_create $SR "$(vdi 1)" 8M > /dev/null || return
  local disk writer start=$SECONDS
  is "$(cat /sys/class/iscsi_session/*/recovery_tmo)" 144 && disk=$(one vdi_attach $SR "$(vdi 1)") || return
  lost 127.0.0.1
  wait_until 'the kernel notices' is_away blocked || return
  # Others go on, this one says why it cannot.
  within 3 sm sr_scan -t lvm -d "$DISKS" $LOCAL > /dev/null && within 3 sm vdi_create -t lvm -d "$DISKS" $LOCAL "$(vdi 2)" 4M > /dev/null || return
  start=$SECONDS
  fails_with ESRBUSY one sr_scan $SR --wait 3 && said "$IQN.*does not answer\|no answer from its server" && [ $((SECONDS - start)) -lt 40 ] || return
  fails_with 'ESRBUSY|ENODEV' one sr_attach $SR --wait 3 || return
  # What was written to the disk meanwhile comes to it.
  echo words | dd of="$disk" bs=4k seek=1 conv=sync,fsync status=none & writer=$!
  found 127.0.0.1
  wait $writer && wait_until 'the disk is back' is_away running || return
  one sr_scan $SR > /dev/null && one vdi_detach $SR "$(vdi 1)" && one sr_detach $SR && nothing_left || return
  is "$(one sr_attach $SR && one vdi_export $SR "$(vdi 1)" - | dd bs=4k skip=1 count=1 status=none | head -c 5)" words
}
claim 'a target goes away under an attached disk, and comes back; other SRs go on' alone

left() {
  lost 127.0.0.1
  wait_until 'the kernel notices' is_away blocked || return
  within 40 one sr_detach $SR --wait 60 && nothing_left || return
  fails_with ENODEV one sr_attach $SR && said 'it does not answer' && nothing_left || return
  found 127.0.0.1
  one sr_attach $SR && one sr_scan $SR > /dev/null && one sr_detach $SR && nothing_left
}
claim 'an SR without attached disks is detached while its target is away' left

others() {
  # The session of an SR has no connection, its portal answers again, and another call finds no way: the session is not its own.
  one sr_attach $SR || return
  echo 1 > $TARGETS/iscsi/$IQN/tpgt_1/attrib/authentication
  lost 127.0.0.1
  wait_until 'the kernel notices' is_away blocked || return
  lost 127.0.0.2
  found 127.0.0.1
  fails_with 'ESRBUSY|ENODEV|EACCES' sm sr_probe -t lvmoiscsi -d "((target . \"127.0.0.1\") (targetIQN . \"$IQN\") (multihomed . \"true\"))" || return
  is "$(sessions)" 1 && is "$(find /etc/iscsi/nodes -type f | wc -l)" 1 || return
  found 127.0.0.2
  echo 0 > $TARGETS/iscsi/$IQN/tpgt_1/attrib/authentication
  wait_until 'the disk is back' is_away running && one sr_scan $SR > /dev/null && one sr_detach $SR && nothing_left
}
claim 'a call that finds no way leaves the session of another SR' others

refused() {
  local MORE='(multihomed . "true")'
  fails_with EBUSY one sr_attach $SR && said '2 paths.*no multipath map' && nothing_left || return
  MORE='(multihomed . "true") (multipathing . "true")'
  fails_with ENODEV one sr_attach $SR && said 'multipathd does not answer' && nothing_left
}
claim 'several paths without a map are refused' refused

cat > /etc/multipath.conf << 'END'
defaults {
  find_multipaths no
  user_friendly_names no
  polling_interval 1
  max_polling_interval 1
  no_path_retry 30
}
blacklist {
  devnode "^(loop|ubd|ram)"
}
END
mkdir -p /run/multipath
unset DM_DISABLE_UDEV
/lib/systemd/systemd-udevd --daemon && udevadm trigger --action=add && udevadm settle
multipathd

mapped() {
  local MORE='(multipathing . "true")' disk
  one sr_attach $SR && is "$(sessions)" 2 && is "$(portals)" '127.0.0.1 127.0.0.2 ' && is_map && is "$(readlink /dev/disk/mpInuse/"$ID")" "/dev/mapper/$ID" || return
  is "$(pvs --noheadings -o pv_name 2> /dev/null | grep -v ubd | tr -d ' ')" "/dev/mapper/$ID" || return
  disk=$(one vdi_attach $SR "$(vdi 1)") || return
  lost 127.0.0.2
  wait_until 'a path is away' is_away 'blocked running' || return
  head -c 4M /dev/urandom > "$SCRATCH/data" && dd if="$SCRATCH/data" of="$disk" bs=1M conv=fsync status=none || return
  one sr_scan $SR > /dev/null && one vdi_create $SR "$(vdi 3)" 4M > /dev/null || return
  # A portal that is away does not keep the SR from being attached.
  one vdi_detach $SR "$(vdi 1)" && one sr_detach $SR && ! is_map && is "$(sessions)" 0 && one sr_attach $SR && is "$(portals)" '127.0.0.1 ' || return
  found 127.0.0.2
  one sr_attach $SR && is "$(sessions)" 2 || return
  disk=$(one vdi_attach $SR "$(vdi 1)" --read-only) && cmp -n 4194304 "$disk" "$SCRATCH/data" && one vdi_detach $SR "$(vdi 1)" || return
  one sr_detach $SR && [ ! -e "/dev/disk/mpInuse/$ID" ] && [ -z "$(map)" ] && nothing_left
}
claim 'two portals have one map, a path is lost while it is written, and nothing is left' mapped

probed() {
  local MORE='(multipathing . "true")'
  one sr_attach $SR || return
  fails_with EBUSY sm sr_probe -t lvmoiscsi -d "($KEYS $MORE)" && said 'has a multipath map already' && is_map || return
  one vdi_delete --yes $SR "$(vdi 1)" && one vdi_delete --yes $SR "$(vdi 3)" && one sr_delete $SR && [ -z "$(map)" ] && nothing_left
}
claim 'sr_probe leaves a map alone, and sr_delete ends all' probed
pkill -x multipathd
summary
