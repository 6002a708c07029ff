//! The disks that this host has attached.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::datapath;
use crate::error::Result;
use crate::sys::loopdev;
use crate::types::Format;

/// The disks that this host has attached, asked from the kernel once for many disks.
pub struct Attachments {
    loops: HashMap<PathBuf, Vec<String>>,
    served: Vec<datapath::Attached>,
    /// The file names of all: most images of a large SR are none of these.
    names: HashSet<OsString>,
}

impl Attachments {
    /// Asks the kernel.
    ///
    /// # Errors
    /// [`crate::Error::Io`].
    pub fn now() -> Result<Attachments> {
        let loops = loopdev::attached()?;
        let served = datapath::all_among(&loops);
        let images = loops.keys().chain(served.iter().map(|attached| &attached.image));
        let names = images.filter_map(|image| image.file_name()).map(OsString::from).collect();
        Ok(Attachments { loops, served, names })
    }

    /// The images that are attached, as the kernel names them.
    pub fn images(&self) -> impl Iterator<Item = &Path> {
        self.loops.keys().map(PathBuf::as_path).chain(self.served.iter().map(|attached| attached.image.as_path()))
    }

    /// Those below a directory, by their paths in it. The directory is not looked at: its server may be gone.
    pub fn below(&self, dir: &Path) -> Vec<&Path> {
        self.images().filter_map(|image| image.strip_prefix(dir).ok()).collect()
    }

    fn may_be(&self, image: &Path) -> bool {
        image.file_name().is_some_and(|name| self.names.contains(name))
    }

    /// The block device over an image.
    pub fn find(&self, format: Format, image: &Path, id: loopdev::FileId) -> Option<PathBuf> {
        match format {
            _ if !self.may_be(image) => None,
            Format::Raw => loopdev::find(&self.loops, image, id),
            _ => self.served(image),
        }
    }

    /// The block device that a server makes of an image, of any format but raw.
    pub fn served(&self, image: &Path) -> Option<PathBuf> {
        let found = if self.may_be(image) { datapath::find_in(&self.served, image) } else { None };
        found.map(|attached| attached.device.clone())
    }

    /// Whether an image is attached and its server is dead.
    pub fn server_died(&self, format: Format, image: &Path) -> bool {
        let may_be = format != Format::Raw && self.may_be(image);
        may_be && datapath::find_in(&self.served, image).is_some_and(datapath::Attached::is_dead)
    }
}
