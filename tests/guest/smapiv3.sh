#!/bin/bash
# The plug-ins of SMAPIv3 on two hosts that share an export, in network and mount namespaces of their own, with calls that are killed.
# guest: uml
# needs: nfsd nfs loop ext4 veth fuse
# tools: rpc.nfsd rpc.mountd rpcbind mount.nfs mkfs.ext4 ip nsenter python3
# bins: sm
# memory: 1024
# disks: 1G
# takes: 60
set -u
# shellcheck source=/dev/null
. "$ROOT/tests/guest/nfs.inc"
serve
modprobe -a veth fuse 2> /dev/null

# shellcheck disable=SC2317 # wait_until calls it
other_net() { [ "$(readlink "/proc/$1/ns/net")" != "$(readlink /proc/self/ns/net)" ]; }
# host NAME NET: a host that reaches the server as 10.0.NET.1; prints the process that is it.
host() {
  unshare -mnu --propagation private sleep 100000 > /dev/null &
  local pid=$!
  wait_until "host $1 has its namespaces" other_net "$pid" || exit
  ip link add "to$1" type veth peer name eth0 netns "$pid"
  ip addr add "10.0.$2.1/24" dev "to$1"
  ip link set "to$1" up
  # Without a name of its own the server takes it for the other host, restarted, and drops that one's locks.
  nsenter -t "$pid" -m -n -u -- sh -c "hostname $1 && ip link set lo up && ip addr add 10.0.$2.2/24 dev eth0 &&
    ip link set eth0 up && mount -t sysfs s /sys && echo host-$1 > /sys/fs/nfs/net/nfs_client/identifier &&
    mount -t tmpfs t /run && mkdir -p /run/lock"
  echo "$pid"
}
A=$(host A 1) B=$(host B 2)
cd "$ROOT/tests/smapiv3" || exit
export SM=$BIN/sm TMPDIR=$SCRATCH
SERVED=$SRV HOST_A=$A HOST_B=$B python3 -B -m unittest -v test_hosts 2>&1
status=$?
kill "$A" "$B"
stop_serving
exit $status
