# shellcheck shell=bash
# Sourced by test1.sh: errors.

given_disks

claim 'what is no dconf of the driver fails with EINVAL'
place=$DCONF
for DCONF in '' relative/path '-o/dev/sda' '/a/../b' $'/a\nb' '((location' '(a b)'; do fails_with EINVAL sr_get_params $SR; done
DCONF=$place

claim 'a type that does not exist fails with EINVAL; without one, the SR answers as with it, or the type is asked for'
right=$TYPE
for TYPE in nonsense '' '../file'; do fails_with EINVAL sr_get_params $SR; done
TYPE=$right
SHOWN="sm sr_get_params -d $DCONF $SR"
said=$("$SM" sr_content_type -d "$DCONF" $SR 2>&1)
case $said in
'EINVAL: -t'*) ;;
*) true_that [ "$said" = "$("$SM" sr_content_type -t "$TYPE" -d "$DCONF" $SR 2>&1)" ] ;;
esac

claim 'operations that the driver does not support fail with EPERM'
if [ -z "$MAY_REFUSE" ]; then skip 'it supports them all'; fi
for verb in $MAY_REFUSE; do
    case $verb in
    vdi_import) fails_with EPERM vdi_import $SR "$D" "$SCRATCH/a" ;;
    *) fails_with EPERM "$verb" $SR "$A" "$D" ;;
    esac
done
fails_with ENOVDI vdi_get_params $SR "$D"

claim 'operations on a VDI that does not exist fail with ENOVDI'
for verb in vdi_get_params vdi_attach vdi_detach; do fails_with ENOVDI $verb $SR "$NONE" && says "$NONE"; done

claim 'operations with the UUID of another SR fail'
fails_with "$absent" vdi_get_params $OTHER_SR "$A"
fails_with "$absent" vdi_create $OTHER_SR "$D" 4
fails_with "$absent" sr_get_params $OTHER_SR
fails_with ENOVDI vdi_get_params $SR "$D"

claim 'sr_delete of another UUID in the same place deletes nothing'
must sr_delete $OTHER_SR
must sr_get_params $SR
shows VDIs "$A $B"

claim 'nothing of all this changed the SR'
must sr_scan $SR
shows VDIs "$A $B"
