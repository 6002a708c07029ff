#!/bin/bash
# ISOSR on shares of a Samba server: who may, what a CD reads, where the password goes, and a server that goes away.
# guest: uml
# needs: cifs loop
# tools: smbd smbpasswd mount.cifs python3
# bins: sm
# memory: 1024
# takes: 35
set -u
# shellcheck source=/dev/null
. "$ROOT/tests/guest/smb.inc"
mkdir -p "$SRV/linux"
smb_conf << CONF || exit
[isos]
  path = $SRV
  valid users = nobody
  force user = root
  read only = no
[open]
  path = $SRV
  guest ok = yes
CONF
start
note_arguments

status=0
keys="{\"type\": \"cifs\", \"username\": \"nobody\", \"cifspassword\": \"${PASSWORD//\"/\\\"}\"}"
(cd "$ROOT/tests/smapiv1" && ISO_LOCATION=//127.0.0.1/isos ISO_KEYS=$keys ISO_DIR=$SRV \
  python3 -B -m unittest -v test_iso_server) || status=1
claim 'no argument of mount.cifs was a password' sh -c "grep -q username=nobody $SCRATCH/arguments && ! grep hunter $SCRATCH/arguments"

echo '# a person'
head -c 3M /dev/urandom > "$SRV/linux/a é.iso"
DCONF=smb@//127.0.0.1/open/linux@$SCRATCH/mnt
run() { local verb=$1; shift; sm "$verb" -t iso -d "$DCONF" "$SR" "$@"; }
claim 'sr_create as a guest' run sr_create
claim 'nothing is mounted then' sh -c "! grep ' cifs ' /proc/mounts"
claim 'sr_attach' run sr_attach
claim '  again' run sr_attach
iso=$(run sr_scan | sed 's/.*VDIs "\([^"]*\)").*/\1/')
reads() { device=$(run vdi_attach "$iso") && cmp "$SRV/linux/a é.iso" "$device"; }
claim 'a CD is read' reads
claim 'it is read-only' fails_with EPERM run vdi_resize "$iso" 8
claim 'sr_detach while it is attached: EVDIBUSY' fails_with EVDIBUSY run sr_detach
claim 'vdi_detach' run vdi_detach "$iso"
claim 'vdi_create on a share that is read-only: EACCES' fails_with EACCES run vdi_create "$(vdi 1)" 1
printf 'username=nobody\npassword=%s\n' "$PASSWORD" > "$SCRATCH/credentials"
chmod 600 "$SCRATCH/credentials"
named() { sm "$1" -t iso -d "((location . \"//127.0.0.1/isos\") (credentials . \"$SCRATCH/credentials\"))" "$(vdi 9)"; }
claim 'credentials from a file' named sr_attach
claim '  sr_detach' named sr_detach

echo '# gone'
stop
gone() { fails_with 'ESRBUSY|EIO' run sr_scan --wait 5; }
claim 'sr_scan of a server that is gone: an error, never an empty SR' within 60 gone
claim 'sr_detach works' within 60 run sr_detach
claim '  nothing is mounted' sh -c "! grep ' cifs ' /proc/mounts"
claim 'sr_attach: ENODEV' within 20 fails_with ENODEV run sr_attach
start
claim 'and when it is back, it is attached again' run sr_attach
claim '  with its CD' reads
run vdi_detach "$iso"
claim '  sr_detach' run sr_detach
claim '  sr_delete leaves the CD' sh -c "sm sr_delete -t iso -d $DCONF $SR && [ -s '$SRV/linux/a é.iso' ]"
stop
summary && exit $status
