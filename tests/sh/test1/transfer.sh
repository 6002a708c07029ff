# shellcheck shell=bash
# Sourced by test1.sh: in and out, and space back.

given_disks b 0 b 15

claim 'vdi_import of a raw file makes a VDI with its bytes, and takes no space for its holes'
cp "$SCRATCH/a" "$SCRATCH/in.raw"
truncate -s $((12 * MIB)) "$SCRATCH/in.raw"
cat "$SCRATCH/b" >>"$SCRATCH/in.raw"
bring "$C" "$SCRATCH/in.raw"
prints ''
must vdi_get_params $SR "$C"
of_size 13
field physical_utilisation
[ $THIN = no ] || true_that [ "$FIELD" -lt $((8 * MIB)) ]
attach "$C"
true_that has "$DEV" a 0
true_that zeroes "$DEV" 6
true_that has "$DEV" b 12
detach "$C"

claim 'vdi_export writes them to a raw file, which has the holes again'
can_import
must vdi_export $SR "$C" "$SCRATCH/out.raw"
true_that cmp -n $((13 * MIB)) "$SCRATCH/in.raw" "$SCRATCH/out.raw"
true_that [ "$(stat -c %b "$SCRATCH/out.raw")" -lt $((8 * MIB / 512)) ]
fails_with EINVAL vdi_export $SR "$C" "$SCRATCH/out.raw"

claim 'and to a pipe, from which vdi_import takes them'
can_import
SHOWN="sm vdi_export … - | sm vdi_import … - --size"
true_that through_a_pipe "$C" "$D"
must vdi_export $SR "$D" "$SCRATCH/again.raw"
true_that cmp "$SCRATCH/out.raw" "$SCRATCH/again.raw"
gone "$D"

claim 'a pipe that ends too early fails with EIO and leaves nothing'
can_import
fails_with EIO vdi_import $SR "$D" - --size 4
fails_with ENOVDI vdi_get_params $SR "$D"
gone "$C"

claim 'sr_collect gives back what a deleted snapshot left, prints nothing, and the disk keeps its contents'
must vdi_snapshot $SR "$A" "$D"
attach "$A"
true_that put "$DEV" c 9
detach "$A"
gone "$D"
must sr_get_params $SR
field physical_utilisation
before=$FIELD
must sr_collect $SR
prints ''
must sr_get_params $SR
field physical_utilisation
true_that [ "$FIELD" -le "$before" ]
attach "$A"
true_that has "$DEV" b 0
true_that has "$DEV" c 9
true_that has "$DEV" b 15
detach "$A"
