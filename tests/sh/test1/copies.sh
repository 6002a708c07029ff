# shellcheck shell=bash
# Sourced by test1.sh: clone, snapshot.

given_disks a 0 c 7 b 15

claim 'vdi_clone makes a writable VDI of the same size, and prints nothing'
must vdi_clone $SR "$A" "$C"
prints ''
must vdi_get_params $SR "$C"
of_size 16
shows read_only 0
shows attached '#f'
gone "$C"

claim 'a clone has the contents of its source'
must vdi_clone $SR "$A" "$C"
attach "$C"
true_that has "$DEV" a 0
true_that has "$DEV" c 7
true_that zeroes "$DEV" 3
true_that has "$DEV" b 15
detach "$C"
gone "$C"

claim 'a clone and its source are written independently'
must vdi_clone $SR "$A" "$C"
attach "$C"
of_clone=$DEV
attach "$A"
true_that put "$of_clone" b 0
true_that put "$of_clone" a 3
true_that has "$DEV" a 0
true_that zeroes "$DEV" 3
true_that put "$DEV" c 1
true_that zeroes "$of_clone" 1
true_that has "$of_clone" b 0
detach "$A"
detach "$C"
gone "$C"

claim 'vdi_clone onto a UUID that exists fails with EEXIST'
fails_with EEXIST vdi_clone $SR "$A" "$B"
fails_with EEXIST vdi_clone $SR "$A" "$A"

claim 'vdi_clone of a VDI that does not exist fails with ENOVDI'
fails_with ENOVDI vdi_clone $SR "$NONE" "$D"

claim 'a clone can be deleted, and its source keeps its data'
must vdi_clone $SR "$A" "$C"
gone "$C"
attach "$A"
true_that has "$DEV" a 0
true_that has "$DEV" b 15
detach "$A"

claim 'a source can be deleted, and its clone keeps its data'
create "$D" 4
attach "$D"
true_that put "$DEV" c 2
detach "$D"
must vdi_clone $SR "$D" "$C"
gone "$D"
attach "$C"
true_that has "$DEV" c 2
detach "$C"
gone "$C"

claim 'vdi_snapshot makes a read-only VDI of the same size, and prints nothing'
must vdi_snapshot $SR "$A" "$C"
prints ''
must vdi_get_params $SR "$C"
shows read_only 1
of_size 16
gone "$C"

claim 'a snapshot keeps the contents of its moment, whatever is written to the origin'
attach "$A"
true_that put "$DEV" a 0
detach "$A"
must vdi_snapshot $SR "$A" "$C"
attach "$A"
true_that put "$DEV" b 0
true_that put "$DEV" c 3
detach "$A"
attach "$C"
true_that has "$DEV" a 0
true_that zeroes "$DEV" 3
true_that has "$DEV" b 15
detach "$C"
attach "$A"
true_that has "$DEV" b 0
true_that has "$DEV" c 3
detach "$A"
gone "$C"

claim 'a snapshot cannot be written to'
must vdi_snapshot $SR "$A" "$D"
attach "$D"
false_that put "$DEV" a 0
detach "$D"
gone "$D"

claim 'the size of a snapshot stays: vdi_resize fails with EPERM and changes nothing'
must vdi_snapshot $SR "$A" "$D"
must vdi_get_params $SR "$D"
before=$OUT
fails_with EPERM vdi_resize $SR "$D" 32
fails_with EPERM vdi_resize $SR "$D" 8 --allow-shrink
must vdi_get_params $SR "$D"
is "$OUT" "$before"
gone "$D"

claim 'a clone of a snapshot is writable, and the snapshot stays as it was'
must vdi_snapshot $SR "$A" "$C"
must vdi_clone $SR "$C" "$D"
must vdi_get_params $SR "$D"
shows read_only 0
attach "$D"
true_that has "$DEV" b 0
true_that put "$DEV" c 0
detach "$D"
attach "$C"
true_that has "$DEV" b 0
detach "$C"
gone "$D"
gone "$C"

claim 'vdi_snapshot of an attached VDI has the bytes of that instant, or is refused with EVDIBUSY'
attach "$A"
true_that put "$DEV" a 5
if may_be EVDIBUSY vdi_snapshot $SR "$A" "$C"; then
    true_that put "$DEV" b 5
    detach "$A"
    attach "$C"
    true_that has "$DEV" a 5
    detach "$C"
    gone "$C"
else
    true_that put "$DEV" b 5
    detach "$A"
    fails_with ENOVDI vdi_get_params $SR "$C"
fi

claim 'vdi_snapshot onto a UUID that exists fails with EEXIST'
fails_with EEXIST vdi_snapshot $SR "$A" "$B"

claim 'vdi_snapshot of a VDI that does not exist fails with ENOVDI'
fails_with ENOVDI vdi_snapshot $SR "$NONE" "$D"

claim 'vdi_revert takes a VDI back to a snapshot of it, prints nothing, and again; the snapshot stays as it was'
must vdi_snapshot $SR "$A" "$C"
must vdi_get_params $SR "$A"
field uuid
before=$FIELD
field virtual_size
size=$FIELD
attach "$A"
true_that put "$DEV" a 0
detach "$A"
must vdi_revert $SR "$A" "$C"
prints ''
must vdi_revert $SR "$A" "$C"
must vdi_get_params $SR "$A"
shows uuid "$before"
shows virtual_size "$size"
shows read_only 0
attach "$A"
true_that has "$DEV" b 0
true_that has "$DEV" b 15
true_that put "$DEV" a 0
detach "$A"
attach "$C"
true_that has "$DEV" b 0
detach "$C"
must vdi_revert $SR "$A" "$C"
gone "$C"

claim 'vdi_revert to what is no snapshot of the VDI fails with EPERM, of an attached VDI with EVDIBUSY, and changes nothing'
must vdi_snapshot $SR "$A" "$C"
fails_with EPERM vdi_revert $SR "$B" "$C"
fails_with EPERM vdi_revert $SR "$A" "$B"
fails_with EPERM vdi_revert $SR "$C" "$C"
fails_with ENOVDI vdi_revert $SR "$A" "$NONE"
attach "$A"
fails_with EVDIBUSY vdi_revert $SR "$A" "$C"
true_that has "$DEV" b 0
detach "$A"
gone "$C"
