//! The XCP storage managers: storage repositories (SR) and the virtual disks (VDI) in them.
//!
//! A call falls down this list once. Each layer knows the one below and nothing above.
//!
//! 1. [`door`]: a protocol. Turns argv into operations of a [`call::Session`], and what they answer into bytes.
//! 2. [`call`]: the verbs, their locks, and the policy of all agents.
//! 3. [`sr`]: WHERE disks live. One file per driver.
//! 4. [`vdi`]: WHAT a disk is. One file per format.
//! 5. [`image`]: byte layouts of image formats, without policy.
//! 6. [`datapath`]: serves an image as a block device.
//! 7. [`sys`]: the system: loop devices, locks, durable writes, external tools.
//!
//! [`backup`] stands beside the doors: it exports sets of VDIs and takes them in again, through sessions alone.
//!
//! [`registry`] is what people call things on this host: SRs with a name, which the door for people alone reads, and media with
//! their owners. [`layout`] is the storage of a host as its operator describes it, and [`apply`] makes it so. [`target`] is the disks
//! that this host publishes.
//!
//! [`context`] holds what a call hands down through the layers: its deadline, its progress, the other hosts.

#![allow(
    rustdoc::private_intra_doc_links,
    reason = "the order of steps is documented on private modules: `cargo doc --document-private-items` shows them"
)]

pub mod apply;
pub mod backup;
pub mod call;
pub mod context;
pub mod datapath;
pub mod door;
pub mod error;
pub mod image;
pub mod layout;
pub mod registry;
pub mod sr;
pub mod sys;
pub mod target;
pub mod types;
pub mod vdi;

pub use error::{Error, Result};
