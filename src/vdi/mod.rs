//! WHAT a disk is: the formats, each written once for every SR, and the policy for disks and trees of them.
//!
//! An SR hands a disk its [`Place`], a file or a logical volume, and, if it keeps trees, its
//! [`tree::forest::Forest`]; this module does the rest. Adding a format: one file here with its [`Layout`], its line in
//! [`formats`], its `Format` variant, and an arm of each `match` on formats that the compiler names. `CONTRIBUTING.md` says
//! which.
//!
//! | file | what |
//! |---|---|
//! | [`place`], [`mod@format`], [`disk`], [`tree::forest`] | the contracts: where a disk lives, what an image can do, what a disk can do, what an SR adds to trees |
//! | [`raw`], [`vhd`], [`qcow2`] | the formats |
//! | [`mod@raw`], [`cow`] | a disk alone, and a disk in a tree |
//! | [`holders`], [`attached`], [`served`] | the users of a disk: by the persistent lock, as the kernel knows them, through a server |
//! | [`cbt`] | which blocks of a disk were written between its snapshots |
//! | [`transfer`] | disks in and out |

pub mod attached;
pub mod cbt;
pub mod cow;
pub mod disk;
pub mod format;
pub mod formats;
pub mod holders;
pub mod place;
pub mod qcow2;
pub mod raw;
pub mod served;
pub mod transfer;
pub mod tree;
pub mod vhd;

pub use attached::Attachments;
pub use disk::{
    SinceReader, SnapshotSaid, Vdi, attach, attach_for_guest, deleted, describe, has_now, made, refuse_if_attached,
    refuse_if_elsewhere, refuse_if_read_only, refuse_if_used, refuse_snapshot_of_another, reverted, with_server,
};
pub use format::Layout;
pub use formats::layout;
pub use holders::{DELETING, refuse_if_locked};
pub use place::{Accept, Changed, Holders, Opened, Place, Usage, in_use, refuse_device};

use crate::types::Format;
use tree::forest::Forest;

/// The disk in a place of an SR that keeps trees of images.
pub fn open<'a>(place: impl Place + 'a, forest: Box<dyn Forest + 'a>) -> Box<dyn Vdi + 'a> {
    match place.format() {
        Format::Raw => raw::open(place, Some(forest)),
        Format::Vhd | Format::Qcow2 => cow::open(place, forest),
    }
}
