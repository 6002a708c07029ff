#!/bin/bash
# The Python driver of LVHD groups and LVMSR, run side by side: the same calls of xapi on two groups, whose volumes, images, records of
# MGT and records of xapi are compared; then each goes on with what the other made; and how long both take. docs/testing.md
# says how the Python driver is had. PEER is its directory:
#
#   SUITES=tests/guest/peers PEER=DIRECTORY tests/guest/suites lvhd
#
# guest: uml
# needs: dm_mod loop
# tools: lvcreate wipefs python3 qemu-img qemu-io lsof
# bins: sm
# memory: 1024
# disks: 5G 5G
# takes: 1800
set -u
for file in sm/LVMSR.py sm/XenAPI bin/vhd-util bin/fairlock; do
  [ -e "${PEER:-/nonexistent}/$file" ] || { echo "PEER names no directory with $file: see docs/testing.md"; exit 1; }
done
modprobe -a dm_mod loop fuse 2> /dev/null
export PATH=$PATH:/usr/sbin:/sbin
echo 'activation { udev_sync=0 udev_rules=0 }
devices { global_filter=[ "r|/dev/loop|" ] }' > /etc/lvm/lvmlocal.conf
# What a host of XCP-ng has where the Python driver looks for it.
mkdir -p /opt/xensource/libexec /etc/xensource /run/fairlock /etc/lvm/master /var/lib/xcp /usr/share/zoneinfo
cp /etc/lvm/lvm.conf /etc/lvm/lvmlocal.conf /etc/lvm/master/
ln -sfn "$PEER/sm" /opt/xensource/sm
ln -sf LVMSR.py "$PEER/sm/LVMSR"
for name in vhd-util cbt-util qcow2_helper; do
  for place in /usr/bin /usr/sbin /opt/xensource/libexec; do ln -sf "$PEER/bin/$name" "$place/$name"; done
done
[ -e /usr/sbin/lsof ] || ln -s "$(command -v lsof)" /usr/sbin/lsof
# There is no systemd: the test starts collectors.
printf '#!/bin/sh\ncase "$*" in *is-active*fairlock*) exit 0 ;; *is-active*) echo inactive; exit 3 ;; esac\nexit 0\n' > /usr/bin/systemctl
chmod +x /usr/bin/systemctl
cd "$ROOT/tests/smapiv1" || exit
# shellcheck disable=SC2086 # several words
LVM_DISKS=$DISKS TMPDIR=$SCRATCH exec python3 -B -m unittest -v ${PEER_TESTS:-test_lvhd_peer test_lvhd_peer_formats test_lvhd_peer_kill} 2>&1
