//! The command lines of `sm backup`.

use std::path::PathBuf;

use clap::{Subcommand, ValueEnum};

use crate::backup::codec::Compression;

#[derive(Subcommand)]
pub enum BackupCommand {
    /// Make a set: a name for disks that belong together. A set of the name is replaced.
    Define {
        /// Name of the set.
        #[arg(value_name = "NAME")]
        name: String,
        /// A disk: SR/VDI. Repeat the option for more, in the order in which they are to be exported.
        #[arg(long = "disk", value_name = "SR/VDI", required = true)]
        disks: Vec<String>,
        /// A file that each export takes along unread.
        #[arg(long, value_name = "FILE")]
        metadata: Option<PathBuf>,
        /// A file of public keys of age, one a line: exports of the set are encrypted for them.
        #[arg(long, value_name = "FILE")]
        recipient: Option<PathBuf>,
        /// A file of secret keys of age, with which encrypted exports of the set are read.
        #[arg(long, value_name = "FILE")]
        identity: Option<PathBuf>,
    },
    /// Remove a set. Its disks and its exports stay. Succeeds if there is none.
    Undefine {
        /// Name of the set.
        #[arg(value_name = "NAME")]
        name: String,
    },
    /// Export the disks of a set into a store. The export before stays current until the new one is complete.
    Export {
        /// Name of the set.
        #[arg(value_name = "NAME")]
        name: String,
        /// A disk in place of those of the set: SR/VDI. Repeat the option for more.
        #[arg(long = "disk", value_name = "SR/VDI")]
        disks: Vec<String>,
        /// Store that gets the export.
        #[arg(long, value_name = "STORE")]
        to: String,
        /// How blocks are packed. Without this option not at all; zstd, if the export is encrypted.
        #[arg(long, value_name = "HOW")]
        compress: Option<Compress>,
        /// A file of public keys of age, one a line, for which the export is encrypted. Without this option that of the set or of
        /// the store; if neither has one, the export is not encrypted.
        #[arg(long, value_name = "FILE")]
        recipient: Option<PathBuf>,
        /// Export disks in use as well: all disks are snapshotted, and the snapshots are read. Each disk is what a power cut
        /// would leave on it.
        #[arg(long)]
        live: bool,
        /// Export disks in use as --live does, and pause what uses them until all snapshots are there: the programs in
        /// /etc/sm/hooks/backup-pause.d do that, and those in backup-resume.d end it.
        #[arg(long, conflicts_with = "live")]
        pause: bool,
        /// Seconds that a program in backup-pause.d may take.
        #[arg(long, value_name = "SECONDS", default_value_t = 120, requires = "pause")]
        pause_timeout: u64,
        /// With --pause, a disk of which no snapshot can be made is read itself, and what uses the disks stays paused until then.
        #[arg(long, requires = "pause", conflicts_with = "live")]
        long_pause: bool,
        /// Delete the disks once they are exported. No disk is in use, or the programs in backup-pause.d of --pause stop what uses
        /// them, detach the disks and unlock them; what was stopped does not go on.
        #[arg(long, conflicts_with = "live")]
        remove_source: bool,
        /// Succeed if a disk cannot be deleted then, with a warning.
        #[arg(long, requires = "remove_source")]
        ignore_remove_failures: bool,
        /// Before the export, have the programs in /etc/sm/hooks/backup-zero.d fill with zeroes what the disks do not use. The disks
        /// are attached for them. The export has to be packed, and no disk in use, unless --pause is given.
        #[arg(long, conflicts_with = "live")]
        zero_free: bool,
        /// Seconds that each of these programs may take, besides those by the size of the disks: 120, if nothing is said.
        #[arg(long, value_name = "SECONDS", requires = "zero_free")]
        zero_timeout_fixed: Option<u32>,
        /// Seconds that each of these programs may take for each MiB of all disks: 0.1, if nothing is said.
        #[arg(long, value_name = "SECONDS", requires = "zero_free", value_parser = seconds)]
        zero_timeout_per_mib: Option<f64>,
        /// Read no more than this in a second: 50M, 1G.
        #[arg(long, value_name = "SIZE")]
        rate: Option<String>,
        /// Store only the blocks that changed since a run: last, for the current one, or its name. none: store every block. With this
        /// option the disks are snapshotted where their SRs can do that, and the snapshots stay for the next increment.
        #[arg(long, value_name = "last|RUN|none")]
        since: Option<String>,
        /// With --since last: store every block again after so many increments, so that the runs before can go. Without this option each
        /// run is an increment, and none that it needs is ever removed.
        #[arg(long, value_name = "N", requires = "since", value_parser = clap::value_parser!(u16).range(1..))]
        whole_after: Option<u16>,
        /// How many exports of the set stay in the store, the new one among them. What an increment is made on stays as well. Without
        /// this option and the next two, as many stay as the export before was to leave; of the first one, 1.
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
        keep: Option<u16>,
        /// Keep the newest export of each of so many days besides.
        #[arg(long, value_name = "N")]
        keep_daily: Option<u16>,
        /// Keep the newest export of each of so many weeks besides.
        #[arg(long, value_name = "N")]
        keep_weekly: Option<u16>,
        /// Also if another host made the exports of the set that are in the store: the set has moved to this host.
        #[arg(long)]
        take_over: bool,
        /// Leave the exports of the set in other stores. Without this option they are removed once the new one is complete.
        #[arg(long)]
        keep_others: bool,
        /// If a disk fails, keep those that did not, in the directory RUN.partial of the set in the store, until an export of the set
        /// succeeds.
        #[arg(long)]
        keep_partial: bool,
        /// Seconds to wait for another call that has the set.
        #[arg(long, value_name = "SECONDS", default_value_t = 60)]
        lock_timeout: u64,
        /// Change nothing, and print what would be done.
        #[arg(short = 'n', long)]
        dry_run: bool,
    },
    /// Make the newest export of a set whole, without reading the disks. Succeeds if it is whole.
    Consolidate {
        /// Name of the set.
        #[arg(value_name = "NAME")]
        name: String,
        /// Store that has the export. Without this option the one that has the newest.
        #[arg(long, value_name = "STORE")]
        store: Option<String>,
        /// A file of public keys of age, one a line, for which an encrypted export is encrypted again. Without this option that of
        /// the set or of the store.
        #[arg(long, value_name = "FILE")]
        recipient: Option<PathBuf>,
        /// A file of secret keys of age, with which an encrypted export is read. Without this option that of the set or of the
        /// store.
        #[arg(long, value_name = "FILE")]
        identity: Option<PathBuf>,
        /// Seconds to wait for another call that has the set.
        #[arg(long, value_name = "SECONDS", default_value_t = 60)]
        lock_timeout: u64,
    },
    /// Make disks of an export, of all of them or of none. Every block is compared with its digest.
    Import {
        /// Name of the set.
        #[arg(value_name = "NAME")]
        name: String,
        /// Store that has the export.
        #[arg(long, value_name = "STORE")]
        from: String,
        /// Run to import. Without this option the current one.
        #[arg(long, value_name = "RUN")]
        run: Option<String>,
        /// Make this disk alone: its index in the export, its label, or the UUID that it had. Repeat the option for more.
        #[arg(long = "disk", value_name = "DISK")]
        disks: Vec<String>,
        /// Label of the new disk, if one alone is made. Without this option it gets the label that it had.
        #[arg(long, value_name = "TEXT")]
        label: Option<String>,
        /// SR that gets the disks; auto: the one that has most room.
        #[arg(long, value_name = "SR|auto", required_unless_present = "placement", conflicts_with = "placement")]
        sr: Option<String>,
        /// A program that chooses the SR of each disk in place of --sr: it gets the name of a file that has the question, and answers on
        /// its standard output, both in JSON.
        #[arg(long, value_name = "PROGRAM")]
        placement: Option<PathBuf>,
        /// SR of one disk, by its index in the export.
        #[arg(long, value_name = "INDEX=SR")]
        map: Vec<String>,
        /// Larger size of one disk, by its index in the export.
        #[arg(long, value_name = "INDEX=SIZE")]
        size: Vec<String>,
        /// Give the disks the UUIDs that they had.
        #[arg(long)]
        keep_uuids: bool,
        /// A file of secret keys of age, with which an encrypted export is read. Without this option that of the set or of the
        /// store.
        #[arg(long, value_name = "FILE")]
        identity: Option<PathBuf>,
        /// Also if the export is not signed though this host has a secret, /etc/sm/domain.secret.
        #[arg(long)]
        unsigned: bool,
        /// Seconds to wait for another call that has the set.
        #[arg(long, value_name = "SECONDS", default_value_t = 60)]
        lock_timeout: u64,
    },
    /// Write a run of a store, with all that it is an increment on, to standard output, for `sm backup receive` on another host:
    /// sm backup send web | ssh host sm backup receive --to nas
    Send {
        /// Name of the set.
        #[arg(value_name = "NAME")]
        name: String,
        /// Store that has the run. Without this option all of them are looked in.
        #[arg(long, value_name = "STORE")]
        store: Option<String>,
        /// Run to send. Without this option the newest.
        #[arg(long, value_name = "RUN")]
        run: Option<String>,
        /// Send only what is an increment on this run, which the receiver has.
        #[arg(long, value_name = "RUN")]
        since: Option<String>,
        /// Send only what the receiver has not: the word that `sm backup receive --resume` printed there.
        #[arg(long, value_name = "WORD", conflicts_with = "since")]
        from: Option<String>,
        /// Send one run with every block in the place of an increment and those that it is made on, as `sm backup receive --sr` needs it.
        #[arg(long, conflicts_with_all = ["since", "from"])]
        whole: bool,
    },
    /// Take runs from standard input into a store, as `sm backup send` writes them. If it is cut off, --resume tells how to go on.
    /// With --sr, make VDIs of the disks of a run, without a store: sm backup send web --whole | ssh host sm backup receive --sr fast
    Receive {
        /// Store that gets the runs.
        #[arg(long, value_name = "STORE", required_unless_present = "sr")]
        to: Option<String>,
        /// SR that gets the disks, or auto for the one that has most room. All disks are made or none.
        #[arg(long, value_name = "SR", conflicts_with_all = ["to", "resume", "keep", "take_over"])]
        sr: Option<String>,
        /// With --sr, the new disks have the UUIDs of the old ones.
        #[arg(long, requires = "sr")]
        keep_uuids: bool,
        /// With --sr, a file of secret keys of age, with which an encrypted run is read. Without this option that of the set.
        #[arg(long, value_name = "FILE", requires = "sr")]
        identity: Option<PathBuf>,
        /// With --sr, also if the run is not signed though this host has a secret, /etc/sm/domain.secret.
        #[arg(long, requires = "sr")]
        unsigned: bool,
        /// Receive nothing, and print what the store has of a set, for `sm backup send --from`.
        #[arg(long, value_name = "NAME")]
        resume: Option<String>,
        /// How many exports of the set stay in the store, the newest among them. What an increment is made on stays as well.
        /// Without this option all stay.
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
        keep: Option<u16>,
        /// Also if another host made the exports of the set that are in the store: the set has moved.
        #[arg(long)]
        take_over: bool,
        /// Give up after so many seconds in which nothing came.
        #[arg(long, value_name = "SECONDS", default_value_t = 600)]
        timeout: u64,
        /// Seconds to wait for another call that has the set.
        #[arg(long, value_name = "SECONDS", default_value_t = 60)]
        lock_timeout: u64,
    },
    /// List the exports.
    List {
        /// Name of the set whose exports are listed. Without it all of them.
        #[arg(value_name = "NAME")]
        name: Option<String>,
        /// Store to look in. Without this option all of them.
        #[arg(long = "store", value_name = "STORE")]
        stores: Vec<String>,
    },
    /// Show what an export has, and of a set without exports its disks.
    Show {
        /// Name of the set.
        #[arg(value_name = "NAME")]
        name: String,
        /// Store that has the export. Without this option all of them are looked in.
        #[arg(long, value_name = "STORE")]
        store: Option<String>,
        /// Run to show. Without this option the newest.
        #[arg(long, value_name = "RUN")]
        run: Option<String>,
    },
    /// Compare an export with its manifest: sizes, and the digests of its files.
    Verify {
        /// Name of the set, or the directory of an export: a word with a slash.
        #[arg(value_name = "NAME|DIRECTORY")]
        what: String,
        /// Store that has the export. Without this option all of them are looked in.
        #[arg(long, value_name = "STORE")]
        store: Option<String>,
        /// Run to verify. Without this option the newest.
        #[arg(long, value_name = "RUN")]
        run: Option<String>,
        /// Read every block, and compare it with its digest.
        #[arg(long)]
        deep: bool,
        /// A file of secret keys of age, which --deep needs of an encrypted export. Without this option that of the set or of the
        /// store.
        #[arg(long, value_name = "FILE")]
        identity: Option<PathBuf>,
        /// Also if the export is not signed though this host has a secret, /etc/sm/domain.secret.
        #[arg(long)]
        unsigned: bool,
    },
    /// Remove the exports of a set. Succeeds if there are none.
    Remove {
        /// Name of the set.
        #[arg(value_name = "NAME")]
        name: String,
        /// Store to remove them from. Without this option all of them.
        #[arg(long, value_name = "STORE")]
        store: Option<String>,
        /// Run to remove. Repeat the option for more. Without it all of them.
        #[arg(long = "run", value_name = "RUN")]
        runs: Vec<String>,
        /// Do not ask at a terminal.
        #[arg(short = 'y', long)]
        yes: bool,
        /// Change nothing, and print what would be removed.
        #[arg(short = 'n', long)]
        dry_run: bool,
        /// Seconds to wait for another call that has the set.
        #[arg(long, value_name = "SECONDS", default_value_t = 60)]
        lock_timeout: u64,
    },
    /// Remove older exports of a set, as an export with this retention would. What a run that stays is an increment on stays too.
    Prune {
        /// Name of the set.
        #[arg(value_name = "NAME")]
        name: String,
        /// Store to remove them from. Without this option all of them.
        #[arg(long, value_name = "STORE")]
        store: Option<String>,
        /// How many exports stay.
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..), required_unless_present_any = ["keep_daily", "keep_weekly"])]
        keep: Option<u16>,
        /// Keep the newest export of each of so many days besides.
        #[arg(long, value_name = "N")]
        keep_daily: Option<u16>,
        /// Keep the newest export of each of so many weeks besides.
        #[arg(long, value_name = "N")]
        keep_weekly: Option<u16>,
        /// Do not ask at a terminal.
        #[arg(short = 'y', long)]
        yes: bool,
        /// Change nothing, and print what would be removed.
        #[arg(short = 'n', long)]
        dry_run: bool,
        /// Seconds to wait for another call that has the set.
        #[arg(long, value_name = "SECONDS", default_value_t = 60)]
        lock_timeout: u64,
    },
    /// Make a directory a store, by a marker in it. Do so once what belongs there is mounted.
    StoreInit {
        /// Name of the store in /etc/sm/stores.conf.
        #[arg(value_name = "STORE")]
        store: String,
        /// Even if something is in the directory.
        #[arg(long)]
        yes: bool,
    },
}

/// How blocks are packed.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Compress {
    None,
    Gzip,
    Zstd,
}

impl From<Compress> for Compression {
    fn from(how: Compress) -> Compression {
        match how {
            Compress::None => Compression::None,
            Compress::Gzip => Compression::Gzip,
            Compress::Zstd => Compression::Zstd,
        }
    }
}

/// Seconds, with a fraction.
fn seconds(word: &str) -> Result<f64, String> {
    let seconds = word.parse::<f64>().ok().filter(|seconds| seconds.is_finite() && *seconds >= 0.0);
    seconds.ok_or_else(|| "expected seconds, such as 0.1".to_owned())
}

impl BackupCommand {
    /// The command in words, if it changes something.
    pub fn change(&self) -> Option<String> {
        match self {
            BackupCommand::Define { name, .. } => Some(format!("backup define {name}")),
            BackupCommand::Undefine { name } => Some(format!("backup undefine {name}")),
            BackupCommand::Export { name, to, dry_run: false, .. } => Some(format!("backup export {name} into {to}")),
            BackupCommand::Consolidate { name, .. } => Some(format!("backup consolidate {name}")),
            BackupCommand::Import { name, from, .. } => Some(format!("backup import {name} from {from}")),
            BackupCommand::Receive { to: Some(to), resume: None, .. } => Some(format!("backup receive into {to}")),
            BackupCommand::Receive { sr: Some(sr), .. } => Some(format!("backup receive into SR {sr}")),
            BackupCommand::Remove { name, dry_run: false, .. } => Some(format!("backup remove {name}")),
            BackupCommand::Prune { name, dry_run: false, .. } => Some(format!("backup prune {name}")),
            BackupCommand::StoreInit { store, .. } => Some(format!("backup store-init {store}")),
            BackupCommand::Export { .. }
            | BackupCommand::Send { .. }
            | BackupCommand::Remove { .. }
            | BackupCommand::Prune { .. }
            | BackupCommand::Receive { .. }
            | BackupCommand::List { .. }
            | BackupCommand::Show { .. }
            | BackupCommand::Verify { .. } => None,
        }
    }
}
