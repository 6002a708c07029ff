//! The space of an LVHD SR, image by image. A volume has its extents to itself, so what an image holds is exact.

use std::collections::HashMap;

use super::Lvhd;
use crate::error::Result;
use crate::types::{SpaceUse, VdiInfo, VdiUuid};
use crate::vdi::Attachments;
use crate::vdi::tree::collect::steps;
use crate::vdi::tree::forest::Forest;
use crate::vdi::tree::gain::{Tables, of_deletions, of_steps, use_of};

impl Lvhd<'_> {
    /// See [`crate::sr::Sr::space_use`]. The tables of those images are read that a deletion or the collector would merge.
    ///
    /// # Errors
    /// Those of [`Lvhd::scan`].
    pub fn space_use(&self, sr_type: &str, each: bool) -> Result<SpaceUse> {
        let sr = self.scan(sr_type)?;
        let (forest, group) = (self.forest(), self.live.now());
        let nodes = forest.nodes()?;
        let size = |vdi: VdiUuid| group.volume(vdi).map_or(0, |volume| volume.lv.size);
        let tables = Tables::of(&forest);
        let held = |vdi: VdiUuid| tables.held(vdi);
        let collectable = of_steps(&steps(nodes.clone()), &size, &held);
        if !each {
            return Ok(SpaceUse { images: Vec::new(), sr, collectable });
        }
        let freed = of_deletions(&nodes, &size, &held);
        let attachments = Attachments::now()?;
        let listed: HashMap<VdiUuid, &VdiInfo> = sr.vdis.iter().map(|info| (info.uuid, info)).collect();
        let mut images = Vec::new();
        for (vdi, node) in nodes.iter() {
            let info = match listed.get(&vdi) {
                Some(info) => (*info).clone(),
                // A base that nothing needs is in no listing.
                None => self.describe(vdi, node, Vec::new(), &attachments)?,
            };
            images.push(use_of(info, &nodes, freed.get(&vdi).copied(), size(vdi), true));
        }
        Ok(SpaceUse { images, sr, collectable }.ordered())
    }
}
