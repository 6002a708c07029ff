# shellcheck shell=bash
# Sourced by test1.sh: VDIs.

given_sr

claim 'vdi_create makes a VDI of the size asked for in MB, and prints nothing'
create "$A" 16
prints ''
must vdi_get_params $SR "$A"
of_size 16

claim 'sr_create --force destroys no SR that has disks'
if [ $ALONE = no ]; then skip 'a dconf of this type may hold several'; fi
for options in --force "--force --destroy-sr $OTHER_SR" "--destroy-sr $OTHER_SR"; do
    # shellcheck disable=SC2086 # it is several words
    fails_with 'EBUSY|EPERM' sr_create $OTHER_SR $options
done
must vdi_get_params $SR "$A"
of_size 16

claim 'vdi_get_params says what a new VDI is'
must vdi_get_params $SR "$A"
shows uuid "$A"
shows SR $SR
shows VBDs ''
shows attached '#f'
shows lock 0
shows read_only 0
shows shareable '#f'
shows children ''
field physical_utilisation
true_that [ "$FIELD" -ge 0 ]
field sector_size
true_that [ "$FIELD" -ge 512 ]
[ -z "$FORMAT" ] || shows type "$FORMAT"

claim 'a disk that is not sparse uses its virtual size'
if [ $THIN = yes ]; then skip 'disks of this driver are sparse'; fi
field virtual_size
shows physical_utilisation "$FIELD"

claim 'a size with a unit is what it says: 20480KiB are 20 MB'
create "$B" 20480KiB
must vdi_get_params $SR "$B"
of_size 20

claim 'a size that fits no sector is rounded up, never down'
create "$C" $((8 * MIB + 1))B
must vdi_get_params $SR "$C"
field virtual_size
true_that [ "$FIELD" -gt $((8 * MIB)) ]
true_that [ "$FIELD" -le $((8 * MIB + 1 + UNIT)) ]
gone "$C"

claim 'label and description come back as they were given'
# shellcheck disable=SC2016
shell_words='-dashed; $(echo no) `no`'
create "$C" 4 --label 'root "disk" \ ü' --description "$shell_words"
must vdi_get_params $SR "$C"
shows label 'root \"disk\" \\ ü'
shows description "$shell_words"

claim 'sr_get_params and sr_scan list the VDIs there are, sr_scan with what vdi_get_params says of each'
must sr_get_params $SR
shows VDIs "$A $B $C"
must vdi_get_params $SR "$B"
of_b=${OUT%$'\n'}
must sr_scan $SR
shows VDIs "$A $B $C"
vdi_in_scan "$B"
is "$FOUND" "$of_b "

claim 'physical_utilisation and virtual_allocation of the SR are the sums over its VDIs'
used=0 allocation=0
for uuid in "$A" "$B" "$C"; do
    must vdi_get_params $SR "$uuid"
    field physical_utilisation
    used=$((used + FIELD))
    field virtual_size
    allocation=$((allocation + FIELD))
done
must sr_get_params $SR
shows physical_utilisation $used
shows virtual_allocation $allocation

claim 'vdi_create of a UUID that exists fails with EEXIST and changes nothing'
must vdi_get_params $SR "$A"
before=$OUT
fails_with EEXIST vdi_create $SR "$A" 99
says "$A"
must vdi_get_params $SR "$A"
is "$OUT" "$before"

claim 'vdi_create of more than there is fails with ENOSPC and leaves nothing'
if [ $THIN = yes ]; then skip 'disks of this driver take space when they are written to'; fi
fails_with ENOSPC vdi_create $SR "$D" 4096TiB
fails_with ENOVDI vdi_get_params $SR "$D"

claim 'vdi_create takes the formats that the driver has'
for format in $FORMATS; do
    must vdi_create $SR "$D" 8 --type "$format"
    must vdi_get_params $SR "$D"
    shows type "$format"
    gone "$D"
done

claim 'and refuses the others with EPERM'
others=0
for format in raw vhd qcow2; do
    case " $FORMATS " in *" $format "*) continue ;; esac
    others=$((others + 1))
    fails_with EPERM vdi_create $SR "$D" 8 --type $format
    fails_with ENOVDI vdi_get_params $SR "$D"
done
[ $others -gt 0 ] || skip 'it has all of them'

claim 'vdi_delete deletes'
gone "$C"
prints ''
fails_with ENOVDI vdi_get_params $SR "$C"
must sr_get_params $SR
shows VDIs "$A $B"

claim 'vdi_delete of a VDI that does not exist succeeds'
gone "$C"
gone "$NONE"

claim 'a deleted UUID can be used again and brings nothing of the old one along'
create "$C" 4
must vdi_get_params $SR "$C"
shows label ''
gone "$C"
