//! Each command: its words are verified, then the session is asked.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{IsTerminal, stderr};
use std::path::Path;
use std::time::{Duration, Instant};

use super::answer::Reply;
use super::grammar::{SrArg, Verb};
use super::request::{self, export_format, file_format, new_vdi, of_size};
use crate::call::{Copied, Disks, Session, Unreadable};
use crate::context::Context;
use crate::door::host::local_path;
use crate::door::{size, stream};
use crate::error::{self, Error, Result};
use crate::image::name::ImageName;
use crate::sr::Driver;
use crate::sys::blockdev;
use crate::target::publication;
use crate::types::{DeviceConfig, Misread, Mode, NewSr, Overwrite, ParamsChange, SrInfo, SrUuid, VdiInfo, VdiUuid};
use crate::vdi::SnapshotSaid;
use crate::vdi::transfer::Stream;

/// The parts of a call besides its verb: the driver, the place of the SRs, and the caller.
pub struct Caller<'a> {
    pub driver: &'static Driver,
    pub config: DeviceConfig,
    pub context: &'a Context<'a>,
    /// The SR that gets a copy, if it is another: its driver and device_config.
    pub copy_to: Option<(&'static Driver, DeviceConfig)>,
    /// A person: disks are not deleted unasked.
    pub person: bool,
    /// The disks that a person was asked about and agreed to lose with their SR.
    pub agreed: Option<BTreeSet<VdiUuid>>,
    /// What a person at a terminal is told of the call, in the order of its events. It is said when the bar is gone.
    pub told: RefCell<Vec<String>>,
}

impl Caller<'_> {
    fn open(&self, sr: SrUuid) -> Result<Session> {
        Session::open(self.driver, sr, self.config.clone())
    }

    fn open_named(&self, arg: &SrArg) -> Result<Session> {
        self.open(arg.sr.parse()?)
    }

    /// Carries a command out.
    ///
    /// # Errors
    /// [`Error::Invalid`] and [`Error::Usage`] for its words; what the SR says.
    pub fn carry_out(&self, verb: Verb) -> Result<Reply> {
        let reads = matches!(
            verb,
            Verb::VdiAttach { .. }
                | Verb::VdiClone(_)
                | Verb::VdiSnapshot(_)
                | Verb::VdiCopy { .. }
                | Verb::VdiResize { .. }
        );
        let copies = matches!(verb, Verb::VdiCopy { .. });
        self.done(verb).map_err(|error| match error {
            Error::VdiInUse { vdi, sr, holder } if self.person && lacks_users(&holder) => {
                let holder = self.explained(vdi, sr, holder);
                Error::VdiInUse { vdi, sr, holder }
            }
            Error::Damaged { ref path, .. } if self.person && reads && ImageName::format_of(path).is_some() => {
                with_hint(error, RESCUE)
            }
            // Of an image that cannot be served, the server says why.
            Error::ImageServer { errno: None, .. } if self.person && reads => with_hint(error, RESCUE),
            // The copy reads the disk as an export does.
            Error::Unsupported { op: "vdi_export", why } if copies => Error::Unsupported { op: "vdi_copy", why },
            error => error,
        })
    }

    /// The holder of a VDI that this host has attached, with those who have its device open as far as the SR says soon which
    /// that is: the error is known, and its explanation must not wait for a server that is silent.
    fn explained(&self, vdi: VdiUuid, sr: SrUuid, holder: String) -> String {
        let deadline = self.context.deadline.min(Instant::now() + EXPLAINS);
        let context = Context { deadline, progress: self.context.progress, others: None };
        let session = self.open(sr).ok();
        let info = session.and_then(|session| session.vdi_get_params(vdi, &context).ok());
        match info.and_then(|info| info.device) {
            Some(device) => with_users(holder, &device),
            None => holder,
        }
    }

    fn done(&self, verb: Verb) -> Result<Reply> {
        let context = self.context;
        let nothing = |_| Reply::Nothing;
        match verb {
            Verb::SrCreate { sr, size, force, destroy_sr } => {
                let size = size.as_deref().map(size::parse_or_zero).transpose()?.flatten();
                let srs = destroy_sr.iter().map(|sr| sr.parse()).collect::<Result<_, Misread>>()?;
                let over = Overwrite { contents: force, srs };
                self.open_named(&sr)?.sr_create(&NewSr { size, slot: None }, &over, context)?;
                Ok(Reply::Nothing)
            }
            Verb::SrDelete { sr, yes } => self.sr_delete(&sr, yes),
            Verb::SrAttach(sr) => self.open_named(&sr)?.sr_attach(context).map(nothing),
            Verb::SrDetach(sr) => {
                let session = self.open_named(&sr)?;
                session.sr_detach(context)?;
                self.leave(&session).map(|()| Reply::Nothing)
            }
            Verb::SrGetParams(sr) => self.open_named(&sr)?.sr_get_params(context).map(Reply::Sr),
            Verb::SrScan(sr) => self.open_named(&sr)?.sr_scan(context).map(without_bases).map(Reply::Sr),
            Verb::VdiTree { sr, vdi } => {
                let (vdi, session) = (vdi.map(|vdi| vdi.parse()).transpose()?, self.open_named(&sr)?);
                let info = session.sr_scan(context)?;
                vdi.map_or(Ok(info.clone()), |vdi| one_tree(info, vdi, &session, context)).map(Reply::Tree)
            }
            Verb::SrCollect { sr, how } => {
                let session = self.open_named(&sr)?;
                match how.stop {
                    true => session.sr_collect_stop(context).map(nothing),
                    false => {
                        let used =
                            || session.sr_get_params(context).map(|info| info.physical_utilisation).unwrap_or_default();
                        let before = if self.tells() { used() } else { 0 };
                        let (collected, done) = how.counted(context, |how, context| session.sr_collect(how, context));
                        if self.tells() {
                            self.tell(done.words(before.saturating_sub(used())));
                        }
                        collected.map(nothing)
                    }
                }
            }
            Verb::SrTrim(sr) => {
                let trim = self.open_named(&sr)?.sr_trim(context)?;
                self.tell(trim.words());
                Ok(Reply::Nothing)
            }
            Verb::SrSpace(sr) => self.open_named(&sr)?.sr_space(context).map(Reply::Space),
            Verb::SrCheck { sr, deep, repair } => {
                let session = self.open_named(&sr)?;
                session.sr_check(deep, repair, context).map(|found| Reply::Findings(session.sr(), found))
            }
            Verb::SrContentType(sr) => Ok(Reply::Text(self.open_named(&sr)?.content_type().to_owned())),
            Verb::SrProbe => (self.driver.probe)(&self.config, context.deadline.into()).map(Reply::Srs),
            Verb::VdiCreate { vdi: arg, size, new } => {
                let (sr, vdi) = request::vdi(&arg)?;
                let new = new_vdi(vdi, size::parse(&size)?, &new)?;
                self.open(sr)?.vdi_create(new, context).map(unsaid).map_err(|e| of_size(e, &size))
            }
            Verb::VdiDelete { vdi: arg, yes } => {
                let (sr, vdi) = request::vdi(&arg)?;
                let session = self.open(sr)?;
                self.note_absence(|| session.vdi_get_params(vdi, context).map(drop));
                let unreadable = match (yes, self.person) {
                    (true, _) => Unreadable::Deleted,
                    (false, true) => Unreadable::Refused,
                    (false, false) => Unreadable::ImageRefused,
                };
                match session.vdi_delete(vdi, unreadable, context) {
                    Err(error) if !yes && error.is_of_the_image() && session.is_deletable_unread(vdi, context) => {
                        Err(with_hint(error, "vdi_delete --yes deletes it all the same"))
                    }
                    other => other.map(|()| Reply::Nothing),
                }
            }
            Verb::VdiAttach { vdi: arg, read_only } => {
                let (sr, vdi) = request::vdi(&arg)?;
                let mode = if read_only { Mode::ReadOnly } else { Mode::ReadWrite };
                let device = self.open(sr)?.vdi_attach(vdi, mode, context)?;
                if self.tells() && mode == Mode::ReadWrite && blockdev::is_read_only(&device) {
                    self.tell("the VDI is read-only, and so is its device".to_owned());
                }
                Ok(Reply::Device(device))
            }
            Verb::VdiDetach(arg) => {
                let (sr, vdi) = request::vdi(&arg)?;
                self.open(sr)?.vdi_detach(vdi, context).map(nothing)
            }
            Verb::VdiClone(args) => {
                let (sr, source, dest) = request::copy(&args)?;
                let names = request::names(&args.names)?;
                self.open(sr)?.vdi_clone(source, dest, names, context).map(unsaid)
            }
            Verb::VdiSnapshot(args) => {
                let (sr, source, dest) = request::copy(&args)?;
                let names = request::names(&args.names)?;
                self.open(sr)?.vdi_snapshot(source, dest, names, context).map(unsaid)
            }
            Verb::VdiCopy { sr, source, to, dest, image, names } => {
                let (from, to): (SrUuid, SrUuid) = (sr.sr.parse()?, to.parse()?);
                let target = match &self.copy_to {
                    Some((driver, config)) => Session::open(driver, to, config.clone())?,
                    None if from == to => self.open(to)?,
                    None => {
                        let why =
                            "a driver knows its own SRs alone; sm vdi_copy takes any SR that has a name".to_owned();
                        return Err(Error::Unsupported { op: "vdi_copy", why });
                    }
                };
                let format = image.as_deref().map(str::parse).transpose()?;
                let copied = Copied { vdi: dest.parse()?, format, change: request::names(&names)? };
                self.open(from)?.vdi_copy(source.parse()?, target, copied, context)?;
                Ok(Reply::Nothing)
            }
            Verb::VdiSet { vdi: arg, names, read_only, shareable } => {
                let (sr, vdi) = request::vdi(&arg)?;
                let change = ParamsChange { read_only, shareable, ..request::names(&names)? };
                self.open(sr)?.vdi_set(vdi, change, context).map(nothing)
            }
            Verb::VdiRevert { vdi: arg, snapshot } => {
                let (sr, vdi) = request::vdi(&arg)?;
                self.open(sr)?.vdi_revert(vdi, snapshot.parse()?, SnapshotSaid::BySr, context)?;
                Ok(Reply::Nothing)
            }
            Verb::VdiResize { vdi: arg, size, allow_shrink } => {
                let (sr, vdi) = request::vdi(&arg)?;
                let session = self.open(sr)?;
                let now = || session.vdi_get_brief(vdi, context).map(|info| info.virtual_size);
                let bytes = size::parse_change(&size, now)?;
                let resized = session.vdi_resize(vdi, bytes, allow_shrink, context);
                resized.map_err(|e| of_size(e, &size))?;
                publication::tell_size(sr, vdi)?;
                Ok(Reply::Nothing)
            }
            Verb::VdiLock(args) => {
                let words = request::lock(&args)?;
                self.open(words.sr)?.vdi_lock(words.vdi, &words.user, words.force, context)?;
                Ok(Reply::Nothing)
            }
            Verb::VdiUnlock(args) => {
                let words = request::lock(&args)?;
                self.open(words.sr)?.vdi_unlock(words.vdi, &words.user, words.force, context)?;
                Ok(Reply::Nothing)
            }
            Verb::VdiGetParams(arg) => {
                let (sr, vdi) = request::vdi(&arg)?;
                self.open(sr)?.vdi_get_params(vdi, context).map(Reply::Vdi)
            }
            Verb::VdiExport { vdi: arg, file, image, rescue } => {
                let (sr, vdi) = request::vdi(&arg)?;
                let to = stream::to(&file, export_format(&file, image.as_deref())?)?;
                let session = self.open(sr);
                if rescue {
                    let rescued = publish(&to, session.and_then(|session| session.vdi_rescue(vdi, &to, context)));
                    let lost = rescued.map_err(|error| match error {
                        Error::Damaged { .. } => {
                            with_hint(error, "so nothing of it can be read, and a backup is what is left")
                        }
                        error => error,
                    })?;
                    return if lost.is_empty() { Ok(Reply::Nothing) } else { Err(Error::ExportedInPart { vdi, lost }) };
                }
                let exported = publish(&to, session.and_then(|session| session.vdi_export(vdi, &to, context)));
                exported.map(|()| Reply::Nothing).map_err(|error| match error {
                    Error::Damaged { .. } => with_hint(error, RESCUE),
                    error => error,
                })
            }
            Verb::VdiImport { vdi: arg, file, file_type, size: text, new } => {
                let (sr, vdi) = request::vdi(&arg)?;
                let least = text.as_deref().map(size::parse).transpose()?.unwrap_or(0);
                let new = new_vdi(vdi, least, &new)?;
                let from = stream::from(&file, file_format(&file, file_type.as_deref())?)?;
                let imported = self.open(sr)?.vdi_import(new, &from, context);
                imported.map(unsaid).map_err(|e| match &text {
                    Some(size) => of_size(e, size),
                    None => e,
                })
            }
        }
    }

    fn sr_delete(&self, sr: &SrArg, yes: bool) -> Result<Reply> {
        let (session, context) = (self.open_named(sr)?, self.context);
        let disks = match &self.agreed {
            Some(agreed) => Disks::Only(agreed.clone()),
            None if self.person && !yes => Disks::NONE,
            None => Disks::All,
        };
        if disks == Disks::NONE {
            session.refuse_disks(context)?;
        }
        self.note_absence(|| session.sr_get_params(context).map(drop));
        session.sr_delete(disks, context)?;
        self.leave(&session).map(|()| Reply::Nothing)
    }

    /// Ends the mount at which xapi has an SR of a local directory, if a person ends the SR: it would keep the directory's filesystem
    /// from being unmounted. An agent of this API has none.
    fn leave(&self, session: &Session) -> Result<()> {
        if self.person { local_path::leave(session) } else { Ok(()) }
    }

    /// Whether a person at a terminal is told what was done.
    fn tells(&self) -> bool {
        self.person && stderr().is_terminal()
    }

    /// Has a person at a terminal told of something. Nobody else is told.
    fn tell(&self, text: String) {
        if self.tells() {
            self.told.borrow_mut().push(text);
        }
    }

    /// Says at a terminal that there is nothing to delete, if `look` finds nothing: what succeeds may be a mistyped UUID. A
    /// program that deletes until nothing is there wants no words.
    fn note_absence(&self, look: impl FnOnce() -> Result<()>) {
        if !self.tells() {
            return;
        }
        if let Err(e @ (Error::NoSr { .. } | Error::NoVdi { .. })) = look() {
            self.tell(format!("nothing to delete: {}", error::one_line(&e)));
        }
    }
}

/// The answer of the commands that make a VDI: the API says that they answer nothing, as the caller chose the UUID.
fn unsaid(_: VdiInfo) -> Reply {
    Reply::Nothing
}

/// An SR without the bases, which are there for their children: only the tree shows them.
fn without_bases(mut info: SrInfo) -> SrInfo {
    info.vdis.retain(|vdi| !vdi.hidden);
    info
}

/// An SR with the images of one tree alone: that of a VDI.
fn one_tree(mut info: SrInfo, vdi: VdiUuid, session: &Session, context: &Context) -> Result<SrInfo> {
    let parents: BTreeMap<VdiUuid, Option<VdiUuid>> = info.vdis.iter().map(|it| (it.uuid, it.parent)).collect();
    if !parents.contains_key(&vdi) {
        session.vdi_get_brief(vdi, context)?;
    }
    // Images whose files were exchanged by hand may name each other.
    let root = |vdi: VdiUuid| {
        let up = |at: &VdiUuid| parents.get(at).copied().flatten().filter(|parent| parents.contains_key(parent));
        std::iter::successors(Some(vdi), up).take(parents.len() + 1).last()
    };
    let of = root(vdi);
    info.vdis.retain(|it| root(it.uuid) == of);
    Ok(info)
}

/// Gives an export its name, or removes what a failed one wrote.
fn publish<T>(to: &Stream, exported: Result<T>) -> Result<T> {
    match exported {
        Ok(done) => stream::publish(to).map(|()| done),
        Err(e) => {
            stream::discard(to);
            Err(e)
        }
    }
}

/// How long an error that is known may wait for what explains it.
const EXPLAINS: Duration = Duration::from_secs(2);

/// What is said of this host as the holder of a VDI.
const ATTACHED: &str = "which has it attached";

/// Whether the holder is this host, and nothing says yet who has the device open.
fn lacks_users(holder: &str) -> bool {
    holder.contains(ATTACHED) && !holder.contains("process ")
}

/// The words for this host as the holder of an attached VDI, with those who have its device open.
pub(super) fn with_users(holder: String, device: &Path) -> String {
    let shown = device.display().to_string();
    if !lacks_users(&holder) {
        return holder;
    }
    let users = blockdev::open_by(device);
    match holder.split_once(&shown) {
        Some((before, after)) => format!("{before}{shown}{users}{after}"),
        None => holder.replacen(ATTACHED, &format!("{ATTACHED} as {shown}{users}"), 1),
    }
}

/// The way to the data of an image that cannot be used.
const RESCUE: &str = "vdi_export --rescue exports what can be read";

/// An error of an image that cannot be read, with what can be done about it.
fn with_hint(error: Error, hint: &str) -> Error {
    match error {
        Error::Damaged { path, what } => Error::Damaged { path, what: format!("{what}; {hint}") },
        Error::Unsupported { op, why } => Error::Unsupported { op, why: format!("{why}; {hint}") },
        Error::ImageServer { attempt, errno, why } => {
            Error::ImageServer { attempt, errno, why: format!("{why}; {hint}") }
        }
        other => other,
    }
}
