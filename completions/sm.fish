# Completion of sm for fish. sm itself says what may stand there: commands, options, SRs, VDIs and their labels.
function __sm_complete
    set -l found (sm __complete (commandline -opc)[2..] (commandline -ct) 2> /dev/null)
    if test (count $found) -gt 0
        printf '%s\n' $found
    else
        __fish_complete_path (commandline -ct)
    end
end
complete -c sm -f -a '(__sm_complete)'
