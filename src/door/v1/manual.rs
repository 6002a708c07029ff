//! The texts of the man pages of `sm` that are not in the definition of the command line. `--help` has the examples.

/// Lines of examples for a command: what they show, and the command. Those of `sm` itself have an empty name.
pub const EXAMPLES: &[(&str, &[(&str, &str)])] = &[
    (
        "",
        &[
            ("Make a file SR with a name, and a disk in it:", "sm sr_create --name fast -t file -d /srv/sr0"),
            ("", "sm vdi_create fast 20G --label web"),
            ("Use the disk as a block device:", "sm vdi_attach fast/web"),
            ("See what there is:", "sm sr_list; sm sr_scan fast"),
        ],
    ),
    (
        "sr_create",
        &[
            ("An SR in a directory, which sm calls fast from now on:", "sm sr_create --name fast -t file -d /srv/sr0"),
            ("See what would be lost on a device in use:", "sm sr_create -n --force --name big -t lvm -d /dev/sdb"),
        ],
    ),
    ("sr_delete", &[("See what would be deleted, then delete it:", "sm sr_delete -n fast; sm sr_delete --yes fast")]),
    (
        "sr_attach",
        &[
            ("Two SRs at once:", "sm sr_attach fast slow"),
            ("Give a name to the SR that is in a directory:", "sm sr_attach --name fast -d /srv/sr0"),
        ],
    ),
    ("sr_detach", &[("An SR by its name:", "sm sr_detach fast")]),
    ("sr_get_params", &[("Size and use of an SR as JSON:", "sm sr_get_params fast --format json")]),
    ("sr_scan", &[("The disks of an SR as a table:", "sm sr_scan fast --format table")]),
    (
        "sr_collect",
        &[
            ("See what would be merged, then merge it:", "sm sr_collect -n fast; sm sr_collect fast"),
            ("Leave the storage to the guests, and follow the steps:", "sm sr_collect --rate 20MiB --progress fast"),
        ],
    ),
    ("sr_trim", &[("Once a week, by a timer or cron:", "sm sr_trim fast")]),
    ("sr_space", &[("The disks of an SR, those first that free most:", "sm sr_space fast --format table")]),
    (
        "sr_metrics",
        &[
            ("All SRs with a name on this host:", "sm sr_metrics"),
            (
                "For the textfile collector of node_exporter, as sm-metrics.timer does it:",
                "sm sr_metrics --output /var/lib/prometheus/node-exporter/sm.prom",
            ),
        ],
    ),
    ("sr_check", &[("Read all of an SR, and mend what can be mended:", "sm sr_check --deep --repair fast")]),
    ("sr_content_type", &[("raw or iso:", "sm sr_content_type fast")]),
    ("sr_probe", &[("The SRs on an export:", "sm sr_probe -t nfs -d nfs@filer:/export@/run/sr-mount")]),
    (
        "sr_list",
        &[("Every SR of this host:", "sm sr_list"), ("Those that xapi knows as well:", "sm sr_list --from-xapi")],
    ),
    ("sr_name", &[("Another name:", "sm sr_name fast quick"), ("No name any more:", "sm sr_name quick --forget")]),
    (
        "vdi_create",
        &[
            ("A disk whose UUID is chosen and kept:", "VDI=$(sm vdi_create fast 20G --label web)"),
            ("A raw disk of which nothing is written:", "sm vdi_create fast 1.5T --type raw --label scratch"),
        ],
    ),
    ("vdi_delete", &[("Two disks:", "sm vdi_delete fast web db")]),
    ("vdi_attach", &[("The device of a disk:", "mkfs.ext4 \"$(sm vdi_attach fast/web)\"")]),
    ("vdi_detach", &[("Two disks:", "sm vdi_detach fast web db")]),
    ("vdi_copy", &[("A copy in another SR, as a qcow2 image:", "sm vdi_copy fast/web slow --type qcow2")]),
    ("vdi_clone", &[("A copy with a UUID that is chosen:", "COPY=$(sm vdi_clone fast/web)")]),
    (
        "vdi_snapshot",
        &[("A copy of now, also of a disk in use, with a name of its own:", "sm vdi_snapshot fast/web --label before")],
    ),
    (
        "vdi_set",
        &[
            ("Another name:", "sm vdi_set fast/web --label www"),
            ("A template that nobody writes to:", "sm vdi_set fast/debian --read-only"),
            ("Writable again:", "sm vdi_set fast/debian --read-only=false"),
        ],
    ),
    ("vdi_revert", &[("Back to a snapshot:", "sm vdi_revert fast web before")]),
    ("vdi_resize", &[("10 GiB more:", "sm vdi_resize fast/web +10G")]),
    (
        "vdi_lock",
        &[
            ("Record that vm7 on host1 has the disk:", "sm vdi_lock fast/web host1/vm7"),
            ("Take the lock from a host that is dead:", "sm vdi_lock fast/web TRUE host2/vm7"),
        ],
    ),
    ("vdi_unlock", &[("Give the lock back:", "sm vdi_unlock fast/web host1/vm7")]),
    ("vdi_get_params", &[("A disk by the start of its UUID:", "sm vdi_get_params fast 98de866e")]),
    (
        "vdi_export",
        &[
            ("A disk as a VHD:", "sm vdi_export fast/web web.vhd"),
            ("Into a pipe:", "sm vdi_export fast/web - | zstd -o web.raw.zst"),
            ("What can be read of a damaged disk:", "sm vdi_export --rescue fast/web web.qcow2"),
        ],
    ),
    ("vdi_import", &[("A disk of an image:", "sm vdi_import fast debian.qcow2 --label debian")]),
    (
        "vdi_tree",
        &[("Which disk was made from which:", "sm vdi_tree fast"), ("The tree of one disk:", "sm vdi_tree fast/web")],
    ),
    (
        "devices",
        &[
            ("Every device with state and owner:", "sm devices"),
            ("The free ones, with their models:", "sm devices --free -o dev,size,model"),
            ("Why a device is not free:", "sm devices why /dev/sdb"),
        ],
    ),
    ("devices list", &[("The devices as JSON:", "sm devices list --format json")]),
    (
        "devices why",
        &[("Any name that leads to the device will do:", "sm devices why /dev/disk/by-path/pci-0000:00:1f.2-ata-1")],
    ),
    ("devices claim", &[("Keep a disk for later:", "sm devices claim /dev/sdb")]),
    ("devices release", &[("Give it back:", "sm devices release /dev/sdb")]),
    ("devices rebuild", &[("See what would be changed, then change it:", "sm devices rebuild -n; sm devices rebuild")]),
    ("backends", &[("Where devices may come from:", "sm backends")]),
    (
        "backup",
        &[
            ("Make a set of two disks, and export it:", "sm backup define web --disk fast/web --disk fast/data"),
            ("", "sm backup export web --to nas --compress zstd"),
            ("Look whether it is whole, and make disks of it:", "sm backup verify web --deep"),
            ("", "sm backup import web --from nas --sr slow"),
        ],
    ),
    ("backup define", &[("Two disks that belong together:", "sm backup define web --disk fast/web --disk fast/data")]),
    ("backup undefine", &[("Forget a set:", "sm backup undefine web")]),
    (
        "backup export",
        &[
            ("See what would be done, then do it:", "sm backup export -n web --to nas"),
            ("", "sm backup export web --to nas"),
            (
                "Every night the blocks that changed, for a week:",
                "sm backup export web --to nas --live --since last --whole-after 6 --keep 7",
            ),
            ("Keep seven exports, packed:", "sm backup export web --to nas --keep 7 --compress zstd"),
            ("Only the owner of the key can read it:", "sm backup export web --to nas --recipient /etc/sm/backup.pub"),
        ],
    ),
    ("backup consolidate", &[("Before the first of many increments is removed:", "sm backup consolidate web")]),
    (
        "backup import",
        &[
            ("Disks of the newest export, with new UUIDs:", "sm backup import web --from nas --sr fast"),
            ("One of the disks, by its label or its index:", "sm backup import web --from nas --sr fast --disk data"),
        ],
    ),
    (
        "backup send",
        &[
            ("To a store of another host:", "sm backup send web | ssh host sm backup receive --to nas"),
            (
                "Only what that store has not:",
                "sm backup send web --from \"$(ssh host sm backup receive --to nas --resume web)\" |",
            ),
            ("", "  ssh host sm backup receive --to nas"),
        ],
    ),
    ("backup prune", &[("Leave the three newest exports:", "sm backup prune web --keep 3")]),
    ("backup receive", &[("From a store of this host:", "ssh host sm backup send web | sm backup receive --to nas")]),
    ("backup list", &[("Every export as JSON:", "sm backup list --format json")]),
    ("backup show", &[("The disks of an export:", "sm backup show web")]),
    ("backup verify", &[("Read all of an export:", "sm backup verify web --deep")]),
    ("backup remove", &[("Out of all stores:", "sm backup remove web")]),
    ("backup store-init", &[("After the file system is mounted:", "sm backup store-init nas")]),
    ("layout", &[("What was applied on this host:", "sm layout list")]),
    ("layout list", &[("The names as JSON:", "sm layout list --format json")]),
    (
        "layout remove",
        &[
            ("Take the SRs of a layout down and keep their data:", "sm layout remove rack1"),
            ("Delete the data as well:", "sm layout remove rack1 --allow wipe"),
        ],
    ),
    ("layout show", &[("The layout as a model says it:", "sm layout show rack1")]),
    ("layout info", &[("Which SR is where:", "sm layout info rack1")]),
    (
        "apply",
        &[
            ("Make the storage of this host what the model says:", "sm apply -m rack1"),
            ("Carry out a plan that was looked at before:", "sm apply plan.json --yes"),
            ("Go on after a failure or a kill:", "sm apply --resume"),
            ("On a host with xapi, run the calls of xe:", "sm apply -m rack1 --run-xe"),
        ],
    ),
    ("tune", &[("See what /etc/sm/tuning.conf would change, then change it:", "sm tune -n; sm tune")]),
    (
        "doctor",
        &[
            ("What is wrong with this host:", "sm doctor"),
            ("The same for a program, which looks at the status, too:", "sm doctor --format json"),
        ],
    ),
    (
        "plan",
        &[
            ("What would a model change:", "sm plan -m /etc/sm/layouts/rack1.model"),
            (
                "Keep the plan, and say by status 2 whether it has steps:",
                "sm plan -m rack1 -o plan.json --detailed-exitcode",
            ),
        ],
    ),
    (
        "target",
        &[
            (
                "Give a disk to another host by iSCSI:",
                "sm target publish fast/web --to iqn.1993-08.org.debian:01:c0ffee --portal 10.0.0.1 --auth /root/host1.auth",
            ),
            ("See what is published:", "sm target list"),
        ],
    ),
    (
        "target publish",
        &[
            ("A disk of this host, as a SCSI disk:", "sm target publish fast/web --fabric loopback"),
            (
                "A second reader:",
                "sm target publish fast/iso --to iqn.1993-08.org.debian:01:beef --read-only --auth /root/host2.auth",
            ),
            (
                "By NVMe over TCP:",
                "sm target publish fast/web --fabric nvme-tcp --no-auth --to \
                 nqn.2014-08.org.nvmexpress:uuid:1a11866e-b035-4b1a-a571-0000000000aa",
            ),
        ],
    ),
    (
        "target passthrough",
        &[(
            "A tape of this host:",
            "sm target passthrough --dev /dev/nst0 --to iqn.1993-08.org.debian:01:c0ffee --auth /root/host1.auth \
             --allow-raw-scsi",
        )],
    ),
    (
        "target attr",
        &[
            ("All attributes:", "sm target attr fast/web"),
            ("Change one:", "sm target attr fast/web emulate_write_cache 1"),
        ],
    ),
    ("target param", &[("For logins to come:", "sm target param fast/web DataDigest CRC32C,None")]),
    (
        "target auth",
        &[("Other secrets:", "sm target auth fast/web --to iqn.1993-08.org.debian:01:c0ffee --auth /root/host1.new")],
    ),
    ("target backstore", &[("What the kernel has:", "sm target backstore list")]),
    (
        "target backstore any",
        &[(
            "A disk below its SCSI host:",
            "sm target backstore any pscsi --index 2 --hba physical --name disk --dev 2:0:0:0",
        )],
    ),
    ("target backstore lookup", &[("Is it there?", "sm target backstore lookup pscsi --index 2 --name disk")]),
    (
        "target backstore create",
        &[("With a free number:", "sm target backstore create pscsi --name tape --dev /dev/nst0")],
    ),
    ("target backstore list", &[("As JSON:", "sm target backstore list --format json")]),
    ("target backstore show", &[("One storage object:", "sm target backstore show pscsi_2/disk")]),
    ("target backstore delete", &[("With its storage objects:", "sm target backstore delete pscsi_2 --recursive")]),
    ("target unpublish", &[("Also from a host that uses it:", "sm target unpublish fast/web --force")]),
    ("target list", &[("As JSON:", "sm target list --format json")]),
    ("target show", &[("One publication:", "sm target show fast/web")]),
    ("target check", &[("What is not as it should be:", "sm target check")]),
    ("target restore", &[("After a reboot:", "sm target restore")]),
];

/// The examples of a command as `--help` shows them; `None` if it has none.
pub fn examples(verb: &str) -> Option<String> {
    let (_, examples) = EXAMPLES.iter().find(|(name, _)| *name == verb)?;
    let lines = examples.iter().map(|(what, line)| match *what {
        "" => format!("\n  {line}"),
        what => format!("\n{what}\n  {line}"),
    });
    Some(format!("Examples:{}", lines.collect::<String>()))
}

/// Exit status and name of each failure, in words.
pub const STATUSES: &[(u8, &str, &str)] = &[
    (0, "", "It is done, or nothing was to be done."),
    (2, "", "sm plan --detailed-exitcode: there is something to do."),
    (1, "EPERM", "The driver does not support it, or not here."),
    (5, "EIO", "The storage, an image or a tool failed."),
    (7, "E2BIG", "A size, a chain or a line is too big."),
    (13, "EACCES", "Access was denied."),
    (16, "EBUSY", "The device is in use."),
    (17, "EEXIST", "The SR, the VDI or the name exists already."),
    (19, "ENODEV", "There is no such device or server, or the server does not answer."),
    (22, "EINVAL", "A word of the line is not valid, or a word stands for several VDIs."),
    (28, "ENOSPC", "There is not enough space."),
    (37, "ENOLCK", "The persistent lock was refused, or another call has the set of disks or the layout."),
    (42, "ENOMSG", "There is no such command."),
    (100, "ENOSR", "There is no such SR."),
    (101, "ENOVDI", "There is no such VDI."),
    (102, "ESRBUSY", "The SR is not available, or another call works on it."),
    (103, "EVDIBUSY", "The VDI is attached or locked."),
    (104, "ENOBACKEND", "There is no such backend."),
    (105, "EMODEL", "A line of a file that a person wrote is not valid."),
    (106, "ENOMATCH", "No medium fits a line of a model."),
    (107, "EINDEX", "An index of a model is used twice or out of range."),
    (108, "EFROZEN", "A layout cannot be changed so."),
    (109, "ESTALEPLAN", "A plan does not fit any more: make a new one."),
    (111, "EPARTIAL", "A layout was applied in part: sm apply --resume goes on."),
    (113, "ENOLIO", "The kernel of this host has no SCSI target."),
    (114, "EFOREIGN", "An object of the kernel's target is not one that sm made."),
    (115, "EWWNCLASH", "Two VDIs would have one world-wide name."),
    (116, "EDRIFT", "A publication is not as its record says."),
    (119, "EHOOKDENY", "A hook of the administrator did not let a command begin."),
    (120, "ENOSNAP", "A disk of a set could not be snapshotted."),
    (121, "EEXPORT", "A disk of a set was not exported, or the export was not completed."),
    (122, "EVERIFY", "An export is not what its manifest says, or there is no such export."),
    (125, "ECLEANUP", "A set was exported, and its disks, which were to be deleted then, were not all."),
];

/// Files, and what each is.
pub const FILES: &[(&str, &str)] = &[
    (
        "/etc/sm/sr.d/NAME.conf",
        "The SR that has this name on this host: UUID=, TYPE= and DCONF=, or keys of device_config.",
    ),
    (
        "/etc/sm/sm.conf",
        "Settings of sm devices (backend=, storage_file=, min_size=) and of sm target (target_iqn_prefix=, target_portals=).",
    ),
    ("/etc/sm/storage.conf", "The inventory of the backend file: a device a line, CLASS: host=HOST dev=PATH."),
    ("/etc/sm/layouts/NAME.model", "Models of layouts that are called by their names."),
    (
        "/etc/sm/tuning.conf",
        "Settings of the kernel that sm tune writes: alias NAME=GLOB, and \"VALUE\" NAME CLASS-OR-HOST,…",
    ),
    ("/var/lib/sm/layouts/NAME.layout", "Installed layouts."),
    ("/var/lib/sm/layouts/NAME.journal", "The run of a layout that is not finished."),
    ("/var/lib/sm/registry/claims.json", "Whose each device is. sm devices rebuild makes it anew."),
    ("/usr/lib/sm/backends", "The programs of backends."),
    ("/etc/sm/stores.conf", "The stores of sm backup, a line each: store: name=NAME path=DIRECTORY [drained=yes]."),
    ("/etc/sm/hooks", "Programs that run around sm backup and sm apply, in OPERATION.d."),
    ("/var/lib/sm/backup", "The sets of sm backup, and what its running calls have begun."),
    ("/var/lib/sm/targets", "What this host publishes, and the secrets of initiators."),
    ("/etc/sm-collect/UUID.conf", "SRs of the timer of earlier releases: TYPE= and DCONF=."),
    ("/run/sr-mount", "Where SRs are mounted that name no mountpoint."),
    ("/var/lock/sm", "Locks between the calls of this host."),
];

/// Variables of the environment, and what each does.
pub const ENVIRONMENT: &[(&str, &str)] = &[
    ("XCP_SM_SR", "The SR of a line that names none: a name or a UUID."),
    (
        "XCP_SM_RUN_DIR",
        "A directory in which all of the above is instead. Only root and the caller may be able to write to it.",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::door::v1::sm_command;

    #[test]
    fn every_command_has_an_example_that_the_parser_takes() {
        let command = sm_command();
        for verb in command.get_subcommands() {
            assert!(examples(verb.get_name()).is_some(), "{} has no example", verb.get_name());
        }
        for line in EXAMPLES.iter().flat_map(|(_, examples)| examples.iter().map(|(_, line)| *line)) {
            let words = line.split_whitespace().map(|word| word.trim_matches(|c| "\"$();".contains(c)));
            let verb = words.skip_while(|word| !word.ends_with("sm")).nth(1).unwrap();
            assert!(command.find_subcommand(verb).is_some(), "{line}");
        }
    }
}
