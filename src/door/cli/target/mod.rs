//! The work of the commands of `sm target`.
//!
//! | file | what |
//! |---|---|
//! | [`grammar`] | the command lines |
//! | [`shown`] | the answers as tables, s-expressions and JSON |

pub mod grammar;
pub mod shown;

use std::time::Instant;

use self::grammar::{FabricWord, PublishArgs, TargetCommand};
use self::shown::Reply;
use crate::context::{Context, DEFAULT_WAIT};
use crate::door::size;
use crate::door::v1::address;
use crate::error::{Error, Result};
use crate::registry::settings::Settings;
use crate::target::chap::Chap;
use crate::target::name::Portal;
use crate::target::publication::{self, Wanted};
use crate::target::record::Fabric;
use crate::types::Misread;

/// Carries one command out.
///
/// # Errors
/// Those of the command.
pub fn carry_out(command: &TargetCommand) -> Result<Reply> {
    match command {
        TargetCommand::Publish(args) => publish(args),
        TargetCommand::Unpublish { vdi, to, force } => {
            let context = context();
            let (sr, vdi) = address::vdi(vdi, &context)?;
            let initiator = to.as_deref().map(str::parse).transpose()?;
            publication::unpublish(&address::session(sr)?, vdi, initiator.as_ref(), *force, &context)?;
            Ok(Reply::Done)
        }
        TargetCommand::List => {
            let (found, problems) = publication::list()?;
            Ok(Reply::List(found, problems))
        }
        TargetCommand::Show { vdi: word } => {
            let (sr, vdi) = address::vdi(word, &context())?;
            let found = publication::of(sr, vdi)?;
            let found =
                found.ok_or_else(|| Error::Usage(format!("VDI {vdi} on SR {sr} is not published by this host")));
            Ok(Reply::One(Box::new(found?)))
        }
        TargetCommand::Check => publication::check().map(Reply::Problems),
        TargetCommand::Restore => publication::restore(&|sr| address::session(sr), &context).map(Reply::Problems),
    }
}

fn context() -> Context<'static> {
    Context { deadline: Instant::now() + DEFAULT_WAIT, progress: &|_, _| {}, others: None }
}

fn publish(args: &PublishArgs) -> Result<Reply> {
    let fabric = match args.fabric {
        FabricWord::Iscsi => Fabric::Iscsi,
        FabricWord::Loopback => Fabric::Loopback,
    };
    let initiator = args.to.as_deref().map(str::parse).transpose()?;
    let of_iscsi = [
        ("--to", args.to.is_some()),
        ("--portal", !args.portal.is_empty()),
        ("--auth", args.auth.is_some()),
        ("--shared", args.shared),
    ];
    match (fabric, &initiator) {
        (Fabric::Iscsi, None) => {
            return Err(Error::Usage("--to IQN is missing: the initiator that gets the disk".to_owned()));
        }
        (Fabric::Loopback, _) => {
            if let Some((option, _)) = of_iscsi.iter().find(|(_, given)| *given) {
                return Err(Error::Usage(format!(
                    "{option} is of the fabric iscsi; this host alone uses a loopback disk"
                )));
            }
        }
        (Fabric::Iscsi, Some(_)) => {}
    }
    let settings = Settings::read(size::parse)?;
    let portals = match (fabric, args.portal.as_slice()) {
        (Fabric::Loopback, _) => Vec::new(),
        (Fabric::Iscsi, []) => portals(settings.target_portals.split(',').map(str::trim).filter(|it| !it.is_empty()))?,
        (Fabric::Iscsi, named) => portals(named.iter().map(String::as_str))?,
    };
    let context = context();
    let (sr, vdi) = address::vdi(&args.vdi, &context)?;
    let session = address::session(sr)?;
    let is_new = publication::of(sr, vdi)?.is_none();
    if fabric == Fabric::Iscsi && is_new && portals.is_empty() {
        let what = "the address is missing at which the target listens: --portal IP names one, or target_portals= in \
                    /etc/sm/sm.conf";
        return Err(Error::Usage(what.to_owned()));
    }
    let wanted = Wanted {
        fabric,
        initiator,
        read_only: args.read_only,
        shared: args.shared,
        chap: args.auth.as_deref().map(Chap::read).transpose()?,
        no_auth: args.no_auth,
        // What the settings say is of new publications alone.
        portals: if is_new || !args.portal.is_empty() { portals } else { Vec::new() },
        prefix: settings.target_prefix.unwrap_or_else(publication::usual_prefix),
    };
    let published = publication::publish(&session, vdi, &wanted, &context)?;
    Ok(Reply::Published(Box::new(published)))
}

/// The addresses, in order and none twice.
fn portals<'a>(words: impl Iterator<Item = &'a str>) -> Result<Vec<Portal>> {
    let mut portals = words.map(str::parse).collect::<Result<Vec<Portal>, Misread>>()?;
    portals.sort_unstable();
    portals.dedup();
    Ok(portals)
}
