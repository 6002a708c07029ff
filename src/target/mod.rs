//! Disks that this host gives to other hosts, or to itself as SCSI disks, by the kernel's targets (LIO and nvmet).
//!
//! | file | what |
//! |---|---|
//! | [`name`] | names of the protocol, addresses |
//! | [`record`] | what is meant to be published, on disk |
//! | [`fabric`] | what a fabric does with the objects in the kernel, which say what is published now |
//! | [`iscsi`], [`loopback`], [`nvme`] | the fabrics |
//! | [`scsi`] | what `iscsi` and `loopback` have in common |
//! | [`backstore`] | backstores of pass-through one by one |
//! | [`settings`] | attributes and parameters |
//! | [`source`], [`physical`] | what is published: a VDI, or a SCSI device that is passed through |
//! | [`publication`] | publish, unpublish, restore, check |
//! | [`unrecorded`] | publications whose record is lost |
//!
//! A published VDI is attached and locked: every other verb sees that it is in use, on this host by the kernel and on others by
//! the lock. `docs/target.md` tells it to people.

pub mod backstore;
pub mod fabric;
pub mod iscsi;
pub mod loopback;
pub mod name;
pub mod nvme;
pub mod physical;
pub mod publication;
pub mod record;
pub mod scsi;
pub mod settings;
pub mod source;
pub mod unrecorded;
