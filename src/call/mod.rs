//! The operations on an SR: the verbs of the API, the locks that each takes, and the policy that all agents need.
//!
//! Doors know no driver, drivers know no protocol: a [`Session`] is what stands between them.
//!
//! | file | what |
//! |---|---|
//! | [`session`] | an SR that is open, and how each operation on it is carried out |
//! | `sr`, `vdi` | the verbs |
//! | `trees` | the verbs that give a disk another place in its tree |
//! | `held` | VDIs that a caller keeps for longer than one verb |
//! | `cbt` | those of changed block tracking |
//! | `room` | a chain that is full gets room for a copy |
//! | `locks` | which locks a verb takes on this host |
//! | [`policy`] | what may be deleted, taken over and changed by whom, and where secrets come from |

mod cbt;
mod held;
mod locks;
pub mod policy;
mod room;
pub mod session;
mod sr;
mod trees;
mod vdi;

pub use self::held::Held;
pub use self::session::Session;
pub use self::sr::Disks;
pub use self::vdi::{Copied, Unreadable};
