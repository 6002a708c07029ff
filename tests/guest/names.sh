#!/bin/bash
# What sm finds on a host without being told: volume groups and mounts, with a server that does not answer among them.
# guest: uml
# needs: nfsd nfs loop ext4 iptable_filter
# tools: rpc.nfsd rpc.mountd rpcbind mount.nfs mkfs.ext4 lvcreate iptables-legacy
# bins: sm
# memory: 1024
# disks: 128M 300M 300M
# takes: 40
set -u
# shellcheck source=/dev/null
. "$ROOT/tests/guest/nfs.inc"
serve
modprobe -a dm_mod iptable_filter xt_tcpudp 2> /dev/null
read -r _ ONE TWO <<< "$DISKS"
export XCP_SM_RUN_DIR=$SCRATCH/host
mkdir -p "$XCP_SM_RUN_DIR"

has() { grep -q -- "$1" <<< "$2"; }
listed() { has "(sr $1" "$(sm sr_list "${@:2}" | sed 's/(sr (/\n(sr (/g')"; }
named() { listed "(name . \"$1\") (uuid . \"$2\") (type . \"$3\") (state . \"$4\")"; }
unnamed() { listed "(uuid . \"$1\") (type . \"$2\") (state . \"$3\")"; }

LVM=$(sm sr_create --name volumes -t lvm -d "$ONE")
EXT=$(sm sr_create -t ext -d "$TWO")
NFS=$(sm sr_create --name far -t nfs -d "nfs@127.0.0.1:/@$SCRATCH/mnt")
claim 'an SR of volumes with a name is listed' named volumes "$LVM" lvm available
claim 'an ext SR without a name is found by its group' unnamed "$EXT" ext unavailable
claim 'an NFS SR that is not attached is listed so' named far "$NFS" nfs unavailable
claim 'the signature tells the type' sm sr_attach -d "$TWO" "$EXT"
claim 'an ext SR that is attached is available' unnamed "$EXT" ext available
claim 'one line attaches two SRs' sm sr_attach far volumes
claim 'an NFS SR that is attached is available' named far "$NFS" nfs available
VDI=$(sm vdi_create volumes 8M --label web)
claim 'a volume is called by its label' has "(uuid . \"$VDI\") (label . \"web\")" "$(sm vdi_get_params volumes/web)"
claim 'and attached and detached by it' sh -c 'sm vdi_attach volumes/web && sm vdi_detach volumes/web'

head -c 3000000 /dev/urandom > "$SCRATCH/data.raw"
truncate -s 8M "$SCRATCH/data.raw"
holds() { sm vdi_export "$1" "$SCRATCH/out.raw" 2> /dev/null && cmp "$SCRATCH/data.raw" "$SCRATCH/out.raw" && rm "$SCRATCH/out.raw"; }
sm vdi_import far "$SCRATCH/data.raw" --label data > /dev/null
claim 'a disk on NFS is copied to a volume' sm vdi_copy far/data volumes
claim 'and is the same there' holds volumes/data
claim 'a volume is copied to NFS, as a qcow2' sm vdi_copy volumes/data far --type qcow2 --label back
claim 'and is the same there' holds far/back
sm vdi_delete --yes volumes data
mv "$XCP_SM_RUN_DIR/sr.d/far.conf" "$SCRATCH/far.conf"
claim 'an NFS SR without a name is found by its mount' unnamed "$NFS" nfs available
mv "$SCRATCH/far.conf" "$XCP_SM_RUN_DIR/sr.d/far.conf"

iptables-legacy -I INPUT -p tcp --dport 2049 -j DROP
silent() { listed "(name . \"far\") (uuid . \"$NFS\") (type . \"nfs\") (state . \"\(no answer\|unavailable\)\")"; }
claim 'a server that is silent does not stop the list' within 12 silent
claim 'the others are listed beside it' within 12 named volumes "$LVM" lvm available
iptables-legacy -D INPUT -p tcp --dport 2049 -j DROP

claim 'sr_delete takes a name away' sm sr_delete --yes far
printed() { grep -q "remove the name volumes" <<< "$(sm sr_create again -n --destroy-sr volumes -t lvm -d "$ONE")"; }
claim 'a dry run says which name goes with a destroyed SR' printed
claim 'an SR is destroyed by its name' sm sr_create again --destroy-sr volumes -t lvm -d "$ONE"
claim 'its name is gone with it' sh -c '! sm sr_list | grep -q volumes'
claim 'the new SR is there' listed '(name . "again")'
sm sr_delete --yes again
claim 'nothing of them is listed' sh -c '! sm sr_list | grep -q name'
sm sr_detach -d "$TWO" "$EXT"
sm sr_delete -t ext -d "$TWO" "$EXT"

in_lvhd="((device . \"$TWO\") (lvhd . \"true\"))"
RAW=$(sm sr_create -t lvmraw -d "$ONE")
LVHD=$(sm sr_create -t lvm -d "$in_lvhd")
seen_once() { [ "$(sm sr_list | grep -o "(uuid . \"$1\")" | wc -l)" = 1 ]; }
once() { seen_once "$1" && unnamed "$1" "$2" available; }
probed() { has "(uuid . \"$3\").*(type . \"$4\")" "$(sm sr_probe ${1:+-t "$1"} -d "$2")"; }
nothing() { [ "$(sm sr_probe -t "$1" -d "$2")" = '(srs)' ]; }
says() { fails_with "$1" "${@:3}" && grep -q -- "$2" "$SCRATCH/stderr"; }
claim 'the raw group is of type lvmraw' once "$RAW" lvmraw
claim 'the LVHD group is of type lvm' once "$LVHD" lvm
claim 'sr_probe of type lvmraw finds the raw group' probed lvmraw "$ONE" "$RAW" lvmraw
claim 'sr_probe of type lvm, which serves it, tells its type' probed lvm "$ONE" "$RAW" lvmraw
claim 'sr_probe of type lvmraw finds no LVHD group' nothing lvmraw "$TWO"
claim 'type lvmraw refuses the LVHD group, and names the driver' says EPERM 'type lvm (LVMSR)' sm sr_attach -t lvmraw -d "$TWO" "$LVHD"
claim 'nor does it delete that' says EPERM 'type lvm (LVMSR)' sm sr_delete --yes -t lvmraw -d "$TWO" "$LVHD"
claim 'it makes none' says EINVAL 'lvhd is a key of lvm,' sm sr_create -t lvmraw -d "$in_lvhd"
claim 'without -t an SR is attached by its type' sm sr_attach --name raw -d "$ONE"
claim 'and listed by it' named raw "$RAW" lvmraw available
sm sr_name raw --forget > /dev/null
claim 'type lvm serves it, as it did before' sm sr_attach --name raw -t lvm -d "$ONE"
claim 'the table has that type' named raw "$RAW" lvm available
claim 'it is listed once' seen_once "$RAW"
by_both() { sm vdi_create raw 8M --label a > /dev/null && sm vdi_delete --yes -t lvmraw -d "$ONE" "$RAW" a; }
claim 'disks are made and deleted by both' by_both
last() { sm sr_delete --yes raw && sm sr_delete --yes -t lvm -d "$TWO" "$LVHD"; }
claim 'the last SRs are deleted' last
stop_serving
summary
