# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_sm_global_optspecs
    string join \n t/sr-type= wait= format= d/dconf= v/verbose h/help V/version
end

function __fish_sm_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_sm_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_sm_using_subcommand
    set -l cmd (__fish_sm_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c sm -n "__fish_sm_needs_command" -s t -l sr-type -d 'Type of the SR; the help of -d lists the types' -r
complete -c sm -n "__fish_sm_needs_command" -l wait -d 'Seconds to wait for other calls on the same SR or VDI, before ESRBUSY' -r
complete -c sm -n "__fish_sm_needs_command" -l format -d 'Form of the answer. Without this option sm writes a table on a terminal, and s-expressions otherwise' -r -f -a "sexp\t'S-expressions, for Scheme and serde-lexpr'
lisp\t'S-expressions with t and nil for booleans, for Emacs and Common Lisp'
json\t''
table\t'For people'"
complete -c sm -n "__fish_sm_needs_command" -s d -l dconf -d 'Where the SR lives: the type\'s short form, or ((key . "value") …) with device_config keys' -r
complete -c sm -n "__fish_sm_needs_command" -s v -l verbose -d 'Say on stderr what names stand for, and how long the command took.'
complete -c sm -n "__fish_sm_needs_command" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c sm -n "__fish_sm_needs_command" -s V -l version -d 'Print version'
complete -c sm -n "__fish_sm_needs_command" -f -a "sr_delete" -d 'Delete an SR and every VDI in it; the files of an ISO SR stay. Succeeds if there is none; fails while a VDI is in use'
complete -c sm -n "__fish_sm_needs_command" -f -a "sr_attach" -d 'Make an SR available on this host, and repair what a crash left'
complete -c sm -n "__fish_sm_needs_command" -f -a "sr_detach" -d 'End the availability of an SR on this host. Fails while a VDI is attached'
complete -c sm -n "__fish_sm_needs_command" -f -a "sr_get_params" -d 'Print what is known of an SR: (sr …)'
complete -c sm -n "__fish_sm_needs_command" -f -a "sr_scan" -d 'Print an SR with every VDI in it: (sr … (vdis (vdi …) …))'
complete -c sm -n "__fish_sm_needs_command" -f -a "sr_collect" -d 'Give space back: merge the images that deleted snapshots and clones left, also below disks in use'
complete -c sm -n "__fish_sm_needs_command" -f -a "sr_check" -d 'Say what is wrong with an SR and its VDIs: images, chains, records of killed calls. Status 5 if anything is wrong that is not mended'
complete -c sm -n "__fish_sm_needs_command" -f -a "sr_content_type" -d 'Print the kind of content of an SR: raw or iso'
complete -c sm -n "__fish_sm_needs_command" -f -a "sr_probe" -d 'Print the SRs that a DCONF holds: (srs (sr …) …)'
complete -c sm -n "__fish_sm_needs_command" -f -a "vdi_create" -d 'Make a VDI of zeroes. Fails if the VDI exists'
complete -c sm -n "__fish_sm_needs_command" -f -a "vdi_delete" -d 'Delete a VDI. Succeeds if there is no such VDI; fails while the VDI is attached or locked'
complete -c sm -n "__fish_sm_needs_command" -f -a "vdi_attach" -d 'Make a block device of a VDI and print its path. An attached VDI keeps the path that it has'
complete -c sm -n "__fish_sm_needs_command" -f -a "vdi_detach" -d 'Remove the block device of a VDI. Fails while a process has the device open, and names the process'
complete -c sm -n "__fish_sm_needs_command" -f -a "vdi_clone" -d 'Make a writable copy of a VDI that is neither attached nor locked'
complete -c sm -n "__fish_sm_needs_command" -f -a "vdi_snapshot" -d 'Make a read-only copy of a VDI as it is now'
complete -c sm -n "__fish_sm_needs_command" -f -a "vdi_resize" -d 'Change the size of a VDI that is not read-only. VHD and qcow2 can only grow'
complete -c sm -n "__fish_sm_needs_command" -f -a "vdi_lock" -d 'Take the persistent lock of a VDI. Every host that has the SR sees the lock'
complete -c sm -n "__fish_sm_needs_command" -f -a "vdi_unlock" -d 'Give the persistent lock of a VDI back'
complete -c sm -n "__fish_sm_needs_command" -f -a "vdi_get_params" -d 'Print what is known of a VDI: (vdi …)'
complete -c sm -n "__fish_sm_needs_command" -f -a "vdi_export" -d 'Write the disk of a VDI to a file or a pipe. Fails while a writable VDI is attached'
complete -c sm -n "__fish_sm_needs_command" -f -a "vdi_import" -d 'Make a VDI of the contents of a file or a pipe'
complete -c sm -n "__fish_sm_needs_command" -f -a "vdi_tree" -d 'Draw the chains of an SR: which image is whose parent, and what each takes. --format sexp, lisp or json gives the same as data'
complete -c sm -n "__fish_sm_needs_command" -f -a "sr_list" -d 'List the SRs of this host: those with a name, those that are mounted, and those that are volume groups'
complete -c sm -n "__fish_sm_needs_command" -f -a "sr_create" -d 'Make an SR. Fails if the SR exists'
complete -c sm -n "__fish_sm_using_subcommand sr_delete" -s t -l sr-type -d 'Type of the SR; the help of -d lists the types' -r
complete -c sm -n "__fish_sm_using_subcommand sr_delete" -l wait -d 'Seconds to wait for other calls on the same SR or VDI, before ESRBUSY' -r
complete -c sm -n "__fish_sm_using_subcommand sr_delete" -l format -d 'Form of the answer. Without this option sm writes a table on a terminal, and s-expressions otherwise' -r -f -a "sexp\t'S-expressions, for Scheme and serde-lexpr'
lisp\t'S-expressions with t and nil for booleans, for Emacs and Common Lisp'
json\t''
table\t'For people'"
complete -c sm -n "__fish_sm_using_subcommand sr_delete" -s d -l dconf -d 'Where the SR lives: the type\'s short form, or ((key . "value") …) with device_config keys' -r
complete -c sm -n "__fish_sm_using_subcommand sr_delete" -l yes -d 'Delete the VDIs in the SR too. sm wants this option if there are any; the drivers do not'
complete -c sm -n "__fish_sm_using_subcommand sr_delete" -s n -l dry-run -d 'Change nothing, and print what would be done.'
complete -c sm -n "__fish_sm_using_subcommand sr_delete" -s v -l verbose -d 'Say on stderr what names stand for, and how long the command took.'
complete -c sm -n "__fish_sm_using_subcommand sr_delete" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c sm -n "__fish_sm_using_subcommand sr_attach" -s t -l sr-type -d 'Type of the SR; the help of -d lists the types' -r
complete -c sm -n "__fish_sm_using_subcommand sr_attach" -l wait -d 'Seconds to wait for other calls on the same SR or VDI, before ESRBUSY' -r
complete -c sm -n "__fish_sm_using_subcommand sr_attach" -l format -d 'Form of the answer. Without this option sm writes a table on a terminal, and s-expressions otherwise' -r -f -a "sexp\t'S-expressions, for Scheme and serde-lexpr'
lisp\t'S-expressions with t and nil for booleans, for Emacs and Common Lisp'
json\t''
table\t'For people'"
complete -c sm -n "__fish_sm_using_subcommand sr_attach" -s d -l dconf -d 'Where the SR lives: the type\'s short form, or ((key . "value") …) with device_config keys' -r
complete -c sm -n "__fish_sm_using_subcommand sr_attach" -s v -l verbose -d 'Say on stderr what names stand for, and how long the command took.'
complete -c sm -n "__fish_sm_using_subcommand sr_attach" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c sm -n "__fish_sm_using_subcommand sr_detach" -s t -l sr-type -d 'Type of the SR; the help of -d lists the types' -r
complete -c sm -n "__fish_sm_using_subcommand sr_detach" -l wait -d 'Seconds to wait for other calls on the same SR or VDI, before ESRBUSY' -r
complete -c sm -n "__fish_sm_using_subcommand sr_detach" -l format -d 'Form of the answer. Without this option sm writes a table on a terminal, and s-expressions otherwise' -r -f -a "sexp\t'S-expressions, for Scheme and serde-lexpr'
lisp\t'S-expressions with t and nil for booleans, for Emacs and Common Lisp'
json\t''
table\t'For people'"
complete -c sm -n "__fish_sm_using_subcommand sr_detach" -s d -l dconf -d 'Where the SR lives: the type\'s short form, or ((key . "value") …) with device_config keys' -r
complete -c sm -n "__fish_sm_using_subcommand sr_detach" -s v -l verbose -d 'Say on stderr what names stand for, and how long the command took.'
complete -c sm -n "__fish_sm_using_subcommand sr_detach" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c sm -n "__fish_sm_using_subcommand sr_get_params" -s t -l sr-type -d 'Type of the SR; the help of -d lists the types' -r
complete -c sm -n "__fish_sm_using_subcommand sr_get_params" -l wait -d 'Seconds to wait for other calls on the same SR or VDI, before ESRBUSY' -r
complete -c sm -n "__fish_sm_using_subcommand sr_get_params" -l format -d 'Form of the answer. Without this option sm writes a table on a terminal, and s-expressions otherwise' -r -f -a "sexp\t'S-expressions, for Scheme and serde-lexpr'
lisp\t'S-expressions with t and nil for booleans, for Emacs and Common Lisp'
json\t''
table\t'For people'"
complete -c sm -n "__fish_sm_using_subcommand sr_get_params" -s d -l dconf -d 'Where the SR lives: the type\'s short form, or ((key . "value") …) with device_config keys' -r
complete -c sm -n "__fish_sm_using_subcommand sr_get_params" -s v -l verbose -d 'Say on stderr what names stand for, and how long the command took.'
complete -c sm -n "__fish_sm_using_subcommand sr_get_params" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c sm -n "__fish_sm_using_subcommand sr_scan" -s t -l sr-type -d 'Type of the SR; the help of -d lists the types' -r
complete -c sm -n "__fish_sm_using_subcommand sr_scan" -l wait -d 'Seconds to wait for other calls on the same SR or VDI, before ESRBUSY' -r
complete -c sm -n "__fish_sm_using_subcommand sr_scan" -l format -d 'Form of the answer. Without this option sm writes a table on a terminal, and s-expressions otherwise' -r -f -a "sexp\t'S-expressions, for Scheme and serde-lexpr'
lisp\t'S-expressions with t and nil for booleans, for Emacs and Common Lisp'
json\t''
table\t'For people'"
complete -c sm -n "__fish_sm_using_subcommand sr_scan" -s d -l dconf -d 'Where the SR lives: the type\'s short form, or ((key . "value") …) with device_config keys' -r
complete -c sm -n "__fish_sm_using_subcommand sr_scan" -s v -l verbose -d 'Say on stderr what names stand for, and how long the command took.'
complete -c sm -n "__fish_sm_using_subcommand sr_scan" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c sm -n "__fish_sm_using_subcommand sr_collect" -s t -l sr-type -d 'Type of the SR; the help of -d lists the types' -r
complete -c sm -n "__fish_sm_using_subcommand sr_collect" -l wait -d 'Seconds to wait for other calls on the same SR or VDI, before ESRBUSY' -r
complete -c sm -n "__fish_sm_using_subcommand sr_collect" -l format -d 'Form of the answer. Without this option sm writes a table on a terminal, and s-expressions otherwise' -r -f -a "sexp\t'S-expressions, for Scheme and serde-lexpr'
lisp\t'S-expressions with t and nil for booleans, for Emacs and Common Lisp'
json\t''
table\t'For people'"
complete -c sm -n "__fish_sm_using_subcommand sr_collect" -s d -l dconf -d 'Where the SR lives: the type\'s short form, or ((key . "value") …) with device_config keys' -r
complete -c sm -n "__fish_sm_using_subcommand sr_collect" -s n -l dry-run -d 'Change nothing, and print what would be done.'
complete -c sm -n "__fish_sm_using_subcommand sr_collect" -s v -l verbose -d 'Say on stderr what names stand for, and how long the command took.'
complete -c sm -n "__fish_sm_using_subcommand sr_collect" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c sm -n "__fish_sm_using_subcommand sr_check" -s t -l sr-type -d 'Type of the SR; the help of -d lists the types' -r
complete -c sm -n "__fish_sm_using_subcommand sr_check" -l wait -d 'Seconds to wait for other calls on the same SR or VDI, before ESRBUSY' -r
complete -c sm -n "__fish_sm_using_subcommand sr_check" -l format -d 'Form of the answer. Without this option sm writes a table on a terminal, and s-expressions otherwise' -r -f -a "sexp\t'S-expressions, for Scheme and serde-lexpr'
lisp\t'S-expressions with t and nil for booleans, for Emacs and Common Lisp'
json\t''
table\t'For people'"
complete -c sm -n "__fish_sm_using_subcommand sr_check" -s d -l dconf -d 'Where the SR lives: the type\'s short form, or ((key . "value") …) with device_config keys' -r
complete -c sm -n "__fish_sm_using_subcommand sr_check" -l deep -d 'Read every table of the images that no process has open, and not their headers alone'
complete -c sm -n "__fish_sm_using_subcommand sr_check" -l repair -d 'Mend what can be mended without a loss. Images that a process has open stay as they are'
complete -c sm -n "__fish_sm_using_subcommand sr_check" -s v -l verbose -d 'Say on stderr what names stand for, and how long the command took.'
complete -c sm -n "__fish_sm_using_subcommand sr_check" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c sm -n "__fish_sm_using_subcommand sr_content_type" -s t -l sr-type -d 'Type of the SR; the help of -d lists the types' -r
complete -c sm -n "__fish_sm_using_subcommand sr_content_type" -l wait -d 'Seconds to wait for other calls on the same SR or VDI, before ESRBUSY' -r
complete -c sm -n "__fish_sm_using_subcommand sr_content_type" -l format -d 'Form of the answer. Without this option sm writes a table on a terminal, and s-expressions otherwise' -r -f -a "sexp\t'S-expressions, for Scheme and serde-lexpr'
lisp\t'S-expressions with t and nil for booleans, for Emacs and Common Lisp'
json\t''
table\t'For people'"
complete -c sm -n "__fish_sm_using_subcommand sr_content_type" -s d -l dconf -d 'Where the SR lives: the type\'s short form, or ((key . "value") …) with device_config keys' -r
complete -c sm -n "__fish_sm_using_subcommand sr_content_type" -s v -l verbose -d 'Say on stderr what names stand for, and how long the command took.'
complete -c sm -n "__fish_sm_using_subcommand sr_content_type" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c sm -n "__fish_sm_using_subcommand sr_probe" -s t -l sr-type -d 'Type of the SR; the help of -d lists the types' -r
complete -c sm -n "__fish_sm_using_subcommand sr_probe" -l wait -d 'Seconds to wait for other calls on the same SR or VDI, before ESRBUSY' -r
complete -c sm -n "__fish_sm_using_subcommand sr_probe" -l format -d 'Form of the answer. Without this option sm writes a table on a terminal, and s-expressions otherwise' -r -f -a "sexp\t'S-expressions, for Scheme and serde-lexpr'
lisp\t'S-expressions with t and nil for booleans, for Emacs and Common Lisp'
json\t''
table\t'For people'"
complete -c sm -n "__fish_sm_using_subcommand sr_probe" -s d -l dconf -d 'Where the SR lives: the type\'s short form, or ((key . "value") …) with device_config keys' -r
complete -c sm -n "__fish_sm_using_subcommand sr_probe" -s v -l verbose -d 'Say on stderr what names stand for, and how long the command took.'
complete -c sm -n "__fish_sm_using_subcommand sr_probe" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c sm -n "__fish_sm_using_subcommand vdi_create" -l type -d 'Format of the VDI: raw, vhd or qcow2, as the driver supports. Without this option vhd where disks are files, raw where disks are volumes' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_create" -l label -d 'Name of the VDI, for people' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_create" -l description -d 'Purpose of the VDI, for people' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_create" -s t -l sr-type -d 'Type of the SR; the help of -d lists the types' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_create" -l wait -d 'Seconds to wait for other calls on the same SR or VDI, before ESRBUSY' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_create" -l format -d 'Form of the answer. Without this option sm writes a table on a terminal, and s-expressions otherwise' -r -f -a "sexp\t'S-expressions, for Scheme and serde-lexpr'
lisp\t'S-expressions with t and nil for booleans, for Emacs and Common Lisp'
json\t''
table\t'For people'"
complete -c sm -n "__fish_sm_using_subcommand vdi_create" -s d -l dconf -d 'Where the SR lives: the type\'s short form, or ((key . "value") …) with device_config keys' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_create" -l shareable -d 'Several users may lock the VDI at once'
complete -c sm -n "__fish_sm_using_subcommand vdi_create" -l read-only -d 'The VDI can only be attached read-only'
complete -c sm -n "__fish_sm_using_subcommand vdi_create" -s v -l verbose -d 'Say on stderr what names stand for, and how long the command took.'
complete -c sm -n "__fish_sm_using_subcommand vdi_create" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c sm -n "__fish_sm_using_subcommand vdi_delete" -s t -l sr-type -d 'Type of the SR; the help of -d lists the types' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_delete" -l wait -d 'Seconds to wait for other calls on the same SR or VDI, before ESRBUSY' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_delete" -l format -d 'Form of the answer. Without this option sm writes a table on a terminal, and s-expressions otherwise' -r -f -a "sexp\t'S-expressions, for Scheme and serde-lexpr'
lisp\t'S-expressions with t and nil for booleans, for Emacs and Common Lisp'
json\t''
table\t'For people'"
complete -c sm -n "__fish_sm_using_subcommand vdi_delete" -s d -l dconf -d 'Where the SR lives: the type\'s short form, or ((key . "value") …) with device_config keys' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_delete" -l yes -d 'Delete the VDI also if its image, or what is stored beside the image, cannot be read'
complete -c sm -n "__fish_sm_using_subcommand vdi_delete" -s n -l dry-run -d 'Change nothing, and print what would be done.'
complete -c sm -n "__fish_sm_using_subcommand vdi_delete" -s v -l verbose -d 'Say on stderr what names stand for, and how long the command took.'
complete -c sm -n "__fish_sm_using_subcommand vdi_delete" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c sm -n "__fish_sm_using_subcommand vdi_attach" -s t -l sr-type -d 'Type of the SR; the help of -d lists the types' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_attach" -l wait -d 'Seconds to wait for other calls on the same SR or VDI, before ESRBUSY' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_attach" -l format -d 'Form of the answer. Without this option sm writes a table on a terminal, and s-expressions otherwise' -r -f -a "sexp\t'S-expressions, for Scheme and serde-lexpr'
lisp\t'S-expressions with t and nil for booleans, for Emacs and Common Lisp'
json\t''
table\t'For people'"
complete -c sm -n "__fish_sm_using_subcommand vdi_attach" -s d -l dconf -d 'Where the SR lives: the type\'s short form, or ((key . "value") …) with device_config keys' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_attach" -l read-only -d 'Attach the VDI read-only'
complete -c sm -n "__fish_sm_using_subcommand vdi_attach" -s v -l verbose -d 'Say on stderr what names stand for, and how long the command took.'
complete -c sm -n "__fish_sm_using_subcommand vdi_attach" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c sm -n "__fish_sm_using_subcommand vdi_detach" -s t -l sr-type -d 'Type of the SR; the help of -d lists the types' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_detach" -l wait -d 'Seconds to wait for other calls on the same SR or VDI, before ESRBUSY' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_detach" -l format -d 'Form of the answer. Without this option sm writes a table on a terminal, and s-expressions otherwise' -r -f -a "sexp\t'S-expressions, for Scheme and serde-lexpr'
lisp\t'S-expressions with t and nil for booleans, for Emacs and Common Lisp'
json\t''
table\t'For people'"
complete -c sm -n "__fish_sm_using_subcommand vdi_detach" -s d -l dconf -d 'Where the SR lives: the type\'s short form, or ((key . "value") …) with device_config keys' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_detach" -s v -l verbose -d 'Say on stderr what names stand for, and how long the command took.'
complete -c sm -n "__fish_sm_using_subcommand vdi_detach" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c sm -n "__fish_sm_using_subcommand vdi_clone" -s t -l sr-type -d 'Type of the SR; the help of -d lists the types' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_clone" -l wait -d 'Seconds to wait for other calls on the same SR or VDI, before ESRBUSY' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_clone" -l format -d 'Form of the answer. Without this option sm writes a table on a terminal, and s-expressions otherwise' -r -f -a "sexp\t'S-expressions, for Scheme and serde-lexpr'
lisp\t'S-expressions with t and nil for booleans, for Emacs and Common Lisp'
json\t''
table\t'For people'"
complete -c sm -n "__fish_sm_using_subcommand vdi_clone" -s d -l dconf -d 'Where the SR lives: the type\'s short form, or ((key . "value") …) with device_config keys' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_clone" -s v -l verbose -d 'Say on stderr what names stand for, and how long the command took.'
complete -c sm -n "__fish_sm_using_subcommand vdi_clone" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c sm -n "__fish_sm_using_subcommand vdi_snapshot" -s t -l sr-type -d 'Type of the SR; the help of -d lists the types' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_snapshot" -l wait -d 'Seconds to wait for other calls on the same SR or VDI, before ESRBUSY' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_snapshot" -l format -d 'Form of the answer. Without this option sm writes a table on a terminal, and s-expressions otherwise' -r -f -a "sexp\t'S-expressions, for Scheme and serde-lexpr'
lisp\t'S-expressions with t and nil for booleans, for Emacs and Common Lisp'
json\t''
table\t'For people'"
complete -c sm -n "__fish_sm_using_subcommand vdi_snapshot" -s d -l dconf -d 'Where the SR lives: the type\'s short form, or ((key . "value") …) with device_config keys' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_snapshot" -s v -l verbose -d 'Say on stderr what names stand for, and how long the command took.'
complete -c sm -n "__fish_sm_using_subcommand vdi_snapshot" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c sm -n "__fish_sm_using_subcommand vdi_resize" -s t -l sr-type -d 'Type of the SR; the help of -d lists the types' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_resize" -l wait -d 'Seconds to wait for other calls on the same SR or VDI, before ESRBUSY' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_resize" -l format -d 'Form of the answer. Without this option sm writes a table on a terminal, and s-expressions otherwise' -r -f -a "sexp\t'S-expressions, for Scheme and serde-lexpr'
lisp\t'S-expressions with t and nil for booleans, for Emacs and Common Lisp'
json\t''
table\t'For people'"
complete -c sm -n "__fish_sm_using_subcommand vdi_resize" -s d -l dconf -d 'Where the SR lives: the type\'s short form, or ((key . "value") …) with device_config keys' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_resize" -l allow-shrink -d 'Allow the VDI to become smaller. The data beyond the new end is lost'
complete -c sm -n "__fish_sm_using_subcommand vdi_resize" -s v -l verbose -d 'Say on stderr what names stand for, and how long the command took.'
complete -c sm -n "__fish_sm_using_subcommand vdi_resize" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c sm -n "__fish_sm_using_subcommand vdi_lock" -s t -l sr-type -d 'Type of the SR; the help of -d lists the types' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_lock" -l wait -d 'Seconds to wait for other calls on the same SR or VDI, before ESRBUSY' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_lock" -l format -d 'Form of the answer. Without this option sm writes a table on a terminal, and s-expressions otherwise' -r -f -a "sexp\t'S-expressions, for Scheme and serde-lexpr'
lisp\t'S-expressions with t and nil for booleans, for Emacs and Common Lisp'
json\t''
table\t'For people'"
complete -c sm -n "__fish_sm_using_subcommand vdi_lock" -s d -l dconf -d 'Where the SR lives: the type\'s short form, or ((key . "value") …) with device_config keys' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_lock" -s v -l verbose -d 'Say on stderr what names stand for, and how long the command took.'
complete -c sm -n "__fish_sm_using_subcommand vdi_lock" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c sm -n "__fish_sm_using_subcommand vdi_unlock" -s t -l sr-type -d 'Type of the SR; the help of -d lists the types' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_unlock" -l wait -d 'Seconds to wait for other calls on the same SR or VDI, before ESRBUSY' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_unlock" -l format -d 'Form of the answer. Without this option sm writes a table on a terminal, and s-expressions otherwise' -r -f -a "sexp\t'S-expressions, for Scheme and serde-lexpr'
lisp\t'S-expressions with t and nil for booleans, for Emacs and Common Lisp'
json\t''
table\t'For people'"
complete -c sm -n "__fish_sm_using_subcommand vdi_unlock" -s d -l dconf -d 'Where the SR lives: the type\'s short form, or ((key . "value") …) with device_config keys' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_unlock" -s v -l verbose -d 'Say on stderr what names stand for, and how long the command took.'
complete -c sm -n "__fish_sm_using_subcommand vdi_unlock" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c sm -n "__fish_sm_using_subcommand vdi_get_params" -s t -l sr-type -d 'Type of the SR; the help of -d lists the types' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_get_params" -l wait -d 'Seconds to wait for other calls on the same SR or VDI, before ESRBUSY' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_get_params" -l format -d 'Form of the answer. Without this option sm writes a table on a terminal, and s-expressions otherwise' -r -f -a "sexp\t'S-expressions, for Scheme and serde-lexpr'
lisp\t'S-expressions with t and nil for booleans, for Emacs and Common Lisp'
json\t''
table\t'For people'"
complete -c sm -n "__fish_sm_using_subcommand vdi_get_params" -s d -l dconf -d 'Where the SR lives: the type\'s short form, or ((key . "value") …) with device_config keys' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_get_params" -s v -l verbose -d 'Say on stderr what names stand for, and how long the command took.'
complete -c sm -n "__fish_sm_using_subcommand vdi_get_params" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c sm -n "__fish_sm_using_subcommand vdi_export" -l type -d 'Format of the file: raw, vhd or qcow2. Without this option the file\'s extension decides, else raw' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_export" -s t -l sr-type -d 'Type of the SR; the help of -d lists the types' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_export" -l wait -d 'Seconds to wait for other calls on the same SR or VDI, before ESRBUSY' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_export" -l format -d 'Form of the answer. Without this option sm writes a table on a terminal, and s-expressions otherwise' -r -f -a "sexp\t'S-expressions, for Scheme and serde-lexpr'
lisp\t'S-expressions with t and nil for booleans, for Emacs and Common Lisp'
json\t''
table\t'For people'"
complete -c sm -n "__fish_sm_using_subcommand vdi_export" -s d -l dconf -d 'Where the SR lives: the type\'s short form, or ((key . "value") …) with device_config keys' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_export" -s v -l verbose -d 'Say on stderr what names stand for, and how long the command took.'
complete -c sm -n "__fish_sm_using_subcommand vdi_export" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c sm -n "__fish_sm_using_subcommand vdi_import" -l file-type -d 'Format of the file: raw, vhd or qcow2. Without this option the file\'s extension decides, else raw. A file that looks like an image is taken for raw only if this option says raw' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_import" -l size -d 'Least size of the VDI, in MiB or with a unit. For raw bytes from a pipe, the number of bytes that come' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_import" -l type -d 'Format of the VDI: raw, vhd or qcow2, as the driver supports. Without this option vhd where disks are files, raw where disks are volumes' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_import" -l label -d 'Name of the VDI, for people' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_import" -l description -d 'Purpose of the VDI, for people' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_import" -s t -l sr-type -d 'Type of the SR; the help of -d lists the types' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_import" -l wait -d 'Seconds to wait for other calls on the same SR or VDI, before ESRBUSY' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_import" -l format -d 'Form of the answer. Without this option sm writes a table on a terminal, and s-expressions otherwise' -r -f -a "sexp\t'S-expressions, for Scheme and serde-lexpr'
lisp\t'S-expressions with t and nil for booleans, for Emacs and Common Lisp'
json\t''
table\t'For people'"
complete -c sm -n "__fish_sm_using_subcommand vdi_import" -s d -l dconf -d 'Where the SR lives: the type\'s short form, or ((key . "value") …) with device_config keys' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_import" -l shareable -d 'Several users may lock the VDI at once'
complete -c sm -n "__fish_sm_using_subcommand vdi_import" -l read-only -d 'The VDI can only be attached read-only'
complete -c sm -n "__fish_sm_using_subcommand vdi_import" -s v -l verbose -d 'Say on stderr what names stand for, and how long the command took.'
complete -c sm -n "__fish_sm_using_subcommand vdi_import" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c sm -n "__fish_sm_using_subcommand vdi_tree" -s t -l sr-type -d 'Type of the SR; the help of -d lists the types' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_tree" -l wait -d 'Seconds to wait for other calls on the same SR or VDI, before ESRBUSY' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_tree" -l format -d 'Form of the answer. Without this option sm writes a table on a terminal, and s-expressions otherwise' -r -f -a "sexp\t'S-expressions, for Scheme and serde-lexpr'
lisp\t'S-expressions with t and nil for booleans, for Emacs and Common Lisp'
json\t''
table\t'For people'"
complete -c sm -n "__fish_sm_using_subcommand vdi_tree" -s d -l dconf -d 'Where the SR lives: the type\'s short form, or ((key . "value") …) with device_config keys' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_tree" -s v -l verbose -d 'Say on stderr what names stand for, and how long the command took.'
complete -c sm -n "__fish_sm_using_subcommand vdi_tree" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c sm -n "__fish_sm_using_subcommand sr_list" -s t -l sr-type -d 'Type of the SR; the help of -d lists the types' -r
complete -c sm -n "__fish_sm_using_subcommand sr_list" -l wait -d 'Seconds to wait for other calls on the same SR or VDI, before ESRBUSY' -r
complete -c sm -n "__fish_sm_using_subcommand sr_list" -l format -d 'Form of the answer. Without this option sm writes a table on a terminal, and s-expressions otherwise' -r -f -a "sexp\t'S-expressions, for Scheme and serde-lexpr'
lisp\t'S-expressions with t and nil for booleans, for Emacs and Common Lisp'
json\t''
table\t'For people'"
complete -c sm -n "__fish_sm_using_subcommand sr_list" -s d -l dconf -d 'Where the SR lives: the type\'s short form, or ((key . "value") …) with device_config keys' -r
complete -c sm -n "__fish_sm_using_subcommand sr_list" -l from-xapi -d 'List the SRs that this host\'s xapi knows as well, with the names that xapi has for them.'
complete -c sm -n "__fish_sm_using_subcommand sr_list" -s v -l verbose -d 'Say on stderr what names stand for, and how long the command took.'
complete -c sm -n "__fish_sm_using_subcommand sr_list" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c sm -n "__fish_sm_using_subcommand sr_create" -l destroy-sr -d 'Destroy this SR, which the devices hold, with every disk in it. May be given several times' -r
complete -c sm -n "__fish_sm_using_subcommand sr_create" -l name -d 'Name of the SR on this host: sm takes it instead of the UUID, -t and -d.' -r
complete -c sm -n "__fish_sm_using_subcommand sr_create" -s t -l sr-type -d 'Type of the SR; the help of -d lists the types' -r
complete -c sm -n "__fish_sm_using_subcommand sr_create" -l wait -d 'Seconds to wait for other calls on the same SR or VDI, before ESRBUSY' -r
complete -c sm -n "__fish_sm_using_subcommand sr_create" -l format -d 'Form of the answer. Without this option sm writes a table on a terminal, and s-expressions otherwise' -r -f -a "sexp\t'S-expressions, for Scheme and serde-lexpr'
lisp\t'S-expressions with t and nil for booleans, for Emacs and Common Lisp'
json\t''
table\t'For people'"
complete -c sm -n "__fish_sm_using_subcommand sr_create" -s d -l dconf -d 'Where the SR lives: the type\'s short form, or ((key . "value") …) with device_config keys' -r
complete -c sm -n "__fish_sm_using_subcommand sr_create" -l force -d 'Overwrite what the devices hold. An SR with disks is still refused, and so is what is mounted or in use'
complete -c sm -n "__fish_sm_using_subcommand sr_create" -l yes -d 'Overwrite what --force or --destroy-sr allows without a question at a terminal.'
complete -c sm -n "__fish_sm_using_subcommand sr_create" -s n -l dry-run -d 'Change nothing, and print what would be done.'
complete -c sm -n "__fish_sm_using_subcommand sr_create" -s v -l verbose -d 'Say on stderr what names stand for, and how long the command took.'
complete -c sm -n "__fish_sm_using_subcommand sr_create" -s h -l help -d 'Print help (see more with \'--help\')'
