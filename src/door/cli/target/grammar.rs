//! The command lines of `sm target`.

use clap::{Args, Subcommand, ValueEnum};

/// A fabric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FabricWord {
    /// Other hosts, by TCP.
    Iscsi,
    /// This host, as a SCSI disk.
    Loopback,
}

#[derive(Subcommand)]
pub enum TargetCommand {
    /// Publish a VDI to an initiator, or as a SCSI disk of this host. Succeeds if it is published so already.
    Publish(PublishArgs),
    /// End a publication, or that to one initiator. Succeeds if there is none.
    Unpublish {
        /// The VDI, as SR/VDI.
        #[arg(value_name = "SR/VDI")]
        vdi: String,
        /// Take the disk from this initiator alone.
        #[arg(long, value_name = "IQN")]
        to: Option<String>,
        /// Cut off consumers that use the disk.
        #[arg(long)]
        force: bool,
    },
    /// List what this host publishes, with what the kernel shows of it.
    List,
    /// Show one publication.
    Show {
        /// The VDI, as SR/VDI.
        #[arg(value_name = "SR/VDI")]
        vdi: String,
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
    /// Name of the initiator that gets the disk, from its /etc/iscsi/initiatorname.iscsi.
    #[arg(long, value_name = "IQN", required_unless_present = "fabric")]
    pub to: Option<String>,
    /// The fabric: iscsi, or loopback for a SCSI disk of this host.
    #[arg(long, value_name = "FABRIC", default_value = "iscsi")]
    pub fabric: FabricWord,
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

impl TargetCommand {
    /// The command in words, if it changes something.
    pub fn change(&self) -> Option<String> {
        let to = |to: &Option<String>| to.as_ref().map(|to| format!(" --to {to}")).unwrap_or_default();
        match self {
            TargetCommand::Publish(args) => Some(format!("target publish {}{}", args.vdi, to(&args.to))),
            TargetCommand::Unpublish { vdi, to: from, force } => {
                Some(format!("target unpublish {vdi}{}{}", to(from), if *force { " --force" } else { "" }))
            }
            TargetCommand::Restore => Some("target restore".to_owned()),
            TargetCommand::List | TargetCommand::Show { .. } | TargetCommand::Check => None,
        }
    }
}
