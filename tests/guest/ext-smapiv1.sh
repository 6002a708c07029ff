#!/bin/bash
# The XML-RPC door of the ext driver against the test double of xapi.
# guest: uml
# bins: sm EXTSR
# memory: 512
# disks: 300M 100M
# takes: 30
# tools: python3 lvcreate wipefs mkfs.ext4 e2fsck
set -e
modprobe -a dm_mod loop fuse nbd 2> /dev/null || :
# Driver calls get xapi's few variables, so that there is no udevd is told otherwise.
mkdir -p /etc/lvm
echo 'activation { udev_sync=0 udev_rules=0 }' > /etc/lvm/lvmlocal.conf
cd "$ROOT/tests/smapiv1"
TMPDIR=$SCRATCH python3 -B -m unittest -v test_ext
