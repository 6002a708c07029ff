//! Trees of images: the policy for every SR that keeps them.
//!
//! | file | what |
//! |---|---|
//! | [`forest`] | the contract: what an SR adds |
//! | [`nodes`] | the trees as a value, read once |
//! | [`change`] | the intents that are recorded |
//! | [`chain`] | one chain, header by header |
//! | [`mod@fork`] | snapshot and clone |
//! | [`mod@revert`] | a disk goes back to a snapshot |
//! | [`mod@merge`] | an image goes into its parent |
//! | [`mod@collect`] | what is merged and removed next, until nothing is left to do |
//! | [`mod@lend`] | a disk is read while other hosts are kept from changing it |

pub mod chain;
pub mod change;
pub mod collect;
pub mod forest;
pub mod fork;
pub mod lend;
pub mod merge;
pub mod nodes;
pub mod revert;
