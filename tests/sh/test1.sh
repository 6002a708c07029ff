#!/usr/bin/env bash
# The compliance suite of SR API v1.0: whether a driver does what its callers rely on, through `sm` alone.
#
#   test1.sh -t TYPE -d DCONF [-f FORMAT] [--quick] [--keep] [-v]
#
#   -t, -d    the driver and the place it may use; the place holds no SR, and holds none afterwards
#   -f        the format of the VDIs (raw, vhd, qcow2); without it the driver's default
#   --quick   little stress
#   --keep    leave the scene as it is when a claim fails
#   -v        show every step
#
# `sm` is taken from $BIN, a directory; without it from PATH, then from the newest build. Prints PASS, FAIL or SKIP
# and the claim, a line each, then the count. Status: 0 if nothing failed, 1 if something did, 2 if it could
# not start.
#
# Judging a new driver takes a row in the table below.

set -u
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$here/lib.sh"

TYPE='' DCONF='' FORMAT='' QUICK='' KEEP='' VERBOSE=''
refuse() { printf '%s: %s\n' "${0##*/}" "$1" >&2 && exit 2; }
while [ $# -gt 0 ]; do
    case $1 in
    -t) TYPE=${2-} && shift ;; -d) DCONF=${2-} && shift ;; -f) FORMAT=${2-} && shift ;;
    --quick) QUICK=yes ;; --keep) KEEP=yes ;; -v) VERBOSE=yes ;;
    *) refuse "what is $1? usage: test1.sh -t TYPE -d DCONF [-f FORMAT] [--quick] [--keep] [-v]" ;;
    esac
    shift
done
if [ -z "$TYPE" ] || [ -z "$DCONF" ]; then refuse '-t TYPE and -d DCONF are needed'; fi

SM=
for dir in "${BIN-}" "$(dirname "$(command -v sm || echo /none/sm)")" "$here"/../../target/{x86_64-unknown-linux-gnu/,}{release,debug}; do
    [ -n "$dir" ] && [ -x "$dir/sm" ] && SM=$dir/sm && break
    [ -z "${BIN-}" ] || refuse "there is no sm in BIN=$BIN"
done
[ -n "$SM" ] || refuse 'no sm: set BIN to its directory'

# ---- The drivers. What a row allows, a driver may do; everything else is the same for all.
#
# MAY_REFUSE    operations that answer EPERM: their claims are skipped
# FORMATS       what vdi_create --type takes; the others must answer EPERM
#               and what it makes unless told is the first of them
# SHRINKS       yes: vdi_resize --allow-shrink makes a disk smaller; else it answers EPERM
# UNIT          bytes by which sizes are rounded up, at most
# THIN          yes: a disk takes space when it is written to, so vdi_create may promise more than there is
# DETACH_ENDS   yes: after sr_detach the SR is unavailable until sr_attach
# ALONE         yes: a dconf holds one SR
# LIST          the same dconf as an association list
# NOWHERE       a dconf of a place that is not there
MAY_REFUSE='' FORMATS='raw' SHRINKS=yes UNIT=512 THIN=yes DETACH_ENDS=yes ALONE=yes LIST='' NOWHERE=''
case $TYPE in
file)
    FORMATS='vhd raw qcow2' DETACH_ENDS=no LIST="((location . \"$DCONF\"))" NOWHERE=/nonexistent/below/sr
    ;;
nfs)
    FORMATS='vhd raw qcow2' ALONE=no
    case $DCONF in
    nfs@*)
        server=${DCONF#nfs@}
        server=${server%%:/*}
        paths=${DCONF#nfs@"$server":}
        LIST="((server . \"$server\") (serverpath . \"${paths%@*}\") (mountpoint . \"${paths##*@}\"))"
        NOWHERE="nfs@$server:${paths%@*}/nonexistent/directory@${paths##*@}"
        ;;
    esac
    ;;
lvm)
    # The volume group is there whenever its devices are.
    UNIT=4194304 DETACH_ENDS=no NOWHERE=/dev/nonexistent
    case $DCONF in
    *thin*) ;;
    *) MAY_REFUSE='vdi_clone vdi_snapshot' THIN=no LIST="((device . \"$DCONF\"))" ;;
    esac
    ;;
ext)
    FORMATS='vhd raw qcow2' LIST="((device . \"$DCONF\"))" NOWHERE=/dev/nonexistent
    ;;
*) printf '# %s has no row in this suite: nothing is allowed to be unsupported\n' "$TYPE" ;;
esac
# A VHD is made of blocks, a qcow2 of clusters, and both only grow.
case ${FORMAT:-${FORMATS%% *}} in
vhd) UNIT=2097152 SHRINKS=no ;;
qcow2) UNIT=65536 SHRINKS=no ;;
esac

# ---- The scene. The UUIDs are always the same, so what a run left is recognised.

SR=7e57ab1e-0000-4000-8000-0000000000ff
OTHER_SR=7e57ab1e-0000-4000-8000-0000000000fe
vdi() { printf '7e57ab1e-0000-4000-8000-%012d' "$1"; }
A=$(vdi 1) B=$(vdi 2) C=$(vdi 3) D=$(vdi 4) NONE=$(vdi 999)
MIB=1048576

SCRATCH=$(mktemp -d) || exit 2
STARTED=''
finish() {
    if [ -n "$KEEP" ] && [ "$FAILED" -gt 0 ]; then
        printf '# kept: SR %s on %s, %s; to clear it: sm sr_delete --yes -t %s -d %q %s\n' \
            "$SR" "$DCONF" "$SCRATCH" "$TYPE" "$DCONF" "$SR"
    else
        if [ -n "$STARTED" ]; then
            tidy
            "$SM" sr_delete -t "$TYPE" -d "$DCONF" "$SR" --yes >/dev/null 2>&1
        fi
        rm -rf "$SCRATCH"
    fi
}
trap finish EXIT
trap 'exit 2' HUP INT TERM

leftovers() { refuse "$1; this suite wants a place with no SR in it (sm sr_delete --yes -t $TYPE -d $DCONF $SR clears what it left)"; }
found=$("$SM" sr_probe -t "$TYPE" -d "$DCONF" 2>/dev/null)
case $found in
*"$SR"* | *"$OTHER_SR"*) leftovers "$DCONF holds what an earlier run left" ;;
*'(sr (uuid'*) [ $ALONE = no ] || leftovers "$DCONF holds an SR" ;;
esac
[ "$TYPE" != file ] || [ ! -e "$DCONF" ] || [ -z "$(ls -A "$DCONF" 2>&1)" ] || leftovers "$DCONF is not empty"
STARTED=yes DEV=''

# Every VDI detached and unlocked, and none but A and B there.
tidy() {
    local uuid listed
    exec 9<&-
    listed=$(field VDIs "$("$SM" sr_get_params -t "$TYPE" -d "$DCONF" $SR 2>/dev/null)")
    for uuid in $listed; do
        [ "$EUID" != 0 ] || "$SM" vdi_detach -t "$TYPE" -d "$DCONF" $SR "$uuid"
        "$SM" vdi_unlock -t "$TYPE" -d "$DCONF" $SR "$uuid" TRUE suite
        case $uuid in "$A" | "$B") ;; *) "$SM" vdi_delete -t "$TYPE" -d "$DCONF" $SR "$uuid" ;; esac
    done
} >/dev/null 2>&1

# ---- Words of this suite, made of those in lib.sh.

create() { must vdi_create "$SR" "$1" "$2" "${@:3}" ${FORMAT:+--type "$FORMAT"}; }
# A size that was asked for in MB, as it may be after rounding up.
of_size() {
    [ "$STATE" = open ] || return 1
    local wanted=$(($2 * MIB))
    if [ "$1" -lt $wanted ] || [ "$1" -ge $((wanted + UNIT)) ]; then
        fail "$1 bytes should be $wanted, rounded up by less than $UNIT"
    fi
}
needs_root() { [ "$EUID" = 0 ] || lacks 'vdi_attach needs root'; }
attach() { # VDI [OPTION …]: sets DEV
    needs_root && must vdi_attach "$SR" "$@" && DEV=${OUT%$'\n'}
}
detach() { must vdi_detach "$SR" "$1"; }
gone() { must vdi_delete "$SR" "$1"; }
bring() { must vdi_import "$SR" "$1" "$2" "${@:3}" ${FORMAT:+--type "$FORMAT"}; }
can_import() { ! may_refuse vdi_import || skip 'the driver does not support vdi_import (EPERM)'; }
through_a_pipe() { # SOURCE DEST
    local size
    size=$("$SM" vdi_get_params -t "$TYPE" -d "$DCONF" $SR "$1") || return
    "$SM" vdi_export -t "$TYPE" -d "$DCONF" $SR "$1" - |
        "$SM" vdi_import -t "$TYPE" -d "$DCONF" $SR "$2" - --size "$(field virtual_size "$size")B" ${FORMAT:+--type "$FORMAT"}
    [ "${PIPESTATUS[*]}" = '0 0' ]
}
bytes_of() { blockdev --getsize64 "$1" 2>/dev/null; }
# Patterns: 1 MiB each, no two blocks of them alike.
for letter in a b c; do yes "pattern $letter of the suite" | nl | head -c $MIB >"$SCRATCH/$letter"; done
put() { dd if="$SCRATCH/$2" of="$1" bs=$MIB seek="$3" conv=notrunc,fsync status=none; }            # DEV PATTERN AT
has() { dd if="$1" bs=$MIB skip="$3" count=1 status=none | cmp - "$SCRATCH/$2"; }                  # DEV PATTERN AT
zeroes() { dd if="$1" bs=$MIB skip="$2" count=1 status=none | cmp -n $MIB - /dev/zero; }           # DEV AT
absent='ENOSR'
[ $DETACH_ENDS = no ] || absent='ENOSR|ESRBUSY|ENODEV'

# ==== An SR comes to be

claim 'sr_get_params of an SR that is not there fails and prints nothing'
fails_with "$absent" sr_get_params $SR

claim 'sr_delete of an SR that is not there succeeds'
must sr_delete $SR
prints ''

claim 'sr_attach of an SR that is not there fails'
fails_with "$absent" sr_attach $SR

claim 'vdi_create on an SR that is not there fails'
fails_with "$absent" vdi_create $SR "$A" 16

claim 'sr_create of more than there is fails with ENOSPC'
fails_with ENOSPC sr_create $SR 4096TiB

claim 'and leaves no SR behind'
fails_with "$absent" sr_get_params $SR

claim 'sr_create where there is nothing fails with ENODEV'
if [ -z "$NOWHERE" ]; then skip 'the row names no such place'; fi
place=$DCONF DCONF=$NOWHERE
fails_with ENODEV sr_create $SR
DCONF=$place

claim 'sr_create makes an SR and prints nothing'
must sr_create $SR
prints ''

claim 'sr_create of the same UUID fails with EEXIST'
fails_with EEXIST sr_create $SR
says $SR

claim 'sr_create of another UUID in the same place fails with EBUSY and names the SR that is there'
if [ $ALONE = no ]; then skip 'a dconf of this type may hold several'; fi
fails_with EBUSY sr_create $OTHER_SR
says $SR

claim 'sr_attach succeeds, and again'
must sr_attach $SR
prints ''
must sr_attach $SR
prints ''

claim 'sr_get_params says what a new SR is'
must sr_get_params $SR
equal "$(field uuid)" $SR
equal "$(field type)" "$TYPE"
equal "$(field VDIs)" ''
equal "$(field physical_utilisation)" 0
equal "$(field virtual_allocation)" 0
true_that [ "$(field size)" -ge $((64 * MIB)) ]

claim 'an answer is one line'
true_that [ "$(wc -l <"$SCRATCH/out")" = 1 ]

claim 'sr_scan of a new SR has no VDIs'
must sr_scan $SR
equal "$(field uuid)" $SR
equal "$(field VDIs)" ''

claim 'sr_content_type is one word'
must sr_content_type $SR
true_that grep -qxE '[a-z0-9]+' "$SCRATCH/out"

claim 'sr_probe finds the SR by its place'
SHOWN="sm sr_probe -t $TYPE -d $DCONF"
true_that grep -q "(sr (uuid . \"$SR\")" <("$SM" sr_probe -t "$TYPE" -d "$DCONF")

claim 'the dconf may be an association list'
if [ -z "$LIST" ]; then skip 'the row has none'; fi
place=$DCONF DCONF=$LIST
must sr_get_params $SR
equal "$(field uuid)" $SR
DCONF=$place

claim 'options may stand anywhere, with or without a space'
SHOWN="sm -d… -t… in other places"
for line in "-t$TYPE|-d$DCONF|sr_get_params|$SR" "sr_get_params|$SR|-d|$DCONF|-t|$TYPE" "sr_get_params|-t$TYPE|$SR|-d$DCONF"; do
    IFS='|' read -r -a words <<<"$line"
    true_that grep -q "(uuid . \"$SR\")" <("$SM" "${words[@]}" 2>&1)
done

# ==== VDIs

claim 'vdi_create makes a VDI of the size asked for in MB, and prints nothing'
create "$A" 16
prints ''
must vdi_get_params $SR "$A"
of_size "$(field virtual_size)" 16

claim 'sr_create --force destroys no SR that has disks'
if [ $ALONE = no ]; then skip 'a dconf of this type may hold several'; fi
for options in --force "--force --destroy-sr $OTHER_SR" "--destroy-sr $OTHER_SR"; do
    # shellcheck disable=SC2086 # it is several words
    fails_with 'EBUSY|EPERM' sr_create $OTHER_SR $options
done
must vdi_get_params $SR "$A"
of_size "$(field virtual_size)" 16

claim 'vdi_get_params says what a new VDI is'
must vdi_get_params $SR "$A"
equal "$(field uuid)" "$A"
equal "$(field SR)" $SR
equal "$(field VBDs)" ''
equal "$(field attached)" '#f'
equal "$(field lock)" 0
equal "$(field read_only)" 0
equal "$(field shareable)" '#f'
equal "$(field children)" ''
true_that [ "$(field physical_utilisation)" -ge 0 ]
true_that [ "$(field sector_size)" -ge 512 ]
[ -z "$FORMAT" ] || equal "$(field type)" "$FORMAT"

claim 'a disk that is not sparse uses its virtual size'
if [ $THIN = yes ]; then skip 'disks of this driver are sparse'; fi
equal "$(field physical_utilisation)" "$(field virtual_size)"

claim 'a size with a unit is what it says: 20480KiB are 20 MB'
create "$B" 20480KiB
must vdi_get_params $SR "$B"
of_size "$(field virtual_size)" 20

claim 'a size that fits no sector is rounded up, never down'
create "$C" $((8 * MIB + 1))B
must vdi_get_params $SR "$C"
true_that [ "$(field virtual_size)" -gt $((8 * MIB)) ]
true_that [ "$(field virtual_size)" -le $((8 * MIB + 1 + UNIT)) ]
gone "$C"

claim 'label and description come back as they were given'
# shellcheck disable=SC2016
shell_words='-dashed; $(echo no) `no`'
create "$C" 4 --label 'root "disk" \ ü' --description "$shell_words"
must vdi_get_params $SR "$C"
equal "$(field label)" 'root \"disk\" \\ ü'
equal "$(field description)" "$shell_words"

claim 'sr_get_params and sr_scan list the VDIs there are, sr_scan with what vdi_get_params says of each'
must sr_get_params $SR
equal "$(field VDIs)" "$A $B $C"
must vdi_get_params $SR "$B"
of_b=${OUT%$'\n'}
must sr_scan $SR
equal "$(field VDIs)" "$A $B $C"
equal "$(vdi_in_scan "$B")" "$of_b "

claim 'physical_utilisation and virtual_allocation of the SR are the sums over its VDIs'
used=0 allocation=0
for uuid in "$A" "$B" "$C"; do
    must vdi_get_params $SR "$uuid"
    used=$((used + $(field physical_utilisation))) allocation=$((allocation + $(field virtual_size)))
done
must sr_get_params $SR
equal "$(field physical_utilisation)" $used
equal "$(field virtual_allocation)" $allocation

claim 'vdi_create of a UUID that exists fails with EEXIST and changes nothing'
must vdi_get_params $SR "$A"
before=$OUT
fails_with EEXIST vdi_create $SR "$A" 99
says "$A"
must vdi_get_params $SR "$A"
equal "$OUT" "$before"

claim 'vdi_create of more than there is fails with ENOSPC and leaves nothing'
if [ $THIN = yes ]; then skip 'disks of this driver take space when they are written to'; fi
fails_with ENOSPC vdi_create $SR "$D" 4096TiB
fails_with ENOVDI vdi_get_params $SR "$D"

claim 'vdi_create takes the formats that the driver has'
for format in $FORMATS; do
    must vdi_create $SR "$D" 8 --type "$format"
    must vdi_get_params $SR "$D"
    equal "$(field type)" "$format"
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
equal "$(field VDIs)" "$A $B"

claim 'vdi_delete of a VDI that does not exist succeeds'
gone "$C"
gone "$NONE"

claim 'a deleted UUID can be used again and brings nothing of the old one along'
create "$C" 4
must vdi_get_params $SR "$C"
equal "$(field label)" ''
gone "$C"

# ==== The block device

claim 'vdi_attach prints the path of a block device'
attach "$A"
prints "$DEV"
true_that [ -b "$DEV" ]

claim 'the device is as large as the VDI'
attach "$A"
must vdi_get_params $SR "$A"
equal "$(field virtual_size)" "$(bytes_of "$DEV")"

claim 'vdi_get_params says that it is attached'
attach "$A"
must vdi_get_params $SR "$A"
equal "$(field attached)" '#t'

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
equal "$(field VDIs)" "$A $B"
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
equal "$(field attached)" '#f'

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
equal "$(field read_only)" 1
attach "$C"
false_that put "$DEV" c 0
detach "$C"
gone "$C"

# ==== Clone, snapshot

claim 'vdi_clone makes a writable VDI of the same size, and prints nothing'
must vdi_clone $SR "$A" "$C"
prints ''
must vdi_get_params $SR "$C"
of_size "$(field virtual_size)" 16
equal "$(field read_only)" 0
equal "$(field attached)" '#f'
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
equal "$(field read_only)" 1
of_size "$(field virtual_size)" 16
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
equal "$OUT" "$before"
gone "$D"

claim 'a clone of a snapshot is writable, and the snapshot stays as it was'
must vdi_snapshot $SR "$A" "$C"
must vdi_clone $SR "$C" "$D"
must vdi_get_params $SR "$D"
equal "$(field read_only)" 0
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

# ==== Resize

claim 'vdi_resize makes a VDI larger, prints nothing, and again'
must vdi_resize $SR "$A" 32
prints ''
must vdi_resize $SR "$A" 32
must vdi_get_params $SR "$A"
of_size "$(field virtual_size)" 32

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
equal "$OUT" "$before"

claim 'vdi_resize --allow-shrink makes it smaller'
if [ $SHRINKS = no ]; then
    fails_with EPERM vdi_resize $SR "$A" 16 --allow-shrink
    skip 'disks of this format only grow (EPERM)'
fi
must vdi_resize $SR "$A" 16 --allow-shrink
must vdi_get_params $SR "$A"
of_size "$(field virtual_size)" 16

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

# ==== In and out, and space back

claim 'vdi_import of a raw file makes a VDI with its bytes, and takes no space for its holes'
cp "$SCRATCH/a" "$SCRATCH/in.raw"
truncate -s $((12 * MIB)) "$SCRATCH/in.raw"
cat "$SCRATCH/b" >>"$SCRATCH/in.raw"
bring "$C" "$SCRATCH/in.raw"
prints ''
must vdi_get_params $SR "$C"
of_size "$(field virtual_size)" 13
[ $THIN = no ] || true_that [ "$(field physical_utilisation)" -lt $((8 * MIB)) ]
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
before=$(field physical_utilisation)
must sr_collect $SR
prints ''
must sr_get_params $SR
true_that [ "$(field physical_utilisation)" -le "$before" ]
attach "$A"
true_that has "$DEV" b 0
true_that has "$DEV" c 9
true_that has "$DEV" b 15
detach "$A"

# ==== Locks

claim 'vdi_lock locks, and vdi_get_params names the holder'
must vdi_lock $SR "$A" FALSE host1/vm7
prints ''
must vdi_get_params $SR "$A"
equal "$(field lock)" 1
equal "$(field VBDs)" host1/vm7
must sr_scan $SR
equal "$(field VBDs "$(vdi_in_scan "$A")")" host1/vm7

claim 'a second vdi_lock fails with ENOLCK and names the holder, whoever asks'
fails_with ENOLCK vdi_lock $SR "$A" FALSE host2/vm8
says host1/vm7
fails_with ENOLCK vdi_lock $SR "$A" FALSE host1/vm7

claim 'vdi_delete, vdi_clone and sr_delete of a locked VDI fail with EVDIBUSY'
fails_with EVDIBUSY vdi_delete $SR "$A"
says host1/vm7
fails_with EVDIBUSY sr_delete $SR --yes
must vdi_get_params $SR "$A"
fails_with EVDIBUSY vdi_clone $SR "$A" "$C"

claim 'vdi_unlock by another user fails with ENOLCK'
fails_with ENOLCK vdi_unlock $SR "$A" FALSE host2/vm8
must vdi_get_params $SR "$A"
equal "$(field VBDs)" host1/vm7

claim 'vdi_lock with FORCE takes the lock from its holder'
must vdi_lock $SR "$A" TRUE host2/vm8
must vdi_get_params $SR "$A"
equal "$(field VBDs)" host2/vm8
fails_with ENOLCK vdi_unlock $SR "$A" FALSE host1/vm7

claim 'the lock survives sr_detach and sr_attach'
must sr_detach $SR
must sr_attach $SR
must vdi_get_params $SR "$A"
equal "$(field VBDs)" host2/vm8

claim 'vdi_unlock gives the lock back, once'
must vdi_unlock $SR "$A" FALSE host2/vm8
prints ''
must vdi_get_params $SR "$A"
equal "$(field lock)" 0
equal "$(field VBDs)" ''
fails_with ENOLCK vdi_unlock $SR "$A" FALSE host2/vm8

claim 'vdi_unlock with FORCE takes the lock from whoever has it'
must vdi_lock $SR "$A" FALSE host1/vm7
must vdi_unlock $SR "$A" TRUE host3/vm9
must vdi_get_params $SR "$A"
equal "$(field lock)" 0

claim 'vdi_lock and vdi_unlock of a VDI that does not exist fail with ENOVDI'
fails_with ENOVDI vdi_lock $SR "$NONE" FALSE u
fails_with ENOVDI vdi_unlock $SR "$NONE" FALSE u

claim 'a shareable VDI is locked by several users, once each'
create "$C" 4 --shareable
must vdi_lock $SR "$C" FALSE u1
must vdi_lock $SR "$C" FALSE u2
fails_with ENOLCK vdi_lock $SR "$C" FALSE u2
must vdi_get_params $SR "$C"
equal "$(field shareable)" '#t'
equal "$(field VBDs)" 'u1 u2'
must vdi_unlock $SR "$C" FALSE u1
must vdi_get_params $SR "$C"
equal "$(field VBDs)" u2
must vdi_unlock $SR "$C" FALSE u2
gone "$C"

claim 'a lock dies with its VDI: the UUID used again is not locked'
create "$C" 4
must vdi_lock $SR "$C" FALSE u1
must vdi_unlock $SR "$C" FALSE u1
gone "$C"
create "$C" 4
must vdi_get_params $SR "$C"
equal "$(field lock)" 0
gone "$C"

# ==== Errors

claim 'a command that does not exist fails with ENOMSG'
fails_with ENOMSG vdi_explode $SR "$A"

claim 'what is no UUID, no name and no label is refused'
for bad in '' x ../../etc/passwd -rf "$A"0 "${A//-/}" "{$A}" "$A/../$A" "$A"$'\n' '*'; do
    fails_with 'EINVAL|ENOVDI' vdi_get_params $SR -- "$bad"
    fails_with 'EINVAL|ENOSR' sr_get_params -- "$bad"
done

claim 'what is no size fails with EINVAL'
for bad in '' x -1 0 1.5 1GB '1 GiB' 0x10 16MiBx; do fails_with EINVAL vdi_create $SR "$D" -- "$bad"; done
fails_with ENOVDI vdi_get_params $SR "$D"

claim 'a size that nothing holds fails with E2BIG'
fails_with E2BIG vdi_create $SR "$D" 99999999TiB
fails_with E2BIG vdi_create $SR "$D" 99999999999999999999
fails_with E2BIG vdi_resize $SR "$A" 99999999TiB

claim 'too many arguments fail with E2BIG, too few with EINVAL'
fails_with E2BIG sr_get_params $SR "$A"
fails_with E2BIG vdi_get_params $SR "$A" "$B"
fails_with EINVAL vdi_get_params $SR
fails_with EINVAL vdi_create $SR "$D"
fails_with EINVAL sr_attach

claim 'an option that does not exist fails with EINVAL'
fails_with EINVAL sr_get_params $SR --explode

claim 'FORCE is TRUE or FALSE, and USER is a text'
fails_with EINVAL vdi_lock $SR "$A" MAYBE u
fails_with EINVAL vdi_lock $SR "$A" FALSE ''
fails_with EINVAL vdi_lock $SR "$A" FALSE $'two\nlines'

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
equal "$(field VDIs)" "$A $B"

claim 'nothing of all this changed the SR'
must sr_scan $SR
equal "$(field VDIs)" "$A $B"

# ==== Many at once

many=8
[ -z "$QUICK" ] || many=4

claim 'of many that create one VDI at once, one does, and the others hear EEXIST'
together $many vdi_create $SR "$D" 4
equal "$WON $CODES" '1 EEXIST'
gone "$D"

claim 'many that create a VDI each at once all do'
together $many vdi_create $SR "7e57ab1e-0000-4000-8000-00000000010@" 4
equal "$WON" $many
must sr_get_params $SR
true_that [ "$(field VDIs | wc -w)" = $((many + 2)) ]

claim 'many that delete them at once, listing meanwhile, all do'
together $many vdi_delete $SR "7e57ab1e-0000-4000-8000-00000000010@"
equal "$WON" $many
must sr_get_params $SR
equal "$(field VDIs)" "$A $B"

claim 'of many that lock one VDI at once, one does, and it is the holder'
together $many vdi_lock $SR "$A" FALSE user-@
equal "$WON $CODES" '1 ENOLCK'
must vdi_get_params $SR "$A"
equal "$(field VBDs | wc -w)" 1
must vdi_unlock $SR "$A" TRUE suite

claim 'of many that break a lock at once, one is the holder in the end'
must vdi_lock $SR "$A" FALSE first
together $many vdi_lock $SR "$A" TRUE user-@
true_that [ "$WON" -ge 1 ]
must vdi_get_params $SR "$A"
equal "$(field VBDs | wc -w)" 1
true_that [ "$(field VBDs)" != first ]
must vdi_unlock $SR "$A" TRUE suite

claim 'of many that attach one VDI at once, all get the same device'
needs_root
together $many vdi_attach $SR "$A"
equal "$WON" $many
true_that [ "$(cat "$SCRATCH"/out.[0-9] | sort -u | wc -l)" = 1 ]
IFS= read -r DEV <"$SCRATCH/out.1"
true_that has "$DEV" b 15
together $many vdi_detach $SR "$A"
equal "$WON" $many
must vdi_get_params $SR "$A"
equal "$(field attached)" '#f'

claim 'of many that clone to one UUID at once, one does'
may_refuse vdi_clone && skip "the driver does not support vdi_clone (EPERM)"
together 4 vdi_clone $SR "$B" "$D"
equal "$WON $CODES" '1 EEXIST'
gone "$D"

claim 'stress: create, resize, lock, clone, snapshot, delete, round and round, and the list is right each time'
rounds=6
[ -z "$QUICK" ] || rounds=1
for ((round = 1; round <= rounds; round++)); do
    list=''
    for i in 1 2 3 4; do create "$(vdi 20$i)" $((4 * i)) && list+=" $(vdi 20$i)"; done
    must vdi_resize $SR "$(vdi 201)" $((16 + round))
    must vdi_lock $SR "$(vdi 202)" FALSE stress
    may_refuse vdi_clone || { must vdi_clone $SR "$(vdi 203)" "$(vdi 301)" && list+=" $(vdi 301)"; }
    may_refuse vdi_snapshot || { must vdi_snapshot $SR "$(vdi 204)" "$(vdi 302)" && list+=" $(vdi 302)"; }
    must sr_scan $SR
    equal "$(field VDIs)" "$A $B$list"
    of_size "$(field virtual_size "$(vdi_in_scan "$(vdi 201)")")" $((16 + round))
    must vdi_unlock $SR "$(vdi 202)" FALSE stress
    for uuid in $list; do gone "$uuid"; done
    must sr_get_params $SR
    equal "$(field VDIs)" "$A $B"
done

claim 'stress: many calls of many kinds at once on one SR lose nothing and tear nothing'
rounds=3
[ -z "$QUICK" ] || rounds=1
for ((round = 1; round <= rounds; round++)); do
    together 6 vdi_create $SR "7e57ab1e-0000-4000-8000-00000000040@" 4
    equal "$WON" 6
    pids=()
    for i in 1 2 3 4 5 6; do
        uuid=$(vdi 40$i)
        {
            "$SM" vdi_resize -t "$TYPE" -d "$DCONF" $SR "$uuid" 8 &&
                "$SM" sr_scan -t "$TYPE" -d "$DCONF" $SR | grep -q "$uuid" &&
                "$SM" vdi_lock -t "$TYPE" -d "$DCONF" $SR "$uuid" FALSE u &&
                "$SM" vdi_unlock -t "$TYPE" -d "$DCONF" $SR "$uuid" FALSE u &&
                "$SM" vdi_delete -t "$TYPE" -d "$DCONF" $SR "$uuid"
        } >"$SCRATCH/mixed.$i" 2>&1 &
        pids+=($!)
    done
    for i in 1 2 3 4 5 6; do wait "${pids[i - 1]}" || fail "call $i: $(cat "$SCRATCH/mixed.$i")"; done
    must sr_get_params $SR
    equal "$(field VDIs)" "$A $B"
done

# ==== The SR goes away and comes back

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
equal "$(field VDIs)" "$A $B"
must vdi_get_params $SR "$A"
equal "$(field lock)" 0

claim 'and the data is there'
attach "$A"
true_that has "$DEV" b 0
true_that has "$DEV" b 15
detach "$A"

claim 'sm deletes no SR with VDIs in it unless told --yes'
fails_with EINVAL sr_delete $SR
says --yes
must sr_get_params $SR
equal "$(field VDIs)" "$A $B"

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
equal "$(field VDIs)" ''
must sr_detach $SR
must sr_delete $SR

claim 'nothing is left behind'
fails_with "$absent" sr_get_params $SR
true_that [ -z "$("$SM" sr_probe -t "$TYPE" -d "$DCONF" 2>/dev/null | grep $SR)" ]
if [ "$TYPE" = file ]; then true_that [ -z "$(ls -A "$DCONF" 2>/dev/null)" ]; fi

end_claim
printf '%d passed, %d failed, %d skipped\n' $PASSED $FAILED $SKIPPED
[ $FAILED -eq 0 ]
