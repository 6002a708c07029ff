//! The changes of a tree that take more than one atomic step. The intent of each is recorded before its first step, so that
//! a kill in between is completed or undone.
//!
//! How a substrate records a change and takes its steps is its own business. Every `match` on a change names every change:
//! a new one is then a question of the compiler at each place.

use serde::{Deserialize, Serialize};

use crate::types::{Format, VdiUuid};

/// Which change of a tree is under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// The image of `vdi` becomes `base`, with a new child under its own name and one as the VDI `dest` if that is given.
    Fork { vdi: VdiUuid, base: VdiUuid, dest: Option<VdiUuid>, format: Format },
    /// The children of `vdi` become those of `base`, its parent, and `vdi` goes. `between`: images of the same format that are between
    /// the two, from `base` upwards, and go as well.
    Relink {
        vdi: VdiUuid,
        base: VdiUuid,
        format: Format,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        between: Vec<VdiUuid>,
    },
    /// `base` takes the place of `vdi`, its only child. `between`: as of a relink, `vdi` being the only child of the last.
    Collapse {
        vdi: VdiUuid,
        base: VdiUuid,
        format: Format,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        between: Vec<VdiUuid>,
    },
    /// `base`, a disk until now, becomes the parent of the disk `vdi`.
    Compose { vdi: VdiUuid, base: VdiUuid, format: Format },
    /// The ends of merges in several trees, each a relink or a collapse.
    Merges { of: Vec<Change> },
}

impl Change {
    /// The disks whose images are replaced under their names.
    pub fn replaced(&self) -> Vec<VdiUuid> {
        match self {
            Change::Fork { vdi, .. } | Change::Collapse { vdi, .. } => vec![*vdi],
            Change::Relink { .. } | Change::Compose { .. } => Vec::new(),
            Change::Merges { of } => of.iter().flat_map(Change::replaced).collect(),
        }
    }

    /// The bases that are no disks although their images may not say so at this moment.
    pub fn hides(&self) -> Vec<VdiUuid> {
        match self {
            Change::Fork { base, .. } | Change::Collapse { base, .. } => vec![*base],
            Change::Relink { .. } | Change::Compose { .. } => Vec::new(),
            Change::Merges { of } => of.iter().flat_map(Change::hides).collect(),
        }
    }
}
