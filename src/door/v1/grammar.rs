//! The words of a command line: options, verbs and their arguments.

use clap::{ArgGroup, ArgMatches, Args, Command, CommandFactory, FromArgMatches, Parser, ValueEnum};

use super::collecting::CollectArgs;
use super::single::commands;
use crate::context::DEFAULT_WAIT;

/// Storage repositories (SR) and the virtual disks (VDI) in them, for people.
///
/// An SR lives where -d DCONF says: in a directory, on a server's export or share, on block devices. With a name
/// (sr_create --name), the name stands for its type, its place and its UUID. A VDI is called by its label, its UUID or
/// the start of it. Arguments are verified before anything is touched.
/// `sm help COMMAND` explains a command, as `sm COMMAND --help` does.
#[derive(Parser)]
#[command(name = "sm", version, max_term_width = 100, disable_help_subcommand = true, arg_required_else_help = false)]
#[command(after_help = AFTER_HELP)]
pub struct SmOptions {
    /// Type of the SR; the help of -d lists the types.
    #[arg(short = 't', long = "sr-type", value_name = "TYPE", global = true)]
    pub sr_type: Option<String>,
    #[command(flatten)]
    pub common: Common,
}

/// A line of `sm` that is one of a [`Verb`].
pub struct SmCommand {
    pub sr_type: Option<String>,
    pub common: Common,
    pub verb: Verb,
}

impl SmCommand {
    /// # Errors
    /// Those of the parser.
    pub fn from_arg_matches(matches: &ArgMatches) -> Result<SmCommand, clap::Error> {
        let SmOptions { sr_type, common } = SmOptions::from_arg_matches(matches)?;
        Ok(SmCommand { sr_type, common, verb: Verb::from_arg_matches(matches)? })
    }
}

/// What stands before the command in a line of `sm`, without any command.
pub fn sm_options() -> Command {
    SmOptions::command().subcommand_required(true)
}

/// What stands before the command in a line of a driver, without any command.
pub fn driver_options() -> Command {
    DriverOptions::command().subcommand_required(true)
}

const AFTER_HELP: &str = "\
Example:
  sm sr_create --name fast -t file -d /srv/sr0
  sm vdi_create fast 20G --label web        # prints the UUID that it chose
  sm vdi_attach fast/web                    # prints /dev/loop0
  sm sr_scan fast

With every UUID, -t and -d, a line is one of SR API v1.0 and answers as it does:
  sm vdi_create -t file -d /srv/sr0 SR-UUID VDI-UUID 20GiB

Exit status 0, or a number whose name begins the one line on stderr that says what failed and why:
   1 EPERM not supported here   5 EIO                     7 E2BIG            13 EACCES
  16 EBUSY device in use       17 EEXIST                 19 ENODEV           22 EINVAL
  28 ENOSPC                    37 ENOLCK                 42 ENOMSG no such command
 100 ENOSR                    101 ENOVDI                102 ESRBUSY         103 EVDIBUSY
 104 ENOBACKEND               105 EMODEL a line of a file that a person wrote
 106 ENOMATCH                 107 EINDEX                108 EFROZEN         109 ESTALEPLAN
 111 EPARTIAL                 113 ENOLIO no SCSI target 114 EFOREIGN        115 EWWNCLASH
 116 EDRIFT publications      119 EHOOKDENY by a hook   120 ENOSNAP         121 EEXPORT
 122 EVERIFY an export        125 ECLEANUP";

/// An SR driver, as an agent calls it.
#[derive(Parser)]
#[command(version, max_term_width = 100, disable_help_subcommand = true, arg_required_else_help = false)]
pub struct DriverOptions {
    #[command(flatten)]
    pub common: Common,
}

/// A line of a driver.
pub struct DriverCommand {
    pub common: Common,
    pub verb: Verb,
}

impl DriverCommand {
    /// # Errors
    /// Those of the parser.
    pub fn from_arg_matches(matches: &ArgMatches) -> Result<DriverCommand, clap::Error> {
        let DriverOptions { common } = DriverOptions::from_arg_matches(matches)?;
        Ok(DriverCommand { common, verb: Verb::from_arg_matches(matches)? })
    }
}

#[derive(Args)]
pub struct Common {
    /// Where the SR lives: the type's short form, or ((key . "value") …) with device_config keys.
    #[arg(short = 'd', long, value_name = "DCONF", global = true, allow_hyphen_values = true)]
    pub dconf: Option<String>,
    /// Seconds to wait for other calls on the same SR or VDI, before ESRBUSY.
    #[arg(long, value_name = "SECONDS", global = true, default_value_t = DEFAULT_WAIT.as_secs())]
    pub wait: u64,
    /// Form of the answer. Without this option sm writes a table on a terminal, and s-expressions otherwise.
    #[arg(long, value_name = "FORMAT", global = true)]
    pub format: Option<OutputFormat>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// S-expressions, for Scheme and serde-lexpr.
    Sexp,
    /// S-expressions with t and nil for booleans, for Emacs and Common Lisp.
    Lisp,
    Json,
    /// For people.
    Table,
}

commands! {
/// The commands of SR API v1.0, and those that `sm` adds about one SR or VDI.
pub enum Verb {
    /// Make an SR. Fails if the SR exists.
    SrCreate {
        #[command(flatten)]
        sr: SrArg,
        /// Least size of the SR, in MiB or with a unit (20GiB).
        size: Option<String>,
        /// Overwrite what the devices hold. An SR with disks is still refused, and so is what is mounted or in use.
        #[arg(long)]
        force: bool,
        /// Destroy this SR, which the devices hold, with every disk in it. May be given several times.
        #[arg(long = "destroy-sr", value_name = "SR-UUID")]
        destroy_sr: Vec<String>,
    },
    /// Delete an SR and every VDI in it; the files of an ISO SR stay. Succeeds if there is none; fails while a VDI is in use.
    SrDelete {
        #[command(flatten)]
        sr: SrArg,
        /// Delete the VDIs in the SR too. sm wants this option if there are any; the drivers do not.
        #[arg(long)]
        yes: bool,
    },
    /// Make an SR available on this host, and repair what a crash left.
    SrAttach(SrArg),
    /// End the availability of an SR on this host. Fails while a VDI is attached.
    SrDetach(SrArg),
    /// Print what is known of an SR: (sr …).
    SrGetParams(SrArg),
    /// Print an SR with every VDI in it: (sr … (vdis (vdi …) …)).
    SrScan(SrArg),
    /// Give space back: merge the images that deleted snapshots and clones left, also below disks in use.
    SrCollect {
        #[command(flatten)]
        sr: SrArg,
        #[command(flatten)]
        how: CollectArgs,
    },
    /// Tell the devices of an SR what is free in it: a thin array, or an SSD, takes these blocks back. Nothing else is discarded.
    SrTrim(SrArg),
    /// Print what each image of an SR holds alone, and what its deletion would free: (space …). Reads no data.
    SrSpace(SrArg),
    /// Say what is wrong with an SR and its VDIs: images, chains, records of killed calls. Status 5 if anything is wrong that
    /// is not mended.
    SrCheck {
        #[command(flatten)]
        sr: SrArg,
        /// Read every table of the images that no process has open, and not their headers alone.
        #[arg(long)]
        deep: bool,
        /// Mend what can be mended without a loss. Images that a process has open stay as they are.
        #[arg(long)]
        repair: bool,
    },
    /// Print the kind of content of an SR: raw or iso.
    SrContentType(SrArg),
    /// Print the SRs that a DCONF holds: (srs (sr …) …).
    SrProbe,
    /// Make a VDI of zeroes. Fails if the VDI exists.
    VdiCreate {
        #[command(flatten)]
        vdi: VdiArg,
        /// Size of the VDI, in MiB or with a unit (20GiB).
        size: String,
        #[command(flatten)]
        new: NewArgs,
    },
    /// Delete a VDI. Succeeds if there is no such VDI; fails while the VDI is attached or locked.
    VdiDelete {
        #[command(flatten)]
        vdi: VdiArg,
        /// Delete the VDI also if its image, or what is stored beside the image, cannot be read. sm does not ask then.
        #[arg(long)]
        yes: bool,
    },
    /// Make a block device of a VDI and print its path. An attached VDI keeps the path that it has.
    VdiAttach {
        #[command(flatten)]
        vdi: VdiArg,
        /// Attach the VDI read-only.
        #[arg(long = "read-only")]
        read_only: bool,
    },
    /// Remove the block device of a VDI. Fails while a process has the device open, and names the process.
    VdiDetach(VdiArg),
    /// Make a writable copy of a VDI that is neither attached nor locked. It has the names of the VDI unless others are given.
    VdiClone(CopyArgs),
    /// Make a read-only copy of a VDI as it is now. It has the names of the VDI unless others are given.
    VdiSnapshot(CopyArgs),
    /// Copy a VDI into another SR, or the same, in any format. The VDI must not be attached for writing; a snapshot of it can
    /// be copied meanwhile. The copy has the names of the VDI unless others are given, and shares no data with it.
    VdiCopy {
        #[command(flatten)]
        sr: SrArg,
        /// UUID of the VDI to copy.
        #[arg(value_name = "SRC-UUID")]
        source: String,
        /// UUID of the SR that gets the copy. The SR must have a name on this host, unless it is the SR of the VDI.
        #[arg(value_name = "DST-SR-UUID")]
        to: String,
        /// UUID of the new VDI.
        #[arg(value_name = "DST-UUID")]
        dest: String,
        /// Format of the copy: raw, vhd or qcow2, as its driver supports. Without this option that of the VDI where the
        /// driver supports it, else the usual one of the driver.
        #[arg(long = "type", value_name = "FORMAT")]
        image: Option<String>,
        #[command(flatten)]
        names: NameArgs,
    },
    /// Give a VDI another label or description, or make it read-only or shareable or take that back. The VDI keeps
    /// everything that no option names.
    #[command(group = ArgGroup::new("change").args(["label", "description", "read_only", "shareable"]).required(true).multiple(true))]
    VdiSet {
        #[command(flatten)]
        vdi: VdiArg,
        #[command(flatten)]
        names: NameArgs,
        /// Whether the VDI can only be attached read-only. Refused while the VDI is attached or locked. A snapshot that is
        /// made writable is a snapshot no more.
        #[arg(long = "read-only", value_name = "BOOL", num_args = 0..=1, require_equals = true)]
        #[arg(default_missing_value = "true")]
        read_only: Option<bool>,
        /// Whether several users may lock the VDI at once. Says nothing about attaching it.
        #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
        shareable: Option<bool>,
    },
    /// Take a VDI back to a snapshot of it: the VDI gets the contents and the size of the snapshot, and keeps its UUID and its
    /// names. The former contents of the VDI are lost; the snapshot stays.
    VdiRevert {
        #[command(flatten)]
        vdi: VdiArg,
        /// UUID of the snapshot.
        #[arg(value_name = "SNAPSHOT-UUID")]
        snapshot: String,
    },
    /// Change the size of a VDI that is not read-only. VHD and qcow2 can only grow.
    VdiResize {
        #[command(flatten)]
        vdi: VdiArg,
        /// New size of the VDI, in MiB or with a unit (20GiB).
        size: String,
        /// Allow the VDI to become smaller. The data beyond the new end is lost.
        #[arg(long = "allow-shrink")]
        allow_shrink: bool,
    },
    /// Record that a user has a VDI: take its persistent lock. Every host that has the SR sees the lock. While it is held, nobody
    /// else can lock, delete or clone the VDI. It does not keep anybody from attaching the VDI.
    VdiLock(LockArgs),
    /// Give the persistent lock of a VDI back.
    VdiUnlock(LockArgs),
    /// Print what is known of a VDI: (vdi …).
    VdiGetParams(VdiArg),
    /// Write the disk of a VDI to a file or a pipe. Fails while a writable VDI is attached.
    VdiExport {
        #[command(flatten)]
        vdi: VdiArg,
        /// The file to make, or - for standard output.
        #[arg(value_name = "FILE")]
        file: String,
        /// Format of the file: raw, vhd or qcow2. Without this option the file's extension decides, else raw.
        #[arg(long = "type", value_name = "FORMAT")]
        image: Option<String>,
        /// Export what can be read of a damaged VDI. What cannot be read becomes zeroes; stderr lists these bytes, and the status
        /// is 5.
        #[arg(long)]
        rescue: bool,
    },
    /// Make a VDI of the contents of a file or a pipe.
    VdiImport {
        #[command(flatten)]
        vdi: VdiArg,
        /// The file to read, or - for standard input.
        #[arg(value_name = "FILE")]
        file: String,
        /// Format of the file: raw, vhd or qcow2. Without this option the file's extension decides, else raw. A file that
        /// looks like an image is taken for raw only if this option says raw.
        #[arg(long = "file-type", value_name = "FORMAT")]
        file_type: Option<String>,
        /// Least size of the VDI, in MiB or with a unit. For raw bytes from a pipe, the number of bytes that come.
        #[arg(long, value_name = "SIZE")]
        size: Option<String>,
        #[command(flatten)]
        new: NewArgs,
    },
    /// Draw the chains of an SR: which image is whose parent, and what each takes. --format sexp, lisp or json gives the same
    /// as data.
    VdiTree {
        #[command(flatten)]
        sr: SrArg,
        /// UUID of a VDI: only the tree that has it is drawn.
        #[arg(value_name = "VDI-UUID")]
        vdi: Option<String>,
    },
}
}

impl Verb {
    /// The form of the answer for a program that does not say which it wants: what is drawn is for people.
    pub fn usual_format(&self) -> OutputFormat {
        match self {
            Verb::VdiTree { .. } => OutputFormat::Table,
            _ => OutputFormat::Sexp,
        }
    }
}

impl Verb {
    /// The word that names the SR, if the command is about one.
    pub fn sr_word(&mut self) -> Option<&mut String> {
        Some(match self {
            Verb::SrProbe => return None,
            Verb::SrCreate { sr, .. }
            | Verb::SrDelete { sr, .. }
            | Verb::SrCheck { sr, .. }
            | Verb::SrCollect { sr, .. }
            | Verb::VdiTree { sr, .. } => &mut sr.sr,
            Verb::SrAttach(sr)
            | Verb::SrDetach(sr)
            | Verb::SrGetParams(sr)
            | Verb::SrScan(sr)
            | Verb::SrTrim(sr)
            | Verb::SrSpace(sr)
            | Verb::SrContentType(sr) => &mut sr.sr,
            Verb::VdiCreate { vdi, .. }
            | Verb::VdiDelete { vdi, .. }
            | Verb::VdiAttach { vdi, .. }
            | Verb::VdiSet { vdi, .. }
            | Verb::VdiRevert { vdi, .. }
            | Verb::VdiResize { vdi, .. }
            | Verb::VdiExport { vdi, .. }
            | Verb::VdiImport { vdi, .. } => &mut vdi.sr.sr,
            Verb::VdiDetach(vdi) | Verb::VdiGetParams(vdi) => &mut vdi.sr.sr,
            Verb::VdiClone(copy) | Verb::VdiSnapshot(copy) => &mut copy.sr.sr,
            Verb::VdiCopy { sr, .. } => &mut sr.sr,
            Verb::VdiLock(lock) | Verb::VdiUnlock(lock) => &mut lock.vdi.sr.sr,
        })
    }

    /// The UUID of the VDI that the command makes.
    pub fn new_word(&self) -> Option<&str> {
        match self {
            Verb::VdiCreate { vdi, .. } | Verb::VdiImport { vdi, .. } => Some(&vdi.vdi),
            Verb::VdiClone(copy) | Verb::VdiSnapshot(copy) => Some(&copy.dest),
            Verb::VdiCopy { dest, .. } => Some(dest),
            _ => None,
        }
    }

    /// The words that name existing VDIs. A VDI that the command makes has no name yet.
    pub fn vdi_words(&mut self) -> Vec<&mut String> {
        match self {
            Verb::SrProbe
            | Verb::SrCreate { .. }
            | Verb::SrDelete { .. }
            | Verb::SrCheck { .. }
            | Verb::SrAttach(_)
            | Verb::SrDetach(_)
            | Verb::SrGetParams(_)
            | Verb::SrScan(_)
            | Verb::SrCollect { .. }
            | Verb::SrTrim(_)
            | Verb::SrSpace(_)
            | Verb::SrContentType(_)
            | Verb::VdiCreate { .. }
            | Verb::VdiImport { .. } => Vec::new(),
            Verb::VdiTree { vdi, .. } => vdi.iter_mut().collect(),
            Verb::VdiDelete { vdi, .. }
            | Verb::VdiAttach { vdi, .. }
            | Verb::VdiSet { vdi, .. }
            | Verb::VdiResize { vdi, .. }
            | Verb::VdiExport { vdi, .. } => vec![&mut vdi.vdi],
            Verb::VdiRevert { vdi, snapshot } => vec![&mut vdi.vdi, snapshot],
            Verb::VdiDetach(vdi) | Verb::VdiGetParams(vdi) => vec![&mut vdi.vdi],
            Verb::VdiClone(copy) | Verb::VdiSnapshot(copy) => vec![&mut copy.source],
            Verb::VdiCopy { source, .. } => vec![source],
            Verb::VdiLock(lock) | Verb::VdiUnlock(lock) => vec![&mut lock.vdi.vdi],
        }
    }
}

#[derive(Args)]
pub struct SrArg {
    /// UUID of the SR.
    #[arg(value_name = "SR-UUID")]
    pub sr: String,
}

#[derive(Args)]
pub struct VdiArg {
    #[command(flatten)]
    pub sr: SrArg,
    /// UUID of the VDI.
    #[arg(value_name = "VDI-UUID")]
    pub vdi: String,
}

/// Properties of a new VDI.
#[derive(Args)]
pub struct NewArgs {
    /// Format of the VDI: raw, vhd or qcow2, as the driver supports. Without this option vhd where disks are files, raw
    /// where disks are volumes.
    #[arg(long = "type", value_name = "FORMAT")]
    pub image: Option<String>,
    #[command(flatten)]
    pub names: NameArgs,
    /// Several users may lock the VDI at once.
    #[arg(long)]
    pub shareable: bool,
    /// The VDI can only be attached read-only.
    #[arg(long = "read-only")]
    pub read_only: bool,
}

/// The names that people give a VDI.
#[derive(Args)]
pub struct NameArgs {
    /// Name of the VDI, for people.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub label: Option<String>,
    /// Purpose of the VDI, for people.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub description: Option<String>,
}

#[derive(Args)]
pub struct CopyArgs {
    #[command(flatten)]
    pub sr: SrArg,
    /// UUID of the VDI to copy.
    #[arg(value_name = "SRC-UUID")]
    pub source: String,
    /// UUID of the new VDI.
    #[arg(value_name = "DST-UUID")]
    pub dest: String,
    #[command(flatten)]
    pub names: NameArgs,
}

#[derive(Args)]
pub struct LockArgs {
    #[command(flatten)]
    pub vdi: VdiArg,
    /// TRUE takes the lock from its holder, FALSE does not.
    #[arg(value_name = "FORCE")]
    pub force: String,
    /// Name of the holder of the lock, in the caller's words.
    #[arg(value_name = "USER", allow_hyphen_values = true)]
    pub user: String,
}
