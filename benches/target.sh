#!/bin/bash
# What `sm target publish` costs beside the kernel's own work: the median of a call, and of the same changes of configfs made by a
# program that does nothing else and times them from within. The two are measured by turns, so that whatever else the machine does
# meets both. The limit is that of a publication beyond the kernel's work, without attaching the disk, which has its own line.
# Wants a kernel with a target:
#
#   ROOT=$PWD BIN=… SCRATCH=/tmp PASS='ROOT BIN SCRATCH' tests/guest/run uml benches/target.sh SHARE_DIR
#
# environment: N calls of a kind (15), LIMIT milliseconds (20)
set -eu
# shellcheck source-path=SCRIPTDIR/../tests/guest source=claims.inc
. "$ROOT/tests/guest/claims.inc"
N=${N:-15} LIMIT=${LIMIT:-20}
ME=iqn.2003-01.org.example:host1
modprobe -a loop sd_mod
mkdir -p /srv/fs
truncate -s 512M /srv/fs.img && mkfs.ext4 -q /srv/fs.img && mount -o loop /srv/fs.img /srv/fs
sm() { "$BIN/sm" "$@"; }
sm sr_create --name fast -t file -d /srv/fs/sr "$SR"
uuid() { printf '%08x-0000-4000-8000-000000000000' "$1"; }
took() { local start=${EPOCHREALTIME/[.,]/}; "$@" > /dev/null && echo $((${EPOCHREALTIME/[.,]/} - start)); }
median() { sort -n "$1" | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] / 1000 }'; }
cat > "$SCRATCH/bare.py" << 'END'
import os, sys, time
device, name, me = sys.argv[1:]
C = "/sys/kernel/config/target"
def put(path, value):
    with open(path, "w") as file:
        file.write(value)
start = time.monotonic_ns()
core, iqn = C + "/core/iblock_900", C + "/iscsi/iqn.2003-01.org.example:" + name
disk, group = core + "/" + name, iqn + "/tpgt_1"
for path in core, disk:
    os.mkdir(path)
put(disk + "/alias", "bare")
put(disk + "/control", "udev_path=" + device + ",readonly=0")
put(disk + "/udev_path", device)
put(disk + "/enable", "1")
put(disk + "/wwn/vpd_unit_serial", name)
for path in iqn, group:
    os.mkdir(path)
for attribute, value in ("generate_node_acls", "0"), ("demo_mode_discovery", "0"), ("authentication", "0"):
    put(group + "/attrib/" + attribute, value)
os.mkdir(group + "/lun/lun_1")
os.symlink(disk, group + "/lun/lun_1/it")
acl = group + "/acls/" + me
for path in acl, acl + "/lun_1":
    os.mkdir(path)
os.symlink(group + "/lun/lun_1", acl + "/lun_1/it")
put(acl + "/lun_1/write_protect", "0")
os.mkdir(group + "/np/127.0.0.1:3261")
put(group + "/enable", "1")
print((time.monotonic_ns() - start) // 1000)
put(group + "/enable", "0")
os.unlink(acl + "/lun_1/it")
os.unlink(group + "/lun/lun_1/it")
for path in acl + "/lun_1", acl, group + "/lun/lun_1", group + "/np/127.0.0.1:3261", group, iqn, disk, core:
    os.rmdir(path)
END
for ((i = 0; i <= N; i++)); do sm vdi_create fast "$(uuid $i)" 1M --type raw > /dev/null; done
published() { sm target publish "fast/$1" --to $ME --portal 127.0.0.1 --no-auth; }
# The first loads modules.
published "$(uuid 0)" > /dev/null
for kind in publish again bare attach lock start; do : > "$SCRATCH/$kind"; done
for ((i = 1; i <= N; i++)); do
  vdi=$(uuid $i)
  took sm vdi_attach "fast/$vdi" >> "$SCRATCH/attach"
  device=$(sm vdi_get_params "fast/$vdi" --format json | sed -n 's/.*"device": *"\([^"]*\)".*/\1/p')
  python3 "$SCRATCH/bare.py" "$device" "$vdi" $ME >> "$SCRATCH/bare"
  sm vdi_detach "fast/$vdi"
  took sm vdi_lock "fast/$vdi" FALSE me >> "$SCRATCH/lock"
  sm vdi_unlock "fast/$vdi" FALSE me
  took published "$vdi" >> "$SCRATCH/publish"
  took published "$vdi" >> "$SCRATCH/again"
  took sm --version >> "$SCRATCH/start"
done
line() { printf '%-66s %8.1f ms\n' "$1" "$(median "$SCRATCH/$2")"; }
line 'sm target publish, iSCSI' publish
line 'sm target publish of what is published' again
line 'the same changes of configfs, by a program that does nothing else' bare
line 'sm vdi_attach' attach
line 'sm vdi_lock' lock
line 'sm --version: a program that starts' start
awk -v all="$(median "$SCRATCH/publish")" -v bare="$(median "$SCRATCH/bare")" -v attach="$(median "$SCRATCH/attach")" -v limit="$LIMIT" 'BEGIN {
  rest = all - bare - attach
  printf "%-66s %8.1f ms  %s, limit %s ms\n", "publish beyond the kernel and vdi_attach", rest, rest <= limit ? "ok" : "MISSED", limit }'
for ((i = 0; i <= N; i++)); do sm target unpublish "fast/$(uuid $i)"; done
sm sr_delete --yes fast > /dev/null
