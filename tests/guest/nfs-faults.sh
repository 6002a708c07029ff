#!/bin/bash
# What a server can do to a client: be gone, refuse, squash, be full, forget, stop in the middle.
# guest: uml
# needs: nfsd nfs loop ext4 iptable_filter
# tools: rpc.nfsd rpc.mountd rpcbind mount.nfs mkfs.ext4 iptables-legacy
# bins: sm
# memory: 1024
# disks: 128M
# takes: 90
set -u
# shellcheck source=/dev/null
. "$ROOT/tests/guest/nfs.inc"
serve
modprobe -a iptable_filter xt_tcpudp 2> /dev/null
# The least that a connection waits before it is tried again, not the most.
echo 1 > /proc/sys/net/ipv4/tcp_syn_retries

MNT=$SCRATCH/mnt
DCONF=nfs@127.0.0.1:/@$MNT
V=$(vdi 1) W=$(vdi 2)
on() { # DCONF VERB ARG…
  local dconf=$1 verb=$2
  shift 2
  sm "$verb" -t nfs -d "$dconf" "$SR" "$@"
}
run() { on "$DCONF" "$@"; }
has() { grep -q -- "$1" <<< "$2"; }
# The wire to the server: cut, and whole again.
cut_wire() { iptables-legacy -I INPUT -p tcp --dport 2049 -j DROP; }
mend_wire() { iptables-legacy -D INPUT -p tcp --dport 2049 -j DROP; }
mounted() { grep -q " $MNT/$SR nfs" /proc/mounts; }

echo '# no server'
claim 'a port that refuses: ENODEV, at once' within 3 fails_with ENODEV \
  on '((server . "127.0.0.1") (serverpath . "/") (options . "port=2050"))' sr_create
cut_wire
claim 'an address that is silent: ENODEV, within 15 s' within 15 fails_with ENODEV run sr_attach
claim 'sr_probe says so too' within 15 fails_with ENODEV sm sr_probe -t nfs -d "$DCONF"
mend_wire
claim 'a name that nobody knows: ENODEV' within 15 fails_with ENODEV on "nfs@no-such-host.invalid:/@$MNT" sr_attach
claim 'a path that is not exported: ENODEV' fails_with ENODEV on "nfs@127.0.0.1:/nowhere@$MNT" sr_create
stop_nfsd
rpc.nfsd -N 3 -V 4 -G 10 -L 10 4
claim 'a version that the server has not: ENODEV' fails_with ENODEV \
  on "((server . \"127.0.0.1\") (serverpath . \"$SRV\") (nfsversion . \"3\"))" sr_create
stop_nfsd
rpc.nfsd -V 3 -N 4 -G 10 -L 10 4
claim 'version 3 alone is found without being named' sm sr_probe -t nfs -d "nfs@127.0.0.1:$SRV@$MNT"
stop_nfsd
rpc.nfsd -V 3 -V 4 -G 10 -L 10 4
exportfs -ua
echo "$SRV 10.9.9.9(rw,sync,no_subtree_check,fsid=0)" > "$SCRATCH/exports"
exportfs -ra
not_ours() { fails_with 'EACCES|ENODEV' run sr_create; }
claim 'an export that is not for this host: EACCES or ENODEV' not_ours
exportfs -ua
export_as rw,sync,no_root_squash

echo '# read-only, squashed'
export_as ro,sync,no_root_squash
claim 'sr_create on a read-only export: EACCES' fails_with EACCES run sr_create
export_as rw,sync,root_squash
claim 'sr_create where root is nobody and may not write: EACCES' fails_with EACCES run sr_create
chmod 777 "$SRV"
squashed() {
  run sr_create && run sr_attach && run vdi_create "$V" 4 && run vdi_snapshot "$V" "$W" && run vdi_lock "$V" FALSE u &&
    run vdi_unlock "$V" FALSE u && run vdi_attach "$V" | grep -q /dev/ && run vdi_detach "$V" && run vdi_delete "$W" &&
    run sr_detach && run sr_delete --yes && [ ! -e "$SRV/$SR" ]
}
claim 'where nobody may write, everything works' squashed
chmod 755 "$SRV"
export_as rw,sync,no_root_squash

run sr_create && run sr_attach && run vdi_create "$V" 4 --type raw
device=$(run vdi_attach "$V")
dd if=/dev/urandom of="$SCRATCH/data" bs=1M count=4 status=none
dd if="$SCRATCH/data" of="$device" bs=1M conv=fsync status=none
run vdi_detach "$V"
run sr_detach
export_as ro,sync,no_root_squash
read_only() {
  local device
  run sr_attach && has "$V" "$(run sr_scan)" && device=$(run vdi_attach "$V" --read-only) && cmp "$SCRATCH/data" "$device" &&
    run vdi_detach "$V"
}
claim 'an SR on a read-only export is attached and read' read_only
for verb in "vdi_create $W 4" "vdi_delete $V" "vdi_clone $V $W" "vdi_resize $V 8" "vdi_lock $V FALSE u" "vdi_attach $V"; do
  # shellcheck disable=SC2086
  claim "${verb%% *} there: EACCES" fails_with EACCES run $verb
done
run sr_detach
export_as rw,sync,no_root_squash
run sr_attach
claim 'and nothing came of it' sh -c "[ \"\$(ls $SRV/$SR)\" = $V.raw ]"

echo '# full'
full() {
  local before i n
  before=$(find "$SRV/$SR" | sort)
  fallocate -l "$(($(stat -f -c '%a * %S' "$SRV") - (256 << 10)))" "$SRV/ballast" && sync
  fails_with ENOSPC run vdi_clone "$V" "$W" && [ "$(find "$SRV/$SR" | sort)" = "$before" ] || return
  # What ext4 had set aside comes free with each sync, for metadata too.
  mkdir "$SRV/ballast.d"
  for i in 1 2 3; do
    dd if=/dev/zero of="$SRV/ballast$i" bs=4k status=none 2> /dev/null
    sync
    n=0
    while mkdir "$SRV/ballast.d/$i.$n" 2> /dev/null; do n=$((n + 1)); done
    sync
  done
  fails_with ENOSPC run vdi_lock "$V" FALSE u && [ "$(find "$SRV/$SR" | sort)" = "$before" ] && has "$V" "$(run sr_scan)"
}
claim 'a full export: vdi_clone and vdi_lock say ENOSPC and leave nothing' full
claim 'on a full export a VDI can be deleted' run vdi_delete "$V"
rm -rf "$SRV"/ballast*
claim 'and then be made again' run vdi_create "$V" 20 --type raw

echo '# gone in the middle'
given_up() {
  cut_wire
  within 25 fails_with ESRBUSY run vdi_create "$W" 4 --wait 3
  local status=$?
  mend_wire
  return $status
}
claim 'a server that goes silent: ESRBUSY, after --wait' given_up
claim 'when it is back, the same call' within 60 run vdi_create "$W" 4
claim 'and no half of the first one is there' sh -c "! find $SRV/$SR -name '.tmp-*' | grep ."
waited() {
  cut_wire
  (sleep 6; mend_wire) &
  within 60 run vdi_snapshot "$V" "$(vdi 3)"
  local status=$?
  wait
  return $status
}
claim 'one that is back within the wait: the call goes on by itself' waited
data() {
  local device
  device=$(run vdi_attach "$V") || return
  dd if=/dev/urandom of="$SCRATCH/data" bs=1M count=20 status=none
  dd if="$SCRATCH/data" of="$device" bs=64k conv=fsync status=none &
  local writer=$!
  stop_nfsd
  sleep 3
  start_nfsd
  wait $writer || { echo 'the writer was told of an error'; return 1; }
  echo 3 > /proc/sys/vm/drop_caches
  cmp "$SCRATCH/data" "$device" && cmp "$SCRATCH/data" "$SRV/$SR/$V.raw" && run vdi_detach "$V"
}
claim 'a disk in use only waits: the server restarts, no write is lost' data
killed() {
  local pid
  dd if=/dev/urandom of="$SRV/$SR/$V.raw" bs=1M count=20 status=none
  cut_wire
  sm vdi_clone -t nfs -d "$DCONF" "$SR" "$V" "$(vdi 4)" &
  pid=$!
  sleep 1
  kill -9 $pid
  wait $pid
  mend_wire
  within 60 run sr_attach && ! on_server '.tmp-*' && fails_with ENOVDI run vdi_get_params "$(vdi 4)"
}
claim 'a call that waits for the server can be killed, and leaves nothing' killed

echo '# .nfsXXXX, stale'
open_elsewhere() {
  local status=0
  exec 7< "$MNT/$SR/$W.vhd"
  run vdi_delete "$W" && on_server '.nfs*' && ! has "$W" "$(run sr_scan)" && run sr_detach
  [ $? = 16 ] || status=1 # EBUSY: this shell has it open
  exec 7<&-
  return $status
}
claim 'a deleted disk that is open leaves .nfsXXXX, which is no disk; sr_detach names who has it open' open_elsewhere
claim 'closed, it goes away' sh -c "! find $SRV/$SR -name '.nfs*' | grep ."
orphan() {
  touch "$SRV/$SR/.nfs000000000000000100000001" && run sr_detach && run sr_delete --yes && [ ! -e "$SRV/$SR" ]
}
claim 'sr_delete takes the .nfsXXXX of a crashed host along' orphan

run sr_create && run sr_attach && run vdi_create "$V" 4
mv "$SRV/$SR" "$SRV/aside"
cp -a "$SRV/aside" "$SRV/$SR"
rm -r "$SRV/aside"
claim 'the directory was replaced on the server: ESRBUSY, which says what to do' fails_with ESRBUSY run sr_scan
claim 'sr_attach finds the new one' run sr_attach
claim '  with its VDI' has "$V" "$(run sr_scan)"

echo '# gone for good'
run vdi_attach "$V" > /dev/null
cut_wire
claim 'sr_detach while a disk is attached: EVDIBUSY, without waiting for the server' within 5 fails_with EVDIBUSY run sr_detach
mend_wire
run vdi_detach "$V"
cut_wire
claim 'sr_detach of a server that is gone works' within 30 run sr_detach
claim '  nothing is mounted then' sh -c '! grep " nfs4\? " /proc/mounts'
claim '  again' within 3 run sr_detach
mend_wire
claim 'it is attached again when the server is back' within 60 run sr_attach
claim '  with its VDI, which is not attached' has 'attached . #f' "$(run vdi_get_params "$V")"

run sr_detach
mkdir -p "$MNT/$SR"
mount -t tmpfs t "$MNT/$SR"
claim 'sr_attach where something else is mounted: EBUSY' fails_with EBUSY run sr_attach
claim 'its files are no SR' fails_with EBUSY run sr_scan
umount "$MNT/$SR"
claim 'sm sr_delete of a detached SR asks as well' fails_with EINVAL run sr_delete
claim 'sr_delete of a detached SR' run sr_delete --yes
claim 'nothing is left on the export' sh -c "! ls $SRV | grep -v lost+found"
stop_serving
summary
