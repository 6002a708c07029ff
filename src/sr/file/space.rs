//! The space of a file SR, image by image: what each holds alone, and what its deletion would free.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::directory::FileSr;
use super::images::{Image, readers};
use crate::error::{Error, Result};
use crate::image::storage::{FileStorage, Storage};
use crate::sys::durable::Dir;
use crate::sys::{shared, threads};
use crate::types::{ImageUse, Params, SpaceUse, State, VdiInfo, VdiUuid};
use crate::vdi::tree::collect::steps;
use crate::vdi::tree::gain::{Freed, Tables, of_deletions, of_steps, use_of};
use crate::vdi::tree::nodes::Nodes;
use crate::vdi::{self, layout};

impl FileSr {
    /// The SR, the gain of the collector and, if `each` is set, the space of each image. The images are looked at once; of
    /// those that would be merged, now or after a deletion, the tables are read too, and of all others the first one.
    ///
    /// # Errors
    /// [`crate::Error::NoSr`], [`crate::Error::Io`]; [`crate::Error::Busy`] if a change of a tree goes on past the deadline.
    pub(super) fn space_by_image(&self, each: bool) -> Result<SpaceUse> {
        let dir = self.dir()?;
        let (listing, images) = self.settled(&dir)?;
        let mut sr = self.described(&dir, &listing, &images)?;
        let of_trees = images.iter().filter(|image| !layout(image.format).is_by_length());
        let nodes: Nodes = of_trees.map(|image| (image.vdi, image.node.clone())).collect();
        let nodes = nodes.with_foreign_work(listing.journals);
        let shared = if each { shared_by_each(&dir, &images) } else { vec![Some(0); images.len()] };
        let own = |image: &Image, shared: Option<u64>| image.usage.allocated.saturating_sub(shared.unwrap_or(0));
        let sizes: HashMap<VdiUuid, u64> =
            images.iter().zip(&shared).map(|(image, shared)| (image.vdi, own(image, *shared))).collect();
        let size = |vdi: VdiUuid| sizes.get(&vdi).copied().unwrap_or(0);
        let forest = self.forest(dir.clone());
        let tables = Tables::of(&forest);
        let held = |vdi: VdiUuid| tables.held(vdi);
        let collectable = of_steps(&steps(nodes.clone()), &size, &held);
        let freed = if each { of_deletions(&nodes, &size, &held) } else { BTreeMap::new() };
        let mut damaged = tables.damaged();
        damaged.extend(damaged_by_table(&dir, &images));
        for info in sr.vdis.iter_mut().filter(|info| info.state.is_healthy()) {
            info.state = damaged.get(&info.uuid).cloned().unwrap_or_default();
        }
        if !each {
            return Ok(SpaceUse { images: Vec::new(), sr, collectable });
        }
        let parents: HashSet<VdiUuid> = images.iter().filter_map(|image| image.node.parent).collect();
        let mut infos: HashMap<VdiUuid, &VdiInfo> = sr.vdis.iter().map(|info| (info.uuid, info)).collect();
        let uses = images.iter().zip(&shared).map(|(image, shared)| {
            let nobodys = || {
                let place = self.place(dir.clone(), image.vdi, image.format);
                vdi::describe(&place, &image.node, image.usage.allocated, Params::default())
            };
            let holds = size(image.vdi);
            let is_alone = layout(image.format).is_by_length() && !parents.contains(&image.vdi);
            let of = freed.get(&image.vdi).copied().or(is_alone.then(Freed::default));
            let info = infos.remove(&image.vdi).map_or_else(nobodys, VdiInfo::clone);
            use_of(info, &nodes, of, holds, shared.is_some())
        });
        let images: Vec<ImageUse> = uses.collect();
        Ok(SpaceUse { images, sr, collectable }.ordered())
    }
}

/// The images whose first table tells that they cannot be used: one read of each.
fn damaged_by_table(dir: &Dir, images: &[Image]) -> Vec<(VdiUuid, State)> {
    let of = |image: &Image| {
        let name = super::layout::image_name(image.vdi, image.format);
        let look = || {
            let Some(file) = dir.try_open_record(&name)? else { return Ok(()) };
            let storage: Arc<dyn Storage> = Arc::new(FileStorage::of_regular(file, dir.join(&name)));
            layout(image.format).refuse_damaged(&storage)
        };
        // A server may be writing the table: what is damaged is so at a second look as well.
        match look().or_else(|_| look()) {
            Err(error @ Error::Damaged { .. }) => Some((image.vdi, State::of(&error))),
            _ => None,
        }
    };
    let of_trees = |image: &&Image| !layout(image.format).is_by_length() && image.node.state.is_healthy();
    let part = |part: &[Image]| part.iter().filter(of_trees).filter_map(of).collect::<Vec<_>>();
    threads::in_parts(images, readers(images.len()), part).into_iter().flatten().collect()
}

/// Bytes that each image shares with other files. `None`: the filesystem may share them, and does not tell.
fn shared_by_each(dir: &Dir, images: &[Image]) -> Vec<Option<u64>> {
    if !shared::may_share(dir) {
        return vec![Some(0); images.len()];
    }
    let of = |image: &Image| {
        let name = super::layout::image_name(image.vdi, image.format);
        let file = dir.try_open_record(&name).ok().flatten()?;
        shared::shared_bytes(&file, &dir.join(&name)).ok().flatten()
    };
    let parts = threads::in_parts(images, readers(images.len()), |part| part.iter().map(of).collect::<Vec<_>>());
    parts.into_iter().flatten().collect()
}
