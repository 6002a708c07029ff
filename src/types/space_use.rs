//! The space of an SR, image by image.

use super::{SrInfo, VdiInfo, VdiUuid};

/// An SR, and for each of its images what the image holds and what a deletion would free. Sizes are bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpaceUse {
    /// The SR with every VDI's details.
    pub sr: SrInfo,
    /// Empty if nothing was asked of each image. Disks first, those before that free more; then bases, and images that nothing needs.
    pub images: Vec<ImageUse>,
    /// The gain of sr_collect if it ran now.
    pub collectable: Gain,
}

/// The space of one image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageUse {
    /// The image. An image that nothing needs is in no listing of the SR: no more than this is known of it.
    pub info: VdiInfo,
    /// Bytes that no other image shares.
    pub holds: u64,
    /// Bytes that vdi_delete frees: what the image holds, and the bases that nothing needs without it. `None` for an image
    /// that cannot be deleted by itself.
    pub frees: Option<u64>,
    /// Whether `holds` and `frees` are exact. Otherwise they are upper limits.
    pub is_exact: bool,
    /// About how many bytes more sr_collect would free after the deletion.
    pub merge_frees: u64,
    /// The disks that read through a base.
    pub disks: usize,
}

/// The gain of the collector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gain {
    /// Bytes that would be free. A merge is estimated by the tables of its images.
    pub bytes: u64,
    /// Bases that would be removed, because nothing needs them.
    pub removed: usize,
    /// Images that would be merged with their parents.
    pub merged: usize,
}

impl SpaceUse {
    /// The space of an SR without trees: each disk is by itself. `each`: tells of each disk. `is_exact`: no two disks share
    /// extents.
    pub fn of_disks(sr: SrInfo, each: bool, is_exact: bool) -> SpaceUse {
        let alone = |info: &VdiInfo| ImageUse {
            holds: info.physical_utilisation,
            frees: Some(info.physical_utilisation),
            is_exact,
            merge_frees: 0,
            disks: 0,
            info: info.clone(),
        };
        let images = sr.vdis.iter().filter(|_| each).map(alone).collect();
        SpaceUse { images, sr, collectable: Gain::default() }.ordered()
    }

    /// The images in the order that [`SpaceUse::images`] promises.
    pub fn ordered(mut self) -> SpaceUse {
        let key = |image: &ImageUse| {
            (image.info.hidden, std::cmp::Reverse(image.frees.unwrap_or(image.holds)), image.info.uuid)
        };
        self.images.sort_by_key(key);
        self
    }

    /// Images from the root to the leaf of the longest chain.
    pub fn longest_chain(&self) -> usize {
        let parents: std::collections::HashMap<VdiUuid, Option<VdiUuid>> =
            self.sr.vdis.iter().map(|vdi| (vdi.uuid, vdi.parent)).collect();
        let depth = |vdi: &VdiInfo| {
            let up = std::iter::successors(Some(vdi.uuid), |at| parents.get(at).copied().flatten());
            // Images that name each other as parents have no end.
            up.take_while(|at| parents.contains_key(at)).take(parents.len()).count()
        };
        self.sr.vdis.iter().filter(|vdi| vdi.children.is_empty()).map(depth).max().unwrap_or(0)
    }
}
