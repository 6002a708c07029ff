//! Trees of images: the policy for every SR that keeps them.
//!
//! | file | what |
//! |---|---|
//! | [`forest`] | the contract: what an SR adds |
//! | [`nodes`] | the trees as a value, read once |
//! | [`claims`] | images that may be needed by one that is not among their children |
//! | [`change`] | the intents that are recorded |
//! | [`chain`] | one chain, header by header |
//! | [`changed`] | what differs between two disks of one tree |
//! | [`mod@fork`] | snapshot and clone |
//! | [`mod@compose`] | a disk gets another disk as its parent |
//! | [`mod@revert`] | a disk goes back to a snapshot |
//! | [`mod@merge`] | an image goes into its parent |
//! | [`mod@next`] | what is merged or removed next |
//! | [`mod@collect`] | the collector: merges and removes until nothing is left to do |
//! | `parallel` | independent trees are merged at the same time |
//! | `together` | the last steps of their merges are taken by one thread for all that wait |
//! | [`run`] | one run of the collector: who may end it, its rate, who is told |
//! | [`mod@shorten`] | a chain that is full gets room for a snapshot |
//! | [`stop`] | a call ends the collector |
//! | [`mod@gain`], [`extents`] | the space that a deletion or the collector would free |
//! | [`mod@lend`] | a disk is read while other hosts are kept from changing it |

pub mod chain;
pub mod change;
pub mod changed;
pub mod claims;
pub mod collect;
pub mod compose;
pub mod extents;
pub mod forest;
pub mod fork;
pub mod gain;
pub mod lend;
pub mod merge;
pub mod next;
pub mod nodes;
mod parallel;
pub mod reset;
pub mod revert;
pub mod run;
pub mod shorten;
pub mod stop;
mod together;
