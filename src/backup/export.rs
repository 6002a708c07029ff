//! `sm backup export`: the disks of a set into a store.

use std::fs;
use std::io::Read as _;
use std::path::Path;

use super::codec::Compression;
use super::manifest::{self, DiskOf, Manifest, Metadata, image_name, map_name};
use super::map::{digest, hex};
use super::name::{RunId, SetName, StoreName};
use super::record::{self, Begun, Record};
use super::set::{self, Member, Set};
use super::shelf::{Shelf, put, taken};
use super::store::{self, Open};
use super::write::{self, Written};
use super::{Call, remove, verify};
use crate::call::Session;
use crate::error::{Error, Result, one_line};
use crate::sys::durable::Dir;
use crate::types::{Size, Utc, VdiInfo, seconds_now};

/// Bytes of the longest opaque file.
const LONGEST_METADATA: u64 = 16 << 20;

/// The export that is wanted.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub set: SetName,
    /// In place of those of the set, if any is named.
    pub disks: Vec<Member>,
    pub store: StoreName,
    pub compression: Compression,
    /// Runs that stay, this one among them; 1 at least.
    pub keep: usize,
    /// Leaves what other stores have of the set.
    pub keep_others: bool,
    /// Changes nothing.
    pub dry_run: bool,
}

/// What was exported.
#[derive(Debug)]
pub struct Exported {
    pub run: RunId,
    pub disks: Vec<DiskOf>,
    pub warnings: Vec<String>,
    /// What would be done, of a call that changes nothing.
    pub plan: Option<Vec<String>>,
}

/// A disk of the run, seen before anything is changed.
struct Source {
    member: Member,
    session: Session,
    info: VdiInfo,
}

/// Exports a set. The export before stays current until this one is complete and was looked at.
///
/// # Errors
/// [`Error::VdiInUse`], [`Error::NoVdi`], [`Error::UnknownSr`] for a disk; [`Error::Invalid`], [`Error::Unsupported`],
/// [`Error::NoDevice`], [`Error::StoreFull`] for the store; [`Error::Locked`]. Then nothing was changed.
/// [`Error::NotExported`] with each disk that failed.
pub fn export(call: &Call, wanted: &Wanted) -> Result<Exported> {
    let set = members(wanted)?;
    let opaque = set.metadata.as_deref().map(metadata).transpose()?;
    let sources = sources(call, &set)?;
    let store = open_store(&wanted.store)?;
    if wanted.compression == Compression::None {
        store.refuse_if_full(sources.iter().map(|it| it.info.physical_utilisation.min(it.info.virtual_size)).sum())?;
    }
    let now = seconds_now().unwrap_or(0);
    let run = RunId::new(now);
    if wanted.dry_run {
        let plan = plan(wanted, &sources, &store)?;
        return Ok(Exported { run, disks: Vec::new(), warnings: Vec::new(), plan: Some(plan) });
    }
    let _set = record::lock(&wanted.set, call.deadline())?;
    let mut warnings = record::recover(call, Some(&wanted.set))?;
    let _taken = store.lock(&wanted.set, &run, call.deadline())?;
    let shelf = Shelf::new(&store, wanted.set.clone());
    shelf.repair()?;
    let run = RunId::after(now, shelf.runs()?.last());
    let begun = Begun::begin(Record {
        run: run.clone(),
        set: wanted.set.clone(),
        store: Some(store.name.clone()),
        locks: set.disks.clone(),
        made: Vec::new(),
    })?;
    let user = begun.record().user();
    let done = locked(call, &sources, &user)
        .and_then(|()| run_locked(call, wanted, &sources, &shelf, &run, opaque.as_deref()));
    let mut undone = Vec::new();
    for source in &sources {
        undone.extend(record::unlock(call, &source.member, &user).err());
    }
    if done.is_err() {
        undone.extend(shelf.abandon(&run).err());
    }
    warnings.extend(undone.iter().map(|error| format!("undone by the next call: {}", one_line(error))));
    if undone.is_empty() {
        begun.end()?;
    }
    let disks = match done {
        Ok(disks) => disks,
        Err(error) => return Err(undone.into_iter().fold(error, |error, undo| error.undone(Err(undo)))),
    };
    warnings
        .extend(remove_old(&shelf, wanted.keep).err().map(|error| format!("older runs stay: {}", one_line(&error))));
    if !wanted.keep_others {
        warnings.extend(remove::elsewhere(call, &wanted.set, &store, &run));
    }
    Ok(Exported { run, disks, warnings, plan: None })
}

fn members(wanted: &Wanted) -> Result<Set> {
    let known = set::find(&wanted.set)?;
    match (wanted.disks.is_empty(), known) {
        (true, Some(set)) => Ok(set),
        (true, None) => Err(Error::Invalid {
            what: "NAME",
            value: wanted.set.to_string(),
            expected: "no set has this name; `sm backup define` makes one, or --disk names the disks".to_owned(),
        }),
        (false, known) => Set::new(wanted.disks.clone(), known.and_then(|set| set.metadata)),
    }
}

fn metadata(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = fs::File::open(path).map_err(Error::io("open", path))?;
    file.take(LONGEST_METADATA + 1).read_to_end(&mut bytes).map_err(Error::io("read", path))?;
    match bytes.len() as u64 > LONGEST_METADATA {
        true => Err(Error::TooBig {
            what: "a metadata file",
            bytes: bytes.len() as u64,
            limit: format!("{} are the limit", Size(LONGEST_METADATA)),
        }),
        false => Ok(bytes),
    }
}

/// Looks at each disk, which nobody may use.
fn sources(call: &Call, set: &Set) -> Result<Vec<Source>> {
    let look = |member: &Member| {
        let session = call.host.open(member.sr)?;
        let info = session.vdi_get_params(member.vdi, &call.context())?;
        let holder = match (&info.device, info.vbds.as_slice()) {
            (Some(device), _) => format!("this host, which has it attached as {}; detach it", device.display()),
            (None, []) => return Ok(Source { member: *member, session, info }),
            (None, users) => format!("{}, who locked it (vdi_unlock gives it back)", users.join(", ")),
        };
        Err(Error::VdiInUse { vdi: member.vdi, sr: member.sr, holder })
    };
    set.disks.iter().map(look).collect()
}

fn open_store(name: &StoreName) -> Result<Open> {
    let store = store::find(name)?;
    match store.drained {
        true => Err(Error::Unsupported { op: "an export into this store", why: format!("store {name} is drained") }),
        false => store.open(),
    }
}

fn plan(wanted: &Wanted, sources: &[Source], store: &Open) -> Result<Vec<String>> {
    let shelf = Shelf::new(store, wanted.set.clone());
    let mut lines: Vec<String> = sources
        .iter()
        .map(|it| {
            let (used, size) = (Size(it.info.physical_utilisation), Size(it.info.virtual_size));
            format!("export VDI {} ({}): {used} of {size}", it.member.vdi, it.info.label)
        })
        .collect();
    lines.push(format!("into {}", store.dir.join(wanted.set.as_str()).display()));
    let runs = shelf.runs()?;
    let old = runs.len().saturating_sub(wanted.keep.max(1) - 1);
    lines.extend(runs[..old].iter().map(|run| format!("remove run {run}")));
    if !wanted.keep_others {
        lines.extend(
            remove::others(store)?.into_iter().map(|other| format!("remove {} from store {other}", wanted.set)),
        );
    }
    Ok(lines)
}

/// Takes the persistent lock of each disk. An SR without locks has none that others could take either.
fn locked(call: &Call, sources: &[Source], user: &str) -> Result<()> {
    for source in sources {
        match source.session.vdi_lock(source.member.vdi, user, false, &call.context()) {
            Ok(()) | Err(Error::Unsupported { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn run_locked(
    call: &Call,
    wanted: &Wanted,
    sources: &[Source],
    shelf: &Shelf,
    run: &RunId,
    opaque: Option<&[u8]>,
) -> Result<Vec<DiskOf>> {
    let dir = shelf.begin(run)?;
    let begun = Utc(seconds_now().unwrap_or(0)).to_string();
    let mut manifest = Manifest::new(wanted.set.clone(), run.clone(), begun, wanted.compression, store::host_name());
    let (mut sums, mut failures) = (Vec::new(), Vec::new());
    for (index, source) in sources.iter().enumerate() {
        match one(call, wanted, index, source, &dir) {
            Ok((disk, image, map)) => {
                sums.extend(image.map(|image| (disk.file.clone(), image)));
                sums.push((disk.map.clone(), map));
                manifest.disks.push(disk);
            }
            Err(error) => failures.push((format!("disk {index}, VDI {}", source.member.vdi), error)),
        }
    }
    let finished = || {
        if let Some(bytes) = opaque {
            put(&dir, manifest::METADATA, bytes)?;
            let sha256 = hex(&digest(bytes));
            sums.push((manifest::METADATA.to_owned(), sha256.clone()));
            manifest.metadata = Some(Metadata { file: manifest::METADATA.to_owned(), sha256 });
        }
        let text = manifest.text();
        put(&dir, manifest::FILE, &text)?;
        sums.push((manifest::FILE.to_owned(), hex(&digest(&text))));
        sums.sort();
        let sums: String = sums.iter().map(|(file, sum)| format!("{sum}  {file}\n")).collect();
        put(&dir, manifest::SUMS, sums.as_bytes())?;
        verify::look(&dir)?;
        shelf.publish(run, &dir)?;
        Ok(manifest.disks)
    };
    if failures.is_empty() {
        match finished() {
            Ok(disks) => return Ok(disks),
            Err(error) => failures.push(("the completion".to_owned(), error)),
        }
    }
    Err(Error::NotExported { set: wanted.set.to_string(), failures })
}

/// Writes the image and the map of a disk. Answers the digests of both; of the image if it is packed.
fn one(
    call: &Call,
    wanted: &Wanted,
    index: usize,
    source: &Source,
    dir: &Dir,
) -> Result<(DiskOf, Option<String>, String)> {
    let compression = wanted.compression;
    let (file, map) = (image_name(index, compression), map_name(index));
    let (new, path) = (dir.new_file()?, dir.join(&file));
    let to = new.file().try_clone().map_err(Error::io("duplicate", &path))?;
    let (info, written) =
        source.session.vdi_read(source.member.vdi, &call.context(), move |info, disk, progress| {
            let total = info.physical_utilisation.min(info.virtual_size);
            write::write(disk, compression, &to, &path, total, progress).map(|written| (info.clone(), written))
        })?;
    if !new.publish_soon(&file)? {
        return Err(taken(dir.join(&file)));
    }
    let text = written.map.text();
    put(dir, &map, text.as_bytes())?;
    let sum = hex(&digest(text.as_bytes()));
    let image = written.image.as_ref().map(hex);
    let disk = described(index, file, map, &sum, &info, source, &written);
    Ok((disk, image, sum))
}

fn described(
    index: usize,
    file: String,
    map: String,
    map_sha256: &str,
    info: &VdiInfo,
    source: &Source,
    written: &Written,
) -> DiskOf {
    DiskOf {
        index,
        file,
        map,
        map_sha256: map_sha256.to_owned(),
        uuid: info.uuid,
        sr_uuid: info.sr,
        sr_type: source.session.sr_type().to_owned(),
        label: info.label.clone(),
        description: info.description.clone(),
        vdi_type: info.format,
        read_only: info.read_only,
        shareable: info.shareable,
        virtual_size: written.size,
        allocated: info.physical_utilisation,
        sector_size: info.sector_size,
        parent: info.parent,
        snapshot: None,
    }
}

/// Removes the runs that are not kept.
fn remove_old(shelf: &Shelf, keep: usize) -> Result<()> {
    let runs = shelf.runs()?;
    let old = runs.len().saturating_sub(keep.max(1));
    shelf.remove_runs(&runs[..old])
}
