# shellcheck shell=bash
# The words of every suite of the shell: of the compliance suite and of those that run in guests. Needs bash and coreutils;
# whoever sources it has set SCRATCH, a directory, and, for calls that begin with a verb, SM (the path of `sm`), TYPE, DCONF and SR.
#
#   claim 'text'            what the following steps are to show; ends the claim before it
#   claim 'text' COMMAND …  a claim that is this one command, with steps in it or none; what it prints is shown if it fails
#   summary                 ends the last claim and counts them; true if none failed
#   fail TEXT               the claim is not so
#
# A CALL is a verb and its arguments, for one call of sm on the suite's TYPE and DCONF, or any other command.
#
#   must CALL               it succeeds; a verb prints nothing on stderr
#   may_be NAME CALL        it succeeds, or fails as fails_with says; true if it succeeded
#   may_refuse VERB         true if the driver's row lets it answer EPERM
#   fails_with NAME CALL    it fails as the table says: status, nothing on stdout, one line on stderr
#   says TEXT               the message of the failed call has TEXT in it
#   prints TEXT             the last call printed exactly TEXT and a newline, or nothing if TEXT is empty
#   is GOT WANT [OF]        two texts are the same; OF what, if the claim does not tell
#   true_that TEST …        a command that succeeds
#   false_that TEST …       a command that fails, by itself and not by a signal
#   field NAME [DATUM]      sets FIELD to a field of the last answer (or DATUM), strings without their quotes
#   shows NAME VALUE [DATUM]
#                           that field has that value
#   has_words NAME N        that field of the last answer has N words
#   vdi_in_scan UUID        sets FOUND to the (vdi …) of one VDI within the answer of sr_scan
#   skip REASON             the driver says that it does not do what this claim is about
#   lacks REASON            this machine cannot show it; a failure where SM_TESTS_SKIP_NOTHING is set
#   together N VERB …       N calls at once, `@` in an argument is the call's number; sets WON and CODES
#
# After the first step that fails or skips, the rest of the claim's steps do nothing, and `tidy`, which whoever
# sources this may define, puts the scene in order before the next claim. A claim without steps is not told.

PASSED=0 FAILED=0 SKIPPED=0
CLAIM='' STATE=none BEGUN=0 STEPS=0
OUT='' SAID='' STATUS=0 SHOWN='' FIELD='' FOUND=''

claim() {
    local said
    end_claim
    CLAIM=$1 STATE=open BEGUN=$SECONDS STEPS=0 SHOWN=''
    at "$CLAIM"
    [ -z "${VERBOSE-}" ] || printf '# %s\n' "$CLAIM"
    [ $# -gt 1 ] || return 0
    shift
    STEPS=1
    # A process of its own: what the command sets or changes to is no matter of the next claim.
    said=$("$@" 2>&1) || fail "this should be so: $*"$'\n'"     ${said//$'\n'/$'\n'     }" || :
    end_claim
}

# at TEXT: what comes now. tests/guest/suites tells it if the suite never comes to its end.
at() { printf '%s\n' "$1" >"${AT:-/dev/null}"; }

# Each step asks whether it stands in a claim that is neither failed nor skipped.
in_claim() {
    STEPS=$((STEPS + 1))
    [ "$STATE" != open ] || return 0
    [ "$STATE" != none ] || { FAILED=$((FAILED + 1)) && printf 'FAIL a step stands in no claim: %s\n' "$*"; }
    return 1
}

tidy() { :; }

summary() {
    end_claim
    printf '%d passed, %d failed, %d skipped\n' $PASSED $FAILED $SKIPPED
    [ $FAILED = 0 ]
}

end_claim() {
    case $STATE in
    open) [ $STEPS = 0 ] || { PASSED=$((PASSED + 1)) && printf 'PASS %s%s\n' "$CLAIM" "$(took)"; } ;;
    failed) FAILED=$((FAILED + 1)) && tidy ;;
    skipped) SKIPPED=$((SKIPPED + 1)) && tidy ;;
    esac
    STATE=none
}

took() { # how long the claim took, if that is worth a word
    if [ $((SECONDS - BEGUN)) -gt 2 ]; then printf ' (%d s)' $((SECONDS - BEGUN)); fi
}

fail() { # what was seen; the last call is shown below it
    in_claim fail "$1" || return 1
    STATE=failed
    printf 'FAIL %s: %s\n' "$CLAIM" "$1"
    [ -z "$SHOWN" ] || printf '     $ %s\n     status %s, stdout %q, stderr %q\n' "$SHOWN" "$STATUS" "$OUT" "$SAID"
    return 1
}

skip() {
    in_claim skip "$1" || return 1
    STATE=skipped
    printf 'SKIP %s: %s\n' "$CLAIM" "$1"
    return 1
}

lacks() {
    if [ -n "${SM_TESTS_SKIP_NOTHING-}" ]; then fail "$1"; else skip "$1"; fi
}

is_verb() { [[ $1 == sr_* || $1 == vdi_* ]] && [ "$(type -t "$1")" != function ]; }

# One call. A verb has no standard input, and descriptor 9, which holds devices open, is not passed on to it.
perform() {
    STATUS=0
    if is_verb "$1"; then
        SHOWN="sm $1 -t $TYPE -d $DCONF ${*:2}"
        "$SM" "$1" -t "$TYPE" -d "$DCONF" "${@:2}" </dev/null >"$SCRATCH/stdout" 2>"$SCRATCH/stderr" 9<&- || STATUS=$?
    else
        SHOWN=$*
        "$@" >"$SCRATCH/stdout" 2>"$SCRATCH/stderr" || STATUS=$?
    fi
    IFS= read -r -d '' OUT <"$SCRATCH/stdout" || :
    IFS= read -r -d '' SAID <"$SCRATCH/stderr" || :
    [ -z "${VERBOSE-}" ] || printf '  $ %s\n%s%s' "$SHOWN" "${OUT:+    $OUT}" "${SAID:+    $SAID}"
    died "$STATUS" "$SAID"
}

# Neither a signal nor a panic is ever an answer.
died() {
    [ "$1" -le 128 ] || fail "died of signal $(($1 - 128))"
    case $2 in *panicked*) fail 'it panicked' ;; esac
    [ "$STATE" = open ]
}

may_refuse() { [[ " ${MAY_REFUSE-} " == *" $1 "* ]]; }

must() {
    in_claim must "$@" || return 1
    perform "$@" || return 1
    if [ "$STATUS" = 1 ] && may_refuse "$1"; then
        skip "the driver does not support $1 (EPERM)" || return 1
    fi
    [ "$STATUS" = 0 ] || fail 'it should succeed' || return 1
    [ -z "$SAID" ] || ! is_verb "$1" || fail 'it succeeded with words on stderr'
}

may_be() {
    in_claim may_be "$@" || return 1
    perform "${@:2}" || return 1
    if [ "$STATUS" = 0 ]; then return 0; fi
    failed_with "$1" "$2"
    return 1
}

# NAME may be several, A|B, where the specification leaves the choice.
fails_with() {
    in_claim fails_with "$@" || return 1
    perform "${@:2}" && failed_with "$1" "$2"
}

failed_with() { # NAME VERB: how the last call did
    local names=$1 verb=$2 name=${SAID%%:*}
    [ "$STATUS" != 0 ] || fail "it should fail with $names" || return 1
    if [ "$name" = EPERM ] && [ "$names" != EPERM ] && may_refuse "$verb"; then
        skip "the driver does not support $verb (EPERM)" || return 1
    fi
    case "|$names|" in *"|$name|"*) ;; *) fail "it should fail with $names" || return 1 ;; esac
    number "$name"
    [ "$STATUS" = "${NUMBER:-$STATUS}" ] || fail "the status of $name is $NUMBER" || return 1
    [ -z "$OUT" ] || fail 'a failure prints nothing on stdout' || return 1
    case ${SAID%$'\n'} in *$'\n'*) fail 'a failure is one line on stderr' || return 1 ;; esac
    [ "${SAID%$'\n'}" != "$SAID" ] || fail 'the line on stderr has no end'
}

number() { # sets NUMBER to that of an error of a verb; SR API v1.0, "Results"
    case $1 in
    EPERM) NUMBER=1 ;; EIO) NUMBER=5 ;; E2BIG) NUMBER=7 ;; EACCES) NUMBER=13 ;; EBUSY) NUMBER=16 ;; EEXIST) NUMBER=17 ;;
    ENODEV) NUMBER=19 ;; EINVAL) NUMBER=22 ;; ENOSPC) NUMBER=28 ;; ENOLCK) NUMBER=37 ;; ENOMSG) NUMBER=42 ;;
    ENOSR) NUMBER=100 ;; ENOVDI) NUMBER=101 ;; ESRBUSY) NUMBER=102 ;; EVDIBUSY) NUMBER=103 ;; *) NUMBER='' ;;
    esac
}

says() {
    in_claim says "$@" || return 1
    case $SAID in *"$1"*) ;; *) fail "the message should have '$1' in it" ;; esac
}

prints() {
    in_claim prints "$@" || return 1
    [ "$OUT" = "${1:+$1$'\n'}" ] || fail "it should print exactly '$1'"
}

is() {
    in_claim is "$@" || return 1
    [ "$1" = "$2" ] || fail "${3-}${3:+: }'$1' should be '$2'"
}

true_that() {
    in_claim true_that "$@" || return 1
    "$@" >"$SCRATCH/test" 2>&1 || fail "this should be so: $*"
}

false_that() {
    in_claim false_that "$@" || return 1
    local status
    "$@" >"$SCRATCH/test" 2>&1
    status=$?
    [ $status != 0 ] || fail "this should not be so: $*" || return 1
    [ $status -le 128 ] || fail "died of a signal: $*"
}

# It sets a variable: in a guest, a command substitution costs as much as the start of a program.
field() {
    local text=${2-$OUT}
    FIELD=''
    local one="\\($1 \\. (\"(([^\"\\\\]|\\\\.)*)\"|[^ ()\"]+)\\)" list="\\($1(( \"([^\"\\\\]|\\\\.)*\")*)\\)"
    if [[ $text =~ $one ]]; then
        case ${BASH_REMATCH[1]} in '"'*) FIELD=${BASH_REMATCH[2]} ;; *) FIELD=${BASH_REMATCH[1]} ;; esac
    elif [[ $text =~ $list ]]; then
        text=${BASH_REMATCH[1]# }
        FIELD=${text//\"/}
    fi
}

shows() {
    in_claim shows "$@" || return 1
    field "$1" "${3-$OUT}"
    [ "$FIELD" = "$2" ] || fail "$1 is '$FIELD' and should be '$2'"
}

has_words() {
    in_claim has_words "$@" || return 1
    local words
    field "$1"
    read -r -a words <<<"$FIELD"
    [ ${#words[@]} = "$2" ] || fail "$1 should be $2 words and is '$FIELD'"
}

vdi_in_scan() {
    local rest=${OUT#*"(vdi (uuid . \"$1\")"}
    # shellcheck disable=SC2034 # the chapters read it
    FOUND=''
    # shellcheck disable=SC2034
    [ "$rest" = "$OUT" ] || FOUND="(vdi (uuid . \"$1\")${rest%%'(vdi (uuid'*}"
}

one_line() { [[ $1 == *$'\n' && ${1%$'\n'} != *$'\n'* ]]; }

together() {
    local n=$1 verb=$2 i code pids=()
    shift 2
    WON=0 CODES=''
    in_claim together "$@" || return 1
    SHOWN="$n times at once: sm $verb -t $TYPE -d $DCONF $*"
    for ((i = 1; i <= n; i++)); do
        "$SM" "$verb" -t "$TYPE" -d "$DCONF" "${@//@/$i}" </dev/null >"$SCRATCH/out.$i" 2>"$SCRATCH/err.$i" &
        pids+=($!)
    done
    for ((i = 1; i <= n; i++)); do
        wait "${pids[i - 1]}"
        code=$?
        IFS= read -r -d '' OUT <"$SCRATCH/out.$i"
        IFS= read -r -d '' SAID <"$SCRATCH/err.$i"
        STATUS=$code
        died "$code" "$SAID" || return 1
        code=${SAID%%:*}
        if [ "$STATUS" = 0 ]; then
            WON=$((WON + 1))
        elif [[ " $CODES " != *" $code "* ]]; then
            CODES=${CODES:+$CODES }$code
        fi
    done
}
