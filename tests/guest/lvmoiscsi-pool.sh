#!/bin/bash
# xapi with an LVHD group on an iSCSI LUN that two hosts have: a disk that one has attached is given room, snapshotted and merged by the
# other. Both have one initiator, as they are namespaces of one kernel.
# guest: uml
# bins: sm
# memory: 1024
# takes: 90
# tools: iscsiadm iscsid lvcreate wipefs nsenter python3
set -u
modprobe -a fuse 2> /dev/null
export PATH=$PATH:/usr/sbin:/sbin
# shellcheck source-path=SCRIPTDIR source=claims.inc
. "$ROOT/tests/guest/claims.inc"
# shellcheck source-path=SCRIPTDIR source=iscsi.inc
. "$ROOT/tests/guest/iscsi.inc"
lun 1 400M && target "$IQN" 127.0.0.1:3260 && maps "$IQN" 0 1 || exit 1
initiator
echo 'devices { global_filter=[ "a|^/dev/sd|", "r|.*|" ] }' > /etc/lvm/lvmlocal.conf
# shellcheck source-path=SCRIPTDIR source=hosts.inc
. "$ROOT/tests/guest/hosts.inc"
A=$(host A) B=$(host B)
facts="{\"target\": \"127.0.0.1\", \"targetIQN\": \"$IQN\", \"SCSIid\": \"$ID\", \"allocation\": \"thin\"}"
cd "$ROOT/tests/smapiv1" || exit
of=test_lvhd_pool.TwoHosts
POOL_TYPE=lvmoiscsi POOL_CONFIG=$facts INITIATOR=$ME HOST_A=$A HOST_B=$B TMPDIR=$SCRATCH timeout 500 python3 -B -m unittest -v \
  $of.test_the_master_gives_a_disk_room_and_takes_it_back $of.test_a_disk_that_b_uses_is_snapshotted_and_merged_by_a 2>&1
status=$?
kill "$A" "$B"
claim 'no session or record is left' nothing_left
summary && exit $status
