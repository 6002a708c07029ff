//! The SR and its disks as an answer.

use std::collections::HashMap;

use super::Lvhd;
use super::place::LvhdPlace;
use crate::error::Result;
use crate::types::{Format, SrInfo, VdiInfo, VdiUuid};
use crate::vdi::tree::nodes::Node;
use crate::vdi::{self, Attachments, Place};

impl Lvhd<'_> {
    /// The SR without the details of its disks.
    pub fn stat(&self, sr_type: &str) -> SrInfo {
        let group = self.live.now();
        let (own, vg) = (group.own(), group.vg());
        let visible = || group.nodes().iter().filter(|(_, node)| !node.hidden);
        SrInfo {
            uuid: own.sr,
            vdi_uuids: visible().map(|(vdi, _)| *vdi).collect(),
            physical_utilisation: group.volumes().values().map(|volume| volume.lv.size).sum(),
            virtual_allocation: visible().map(|(_, node)| node.virtual_size).sum(),
            size: vg.size,
            free: own.free(vg),
            sr_type: sr_type.to_owned(),
            location: own.location(vg),
            slot: None,
            pool: None,
            vdis: Vec::new(),
            logs: None,
            kept: group.records().ok().map(|records| records.kept()),
        }
    }

    /// The SR with every disk's details. A base without children is left out: the SR's master removes it.
    ///
    /// # Errors
    /// [`crate::Error::Io`] if the kernel's list of devices cannot be read.
    pub fn scan(&self, sr_type: &str) -> Result<SrInfo> {
        let vdis = self.disks()?;
        Ok(SrInfo { vdis, ..self.stat(sr_type) })
    }

    /// Every disk, and every base that has a child.
    ///
    /// # Errors
    /// [`crate::Error::Io`] if the kernel's list of devices cannot be read.
    pub fn disks(&self) -> Result<Vec<VdiInfo>> {
        let group = self.live.now();
        let mut children: HashMap<VdiUuid, Vec<VdiUuid>> = HashMap::new();
        for (vdi, node) in group.nodes() {
            if let Some(parent) = node.parent {
                children.entry(parent).or_default().push(*vdi);
            }
        }
        let attachments = Attachments::now()?;
        let mut disks = Vec::with_capacity(group.nodes().len());
        for (vdi, node) in group.nodes() {
            let children = children.remove(vdi).unwrap_or_default();
            if node.hidden && children.is_empty() {
                continue;
            }
            disks.push(self.describe(*vdi, node, children, &attachments)?);
        }
        Ok(disks)
    }

    pub(super) fn describe(
        &self,
        vdi: VdiUuid,
        node: &Node,
        children: Vec<VdiUuid>,
        attachments: &Attachments,
    ) -> Result<VdiInfo> {
        let place = LvhdPlace::of(self.live.clone(), vdi)?;
        let device = match node.format {
            Format::Raw => {
                if self.live.now().volume(vdi)?.lv.open {
                    place.device()?
                } else {
                    None
                }
            }
            _ => attachments.served(&place.path()),
        };
        let info = vdi::describe(&place, node, place.size(), self.live.now().params(vdi));
        let cbt_enabled = self.live.now().log_of(vdi).is_some();
        let info = VdiInfo { cbt_enabled, ..info };
        let died = attachments.server_died(node.format, &place.path());
        Ok(vdi::with_server(info.with_children(children).with_device(device), died))
    }
}
