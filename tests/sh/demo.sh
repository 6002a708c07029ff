#!/bin/bash
# The main job on a scratch directory, each command as one would type it.
set -euo pipefail
PATH=${BIN:?the directory of the executables}:$PATH

scratch=$(mktemp -d "${TMPDIR:-/tmp}/sm-demo.XXXXXX")
SR=87b8646b-b800-9500-cb7b-af3b74e02f5c
VDI=98de866e-b035-4b1a-a571-613bff542b89
CLONE=0b5a5d9e-6a5c-4a55-9d0d-1f0b8a4f2c11
SNAP=3f2b6a70-1c2d-4e8f-8a9b-7c6d5e4f3a2b
DCONF=$scratch/sr0
dev=

clean_up() {
    mountpoint -q "$scratch/mnt" && umount "$scratch/mnt"
    for vdi in $VDI $CLONE $SNAP; do
        sm vdi_detach -t file -d "$DCONF" $SR "$vdi" 2> /dev/null || true
    done
    sm sr_delete -t file -d "$DCONF" $SR --yes 2> /dev/null || true
    rm -rf "$scratch"
}
trap clean_up EXIT

say() { printf '\n# %s\n' "$*"; }
run() {
    printf '$'
    for word in "$@"; do
        case $word in *' '*) printf " '%s'" "$word" ;; *) printf ' %s' "$word" ;; esac
    done
    printf '\n'
    "$@"
}

attach() {
    echo "\$ dev=\$(sm vdi_attach -t file -d $DCONF $SR $1)"
    dev=$(sm vdi_attach -t file -d "$DCONF" $SR "$1")
}

say "An SR in a directory"
run sm sr_create -t file -d "$DCONF" $SR
run sm vdi_create -t file -d "$DCONF" $SR $VDI 64MiB --label 'root disk'
run sm vdi_get_params -t file -d "$DCONF" $SR $VDI

if [ "$(id -u)" = 0 ] && [ -e /dev/loop-control ]; then
    say "The VDI is a block device: put a filesystem and a file on it"
    attach $VDI
    run mkfs.ext4 -q -E nodiscard "$dev"
    run mkdir "$scratch/mnt"
    run mount "$dev" "$scratch/mnt"
    run cp /etc/os-release "$scratch/mnt/"
    say "It cannot be detached while it is mounted, and the error says why"
    if run sm vdi_detach -t file -d "$DCONF" $SR $VDI; then exit 1; fi
    run umount "$scratch/mnt"
    run sm vdi_detach -t file -d "$DCONF" $SR $VDI
else
    say "(Attaching wants root and loop devices; this run does without.)"
fi

say "A snapshot, a clone, more room"
run sm vdi_snapshot -t file -d "$DCONF" $SR $VDI $SNAP
run sm vdi_clone -t file -d "$DCONF" $SR $VDI $CLONE
run sm vdi_resize -t file -d "$DCONF" $SR $VDI 128MiB

if [ -n "$dev" ]; then
    say "The clone has the file"
    attach $CLONE
    run mount "$dev" "$scratch/mnt"
    run cmp /etc/os-release "$scratch/mnt/os-release"
    run umount "$scratch/mnt"
    run sm vdi_detach -t file -d "$DCONF" $SR $CLONE
fi

say "What is there now: for programs, and for people"
run sm sr_scan -t file -d "$DCONF" $SR --format sexp
run sm sr_scan -t file -d "$DCONF" $SR --format table

say "And gone"
run sm sr_delete -t file -d "$DCONF" $SR --yes
