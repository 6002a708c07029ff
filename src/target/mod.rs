//! Disks that this host gives to other hosts, or to itself as SCSI disks, by the kernel's target (LIO).
//!
//! | file | what |
//! |---|---|
//! | [`name`] | names of the protocol, addresses |
//! | [`chap`] | secrets |
//! | [`record`] | what is meant to be published, on disk |
//! | [`kernel`] | what is published now: the objects in the kernel, made and removed |
//! | [`publication`] | publish, unpublish, restore, check |
//!
//! A published VDI is attached and locked: every other verb sees that it is in use, on this host by the kernel and on others by
//! the lock. `docs/target.md` tells it to people.

pub mod chap;
pub mod kernel;
pub mod name;
pub mod publication;
pub mod record;
