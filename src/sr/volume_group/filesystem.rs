//! SRs in a filesystem that lies right on a device: sr_create would destroy them with it. Such an SR is a directory, so no
//! volume group tells of it.

use std::path::Path;

use super::take::holds_sr;
use crate::context::Deadline;
use crate::error::{Error, Result, ended};
use crate::sr::Sr;
use crate::sr::file::{self, FileSr};
use crate::sr::loss;
use crate::sys::durable::Dir;
use crate::sys::{blockdev, mount, run_dir};
use crate::types::{Overwrite, SrInfo, SrUuid, VdiInfo};

/// Filesystems that hold file SRs, and how each is mounted without a write to its device: what the options replace is the
/// replay of the journal.
const FILESYSTEMS: [(&str, &[&str]); 5] = [
    ("ext4", &["noload"]),
    ("ext3", &["noload"]),
    ("ext2", &[""]),
    ("xfs", &["norecovery,nouuid"]),
    ("btrfs", &["rescue=nologreplay", "nologreplay"]),
];

/// What is found in a filesystem.
enum Found {
    Sr(SrUuid, Vec<VdiInfo>),
    /// Images of VDIs in a directory that names no SR, as other storage managers leave them.
    Images(SrInfo),
}

/// Refuses a device, or partition, whose filesystem holds an SR that `over` does not name. `signatures`: what lies on `node`.
/// `device`: the words for it.
///
/// The top directory and the directories in it are looked at. A filesystem that cannot be mounted is no SR that anybody
/// could use; its signature still keeps it from being overwritten unless `over` says so. `true`: `over` names an SR in the
/// filesystem, which goes with it.
///
/// # Errors
/// [`Error::HoldsSr`] with the disks that would be lost; [`Error::DeviceInUse`] for images that no SR claims.
pub fn refuse_srs(
    device: &str,
    node: &Path,
    signatures: &[String],
    over: &Overwrite,
    deadline: &Deadline,
) -> Result<bool> {
    let mut named = false;
    let is_on = |fs_type: &str| signatures.iter().any(|found| found.split(' ').next() == Some(fs_type));
    for (fs_type, options) in FILESYSTEMS.iter().filter(|(fs_type, _)| is_on(fs_type)) {
        let Ok(found) = look(node, fs_type, options, deadline) else { continue };
        for found in found {
            match found {
                Found::Sr(held, _) if over.srs.contains(&held) => named = true,
                Found::Sr(held, disks) => {
                    let mut refusal =
                        holds_sr(device, held, format!("a file SR in its {fs_type}"), vec![node.to_owned()]);
                    if let Error::HoldsSr { held, .. } = &mut refusal {
                        held.lost = loss::in_words(disks);
                    }
                    return Err(refusal);
                }
                Found::Images(info) => {
                    let count = info.vdi_uuids.len();
                    let images =
                        if count == 1 { "the image of a VDI".to_owned() } else { format!("images of {count} VDIs") };
                    let first = info.vdi_uuids[0];
                    let holder = format!(
                        "its {fs_type} has {images} ({first}, …) in {}; if they can be lost, remove them or run wipefs -a first",
                        info.location
                    );
                    return Err(Error::DeviceInUse { device: device.to_owned(), holder });
                }
            }
        }
    }
    Ok(named)
}

/// The SRs in a filesystem that is not mounted. Nothing is written to it: the device takes no writes meanwhile.
fn look(node: &Path, fs_type: &str, options: &[&str], deadline: &Deadline) -> Result<Vec<Found>> {
    let was_read_only = blockdev::is_read_only(node);
    let found = blockdev::set_read_only(node, true).and_then(|()| {
        mount::privately(&run_dir::state().join("look"), |dir| {
            let mut mounted = Ok(());
            for options in options {
                mounted = mount::block_device(node, dir, fs_type, true, options);
                if mounted.is_ok() {
                    break;
                }
            }
            mounted.and_then(|()| srs_below(dir, deadline))
        })
    });
    match was_read_only {
        true => found,
        false => ended(found, blockdev::set_read_only(node, false)),
    }
}

fn srs_below(dir: &Path, deadline: &Deadline) -> Result<Vec<Found>> {
    let mut found = Vec::new();
    for info in file::probe(dir, file::DRIVER.sr_type, deadline.clone())? {
        let sr = FileSr::new(info.uuid, file::DRIVER.sr_type, info.location.into(), deadline.clone());
        found.push(Found::Sr(info.uuid, sr.scan()?.vdis));
    }
    let top = Dir::open(dir)?;
    let below =
        top.names()?.into_iter().filter(|name| matches!(top.sub_dir(name), Ok(Some(_)))).map(|name| dir.join(name));
    for path in std::iter::once(dir.to_owned()).chain(below) {
        let shown = path.strip_prefix(dir).map_or_else(|_| path.clone(), |below| Path::new("/").join(below));
        let unmarked = FileSr::new(SrUuid::random(), file::DRIVER.sr_type, path, deadline.clone()).unmarked()?;
        let images = unmarked.filter(|info| !info.vdi_uuids.is_empty());
        found.extend(images.map(|info| Found::Images(SrInfo { location: shown.display().to_string(), ..info })));
    }
    Ok(found)
}
