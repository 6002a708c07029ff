//! LVHD: the volume groups of the SR types `lvm`, `lvmoiscsi` and `lvmohba` of XCP-ng and XenServer. They
//! are read, and changed as the Python drivers of these change them; qcow2 disks are only read.
//!
//! | volume | what |
//! |---|---|
//! | `VHD-<vdi>`, `QCOW2-<vdi>` | an image; its header says whether it is hidden, and which volume is its parent |
//! | `LV-<vdi>` | a raw disk, or a raw base with the tag `hidden` |
//! | `VHD-OLD_<vdi>` | a leaf whose parent takes its place, or has taken it |
//! | `MGT` | names and origin of each VDI: [`mgt`] |
//! | `<type>_<vdi>_<value>`, `jvhd_<vdi>` | a change that was begun: [`journal`] |
//! | `NEW-<vdi>`, `NEW_<vdi>_1` | what is to become the volume of a VDI, or a journal: it means nothing yet |
//! | `<vdi>.cbtlog`, `<sr>_trim_lv` | which blocks were changed; free space while it is discarded |
//!
//! A group is LVHD if it says so itself: [`is_lvhd`]. The driver of the groups, [`lvm`](super::lvm), asks that of each group that
//! it looks at. docs/lvhd.md has what is served.
//!
//! The metadata on the devices, or one report of LVM, tells all volumes and where their bytes are. Headers, `MGT` and the records of journals are read from the
//! physical volumes ([`map`]), so nothing is activated for them and no more LVM commands are run, however many volumes there are.
//!
//! A change that the SR's master began and did not end is understood as its recovery would end it ([`Group`]): the disk is found
//! in the volume that has its data, and a clone that was not completed is no VDI.
//!
//! | file | content |
//! |---|---|
//! | [`mgt`], [`journal`] | what stands in the small volumes |
//! | [`map`] | the bytes of a volume |
//! | [`group`] | which volume has which image |
//! | [`listing`] | the SR and its disks as an answer |
//! | [`place`], [`forest`], [`disk`] | one disk: its bytes, its parents, and what is refused |
//! | [`activation`] | the volumes that are active while a disk is attached |
//! | [`live`], [`step`], [`rights`] | a group while it is changed; its changes as LVM commands; who may make them |
//! | [`life`] | an SR is made, attached, detached, deleted |
//! | [`disks`], [`inflate`], [`sizes`] | disks are made; their volumes get larger and smaller |
//! | [`fork`], [`merge`], [`revert`] | snapshot and clone; the end of a merge; a disk goes back to a snapshot |
//! | [`recover`] | what killed calls left |
//! | [`follow`] | volumes that the SR's master has changed, on other hosts |
//! | [`records`] | changes of `MGT` |
//! | [`mod@check`], [`repair`] | what is wrong, and what of it is mended |

mod activation;
mod check;
mod disk;
mod disks;
mod follow;
mod forest;
mod fork;
mod group;
mod inflate;
pub mod journal;
pub mod life;
mod listing;
mod live;
pub mod map;
mod merge;
pub mod mgt;
mod place;
mod records;
mod recover;
mod repair;
mod revert;
mod rights;
mod sizes;
mod space;
mod step;

use std::path::{Path, PathBuf};
use std::rc::Rc;

pub use group::Group;
use live::Live;
pub use rights::Rights;

use crate::error::{Error, Result};
use crate::image::volume::{GROUP, VolumeName, image};
use crate::sys::lvm::Vg;
use crate::types::{Format, SrUuid, VdiUuid};

/// The volume with the names.
const MGT: &str = "MGT";
/// The tag of a raw volume that is there for its children only.
const HIDDEN: &str = "hidden";

/// Whether a group is LVHD. It is if it has no tag of `own`, those of the groups that this package makes, and a volume `MGT` or one
/// with a VHD or a qcow2. A group of raw volumes alone, as releases before LVHD made it, is none.
pub fn is_lvhd(vg: &Vg, own: &[&str]) -> bool {
    let is_image = |name: &str| VolumeName::parse(name).is_some_and(|name| name.format != Format::Raw);
    !vg.tags.iter().any(|tag| own.contains(&tag.as_str()))
        && vg.lvs.iter().any(|lv| lv.name == MGT || is_image(&lv.name))
}

/// The names of the devices of the images that a VDI may have; see [`crate::sr::driver::About::images`]. The directory ends with the SR's
/// UUID.
pub fn images(directory: &Path, vdi: VdiUuid) -> Vec<PathBuf> {
    let Some(sr) = directory.file_name().and_then(|name| name.to_str()?.parse::<SrUuid>().ok()) else {
        return Vec::new();
    };
    let vg = format!("{GROUP}{sr}");
    [Format::Vhd, Format::Qcow2].map(|format| place::path(&vg, &image(vdi, format), format)).into()
}

/// What an LVHD SR answers.
const SERVED: &str = "what only reads, vdi_create, vdi_import, vdi_attach, vdi_delete, vdi_resize, vdi_snapshot, vdi_clone, \
                      vdi_revert, vdi_set of names, and sr_collect";

/// Says that the operation is not served in such an SR.
pub fn refused(op: &'static str, sr: SrUuid) -> Error {
    Error::ReadOnlySr { op, sr, served: SERVED }
}

/// An LVHD SR as its group is at one instant.
pub struct Lvhd<'a> {
    live: Rc<Live<'a>>,
}

impl<'a> Lvhd<'a> {
    /// The SR with its images read. A group that changes meanwhile is looked at `again`.
    ///
    /// # Errors
    /// Those of `again`. What is wrong with one volume is told of its VDI.
    pub fn settled(self, again: impl Fn() -> Result<Vg>) -> Result<Lvhd<'a>> {
        /// A group that is never at rest is told as it is.
        const TRIES: usize = 5;
        let mut found = self;
        for _ in 0..TRIES {
            let group = found.live.now();
            if group.is_whole() {
                break;
            }
            let now = again()?;
            if now == *group.vg() {
                break;
            }
            found = Lvhd::of(group.anew(now));
        }
        Ok(found)
    }

    pub fn vg(&self) -> Vg {
        self.live.now().vg().clone()
    }

    /// The SR in a group. Its images are read when they are asked for.
    pub fn of(group: Group<'a>) -> Lvhd<'a> {
        Lvhd { live: Rc::new(Live::of(group)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::lvm::Lv;

    #[test]
    fn a_group_says_itself_whether_it_is_lvhd() {
        const VDI: &str = "98de866e-b035-4b1a-a571-613bff542b89";
        let group = |tags: &[&str], lvs: &[&str]| Vg {
            tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
            lvs: lvs.iter().map(|name| Lv { name: name.replace('*', VDI), ..Lv::default() }).collect(),
            ..Vg::default()
        };
        for lvs in [&["MGT"][..], &["VHD-*"], &["LV-*", "QCOW2-*"], &["VHD-OLD_*"]] {
            assert!(is_lvhd(&group(&[], lvs), &["ours"]), "{lvs:?}");
            assert!(!is_lvhd(&group(&["ours"], lvs), &["ours"]), "{lvs:?}");
        }
        for lvs in [&[][..], &["LV-*"], &["LV-*", "VHD-x", "home", "inflate_*_1"]] {
            assert!(!is_lvhd(&group(&[], lvs), &["ours"]), "{lvs:?}");
        }
    }
}
