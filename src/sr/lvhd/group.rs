//! The volumes of a group: which has the image of which VDI, also in the middle of a change.
//!
//! The changes that the Python drivers record before they begin them, and what is understood of one that was begun:
//!
//! | journal | what is there | understood as |
//! |---|---|---|
//! | `clone` of U, with the base B and the copy D | no image of U that can be read | B has the data of U; there is no D |
//! | | U, and no D that can be read, though one was to be | B is a base; there is no D |
//! | | U, and D or none was to be | B is a base |
//! | `leaf` of U, with the parent P | U and P | P is a base |
//! | | `OLD_U` and P | `OLD_U` has the data of U; P is a base |
//! | | `OLD_U` and U | U has the data; `OLD_U` is no more than left |
//! | `zero` of a raw R, from a byte on | R | R ends at that byte |
//! | `inflate`, `jvhd`, `coalesce`, `relink` | | what the images say: a VHD has its footer at its start as well, and is marked while it is resized |

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use super::journal::{Change, Cloned, Journal, RECORD};
use super::map::{Devices, Mapped};
use super::mgt::{self, Records};
use super::rights::Rights;
use super::{HIDDEN, MGT};
use crate::error::{Error, Result, one_line};
use crate::image::storage::Storage;
use crate::image::volume::VolumeName;
use crate::sr::volume_group::VolumeGroup;
use crate::sys::aio;
use crate::sys::lvm::{self, Lv, Segment, Vg};
use crate::sys::uncached::Buffer;
use crate::types::{Format, Params, State, VdiUuid};
use crate::vdi::layout;
use crate::vdi::tree::nodes::{Node, Nodes, judge};

/// The volume with the image of a VDI.
#[derive(Clone, Debug)]
pub struct Volume {
    pub lv: Lv,
    pub format: Format,
    /// Another volume that is named as the same VDI.
    pub double: Option<String>,
    /// Its name is that of a base or of an old leaf: a change of the VDI was begun.
    pub is_elsewhere: bool,
}

/// A group, as it was at one instant.
pub struct Group<'a> {
    own: &'a VolumeGroup,
    rights: Rights,
    vg: Vg,
    devices: Devices,
    journals: Vec<(String, Journal)>,
    volumes: BTreeMap<VdiUuid, Volume>,
    /// Images that are bases, or will be, whatever they say of themselves.
    bases: BTreeSet<VdiUuid>,
    /// Volumes of images that nobody needs any more, or that are no VDIs yet.
    left: Vec<String>,
    records: OnceCell<Result<Records, String>>,
    nodes: OnceCell<Vec<(VdiUuid, Node)>>,
}

impl<'a> Group<'a> {
    /// Reads the journals of a group, and finds its images.
    pub fn read(own: &'a VolumeGroup, rights: Rights, vg: Vg) -> Group<'a> {
        let mut group = Group {
            devices: Devices::of(&vg),
            own,
            rights,
            vg,
            journals: Vec::new(),
            volumes: BTreeMap::new(),
            bases: BTreeSet::new(),
            left: Vec::new(),
            records: OnceCell::new(),
            nodes: OnceCell::new(),
        };
        let journal = |lv: &Lv| Some((lv.name.clone(), Journal::parse(&lv.name, || group.record_of(lv))?));
        group.journals = group.vg.lvs.iter().filter_map(journal).collect();
        group.find_images();
        group.understand_changes();
        group
    }

    /// The same SR in another report.
    pub fn anew(&self, vg: Vg) -> Group<'a> {
        Group::read(self.own, self.rights, vg)
    }

    pub fn own(&self) -> &'a VolumeGroup {
        self.own
    }

    /// The part of this host in the SR.
    pub fn rights(&self) -> Rights {
        self.rights
    }

    pub fn vg(&self) -> &Vg {
        &self.vg
    }

    /// Whether it is still what the devices say.
    pub fn is_current(&self) -> bool {
        self.devices.are_as(&self.vg)
    }

    /// The changes that were begun, each with the name of its volume.
    pub fn journals(&self) -> &[(String, Journal)] {
        &self.journals
    }

    pub fn volumes(&self) -> &BTreeMap<VdiUuid, Volume> {
        &self.volumes
    }

    /// The volumes of images that are no VDIs: what a change has left, or has not completed.
    pub fn left(&self) -> &[String] {
        &self.left
    }

    fn record_of(&self, lv: &Lv) -> Option<[u8; RECORD]> {
        let mut record = [0; RECORD];
        let volume = self.devices.volume(&self.vg, lv).ok()?;
        (volume.read_at(&mut record, 0).ok()? == RECORD).then_some(record)
    }

    fn find_images(&mut self) {
        let mut old = Vec::new();
        for lv in &self.vg.lvs {
            let Some(name) = VolumeName::parse(&lv.name) else { continue };
            if name.old {
                old.push((name, lv));
                continue;
            }
            let volume = Volume { lv: lv.clone(), format: name.format, double: None, is_elsewhere: false };
            match self.volumes.get_mut(&name.vdi) {
                Some(first) => first.double = Some(lv.name.clone()),
                None => drop(self.volumes.insert(name.vdi, volume)),
            }
        }
        for (name, lv) in old {
            if self.volumes.contains_key(&name.vdi) {
                self.left.push(lv.name.clone());
                continue;
            }
            let volume = Volume { lv: lv.clone(), format: name.format, double: None, is_elsewhere: true };
            self.volumes.insert(name.vdi, volume);
        }
    }

    fn understand_changes(&mut self) {
        for (_, journal) in self.journals.clone() {
            match journal.change {
                Change::Clone(Some(cloned)) => self.understand_clone(journal.vdi, cloned),
                // A journal that was not written yet may hold the record of an older one.
                Change::Leaf(Some(parent))
                    if self.look(journal.vdi).is_some_and(|node| node.parent == Some(parent)) =>
                {
                    self.bases.insert(parent);
                }
                _ => {}
            }
        }
    }

    fn understand_clone(&mut self, disk: VdiUuid, Cloned { base, copy }: Cloned) {
        if !self.volumes.contains_key(&base) {
            return;
        }
        // The leaves are written in this order. One that was not written whole is removed by the recovery.
        let is_undone = self.is_unwritten(disk) || copy.is_some_and(|copy| self.is_unwritten(copy));
        if let Some(copy) = copy.filter(|_| is_undone)
            && let Some(unborn) = self.volumes.remove(&copy)
        {
            self.left.push(unborn.lv.name);
        }
        if !self.is_unwritten(disk) {
            // The children of a base that holds nothing get its parent.
            let parent_of = |vdi| self.look(vdi).map(|node| node.parent);
            let named = parent_of(disk);
            if named == Some(Some(base)) || (named.is_some() && named == parent_of(base)) {
                self.bases.insert(base);
            }
        } else if let Some(mut volume) = self.volumes.remove(&base) {
            volume.lv.tags.retain(|tag| tag != HIDDEN);
            let unborn = self.volumes.insert(disk, Volume { is_elsewhere: true, ..volume });
            self.left.extend(unborn.map(|volume| volume.lv.name));
        }
    }

    /// Whether a VDI has no volume, or one in which there is no image yet. Of a volume that cannot be read that is not known.
    fn is_unwritten(&self, vdi: VdiUuid) -> bool {
        let Some(volume) = self.volumes.get(&vdi) else { return true };
        let query = |image: Mapped| layout(volume.format).query(&image);
        self.image(volume).is_ok_and(|image| matches!(query(image), Err(Error::Damaged { .. })))
    }

    /// The image of a VDI, as it says itself. `None`: it cannot be read.
    fn look(&self, vdi: VdiUuid) -> Option<Node> {
        self.volumes.get(&vdi).and_then(|volume| self.query(vdi, volume, &self.image(volume).ok()?).ok())
    }

    fn query(&self, vdi: VdiUuid, volume: &Volume, image: &Mapped) -> Result<Node> {
        let info = layout(volume.format).query(image)?;
        let mut node = Node::of(vdi, volume.format, info, image.path(), |name| possible_parent(name, volume.format))?;
        node.hidden = node.hidden || self.hides(vdi, volume);
        Ok(node)
    }

    /// Whether something else than the image says that it is there for its children only.
    fn hides(&self, vdi: VdiUuid, volume: &Volume) -> bool {
        let is_tagged = volume.format == Format::Raw && volume.lv.tags.iter().any(|tag| tag == HIDDEN);
        is_tagged || self.bases.contains(&vdi)
    }

    /// As [`Group::hides`], of the image of a VDI.
    pub fn is_base(&self, vdi: VdiUuid) -> bool {
        self.volumes.get(&vdi).is_some_and(|volume| self.hides(vdi, volume))
    }

    /// The bytes of an image.
    ///
    /// # Errors
    /// Those of [`Devices::volume`].
    pub fn image(&self, volume: &Volume) -> Result<Mapped> {
        let mapped = self.devices.volume(&self.vg, &volume.lv)?;
        let zeroed = |(_, journal): &(String, Journal)| match journal.change {
            Change::Zero(from) if volume.lv.name == format!("LV-{}", journal.vdi) => Some(from),
            _ => None,
        };
        Ok(match self.journals.iter().find_map(zeroed) {
            Some(from) => mapped.cut_to(from),
            None => mapped,
        })
    }

    /// The bytes of a volume, to be read.
    ///
    /// # Errors
    /// Those of [`Devices::volume`].
    pub fn storage(&self, lv: &Lv) -> Result<Mapped> {
        self.devices.volume(&self.vg, lv)
    }

    /// The bytes of a volume, to be written to.
    ///
    /// # Errors
    /// Those of [`Devices::volume`].
    pub fn storage_for_writing(&self, lv: &Lv) -> Result<Mapped> {
        Devices::for_writing(&self.vg).volume(&self.vg, lv)
    }

    /// The size that a volume has that is to hold so many bytes.
    pub fn round(&self, bytes: u64) -> u64 {
        bytes.checked_next_multiple_of(self.vg.extent_size).unwrap_or(u64::MAX)
    }

    /// Whether disks that are not attached take no more space than they hold. `MGT` says it.
    pub fn is_thin(&self) -> bool {
        self.records().is_ok_and(|records| records.allocation == "thin")
    }

    /// The change that was begun of a VDI, in words: its volume may get another name, or other contents.
    pub fn begun(&self, vdi: VdiUuid) -> Option<String> {
        let found = self.journals.iter().find(|(_, journal)| journal.vdi == vdi);
        let is_elsewhere = self.volumes.get(&vdi).is_some_and(|volume| volume.is_elsewhere);
        found
            .map(|(_, journal)| journal.what())
            .or_else(|| is_elsewhere.then(|| "its volume is to get another name".to_owned()))
    }

    /// The volume with the log of changed blocks that a Python driver keeps of a VDI.
    pub fn log_of(&self, vdi: VdiUuid) -> Option<&Lv> {
        self.vg.lv(&format!("{vdi}.cbtlog"))
    }

    /// The volume with the image of a VDI.
    ///
    /// # Errors
    /// [`Error::NoVdi`].
    pub fn volume(&self, vdi: VdiUuid) -> Result<&Volume> {
        self.volumes.get(&vdi).ok_or_else(|| Error::NoVdi { vdi, sr: self.own.sr, looked: self.vg.name.clone() })
    }

    /// Refuses a VDI that two volumes are named as.
    ///
    /// # Errors
    /// [`Error::Damaged`].
    pub fn refuse_double(&self, vdi: VdiUuid) -> Result<()> {
        let Some(volume) = self.volumes.get(&vdi) else { return Ok(()) };
        match &volume.double {
            None => Ok(()),
            Some(double) => Err(Error::Damaged {
                path: lvm::node(&self.vg.name, &volume.lv.name),
                what: format!("the volume {double} is named as the same VDI"),
            }),
        }
    }

    /// What `MGT` says.
    ///
    /// # Errors
    /// Why it cannot be read, as a clause.
    pub fn records(&self) -> Result<&Records, &str> {
        self.records.get_or_init(|| self.read_records()).as_ref().map_err(String::as_str)
    }

    fn read_records(&self) -> Result<Records, String> {
        let lv = self.vg.lv(MGT).ok_or_else(|| "there is none".to_owned())?;
        let volume = self.devices.volume(&self.vg, lv).map_err(|error| one_line(&error))?;
        let failed = |error: std::io::Error| format!("cannot read it: {error}");
        let mut first = [0; mgt::SECTOR];
        volume.read_at(&mut first, 0).map_err(failed)?;
        let length = mgt::in_use(&first).ok_or_else(|| "its first sector makes no sense".to_owned())?;
        let mut bytes = Buffer::new(length.min(lv.size).min(mgt::LONGEST) as usize);
        volume.read_at(&mut bytes, 0).map_err(failed)?;
        Ok(Records::parse(&bytes))
    }

    /// The names and the origin of a VDI. Where `MGT` does not tell, the time is that of a volume that never was another's.
    pub fn params(&self, vdi: VdiUuid) -> Params {
        let volume = self.volumes.get(&vdi);
        let kept = self.records().ok().and_then(|records| records.vdis.get(&vdi)).map(|record| record.params.clone());
        let is_read_only = volume.is_some_and(|volume| volume.lv.read_only);
        let params = kept.unwrap_or_default();
        let created = params.created.or_else(|| volume?.lv.created.filter(|_| volume.is_some_and(is_alone)));
        Params { read_only: params.read_only || is_read_only, created, ..params }
    }

    /// Every image, with its state. Each header is read once.
    pub fn nodes(&self) -> &[(VdiUuid, Node)] {
        self.nodes.get_or_init(|| {
            let volumes: Vec<(VdiUuid, &Volume)> = self.volumes.iter().map(|(vdi, volume)| (*vdi, volume)).collect();
            let known = self.nodes_by_heads(&volumes);
            let node = |((vdi, volume), known): ((VdiUuid, &Volume), Option<Node>)| {
                (vdi, known.unwrap_or_else(|| self.node(vdi, volume, self.image(volume))))
            };
            let mut nodes: Vec<(VdiUuid, Node)> = volumes.into_iter().zip(known).map(node).collect();
            judge(&mut nodes.iter_mut().map(|(vdi, node)| (*vdi, node)).collect::<Vec<_>>(), &|_| None);
            nodes
        })
    }

    /// The nodes of those volumes whose first bytes could be read, many at a time: a device far away takes its time for each. What was
    /// read is forgotten at once: another look at the images may follow a change.
    fn nodes_by_heads(&self, volumes: &[(VdiUuid, &Volume)]) -> Vec<Option<Node>> {
        /// Fewer are read as they come.
        const FEW: usize = 4;
        let mut nodes = vec![None; volumes.len()];
        if volumes.len() > FEW {
            let image = |(n, (_, volume)): (usize, &(VdiUuid, &Volume))| Some((n, self.image(volume).ok()?));
            let images: Vec<(usize, Mapped)> = volumes.iter().enumerate().filter_map(image).collect();
            let mut places: Vec<((&File, u64), usize, &Mapped)> =
                images.iter().filter_map(|(n, image)| Some((image.first_page()?, *n, image))).collect();
            places.sort_unstable_by_key(|((file, from), ..)| (file.as_raw_fd(), *from));
            let pages: Vec<(&File, u64)> = places.iter().map(|(place, ..)| *place).collect();
            aio::pages(&pages, |at, head| {
                let (_, n, image) = places[at];
                let (vdi, volume) = volumes[n];
                nodes[n] = Some(self.node(vdi, volume, Ok(image.clone().with_head(Arc::from(head)))));
            });
        }
        nodes
    }

    /// All images as trees.
    pub fn trees(&self) -> Nodes {
        self.nodes().iter().cloned().collect()
    }

    /// An image, with a state if it cannot be read. The parent that a damaged one names is told as far as it can be read.
    fn node(&self, vdi: VdiUuid, volume: &Volume, image: Result<Mapped>) -> Node {
        let looked = self.refuse_double(vdi).and_then(|()| self.query(vdi, volume, &image?));
        looked.unwrap_or_else(|error| {
            let named = self.image(volume).ok().map(|image| layout(volume.format).named_parent(&image));
            let parent = named.and_then(|named| possible_parent(&named.name?, volume.format));
            let unread = Vec::from_iter(parent.is_none().then_some(volume.format));
            let hidden = self.hides(vdi, volume);
            Node { state: State::of(&error), parent, unread, hidden, ..Node::alone(volume.format, 0) }
        })
    }

    /// Whether every image can be used.
    pub fn is_whole(&self) -> bool {
        self.nodes().iter().all(|(_, node)| node.state.is_healthy())
    }

    /// Whether the volumes with the images of these VDIs are in `now` what they are here: nothing was made smaller, removed, or put
    /// elsewhere. A volume may have become larger.
    pub fn keeps(&self, vdis: &[VdiUuid], now: &Vg) -> bool {
        vdis.iter().filter_map(|vdi| self.volumes.get(vdi)).all(|volume| {
            let lv = now.lv(&volume.lv.name);
            lv.is_some_and(|lv| volume.lv.segments.iter().all(|segment| is_within(segment, &lv.segments)))
        })
    }
}

/// Whether the extents of `segment` are still where they were.
fn is_within(segment: &Segment, now: &[Segment]) -> bool {
    let mut at = segment.start;
    while at < segment.start + segment.count {
        let Some(found) = now.iter().find(|found| (found.start..found.start + found.count).contains(&at)) else {
            return false;
        };
        let place = |of: &Segment| of.on.as_ref().map(|(device, first)| (device.clone(), first + (at - of.start)));
        if place(segment) != place(found) {
            return false;
        }
        at = found.start + found.count;
    }
    true
}

/// Whether a volume is as it was made for its VDI: a leaf of a tree is made anew by each snapshot.
fn is_alone(volume: &Volume) -> bool {
    volume.format == Format::Raw && !volume.lv.read_only
}

/// The VDI that an image of format `child` calls by a name. `None`: such an image is no parent of this one.
pub fn possible_parent(name: &str, child: Format) -> Option<VdiUuid> {
    let is_fit = |parent: &VolumeName| child != Format::Raw && [child, Format::Raw].contains(&parent.format);
    VolumeName::of_path(name).filter(is_fit).map(|parent| parent.vdi)
}
