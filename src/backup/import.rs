//! `sm backup import`: the disks of an export as VDIs of any SR.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use super::hooks::{self, Point};
use super::manifest::{DiskOf, Manifest};
use super::name::{RunId, SetName, StoreName};
use super::placement::{self, Wish};
use super::read::Restored;
use super::record::{self, Begun, Record};
use super::set::Member;
use super::shelf::Shelf;
use super::{Call, chain, seal, set, sign, store};
use crate::call::Session;
use crate::error::{Error, Result, one_line};
use crate::image::disk::Disk;
use crate::types::{NewVdi, Params, SrUuid, VdiUuid, seconds_now};

/// The import that is wanted.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub set: SetName,
    pub store: StoreName,
    /// The current run if none is named.
    pub run: Option<RunId>,
    pub places: Places,
    /// The file of the keys of encrypted exports.
    pub identity: Option<PathBuf>,
    /// Also if the export is not signed.
    pub unsigned: bool,
}

/// The disks that are made of an export, and where.
#[derive(Clone, Debug, Default)]
pub struct Places {
    /// The label of the disk that is made, if that is one alone. Without it, the one that it had.
    pub label: Option<String>,
    /// The disks to make, by index, label or UUID; all if none is named.
    pub disks: Vec<String>,
    /// `None`: the SR that has most room, for each disk.
    pub sr: Option<SrUuid>,
    /// The program that chooses the SR of each disk that `map` has not.
    pub placement: Option<PathBuf>,
    /// The SRs of single disks, by their index.
    pub map: BTreeMap<usize, SrUuid>,
    /// The sizes of single disks, bytes, by their index.
    pub sizes: BTreeMap<usize, u64>,
    /// The new disks have the UUIDs of the old ones.
    pub keep_uuids: bool,
}

/// The export that disks are made of.
pub(super) struct From<'a> {
    pub set: &'a SetName,
    /// `None`: it comes through a pipe.
    pub store: Option<&'a StoreName>,
    pub run: &'a RunId,
    /// The name of the import itself.
    pub this: RunId,
}

/// A disk of an export that can be read, and bytes of its blocks that are not zeroes.
pub(super) struct Ready {
    pub disk: Box<dyn Disk + Send>,
    pub data: u64,
}

/// A disk that was imported.
#[derive(Clone, Debug)]
pub struct Imported {
    pub index: usize,
    /// The disk that was exported.
    pub from: VdiUuid,
    pub sr: SrUuid,
    pub vdi: VdiUuid,
}

/// A disk to be made.
struct Target {
    session: Session,
    new: NewVdi,
    disk: Box<dyn Disk + Send>,
    imported: Imported,
}

/// Makes VDIs of the disks of an export, of all or of none. Every block is compared with its digest. Answers the disks, and
/// warnings.
///
/// # Errors
/// [`Error::NoExport`]; [`Error::NotVerified`]; [`Error::Encrypted`]; [`Error::Invalid`] for an index or a size; [`Error::VdiExists`];
/// [`Error::NoSpace`] before anything is made; those of the SRs. No VDI is left then.
pub fn import(call: &Call, wanted: &Wanted) -> Result<(Vec<Imported>, Vec<String>)> {
    let place = store::find(&wanted.store)?;
    let store = place.open()?;
    let _set = record::lock(&wanted.set, call.deadline())?;
    let mut warnings = record::recover(call, Some(&wanted.set))?;
    let this = RunId::new(seconds_now().unwrap_or(0));
    let (run, dir) = Shelf::new(&store, wanted.set.clone()).find(wanted.run.as_ref())?;
    let mut chain = chain::open(dir)?;
    chain[0].refuse_misplaced(&wanted.set, &run)?;
    if !wanted.unsigned {
        chain[0].refuse_unsigned(sign::UNSIGNED)?;
    }
    let manifest = chain[0].manifest.clone();
    let identity = seal::identity(wanted.identity.as_ref(), set::find(&wanted.set)?.as_ref(), Some(&place));
    chain::unlock(&mut chain, identity.as_deref())?;
    let ready = |images| {
        let restored = Restored::new(images)?;
        Ok(Ready { data: restored.data(), disk: Box::new(restored) })
    };
    let disks = chain::images(chain).into_iter().map(ready).collect::<Result<_>>()?;
    let from = From { set: &wanted.set, store: Some(&wanted.store), run: &run, this };
    let (disks, said) = carry_out(call, &from, &wanted.places, &manifest, disks, &mut || Ok(()))?;
    warnings.extend(said);
    Ok((disks, warnings))
}

/// Makes VDIs of the disks of an export, all or none, within the hooks. `complete` may refuse what was made once all of it is there.
/// Answers the disks, and warnings.
///
/// # Errors
/// Those of [`import`] about places; those of reading a disk and of `complete`.
pub(super) fn carry_out(
    call: &Call,
    from: &From,
    places: &Places,
    manifest: &Manifest,
    disks: Vec<Ready>,
    complete: &mut dyn FnMut() -> Result<()>,
) -> Result<(Vec<Imported>, Vec<String>)> {
    let targets = targets(call, from.set, places, manifest, disks)?;
    let mut variables = hooks::common("BACKUP_IMPORT", from.set, &from.this);
    variables.insert("SM_IMPORT_STORE".to_owned(), from.store.map(StoreName::to_string).unwrap_or_default());
    variables.insert("SM_IMPORT_RUN".to_owned(), from.run.to_string());
    for it in targets.iter().map(|target| &target.imported) {
        variables.insert(format!("SM_SET_DISK{}_UUID", it.index), it.vdi.to_string());
        variables.insert(format!("SM_SET_DISK{}_SR", it.index), it.sr.to_string());
    }
    hooks::run(Point::BeforeImport, &variables, hooks::PATIENCE).map_err(|cause| Error::HookDenied {
        op: "the import",
        set: from.set.to_string(),
        cause: Box::new(cause),
    })?;
    let done = make(call, from, places.keep_uuids, targets, complete);
    variables.insert("SM_POST_RESULT".to_owned(), hooks::boolean(done.is_ok()));
    let failed = hooks::run(Point::AfterImport, &variables, hooks::PATIENCE).err();
    let (disks, mut warnings) = done?;
    warnings.extend(failed.map(|error| format!("a hook failed: {}", one_line(&error))));
    Ok((disks, warnings))
}

/// Makes all disks or none. Answers the disks, and warnings.
fn make(
    call: &Call,
    from: &From,
    keep_uuids: bool,
    targets: Vec<Target>,
    complete: &mut dyn FnMut() -> Result<()>,
) -> Result<(Vec<Imported>, Vec<String>)> {
    let made = targets.iter().map(|it| Member { sr: it.imported.sr, vdi: it.imported.vdi }).collect();
    let labels = match keep_uuids {
        true => targets.iter().map(|it| it.new.params.label.clone()).collect(),
        // Nobody else knows the UUIDs that were chosen here.
        false => Vec::new(),
    };
    let mut begun = Begun::begin(Record {
        run: from.this.clone(),
        set: from.set.clone(),
        store: None,
        locks: Vec::new(),
        paused: None,
        attached: Vec::new(),
        deletes: false,
        made,
        labels,
        complete: false,
    })?;
    let mut done = Vec::new();
    for target in targets {
        let Target { session, mut new, disk, imported } = target;
        if keep_uuids {
            new.params.label = begun.record().mark();
        }
        let open = move || Ok(disk as Box<dyn Disk>);
        match session.vdi_fill(new, open, &call.context()) {
            Ok(_) => done.push(imported),
            Err(error) => return Err(undone(call, error, begun)),
        }
    }
    if let Err(error) = complete() {
        return Err(undone(call, error, begun));
    }
    if !keep_uuids {
        begun.end()?;
        return Ok((done, Vec::new()));
    }
    if let Err(error) = begun.note_complete() {
        return Err(undone(call, error, begun));
    }
    match begun.record().label_made(call) {
        Ok(()) => begun.end().map(|()| (done, Vec::new())),
        // The record stays.
        Err(error) => Ok((done, vec![format!("the next call gives the disks their labels: {}", one_line(&error))])),
    }
}

/// Deletes what was made before something failed. If that fails, the record stays, and the next call tries again.
fn undone(call: &Call, error: Error, begun: Begun) -> Error {
    let gone = begun.record().delete_made(call);
    error.undone(gone.and_then(|()| begun.end()))
}

/// Decides what is made where, and makes sure that there is room for all of it.
fn targets(call: &Call, set: &SetName, places: &Places, manifest: &Manifest, disks: Vec<Ready>) -> Result<Vec<Target>> {
    for index in places.map.keys().chain(places.sizes.keys()) {
        if *index >= disks.len() {
            return Err(Error::Invalid {
                what: "index of a disk",
                value: index.to_string(),
                expected: format!("the export has the disks 0 to {}", disks.len() - 1),
            });
        }
    }
    let chosen = chosen(&places.disks, manifest)?;
    if let Some(index) = places.map.keys().chain(places.sizes.keys()).find(|index| !chosen.contains(index)) {
        return Err(Error::Invalid {
            what: "index of a disk",
            value: index.to_string(),
            expected: "--disk leaves this disk out".to_owned(),
        });
    }
    if let Some(label) = places.label.as_ref().filter(|_| chosen.len() != 1) {
        return Err(Error::Invalid {
            what: "--label",
            value: label.clone(),
            expected: format!("it is for one disk, and {} would be made; --disk chooses one", chosen.len()),
        });
    }
    let sizes = sizes(places, manifest, &chosen)?;
    let mut placed = places.map.clone();
    if let Some(program) = &places.placement {
        let wishes: Vec<Wish> = sizes.iter().filter(|wish| !placed.contains_key(&wish.index)).copied().collect();
        let srs = if wishes.is_empty() { Vec::new() } else { placement::ask(call, program, set, &wishes)? };
        placed.extend(wishes.iter().map(|wish| wish.index).zip(srs));
    }
    let mut rooms = Rooms::default();
    let mut targets = Vec::new();
    let ready = manifest.disks.iter().zip(disks).filter(|(disk, _)| chosen.contains(&disk.index));
    for ((disk, ready), Wish { size, .. }) in ready.zip(sizes) {
        let needed = ready.data;
        let sr = match placed.get(&disk.index).copied().or(places.sr) {
            Some(sr) => sr,
            None => rooms.largest(call, needed)?,
        };
        let session = call.host.open(sr)?;
        rooms.take(call, sr, &session, needed)?;
        let vdi = if places.keep_uuids { disk.uuid } else { VdiUuid::random() };
        if places.keep_uuids {
            refuse_taken(call, &session, vdi)?;
        }
        let imported = Imported { index: disk.index, from: disk.uuid, sr, vdi };
        let label = places.label.as_ref().unwrap_or(&disk.label);
        targets.push(Target { new: new_vdi(disk, label, &session, vdi, size), session, disk: ready.disk, imported });
    }
    Ok(targets)
}

/// The size of each disk that is made.
fn sizes(places: &Places, manifest: &Manifest, chosen: &BTreeSet<usize>) -> Result<Vec<Wish>> {
    let size = |disk: &DiskOf| match places.sizes.get(&disk.index) {
        Some(size) if *size < disk.virtual_size => Err(Error::Invalid {
            what: "--size",
            value: size.to_string(),
            expected: format!(
                "disk {} has {} bytes, and what is beyond the size would be lost",
                disk.index, disk.virtual_size
            ),
        }),
        size => Ok(Wish { index: disk.index, size: size.copied().unwrap_or(disk.virtual_size) }),
    };
    manifest.disks.iter().filter(|disk| chosen.contains(&disk.index)).map(size).collect()
}

/// The indices of the disks that words name: an index, a label, or the UUID that the disk had. All if there is no word.
fn chosen(words: &[String], manifest: &Manifest) -> Result<BTreeSet<usize>> {
    if words.is_empty() {
        return Ok(manifest.disks.iter().map(|disk| disk.index).collect());
    }
    let one = |word: &String| {
        let has = |disk: &&DiskOf| disk.label == *word || disk.uuid.to_string() == word.to_ascii_lowercase();
        let named: Vec<&DiskOf> = manifest.disks.iter().filter(has).filter(|_| !word.is_empty()).collect();
        let by_index = manifest.disks.iter().find(|disk| disk.index.to_string() == *word);
        let said = |disk: &DiskOf| match disk.label.as_str() {
            "" => disk.index.to_string(),
            label => format!("{} ({label})", disk.index),
        };
        let wrong = |expected: String| Error::Invalid { what: "--disk", value: word.clone(), expected };
        match (by_index, named.as_slice()) {
            (Some(disk), []) => Ok(disk.index),
            (None, [disk]) => Ok(disk.index),
            (Some(at), [disk]) if at.index == disk.index => Ok(disk.index),
            (None, []) => {
                let all: Vec<String> = manifest.disks.iter().map(said).collect();
                Err(wrong(format!("expected the index, the label or the UUID of a disk: {}", all.join(", "))))
            }
            (at, several) => {
                let several: Vec<String> = at.into_iter().chain(several.iter().copied()).map(said).collect();
                Err(wrong(format!("several disks have it: {}; use the UUID", several.join(", "))))
            }
        }
    };
    words.iter().map(one).collect()
}

fn new_vdi(disk: &DiskOf, label: &str, session: &Session, vdi: VdiUuid, virtual_size: u64) -> NewVdi {
    let params = Params {
        read_only: disk.read_only,
        shareable: disk.shareable,
        ..session.named(Params::default(), label, &disk.description)
    };
    let format = Some(disk.vdi_type).filter(|format| session.formats().contains(format));
    NewVdi { vdi, virtual_size, format, params }
}

fn refuse_taken(call: &Call, session: &Session, vdi: VdiUuid) -> Result<()> {
    match session.vdi_get_brief(vdi, &call.context()) {
        Err(Error::NoVdi { .. }) => Ok(()),
        // One that cannot be read is there as well.
        _ => Err(Error::VdiExists { vdi, sr: session.sr() }),
    }
}

/// The room that SRs have left, with what was promised of it.
#[derive(Default)]
struct Rooms(BTreeMap<SrUuid, u64>);

impl Rooms {
    fn of(&mut self, call: &Call, sr: SrUuid, session: &Session) -> Result<u64> {
        if let Some(room) = self.0.get(&sr) {
            return Ok(*room);
        }
        let room = session.sr_get_space(&call.context())?.free;
        self.0.insert(sr, room);
        Ok(room)
    }

    fn take(&mut self, call: &Call, sr: SrUuid, session: &Session, needed: u64) -> Result<()> {
        let free = self.of(call, sr, session)?;
        let left = free.checked_sub(needed).ok_or(Error::NoSpace { sr, free, wanted: needed })?;
        self.0.insert(sr, left);
        Ok(())
    }

    /// The attached SR for disks that has most room; of several, the first by its UUID.
    fn largest(&mut self, call: &Call, needed: u64) -> Result<SrUuid> {
        let (mut best, mut said): (Option<(u64, SrUuid)>, Vec<String>) = (None, Vec::new());
        for sr in call.host.known()? {
            let seen = call.host.open(sr).and_then(|session| {
                let is_fit = session.content_type() == "raw";
                Ok((is_fit, self.of(call, sr, &session)?))
            });
            match seen {
                Ok((true, room)) if best.is_none_or(|(most, of)| (room, of) > (most, sr)) => best = Some((room, sr)),
                Ok(_) => {}
                Err(error) => said.push(format!("SR {sr}: {}", one_line(&error))),
            }
        }
        match best {
            Some((room, sr)) if room >= needed => Ok(sr),
            Some((free, sr)) => Err(Error::NoSpace { sr, free, wanted: needed }),
            None => Err(Error::Invalid {
                what: "--sr",
                value: "auto".to_owned(),
                expected: format!(
                    "no SR of this host can take a disk{}",
                    said.iter().map(|why| format!("; {why}")).collect::<String>()
                ),
            }),
        }
    }
}
