//! SRs in a filesystem that lies right on a device: sr_create would destroy them with it. Such an SR is a directory, so no
//! volume group tells of it.

use std::path::Path;

use super::take::holds_sr;
use crate::context::Deadline;
use crate::error::{Error, Result, ended, one_line};
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

/// A thing that is found in a filesystem: an SR, or images of VDIs.
enum Found {
    Sr(SrUuid, Vec<VdiInfo>),
    /// Images of VDIs in a directory that names no SR, as other storage managers leave them.
    Images(Box<SrInfo>),
}

/// Refuses a device, or partition, whose filesystem holds an SR that `over` does not name. `signatures`: what lies on `node`.
/// `device`: the words for it.
///
/// The top directory and the directories in it are looked at. A filesystem that cannot be mounted is no SR that anybody
/// could use; its signature still keeps it from being overwritten unless `over` says so. `true`: `over` names an SR in the
/// filesystem, which goes with it.
///
/// # Errors
/// [`Error::HoldsSr`] with the disks that would be lost; [`Error::DeviceInUse`] for images that no SR claims, and for a
/// filesystem that was mounted and whose SRs cannot be told, such as one with a damaged marker.
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
        named |= refuse_found(device, node, fs_type, look(node, fs_type, options, deadline), over)?;
    }
    Ok(named)
}

/// Refuses what was found in the filesystem on `node`, see [`refuse_srs`].
fn refuse_found(device: &str, node: &Path, fs_type: &str, found: Result<Vec<Found>>, over: &Overwrite) -> Result<bool> {
    let in_use = |holder: String| Error::DeviceInUse { device: device.to_owned(), holder };
    let found = found.map_err(|error| {
        in_use(format!(
            "its {fs_type} may hold an SR and cannot be looked into ({}); if all in it can be lost, run wipefs -a first",
            one_line(&error)
        ))
    })?;
    let mut named = false;
    for found in found {
        match found {
            Found::Sr(held, _) if over.srs.contains(&held) => named = true,
            Found::Sr(held, disks) => {
                let mut refusal = holds_sr(device, held, format!("a file SR in its {fs_type}"), vec![node.to_owned()]);
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
                return Err(in_use(format!(
                    "its {fs_type} has {images} ({first}, …) in {}; if they can be lost, remove them or run wipefs -a first",
                    info.location
                )));
            }
        }
    }
    Ok(named)
}

/// The SRs in a filesystem that is not mounted; none if it cannot be. Nothing is written to it: the device takes no writes
/// meanwhile.
fn look(node: &Path, fs_type: &str, options: &[&str], deadline: &Deadline) -> Result<Vec<Found>> {
    let was_read_only = blockdev::is_read_only(node);
    let found = blockdev::set_read_only(node, true).and_then(|()| {
        mount::privately(&run_dir::state().join("look"), |dir| {
            let is_mounted =
                options.iter().any(|options| mount::block_device(node, dir, fs_type, true, options).is_ok());
            if is_mounted { srs_below(dir, deadline) } else { Ok(Vec::new()) }
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
        let here = |info| SrInfo { location: shown.display().to_string(), ..info };
        found.extend(images.map(|info| Found::Images(Box::new(here(info)))));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::types::NewSr;
    use crate::types::{NewVdi, Params, VdiUuid};

    /// Judges a directory as if it were the top of a filesystem.
    fn refused(dir: &Path, over: &Overwrite) -> Result<bool> {
        let deadline = (Instant::now() + Duration::from_secs(20)).into();
        refuse_found("/dev/sdb", Path::new("/dev/sdb"), "ext4", srs_below(dir, &deadline), over)
    }

    #[test]
    fn an_sr_in_a_filesystem_is_not_overwritten_even_if_its_marker_is_damaged() {
        let scratch = tempfile::tempdir().unwrap();
        let force = Overwrite { contents: true, ..Overwrite::default() };
        assert!(!refused(scratch.path(), &force).unwrap());
        let deadline = Deadline::from(Instant::now() + Duration::from_secs(20));
        let (uuid, below) = (SrUuid::random(), scratch.path().join("sr"));
        let sr = FileSr::new(uuid, file::DRIVER.sr_type, below.clone(), deadline);
        sr.create(&NewSr::default()).unwrap();
        let vdi = VdiUuid::random();
        sr.create_vdi(&NewVdi { vdi, virtual_size: 4 << 20, format: None, params: Params::default() }).unwrap();
        assert!(matches!(refused(scratch.path(), &force), Err(Error::HoldsSr { .. })));
        assert!(refused(scratch.path(), &Overwrite { srs: vec![uuid], ..force.clone() }).unwrap());
        for at in [below.as_path(), scratch.path()] {
            fs::write(at.join(file::MARKER), b"(nonsense").unwrap();
            let refusal = refused(scratch.path(), &force).unwrap_err();
            assert!(matches!(refusal, Error::DeviceInUse { .. }), "{refusal}");
        }
    }
}
