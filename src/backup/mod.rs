//! Backups: the disks of a set are exported into a store, checked there, and made into VDIs again.
//!
//! This module uses [`Session`] as a door does, and knows no driver. A [`Host`] finds the SRs for it.
//!
//! | file | what |
//! |---|---|
//! | [`name`] | the names of sets, stores and runs |
//! | [`store`] | the stores of this host, their marker, and the lock of a set in a store |
//! | [`set`] | the sets of this host |
//! | [`manifest`], [`map`](mod@map) | what an export says of itself, and of each block |
//! | [`codec`] | how a block is packed |
//! | [`seal`], [`age`] | how an export is encrypted |
//! | [`sign`] | how a manifest is signed |
//! | [`write`](mod@write), [`out`] | a disk, block by block, into the files of an export |
//! | [`read`](mod@read) | the files of an export as a disk |
//! | [`chain`] | an export with those that it is an increment on |
//! | [`source`] | the disks of a run, locked or snapshotted |
//! | [`bases`] | the snapshots that the next increment is made on |
//! | [`hooks`] | programs of the administrator around a run |
//! | [`pause`] | what uses the disks is paused, and the free space in them zeroed |
//! | [`placement`] | a program that chooses the SRs of an import |
//! | [`running`] | the disks of a run, once they are held, into the store |
//! | [`assemble`] | the files of an export that tell of the others |
//! | [`retain`] | which runs stay |
//! | [`shelf`] | the runs of one set in one store: published, found, removed |
//! | [`stream`] | runs from one store into another, or into an SR, by a pipe |
//! | [`record`] | what a running call has begun, for whoever comes after a kill |
//! | [`export`](mod@export), [`consolidate`](mod@consolidate), [`import`](mod@import), [`verify`](mod@verify), [`remove`](mod@remove), [`list`](mod@list) | the commands |
//!
//! # An export
//!
//! 1. A record of the run is made durable: `RUN.json` in `/var/lib/sm/backup`.
//! 2. The hooks may deny the run. With `--pause` they pause what uses the disks; the record says so before, until it is resumed.
//! 3. Each disk is locked for the user `backup:HOST:RUN`. Hooks may zero what the disks do not use; the record tells which disks are
//!    attached for them. Disks in use are snapshotted, and disks of which the next export is to be
//!    an increment. A disk that was snapshotted is unlocked again.
//! 4. The disks, maps, sums and the manifest are written into `STORE/NAME/RUN.new` and made durable.
//! 5. `RUN.new` becomes `RUN`. From here on the export is there.
//! 6. The link `current` leads to it. Runs that are not kept are removed.
//! 7. Of a last export (`--remove-source`), the record says that the disks are deleted, and they are.
//! 8. The disks are unlocked. The snapshots become those of the next increment by one step ([`bases`]), or are deleted. The record
//!    goes.
//!
//! A kill before 5 leaves the record, the locks and `RUN.new`. The next call of `sm backup` takes the locks back, deletes
//! the snapshots and removes the directory ([`record::recover`]). A kill between 5 and 6 leaves an export that the next call about the set makes the current one
//! ([`shelf::Shelf::repair`]). A kill in 7 is completed by the next call: it deletes what still has the lock of the run. At no instant is a complete export missing that was there before.

pub mod age;
pub mod assemble;
pub mod bases;
pub mod chain;
pub mod codec;
pub mod consolidate;
pub mod export;
pub mod hooks;
pub mod import;
pub mod list;
pub mod manifest;
pub mod map;
pub mod name;
pub mod out;
pub mod pause;
pub mod placement;
pub mod read;
pub mod record;
pub mod remove;
pub mod retain;
pub mod running;
pub mod seal;
pub mod set;
pub mod shelf;
pub mod sign;
pub mod source;
pub mod store;
pub mod stream;
pub mod verify;
pub mod write;

use std::time::{Duration, Instant};

use crate::call::Session;
use crate::context::{Context, DEFAULT_WAIT};
use crate::error::Result;
use crate::sys::copy::Progress;
use crate::types::SrUuid;

pub use self::name::{RunId, SetName, StoreName};

/// Bytes of a block of an export.
pub const BLOCK: u64 = 4 << 20;

/// The SRs of this host.
pub trait Host: Sync {
    /// Opens an SR that this host has a name for.
    ///
    /// # Errors
    /// [`crate::Error::UnknownSr`]; what is wrong with its place.
    fn open(&self, sr: SrUuid) -> Result<Session>;

    /// The SRs that have a name.
    ///
    /// # Errors
    /// [`crate::Error::Io`] if the table of names cannot be read.
    fn known(&self) -> Result<Vec<SrUuid>>;
}

/// How a call works with this host.
pub struct Call<'a> {
    pub host: &'a dyn Host,
    /// How long a lock is waited for.
    pub wait: Duration,
    /// Told of the bytes that were copied of a disk, and of the bytes that there are.
    pub progress: Progress<'a>,
}

impl Call<'_> {
    /// The circumstances of one operation of a session.
    fn context(&self) -> Context<'_> {
        Context { deadline: Instant::now() + DEFAULT_WAIT, progress: self.progress, others: None }
    }

    /// The end of the wait for a lock that is asked for now.
    fn deadline(&self) -> Instant {
        Instant::now() + self.wait
    }
}
