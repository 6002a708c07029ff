#!/bin/bash
# The data path of VHD disks beside qemu-nbd's of equal qcow2 disks, as ratios: above 1 ours is faster.
#
#   benches/datapath.sh host|uml|qemu [SECONDS]
#
#   host  FUSE and a loop device; beside them qemu-storage-daemon's FUSE export and a loop device
#   uml, qemu  in a guest that has nbd; beside them qemu-nbd -c
#
# Each pair is measured in turns, three times, and the better of each taken: other work on the machine slows both.
# Chains of 1 and of 10: a disk of 512 MiB whose data lies spread over all images of the chain. Direct I/O, page
# cache of the images warm. Needs root, fio, qemu-utils, and target/release/examples/datapath.
set -eu
here=$(realpath "$(dirname "$0")/..")
kind=${1:-host} seconds=${2:-2}
tool=$here/target/release/examples/datapath
[ -x "$tool" ] || { echo "no $tool: cargo build --release --example datapath" >&2; exit 1; }

if [ "$kind" != host ] && [ -z "${IN_GUEST:-}" ]; then
  share=$(mktemp -d)
  trap 'rm -rf "$share"' EXIT
  { echo "export IN_GUEST=y PATH=$PATH CHAINS='${CHAINS:-}'"; echo "exec '$here/benches/datapath.sh' $kind $seconds"; } > "$share/script"
  # shellcheck disable=SC2097,SC2098 # for the runner
  T=3000 MEM=6144 PASS=ROOT ROOT=$here "$here/tests/guest/run" "$kind" "$share/script" "$share"
  exit
fi

modprobe -aq nbd loop fuse ext4 2> /dev/null || :
dir=$(mktemp -d)
export XCP_SM_RUN_DIR=$dir/run XCP_SM_DATAPATH
end() {
  detach_all
  rm -rf "$dir"
}
detach_all() {
  "$tool" list | while read -r _ _ _ image; do "$tool" detach "$image" || :; done
  [ "$kind" = host ] || qemu-nbd -d /dev/nbd9 > /dev/null 2>&1 || :
  [ -z "${qsd_loop:-}" ] || losetup -d "$qsd_loop" 2> /dev/null || :
  [ -z "${qsd:-}" ] || { kill "$qsd" 2> /dev/null; wait "$qsd" 2> /dev/null; } || :
  qsd='' qsd_loop=''
}
trap end EXIT

ours() { XCP_SM_DATAPATH=$1 "$tool" attach "$dir/$2.vhd"; }
theirs_nbd() { qemu-nbd -c /dev/nbd9 --fork "$dir/$1.qcow2" > /dev/null; echo /dev/nbd9; }
theirs_fuse() {
  : > "$dir/mnt"
  qemu-storage-daemon --blockdev driver=qcow2,node-name=q,file.driver=file,file.filename="$dir/$1.qcow2" \
    --export type=fuse,id=e,node-name=q,mountpoint="$dir/mnt",writable=on,allow-other=off &
  qsd=$!
  for _ in $(seq 100); do grep -q "$dir/mnt" /proc/mounts && break; sleep 0.05; done
  qsd_loop=$(losetup -f --show --direct-io=on "$dir/mnt")
}

SIZE=$((512 << 20))
# A chain: every image gets each n-th stretch of 64 KiB of each 640 KiB; the leaf is last.
build() { # name images
  local name=$1 images=$2 n parent_v='' parent_q=''
  for ((n = 1; n <= images; n++)); do
    local file=$name.$n
    [ "$n" -lt "$images" ] || file=$name
    "$tool" create "$dir/$file.vhd" $SIZE ${parent_v:+"$parent_v"} > /dev/null
    qemu-img create -q -f qcow2 ${parent_q:+-b "$parent_q" -F qcow2} "$dir/$file.qcow2" $SIZE
    for device in "$(ours fuse "$file")" qcow2; do
      if [ "$device" = qcow2 ]; then
        if [ "$kind" = host ]; then theirs_fuse "$file"; device=$qsd_loop; else device=$(theirs_nbd "$file"); fi
      fi
      fio --name=fill --filename="$device" --rw=write --bs=64k --zonemode=strided --zonesize=64k --zonerange=$((images * 64))k \
        --offset=$(((n - 1) * 64))k --io_size=$((SIZE / images)) --direct=1 --ioengine=psync --output=/dev/null 2> /dev/null ||
        { echo "cannot fill $device" >&2; exit 1; }
    done
    detach_all
    parent_v=$dir/$file.vhd parent_q=$dir/$file.qcow2
  done
}

measure() { # device rw bs depth: KiB/s
  fio --name=m --filename="$1" --rw="$2" --bs="$3" --iodepth="$4" --ioengine=libaio --direct=1 --runtime="$seconds" --time_based \
    --randseed=1 --output-format=terse --terse-version=3 | awk -F';' '{ print $7 + $48 }'
}
better() { echo "$1 $2" | awk '{ print ($1 > $2) ? $1 : $2 }'; }

printf '%-8s %-6s %-10s %-4s %-6s %10s %10s %6s\n' chain ours rw bs depth KiB/s theirs ratio
for images in ${CHAINS:-1 10}; do
  build "c$images" $images
  transports=fuse
  [ "$kind" = host ] || transports='fuse nbd'
  for transport in $transports; do
    a=$(ours "$transport" c$images)
    if [ "$kind" = host ]; then theirs_fuse c$images; b=$qsd_loop; else b=$(theirs_nbd c$images); fi
    for rw in read randread write randwrite; do
      for bs in 4k 64k; do
        for depth in ${DEPTHS:-1 16}; do
          best_a=0 best_b=0
          for _ in 1 2 3; do
            best_a=$(better "$best_a" "$(measure "$a" $rw $bs "$depth")")
            best_b=$(better "$best_b" "$(measure "$b" $rw $bs "$depth")")
          done
          printf '%-8s %-6s %-10s %-4s %-6s %10s %10s %6s\n' $images "$transport" $rw $bs "$depth" "$best_a" "$best_b" \
            "$(echo "$best_a $best_b" | awk '{ printf "%.2f", $1 / $2 }')"
        done
      done
    done
    detach_all
  done
  # A guest's memory has room for one chain of each.
  rm -f "$dir"/c*
done
