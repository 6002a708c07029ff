//! The command lines.

use clap::{Args, CommandFactory, Parser, Subcommand};

use super::backup::grammar::BackupCommand;
use super::target::grammar::TargetCommand;
use crate::door::v1::grammar::OutputFormat;
use crate::door::v1::manual;
use crate::types::SlotMark;

/// Storage repositories (SR) and the virtual disks (VDI) in them, for people.
#[derive(Parser)]
#[command(name = "sm", version, max_term_width = 100, disable_help_subcommand = true)]
pub struct SmLine {
    /// Form of the answer. Without this option sm writes a table on a terminal, and s-expressions otherwise.
    #[arg(long, value_name = "FORMAT", global = true)]
    pub format: Option<OutputFormat>,
    #[command(subcommand)]
    pub group: Group,
}

#[derive(Subcommand)]
pub enum Group {
    /// List the devices of this host that an SR may be made on, with state and owner; explain one; keep their claims.
    #[command(args_conflicts_with_subcommands = true, disable_help_subcommand = true)]
    Devices {
        #[command(flatten)]
        list: ListArgs,
        #[command(subcommand)]
        command: Option<DevicesCommand>,
    },
    /// List the backends, which say what devices there are, and which of them is selected in /etc/sm/sm.conf.
    Backends,
    /// Export sets of disks into stores, check the exports, and make disks of them again.
    #[command(arg_required_else_help = true, disable_help_subcommand = true)]
    Backup {
        #[command(subcommand)]
        command: BackupCommand,
    },
    /// Publish disks to other hosts by iSCSI or NVMe over TCP, or to this host as SCSI disks, through the kernel's targets.
    #[command(arg_required_else_help = true, disable_help_subcommand = true)]
    Target {
        #[command(subcommand)]
        command: TargetCommand,
    },
    /// Show the layouts that are installed: the storage of this host as it was applied last.
    #[command(disable_help_subcommand = true)]
    Layout {
        #[command(subcommand)]
        command: LayoutCommand,
    },
    /// Compare a model of this host's storage with the installed layout, and print the steps that make the difference. Nothing is
    /// changed.
    Plan(PlanArgs),
    /// Make the storage of this host what a model or a plan says. Shows the steps and asks, unless --yes is given. Steps that lose
    /// data or take SRs down for a while are left out unless they are allowed.
    Apply(ApplyArgs),
    /// Write the settings of the kernel that /etc/sm/tuning.conf names for this host and for the SRs that it brings up. What is as
    /// it shall be stays untouched.
    Tune(TuneArgs),
    /// Say what is wrong with the storage of this host, and of its pool where there is xapi: SRs that do not answer, programs that are
    /// missing, rights, what dead processes and hosts left, drivers and features that differ between hosts. Nothing is changed. The
    /// status is 5 if something is wrong or could not be looked at.
    Doctor {
        /// Seconds that each SR, and each driver that is not ours, gets to answer. Without this option 5 and 20.
        #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
        wait: Option<u64>,
    },
}

#[derive(Subcommand)]
pub enum LayoutCommand {
    /// List the names of the installed layouts.
    List,
    /// Print the file of an installed layout.
    Show {
        /// Name of the layout.
        #[arg(value_name = "LAYOUT")]
        layout: String,
    },
    /// Remove an installed layout: its SRs go down, their names and claims go. The data stay unless wiping is allowed.
    Remove(RemoveArgs),
    /// Print the paths, options, addresses and SRs of an installed layout, with their UUIDs and states.
    Info {
        /// Name of the layout.
        #[arg(value_name = "LAYOUT")]
        layout: String,
    },
}

#[derive(Args)]
pub struct RemoveArgs {
    /// Name of the layout.
    #[arg(value_name = "LAYOUT")]
    pub layout: String,
    /// wipe: delete the SRs with their VDIs. Without this option, the data stay, and the layout takes the SRs again if it is applied.
    #[arg(long, value_name = "WHAT,…", value_delimiter = ',')]
    pub allow: Vec<String>,
    /// Do not ask.
    #[arg(short = 'y', long)]
    pub yes: bool,
    /// Change nothing, and print what would be done.
    #[arg(short = 'n', long = "dry-run")]
    pub dry_run: bool,
    /// On a host with xapi, run the calls of xe. Without this option, they are printed.
    #[arg(long)]
    pub run_xe: bool,
}

#[derive(Args)]
pub struct ApplyArgs {
    /// Plan that `sm plan -o` wrote. With --resume, the name of a layout; no word is needed if one layout alone is applied in part.
    #[arg(value_name = "PLAN", conflicts_with = "model")]
    pub plan: Option<String>,
    /// Model: a file, or the name of a layout whose model is /etc/sm/layouts/NAME.model.
    #[arg(short = 'm', long, value_name = "MODEL")]
    pub model: Option<String>,
    /// Steps to carry out that are left out otherwise, with commas between them: reformat, retune, rewire, restart, wipe.
    #[arg(long, value_name = "WHAT,…", value_delimiter = ',')]
    pub allow: Vec<String>,
    /// Do not ask.
    #[arg(short = 'y', long)]
    pub yes: bool,
    /// Change nothing, and print what would be done.
    #[arg(short = 'n', long = "dry-run")]
    pub dry_run: bool,
    /// Go on with a run that was killed or failed.
    #[arg(long)]
    pub resume: bool,
    /// On a host with xapi, run the calls of xe. Without this option, they are printed.
    #[arg(long)]
    pub run_xe: bool,
}

#[derive(Args)]
pub struct TuneArgs {
    /// Change nothing, and print what would be done.
    #[arg(short = 'n', long = "dry-run")]
    pub dry_run: bool,
}

#[derive(Args)]
pub struct PlanArgs {
    /// Model: a file, or the name of a layout whose model is /etc/sm/layouts/NAME.model.
    #[arg(short = 'm', long, value_name = "MODEL")]
    pub model: String,
    /// Write the plan to this file.
    #[arg(short = 'o', long, value_name = "FILE")]
    pub output: Option<String>,
    /// Exit with status 2 if there is something to do. Without this option, the status is 0 then too.
    #[arg(long)]
    pub detailed_exitcode: bool,
}

#[derive(Args, Default)]
pub struct ListArgs {
    /// List devices of this class alone: lvm, file or nfs.
    #[arg(long, value_name = "CLASS")]
    pub class: Option<String>,
    /// List devices of this host alone.
    #[arg(long, value_name = "HOST")]
    pub host: Option<String>,
    /// List devices alone that are free.
    #[arg(long)]
    pub free: bool,
    /// List paths of multipath maps too.
    #[arg(long)]
    pub all: bool,
    /// Columns of the table, with commas between them: class, host, dev, size, state, owner, identity, wwid, serial, model, tag,
    /// block, rotational.
    #[arg(short = 'o', long, value_name = "COLUMN,…", value_delimiter = ',')]
    pub columns: Vec<String>,
}

#[derive(Subcommand)]
pub enum DevicesCommand {
    /// List the devices, as the command does without a word.
    List(ListArgs),
    /// Explain the state of a device: every test, with its result.
    Why {
        /// Name of the device, any link to it, or its identity.
        #[arg(value_name = "DEVICE")]
        device: String,
    },
    /// Claim a medium, so that no sr_create takes it. Succeeds if the owner has it already.
    Claim {
        /// Identity of the medium, or the name of a device.
        #[arg(value_name = "IDENTITY")]
        identity: String,
        #[command(flatten)]
        owner: OwnerArgs,
    },
    /// Release a medium. Succeeds if nothing claims it; fails while the SR of the claim exists.
    Release {
        /// Identity of the medium, or the name of a device.
        #[arg(value_name = "IDENTITY")]
        identity: String,
    },
    /// Make the claims anew from what the devices hold, and say what was changed. Claims of absent media stay.
    Rebuild {
        /// Change nothing, and print what would be done.
        #[arg(short = 'n', long = "dry-run")]
        dry_run: bool,
    },
}

/// The owner of a claim; by hand if no layout is named.
#[derive(Args)]
pub struct OwnerArgs {
    /// Layout that the medium is reserved for. Without this option, the medium is reserved by hand.
    #[arg(long, value_name = "LAYOUT", requires_all = ["class", "index"])]
    pub layout: Option<String>,
    /// Class of the slot: lvm, file or nfs.
    #[arg(long, value_name = "CLASS", requires = "layout")]
    pub class: Option<String>,
    /// Index of the slot.
    #[arg(long, value_name = "N", requires = "layout", value_parser = clap::value_parser!(u16).range(0..=i64::from(SlotMark::LAST)))]
    pub index: Option<u16>,
}

impl Group {
    /// The command in words, if it changes something.
    pub fn change(&self) -> Option<String> {
        let command = match self {
            Group::Backup { command } => return command.change(),
            Group::Target { command } => return command.change(),
            Group::Devices { command: Some(command), .. } => command,
            Group::Layout { command: LayoutCommand::Remove(args) } if !args.dry_run => {
                return Some(format!("layout remove {}", args.layout));
            }
            Group::Tune(TuneArgs { dry_run: false }) => return Some("tune".to_owned()),
            Group::Apply(args) if !args.dry_run => {
                let of = args.plan.as_ref().or(args.model.as_ref()).map(|word| format!(" {word}")).unwrap_or_default();
                return Some(format!("apply{of}{}", if args.resume { " --resume" } else { "" }));
            }
            _ => return None,
        };
        match command {
            DevicesCommand::Claim { identity, .. } => Some(format!("devices claim {identity}")),
            DevicesCommand::Release { identity } => Some(format!("devices release {identity}")),
            DevicesCommand::Rebuild { dry_run: false } => Some("devices rebuild".to_owned()),
            DevicesCommand::List(_) | DevicesCommand::Why { .. } | DevicesCommand::Rebuild { dry_run: true } => None,
        }
    }
}

/// The command line of `sm` with these commands alone, and their examples.
pub fn command() -> clap::Command {
    SmLine::command().mut_subcommands(|group| with_examples(group, ""))
}

fn with_examples(command: clap::Command, above: &str) -> clap::Command {
    let name = format!("{above}{}", command.get_name());
    let command = command.mut_subcommands(|inner| with_examples(inner, &format!("{name} ")));
    let examples = manual::examples(&name).unwrap_or_default();
    command.after_help(examples)
}

/// The commands, for the help of `sm`, its man pages and completions.
pub fn groups() -> Vec<clap::Command> {
    command().get_subcommands().cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent_and_names_its_groups() {
        command().debug_assert();
        let names: Vec<String> = groups().iter().map(|group| group.get_name().to_owned()).collect();
        assert_eq!(names, crate::door::cli::GROUPS);
    }
}
