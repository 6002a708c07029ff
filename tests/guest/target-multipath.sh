#!/bin/bash
# sm target: one disk by two portals and dm-multipath; paths are lost while it is written; two initiators at the same time.
# guest: uml
# bins: sm
# memory: 512
# takes: 40
# tools: iscsiadm iscsid mkfs.ext4 multipathd multipath udevadm iptables-legacy
# Names have no blanks; a command before && fails only where the claim has failed.
# shellcheck disable=SC2015
set -u
# shellcheck source-path=SCRIPTDIR source=claims.inc
. "$ROOT/tests/guest/claims.inc"
# shellcheck source-path=SCRIPTDIR source=target.inc
. "$ROOT/tests/guest/target.inc"
modprobe -a loop sd_mod iscsi_tcp dm_mod dm_multipath dm_service_time dm_round_robin iptable_filter
mkdir -p /srv/fs /run/multipath
RAW=1a11866e-b035-4b1a-a571-000000000001
truncate -s 256M /srv/fs.img && mkfs.ext4 -q /srv/fs.img && mount -o loop /srv/fs.img /srv/fs
sm sr_create --name fast -t file -d /srv/fs/sr "$SR" || exit 1
sm vdi_create fast "$RAW" 64M --type raw --label raw
cat > /etc/multipath.conf << 'END'
defaults {
  find_multipaths no
  user_friendly_names no
  polling_interval 1
  max_polling_interval 1
  no_path_retry 30
  path_grouping_policy multibus
}
blacklist { devnode "^(loop|ubd|ram)" }
END
unset DM_DISABLE_UDEV
/lib/systemd/systemd-udevd --daemon && udevadm trigger --action=add && udevadm settle
multipathd
MAP=/dev/mapper/3600140511a11866eb0354b1aa571000

within_tries() { # TEXT COMMAND…: it succeeds some day
  local n text=$1
  shift
  for n in {1..300}; do "$@" && return; sleep 0.1; done
  echo "$text, for $n tries"
  multipath -ll
  return 1
}
paths() { [ "$(multipathd show paths format '%d %t' | grep -c '^sd.* active')" = "$1" ]; }
has_map() { MAP=$(echo /dev/mapper/36001405*) && [ -b "$MAP" ]; }
lost() { iptables-legacy -I INPUT -p tcp -d "$1" --dport 3260 -j DROP; }
found() { iptables-legacy -D INPUT -p tcp -d "$1" --dport 3260 -j DROP; }
written() { # FROM-MEGABYTE: while a path is lost, 16 MB
  dd if="$SCRATCH/data" of="$MAP" bs=64k count=256 skip=$(($1 * 16)) seek=$(($1 * 16)) oflag=direct conv=notrunc status=none
}
digest() { # of what the SR has
  local disk
  disk=$(sm vdi_attach fast/raw) && sha256sum < "$disk" && sm vdi_detach fast/raw
}

two_paths() {
  local writer
  sm target publish fast/raw --to $ME --portal 127.0.0.1 --portal 127.0.0.2 --no-auth > /dev/null || return
  initiator $ME
  login "$RAW" && login "$RAW" 127.0.0.2 && within_tries 'no map' has_map && within_tries 'not two paths' paths 2 || return
  head -c 64M /dev/urandom > "$SCRATCH/data"
  written 0 || return
  lost 127.0.0.2
  written 16 || { echo 'written by one path'; return 1; }
  within_tries 'two paths' paths 1 || return
  found 127.0.0.2
  within_tries 'the second path is away' paths 2 || return
  lost 127.0.0.1
  written 32 & writer=$!
  # Both are away for a moment: the writer waits.
  lost 127.0.0.2
  within_tries 'a path' paths 0 || return
  found 127.0.0.1
  found 127.0.0.2
  wait $writer || { echo 'written after both were away'; return 1; }
  written 48 && within_tries 'not two paths' paths 2 || return
  fails_with EVDIBUSY sm target unpublish fast/raw || return
  multipath -f "${MAP##*/}" && iscsiadm -m session -u > /dev/null && sm target unpublish fast/raw || return
  is "$(digest)" "$(sha256sum < "$SCRATCH/data")"
}
claim 'a disk by two portals is written while its paths are lost, one by one and both' two_paths

two_initiators() {
  sm target publish fast/raw --to $ME --portal 127.0.0.1 --portal 127.0.0.2 --no-auth --shared > /dev/null &&
    sm target publish fast/raw --to $OTHER --no-auth > /dev/null || return
  initiator $ME
  iscsiadm -m iface -I other -o new > /dev/null && iscsiadm -m iface -I other -o update -n iface.initiatorname -v $OTHER > /dev/null &&
    iscsiadm -m iface -I other -o update -n iface.transport_name -v tcp > /dev/null || return
  login "$RAW" && iscsiadm -m node -o new -T "$(target_of "$RAW")" -p 127.0.0.2:3260 -I other > /dev/null &&
    iscsiadm -m node -T "$(target_of "$RAW")" -p 127.0.0.2:3260 -I other --login > /dev/null || return
  within_tries 'no map' has_map && within_tries 'not two paths' paths 2 || return
  [ "$(sm target show fast/raw --format table | grep -c '(logged in)')" = 2 ] || { sm target show fast/raw --format table; return 1; }
  head -c 64M /dev/urandom > "$SCRATCH/data"
  written 0 && sm target unpublish fast/raw --to $OTHER --force && written 16 && written 32 && written 48 || return
  within_tries 'two paths' paths 1 || return
  multipath -f "${MAP##*/}"
  iscsiadm -m session -u > /dev/null
  sm target unpublish fast/raw && is "$(digest)" "$(sha256sum < "$SCRATCH/data")"
}
claim 'two initiators at the same time; one loses the disk, and the other writes on' two_initiators
pkill -x multipathd
summary
