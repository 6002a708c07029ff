#!/bin/bash
# What an SMB server can do to a client: be gone, refuse, be read-only, end in the middle; and what is true of files that somebody
# has open, where SMB is not like other filesystems.
# guest: uml
# needs: cifs loop ext4 iptable_filter
# tools: smbd smbpasswd mount.cifs mkfs.ext4 iptables-legacy
# bins: sm
# memory: 1024
# disks: 256M
# takes: 120
set -u
# shellcheck source=/dev/null
. "$ROOT/tests/guest/smb.inc"
modprobe -a iptable_filter xt_tcpudp 2> /dev/null
# The least that a connection waits before it is tried again, not the most.
echo 1 > /proc/sys/net/ipv4/tcp_syn_retries
disk=${DISKS%% *}
mkfs.ext4 -q -F "$disk"
mount -t ext4 "$disk" "$SRV"
shares() { # read-only?
  smb_conf << CONF
[disks]
  path = $SRV
  valid users = nobody
  force user = root
  read only = $1
[open]
  path = $SRV
  guest ok = yes
  read only = no
CONF
}
shares no || exit
start
note_arguments

MNT=$SCRATCH/mnt
printf 'username=nobody\npassword=%s\n' "$PASSWORD" > "$SCRATCH/credentials"
chmod 600 "$SCRATCH/credentials"
V=$(vdi 1) W=$(vdi 2) X=$(vdi 3)
# keys KEY VALUE …: a dconf
keys() {
  local text=''
  while [ $# -gt 0 ]; do text+=" ($1 . \"$2\")"; shift 2; done
  printf '(%s)' "${text# }"
}
DCONF=$(keys server //127.0.0.1/disks credentials "$SCRATCH/credentials" mountpoint "$MNT")
on() { # DCONF VERB ARG…
  local dconf=$1 verb=$2
  shift 2
  sm "$verb" -t smb -d "$dconf" "$SR" "$@"
}
run() { on "$DCONF" "$@"; }
has() { grep -q -- "$1" <<< "$2"; }
cut_wire() { iptables-legacy -I INPUT -p tcp --dport 445 -j DROP; }
mend_wire() { iptables-legacy -D INPUT -p tcp --dport 445 -j DROP; }
not_mounted() { ! grep ' cifs ' /proc/mounts; }

echo '# no server'
claim 'a port that refuses: ENODEV, at once' within 5 fails_with ENODEV \
  on "$(keys server //127.0.0.1/disks options port=1)" sr_create
cut_wire
claim 'an address that is silent: ENODEV, within 15 s' within 15 fails_with ENODEV run sr_attach
claim 'sr_probe says so too' within 15 fails_with ENODEV sm sr_probe -t smb -d "$DCONF"
mend_wire
claim 'a name that nobody knows: ENODEV' within 15 fails_with ENODEV on //no-such-host.invalid/disks sr_attach
claim 'a share that is not there: ENODEV' fails_with ENODEV on //127.0.0.1/nowhere sr_create
claim 'a wrong password: EACCES' fails_with EACCES on "$(keys server //127.0.0.1/disks username nobody password hunter3)" sr_create
claim 'a share that is not for guests: EACCES' fails_with EACCES on //127.0.0.1/disks sr_create
claim 'nothing is mounted after all that' not_mounted
claim 'and no mountpoint is left' sh -c "! find $MNT -mindepth 1 | grep ."

echo '# a user'
named() { on "$(keys server //127.0.0.1/disks username nobody password "${PASSWORD//\"/\\\"}" mountpoint "$MNT")" "$@"; }
life() { named sr_create && named sr_attach && named vdi_create "$V" 4 && named vdi_delete "$V" && named sr_detach && named sr_delete; }
claim 'a user with a password' life
claim '  no argument of mount.cifs was a password' sh -c "grep -q username=nobody $SCRATCH/arguments && ! grep hunter $SCRATCH/arguments"
claim 'sr_attach of an SR that is not there' fails_with ENOSR run sr_attach
claim '  nothing is mounted' not_mounted

echo '# read-only'
run sr_create && run sr_attach && run vdi_create "$V" 4 --type raw && run sr_detach
stop && shares yes && start
claim 'an SR on a read-only share is attached and listed' sh -c "sm sr_attach -t smb -d '$DCONF' $SR && sm sr_scan -t smb -d '$DCONF' $SR | grep -q $V"
for verb in "vdi_create $W 4" "vdi_delete $V" "vdi_clone $V $W" "vdi_resize $V 8"; do
  # shellcheck disable=SC2086
  claim "${verb%% *} there: EACCES" fails_with 'EACCES|EROFS' run $verb
done
run sr_detach
stop && shares no && start
claim 'and nothing came of it' sh -c "sm sr_attach -t smb -d '$DCONF' $SR && [ \"\$(ls $SRV/$SR)\" = $V.raw ]"
run vdi_delete "$V"

echo '# files that somebody has open'
run vdi_create "$V" 8 --label web
mounted=$MNT/$SR
while_open() { # FILE COMMAND…: the command, while a process reads the file for a second
  local status=0
  (exec sleep 1) < "$1" &
  "${@:2}" || status=1
  wait
  return $status
}
claim 'vdi_snapshot of a disk whose image a reader has open' while_open "$mounted/$V.vhd" run vdi_snapshot "$V" "$W"
claim '  both are there' sh -c "sm sr_scan -t smb -d '$DCONF' $SR | grep -q '$V.*$W\|$W.*$V'"
claim '  both can be attached' sh -c "for v in $V $W; do sm vdi_attach -t smb -d '$DCONF' $SR \$v && sm vdi_detach -t smb -d '$DCONF' $SR \$v || exit; done"
claim 'a label is changed while a reader has the record open' while_open "$mounted/$V.params" run vdi_set "$V" --label db
claim '  and is the new one' has db "$(run vdi_get_params "$V")"
# Not an empty child of its base any more, of which a snapshot replaces nothing.
written() {
  local device
  device=$(run vdi_attach "$V") && dd if=/dev/urandom of="$device" bs=1M count=1 conv=fsync status=none && run vdi_detach "$V"
}
claim 'the disk is written to' written
held() {
  local status=0
  (exec sleep 1000) < "$mounted/$V.vhd" &
  within 30 fails_with 'EBUSY|EVDIBUSY' run vdi_snapshot "$V" "$X" || status=1
  kill $!
  wait
  return $status
}
claim 'a reader that does not close it: the snapshot is refused' held
claim '  the disk is there, and has its label' has db "$(run vdi_get_params "$V")"
claim '  no copy is left' fails_with ENOVDI run vdi_get_params "$X"
claim '  and it is snapshotted then' run vdi_snapshot "$V" "$X"
claim '  a scan lists every disk' sh -c "sm sr_scan -t smb -d '$DCONF' $SR | grep -q $V && sm sr_scan -t smb -d '$DCONF' $SR | grep -q $X"
lost_name() {
  mv "$mounted/$V.vhd" "$mounted/.sm-old-$V.vhd"
  within 30 has "$V" "$(run sr_scan)" && run vdi_attach "$V" && run vdi_detach "$V"
}
claim 'a disk whose replacement was killed has its name back' lost_name
run vdi_delete "$X"
run vdi_delete "$W"
claim 'the bases are merged again' run sr_collect
claim '  nothing but the disk is left' sh -c "! ls -A $SRV/$SR | grep -v '^$V\|^\.sm-'"

echo '# gone in the middle'
given_up() {
  cut_wire
  within 40 fails_with ESRBUSY run vdi_create "$W" 4 --wait 3
  local status=$?
  mend_wire
  return $status
}
claim 'a server that goes silent: ESRBUSY, after --wait' given_up
claim 'when it is back, the same call' within 90 run vdi_create "$W" 4
waited() {
  cut_wire
  (sleep 6; mend_wire) &
  within 90 run vdi_snapshot "$V" "$X"
  local status=$?
  wait
  return $status
}
claim 'one that is back within the wait: the call goes on by itself' waited
run vdi_delete "$X"
run vdi_delete "$W"
data() {
  local device
  device=$(run vdi_attach "$V") || return
  dd if=/dev/urandom of="$SCRATCH/data" bs=1M count=8 status=none
  dd if="$SCRATCH/data" of="$device" bs=64k conv=fsync status=none &
  local writer=$!
  stop
  sleep 3
  start
  wait $writer || { echo 'the writer was told of an error'; return 1; }
  echo 3 > /proc/sys/vm/drop_caches
  cmp "$SCRATCH/data" "$device" && run vdi_detach "$V"
}
claim 'a disk in use only waits: the server restarts, no write is lost' within 200 data
killed() {
  local pid
  cut_wire
  sm vdi_clone -t smb -d "$DCONF" "$SR" "$V" "$W" &
  pid=$!
  sleep 1
  kill -9 $pid
  wait $pid
  mend_wire
  within 90 run sr_attach && fails_with ENOVDI run vdi_get_params "$W" && ! find "$SRV/$SR" -name '.tmp-*' | grep .
}
claim 'a call that waits for the server can be killed, and leaves nothing' killed

echo '# users, and something else'
busy() {
  local status=0
  exec 7< "$mounted/$V.vhd"
  run sr_detach 2> "$SCRATCH/said" && status=1
  grep -q "bash" "$SCRATCH/said" || status=1
  cat "$SCRATCH/said"
  exec 7<&-
  return $status
}
claim 'sr_detach while a process works there names it' busy
run vdi_attach "$V" > /dev/null
cut_wire
claim 'sr_detach while a disk is attached: EVDIBUSY, without asking the server' within 5 fails_with EVDIBUSY run sr_detach
mend_wire
within 60 run vdi_detach "$V"
claim 'sr_detach' within 60 run sr_detach
mkdir -p "$mounted"
claim 'what is below the mountpoint is no SR' fails_with ESRBUSY run sr_scan
claim '  and no disk is made there' fails_with ESRBUSY run vdi_create "$W" 4
claim '  nothing came of it' sh -c "! ls -A $mounted | grep ."
mount -t tmpfs t "$mounted"
claim 'sr_attach where something else is mounted: EBUSY' fails_with EBUSY run sr_attach
claim 'its files are no SR' fails_with EBUSY run sr_scan
umount "$mounted"
claim 'sr_attach' run sr_attach
claim '  again' run sr_attach
claim '  with its disk' has "$V" "$(run sr_scan)"
claim 'sm sr_list knows it' sh -c "sm sr_list -t smb | grep -q $SR"

echo '# gone for good'
cut_wire
claim 'sr_detach of a server that is gone works' within 60 run sr_detach
claim '  nothing is mounted then' not_mounted
claim '  again' within 5 run sr_detach
claim 'sr_attach: ENODEV' within 20 fails_with ENODEV run sr_attach
mend_wire
claim 'it is attached again when the server is back' within 90 run sr_attach
claim '  with its disk, which is not attached' has 'attached . #f' "$(run vdi_get_params "$V")"
run sr_detach
claim 'sr_delete of a detached SR' run sr_delete --yes
claim 'nothing is left on the share' sh -c "! ls $SRV | grep -v lost+found"
stop
summary
