#!/bin/bash
# NFSSR as xapi calls it, on a real server: every fault of the error table, and what sr_probe lists. Then a layout of exports:
# what is made, mounted otherwise, found elsewhere, kept and taken again.
# guest: uml
# needs: nfsd nfs loop ext4
# tools: rpc.nfsd rpc.mountd rpcbind mount.nfs mkfs.ext4 showmount python3
# bins: sm
# memory: 1024
# disks: 256M
# takes: 60
set -eu
# shellcheck source=/dev/null
. "$ROOT/tests/guest/nfs.inc"
serve
export BIN=$SCRATCH/bin
rmdir "$SRV/lost+found"
status=0
for export in "127.0.0.1:$SRV" 127.0.0.1:/; do
  echo "# $export"
  (cd "$ROOT/tests/smapiv1" && NFS_EXPORT=$export NFS_DIR=$SRV python3 -B -m unittest -v test_nfs) || status=1
done

# A layout of two exports.
hostname node1
MODEL=$SCRATCH/r.model
MNT=$SCRATCH/m
mkdir -p "$SRV/e0" "$SRV/e1"
# model PATTERN-OF-EXPORTS OPTION ADDRESS
model() {
  printf '%s\n' 'layout: r' 'uuid: 6ba7b810-9dad-11d1-80b4-00c04fd430c8' "addr: host=filer addr=$3" "nfs: host=filer dev=$1" \
    "attach: class=nfs path=$MNT/\$index options=$2" > "$MODEL"
}
empty() { is "$(sm plan -m "$MODEL" --format table)" 'layout r: nothing to change'; }
# uuid NAME: of the SR with this name
uuid() { sed -n 's/^UUID=//p' "/etc/sm/sr.d/$1.conf"; }
# mounted N: the options and the address of what is mounted for a slot
mounted() { grep " $MNT/$1[ /]" /proc/mounts; }

exports() {
  model '/e[0-1]' timeo=100 127.0.0.1
  sm apply -m "$MODEL" --yes > "$SCRATCH/said" && empty && mounted 0 | grep -q timeo=100 && mounted 1 > /dev/null &&
    [ -d "$SRV/e0/$(uuid r-nfs-0)" ] && [ -d "$SRV/e1/$(uuid r-nfs-1)" ]
}
claim 'a model makes an SR in each export, and the second plan is empty' exports

complies_applied() {
  local uuid
  uuid=$(uuid r-nfs-0)
  "$ROOT/tests/sh/test1.sh" -t nfs -d "((server . \"127.0.0.1\") (serverpath . \"/e0\") (mountpoint . \"$MNT/0\") (options . \"timeo=100\"))" \
    --sr "$uuid" -f raw --quick --without locks --without words --without errors --without many > "$SCRATCH/complies" ||
    { cat "$SCRATCH/complies"; return 1; }
  tail -n 1 "$SCRATCH/complies"
  is "$(sm sr_scan r-nfs-0 --format sexp | grep -c vdi)" 0 && empty
}
claim 'the compliance suite passes on an SR of the layout' complies_applied

otherwise() {
  sm vdi_create r-nfs-0 "$(vdi 1)" 8M --type raw --label web && sm vdi_import r-nfs-0 "$(vdi 2)" /bin/true --type raw &&
    model '/e[0-1]' timeo=200 127.0.0.1 && sm apply -m "$MODEL" --yes > "$SCRATCH/said" && grep -q detach "$SCRATCH/said" &&
    mounted 0 | grep -q timeo=200 && mounted 1 | grep -q timeo=200 && empty && sm vdi_get_params r-nfs-0/web > "$SCRATCH/said"
}
claim 'other mount options are detached and attached' otherwise

elsewhere() {
  model '/e[0-1]' timeo=200 127.0.0.2
  sm apply -m "$MODEL" --yes --format table > "$SCRATCH/said" && grep -q 'sm apply --resume --allow rewire r' "$SCRATCH/said" &&
    mounted 0 | grep -q '^127.0.0.1:' && sm apply --resume --allow rewire r --yes > "$SCRATCH/said" && mounted 0 | grep -q '^127.0.0.2:' &&
    empty && sm vdi_export r-nfs-0 "$(vdi 2)" "$SCRATCH/true.raw" && cmp -n "$(stat -c %s /bin/true)" /bin/true "$SCRATCH/true.raw"
}
claim 'another address of the server is taken when that is allowed' elsewhere

fewer() {
  local sr
  sr=$(uuid r-nfs-1)
  model /e0 timeo=200 127.0.0.2
  sm apply -m "$MODEL" --yes > "$SCRATCH/said" && [ -d "$SRV/e1/$sr" ] && ! mounted 1 && [ ! -e /etc/sm/sr.d/r-nfs-1.conf ] && empty
}
claim 'an export that goes is detached and keeps its SR' fewer

again() {
  local sr
  sr=$(uuid r-nfs-0)
  sm layout remove r --yes > "$SCRATCH/said" && ! mounted 0 && is "$(ls /etc/sm/sr.d)" '' && model '/e[0-1]' timeo=200 127.0.0.2 &&
    sm apply -m "$MODEL" --yes --format table > "$SCRATCH/said" && is "$(grep -c 'take SR' "$SCRATCH/said")" 2 && is "$(uuid r-nfs-0)" "$sr" &&
    sm vdi_get_params r-nfs-0/web > "$SCRATCH/said" && empty && sm layout remove r --yes --allow wipe > "$SCRATCH/said" &&
    rmdir "$SRV/e0" "$SRV/e1"
}
claim 'a removed layout takes its SRs again, and is removed with its data if that is allowed' again

claim 'no mount is left' sh -c '! grep " nfs4\? " /proc/mounts'
claim 'nothing is left on the export' sh -c "! ls $SRV | grep ."
stop_serving
summary && exit $status
