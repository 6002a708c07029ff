#!/bin/bash
# Files that are removed while a process has them open: NFS keeps them as .nfsXXXX, and their directory with them.
# guest: uml
# needs: nfsd nfs loop ext4
# tools: rpc.nfsd rpc.mountd rpcbind mount.nfs mkfs.ext4
# bins: sm
# memory: 1024
# disks: 256M
# takes: 45
set -u
# shellcheck source=/dev/null
. "$ROOT/tests/guest/nfs.inc"
serve
MNT=$SCRATCH/mnt
ROUNDS=6

one_version() { # version path
  local dconf="((server . \"127.0.0.1\") (serverpath . \"$2\") (nfsversion . \"$1\") (mountpoint . \"$MNT\"))"
  run() { local verb=$1; shift; sm "$verb" -t nfs -d "$dconf" "$SR" "$@"; }
  empty() { ! find "$SRV/$SR" \( -name '.nfs*' -o -name '.tmp-*' -o -name '*.lock' \) | grep .; }
  V=$(vdi 1)
  echo "# version $1"
  claim 'sr_create' run sr_create
  claim 'sr_attach' run sr_attach

  # A reader has the state of the lock open that vdi_unlock replaces, then vdi_delete removes.
  run vdi_create "$V" 4 --type raw && run vdi_lock "$V" FALSE u
  exec 7< "$MNT/$SR/$V.lock/1"
  claim 'vdi_unlock while another process reads the lock' run vdi_unlock "$V" FALSE u
  claim '  its old state is an .nfsXXXX now' on_server '.nfs*'
  claim 'vdi_delete then' run vdi_delete "$V"
  claim '  again' run vdi_delete "$V"
  claim '  nothing has the name' sh -c "! ls $SRV/$SR | grep '^$V'"
  claim '  the name can be taken again' run vdi_create "$V" 4 --type raw
  claim '  and locked' run vdi_lock "$V" FALSE u
  claim 'sr_attach while the old lock is open' run sr_attach
  claim '  and the new one is held' fails_with EVDIBUSY run vdi_delete "$V"
  exec 7<&-
  claim 'sr_attach removes what was put aside' sh -c "sm sr_attach -t nfs -d '$dconf' $SR; ! ls -A $SRV/$SR | grep '^\.tmp-\|^\.nfs'"
  run vdi_unlock "$V" FALSE u
  exec 7< "$MNT/$SR/$V.lock/2" 8< "$MNT/$SR/$V.raw"
  claim 'vdi_delete while the disk and its lock are open' run vdi_delete "$V"
  exec 7<&- 8<&-

  # sr_delete: a process has a lock's state open.
  run vdi_create "$V" 4 --type raw && run vdi_lock "$V" FALSE u && run vdi_unlock "$V" FALSE u
  exec 7< "$MNT/$SR/$V.lock/2"
  run vdi_lock "$V" FALSE u && run vdi_unlock "$V" FALSE u
  claim 'sr_delete while a lock is open says that the mount is in use' fails_with EBUSY run sr_delete --yes
  exec 7<&-
  claim '  and is done when it is closed' run sr_delete --yes
  claim '  leaving nothing' sh -c "! ls $SRV | grep -v lost+found"

  run sr_create && run sr_attach
  four() {
    local i n failed=0 pids=()
    (while :; do run sr_scan; run sr_get_params; done > "$SCRATCH/scan" 2>&1) &
    local scans=$!
    for i in 1 2 3 4; do
      (
        for ((n = 1; n <= ROUNDS; n++)); do
          V=$(vdi "$i")
          run vdi_create "$V" 4 --type raw && run vdi_lock "$V" FALSE u && run vdi_get_params "$V" > /dev/null &&
            run vdi_unlock "$V" FALSE u && run vdi_delete "$V" || exit 1
        done
      ) &
      pids+=($!)
    done
    for i in "${pids[@]}"; do wait "$i" || failed=1; done
    kill $scans
    wait $scans
    return $failed
  }
  claim "$((4 * ROUNDS)) times create, lock, unlock, delete while others list" four
  claim '  no call was told of an error' sh -c "! grep -i 'EIO\|EBUSY\|ESTALE' $SCRATCH/scan"
  run sr_attach
  claim '  nothing is left' empty
  run sr_detach
  claim 'sr_delete' run sr_delete --yes
}
one_version 3 "$SRV"
one_version 4.2 /
claim 'nothing is left on the export' sh -c "! ls $SRV | grep -v lost+found"
stop_serving
summary
