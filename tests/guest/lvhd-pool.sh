#!/bin/bash
# xapi with an LVHD group that two hosts have: mount and host name namespaces of their own, one double of xapi.
# guest: uml
# needs: dm_mod loop fuse
# tools: lvcreate wipefs nsenter python3
# bins: sm
# memory: 1024
# disks: 400M
# takes: 100
set -u
modprobe -a dm_mod loop fuse 2> /dev/null
export PATH=$PATH:/usr/sbin:/sbin
# What the tests look at with LVM is not to wait for a paused disk of a host. The hosts know by themselves what LVM must not read.
echo 'devices { global_filter=[ "a|^/dev/ubd|", "r|.*|" ] }' > /etc/lvm/lvmlocal.conf
: > "$SCRATCH/none"

# host NAME: prints the process that is it.
host() {
  unshare -mu --propagation private sleep 100000 > /dev/null &
  local pid=$! n
  for ((n = 0; n < 100; n++)); do
    [ "$(readlink "/proc/$pid/ns/uts")" = "$(readlink /proc/self/ns/uts)" ] || break
    sleep 0.1
  done
  nsenter -t "$pid" -m -u -- hostname "$1"
  nsenter -t "$pid" -m -- mount --bind "$SCRATCH/none" /etc/lvm/lvmlocal.conf || exit
  echo "$pid"
}
A=$(host A) B=$(host B)
cd "$ROOT/tests/smapiv1" || exit
LVM_DISKS=$DISKS HOST_A=$A HOST_B=$B TMPDIR=$SCRATCH timeout 500 python3 -B -m unittest -v test_lvhd_pool 2>&1
status=$?
kill "$A" "$B"
exit $status
