//! The disks of a file SR, opened by their files.

use std::path::Path;
use std::sync::Arc;

use xcp_sm::image::disk::Served;
use xcp_sm::image::storage::FileStorage;
use xcp_sm::image::{qcow2, vhd};
use xcp_sm::types::Mode;

/// `None`: there is no such VHD or qcow2.
pub fn open(sr: &Path, vdi: &str, mode: Mode) -> Option<Box<dyn Served>> {
    let place = |name: &str, mode| Arc::new(FileStorage::open(sr.join(name), mode).unwrap());
    let below = |name: &str| place(name, Mode::ReadOnly);
    let leaf =
        ["vhd", "qcow2"].map(|format| format!("{vdi}.{format}")).into_iter().find(|name| sr.join(name).exists())?;
    let image = place(&leaf, mode);
    Some(if leaf.ends_with(".qcow2") {
        let resolve = |name: &str| Ok(qcow2::Parent::Qcow2(below(name)));
        Box::new(qcow2::Chain::open(qcow2::Parent::Qcow2(image), mode, resolve).unwrap())
    } else {
        let resolve = |link: &vhd::ParentInfo| Ok(vhd::Parent::Vhd(below(link.file_name().unwrap())));
        Box::new(vhd::Chain::open(image, mode, resolve).unwrap())
    })
}
