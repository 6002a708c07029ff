# shellcheck shell=bash
# The verbs of the compliance suite. Needs bash and coreutils; whoever sources it has set SM (the path of
# `sm`), TYPE, DCONF and SR.
#
#   claim 'text'            what the following steps are to show; ends the claim before it
#   must VERB ARG …         one call of sm that succeeds and prints nothing on stderr
#   may_be NAME VERB ARG …  one that succeeds, or fails as fails_with says; true if it succeeded
#   may_refuse VERB         true if the driver's row lets it answer EPERM
#   fails_with NAME VERB …  one that fails as the table says: status, nothing on stdout, one line on stderr
#   says TEXT               the message of the failed call has TEXT in it
#   prints TEXT             the last call printed exactly TEXT and a newline, or nothing if TEXT is empty
#   equal GOT WANT          two texts are the same
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
# sources this defines, puts the scene in order before the next claim.

PASSED=0 FAILED=0 SKIPPED=0
CLAIM='' STATE=none BEGUN=0
OUT='' SAID='' STATUS=0 SHOWN='' FIELD='' FOUND=''

claim() {
    end_claim
    CLAIM=$1 STATE=open BEGUN=$SECONDS
    # Told by tests/guest/suites if this never comes to its end.
    printf '%s\n' "$CLAIM" >"${AT:-/dev/null}"
    [ -z "${VERBOSE-}" ] || printf '# %s\n' "$CLAIM"
}

end_claim() {
    case $STATE in
    open) PASSED=$((PASSED + 1)) && printf 'PASS %s%s\n' "$CLAIM" "$(took)" ;;
    failed) FAILED=$((FAILED + 1)) && tidy ;;
    skipped) SKIPPED=$((SKIPPED + 1)) && tidy ;;
    esac
    STATE=none
}

took() { # how long the claim took, if that is worth a word
    if [ $((SECONDS - BEGUN)) -gt 2 ]; then printf ' (%d s)' $((SECONDS - BEGUN)); fi
}

fail() { # what was seen; the last call is shown below it
    [ "$STATE" = open ] || return 1
    STATE=failed
    printf 'FAIL %s: %s\n' "$CLAIM" "$1"
    [ -z "$SHOWN" ] || printf '     $ %s\n     status %s, stdout %q, stderr %q\n' "$SHOWN" "$STATUS" "$OUT" "$SAID"
    return 1
}

skip() {
    [ "$STATE" = open ] || return 1
    STATE=skipped
    printf 'SKIP %s: %s\n' "$CLAIM" "$1"
    return 1
}

lacks() {
    if [ -n "${SM_TESTS_SKIP_NOTHING-}" ]; then fail "$1"; else skip "$1"; fi
}

# One call. Standard input is empty, and descriptor 9, which holds devices open, is not passed on.
run() {
    local verb=$1
    shift
    SHOWN="sm $verb -t $TYPE -d $DCONF $*"
    "$SM" "$verb" -t "$TYPE" -d "$DCONF" "$@" </dev/null >"$SCRATCH/out" 2>"$SCRATCH/err" 9<&-
    STATUS=$?
    IFS= read -r -d '' OUT <"$SCRATCH/out"
    IFS= read -r -d '' SAID <"$SCRATCH/err"
    [ -z "${VERBOSE-}" ] || printf '  $ %s\n%s%s' "$SHOWN" "${OUT:+    $OUT}" "${SAID:+    $SAID}"
    died "$STATUS" "$SAID"
}

# Neither a signal nor a panic is ever an answer.
died() {
    [ "$1" -le 128 ] || fail "died of signal $(($1 - 128))"
    case $2 in *panicked*) fail 'it panicked' ;; esac
    [ "$STATE" = open ]
}

may_refuse() { [[ " $MAY_REFUSE " == *" $1 "* ]]; }

must() {
    [ "$STATE" = open ] || return 1
    run "$@" || return 1
    if [ "$STATUS" = 1 ] && may_refuse "$1"; then
        skip "the driver does not support $1 (EPERM)" || return 1
    fi
    [ "$STATUS" = 0 ] || fail 'it should succeed' || return 1
    [ -z "$SAID" ] || fail 'it succeeded with words on stderr'
}

may_be() {
    [ "$STATE" = open ] || return 1
    run "${@:2}" || return 1
    if [ "$STATUS" = 0 ]; then return 0; fi
    failed_with "$1" "$2"
    return 1
}

# NAME may be several, A|B, where the specification leaves the choice.
fails_with() {
    [ "$STATE" = open ] || return 1
    run "${@:2}" && failed_with "$1" "$2"
}

failed_with() { # NAME VERB: how the last call did
    local names=$1 verb=$2 name=${SAID%%:*} want
    if [ "$name" = EPERM ] && [ "$names" != EPERM ] && may_refuse "$verb"; then
        skip "the driver does not support $verb (EPERM)" || return 1
    fi
    case "|$names|" in *"|$name|"*) ;; *) fail "it should fail with $names" || return 1 ;; esac
    want=$(number "$name")
    [ "$STATUS" = "$want" ] || fail "the status of $name is $want" || return 1
    [ -z "$OUT" ] || fail 'a failure prints nothing on stdout' || return 1
    case ${SAID%$'\n'} in *$'\n'*) fail 'a failure is one line on stderr' || return 1 ;; esac
    [ "${SAID%$'\n'}" != "$SAID" ] || fail 'the line on stderr has no end'
}

number() { # of an error; SR API v1.0, "Results"
    case $1 in
    EPERM) echo 1 ;; EIO) echo 5 ;; E2BIG) echo 7 ;; EACCES) echo 13 ;; EBUSY) echo 16 ;; EEXIST) echo 17 ;;
    ENODEV) echo 19 ;; EINVAL) echo 22 ;; ENOSPC) echo 28 ;; ENOLCK) echo 37 ;; ENOMSG) echo 42 ;;
    ENOSR) echo 100 ;; ENOVDI) echo 101 ;; ESRBUSY) echo 102 ;; EVDIBUSY) echo 103 ;; *) echo none ;;
    esac
}

says() {
    [ "$STATE" = open ] || return 1
    case $SAID in *"$1"*) ;; *) fail "the message should have '$1' in it" ;; esac
}

prints() {
    [ "$STATE" = open ] || return 1
    [ "$OUT" = "${1:+$1$'\n'}" ] || fail "it should print exactly '$1'"
}

equal() {
    [ "$STATE" = open ] || return 1
    [ "$1" = "$2" ] || fail "'$1' should be '$2'"
}

true_that() {
    [ "$STATE" = open ] || return 1
    "$@" >"$SCRATCH/test" 2>&1 || fail "this should be so: $*"
}

false_that() {
    [ "$STATE" = open ] || return 1
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
    [ "$STATE" = open ] || return 1
    field "$1" "${3-$OUT}"
    [ "$FIELD" = "$2" ] || fail "$1 is '$FIELD' and should be '$2'"
}

has_words() {
    [ "$STATE" = open ] || return 1
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
    [ "$STATE" = open ] || return 1
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
