#!/usr/bin/env bash
# The compliance suite of SR API v1.0: whether a driver does what its callers rely on, through `sm` alone.
#
#   test1.sh -t TYPE -d DCONF [-f FORMAT] [--sr UUID] [--chapter NAME] [--without NAME] … [--quick] [--keep] [-v]
#
#   -t, -d    the driver and the place it may use; the place holds no SR, and holds none afterwards
#   -f        the format of the VDIs (raw, vhd, qcow2); without it the driver's default
#   --sr      an SR that is there, attached and empty, instead of one that the suite makes; it is left so. The chapters birth and
#             end, which make and delete an SR, are left out
#   --chapter one chapter alone, a file of tests/sh/test1: birth, vdis, device, copies, resize, transfer, locks, words,
#             errors, many or end
#   --without a chapter that is left out, of those that leave the SR as they found it: locks, words, errors or many
#   --quick   little stress
#   --keep    leave the scene as it is when a claim fails
#   -v        show every step
#
# `sm` is taken from $BIN, a directory; without it from PATH, then from the newest build. Prints PASS, FAIL or SKIP
# and the claim, a line each, then the count. Status: 0 if nothing failed, 1 if something did, 2 if it could
# not start.
#
# Judging a new driver takes a row in the table below. The claims are in the chapters, which test1.sh sources in this order.

set -u
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$here/lib.sh"

CHAPTERS='birth vdis device copies resize transfer locks words errors many end'
TYPE='' DCONF='' FORMAT='' GIVEN='' CHAPTER='' WITHOUT='' QUICK='' KEEP='' VERBOSE=''
refuse() { printf '%s: %s\n' "${0##*/}" "$1" >&2 && exit 2; }
while [ $# -gt 0 ]; do
    case $1 in
    -t) TYPE=${2-} && shift ;; -d) DCONF=${2-} && shift ;; -f) FORMAT=${2-} && shift ;;
    --sr) GIVEN=${2:-none} WITHOUT+=' birth end ' && shift ;;
    --chapter)
        CHAPTER=${2-} && shift
        [[ " $CHAPTERS " == *" ${CHAPTER:-none} "* ]] || refuse "--chapter is one of $CHAPTERS"
        ;;
    --without)
        [[ ' locks words errors many ' == *" ${2:-none} "* ]] || refuse '--without is one of locks words errors many'
        WITHOUT+=" $2 " && shift
        ;;
    --quick) QUICK=yes ;; --keep) KEEP=yes ;; -v) VERBOSE=yes ;;
    *) refuse "what is $1? usage: test1.sh -t TYPE -d DCONF [-f FORMAT] [--sr UUID] [--chapter NAME] [--without NAME] … [--quick] [--keep] [-v]" ;;
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
smb)
    FORMATS='vhd raw qcow2' ALONE=no
    case $DCONF in
    //*) LIST="((server . \"$DCONF\"))" NOWHERE=$DCONF/nonexistent/directory ;;
    '((server . "'*)
        share=${DCONF#'((server . "'}
        NOWHERE="((server . \"${share%%\"*}/nonexistent/directory\"${share#*\"}"
        ;;
    esac
    ;;
glusterfs)
    FORMATS='vhd raw qcow2' ALONE=no LIST="((server . \"$DCONF\"))" NOWHERE=$DCONF/nonexistent/directory
    ;;
moosefs)
    FORMATS='vhd raw qcow2' ALONE=no NOWHERE=$DCONF/nonexistent/directory
    LIST="((masterhost . \"${DCONF%%:*}\") (rootpath . \"${DCONF##*:}\"))"
    ;;
cephfs)
    FORMATS='vhd raw qcow2' ALONE=no
    case $DCONF in
    *'(serverpath . "'*) path=${DCONF#*'(serverpath . "'} NOWHERE="${DCONF%"$path"}${path%%\"*}/nonexistent/directory\"${path#*\"}" ;;
    *) NOWHERE=$DCONF/nonexistent/directory LIST="((server . \"${DCONF%%:*}\") (serverpath . \"${DCONF##*:}\"))" ;;
    esac
    ;;
zfs)
    FORMATS='vhd raw qcow2' LIST="((location . \"$DCONF\"))" NOWHERE=/nonexistent/below/sr
    ;;
lvm | lvmraw)
    # The volume group is there whenever its devices are.
    UNIT=4194304 DETACH_ENDS=no NOWHERE=/dev/nonexistent
    case $DCONF in
    *thin*) ;;
    *) MAY_REFUSE='vdi_clone vdi_snapshot' THIN=no LIST="((device . \"$DCONF\"))" ;;
    esac
    ;;
lvmoiscsi)
    UNIT=4194304 NOWHERE=${DCONF%/*}/3nonexistent
    case $DCONF in
    *thin*) NOWHERE='' ;;
    *) MAY_REFUSE='vdi_clone vdi_snapshot' THIN=no ;;
    esac
    case $DCONF in
    iscsi@*)
        keys=${DCONF#iscsi@}
        LIST="((target . \"${keys%%/*}\") (SCSIid . \"${keys##*/}\") (targetIQN . \"$(basename "${keys%/*}")\"))"
        ;;
    esac
    ;;
lvmohba)
    UNIT=4194304 DETACH_ENDS=no NOWHERE=hba@3nonexistent
    case $DCONF in
    *thin*) ;;
    *) MAY_REFUSE='vdi_clone vdi_snapshot' THIN=no LIST="((SCSIid . \"${DCONF#hba@}\"))" ;;
    esac
    ;;
ext | xfs | largeblock)
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

SR=${GIVEN:-7e57ab1e-0000-4000-8000-0000000000ff}
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
        if [ -n "$STARTED" ] && [ -n "$GIVEN" ]; then
            tidy
            for uuid in "$A" "$B"; do "$SM" vdi_delete -t "$TYPE" -d "$DCONF" "$SR" "$uuid" >/dev/null 2>&1; done
        elif [ -n "$STARTED" ]; then
            tidy
            "$SM" sr_delete -t "$TYPE" -d "$DCONF" "$SR" --yes >/dev/null 2>&1
        fi
        rm -rf "$SCRATCH"
    fi
}
trap finish EXIT
trap 'exit 2' HUP INT TERM

leftovers() { refuse "$1; this suite wants a place with no SR in it (sm sr_delete --yes -t $TYPE -d $DCONF $SR clears what it left)"; }
if [ -n "$GIVEN" ]; then
    [[ $GIVEN =~ ^[0-9a-f-]{36}$ ]] || refuse '--sr wants a UUID'
    found=$("$SM" sr_get_params -t "$TYPE" -d "$DCONF" "$SR") || refuse "SR $SR is not there, or not attached"
    field VDIs "$found"
    [ -z "$FIELD" ] || refuse "SR $SR has VDIs"
    found=''
else
    found=$("$SM" sr_probe -t "$TYPE" -d "$DCONF" 2>/dev/null)
fi
case $found in
*"$SR"* | *"$OTHER_SR"*) leftovers "$DCONF holds what an earlier run left" ;;
*'(sr (uuid'*) [ $ALONE = no ] || leftovers "$DCONF holds an SR" ;;
esac
[ -n "$GIVEN" ] || [ "$TYPE" != file ] || [ ! -e "$DCONF" ] || [ -z "$(ls -A "$DCONF" 2>&1)" ] || leftovers "$DCONF is not empty"
STARTED=yes DEV=''

# Every VDI detached and unlocked, and none but A and B there.
tidy() {
    local uuid listed
    exec 9<&-
    listed=$("$SM" sr_get_params -t "$TYPE" -d "$DCONF" "$SR" 2>/dev/null)
    field VDIs "$listed"
    for uuid in $FIELD; do
        [ "$EUID" != 0 ] || "$SM" vdi_detach -t "$TYPE" -d "$DCONF" "$SR" "$uuid"
        "$SM" vdi_unlock -t "$TYPE" -d "$DCONF" "$SR" "$uuid" TRUE suite
        case $uuid in "$A" | "$B") ;; *) "$SM" vdi_delete -t "$TYPE" -d "$DCONF" "$SR" "$uuid" ;; esac
    done
} >/dev/null 2>&1

# ---- Words of this suite, made of those in lib.sh.

create() { must vdi_create "$SR" "$1" "$2" "${@:3}" ${FORMAT:+--type "$FORMAT"}; }
# of_size MB [DATUM]: the virtual_size that the last answer (or DATUM) tells is what was asked for, as it may be after rounding up.
of_size() {
    in_claim of_size "$@" || return 1
    local wanted=$(($1 * MIB))
    field virtual_size "${2-$OUT}"
    if [ "${FIELD:-0}" -lt $wanted ] || [ "$FIELD" -ge $((wanted + UNIT)) ]; then
        fail "virtual_size $FIELD should be $wanted, rounded up by less than $UNIT"
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
    size=$("$SM" vdi_get_params -t "$TYPE" -d "$DCONF" "$SR" "$1") || return
    field virtual_size "$size"
    "$SM" vdi_export -t "$TYPE" -d "$DCONF" "$SR" "$1" - |
        "$SM" vdi_import -t "$TYPE" -d "$DCONF" "$SR" "$2" - --size "${FIELD}B" ${FORMAT:+--type "$FORMAT"}
    [ "${PIPESTATUS[*]}" = '0 0' ]
}
bytes_of() { blockdev --getsize64 "$1" 2>/dev/null; }
# Patterns: 1 MiB each, no two blocks of them alike.
for letter in a b c; do yes "pattern $letter of the suite" | nl | head -c $MIB >"$SCRATCH/$letter"; done
put() { dd if="$SCRATCH/$2" of="$1" bs=$MIB seek="$3" conv=notrunc,fsync status=none; }            # DEV PATTERN AT
has() { cmp -n $MIB -i $(($3 * MIB)):0 "$1" "$SCRATCH/$2"; }                                      # DEV PATTERN AT
zeroes() { cmp -n $MIB -i $(($2 * MIB)):0 "$1" /dev/zero; }                                        # DEV AT
absent='ENOSR'
[ $DETACH_ENDS = no ] || absent='ENOSR|ESRBUSY|ENODEV'
# The kernel forgets the disks of a LUN when its SR is deleted.
[ "$TYPE" != lvmohba ] || absent='ENOSR|ESRBUSY'

# ---- The scene of a chapter that is run alone. In a whole run the chapters before it have left it so.

scene() { # VERB [ARG …]: a call that the scene needs
    "$SM" "$1" -t "$TYPE" -d "$DCONF" "${@:2}" </dev/null >"$SCRATCH/stdout" || refuse "the scene of $CHAPTER cannot be made"
}
given_sr() {
    [ -n "$CHAPTER" ] && [ -z "$GIVEN" ] || return 0
    scene sr_create "$SR"
    scene sr_attach "$SR"
}
given_disks() { # [PATTERN AT] …: A of 16 MB with these patterns, B of 20 MB
    [ -n "$CHAPTER" ] || return 0
    given_sr
    scene vdi_create "$SR" "$A" 16 ${FORMAT:+--type "$FORMAT"}
    scene vdi_create "$SR" "$B" 20 ${FORMAT:+--type "$FORMAT"}
    [ $# != 0 ] && [ "$EUID" = 0 ] || return 0
    scene vdi_attach "$SR" "$A"
    IFS= read -r DEV <"$SCRATCH/stdout"
    while [ $# -gt 1 ]; do
        put "$DEV" "$1" "$2" || refuse "$DEV cannot be written to"
        shift 2
    done
    scene vdi_detach "$SR" "$A"
}

is_wanted() { [ "${CHAPTER:-$1}" = "$1" ] && [[ $WITHOUT != *" $1 "* ]]; }
# shellcheck source-path=SCRIPTDIR source=test1/birth.sh
if is_wanted birth; then . "$here/test1/birth.sh"; fi
# shellcheck source-path=SCRIPTDIR source=test1/vdis.sh
if is_wanted vdis; then . "$here/test1/vdis.sh"; fi
# shellcheck source-path=SCRIPTDIR source=test1/device.sh
if is_wanted device; then . "$here/test1/device.sh"; fi
# shellcheck source-path=SCRIPTDIR source=test1/copies.sh
if is_wanted copies; then . "$here/test1/copies.sh"; fi
# shellcheck source-path=SCRIPTDIR source=test1/resize.sh
if is_wanted resize; then . "$here/test1/resize.sh"; fi
# shellcheck source-path=SCRIPTDIR source=test1/transfer.sh
if is_wanted transfer; then . "$here/test1/transfer.sh"; fi
# shellcheck source-path=SCRIPTDIR source=test1/locks.sh
if is_wanted locks; then . "$here/test1/locks.sh"; fi
# shellcheck source-path=SCRIPTDIR source=test1/words.sh
if is_wanted words; then . "$here/test1/words.sh"; fi
# shellcheck source-path=SCRIPTDIR source=test1/errors.sh
if is_wanted errors; then . "$here/test1/errors.sh"; fi
# shellcheck source-path=SCRIPTDIR source=test1/many.sh
if is_wanted many; then . "$here/test1/many.sh"; fi
# shellcheck source-path=SCRIPTDIR source=test1/end.sh
if is_wanted end; then . "$here/test1/end.sh"; fi

summary
