# Completion of sm for bash. sm itself says what may stand there: commands, options, SRs, VDIs and their labels.
_sm() {
    local line
    COMPREPLY=()
    while IFS=$'\t' read -r line _; do
        COMPREPLY+=("$(printf '%q' "$line")")
    done < <(sm __complete "${COMP_WORDS[@]:1:COMP_CWORD}" 2> /dev/null)
}
complete -o bashdefault -o default -F _sm sm
