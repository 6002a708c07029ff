#!/bin/bash
# SMBSR as xapi calls it, on a share of a Samba server: every fault of the error table, secrets, and what sr_probe lists.
# guest: uml
# needs: cifs loop ext4
# tools: smbd smbpasswd mount.cifs mkfs.ext4 python3
# bins: sm
# memory: 1024
# disks: 128M
# takes: 60
set -u
# shellcheck source=/dev/null
. "$ROOT/tests/guest/smb.inc"
serve_disks || exit
note_arguments
status=0
keys="{\"username\": \"nobody\", \"password\": \"${PASSWORD//\"/\\\"}\"}"
(cd "$ROOT/tests/smapiv1" && SMB_SHARE=//127.0.0.1/disks SMB_KEYS=$keys SMB_DIR=$SRV python3 -B -m unittest -v test_smb) ||
  status=1
claim 'no argument of mount.cifs was a password' sh -c "grep -q username=nobody $SCRATCH/arguments && ! grep hunter $SCRATCH/arguments"
claim 'no mount is left' sh -c '! grep " cifs " /proc/mounts'
stop
summary && exit $status
