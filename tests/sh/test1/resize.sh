# shellcheck shell=bash
# Sourced by test1.sh: resize.

given_disks b 0 b 15

claim 'vdi_resize makes a VDI larger, prints nothing, and again'
must vdi_resize $SR "$A" 32
prints ''
must vdi_resize $SR "$A" 32
must vdi_get_params $SR "$A"
of_size 32

claim 'the device is larger then; the old data is there, the new part is zeroes'
attach "$A"
true_that [ "$(bytes_of "$DEV")" -ge $((32 * MIB)) ]
# Where snapshots are refused, no claim has written it yet.
case $MAY_REFUSE in *vdi_snapshot*) true_that put "$DEV" b 0 ;; esac
true_that has "$DEV" b 0
true_that has "$DEV" b 15
true_that zeroes "$DEV" 16
true_that zeroes "$DEV" 31
true_that put "$DEV" a 31
true_that has "$DEV" a 31
detach "$A"

claim 'vdi_resize of an attached VDI makes its device larger at once, or is refused with EVDIBUSY'
attach "$A"
if may_be EVDIBUSY vdi_resize $SR "$A" 48; then
    true_that [ "$(bytes_of "$DEV")" -ge $((48 * MIB)) ]
    true_that put "$DEV" c 47
    true_that has "$DEV" c 47
    true_that has "$DEV" a 31
else
    true_that [ "$(bytes_of "$DEV")" -lt $((48 * MIB)) ]
fi
detach "$A"

claim 'vdi_resize below the size is refused and changes nothing; EINVAL names the option, where there is no use in it EPERM'
must vdi_get_params $SR "$A"
before=$OUT
if [ $SHRINKS = yes ]; then
    fails_with EINVAL vdi_resize $SR "$A" 8
    says --allow-shrink
else
    fails_with EPERM vdi_resize $SR "$A" 8
fi
must vdi_get_params $SR "$A"
is "$OUT" "$before"

claim 'vdi_resize --allow-shrink makes it smaller'
if [ $SHRINKS = no ]; then
    fails_with EPERM vdi_resize $SR "$A" 16 --allow-shrink
    skip 'disks of this format only grow (EPERM)'
fi
must vdi_resize $SR "$A" 16 --allow-shrink
must vdi_get_params $SR "$A"
of_size 16

claim 'what lies below the new end is kept'
attach "$A"
true_that has "$DEV" b 0
true_that has "$DEV" b 15
detach "$A"

claim 'vdi_resize --allow-shrink of an attached VDI fails with EVDIBUSY'
[ $SHRINKS = yes ] || skip 'disks of this format only grow (EPERM)'
attach "$A"
fails_with EVDIBUSY vdi_resize $SR "$A" 8 --allow-shrink
true_that has "$DEV" b 15
detach "$A"

claim 'vdi_resize of a VDI that does not exist fails with ENOVDI'
fails_with ENOVDI vdi_resize $SR "$NONE" 16
