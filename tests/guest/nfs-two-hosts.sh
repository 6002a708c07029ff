#!/bin/bash
# Two hosts, A and B, on one SR: network namespaces with host names and NFS client names of their own.
# guest: uml
# needs: nfsd nfs loop ext4 veth
# tools: rpc.nfsd rpc.mountd rpcbind mount.nfs mkfs.ext4 ip nsenter
# bins: sm
# memory: 1024
# disks: 1G
# takes: 130
set -u
# shellcheck source=/dev/null
. "$ROOT/tests/guest/nfs.inc"
serve
modprobe veth 2> /dev/null

declare -A PID
UNSHARED=()
other_net() { [ "$(readlink "/proc/$1/ns/net")" != "$(readlink /proc/self/ns/net)" ]; }
# host NAME NET: a host that reaches the server as 10.0.NET.1
host() {
  unshare -mnupf --kill-child --mount-proc --propagation private sleep 100000 &
  local pid=$!
  UNSHARED+=("$pid")
  wait_until "host $1 has its namespaces" other_net "$pid" && wait_until "host $1 runs" pgrep -P "$pid" -x sleep > /dev/null || exit
  pid=$(pgrep -P "$pid")
  PID[$1]=$pid
  ip link add "to$1" type veth peer name eth0 netns "$pid"
  ip addr add "10.0.$2.1/24" dev "to$1"
  ip link set "to$1" up
  # Without a name of its own the server takes it for the other host, restarted, and drops that one's locks.
  on "$1" sh -c "hostname $1 && ip link set lo up && ip addr add 10.0.$2.2/24 dev eth0 && ip link set eth0 up &&
    mount -t sysfs s /sys && echo host-$1 > /sys/fs/nfs/net/nfs_client/identifier && mount -t tmpfs t /run && mkdir -p /run/lock"
}
on() { # HOST COMMAND…
  local pid=${PID[$1]}
  shift
  nsenter -t "$pid" -m -n -u -p -- "$@"
}
host A 1
host B 2
# The kernel is one, so that a loop device of A is seen on B: the mountpoints tell them apart. Processes are not seen, or a
# call of A would look at what servers of B have open, on a mount that does not answer.
DCONF_A="nfs@10.0.1.1:/@/run/mnt-A" DCONF_B="nfs@10.0.2.1:/@/run/mnt-B"
A() { local verb=$1; shift; on A sm "$verb" -t nfs -d "$DCONF_A" "$SR" "$@"; }
B() { local verb=$1; shift; on B sm "$verb" -t nfs -d "$DCONF_B" "$SR" "$@"; }
has() { grep -q -- "$1" <<< "$2"; }
V=$(vdi 1) W=$(vdi 2)

claim 'A makes the SR' A sr_create
claim 'A attaches it' A sr_attach
claim 'B attaches it too' B sr_attach
claim 'B cannot make it again' fails_with EEXIST B sr_create

seen_at_once() {
  fails_with ENOVDI B vdi_get_params "$V" && A vdi_create "$V" 10 --type raw &&
    has 'virtual_size . 10485760' "$(B vdi_get_params "$V")" && has "$V" "$(B sr_scan)" &&
    A vdi_resize "$V" 20 && has 'virtual_size . 20971520' "$(B vdi_get_params "$V")" &&
    A vdi_delete "$V" && fails_with ENOVDI B vdi_get_params "$V" && ! has "$V" "$(B sr_scan)"
}
claim 'what A creates, resizes and deletes, B sees with its next call' seen_at_once

data_moves() {
  local device
  A vdi_create "$V" 4 --type raw && device=$(A vdi_attach "$V") && dd if=/dev/urandom of="$SCRATCH/data" bs=1M count=4 status=none &&
    dd if="$SCRATCH/data" of="$device" bs=1M conv=fsync status=none && A vdi_detach "$V" && device=$(B vdi_attach "$V") &&
    cmp "$SCRATCH/data" "$device" && B vdi_detach "$V"
}
claim 'what A wrote through its device, B reads through its own' data_moves

# both COMMAND-OF-A -- COMMAND-OF-B: at once; their statuses are RC_A and RC_B.
both() {
  local first=()
  while [ "$1" != -- ]; do first+=("$1"); shift; done
  shift
  A "${first[@]}" > "$SCRATCH/out-A" 2>&1 &
  local pid=$!
  RC_A=0 RC_B=0
  B "$@" > "$SCRATCH/out-B" 2>&1 || RC_B=$?
  wait $pid || RC_A=$?
}
ROUNDS=4
[ -z "${LONG-}" ] || ROUNDS=16
create_race() {
  local i
  for ((i = 0; i < ROUNDS; i++)); do
    both vdi_create "$W" 1 --label A -- vdi_create "$W" 1 --label B
    case $RC_A,$RC_B in
    0,17) has 'label . "A"' "$(B vdi_get_params "$W")" || return ;;
    17,0) has 'label . "B"' "$(A vdi_get_params "$W")" || return ;;
    *) echo "A $RC_A, B $RC_B"; cat "$SCRATCH"/out-?; return 1 ;;
    esac
    A vdi_delete "$W" || return
  done
}
claim 'of both that create one VDI, one does, and its label counts' create_race

lock_race() {
  local i
  for ((i = 0; i < ROUNDS; i++)); do
    both vdi_lock "$V" FALSE A/vm -- vdi_lock "$V" FALSE B/vm
    case $RC_A,$RC_B in
    0,37) has 'VBDs "A/vm")' "$(B vdi_get_params "$V")" || return ;;
    37,0) has 'VBDs "B/vm")' "$(A vdi_get_params "$V")" || return ;;
    *) echo "A $RC_A, B $RC_B"; cat "$SCRATCH"/out-?; return 1 ;;
    esac
    A vdi_unlock "$V" TRUE A/vm || return
  done
}
claim 'of both that lock one VDI, one does, and it is the holder for both' lock_race

claim 'A locks' A vdi_lock "$V" FALSE A/vm
claim 'B cannot delete what A locked' fails_with EVDIBUSY B vdi_delete "$V"
claim 'nor delete the SR' fails_with EVDIBUSY B sr_delete --yes
force_race() {
  local i
  for ((i = 0; i < ROUNDS; i++)); do
    both vdi_lock "$V" TRUE "A/$i" -- vdi_lock "$V" TRUE "B/$i"
    local holder
    holder=$(A vdi_get_params "$V")
    [ "$holder" = "$(B vdi_get_params "$V")" ] || return
    case $RC_A,$RC_B in
    0,37) has "VBDs \"A/$i\")" "$holder" || return ;;
    37,0) has "VBDs \"B/$i\")" "$holder" || return ;;
    0,0) has "VBDs \"[AB]/$i\")" "$holder" || return ;; # one after the other
    *) echo "A $RC_A, B $RC_B"; cat "$SCRATCH"/out-?; return 1 ;;
    esac
  done
}
claim 'of both that break a lock, one is the holder in the end' force_race
claim 'B gives it back by force' B vdi_unlock "$V" TRUE B

delete_or_lock() {
  local i deleted=0
  for ((i = 0; i < ROUNDS; i++)); do
    A vdi_create "$W" 1 || return
    both vdi_delete "$W" -- vdi_lock "$W" FALSE B/vm
    case $RC_A,$RC_B in
    103,0) has 'VBDs "B/vm")' "$(A vdi_get_params "$W")" && B vdi_unlock "$W" FALSE B/vm && B vdi_delete "$W" || return ;;
    0,37 | 0,101) deleted=$((deleted + 1)); fails_with ENOVDI B vdi_get_params "$W" || return ;;
    *) echo "A $RC_A, B $RC_B"; cat "$SCRATCH"/out-?; return 1 ;;
    esac
    ! on_server "$W*" || return
  done
  echo "$deleted of $ROUNDS deleted"
}
claim 'of a vdi_delete on A and a vdi_lock on B, one is refused' delete_or_lock

delete_race() {
  local i
  for ((i = 0; i < ROUNDS; i++)); do
    A vdi_create "$W" 1 || return
    both vdi_delete "$W" -- vdi_delete "$W"
    # Who comes while the other deletes may hear so; nobody hears of an error of the disk.
    case $RC_A,$RC_B in 0,0 | 0,103 | 103,0) ;; *) echo "A $RC_A, B $RC_B"; cat "$SCRATCH"/out-?; return 1 ;; esac
    ! on_server "$W*" || return
  done
}
claim 'both delete one VDI, and it is gone' delete_race

snapshot_race() {
  local i
  A vdi_create "$W" 4 --type vhd || return
  for ((i = 0; i < 6; i++)); do
    both vdi_snapshot "$W" "$(vdi $((100 + i)))" -- vdi_snapshot "$W" "$(vdi $((200 + i)))"
    [ $RC_A,$RC_B = 0,0 ] || { echo "A $RC_A, B $RC_B"; cat "$SCRATCH"/out-?; return 1; }
  done
  [ "$(A sr_scan | grep -o '(vdi (uuid' | wc -l)" = 14 ] && [ ! -e "$SRV/$SR/.sm-tree" ]
}
claim 'both snapshot one VHD again and again, and no snapshot is lost' snapshot_race

# What B has attached, A leaves alone, because it sees who has the images open; B itself changes them at will.
X=$(vdi 5) Y=$(vdi 6)
images() { [ $(($(find "$SRV/$SR" -name '*.vhd' | wc -l) - BEFORE)) = "$1" ]; }
scribble() { dd if=/dev/urandom of="$SCRATCH/data" bs=1M count=4 seek="$1" conv=notrunc status=none; }
in_use_elsewhere() {
  local device
  BEFORE=$(find "$SRV/$SR" -name '*.vhd' | wc -l)
  truncate -s 32M "$SCRATCH/data" || return
  A vdi_create "$X" 32 --type vhd && device=$(B vdi_attach "$X") || return
  put() { scribble "$1" && dd if="$SCRATCH/data" of="$device" bs=1M conv=fsync status=none; }
  same() { blockdev --flushbufs "$device" && cmp "$SCRATCH/data" "$device"; }
  put 0 && fails_with EVDIBUSY A vdi_snapshot "$X" "$Y" && has 'another host' "$(cat "$SCRATCH/stderr")" &&
    fails_with EVDIBUSY A vdi_resize "$X" 64 && fails_with EVDIBUSY A vdi_delete "$X" && images 1 || return
  B vdi_snapshot "$X" "$Y" && put 2 && B vdi_snapshot "$X" "$(vdi 7)" && put 8 && A vdi_delete "$Y" && A vdi_delete "$(vdi 7)" || return
  images 3 && A sr_collect && images 3 && put 10 && same || return
  B sr_collect && images 1 && put 12 && same && B vdi_detach "$X" || return
  A vdi_snapshot "$X" "$Y" && images 3 && device=$(A vdi_attach "$Y") && same && A vdi_detach "$Y" &&
    A vdi_delete "$Y" && A sr_collect && images 1 && A vdi_delete "$X"
}
claim 'what B has attached, A neither snapshots nor grows, deletes or merges; B does' in_use_elsewhere

# A copy that is being made on A is no garbage to B; when A's call is killed it is, and B clears it away.
sweep() {
  local pid dconf='((server . "10.0.1.1") (serverpath . "/") (nfsversion . "4.1") (mountpoint . "/run/mnt-4.1"))'
  A vdi_create "$(vdi 3)" 200 --type raw && dd if=/dev/urandom of="$SRV/$SR/$(vdi 3).raw" bs=1M count=200 status=none &&
    on A sm sr_attach -t nfs -d "$dconf" "$SR" || return
  nsenter -t "${PID[A]}" -m -n -u -p -- sm vdi_clone -t nfs -d "$dconf" "$SR" "$(vdi 3)" "$(vdi 4)" &
  pid=$!
  until on_server '.tmp-*' > /dev/null; do kill -0 $pid || { echo 'it was over too soon'; return 1; }; done
  B sr_attach || return
  on_server '.tmp-*' || { echo 'B removed what A makes'; return 1; }
  # nsenter stays outside and waits for its child.
  pkill -9 -P $pid -x sm || { echo 'it was over too soon'; return 1; }
  wait $pid
  B sr_attach && ! on_server '.tmp-*' && fails_with ENOVDI B vdi_get_params "$(vdi 4)" &&
    A vdi_delete "$(vdi 3)" && on A sm sr_detach -t nfs -d "$dconf" "$SR"
}
claim 'what a killed call of A leaves, B clears away, and not before' sweep

# An outage that is longer than the lease: the server forgets the locks of B, whose disk is in use.
lose() { ip link set toB down && sleep 12; }
disk_of_b() {
  truncate -s 32M "$SCRATCH/data"
  A vdi_create "$X" 32 --type vhd && DEVICE=$(B vdi_attach "$X") && scribble 0 &&
    dd if="$SCRATCH/data" of="$DEVICE" bs=1M conv=fsync status=none
}
shown_by() { # HOST VDI
  local device
  device=$("$1" vdi_attach "$2") && cmp "$SCRATCH/data" "$device" && "$1" vdi_detach "$2"
}
taken_again() {
  disk_of_b && lose && scribble 8 || return
  dd if="$SCRATCH/data" of="$DEVICE" bs=1M conv=fsync status=none &
  local writer=$!
  ip link set toB up && wait $writer && fails_with EVDIBUSY A vdi_snapshot "$X" "$Y" && has 'another host' "$(cat "$SCRATCH/stderr")" &&
    B vdi_detach "$X" && shown_by A "$X" && A vdi_delete "$X"
}
claim 'B lost its lock in an outage: it takes the lock again, and no write is lost' within 150 taken_again

# What B writes now would go into a base, under the snapshot of A.
taken_over() {
  disk_of_b && lose && A vdi_snapshot "$X" "$Y" || return
  cp "$SCRATCH/data" "$SCRATCH/other"
  dd if=/dev/urandom of="$SCRATCH/other" bs=1M count=4 conv=notrunc status=none
  dd if="$SCRATCH/other" of="$DEVICE" bs=1M conv=fsync status=none 2> "$SCRATCH/written" &
  local writer=$!
  ip link set toB up
  if wait $writer; then echo 'what B wrote into a base was acknowledged'; return 1; fi
  has 'nput/output error' "$(cat "$SCRATCH/written")" && shown_by A "$Y" || return
  B vdi_detach "$X" && shown_by B "$X" && shown_by A "$X" && A vdi_delete "$Y" && A sr_collect && shown_by B "$X" && A vdi_delete "$X"
}
claim 'A took over what B had lost: B writes nothing into it' within 150 taken_over

claim 'B deletes the SR that A has attached' B sr_delete --yes
claim 'A hears that it is gone' fails_with ESRBUSY A sr_scan
claim 'A detaches all the same' A sr_detach
claim 'B as well, again' B sr_detach
claim 'no mount is left' sh -c '! cat /proc/[0-9]*/mounts 2> /dev/null | grep " nfs4\? "'
claim 'nothing is left on the export' sh -c "! ls $SRV | grep -v lost+found"
kill "${UNSHARED[@]}"
stop_serving
summary
