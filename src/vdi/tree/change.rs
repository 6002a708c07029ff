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
    /// The children of `vdi` become those of `base`, its parent, and `vdi` goes.
    Relink { vdi: VdiUuid, base: VdiUuid, format: Format },
    /// `base` takes the place of `vdi`, its only child.
    Collapse { vdi: VdiUuid, base: VdiUuid, format: Format },
    /// `base`, a disk until now, becomes the parent of the disk `vdi`.
    Compose { vdi: VdiUuid, base: VdiUuid, format: Format },
}

impl Change {
    /// The disk whose image is replaced under its name.
    pub fn replaced(&self) -> Option<VdiUuid> {
        match self {
            Change::Fork { vdi, .. } | Change::Collapse { vdi, .. } => Some(*vdi),
            Change::Relink { .. } | Change::Compose { .. } => None,
        }
    }

    /// The base that is no disk although its image may not say so at this moment.
    pub fn hides(&self) -> Option<VdiUuid> {
        match self {
            Change::Fork { base, .. } | Change::Collapse { base, .. } => Some(*base),
            Change::Relink { .. } | Change::Compose { .. } => None,
        }
    }
}
