#!/bin/bash
# The compliance suite for the SMB driver on a share of a Samba server. What is refused for its words alone, `make check` shows on
# a file SR; with LONG=y here as well.
# guest: uml
# needs: cifs loop ext4
# tools: smbd smbpasswd mount.cifs mkfs.ext4
# bins: sm
# memory: 1024
# disks: 1G
# takes: 90
set -u
# shellcheck source=/dev/null
. "$ROOT/tests/guest/smb.inc"
# shellcheck source-path=SCRIPTDIR source=compliance.inc
. "$ROOT/tests/guest/compliance.inc"
serve_disks || exit
printf 'username=nobody\npassword=%s\n' "$PASSWORD" > "$SCRATCH/credentials"
chmod 600 "$SCRATCH/credentials"
status=0
complies words -t smb -d "((server . \"//127.0.0.1/disks\") (credentials . \"$SCRATCH/credentials\") (mountpoint . \"$SCRATCH/mnt\"))" ||
  status=$?
claim 'no mount is left' sh -c '! grep " cifs " /proc/mounts'
claim 'nothing is left on the share' sh -c "! ls $SRV | grep -v lost+found"
stop
summary && exit $status
