# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_sm_global_optspecs
    string join \n t/sr-type= wait= format= d/dconf= h/help V/version
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

complete -c sm -n "__fish_sm_needs_command" -s t -l sr-type -d 'The SR\'s type; the help of -d lists them' -r
complete -c sm -n "__fish_sm_needs_command" -l wait -d 'Seconds to wait for other calls on the same SR or VDI, before ESRBUSY' -r
complete -c sm -n "__fish_sm_needs_command" -l format -d 'How to write what is answered. On a terminal sm writes a table, otherwise s-expressions' -r -f -a "sexp\t'S-expressions, for Scheme and serde-lexpr'
lisp\t'The same with t and nil for booleans, as Emacs and Common Lisp read them'
json\t''
table\t'For people'"
complete -c sm -n "__fish_sm_needs_command" -s d -l dconf -d 'Where the SR lives: the type\'s short form, or ((key . "value") …) with device_config keys' -r
complete -c sm -n "__fish_sm_needs_command" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c sm -n "__fish_sm_needs_command" -s V -l version -d 'Print version'
complete -c sm -n "__fish_sm_needs_command" -f -a "sr_create" -d 'Make an SR. Fails if it exists'
complete -c sm -n "__fish_sm_needs_command" -f -a "sr_delete" -d 'Delete an SR and every VDI in it. Succeeds if there is none; fails while a VDI is in use'
complete -c sm -n "__fish_sm_needs_command" -f -a "sr_attach" -d 'Make an SR available on this host, and repair what a crash left'
complete -c sm -n "__fish_sm_needs_command" -f -a "sr_detach" -d 'End the availability on this host. Fails while a VDI is attached'
complete -c sm -n "__fish_sm_needs_command" -f -a "sr_get_params" -d 'Print what is known of an SR: (sr …)'
complete -c sm -n "__fish_sm_needs_command" -f -a "sr_scan" -d 'Print an SR with every VDI in it: (sr … (vdis (vdi …) …))'
complete -c sm -n "__fish_sm_needs_command" -f -a "sr_collect" -d 'Give space back: merge what deleted snapshots and clones left, also below disks in use'
complete -c sm -n "__fish_sm_needs_command" -f -a "sr_content_type" -d 'Print the kind of content: raw or iso'
complete -c sm -n "__fish_sm_needs_command" -f -a "sr_probe" -d 'Print the SRs that a DCONF holds: (srs (sr …) …)'
complete -c sm -n "__fish_sm_needs_command" -f -a "vdi_create" -d 'Make a VDI of zeroes. Fails if the UUID exists'
complete -c sm -n "__fish_sm_needs_command" -f -a "vdi_delete" -d 'Delete a VDI. Succeeds if there is none; fails while it is attached or locked'
complete -c sm -n "__fish_sm_needs_command" -f -a "vdi_attach" -d 'Make a block device of a VDI and print its path; the same path again for an attached one'
complete -c sm -n "__fish_sm_needs_command" -f -a "vdi_detach" -d 'Remove the block device. Fails while something has it open, and says what'
complete -c sm -n "__fish_sm_needs_command" -f -a "vdi_clone" -d 'Make a writable copy of a VDI that is neither attached nor locked'
complete -c sm -n "__fish_sm_needs_command" -f -a "vdi_snapshot" -d 'Make a read-only copy of a VDI as it is now'
complete -c sm -n "__fish_sm_needs_command" -f -a "vdi_resize" -d 'Change the size of a VDI that is not read-only. VHD and qcow2 can only grow'
complete -c sm -n "__fish_sm_needs_command" -f -a "vdi_lock" -d 'Take the persistent lock of a VDI, seen by every host that has the SR'
complete -c sm -n "__fish_sm_needs_command" -f -a "vdi_unlock" -d 'Give the persistent lock back'
complete -c sm -n "__fish_sm_needs_command" -f -a "vdi_get_params" -d 'Print what is known of a VDI: (vdi …)'
complete -c sm -n "__fish_sm_needs_command" -f -a "vdi_export" -d 'Write the disk of a VDI to a file or a pipe. Fails while it is attached, if it can be written to'
complete -c sm -n "__fish_sm_needs_command" -f -a "vdi_import" -d 'Make a VDI of a file or of what comes through a pipe'
complete -c sm -n "__fish_sm_needs_command" -f -a "vdi_tree" -d 'Draw the chains of an SR: which image is whose parent, and what each takes'
complete -c sm -n "__fish_sm_using_subcommand sr_create" -l destroy-sr -d 'Destroy this SR, which the devices hold, with every disk in it. May be given several times' -r
complete -c sm -n "__fish_sm_using_subcommand sr_create" -s t -l sr-type -d 'The SR\'s type; the help of -d lists them' -r
complete -c sm -n "__fish_sm_using_subcommand sr_create" -l wait -d 'Seconds to wait for other calls on the same SR or VDI, before ESRBUSY' -r
complete -c sm -n "__fish_sm_using_subcommand sr_create" -l format -d 'How to write what is answered. On a terminal sm writes a table, otherwise s-expressions' -r -f -a "sexp\t'S-expressions, for Scheme and serde-lexpr'
lisp\t'The same with t and nil for booleans, as Emacs and Common Lisp read them'
json\t''
table\t'For people'"
complete -c sm -n "__fish_sm_using_subcommand sr_create" -s d -l dconf -d 'Where the SR lives: the type\'s short form, or ((key . "value") …) with device_config keys' -r
complete -c sm -n "__fish_sm_using_subcommand sr_create" -l force -d 'Overwrite what the devices hold. An SR with disks, and what is mounted or in use, is refused all the same'
complete -c sm -n "__fish_sm_using_subcommand sr_create" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c sm -n "__fish_sm_using_subcommand sr_delete" -s t -l sr-type -d 'The SR\'s type; the help of -d lists them' -r
complete -c sm -n "__fish_sm_using_subcommand sr_delete" -l wait -d 'Seconds to wait for other calls on the same SR or VDI, before ESRBUSY' -r
complete -c sm -n "__fish_sm_using_subcommand sr_delete" -l format -d 'How to write what is answered. On a terminal sm writes a table, otherwise s-expressions' -r -f -a "sexp\t'S-expressions, for Scheme and serde-lexpr'
lisp\t'The same with t and nil for booleans, as Emacs and Common Lisp read them'
json\t''
table\t'For people'"
complete -c sm -n "__fish_sm_using_subcommand sr_delete" -s d -l dconf -d 'Where the SR lives: the type\'s short form, or ((key . "value") …) with device_config keys' -r
complete -c sm -n "__fish_sm_using_subcommand sr_delete" -l yes -d 'Yes, delete the VDIs in it (sm asks for this, the drivers do not)'
complete -c sm -n "__fish_sm_using_subcommand sr_delete" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c sm -n "__fish_sm_using_subcommand sr_attach" -s t -l sr-type -d 'The SR\'s type; the help of -d lists them' -r
complete -c sm -n "__fish_sm_using_subcommand sr_attach" -l wait -d 'Seconds to wait for other calls on the same SR or VDI, before ESRBUSY' -r
complete -c sm -n "__fish_sm_using_subcommand sr_attach" -l format -d 'How to write what is answered. On a terminal sm writes a table, otherwise s-expressions' -r -f -a "sexp\t'S-expressions, for Scheme and serde-lexpr'
lisp\t'The same with t and nil for booleans, as Emacs and Common Lisp read them'
json\t''
table\t'For people'"
complete -c sm -n "__fish_sm_using_subcommand sr_attach" -s d -l dconf -d 'Where the SR lives: the type\'s short form, or ((key . "value") …) with device_config keys' -r
complete -c sm -n "__fish_sm_using_subcommand sr_attach" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c sm -n "__fish_sm_using_subcommand sr_detach" -s t -l sr-type -d 'The SR\'s type; the help of -d lists them' -r
complete -c sm -n "__fish_sm_using_subcommand sr_detach" -l wait -d 'Seconds to wait for other calls on the same SR or VDI, before ESRBUSY' -r
complete -c sm -n "__fish_sm_using_subcommand sr_detach" -l format -d 'How to write what is answered. On a terminal sm writes a table, otherwise s-expressions' -r -f -a "sexp\t'S-expressions, for Scheme and serde-lexpr'
lisp\t'The same with t and nil for booleans, as Emacs and Common Lisp read them'
json\t''
table\t'For people'"
complete -c sm -n "__fish_sm_using_subcommand sr_detach" -s d -l dconf -d 'Where the SR lives: the type\'s short form, or ((key . "value") …) with device_config keys' -r
complete -c sm -n "__fish_sm_using_subcommand sr_detach" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c sm -n "__fish_sm_using_subcommand sr_get_params" -s t -l sr-type -d 'The SR\'s type; the help of -d lists them' -r
complete -c sm -n "__fish_sm_using_subcommand sr_get_params" -l wait -d 'Seconds to wait for other calls on the same SR or VDI, before ESRBUSY' -r
complete -c sm -n "__fish_sm_using_subcommand sr_get_params" -l format -d 'How to write what is answered. On a terminal sm writes a table, otherwise s-expressions' -r -f -a "sexp\t'S-expressions, for Scheme and serde-lexpr'
lisp\t'The same with t and nil for booleans, as Emacs and Common Lisp read them'
json\t''
table\t'For people'"
complete -c sm -n "__fish_sm_using_subcommand sr_get_params" -s d -l dconf -d 'Where the SR lives: the type\'s short form, or ((key . "value") …) with device_config keys' -r
complete -c sm -n "__fish_sm_using_subcommand sr_get_params" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c sm -n "__fish_sm_using_subcommand sr_scan" -s t -l sr-type -d 'The SR\'s type; the help of -d lists them' -r
complete -c sm -n "__fish_sm_using_subcommand sr_scan" -l wait -d 'Seconds to wait for other calls on the same SR or VDI, before ESRBUSY' -r
complete -c sm -n "__fish_sm_using_subcommand sr_scan" -l format -d 'How to write what is answered. On a terminal sm writes a table, otherwise s-expressions' -r -f -a "sexp\t'S-expressions, for Scheme and serde-lexpr'
lisp\t'The same with t and nil for booleans, as Emacs and Common Lisp read them'
json\t''
table\t'For people'"
complete -c sm -n "__fish_sm_using_subcommand sr_scan" -s d -l dconf -d 'Where the SR lives: the type\'s short form, or ((key . "value") …) with device_config keys' -r
complete -c sm -n "__fish_sm_using_subcommand sr_scan" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c sm -n "__fish_sm_using_subcommand sr_collect" -s t -l sr-type -d 'The SR\'s type; the help of -d lists them' -r
complete -c sm -n "__fish_sm_using_subcommand sr_collect" -l wait -d 'Seconds to wait for other calls on the same SR or VDI, before ESRBUSY' -r
complete -c sm -n "__fish_sm_using_subcommand sr_collect" -l format -d 'How to write what is answered. On a terminal sm writes a table, otherwise s-expressions' -r -f -a "sexp\t'S-expressions, for Scheme and serde-lexpr'
lisp\t'The same with t and nil for booleans, as Emacs and Common Lisp read them'
json\t''
table\t'For people'"
complete -c sm -n "__fish_sm_using_subcommand sr_collect" -s d -l dconf -d 'Where the SR lives: the type\'s short form, or ((key . "value") …) with device_config keys' -r
complete -c sm -n "__fish_sm_using_subcommand sr_collect" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c sm -n "__fish_sm_using_subcommand sr_content_type" -s t -l sr-type -d 'The SR\'s type; the help of -d lists them' -r
complete -c sm -n "__fish_sm_using_subcommand sr_content_type" -l wait -d 'Seconds to wait for other calls on the same SR or VDI, before ESRBUSY' -r
complete -c sm -n "__fish_sm_using_subcommand sr_content_type" -l format -d 'How to write what is answered. On a terminal sm writes a table, otherwise s-expressions' -r -f -a "sexp\t'S-expressions, for Scheme and serde-lexpr'
lisp\t'The same with t and nil for booleans, as Emacs and Common Lisp read them'
json\t''
table\t'For people'"
complete -c sm -n "__fish_sm_using_subcommand sr_content_type" -s d -l dconf -d 'Where the SR lives: the type\'s short form, or ((key . "value") …) with device_config keys' -r
complete -c sm -n "__fish_sm_using_subcommand sr_content_type" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c sm -n "__fish_sm_using_subcommand sr_probe" -s t -l sr-type -d 'The SR\'s type; the help of -d lists them' -r
complete -c sm -n "__fish_sm_using_subcommand sr_probe" -l wait -d 'Seconds to wait for other calls on the same SR or VDI, before ESRBUSY' -r
complete -c sm -n "__fish_sm_using_subcommand sr_probe" -l format -d 'How to write what is answered. On a terminal sm writes a table, otherwise s-expressions' -r -f -a "sexp\t'S-expressions, for Scheme and serde-lexpr'
lisp\t'The same with t and nil for booleans, as Emacs and Common Lisp read them'
json\t''
table\t'For people'"
complete -c sm -n "__fish_sm_using_subcommand sr_probe" -s d -l dconf -d 'Where the SR lives: the type\'s short form, or ((key . "value") …) with device_config keys' -r
complete -c sm -n "__fish_sm_using_subcommand sr_probe" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c sm -n "__fish_sm_using_subcommand vdi_create" -l type -d 'The VDI\'s format: raw, vhd or qcow2, as the driver supports. Without it vhd where disks are files, raw where they are volumes' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_create" -l label -d 'A name for people' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_create" -l description -d 'What it is for' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_create" -s t -l sr-type -d 'The SR\'s type; the help of -d lists them' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_create" -l wait -d 'Seconds to wait for other calls on the same SR or VDI, before ESRBUSY' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_create" -l format -d 'How to write what is answered. On a terminal sm writes a table, otherwise s-expressions' -r -f -a "sexp\t'S-expressions, for Scheme and serde-lexpr'
lisp\t'The same with t and nil for booleans, as Emacs and Common Lisp read them'
json\t''
table\t'For people'"
complete -c sm -n "__fish_sm_using_subcommand vdi_create" -s d -l dconf -d 'Where the SR lives: the type\'s short form, or ((key . "value") …) with device_config keys' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_create" -l shareable -d 'Several users may lock it at once'
complete -c sm -n "__fish_sm_using_subcommand vdi_create" -l read-only -d 'It can only be attached read-only'
complete -c sm -n "__fish_sm_using_subcommand vdi_create" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c sm -n "__fish_sm_using_subcommand vdi_delete" -s t -l sr-type -d 'The SR\'s type; the help of -d lists them' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_delete" -l wait -d 'Seconds to wait for other calls on the same SR or VDI, before ESRBUSY' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_delete" -l format -d 'How to write what is answered. On a terminal sm writes a table, otherwise s-expressions' -r -f -a "sexp\t'S-expressions, for Scheme and serde-lexpr'
lisp\t'The same with t and nil for booleans, as Emacs and Common Lisp read them'
json\t''
table\t'For people'"
complete -c sm -n "__fish_sm_using_subcommand vdi_delete" -s d -l dconf -d 'Where the SR lives: the type\'s short form, or ((key . "value") …) with device_config keys' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_delete" -l yes -d 'Delete it also if its image cannot be read'
complete -c sm -n "__fish_sm_using_subcommand vdi_delete" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c sm -n "__fish_sm_using_subcommand vdi_attach" -s t -l sr-type -d 'The SR\'s type; the help of -d lists them' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_attach" -l wait -d 'Seconds to wait for other calls on the same SR or VDI, before ESRBUSY' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_attach" -l format -d 'How to write what is answered. On a terminal sm writes a table, otherwise s-expressions' -r -f -a "sexp\t'S-expressions, for Scheme and serde-lexpr'
lisp\t'The same with t and nil for booleans, as Emacs and Common Lisp read them'
json\t''
table\t'For people'"
complete -c sm -n "__fish_sm_using_subcommand vdi_attach" -s d -l dconf -d 'Where the SR lives: the type\'s short form, or ((key . "value") …) with device_config keys' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_attach" -l read-only -d 'Attach it read-only'
complete -c sm -n "__fish_sm_using_subcommand vdi_attach" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c sm -n "__fish_sm_using_subcommand vdi_detach" -s t -l sr-type -d 'The SR\'s type; the help of -d lists them' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_detach" -l wait -d 'Seconds to wait for other calls on the same SR or VDI, before ESRBUSY' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_detach" -l format -d 'How to write what is answered. On a terminal sm writes a table, otherwise s-expressions' -r -f -a "sexp\t'S-expressions, for Scheme and serde-lexpr'
lisp\t'The same with t and nil for booleans, as Emacs and Common Lisp read them'
json\t''
table\t'For people'"
complete -c sm -n "__fish_sm_using_subcommand vdi_detach" -s d -l dconf -d 'Where the SR lives: the type\'s short form, or ((key . "value") …) with device_config keys' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_detach" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c sm -n "__fish_sm_using_subcommand vdi_clone" -s t -l sr-type -d 'The SR\'s type; the help of -d lists them' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_clone" -l wait -d 'Seconds to wait for other calls on the same SR or VDI, before ESRBUSY' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_clone" -l format -d 'How to write what is answered. On a terminal sm writes a table, otherwise s-expressions' -r -f -a "sexp\t'S-expressions, for Scheme and serde-lexpr'
lisp\t'The same with t and nil for booleans, as Emacs and Common Lisp read them'
json\t''
table\t'For people'"
complete -c sm -n "__fish_sm_using_subcommand vdi_clone" -s d -l dconf -d 'Where the SR lives: the type\'s short form, or ((key . "value") …) with device_config keys' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_clone" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c sm -n "__fish_sm_using_subcommand vdi_snapshot" -s t -l sr-type -d 'The SR\'s type; the help of -d lists them' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_snapshot" -l wait -d 'Seconds to wait for other calls on the same SR or VDI, before ESRBUSY' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_snapshot" -l format -d 'How to write what is answered. On a terminal sm writes a table, otherwise s-expressions' -r -f -a "sexp\t'S-expressions, for Scheme and serde-lexpr'
lisp\t'The same with t and nil for booleans, as Emacs and Common Lisp read them'
json\t''
table\t'For people'"
complete -c sm -n "__fish_sm_using_subcommand vdi_snapshot" -s d -l dconf -d 'Where the SR lives: the type\'s short form, or ((key . "value") …) with device_config keys' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_snapshot" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c sm -n "__fish_sm_using_subcommand vdi_resize" -s t -l sr-type -d 'The SR\'s type; the help of -d lists them' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_resize" -l wait -d 'Seconds to wait for other calls on the same SR or VDI, before ESRBUSY' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_resize" -l format -d 'How to write what is answered. On a terminal sm writes a table, otherwise s-expressions' -r -f -a "sexp\t'S-expressions, for Scheme and serde-lexpr'
lisp\t'The same with t and nil for booleans, as Emacs and Common Lisp read them'
json\t''
table\t'For people'"
complete -c sm -n "__fish_sm_using_subcommand vdi_resize" -s d -l dconf -d 'Where the SR lives: the type\'s short form, or ((key . "value") …) with device_config keys' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_resize" -l allow-shrink -d 'Allow it to become smaller; what lies beyond the new end is lost'
complete -c sm -n "__fish_sm_using_subcommand vdi_resize" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c sm -n "__fish_sm_using_subcommand vdi_lock" -s t -l sr-type -d 'The SR\'s type; the help of -d lists them' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_lock" -l wait -d 'Seconds to wait for other calls on the same SR or VDI, before ESRBUSY' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_lock" -l format -d 'How to write what is answered. On a terminal sm writes a table, otherwise s-expressions' -r -f -a "sexp\t'S-expressions, for Scheme and serde-lexpr'
lisp\t'The same with t and nil for booleans, as Emacs and Common Lisp read them'
json\t''
table\t'For people'"
complete -c sm -n "__fish_sm_using_subcommand vdi_lock" -s d -l dconf -d 'Where the SR lives: the type\'s short form, or ((key . "value") …) with device_config keys' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_lock" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c sm -n "__fish_sm_using_subcommand vdi_unlock" -s t -l sr-type -d 'The SR\'s type; the help of -d lists them' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_unlock" -l wait -d 'Seconds to wait for other calls on the same SR or VDI, before ESRBUSY' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_unlock" -l format -d 'How to write what is answered. On a terminal sm writes a table, otherwise s-expressions' -r -f -a "sexp\t'S-expressions, for Scheme and serde-lexpr'
lisp\t'The same with t and nil for booleans, as Emacs and Common Lisp read them'
json\t''
table\t'For people'"
complete -c sm -n "__fish_sm_using_subcommand vdi_unlock" -s d -l dconf -d 'Where the SR lives: the type\'s short form, or ((key . "value") …) with device_config keys' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_unlock" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c sm -n "__fish_sm_using_subcommand vdi_get_params" -s t -l sr-type -d 'The SR\'s type; the help of -d lists them' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_get_params" -l wait -d 'Seconds to wait for other calls on the same SR or VDI, before ESRBUSY' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_get_params" -l format -d 'How to write what is answered. On a terminal sm writes a table, otherwise s-expressions' -r -f -a "sexp\t'S-expressions, for Scheme and serde-lexpr'
lisp\t'The same with t and nil for booleans, as Emacs and Common Lisp read them'
json\t''
table\t'For people'"
complete -c sm -n "__fish_sm_using_subcommand vdi_get_params" -s d -l dconf -d 'Where the SR lives: the type\'s short form, or ((key . "value") …) with device_config keys' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_get_params" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c sm -n "__fish_sm_using_subcommand vdi_export" -l type -d 'Its format: raw, vhd or qcow2. Without it the file\'s extension decides, else raw' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_export" -s t -l sr-type -d 'The SR\'s type; the help of -d lists them' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_export" -l wait -d 'Seconds to wait for other calls on the same SR or VDI, before ESRBUSY' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_export" -l format -d 'How to write what is answered. On a terminal sm writes a table, otherwise s-expressions' -r -f -a "sexp\t'S-expressions, for Scheme and serde-lexpr'
lisp\t'The same with t and nil for booleans, as Emacs and Common Lisp read them'
json\t''
table\t'For people'"
complete -c sm -n "__fish_sm_using_subcommand vdi_export" -s d -l dconf -d 'Where the SR lives: the type\'s short form, or ((key . "value") …) with device_config keys' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_export" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c sm -n "__fish_sm_using_subcommand vdi_import" -l file-type -d 'Its format: raw, vhd or qcow2. Without it the file\'s extension decides, else raw; but what looks like an image is not taken for raw unless this says so' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_import" -l size -d 'The least size of the VDI; for raw bytes from a pipe, how many come. In MB, or with a unit' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_import" -l type -d 'The VDI\'s format: raw, vhd or qcow2, as the driver supports. Without it vhd where disks are files, raw where they are volumes' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_import" -l label -d 'A name for people' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_import" -l description -d 'What it is for' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_import" -s t -l sr-type -d 'The SR\'s type; the help of -d lists them' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_import" -l wait -d 'Seconds to wait for other calls on the same SR or VDI, before ESRBUSY' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_import" -l format -d 'How to write what is answered. On a terminal sm writes a table, otherwise s-expressions' -r -f -a "sexp\t'S-expressions, for Scheme and serde-lexpr'
lisp\t'The same with t and nil for booleans, as Emacs and Common Lisp read them'
json\t''
table\t'For people'"
complete -c sm -n "__fish_sm_using_subcommand vdi_import" -s d -l dconf -d 'Where the SR lives: the type\'s short form, or ((key . "value") …) with device_config keys' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_import" -l shareable -d 'Several users may lock it at once'
complete -c sm -n "__fish_sm_using_subcommand vdi_import" -l read-only -d 'It can only be attached read-only'
complete -c sm -n "__fish_sm_using_subcommand vdi_import" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c sm -n "__fish_sm_using_subcommand vdi_tree" -s t -l sr-type -d 'The SR\'s type; the help of -d lists them' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_tree" -l wait -d 'Seconds to wait for other calls on the same SR or VDI, before ESRBUSY' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_tree" -l format -d 'How to write what is answered. On a terminal sm writes a table, otherwise s-expressions' -r -f -a "sexp\t'S-expressions, for Scheme and serde-lexpr'
lisp\t'The same with t and nil for booleans, as Emacs and Common Lisp read them'
json\t''
table\t'For people'"
complete -c sm -n "__fish_sm_using_subcommand vdi_tree" -s d -l dconf -d 'Where the SR lives: the type\'s short form, or ((key . "value") …) with device_config keys' -r
complete -c sm -n "__fish_sm_using_subcommand vdi_tree" -s h -l help -d 'Print help (see more with \'--help\')'
