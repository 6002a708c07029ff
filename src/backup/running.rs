//! The disks of a run, once they are held: written into the store, published, and what was begun for them ended.

use std::sync::Arc;

use super::assemble::{self, Names, Sums};
use super::codec::Packing;
use super::export::Wanted;
use super::manifest::{DiskOf, Manifest, ParentRun};
use super::name::RunId;
use super::pause::Pause;
use super::record::{self, Begun};
use super::retain;
use super::set::Member;
use super::shelf::Shelf;
use super::source::{self, Hold, Source};
use super::store;
use super::write::{self, From, Since, Written};
use super::{Call, bases};
use crate::call::Held;
use crate::error::{Error, Result};
use crate::sys::durable::Dir;
use crate::types::{Utc, VdiInfo, seconds_now};

/// A run that was published.
pub(super) struct Done {
    pub disks: Vec<DiskOf>,
    /// The disks that were to be deleted then, and were not.
    pub left: Vec<(String, Error)>,
}

/// A run whose disks are held.
pub(super) struct Running<'a> {
    pub call: &'a Call<'a>,
    pub wanted: &'a Wanted,
    pub sources: &'a [Source],
    pub shelf: &'a Shelf<'a>,
    pub run: &'a RunId,
    /// What the parent run has of each disk.
    pub since: Option<Vec<Since>>,
    pub packing: Arc<Packing>,
}

impl Running<'_> {
    /// Deletes the disks of a published run if that is wanted. Answers those that were not deleted.
    ///
    /// # Errors
    /// Those of [`Pause`].
    pub fn delete(&self, held: &[Held], pause: &mut Pause) -> Result<Vec<(String, Error)>> {
        if !self.wanted.remove_source {
            return Ok(Vec::new());
        }
        pause.end_for_good()?;
        let user = pause.begun.record().user();
        Ok(source::delete(self.call, self.sources, &user, held))
    }

    /// Writes the run into the store, and publishes it. What was paused goes on as soon as no disk is read that it uses, unless the
    /// disks are to be deleted.
    ///
    /// # Errors
    /// [`Error::NotExported`]; [`Error::Io`]; those of [`Pause`]. What was begun is for [`Running::end`].
    pub fn write(
        &self,
        how: Hold,
        held: &[Held],
        parent: Option<ParentRun>,
        opaque: Option<&[u8]>,
        pause: &mut Pause,
    ) -> Result<Vec<DiskOf>> {
        let keep = retain::keep(self.shelf, self.wanted.keep)?;
        let dir = self.shelf.begin(self.run)?;
        let begun = Utc(seconds_now().unwrap_or(0)).to_string();
        let (set, compression) = (self.wanted.set.clone(), self.packing.compression);
        let mut manifest = Manifest::new(set, self.run.clone(), begun, compression, store::Identity::here());
        (manifest.consistency, manifest.parent, manifest.keep) = (how.consistency(), parent, keep);
        manifest.zeroed = self.wanted.zero_free.is_some();
        let (mut sums, mut failures) = (Sums::new(), Vec::new());
        let mut all: Vec<(usize, &Source)> = self.sources.iter().enumerate().collect();
        // First those that are read themselves: what uses them may be paused as long.
        all.sort_by_key(|(_, source)| source.snapshot.is_some());
        for (index, source) in all {
            if source.snapshot.is_some() {
                pause.end()?;
            }
            match self.one(index, source, held, &dir, &mut sums) {
                Ok(disk) => manifest.disks.push(disk),
                Err(error) => failures.push((format!("disk {index}, VDI {}", source.member.vdi), error)),
            }
        }
        if !self.wanted.remove_source {
            pause.end()?;
        }
        if failures.is_empty() {
            manifest.disks.sort_by_key(|disk| disk.index);
            match assemble::finish(self.shelf, self.run, &dir, manifest, &self.packing, sums.clone(), opaque) {
                Ok(disks) => return Ok(disks),
                Err(error) => failures.push(("the completion".to_owned(), error)),
            }
        }
        let partial = match self.wanted.keep_partial && !sums.is_empty() {
            true => assemble::keep_partial(self.shelf, self.run, &dir, sums).unwrap_or_else(|error| {
                failures.push(("the part that was to stay".to_owned(), error));
                None
            }),
            false => None,
        };
        Err(Error::NotExported { set: self.wanted.set.to_string(), failures, partial })
    }

    /// Writes the image and the map of a disk.
    fn one(&self, index: usize, source: &Source, held: &[Held], dir: &Dir, sums: &mut Sums) -> Result<DiskOf> {
        let packing = self.packing.clone();
        let since = self.since.as_ref().map(|since| since[index].clone());
        let vdi = source.snapshot.unwrap_or(source.member.vdi);
        let (rate, uuid) = (self.wanted.rate, source.info.uuid);
        let total = source.allocated;
        let ((), written, names) = assemble::put_disk(dir, index, &self.packing, sums, |to, path| {
            let path = path.to_owned();
            let read =
                source.session.vdi_read(vdi, source.base, held, &self.call.context(), move |_, disk, changed, told| {
                    let from = From { disk, uuid, since: since.as_ref(), changed, total, rate };
                    write::write(&from, &packing, &to, &path, told)
                });
            read.map(|written| ((), written))
        })?;
        if let Some(snapshot) = source.snapshot.filter(|_| !self.is_kept(source)) {
            // It was needed for this run alone. If it stays, the record tells the next call.
            let _ = record::delete(self.call, &Member { sr: source.member.sr, vdi: snapshot });
        }
        Ok(described(index, names, source, &written))
    }

    /// Whether the snapshot of a disk stays for the next increment.
    fn is_kept(&self, source: &Source) -> bool {
        self.wanted.since.is_some() && source.has_maps
    }

    /// Undoes what was done for this run alone. Answers how the run ended, and what could not be undone.
    pub fn end(&self, begun: &Begun, done: Result<Done>) -> (Result<Done>, Vec<Error>) {
        let (mut undone, mut made) = (Vec::new(), begun.record().made.iter().collect::<Vec<_>>());
        for source in self.sources {
            undone.extend(record::unlock(self.call, &source.member, &begun.record().user()).err());
        }
        // The disks of the set are gone: no increment is made on their snapshots.
        let is_last = self.wanted.remove_source && self.wanted.disks.is_empty();
        if done.is_ok() && (self.wanted.since.is_some() || is_last) {
            let kept = self.sources.iter().filter(|source| self.is_kept(source));
            let kept: Vec<Member> =
                kept.filter_map(|it| it.snapshot.map(|vdi| Member { sr: it.member.sr, vdi })).collect();
            match bases::keep(&self.wanted.set, kept.clone()) {
                Ok(()) => made.retain(|it| !kept.contains(*it)),
                Err(error) => undone.push(error),
            }
        }
        for snapshot in made {
            undone.extend(record::delete(self.call, snapshot).err());
        }
        if done.is_err() {
            undone.extend(self.shelf.abandon(self.run).err());
        }
        (done, undone)
    }
}

fn described(index: usize, names: Names, source: &Source, written: &Written) -> DiskOf {
    let info: &VdiInfo = &source.info;
    DiskOf {
        index,
        file: names.file,
        map: names.map,
        map_sha256: names.map_sha256,
        uuid: info.uuid,
        sr_uuid: info.sr,
        sr_type: source.session.sr_type().to_owned(),
        label: info.label.clone(),
        description: info.description.clone(),
        vdi_type: info.format,
        read_only: info.read_only,
        shareable: info.shareable,
        virtual_size: written.size,
        allocated: source.allocated,
        sector_size: info.sector_size,
        parent: info.parent,
        snapshot: source.snapshot,
    }
}
