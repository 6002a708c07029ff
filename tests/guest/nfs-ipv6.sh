#!/bin/bash
# A server that has IPv6 addresses: as an address, as a link-local one, as a name; and mount options of existing PBDs.
# guest: uml
# needs: nfsd nfs loop ext4 ipv6
# tools: rpc.nfsd rpc.mountd rpcbind mount.nfs mkfs.ext4 python3
# bins: sm
# memory: 1024
# disks: 256M
# takes: 65
set -u
modprobe ipv6 2> /dev/null
# shellcheck source=/dev/null
. "$ROOT/tests/guest/nfs.inc"
ln -sf "$BIN/sm" "$SCRATCH/bin/ISOSR"
ip addr add ::1/128 dev lo 2> /dev/null
ip addr add fe80::1/64 dev lo nodad
{ cat /etc/hosts; echo '::1 filer6'; printf '127.0.0.1 both\n::1 both\n'; } > "$SCRATCH/hosts"
mount --bind "$SCRATCH/hosts" /etc/hosts
serve
MNT=$SCRATCH/mnt
V=$(vdi 1)
has() { grep -q -- "$1" <<< "$2"; }
mounted_as() { grep " $MNT/$SR nfs" /proc/mounts | grep -q -- "$1"; }
# round DCONF PATTERN: all that there is to an SR, and what the mount table says meanwhile.
round() {
  local dconf=$1 device
  run() { local verb=$1; shift; sm "$verb" -t nfs -d "$dconf" "$SR" "$@"; }
  run sr_create && run sr_attach && mounted_as "$2" && run sr_attach && run vdi_create "$V" 4 --type raw &&
    run vdi_lock "$V" FALSE u && run vdi_unlock "$V" FALSE u && device=$(run vdi_attach "$V") &&
    dd if=/dev/urandom of="$device" bs=1M count=4 conv=fsync status=none && cmp "$device" "$SRV/$SR/$V.raw" &&
    run vdi_detach "$V" && run sr_detach && has "$SR" "$(sm sr_probe -t nfs -d "$dconf")" && run sr_attach &&
    run sr_detach && run sr_delete --yes
}
keys() { # server path version [more]
  echo "((server . \"$1\") (serverpath . \"$2\") (nfsversion . \"$3\") (mountpoint . \"$MNT\") ${4-})"
}

claim 'nfs@[::1]:/' round "nfs@[::1]:/@$MNT" 'proto=tcp6'
for server in ::1 '[::1]' fe80::1%lo filer6; do
  claim "server $server, version 3" round "$(keys "$server" "$SRV" 3)" 'vers=3,.*proto=tcp6'
  claim "server $server, version 4" round "$(keys "$server" / 4)" 'vers=4.*proto=tcp6'
done
claim 'a name with addresses of both kinds' round "$(keys both / 4)" 'vers=4'
claim 'IPv4 as ever' round "$(keys 127.0.0.1 "$SRV" 3)" 'vers=3,.*proto=tcp,'
claim 'an interface that is not there: ENODEV' fails_with ENODEV sm sr_create -t nfs -d "nfs@[fe80::1%eth9]:/@$MNT" "$SR"
claim '  which says so' grep -q 'no interface eth9' "$SCRATCH/stderr"
stop_nfsd
claim 'a server that is gone: ENODEV' fails_with ENODEV sm sr_create -t nfs -d "nfs@[::1]:/@$MNT" "$SR"
start_nfsd

echo '# mount options'
round_with() { round "$(keys 127.0.0.1 / 4 "(options . \"$1\")")" "$2"; }
claim 'hard, timeo, _netdev' round_with 'hard,timeo=300,retrans=3,_netdev,proto=tcp' 'hard.*timeo=300,retrans=3'
claim 'soft and bg are replaced' round_with 'soft,bg' ',hard,'
claim 'vers chooses the version' round_with 'vers=4.1' 'vers=4.1'
claim 'nfsvers counts more than nfsversion' round_with 'nfsvers=4.0' 'vers=4.0'
dconf=$(keys 127.0.0.1 / 4)
claim 'sr_create' sm sr_create -t nfs -d "$dconf" "$SR"
mkdir -p "$MNT/$SR"
touch "$MNT/$SR/below"
for odd in '(options . "x=\"")' '(options . "vers=9")' '(nfsversion . "9")' '(options . "remount")'; do
  with="((server . \"127.0.0.1\") (serverpath . \"/\") (mountpoint . \"$MNT\") $odd)"
  claim 'sr_attach' sm sr_attach -t nfs -d "$dconf" "$SR"
  claim "sr_detach with $odd" sm sr_detach -t nfs -d "$with" "$SR"
  claim '  nothing is mounted, though its mountpoint stays' sh -c "! grep ' $MNT' /proc/mounts && [ -e $MNT/$SR/below ]"
  claim '  again' sm sr_detach -t nfs -d "$with" "$SR"
  claim '  sr_attach with them: EINVAL' fails_with EINVAL sm sr_attach -t nfs -d "$with" "$SR"
done
rm -r "${MNT:?}/$SR"
claim 'sr_delete' sm sr_delete -t nfs -d "$dconf" "$SR" --yes
claim 'an empty value is said to be empty' fails_with EINVAL sm sr_create -t nfs -d "((server . \"\") (serverpath . \"/\"))" "$SR"
claim '  not missing' grep -q 'the key server of device_config has an empty value' "$SCRATCH/stderr"

echo '# CDs'
head -c 1M /dev/urandom > "$SRV/x.iso"
cd_on() {
  local dconf=$1 iso device
  sm sr_create -t iso -d "$dconf" "$SR" && sm sr_attach -t iso -d "$dconf" "$SR" &&
    iso=$(sm sr_scan -t iso -d "$dconf" "$SR" | sed 's/.*VDIs "\([^"]*\)").*/\1/') &&
    device=$(sm vdi_attach -t iso -d "$dconf" "$SR" "$iso") && cmp "$SRV/x.iso" "$device" &&
    sm vdi_detach -t iso -d "$dconf" "$SR" "$iso" && sm sr_detach -t iso -d "$dconf" "$SR"
}
claim 'a CD on nfs@[::1]' cd_on "nfs@[::1]:/@$MNT"
claim 'a CD with the options of an existing PBD' cd_on "((location . \"[::1]:$SRV\") (options . \"-o vers=3 -o hard,ro\") (mountpoint . \"$MNT\"))"
rm "$SRV/x.iso"
claim 'nothing is left on the export' sh -c "! ls $SRV | grep -v lost+found"
stop_serving
summary
