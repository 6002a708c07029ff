//! The disks that this host has attached.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::datapath;
use crate::error::Result;
use crate::sys::loopdev;
use crate::types::Format;

/// The disks that this host has attached, asked from the kernel once for many disks.
pub struct Attachments {
    loops: HashMap<PathBuf, Vec<String>>,
    served: Vec<datapath::Attached>,
}

impl Attachments {
    /// Asks the kernel.
    ///
    /// # Errors
    /// [`crate::Error::Io`].
    pub fn now() -> Result<Attachments> {
        let loops = loopdev::attached()?;
        let served = datapath::all_among(&loops);
        Ok(Attachments { loops, served })
    }

    /// The images that are attached, as the kernel names them.
    pub fn images(&self) -> impl Iterator<Item = &Path> {
        self.loops.keys().map(PathBuf::as_path).chain(self.served.iter().map(|attached| attached.image.as_path()))
    }

    /// Those below a directory, by their paths in it. The directory is not looked at: its server may be gone.
    pub fn below(&self, dir: &Path) -> Vec<&Path> {
        self.images().filter_map(|image| image.strip_prefix(dir).ok()).collect()
    }

    /// The block device over an image.
    pub fn find(&self, format: Format, image: &Path, id: loopdev::FileId) -> Option<PathBuf> {
        match format {
            Format::Raw => loopdev::find(&self.loops, image, id),
            _ => self.served(image),
        }
    }

    /// The block device that a server makes of an image, of any format but raw.
    pub fn served(&self, image: &Path) -> Option<PathBuf> {
        datapath::find_in(&self.served, image).map(|attached| attached.device.clone())
    }

    /// Whether an image is attached and its server is dead.
    pub fn server_died(&self, format: Format, image: &Path) -> bool {
        format != Format::Raw && datapath::find_in(&self.served, image).is_some_and(|attached| !attached.healthy)
    }
}
