//! What is wrong with an LVHD SR.

use std::sync::Arc;

use super::group::Volume;
use super::journal::Change;
use super::mgt::vdi_type;
use super::{Lvhd, MGT, journal};
use crate::error::{Error, Result, one_line};
use crate::image::fault::{Look, Weight};
use crate::image::storage::Storage;
use crate::image::volume::VolumeName;
use crate::sr::driver::finding_of_state;
use crate::sr::volume_group::trim;
use crate::types::{Finding, Outcome, State, VdiUuid};
use crate::vdi::layout;
use crate::vdi::tree::nodes::Node;

/// Who mends what is found.
const BY_MASTER: &str = "the next call that changes the SR on its master ends that";

fn finding(vdi: Option<VdiUuid>, object: &str, outcome: Outcome, what: impl Into<String>) -> Finding {
    Finding { vdi, object: object.to_owned(), label: String::new(), what: what.into(), outcome }
}

impl Lvhd<'_> {
    /// Looks at the volumes, `MGT` and each image, see [`crate::sr::Sr::check`].
    ///
    /// # Errors
    /// None because of one volume.
    pub fn check(&self, thorough: bool) -> Result<Vec<Finding>> {
        let group = self.live.now();
        let mut found = self.of_journals();
        found.extend(self.of_names());
        found.extend(self.of_records());
        for (vdi, node) in group.nodes() {
            found.extend(self.of_image(*vdi, node, group.volume(*vdi)?, thorough)?);
        }
        Ok(found)
    }

    fn of_journals(&self) -> Vec<Finding> {
        let group = self.live.now();
        let say = |(name, journal): &(String, super::journal::Journal)| {
            let outcome = match journal.change {
                Change::Clone(None) | Change::Leaf(None) => Outcome::Lasting,
                _ => Outcome::Note,
            };
            finding(Some(journal.vdi), name, outcome, format!("{}; {BY_MASTER}", journal.what()))
        };
        group.journals().iter().map(say).collect()
    }

    fn of_names(&self) -> Vec<Finding> {
        let group = self.live.now();
        let left = group.left().iter().map(|name| {
            let what = format!("a change that was begun, or ended, left it; {BY_MASTER}");
            finding(VolumeName::parse(name).map(|name| name.vdi), name, Outcome::Note, what)
        });
        let trimmed = group.vg().lvs.iter().filter(|lv| trim::is_volume(&lv.name)).map(|lv| {
            let what = format!("an sr_trim has free space in it, or was killed; {BY_MASTER}");
            finding(None, &lv.name, Outcome::Note, what)
        });
        let is_known = |name: &str| {
            let of_vdi = |end: &str| name.strip_suffix(end).is_some_and(|uuid| uuid.parse::<VdiUuid>().is_ok());
            name == MGT
                || VolumeName::parse(name).is_some()
                || group.journals().iter().any(|(journal, _)| journal == name)
                || of_vdi(".cbtlog")
                || name.strip_prefix("NEW-").is_some_and(|uuid| uuid.parse::<VdiUuid>().is_ok())
                || journal::is_unwritten(name)
                || trim::is_volume(name)
        };
        let unknown = group
            .vg()
            .lvs
            .iter()
            .filter(|lv| !is_known(&lv.name))
            .map(|lv| finding(None, &lv.name, Outcome::Note, "no volume of an SR has such a name"));
        left.chain(trimmed).chain(unknown).collect()
    }

    fn of_records(&self) -> Vec<Finding> {
        let group = self.live.now();
        let records = match group.records() {
            Ok(records) => records,
            Err(why) => return vec![finding(None, MGT, Outcome::Lasting, format!("the names cannot be read: {why}"))],
        };
        let mut found = Vec::new();
        if records.unreadable > 0 {
            let what = format!("{} of its records cannot be read", records.unreadable);
            found.push(finding(None, MGT, Outcome::Lasting, what));
        }
        for (vdi, record) in &records.vdis {
            match group.volumes().get(vdi) {
                None => {
                    found.push(finding(Some(*vdi), MGT, Outcome::Note, "it has a record of a VDI without a volume"))
                }
                Some(volume) if record.vdi_type != vdi_type(volume.format) => {
                    let what = format!("it says {:?} for the format of a {} volume", record.vdi_type, volume.format);
                    found.push(finding(Some(*vdi), MGT, Outcome::Note, what));
                }
                Some(_) => {}
            }
        }
        found
    }

    fn of_image(&self, vdi: VdiUuid, node: &Node, volume: &Volume, thorough: bool) -> Result<Vec<Finding>> {
        let (group, name) = (self.live.now(), &volume.lv.name);
        let mut found = Vec::new();
        if volume.is_elsewhere {
            let what = format!("it has the data of VDI {vdi}, of which a change was begun; {BY_MASTER}");
            found.push(finding(Some(vdi), name, Outcome::Note, what));
        }
        if !node.state.is_healthy() {
            found.push(finding_of_state(vdi, name.clone(), &node.state));
        }
        if matches!(node.state, State::Broken(_) | State::Unsupported(_)) {
            return Ok(found);
        }
        if node.hidden && group.trees().children(vdi).len() == 0 {
            found.push(finding(
                Some(vdi),
                name,
                Outcome::Note,
                "it is a base without children; sr_collect on the SR's master removes it",
            ));
        }
        let image: Arc<dyn Storage> = Arc::new(group.image(volume)?);
        match layout(volume.format).check(&image, Look { in_use: volume.lv.open, deep: thorough }) {
            Ok(faults) => found.extend(faults.into_iter().map(|fault| {
                let (outcome, what) = match fault.weight {
                    Weight::Note => (Outcome::Note, fault.what),
                    Weight::Mendable => (Outcome::Mendable, fault.what),
                    Weight::Lasting => (Outcome::Lasting, fault.what),
                };
                finding(Some(vdi), name, outcome, what)
            })),
            Err(error @ Error::Io { .. }) => {
                found.push(finding(Some(vdi), name, Outcome::Lasting, one_line(&error)));
            }
            Err(other) => return Err(other),
        }
        Ok(found)
    }
}
