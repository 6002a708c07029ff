//! The verbs of a VDI.

use std::path::PathBuf;

use super::Session;
use super::held::{Held, written_out};
use super::locks::Locks;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::image::Reading;
use crate::image::disk::Disk;
use crate::image::rescue::Rescued;
use crate::sr::Sr;
use crate::sys::copy::Progress;
use crate::types::{Done, Format, LostRange, Mode, NewVdi, Params, ParamsChange, VdiInfo, VdiUuid, seconds_now};
use crate::vdi::transfer::{self, Incoming, Stream};
use crate::vdi::{self, Vdi, holders};

impl Session {
    /// Does something with one VDI under its lock.
    pub(super) fn with_vdi<T: Send + 'static>(
        &self,
        vdi: VdiUuid,
        context: &Context,
        work: impl FnOnce(&dyn Vdi, &Context) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let locks = Locks::of_vdis(&[vdi]);
        self.carry_out(locks, context, move |storage, context| work(&*storage.vdi(vdi)?, context))
    }

    /// Makes a VDI of zeroes.
    ///
    /// # Errors
    /// [`Error::VdiExists`], [`Error::NoSpace`], [`Error::TooBig`], [`Error::Unsupported`] for the format.
    pub fn vdi_create(&self, new: NewVdi, context: &Context) -> Result<VdiInfo> {
        let new = made_now(new);
        self.carry_out(Locks::of_vdis(&[new.vdi]), context, move |storage, _| storage.create_vdi(&new))
    }

    /// Deletes a VDI. Idempotent. `unreadable`: what becomes of one that cannot be read. `context`: its other hosts are those of
    /// the VDI that [`Session::vdi_log_after`] tells, whose log gets the changed blocks of this one.
    ///
    /// # Errors
    /// [`Error::VdiInUse`] while it is attached or locked; what keeps it from being read, unless it is deleted all the same.
    pub fn vdi_delete(&self, vdi: VdiUuid, unreadable: Unreadable, context: &Context) -> Result<()> {
        self.delete_with_log(vdi, &[], context, move |storage, context| {
            delete(storage, vdi, unreadable, context).map(|()| true)
        })
        .map(drop)
    }

    /// Deletes a VDI that has this label. Any other VDI of the UUID stays. Idempotent.
    ///
    /// # Errors
    /// Those of [`Session::vdi_delete`]; what keeps the label from being read.
    pub fn vdi_delete_labelled(&self, vdi: VdiUuid, label: &str, context: &Context) -> Result<()> {
        let label = label.to_owned();
        self.delete_with_log(vdi, &[], context, move |storage, context| {
            match storage.vdi(vdi).and_then(|disk| disk.place().params()) {
                Ok(params) if params.label != label => return Ok(false),
                // What a killed call left of one goes too.
                Ok(_) | Err(Error::NoVdi { .. }) => {}
                Err(error) => return Err(error),
            }
            delete(storage, vdi, Unreadable::Refused, context).map(|()| true)
        })
        .map(drop)
    }

    /// Deletes a VDI whose persistent lock `user` alone has. No other user can lock it meanwhile. `held`: as of
    /// [`Session::vdi_read`]. If it cannot be deleted, its lock is given back. Idempotent. `false`: the VDI that is there is not
    /// locked, so it is another one, or somebody broke the lock; it stays.
    ///
    /// # Errors
    /// [`Error::VdiInUse`] while it is attached, or locked by another user; those of [`Session::vdi_delete`].
    pub fn vdi_delete_locked(&self, vdi: VdiUuid, user: &str, held: &[Held], context: &Context) -> Result<bool> {
        let user = user.to_owned();
        self.delete_with_log(vdi, held, context, move |storage, context| {
            let locked = match storage.vdi(vdi) {
                Ok(disk) => holders::lock_to_delete(disk.place(), &user)?,
                Err(Error::NoVdi { .. }) => true,
                Err(error) => return Err(error),
            };
            if !locked {
                return Ok(false);
            }
            let deleted = delete(storage, vdi, Unreadable::Refused, context);
            deleted.map(|()| true).map_err(|error| match storage.vdi(vdi) {
                Ok(disk) => error.undone(holders::unlock_undeleted(disk.place())),
                Err(_) => error,
            })
        })
    }

    /// Gives a VDI that has the label `from` the label `to`. Any other VDI of the UUID stays as it is. Idempotent.
    ///
    /// # Errors
    /// Those of [`Session::vdi_set`]. A VDI that is not there is none.
    pub fn vdi_relabel(&self, vdi: VdiUuid, from: &str, to: &str, context: &Context) -> Result<()> {
        let (from, to) = (from.to_owned(), to.to_owned());
        let renamed = self.with_vdi(vdi, context, move |disk, _| match disk.place().params()?.label == from {
            true => disk.set(&ParamsChange { label: Some(to), ..ParamsChange::default() }).map(drop),
            false => Ok(()),
        });
        match renamed {
            Err(Error::NoVdi { .. }) => Ok(()),
            other => other,
        }
    }

    /// Whether [`Session::vdi_delete`] would delete a VDI that cannot be read if it was told to. Changes nothing.
    pub fn is_deletable_unread(&self, vdi: VdiUuid, context: &Context) -> bool {
        let look = self.carry_out(Locks::of_vdis(&[vdi]), context, move |storage, context| {
            storage.can_delete_broken(vdi, context)
        });
        look.unwrap_or(false)
    }

    /// Makes a block device of a VDI. Idempotent: an attached VDI has the path that it had.
    ///
    /// # Errors
    /// [`Error::VdiInUse`] with the host that has it; [`Error::NoVdi`].
    pub fn vdi_attach(&self, vdi: VdiUuid, mode: Mode, context: &Context) -> Result<PathBuf> {
        self.carry_out_locked(Locks::of_vdis(&[vdi]), context, move |storage, _, lock| {
            vdi::attach(&*storage.vdi(vdi)?, mode, lock)
        })
    }

    /// As [`Session::vdi_attach`], for a guest of a host with tapdisk. `opens`: the formats of disks that tapdisk is to open by itself;
    /// then the answer is its socket.
    ///
    /// # Errors
    /// Those of [`Session::vdi_attach`].
    pub fn vdi_attach_for_guest(
        &self,
        vdi: VdiUuid,
        mode: Mode,
        opens: Vec<Format>,
        context: &Context,
    ) -> Result<PathBuf> {
        self.carry_out_locked(Locks::of_vdis(&[vdi]), context, move |storage, _, lock| {
            vdi::attach_for_guest(&*storage.vdi(vdi)?, mode, lock, &opens)
        })
    }

    /// Removes the block device of a VDI. Idempotent.
    ///
    /// # Errors
    /// [`Error::VdiInUse`] with what has it open.
    pub fn vdi_detach(&self, vdi: VdiUuid, context: &Context) -> Result<Done> {
        self.with_vdi(vdi, context, |disk, _| disk.detach())
    }

    /// Makes a writable copy of a VDI that is neither attached nor locked. `changes`: what its params have else.
    ///
    /// # Errors
    /// [`Error::VdiInUse`], [`Error::VdiExists`], [`Error::ChainTooLong`], [`Error::NoSpace`].
    pub fn vdi_clone(
        &self,
        source: VdiUuid,
        dest: VdiUuid,
        changes: ParamsChange,
        context: &Context,
    ) -> Result<VdiInfo> {
        self.with_room(source, context, &|context| {
            let (locks, changes) = (Locks::of_vdis(&[source, dest]), changes.clone());
            self.carry_out(locks, context, move |storage, context| {
                storage.vdi(source)?.clone_to(dest, &changes, context).map_err(|error| or_use_a_snapshot(error, source))
            })
        })
    }

    /// Makes a read-only copy of a VDI as it is now. `changes`: what its params have else.
    ///
    /// # Errors
    /// As [`Session::vdi_clone`]; [`Error::NotPaused`] when another host does not let go of the disk.
    pub fn vdi_snapshot(
        &self,
        source: VdiUuid,
        dest: VdiUuid,
        changes: ParamsChange,
        context: &Context,
    ) -> Result<VdiInfo> {
        self.with_room(source, context, &|context| {
            let (locks, changes) = (Locks::of_vdis(&[source, dest]), changes.clone());
            self.carry_out(locks, context, move |storage, context| {
                storage.vdi(source)?.snapshot(dest, &changes, context)
            })
        })
    }

    /// Gives a VDI another size, bytes. Idempotent.
    ///
    /// # Errors
    /// [`Error::WouldShrink`] unless `allow_shrink`; [`Error::NoSpace`]; [`Error::Unsupported`] for a read-only VDI.
    pub fn vdi_resize(&self, vdi: VdiUuid, size: u64, allow_shrink: bool, context: &Context) -> Result<Done> {
        self.with_vdi(vdi, context, move |disk, context| {
            vdi::refuse_if_read_only(disk, "vdi_resize")?;
            disk.resize(size, allow_shrink, context)
        })
    }

    /// Takes the persistent lock of a VDI for `user`, which every host sees. `force`: from its holder.
    ///
    /// # Errors
    /// [`Error::LockRefused`] with the holder.
    pub fn vdi_lock(&self, vdi: VdiUuid, user: &str, force: bool, context: &Context) -> Result<()> {
        let user = user.to_owned();
        self.with_vdi(vdi, context, move |disk, _| disk.lock(&user, force))
    }

    /// Gives the persistent lock of a VDI back.
    ///
    /// # Errors
    /// [`Error::LockRefused`] for a user who does not hold it.
    pub fn vdi_unlock(&self, vdi: VdiUuid, user: &str, force: bool, context: &Context) -> Result<()> {
        let user = user.to_owned();
        self.with_vdi(vdi, context, move |disk, _| disk.unlock(&user, force))
    }

    /// The facts about a VDI.
    ///
    /// # Errors
    /// [`Error::NoVdi`].
    pub fn vdi_get_params(&self, vdi: VdiUuid, context: &Context) -> Result<VdiInfo> {
        self.carry_out(Locks::none(), context, move |storage, _| storage.vdi(vdi)?.info())
    }

    /// The facts that a VDI itself tells, without its children, locks and attachment: nothing else is looked at.
    ///
    /// # Errors
    /// [`Error::NoVdi`].
    pub fn vdi_get_brief(&self, vdi: VdiUuid, context: &Context) -> Result<VdiInfo> {
        self.carry_out(Locks::none(), context, move |storage, _| storage.vdi(vdi)?.brief())
    }

    /// Changes what is stored beside a VDI: its names, whether it can be written to, whether several users may lock it.
    /// Idempotent.
    ///
    /// # Errors
    /// Those of [`Vdi::set`]; [`Error::Unsupported`] for keys of an agent on an SR that stores none; [`Error::Invalid`] for more keys
    /// than there is room for.
    pub fn vdi_set(&self, vdi: VdiUuid, change: ParamsChange, context: &Context) -> Result<Done> {
        if !change.keys.is_empty() && !self.driver.about.keeps_keys {
            let why = format!("an SR of type {} stores no keys with its disks", self.driver.sr_type);
            return Err(Error::Unsupported { op: "vdi_set of keys", why });
        }
        self.with_vdi(vdi, context, move |disk, _| {
            if !change.keys.is_empty() {
                refuse_full(&change.of(disk.place().params()?))?;
            }
            disk.set(&change)
        })
    }

    /// Ends the pause that a killed vdi_snapshot left on other hosts, see [`OtherHosts`](crate::context::OtherHosts).
    /// Idempotent.
    ///
    /// # Errors
    /// [`Error::NotPaused`] with the hosts that did not go on.
    pub fn vdi_unpause(&self, vdi: VdiUuid, context: &Context) -> Result<()> {
        self.with_vdi(vdi, context, |disk, context| disk.unpause(context))
    }

    /// Writes the disk of a VDI to a file or a pipe.
    ///
    /// # Errors
    /// [`Error::VdiInUse`] while it is attached and can be written to; what writing says.
    pub fn vdi_export(&self, vdi: VdiUuid, to: &Stream, context: &Context) -> Result<()> {
        let to = to.clone();
        self.with_vdi(vdi, context, move |disk, context| {
            refuse_if_written(disk, disk.brief()?.read_only)?;
            disk.read(Reading::Whole, &mut |bytes| transfer::export(bytes, &to, context.progress))
        })
    }

    /// As [`Session::vdi_export`], of a damaged VDI: what cannot be read is zeroes in the export, and is answered.
    ///
    /// # Errors
    /// Those of [`Session::vdi_export`]; what is damaged so that nothing can be read, as a header.
    pub fn vdi_rescue(&self, vdi: VdiUuid, to: &Stream, context: &Context) -> Result<Vec<LostRange>> {
        let to = to.clone();
        self.with_vdi(vdi, context, move |disk, context| {
            // A damaged image may not say whether it is a base.
            let read_only = match disk.brief() {
                Err(Error::Damaged { .. }) => false,
                told => told?.read_only,
            };
            refuse_if_written(disk, read_only)?;
            let mut lost = Vec::new();
            disk.read(Reading::Rescue, &mut |bytes| {
                let rescued = Rescued::new(bytes);
                transfer::export(&rescued, &to, context.progress)?;
                lost = rescued.lost();
                Ok(())
            })?;
            Ok(lost)
        })
    }

    /// Whether a read of a VDI with a base tells what changed, see [`Vdi::tells_changes`].
    ///
    /// # Errors
    /// [`Error::NoVdi`].
    pub fn vdi_tells_changes(&self, vdi: VdiUuid, context: &Context) -> Result<bool> {
        self.carry_out(Locks::none(), context, move |storage, _| Ok(storage.vdi(vdi)?.tells_changes()))
    }

    /// Hands the bytes of a VDI, and its facts, to `reader`. `held`: what the caller holds, among it this VDI if it likes. With `base`, `reader` is told as well which stretches of the disk may
    /// differ from that VDI, as far as the images tell, see [`Vdi::read_since`].
    ///
    /// # Errors
    /// [`Error::VdiInUse`] while it is attached and can be written to; those of `reader`.
    pub fn vdi_read<T: Send + 'static>(
        &self,
        vdi: VdiUuid,
        base: Option<VdiUuid>,
        held: &[Held],
        context: &Context,
        reader: impl FnOnce(&VdiInfo, &dyn Disk, Option<&[(u64, u64)]>, Progress) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let locks = Locks::of_vdis(&Held::not_in(held, [Some(vdi), base].into_iter().flatten()));
        let is_paused = held.iter().any(|held| held.is_paused(vdi));
        self.carry_out(locks, context, move |storage, context| {
            let disk = storage.vdi(vdi)?;
            let info = disk.brief()?;
            match is_paused {
                true => written_out(&*disk)?,
                false => refuse_if_written(&*disk, info.read_only)?,
            }
            let (mut reader, mut answer) = (Some(reader), None);
            let mut once = |bytes: &dyn Disk, changed: Option<&[(u64, u64)]>| {
                let reader = reader.take().expect("a disk is read once");
                answer = Some(reader(&info, bytes, changed, context.progress)?);
                Ok(())
            };
            match base {
                Some(base) => disk.read_since(base, &mut once)?,
                None => disk.read(Reading::Whole, &mut |bytes| once(bytes, None))?,
            }
            Ok(answer.expect("a disk that was read has an answer"))
        })
    }

    /// Makes a VDI with the bytes of `disk`, which is there whole or not at all. `new.virtual_size` is a least size, 0 for
    /// that of `disk`.
    ///
    /// # Errors
    /// As [`Session::vdi_create`], and what opening and reading `disk` say.
    pub fn vdi_fill(
        &self,
        new: NewVdi,
        disk: impl FnOnce() -> Result<Box<dyn Disk>> + Send + 'static,
        context: &Context,
    ) -> Result<VdiInfo> {
        let new = made_now(new);
        self.carry_out(Locks::of_vdis(&[new.vdi]), context, move |storage, context| {
            storage.import_vdi(&new, Incoming::Disk(disk()?), context.progress)
        })
    }

    /// Copies a VDI into an SR, another or the same, of any driver. The new VDI is independent of the source, has its label and
    /// description, and is there whole or not at all. Only data is read and written.
    ///
    /// # Errors
    /// [`Error::VdiInUse`] while the source is attached and can be written to; those of [`Session::vdi_import`] for `to`.
    pub fn vdi_copy(&self, vdi: VdiUuid, to: Session, copied: Copied, context: &Context) -> Result<()> {
        if to.sr == self.sr && copied.vdi == vdi {
            return Err(Error::VdiExists { vdi, sr: to.sr });
        }
        let pulse = self.pulse_with(&to);
        // A VDI's lock is the same in every SR, so those of both are taken here.
        let locks = Locks::of_vdis(&[vdi, copied.vdi]);
        self.carry_out_watched(pulse, locks, context, move |storage, context, _| {
            let source = storage.vdi(vdi)?;
            let info = source.brief()?;
            refuse_if_written(&*source, info.read_only)?;
            let names = Params { label: info.label, description: info.description, ..Params::default() };
            let same = Some(info.format).filter(|format| to.driver.formats.contains(format));
            let new = made_now(NewVdi {
                vdi: copied.vdi,
                virtual_size: 0,
                format: copied.format.or(same),
                params: copied.change.of(names),
            });
            source.read(Reading::Whole, &mut |bytes| {
                let incoming = Incoming::Disk(Box::new(bytes));
                to.carry_out_within(context, |storage| storage.import_vdi(&new, incoming, context.progress).map(drop))
            })
        })
    }

    /// Makes a VDI of what comes, which is there whole or not at all. `new.virtual_size` is a least size, 0 for the size of
    /// what comes.
    ///
    /// # Errors
    /// As [`Session::vdi_create`], and what reading says.
    pub fn vdi_import(&self, new: NewVdi, from: &Stream, context: &Context) -> Result<VdiInfo> {
        let new = made_now(new);
        let from = from.clone();
        self.carry_out(Locks::of_vdis(&[new.vdi]), context, move |storage, context| {
            let known = Some(new.virtual_size).filter(|size| *size > 0);
            storage.import_vdi(&new, Incoming::open(&from, known)?, context.progress)
        })
    }
}

/// The VDI that [`Session::vdi_copy`] makes.
pub struct Copied {
    pub vdi: VdiUuid,
    /// `None`: the format of the source where the other SR has it, else the usual one of that SR.
    pub format: Option<Format>,
    /// The changes to the params that the copy would have else: the label and description of the source, and defaults.
    pub change: ParamsChange,
}

/// How vdi_delete treats a VDI that cannot be read, so that nothing but its name tells what would be lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreadable {
    /// Refuses it, also if only what is stored beside the image cannot be read. For people, who may have mistyped its UUID.
    Refused,
    /// Refuses it if the image or its lock cannot be read; the names beside it do not count. For agents that call by the v1.0
    /// API.
    ImageRefused,
    /// Deletes it.
    Deleted,
}

/// The VDI to be made, with the present time in its params.
fn made_now(new: NewVdi) -> NewVdi {
    NewVdi { params: Params { created: seconds_now(), ..new.params }, ..new }
}

/// Refuses more keys of an agent than there is room for.
fn refuse_full(wanted: &Params) -> Result<()> {
    match wanted.size_of_keys() <= Params::LONGEST_KEYS {
        true => Ok(()),
        false => Err(Error::Invalid {
            what: "number of bytes of keys",
            value: wanted.size_of_keys().to_string(),
            expected: format!("all keys of a VDI have {} bytes at most, with 16 for each key", Params::LONGEST_KEYS),
        }),
    }
}

/// Refuses to read a disk that may be written to meanwhile.
fn refuse_if_written(disk: &dyn Vdi, read_only: bool) -> Result<()> {
    if read_only {
        return Ok(());
    }
    vdi::refuse_if_attached(disk).map_err(|error| or_use_a_snapshot(error, disk.place().vdi()))
}

/// The refusal of a disk that is in use, with what can be done instead.
fn or_use_a_snapshot(error: Error, of: VdiUuid) -> Error {
    match error {
        Error::VdiInUse { vdi, sr, holder } if vdi == of => {
            Error::VdiInUse { vdi, sr, holder: format!("{holder}; detach it, or take a snapshot of it and use that") }
        }
        other => other,
    }
}

pub(super) fn delete(storage: &dyn Sr, vdi: VdiUuid, unreadable: Unreadable, context: &Context) -> Result<()> {
    let deleted = storage.vdi(vdi).and_then(|disk| {
        if unreadable == Unreadable::Refused {
            disk.place().params()?;
        }
        disk.delete(context)
    });
    let deleted = match deleted {
        // There is none, or another host deleted it just now.
        Err(Error::NoVdi { .. }) => storage.forget_vdi(vdi).map(drop),
        other => other,
    };
    match deleted {
        Err(error) if unreadable == Unreadable::Deleted && error.is_of_the_image() => {
            match storage.delete_broken(vdi, context) {
                Ok(true) => Ok(()),
                // The storage, not the disk.
                Ok(false) | Err(Error::NoVdi { .. }) => Err(error),
                Err(other) => Err(other),
            }
        }
        other => other,
    }
}
