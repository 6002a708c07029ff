//! The command lines of `sm target`.

use std::path::PathBuf;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Args, Subcommand};

use crate::target::physical::Hba;
use crate::target::record::Fabric;

/// The words of the fabrics.
fn fabric() -> impl TypedValueParser<Value = Fabric> {
    let words = Fabric::ALL.map(|fabric| PossibleValue::new(fabric.word()).help(fabric.kind().facts().help));
    PossibleValuesParser::new(words)
        .try_map(|word| Fabric::ALL.into_iter().find(|fabric| fabric.word() == word).ok_or("no fabric has this word"))
}

/// The words of the modes of an HBA.
fn hba() -> impl TypedValueParser<Value = Hba> {
    PossibleValuesParser::new(Hba::ALL.map(Hba::word))
        .try_map(|word| Hba::ALL.into_iter().find(|hba| hba.word() == word).ok_or("no mode has this word"))
}

#[derive(Subcommand)]
pub enum TargetCommand {
    /// Publish a VDI to another host, or as a SCSI disk of this host. Succeeds if it is published so already.
    Publish(PublishArgs),
    /// Publish a SCSI device of this host as it is to an initiator: a disk, a tape, a changer. Succeeds if it is published so already.
    Passthrough(PassArgs),
    /// End a publication, or that to one initiator. Succeeds if there is none.
    Unpublish {
        /// The VDI, as SR/VDI; or the UUID of the publication of a device.
        #[arg(value_name = "SR/VDI")]
        vdi: String,
        /// Take the disk from this initiator or host alone.
        #[arg(long, value_name = "NAME")]
        to: Option<String>,
        /// Cut off consumers that use the disk.
        #[arg(long)]
        force: bool,
    },
    /// List what this host publishes, with what the kernel shows of it.
    List,
    /// Show one publication.
    Show {
        /// The VDI, as SR/VDI; or the UUID of the publication of a device.
        #[arg(value_name = "SR/VDI")]
        vdi: String,
    },
    /// Show the attributes of a published disk, or one of them, or change one. A change comes back after a reboot.
    Attr(SettingArgs),
    /// Show the parameters of the iSCSI target of a published disk, or one of them, or change one, for logins to come.
    Param(SettingArgs),
    /// Give an initiator of a published disk other secrets, for logins to come.
    Auth {
        /// The VDI, as SR/VDI; or the UUID of the publication of a device.
        #[arg(value_name = "SR/VDI")]
        vdi: String,
        /// Name of the initiator.
        #[arg(long, value_name = "NAME")]
        to: String,
        /// File with the secrets of the initiator (userid=, password=, mutual_userid=, mutual_password=); - reads standard input.
        #[arg(long, value_name = "FILE")]
        auth: String,
    },
    /// Backstores of pass-through and their storage objects, one by one.
    #[command(arg_required_else_help = true, disable_help_subcommand = true)]
    Backstore {
        #[command(subcommand)]
        command: BackstoreCommand,
    },
    /// Compare the publications with the kernel. Changes nothing.
    Check,
    /// Bring every publication back, as after a reboot, and complete what killed commands began.
    Restore,
}

#[derive(Args)]
pub struct PublishArgs {
    /// The VDI, as SR/VDI.
    #[arg(value_name = "SR/VDI")]
    pub vdi: String,
    /// How the consumer reaches the disk.
    #[arg(long, value_name = "FABRIC", default_value = "iscsi", value_parser = fabric())]
    pub fabric: Fabric,
    #[command(flatten)]
    pub consumer: ConsumerArgs,
}

#[derive(Args)]
pub struct ConsumerArgs {
    /// Name of the initiator that gets the disk, from its /etc/iscsi/initiatorname.iscsi; of the fabric nvme-tcp: of the host, from
    /// its /etc/nvme/hostnqn.
    #[arg(long, value_name = "NAME")]
    pub to: Option<String>,
    /// The initiator reads, and does not write.
    #[arg(long)]
    pub read_only: bool,
    /// Address of this host at which the target listens; several are several paths. Without this option, those of target_portals
    /// in /etc/sm/sm.conf.
    #[arg(long, value_name = "IP[:PORT]")]
    pub portal: Vec<String>,
    /// File with the secrets of the initiator (userid=, password=, mutual_userid=, mutual_password=); - reads standard input.
    #[arg(long, value_name = "FILE", conflicts_with = "no_auth")]
    pub auth: Option<String>,
    /// Ask for no secret. The name of the initiator is the only check then, and can be forged.
    #[arg(long)]
    pub no_auth: bool,
    /// Several initiators may write: for cluster filesystems.
    #[arg(long)]
    pub shared: bool,
}

#[derive(Args)]
pub struct PassArgs {
    /// A node of the device: of a disk, a tape, or /dev/sgN.
    #[arg(long, value_name = "PATH", required_unless_present = "hctl", conflicts_with = "hctl")]
    pub dev: Option<PathBuf>,
    /// Address of the device: host, channel, target and LUN.
    #[arg(long, value_name = "H:C:T:L")]
    pub hctl: Option<String>,
    #[command(flatten)]
    pub consumer: ConsumerArgs,
    /// The initiator may send every SCSI command to the device, such as one that replaces its firmware.
    #[arg(long, required = true)]
    pub allow_raw_scsi: bool,
    /// Also a disk that holds something, as a filesystem or a volume group.
    #[arg(long)]
    pub force: bool,
    /// How the kernel takes the device from its SCSI host.
    #[arg(long, value_name = "MODE", default_value = "virtual", value_parser = hba())]
    pub hba: Hba,
    /// Number of the backstore in the kernel; of a physical HBA, that of the SCSI host.
    #[arg(long, value_name = "N")]
    pub index: Option<u32>,
}

#[derive(Subcommand)]
pub enum BackstoreCommand {
    /// Find a backstore and its storage object, or make what is missing.
    Any(BackstoreArgs),
    /// Find a backstore and its storage object. They must be there.
    Lookup(BackstoreArgs),
    /// Make a backstore, or a storage object. It must not be there.
    Create(BackstoreArgs),
    /// List the backstores of all plug-ins of the kernel's target.
    List,
    /// Show one backstore, or one storage object.
    Show {
        /// Its name, as pscsi_0 or pscsi_0/tape.
        #[arg(value_name = "BACKSTORE")]
        name: String,
    },
    /// Remove a backstore, or a storage object. Succeeds if there is none.
    Delete {
        /// Its name, as pscsi_0 or pscsi_0/tape.
        #[arg(value_name = "BACKSTORE")]
        name: String,
        /// With its storage objects.
        #[arg(long)]
        recursive: bool,
    },
}

#[derive(Args)]
pub struct BackstoreArgs {
    /// The plug-in: pscsi.
    #[arg(value_name = "PLUGIN", value_parser = ["pscsi"])]
    pub plugin: String,
    /// Number of the backstore; without it, a free one.
    #[arg(long, value_name = "N")]
    pub index: Option<u32>,
    /// How the kernel takes devices from their SCSI host; physical: the backstore is the host with its number.
    #[arg(long, value_name = "MODE", value_parser = hba())]
    pub hba: Option<Hba>,
    /// Name of a storage object.
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// The device that the storage object shows: a node, or H:C:T:L. Without it, the storage object is only looked for.
    #[arg(long, value_name = "DEVICE", requires = "name")]
    pub dev: Option<String>,
    /// Also a disk that holds something, as a filesystem or a volume group.
    #[arg(long, requires = "dev")]
    pub force: bool,
}

fn forced(force: bool) -> &'static str {
    if force { " --force" } else { "" }
}

impl BackstoreCommand {
    fn change(&self) -> Option<String> {
        let words = |verb: &str, args: &BackstoreArgs| {
            let index = args.index.map(|index| format!(" --index {index}")).unwrap_or_default();
            let name = args.name.as_ref().map(|name| format!(" --name {name}")).unwrap_or_default();
            Some(format!("target backstore {verb} {}{index}{name}{}", args.plugin, forced(args.force)))
        };
        match self {
            BackstoreCommand::Any(args) => words("any", args),
            BackstoreCommand::Create(args) => words("create", args),
            BackstoreCommand::Delete { name, .. } => Some(format!("target backstore delete {name}")),
            BackstoreCommand::Lookup(_) | BackstoreCommand::List | BackstoreCommand::Show { .. } => None,
        }
    }
}

#[derive(Args)]
pub struct SettingArgs {
    /// The VDI, as SR/VDI; or the UUID of the publication of a device.
    #[arg(value_name = "SR/VDI")]
    pub vdi: String,
    /// The name, as the kernel has it.
    #[arg(value_name = "NAME")]
    pub name: Option<String>,
    /// The new value.
    #[arg(value_name = "VALUE", requires = "name")]
    pub value: Option<String>,
}

impl SettingArgs {
    fn change(&self, verb: &str) -> Option<String> {
        let SettingArgs { vdi, name: Some(name), value: Some(value) } = self else { return None };
        Some(format!("target {verb} {vdi} {name} {value}"))
    }
}

impl TargetCommand {
    /// The command in words, if it changes something.
    pub fn change(&self) -> Option<String> {
        let to = |to: &Option<String>| to.as_ref().map(|to| format!(" --to {to}")).unwrap_or_default();
        match self {
            TargetCommand::Publish(args) => Some(format!("target publish {}{}", args.vdi, to(&args.consumer.to))),
            TargetCommand::Passthrough(args) => {
                let device = args.dev.as_ref().map(|dev| dev.display().to_string());
                let device = device.or_else(|| args.hctl.clone()).unwrap_or_default();
                Some(format!("target passthrough {device}{}{}", to(&args.consumer.to), forced(args.force)))
            }
            TargetCommand::Unpublish { vdi, to: from, force } => {
                Some(format!("target unpublish {vdi}{}{}", to(from), forced(*force)))
            }
            TargetCommand::Backstore { command } => command.change(),
            TargetCommand::Attr(args) => args.change("attr"),
            TargetCommand::Param(args) => args.change("param"),
            TargetCommand::Auth { vdi, to, .. } => Some(format!("target auth {vdi} --to {to}")),
            TargetCommand::Restore => Some("target restore".to_owned()),
            TargetCommand::List | TargetCommand::Show { .. } | TargetCommand::Check => None,
        }
    }
}
