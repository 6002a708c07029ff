#!/bin/bash
# sm devices on a host with many disks: states, order, owners; claims, and what sr_create refuses for them.
# guest: uml
# bins: sm LVMSR
# memory: 512
# takes: 110
# tools: lvcreate wipefs mkfs.ext4 strace python3
set -u
# shellcheck source-path=SCRIPTDIR source=claims.inc
. "$ROOT/tests/guest/claims.inc"
modprobe -a dm_mod loop sd_mod
modprobe scsi_debug dev_size_mb=16 num_tgts=1 max_luns=1 add_host=12 per_host_store=1
OTHER=7e57ab1e-0000-4000-8000-0000000000fe
CLAIMS=/var/lib/sm/registry/claims.json
sm() { "$BIN/sm" "$@"; }
mkdir -p /etc/sm
echo min_size=8M > /etc/sm/sm.conf
for n in {1..100}; do [ -b /dev/sdl ] && break; sleep 0.1; done

# state DEVICE: its state in the list
state() { sm devices --format table -o dev,state | awk -v dev="$1" '$1 == dev { print $2 }'; }
owner() { sm devices --format table -o dev,owner | sed -n "s|^$1  *||p"; }
identity() { sm devices --format table -o dev,identity | awk -v dev="$1" '$1 == dev { print $2 }'; }

# A disk of each kind.
pvcreate -qq -y /dev/sda && vgcreate -qq idle /dev/sda && vgchange -qq -an idle
mkswap -q /dev/sdb && swapon /dev/sdb
mkfs.ext4 -q /dev/sdc && mkdir -p /mnt/c && mount /dev/sdc /mnt/c
# One partition of 8 MiB that begins at 1 MiB.
printf '\0\0\0\0\203\0\0\0\0\010\0\0\0\100\0\0' | dd of=/dev/sdd bs=1 seek=446 conv=notrunc status=none
printf '\125\252' | dd of=/dev/sdd bs=1 seek=510 conv=notrunc status=none
blockdev --rereadpt /dev/sdd
blockdev --setro /dev/sde
mkfs.ext4 -q /dev/sdf
truncate -s 20M "$SCRATCH/disk" "$SCRATCH/small" "$SCRATCH/98de866e-b035-4b1a-a571-613bff542b89.raw"
truncate -s 4M "$SCRATCH/small"
losetup /dev/loop0 "$SCRATCH/disk"
losetup /dev/loop1 "$SCRATCH/small"
losetup /dev/loop2 "$SCRATCH/98de866e-b035-4b1a-a571-613bff542b89.raw"

states() {
  local dev want
  local -A listed
  sm devices --format table -o dev,state > "$SCRATCH/states" || return
  while read -r dev want _; do listed[${dev:-none}]=$want; done < "$SCRATCH/states"
  while read -r dev want; do
    is "${listed[/dev/$dev]-}" "$want" || { echo "of $dev"; return 1; }
  done << END
sda signature:LVM2_member
sdb busy
sdc busy
sdd partitioned
sde readonly
sdf signature:ext4
sdg free
sdl free
loop0 free
loop1 small
loop2 busy
END
}
claim 'a disk of each kind has its state' states

total() {
  local lines=0
  lines=$(sm devices --format table | grep -c '^/dev/sd')
  is "$lines" 12 && is "$(sm devices --format table | tail -1)" "Total: $(sm devices --format table | grep -c '^/dev/') devices"
}
claim 'the 12 disks and the total' total

order() {
  local first n
  first=$(sm devices --format json)
  for n in {1..5}; do
    echo '- - -' > "/sys/class/scsi_host/host$((n - 1))/scan"
    is "$(sm devices --format json)" "$first" || return
  done
}
claim 'the order is that of identities, over five rescans' order

explains() {
  sm devices why /dev/sdb --format table | grep -q 'FAILED (busy) *swap' &&
    sm devices why "$(identity /dev/sdg)" --format table | grep -q '^/dev/sdg is free' &&
    sm devices why /dev/sdd1 --format table | grep -q '^/dev/sdd is partitioned' && fails_with ENODEV sm devices why /dev/nowhere
}
claim 'why explains a device by any name of it' explains

owners() {
  is "$(owner /dev/sda)" idle && is "$(owner /dev/sdb)" swap && is "$(owner /dev/sdc)" 'the mount on /mnt/c'
}
claim 'the owner of a device that is in use is told' owners

processes() { # COMMAND…: how many programs it runs
  strace -f -qq -e trace=execve -e signal=none -o "$SCRATCH/strace" "$@" > /dev/null || return
  grep -c 'execve(.* = 0' "$SCRATCH/strace"
}
no_processes() {
  # Signatures that are not LVM's: sdf's alone.
  is "$(processes "$BIN/sm" devices)" 2 || { cat "$SCRATCH/strace"; return 1; }
  echo 'backend=file' >> /etc/sm/sm.conf
  echo "lvm: host=$(hostname) dev=/dev/disk/by-id/x[0000-0999] size=500G" > /etc/sm/storage.conf
  echo "lvm: host=$(hostname) dev=/dev/sdg tag=fast" >> /etc/sm/storage.conf
  is "$(processes "$BIN/sm" devices)" 2 && within 2 sm devices --format table > "$SCRATCH/list" &&
    is "$(tail -1 "$SCRATCH/list")" 'Total: 1001 devices' && is "$(grep -c missing "$SCRATCH/list")" 1000 &&
    grep -q '/dev/sdg .* free .* fast' "$SCRATCH/list"
}
claim 'a thousand lines of an inventory are listed without a process for each' no_processes

settings() {
  echo 'colour=red' > /etc/sm/sm.conf
  fails_with EMODEL sm devices && grep -q 'line 1: there is no setting "colour"' "$SCRATCH/stderr" || return
  echo 'backend=tape' > /etc/sm/sm.conf
  fails_with ENOBACKEND sm devices && grep -q 'scan, file, none' "$SCRATCH/stderr" || return
  printf 'min_size=8M\nbackend=none\n' > /etc/sm/sm.conf
  sm devices --format table | grep -q 'inventory is off' || return
  mkdir -p /usr/lib/sm/backends
  printf '%s\n' '#!/usr/bin/python3' 'import json, sys' 'r = json.load(sys.stdin)' \
    'print(json.dumps({"candidates": [{"class": "lvm", "host": r["host"], "dev": "/dev/sdg", "rest": {"tag": "db"}}]}))' > /usr/lib/sm/backends/db
  chmod 755 /usr/lib/sm/backends/db
  printf 'min_size=8M\nbackend=exec:db\n' > /etc/sm/sm.conf
  sm devices --format table | grep -q '/dev/sdg .* free .* db' && sm backends --format table | grep -q 'exec:db *yes' || return
  chmod 777 /usr/lib/sm/backends/db
  fails_with EACCES sm devices || return
  printf 'min_size=8M\n' > /etc/sm/sm.conf
}
claim 'settings, and the backends none and exec' settings

by_hand() {
  [ ! -e $CLAIMS ] || { echo 'there are claims already'; return 1; }
  sm sr_create -t lvm -d /dev/sdg $SR && is "$(state /dev/sdg)" claimed && is "$(owner /dev/sdg)" "SR $SR" &&
    is "$(stat -c %a $CLAIMS)" 640 && fails_with EBUSY sm devices release /dev/sdg && grep -q "SR $SR is on it" "$SCRATCH/stderr" &&
    sm sr_delete -t lvm -d /dev/sdg $SR && is "$(state /dev/sdg)" free
}
claim 'sr_create claims its device, sr_delete releases it' by_hand

reserved() {
  local before type
  mkdir -p /dev/disk/by-id && ln -sf ../../sdh /dev/disk/by-id/wwn-0xabc
  sm devices claim /dev/sdh && sm devices claim "$(identity /dev/sdh)" && is "$(owner /dev/sdh)" 'reserved by hand' || return
  before=$(sha256sum < /dev/sdh)
  for type in lvm ext; do
    fails_with EBUSY sm sr_create -t $type -d /dev/disk/by-id/wwn-0xabc --force $OTHER && grep -q 'claimed: reserved by hand' "$SCRATCH/stderr" || return
    fails_with EBUSY sm sr_create -n -t $type -d /dev/sdh,/dev/sdi $OTHER || return
  done
  fails_with EBUSY "$BIN/LVMSR" sr_create -d /dev/sdi,/dev/sdh $OTHER || return
  fails_with EBUSY sm devices claim /dev/sdh --layout rack1 --class lvm --index 3 || return
  is "$(sha256sum < /dev/sdh)" "$before" && is "$(state /dev/sdi)" free || return
  # A disk and its partitions are one medium.
  sm devices claim /dev/sdd && fails_with EBUSY sm sr_create -t lvm -d /dev/sdd1 --force $OTHER && grep -q 'claimed: reserved by hand' "$SCRATCH/stderr" &&
    sm devices release /dev/sdd && fails_with ENODEV sm devices release /dev/sdz || return
  sm devices release /dev/sdh && sm devices release /dev/sdh && is "$(state /dev/sdh)" free || return
  sm devices claim /dev/sdh --layout rack1 --class lvm --index 3 && is "$(owner /dev/sdh)" 'rack1 lvm/3' &&
    fails_with EBUSY sm sr_create -t lvm -d /dev/sdh $OTHER && sm devices release /dev/sdh && sm sr_create -t lvm -d /dev/sdh $OTHER &&
    sm sr_delete -t lvm -d /dev/sdh $OTHER
}
claim 'a medium that is reserved is refused under every name, and nothing is written' reserved

fault() {
  python3 - "$BIN/LVMSR" "$1" "$2" << 'END'
import subprocess, sys, xmlrpc.client
call = {"host_ref": "h", "command": "sr_create", "args": ["0"], "device_config": {"device": sys.argv[2]}, "session_ref": "", "sr_uuid": sys.argv[3]}
out = subprocess.run([sys.argv[1], xmlrpc.client.dumps((call,), "sr_create")], capture_output=True, text=True).stdout
try:
    xmlrpc.client.loads(out)
except xmlrpc.client.Fault as fault:
    print(fault.faultCode, fault.faultString)
END
}
agents() {
  local said
  sm devices claim /dev/sdh && said=$(fault /dev/sdh $OTHER) || return
  echo "$said"
  # SRInUse
  [[ $said == 16\ *claimed* ]] && sm devices release /dev/sdh
}
claim 'an agent is told that the SR is in use, and by whom' agents

damaged() {
  sm sr_create -t lvm -d /dev/sdg $SR && sm devices claim /dev/sdi --layout rack1 --class lvm --index 0 && cp $CLAIMS "$SCRATCH/claims" || return
  truncate -s -5 $CLAIMS
  fails_with EIO sm devices && grep -q 'sm devices rebuild' "$SCRATCH/stderr" || return
  fails_with EIO sm sr_create -t lvm -d /dev/sdh $OTHER && grep -q 'sm devices rebuild' "$SCRATCH/stderr" || return
  is "$(state /dev/sdg)" '' && sm devices rebuild -n --format table | grep -q "claim .* for SR $SR" && fails_with EIO sm devices &&
    sm devices rebuild && is "$(owner /dev/sdg)" "SR $SR" || return
  rm $CLAIMS
  is "$(state /dev/sdg)" signature:LVM2_member && sm devices rebuild && is "$(owner /dev/sdg)" "SR $SR" &&
    is "$(sm devices rebuild --format table)" 'nothing to change' && sm sr_delete -t lvm -d /dev/sdg $SR && is "$(state /dev/sdg)" free
}
claim 'claims that cannot be read are an error, and are made anew from the media' damaged

# layout NAME UUID: this layout is installed, without slots
layout() {
  mkdir -p /var/lib/sm/layouts && printf 'layout: %s\nuuid: %s\n' "$@" > "/var/lib/sm/layouts/$1.layout"
}
adoptable() {
  local rack=6ba7b810-9dad-11d1-80b4-00c04fd430c8
  sm sr_create -t lvm -d /dev/sdg $SR && vgchange -qq --addtag xcp.slot=$rack/lvm/7 VG_XenStorage-$SR && sm devices release /dev/sdg
  rm $CLAIMS
  is "$(state /dev/sdg)" adoptable && is "$(owner /dev/sdg)" "$rack lvm/7" && is "$(sm devices rebuild --format table)" 'nothing to change' &&
    sm devices why /dev/sdg --format table | grep -q "FAILED (adoptable) .*, made for lvm/7 of layout $rack" &&
    fails_with EBUSY sm devices claim /dev/sdg --layout rack1 --class lvm --index 6 && grep -q "made for $rack lvm/7" "$SCRATCH/stderr" || return
  # Of an installed layout, it gets its claim again.
  sm devices claim /dev/sdh && layout rack1 $rack && is "$(owner /dev/sdg)" "$rack lvm/7" && sm devices rebuild --format table &&
    is "$(state /dev/sdg)" claimed && is "$(owner /dev/sdg)" "rack1 lvm/7, SR $SR" && is "$(sm devices rebuild --format table)" 'nothing to change' || return
  # sr_delete by hand leaves what a layout reserved.
  fails_with EBUSY sm devices release /dev/sdg && sm sr_delete -t lvm -d /dev/sdg $SR && is "$(owner /dev/sdg)" "rack1 lvm/7, SR $SR" &&
    sm devices release /dev/sdg && is "$(state /dev/sdg)" free && sm devices release /dev/sdh && rm $CLAIMS /var/lib/sm/layouts/rack1.layout
}
claim 'an SR of a slot is adoptable without a claim, and gets the claim of an installed layout again' adoptable

stale() {
  sm sr_create -t lvm -d /dev/sdg $SR && wipefs -qaf /dev/sdg && dd if=/dev/zero of=/dev/sdg bs=1M status=none 2> /dev/null
  # The medium says that nobody is on it.
  is "$(state /dev/sdg)" claimed && sm sr_create -t lvm -d /dev/sdg $OTHER && is "$(owner /dev/sdg)" "SR $OTHER" &&
    sm sr_delete -t lvm -d /dev/sdg $OTHER
}
claim 'a claim of sr_create counts no more than what the medium holds' stale

killed() {
  local call n status kills=0
  for call in linkat renameat fsync; do
    for n in 1 2 3 4; do
      status=0
      strace -qq -e trace=$call -e inject=$call:signal=KILL:when=$n -o /dev/null "$BIN/sm" sr_create -t lvm -d /dev/sdg $SR || status=$?
      [ $status != 0 ] || break
      kills=$((kills + 1))
      echo "$call $n: $(sm devices --format table | grep '^/dev/sdg ')"
      # The claims are those of before or after, and nobody else is kept from anything.
      sm devices why /dev/sdg > /dev/null && { may_be EEXIST sm sr_create -t lvm -d /dev/sdg $SR || [ "${SAID%%:*}" = EEXIST ]; } &&
        sm devices rebuild && is "$(owner /dev/sdg)" "SR $SR" && sm sr_delete -t lvm -d /dev/sdg $SR && is "$(state /dev/sdg)" free || return
    done
    [ $status != 0 ] || sm sr_delete -t lvm -d /dev/sdg $SR || return
  done
  [ $kills -ge 4 ] || { echo "$kills kills"; return 1; }
}
claim 'a kill around the claim leaves claims that can be read, and the same call goes on' killed

gone() {
  sm sr_create -t lvm -d /dev/sdg $SR && echo 1 > /sys/block/sdg/device/delete && is "$(state /dev/sdg)" missing && is "$(owner /dev/sdg)" "SR $SR" &&
    sm devices rebuild && is "$(state /dev/sdg)" missing && sm devices release "$(identity /dev/sdg)" && is "$(state /dev/sdg)" ''
}
claim 'a claimed medium that is absent is missing, and stays claimed until it is released' gone

twins() {
  local config=/sys/kernel/config/target n
  modprobe -a target_core_mod target_core_file tcm_loop && mount -t configfs c /sys/kernel/config
  mkdir -p $config/core/fileio_0/d0 || return
  truncate -s 20M /tmp/lun
  echo fd_dev_name=/tmp/lun,fd_dev_size=20971520 > $config/core/fileio_0/d0/control
  echo 1a1ab1e0-0000-4000-8000-000000000000 > $config/core/fileio_0/d0/wwn/vpd_unit_serial
  echo 1 > $config/core/fileio_0/d0/enable
  for n in 1 2; do
    mkdir -p $config/loopback/naa.600140500000000$n/tpgt_1 || return
    echo naa.600140500000001$n > $config/loopback/naa.600140500000000$n/tpgt_1/nexus
    mkdir $config/loopback/naa.600140500000000$n/tpgt_1/lun/lun_0
    ln -s $config/core/fileio_0/d0 $config/loopback/naa.600140500000000$n/tpgt_1/lun/lun_0/d
  done
  for n in {1..100}; do [ "$(cat /sys/block/sd*/device/vendor | grep -c LIO)" = 2 ] && break; sleep 0.1; done
  # shellcheck disable=SC2046 # names of devices have no spaces
  set -- $(grep -l LIO /sys/block/sd*/device/vendor | cut -d / -f 4)
  is "$(state "/dev/$1")" duplicate && is "$(state "/dev/$2")" duplicate && fails_with EBUSY sm sr_create -t lvm -d "/dev/$1" $OTHER &&
    grep -q "/dev/$2 shows the same medium" "$SCRATCH/stderr"
}
claim 'a medium that two devices show is of no use' twins
summary
