# shellcheck shell=bash
# Sourced by test1.sh: the block device.

given_disks

claim 'vdi_attach prints the path of a block device'
attach "$A"
prints "$DEV"
true_that [ -b "$DEV" ]

claim 'the device is as large as the VDI'
attach "$A"
must vdi_get_params $SR "$A"
shows virtual_size "$(bytes_of "$DEV")"

claim 'vdi_get_params says that it is attached'
attach "$A"
must vdi_get_params $SR "$A"
shows attached '#t'

claim 'a second attach gives the same path'
attach "$A"
must vdi_attach $SR "$A"
prints "$DEV"

claim 'a new disk reads as zeroes'
attach "$A"
for at in 0 7 15; do true_that zeroes "$DEV" $at; done

claim 'what is written through the device is read back'
attach "$A"
true_that put "$DEV" a 0
true_that put "$DEV" b 15
true_that has "$DEV" a 0
true_that has "$DEV" b 15

claim 'a write beyond the end is refused'
attach "$A"
false_that put "$DEV" a 32

claim 'vdi_delete of an attached VDI fails with EVDIBUSY'
attach "$A"
fails_with EVDIBUSY vdi_delete $SR "$A"
says "$A"

claim 'vdi_clone of an attached VDI fails with EVDIBUSY'
attach "$A"
fails_with EVDIBUSY vdi_clone $SR "$A" "$C"
fails_with ENOVDI vdi_get_params $SR "$C"

claim 'sr_detach fails with EVDIBUSY while a VDI is attached'
attach "$A"
fails_with EVDIBUSY sr_detach $SR
says "$A"

claim 'sr_delete fails with EVDIBUSY while a VDI is attached, and deletes nothing'
attach "$A"
fails_with EVDIBUSY sr_delete $SR --yes
must sr_get_params $SR
shows VDIs "$A $B"
true_that has "$DEV" a 0

claim 'vdi_detach of a device that is open fails with EVDIBUSY and names the holder'
attach "$A"
if [ "$STATE" = open ]; then exec 9<>"$DEV"; fi
fails_with EVDIBUSY vdi_detach $SR "$A"
says $$

claim 'the device still works after that, and survives its holder'
attach "$A"
true_that put "$DEV" c 7
exec 9<&-
true_that has "$DEV" c 7
attach "$A"
true_that has "$DEV" c 7

claim 'vdi_detach detaches, and again'
attach "$A"
detach "$A"
prints ''
detach "$A"
prints ''
must vdi_get_params $SR "$A"
shows attached '#f'

claim 'vdi_detach of a VDI that was never attached succeeds'
detach "$B"

claim 'the data is there after detach and attach'
attach "$A"
true_that has "$DEV" a 0
true_that has "$DEV" c 7
true_that has "$DEV" b 15
true_that zeroes "$DEV" 3
detach "$A"

claim 'attached read-only, it is read and not written'
attach "$A" --read-only
true_that has "$DEV" a 0
false_that put "$DEV" c 0
true_that has "$DEV" a 0
detach "$A"

claim 'an attached VDI stays in its mode: the other one is refused with EVDIBUSY until it is detached'
attach "$A"
fails_with EVDIBUSY vdi_attach $SR "$A" --read-only
says "$DEV"
true_that put "$DEV" a 0
detach "$A"
attach "$A" --read-only
fails_with EVDIBUSY vdi_attach $SR "$A"
says "$DEV"
must vdi_attach $SR "$A" --read-only
prints "$DEV"
detach "$A"

claim 'a VDI created read-only is attached read-only'
create "$C" 4 --read-only
must vdi_get_params $SR "$C"
shows read_only 1
attach "$C"
false_that put "$DEV" c 0
detach "$C"
gone "$C"
