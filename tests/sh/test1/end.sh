# shellcheck shell=bash
# Sourced by test1.sh: the SR goes away and comes back.

given_disks b 0 b 15

claim 'sr_detach succeeds, and again'
must sr_detach $SR
prints ''
must sr_detach $SR

claim 'after sr_detach the SR is unavailable: ESRBUSY'
if [ $DETACH_ENDS = no ]; then skip 'what this driver keeps its disks in is always there'; fi
fails_with ESRBUSY sr_get_params $SR
fails_with ESRBUSY vdi_create $SR "$D" 4
fails_with ESRBUSY vdi_get_params $SR "$A"

claim 'after sr_attach everything is as it was'
must sr_attach $SR
must sr_get_params $SR
shows VDIs "$A $B"
must vdi_get_params $SR "$A"
shows lock 0

claim 'and the data is there'
attach "$A"
true_that has "$DEV" b 0
true_that has "$DEV" b 15
detach "$A"

claim 'sm deletes no SR with VDIs in it unless told --yes'
fails_with EINVAL sr_delete $SR
says --yes
must sr_get_params $SR
shows VDIs "$A $B"

claim 'sr_delete deletes the SR and its VDIs, and again'
must sr_delete $SR --yes
prints ''
must sr_delete $SR --yes
fails_with "$absent" sr_get_params $SR
fails_with "$absent" vdi_get_params $SR "$A"

claim 'a deleted SR can be created again, and is empty'
must sr_create $SR
must sr_attach $SR
must sr_get_params $SR
shows VDIs ''
must sr_detach $SR
must sr_delete $SR

claim 'nothing is left behind'
fails_with "$absent" sr_get_params $SR
true_that [ -z "$("$SM" sr_probe -t "$TYPE" -d "$DCONF" 2>/dev/null | grep $SR)" ]
if [ "$TYPE" = file ]; then true_that [ -z "$(ls -A "$DCONF" 2>/dev/null)" ]; fi
