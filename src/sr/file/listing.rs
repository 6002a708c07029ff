//! The names of an SR's directory, read in one pass.

use std::collections::{HashMap, HashSet};

use super::layout::{JOURNALS, Role, classify, remove_leftovers};
use crate::error::Result;
use crate::sys::durable::{Dir, replaced};
use crate::types::{Format, VdiUuid};
use crate::vdi::layout;

/// An SR as the names in its directory show it.
#[derive(Default)]
pub(super) struct Listing {
    pub(super) images: HashMap<VdiUuid, Format>,
    /// Second images of VDIs: the VDI, the format in `images`, the format of this one.
    pub(super) further: Vec<(VdiUuid, Format, Format)>,
    pub(super) params: HashSet<VdiUuid>,
    pub(super) locks: HashSet<VdiUuid>,
    /// Logs of changed blocks.
    pub(super) logs: HashSet<VdiUuid>,
    pub(super) temporaries: Vec<String>,
    /// Second names of files that were replaced, or are being replaced.
    pub(super) replaced: Vec<String>,
    /// Another storage manager's collector left a journal: what looks like garbage may not be.
    pub(super) journals: bool,
}

impl Listing {
    /// Reads the names of the directory. A file that lost its name to a killed replacement gets it back first.
    ///
    /// # Errors
    /// [`crate::Error::Io`].
    pub(super) fn read(dir: &Dir) -> Result<Listing> {
        let mut names = dir.names()?;
        let mut lost =
            names.iter().filter(|kept| replaced(kept).is_some_and(|name| !names.iter().any(|it| it == name)));
        if lost.next().is_some() {
            names.iter().filter(|name| replaced(name).is_some()).try_for_each(|kept| dir.settle(kept))?;
            names = dir.names()?;
        }
        let mut listing = Listing::default();
        for name in names {
            match classify(&name) {
                Some((vdi, Role::Image(format))) => {
                    match listing.images.get(&vdi) {
                        // The one that may be another's child is looked at.
                        Some(other) if layout(format).is_by_length() => listing.further.push((vdi, *other, format)),
                        Some(other) => {
                            listing.further.push((vdi, format, *other));
                            listing.images.insert(vdi, format);
                        }
                        None => drop(listing.images.insert(vdi, format)),
                    }
                }
                Some((vdi, Role::Params)) => drop(listing.params.insert(vdi)),
                Some((vdi, Role::Lock)) => drop(listing.locks.insert(vdi)),
                Some((vdi, Role::Log)) => drop(listing.logs.insert(vdi)),
                None if name.starts_with(".tmp-") => listing.temporaries.push(name),
                None if replaced(&name).is_some() => listing.replaced.push(name),
                None if JOURNALS.iter().any(|prefix| name.starts_with(prefix)) => listing.journals = true,
                None => {}
            }
        }
        Ok(listing)
    }

    /// Removes the files in the making of killed calls. A file that can't be removed now (a read-only mount) stays for
    /// later.
    pub(super) fn sweep(&self, dir: &Dir) {
        for name in &self.temporaries {
            let _ = dir.sweep_temporary(name);
        }
    }

    /// Removes the files in the making of killed calls, and what is beside images that are not there. Only for a caller
    /// that has the SR alone.
    pub(super) fn sweep_all(&self, dir: &Dir) {
        self.sweep(dir);
        for vdi in self.params.union(&self.locks).filter(|v| !self.images.contains_key(v)) {
            let _ = remove_leftovers(dir, *vdi);
        }
    }

    /// Of a VDI that has several images: the format of the one in `images`, with that of each further one.
    pub(super) fn doubled(&self, vdi: VdiUuid) -> impl Iterator<Item = (Format, Format)> {
        self.further.iter().filter(move |(of, ..)| *of == vdi).map(|(_, first, second)| (*first, *second))
    }

    /// The formats of the images of a VDI.
    pub(super) fn formats_of(&self, vdi: VdiUuid) -> impl Iterator<Item = Format> + '_ {
        self.all_images().filter(move |(of, _)| *of == vdi).map(|(_, format)| format)
    }

    /// Every image, second ones of a VDI too.
    pub(super) fn all_images(&self) -> impl Iterator<Item = (VdiUuid, Format)> + '_ {
        self.images.iter().map(|(v, f)| (*v, *f)).chain(self.further.iter().map(|(v, _, f)| (*v, *f)))
    }
}
