//! The work of the commands of `sm target`.
//!
//! | file | what |
//! |---|---|
//! | [`grammar`] | the command lines |
//! | [`shown`] | the answers as tables, s-expressions and JSON |

pub mod grammar;
pub mod shown;

use std::path::Path;
use std::time::Instant;

use self::grammar::{BackstoreArgs, BackstoreCommand, ConsumerArgs, PassArgs, PublishArgs, SettingArgs, TargetCommand};
use self::shown::Reply;
use crate::call::Session;
use crate::context::{Context, DEFAULT_WAIT};
use crate::door::size;
use crate::door::v1::address;
use crate::error::{Error, Result};
use crate::registry::settings::Settings;
use crate::sys::chap::Chap;
use crate::sys::scsidev;
use crate::target::backstore::{self, Mode, WantedObject};
use crate::target::name::Portal;
use crate::target::physical::Physical;
use crate::target::publication::{self, Publication, Wanted};
use crate::target::record::{self, Fabric};
use crate::target::settings::{self, Sort};
use crate::target::source::{Source, not_published};
use crate::target::unrecorded;
use crate::types::{Misread, VdiUuid};

/// Carries one command out.
///
/// # Errors
/// Those of the command.
pub fn carry_out(command: &TargetCommand) -> Result<Reply> {
    match command {
        TargetCommand::Publish(args) => publish(args),
        TargetCommand::Passthrough(args) => pass_through(args),
        TargetCommand::Unpublish { vdi, to, force } => {
            let context = context();
            let named = match Named::read(vdi, &context) {
                // A device whose publication has ended has left no record of what the UUID was.
                Err(_) if ended(vdi, *force, &context)? => return Ok(Reply::Done),
                other => other?,
            };
            let initiator = to.as_deref().map(str::parse).transpose()?;
            publication::unpublish(&named.source(), initiator.as_ref(), *force, &context)?;
            Ok(Reply::Done)
        }
        TargetCommand::List => {
            let (found, problems) = publication::list()?;
            Ok(Reply::List(found, problems))
        }
        TargetCommand::Backstore { command } => backstore(command),
        TargetCommand::Show { vdi } => Ok(Reply::One(Box::new(published(vdi, &context())?))),
        TargetCommand::Attr(args) => setting(args, Sort::Attribute),
        TargetCommand::Param(args) => setting(args, Sort::Parameter),
        TargetCommand::Auth { vdi, to, auth } => {
            let context = context();
            let named = Named::read(vdi, &context)?;
            publication::set_secrets(&named.source(), &to.parse()?, Chap::read("--auth", auth)?, &context)?;
            Ok(Reply::Done)
        }
        TargetCommand::Check => publication::check().map(Reply::Problems),
        TargetCommand::Restore => publication::restore(&|sr| address::session(sr), &context).map(Reply::Problems),
    }
}

fn context() -> Context<'static> {
    Context { deadline: Instant::now() + DEFAULT_WAIT, progress: &|_, _| {}, others: None }
}

/// What a word names.
enum Named {
    Vdi(Session, VdiUuid),
    Device(Physical),
}

impl Named {
    fn read(word: &str, context: &Context) -> Result<Named> {
        if let Some(device) = device_of(word)? {
            return Ok(Named::Device(device));
        }
        let (sr, vdi) = address::vdi(word, context)?;
        Ok(Named::Vdi(address::session(sr)?, vdi))
    }

    fn source(&self) -> Source<'_> {
        match self {
            Named::Vdi(session, vdi) => Source::Vdi(session, *vdi),
            Named::Device(device) => Source::Device(device),
        }
    }
}

/// The device of a publication whose UUID the word is. If its record is lost or damaged, the kernel tells.
fn device_of(word: &str) -> Result<Option<Physical>> {
    let Ok(id) = word.parse::<VdiUuid>() else { return Ok(None) };
    match record::of(id) {
        Ok(Some(record)) => Ok(record.physical),
        Ok(None) | Err(Error::Damaged { .. }) => unrecorded::device(id),
        Err(error) => Err(error),
    }
}

/// Whether a word is a UUID under which nothing is published. `force`: a record that is damaged goes.
fn ended(word: &str, force: bool, context: &Context) -> Result<bool> {
    word.parse::<VdiUuid>().map_or(Ok(false), |id| publication::is_ended(id, force, context))
}

/// The publication that a word names. No SR is opened.
fn published(word: &str, context: &Context) -> Result<Publication> {
    let (sr, id) = match device_of(word)? {
        Some(device) => (None, device.id()),
        None => address::vdi(word, context).map(|(sr, vdi)| (Some(sr), vdi))?,
    };
    let missing = || match sr {
        Some(sr) => not_published(sr, id),
        None => Error::Usage(format!("{id} is not published by this host")),
    };
    publication::of(sr, id)?.ok_or_else(missing)
}

fn publish(args: &PublishArgs) -> Result<Reply> {
    let (fabric, consumer) = (args.fabric, &args.consumer);
    check(fabric, consumer)?;
    let settings = Settings::read(size::parse)?;
    let portals = portals_of(fabric, consumer, &settings)?;
    let context = context();
    let (sr, vdi) = address::vdi(&args.vdi, &context)?;
    let session = address::session(sr)?;
    let is_new = publication::of(Some(sr), vdi)?.is_none();
    let wanted = wanted(fabric, consumer, settings, portals, is_new)?;
    let published = publication::publish(&Source::Vdi(&session, vdi), &wanted, &context)?;
    Ok(Reply::Published(Box::new(published)))
}

fn pass_through(args: &PassArgs) -> Result<Reply> {
    let (fabric, consumer) = (Fabric::Iscsi, &args.consumer);
    check(fabric, consumer)?;
    let settings = Settings::read(size::parse)?;
    let portals = portals_of(fabric, consumer, &settings)?;
    let device = match (&args.dev, &args.hctl) {
        (_, Some(address)) => scsidev::at(address.parse()?)?,
        (Some(path), None) => scsidev::of_path(path)?,
        (None, None) => return Err(Error::Usage("--dev PATH or --hctl H:C:T:L is missing".to_owned())),
    };
    let device = Physical::new(&device, args.hba, args.index)?;
    let is_new = publication::of(None, device.id())?.is_none();
    let wanted = Wanted { force: args.force, ..wanted(fabric, consumer, settings, portals, is_new)? };
    let published = publication::publish(&Source::Device(&device), &wanted, &context())?;
    Ok(Reply::Published(Box::new(published)))
}

fn backstore(command: &BackstoreCommand) -> Result<Reply> {
    let make = |mode: Mode, args: &BackstoreArgs| {
        let device = |word: &String| match word.starts_with('/') {
            true => scsidev::of_path(Path::new(word)),
            false => scsidev::at(word.parse()?),
        };
        let device = args.dev.as_ref().map(device).transpose()?;
        let wanted = args.name.clone().map(|name| WantedObject { name, device, force: args.force });
        Ok(Reply::Backstores(vec![backstore::backstore(mode, args.index, args.hba, wanted.as_ref())?]))
    };
    match command {
        BackstoreCommand::Any(args) => make(Mode::Any, args),
        BackstoreCommand::Lookup(args) => make(Mode::Lookup, args),
        BackstoreCommand::Create(args) => make(Mode::Create, args),
        BackstoreCommand::List => backstore::list().map(Reply::Backstores),
        BackstoreCommand::Show { name } => Ok(Reply::Backstores(vec![backstore::show(name)?])),
        BackstoreCommand::Delete { name, recursive } => backstore::delete(name, *recursive).map(|()| Reply::Done),
    }
}

/// Refuses options that a fabric does not have, and asks for those that it wants.
fn check(fabric: Fabric, args: &ConsumerArgs) -> Result<()> {
    let word = fabric.word();
    match fabric.kind().facts().network.as_ref() {
        Some(network) if args.to.is_none() => {
            Err(Error::Usage(format!("--to NAME is missing: the {} that gets the disk", network.consumer)))
        }
        Some(network) if !network.has_secrets && args.auth.is_some() => {
            Err(Error::Usage(format!("--auth is of the fabric iscsi; {word} of this kernel has no secrets")))
        }
        Some(network) if !network.has_secrets && !args.no_auth => Err(Error::Usage(format!(
            "{word} has no secrets: --no-auth says that the name of the {} is check enough",
            network.consumer
        ))),
        Some(_) => Ok(()),
        None => {
            let of_networks = [
                ("--to", args.to.is_some()),
                ("--portal", !args.portal.is_empty()),
                ("--auth", args.auth.is_some()),
                ("--shared", args.shared),
            ];
            of_networks.iter().find(|(_, given)| *given).map_or(Ok(()), |(option, _)| {
                Err(Error::Usage(format!("{option} is of the fabrics between hosts; {word} is for this host alone")))
            })
        }
    }
}

/// The addresses at which a target is to listen: those of the options, or those of the settings.
fn portals_of(fabric: Fabric, args: &ConsumerArgs, settings: &Settings) -> Result<Vec<Portal>> {
    match (fabric.kind().facts().network.as_ref(), args.portal.as_slice()) {
        (None, _) => Ok(Vec::new()),
        (Some(network), []) => {
            let words = settings.target_portals.split(',').map(str::trim).filter(|it| !it.is_empty());
            // A port in the settings is one of iSCSI: two protocols never share one.
            let usual = portals(words, network.port)?.into_iter();
            Ok(usual.map(|it| if fabric == Fabric::Iscsi { it } else { it.with_port(network.port) }).collect())
        }
        (Some(network), named) => portals(named.iter().map(String::as_str), network.port),
    }
}

fn wanted(
    fabric: Fabric,
    args: &ConsumerArgs,
    settings: Settings,
    portals: Vec<Portal>,
    is_new: bool,
) -> Result<Wanted> {
    if fabric.kind().facts().network.is_some() && is_new && portals.is_empty() {
        let what = "the address is missing at which the target listens: --portal IP names one, or target_portals= in \
                    /etc/sm/sm.conf";
        return Err(Error::Usage(what.to_owned()));
    }
    Ok(Wanted {
        fabric,
        initiator: args.to.as_deref().map(|name| fabric.kind().consumer_name(name)).transpose()?,
        read_only: args.read_only,
        shared: args.shared,
        chap: args.auth.as_deref().map(|file| Chap::read("--auth", file)).transpose()?,
        no_auth: args.no_auth,
        // What the settings say is of new publications alone.
        portals: if is_new || !args.portal.is_empty() { portals } else { Vec::new() },
        prefix: settings.target_prefix.unwrap_or_else(publication::usual_prefix),
        force: false,
    })
}

fn setting(args: &SettingArgs, sort: Sort) -> Result<Reply> {
    let context = context();
    let record = published(&args.vdi, &context)?.record;
    match (&args.name, &args.value) {
        (Some(name), Some(value)) => {
            settings::change(&record, sort, name, value, context.deadline)?;
            Ok(Reply::Done)
        }
        (Some(name), None) => Ok(Reply::Setting(settings::one(&record, sort, name)?)),
        (None, _) => Ok(Reply::Settings(settings::list(&record, sort)?)),
    }
}

/// The addresses, in order and none twice. `usual`: the port of one that names none.
fn portals<'a>(words: impl Iterator<Item = &'a str>, usual: u16) -> Result<Vec<Portal>> {
    let mut portals = words.map(|word| Portal::read(word, usual)).collect::<Result<Vec<Portal>, Misread>>()?;
    portals.sort_unstable();
    portals.dedup();
    Ok(portals)
}
