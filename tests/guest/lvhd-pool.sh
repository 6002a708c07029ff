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
echo 'devices { global_filter=[ "r|/dev/loop|" ] }' > /etc/lvm/lvmlocal.conf
# shellcheck source-path=SCRIPTDIR source=hosts.inc
. "$ROOT/tests/guest/hosts.inc"
A=$(host A) B=$(host B)
cd "$ROOT/tests/smapiv1" || exit
LVM_DISKS=$DISKS HOST_A=$A HOST_B=$B TMPDIR=$SCRATCH timeout 500 python3 -B -m unittest -v test_lvhd_pool 2>&1
status=$?
kill "$A" "$B"
exit $status
