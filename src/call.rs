//! What can be asked and answered, the one dispatch, and the locks. Doors know no driver, drivers know no
//! protocol: these are the only words between them.

use std::path::PathBuf;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::context::Context;
use crate::error::{Error, Result, one_line};
use crate::sr::{Driver, Sr, loss};
use crate::sys::copy::Progress;
use crate::sys::lock::{self, Kind, Lock};
use crate::sys::watch;
use crate::types::{DeviceConfig, Done, Mode, NewVdi, Overwrite, Space, SrInfo, SrUuid, Tagged, VdiInfo, VdiUuid};
use crate::vdi;
use crate::vdi::transfer::{self, Incoming, Stream};

/// An operation on an SR, in the API's words.
#[derive(Clone, Debug)]
pub enum Call {
    SrCreate {
        size: Option<u64>,
        over: Overwrite,
    },
    SrDelete,
    SrAttach,
    /// Takes over an SR that other storage managers made and that has no disks, on the word of a caller who
    /// knows that it has none: an empty directory may as well be a missing mount.
    SrAdopt,
    SrDetach,
    SrGetParams,
    /// [`Sr::space`].
    SrGetSpace,
    SrScan,
    SrContentType,
    SrCollect,
    VdiCreate(NewVdi),
    VdiDelete {
        vdi: VdiUuid,
        /// Also if its image cannot be read, and nothing but its name tells what would be lost.
        broken: bool,
    },
    VdiAttach {
        vdi: VdiUuid,
        mode: Mode,
    },
    VdiDetach {
        vdi: VdiUuid,
    },
    VdiClone {
        source: VdiUuid,
        dest: VdiUuid,
    },
    VdiSnapshot {
        source: VdiUuid,
        dest: VdiUuid,
    },
    VdiResize {
        vdi: VdiUuid,
        size: u64,
        allow_shrink: bool,
    },
    VdiLock {
        vdi: VdiUuid,
        force: bool,
        user: String,
    },
    VdiUnlock {
        vdi: VdiUuid,
        force: bool,
        user: String,
    },
    VdiGetParams {
        vdi: VdiUuid,
    },
    /// The same without the children.
    VdiGetBrief {
        vdi: VdiUuid,
    },
    /// Stores the names that an agent's user gave a VDI with the disk, as far as the SR can hold them. Idempotent.
    VdiSetNames {
        vdi: VdiUuid,
        label: String,
        description: String,
    },
    /// Ends the pause that a killed vdi_snapshot left on other hosts, see [`crate::context::OtherHosts`]. Idempotent.
    VdiUnpause {
        vdi: VdiUuid,
    },
    VdiExport {
        vdi: VdiUuid,
        to: Stream,
    },
    /// A new VDI with what comes; its `virtual_size` is a least size, 0 for the size of what comes.
    VdiImport {
        new: NewVdi,
        from: Stream,
    },
}

/// What an operation answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reply {
    Nothing,
    Device(PathBuf),
    Text(String),
    Sr(SrInfo),
    Space(Space),
    Srs(Vec<Tagged>),
    /// An SR to be drawn as the trees of its images.
    Tree(SrInfo),
    Vdi(VdiInfo),
}

/// Carries one call out.
///
/// # Errors
/// Whatever the driver says; [`Error::SrUnavailable`] when other calls held a lock past `context.deadline`, or
/// the storage did not answer for as long.
pub fn run(
    driver: &'static Driver,
    sr: SrUuid,
    config: &DeviceConfig,
    call: &Call,
    context: &Context,
) -> Result<Reply> {
    let Some(pulse) = (driver.open)(sr, config, context.deadline.into())?.pulse() else {
        return carry_out(driver, sr, config, call, context);
    };
    let (config, call, deadline, others) = (config.clone(), call.clone(), context.deadline, context.others.clone());
    let wait = deadline.saturating_duration_since(Instant::now());
    let work = move |progress: Progress| carry_out(driver, sr, &config, &call, &Context { deadline, progress, others });
    watch::over(&pulse, wait, context.progress, work).unwrap_or_else(|silent| {
        let why = format!(
            "no answer from its server for {} s; the call was abandoned, repeat it when the server answers: ",
            silent.seconds
        );
        Err(Error::SrUnavailable { sr, why: why + &one_line(&silent.last) })
    })
}

fn carry_out(driver: &Driver, sr: SrUuid, config: &DeviceConfig, call: &Call, context: &Context) -> Result<Reply> {
    let storage = (driver.open)(sr, config, context.deadline.into())?;
    let plan = LockPlan::of(call);
    let held = plan.take(sr, context.deadline)?;
    // sr_delete has the SR alone: nobody holds the lock of a VDI in it.
    let doomed = match call {
        Call::SrDelete => storage.stat().map(|info| info.vdi_uuids).unwrap_or_default(),
        _ => Vec::new(),
    };
    let result = dispatch(&*storage, sr, call, context);
    match (call, &result) {
        (Call::SrDelete, Ok(_)) => {
            doomed.iter().for_each(|vdi| lock::forget(&vdi.to_string(), "vdi"));
            lock::forget(&sr.to_string(), "sr");
        }
        (Call::VdiDelete { .. }, Ok(_)) | (_, Err(Error::NoVdi { .. })) => plan.forget_vdis(),
        (_, Err(Error::NoSr { .. })) => {
            plan.forget_vdis();
            // One that others share is not ours to remove: who comes next would not see them.
            if plan.sr == Some(Kind::Exclusive) {
                lock::forget(&sr.to_string(), "sr");
            }
        }
        _ => {}
    }
    drop(held);
    result
}

fn dispatch(storage: &dyn Sr, sr: SrUuid, call: &Call, context: &Context) -> Result<Reply> {
    let nothing = |_: Done| Reply::Nothing;
    match call {
        Call::SrCreate { size, over } => loss::create(storage, sr, *size, over, context).map(|()| Reply::Nothing),
        Call::SrDelete => storage.delete().map(nothing),
        Call::SrAttach => storage.attach().map(nothing),
        Call::SrAdopt => storage.adopt().map(nothing),
        Call::SrDetach => storage.detach().map(nothing),
        Call::SrGetParams => storage.stat().map(Reply::Sr),
        Call::SrGetSpace => storage.space().map(Reply::Space),
        Call::SrScan => storage.scan().map(Reply::Sr),
        Call::SrCollect => storage.collect(context).map(nothing),
        Call::SrContentType => Ok(Reply::Text(storage.content_type().to_owned())),
        Call::VdiCreate(new) => storage.create_vdi(new).map(Reply::Vdi),
        Call::VdiDelete { vdi, broken } => match storage.vdi(*vdi).and_then(|disk| disk.delete(context)) {
            Ok(()) => Ok(Reply::Nothing),
            Err(error) if *broken && error.is_of_the_image() => {
                if storage.delete_broken(*vdi, context)? {
                    Ok(Reply::Nothing)
                } else {
                    Err(error)
                }
            }
            // There is none, or another host deleted it just now.
            Err(Error::NoVdi { .. }) => storage.forget_vdi(*vdi).map(nothing),
            Err(other) => Err(other),
        },
        Call::VdiAttach { vdi, mode } => vdi::attach(&*storage.vdi(*vdi)?, *mode).map(Reply::Device),
        Call::VdiDetach { vdi } => storage.vdi(*vdi)?.detach().map(nothing),
        Call::VdiClone { source, dest } => storage.vdi(*source)?.clone_to(*dest, context).map(Reply::Vdi),
        Call::VdiSnapshot { source, dest } => storage.vdi(*source)?.snapshot(*dest, context).map(Reply::Vdi),
        Call::VdiResize { vdi, size, allow_shrink } => {
            let disk = storage.vdi(*vdi)?;
            vdi::refuse_if_read_only(&*disk, "vdi_resize")?;
            disk.resize(*size, *allow_shrink, context).map(nothing)
        }
        Call::VdiLock { vdi, force, user } => storage.vdi(*vdi)?.lock(user, *force).map(|()| Reply::Nothing),
        Call::VdiUnlock { vdi, force, user } => storage.vdi(*vdi)?.unlock(user, *force).map(|()| Reply::Nothing),
        Call::VdiGetParams { vdi } => storage.vdi(*vdi)?.info().map(Reply::Vdi),
        Call::VdiGetBrief { vdi } => storage.vdi(*vdi)?.brief().map(Reply::Vdi),
        Call::VdiSetNames { vdi, label, description } => storage.vdi(*vdi)?.set_names(label, description).map(nothing),
        Call::VdiUnpause { vdi } => storage.vdi(*vdi)?.unpause(context).map(|()| Reply::Nothing),
        Call::VdiExport { vdi, to } => {
            let disk = storage.vdi(*vdi)?;
            if disk.info()?.read_only == 0 {
                vdi::refuse_if_attached(&*disk)?;
            }
            disk.read(&mut |bytes| transfer::export(bytes, to, context.progress)).map(|()| Reply::Nothing)
        }
        Call::VdiImport { new, from } => {
            let known = Some(new.virtual_size).filter(|size| *size > 0);
            storage.import_vdi(new, Incoming::open(from, known)?, context.progress).map(|_| Reply::Nothing)
        }
    }
}

/// Which locks a call wants on this host: the SR's before the VDIs', the VDIs' in the order of their UUIDs.
///
/// Readers take none: whatever is changed is changed by one atomic step. What makes, ends or moves an SR
/// has it alone; everything else shares it and has its VDIs alone, so that a long copy stops nobody else.
struct LockPlan {
    sr: Option<Kind>,
    vdis: Vec<VdiUuid>,
}

impl LockPlan {
    fn of(call: &Call) -> LockPlan {
        let (sr, mut vdis) = match call {
            Call::SrCreate { .. } | Call::SrDelete | Call::SrAttach | Call::SrAdopt | Call::SrDetach => {
                (Some(Kind::Exclusive), vec![])
            }
            Call::SrGetParams
            | Call::SrGetSpace
            | Call::SrScan
            | Call::SrContentType
            | Call::VdiGetParams { .. }
            | Call::VdiGetBrief { .. } => (None, vec![]),
            // It takes the locks of its disks one after the other.
            Call::SrCollect => (Some(Kind::Shared), vec![]),
            Call::VdiCreate(new) | Call::VdiImport { new, .. } => (Some(Kind::Shared), vec![new.vdi]),
            Call::VdiDelete { vdi, .. }
            | Call::VdiAttach { vdi, .. }
            | Call::VdiDetach { vdi }
            | Call::VdiResize { vdi, .. }
            | Call::VdiExport { vdi, .. }
            | Call::VdiUnpause { vdi }
            | Call::VdiSetNames { vdi, .. }
            | Call::VdiLock { vdi, .. }
            | Call::VdiUnlock { vdi, .. } => (Some(Kind::Shared), vec![*vdi]),
            Call::VdiClone { source, dest } | Call::VdiSnapshot { source, dest } => {
                (Some(Kind::Shared), vec![*source, *dest])
            }
        };
        vdis.sort_unstable();
        vdis.dedup();
        LockPlan { sr, vdis }
    }

    fn take(&self, sr: SrUuid, deadline: Instant) -> Result<Vec<Lock>> {
        let mut held = Vec::new();
        let wanted = self.sr.map(|kind| (sr.to_string(), "sr", kind)).into_iter();
        for (namespace, name, kind) in
            wanted.chain(self.vdis.iter().map(|vdi| (vdi.to_string(), "vdi", Kind::Exclusive)))
        {
            held.push(lock::take(&namespace, name, kind, deadline).map_err(|refused| {
                refused.or_timed_out(|holder| {
                    let what = if name == "sr" { "it".to_owned() } else { format!("its VDI {namespace}") };
                    Error::Busy { sr, holder: holder.to_owned(), what }
                })
            })?);
        }
        Ok(held)
    }

    /// Removes the lock files of VDIs that do not exist.
    fn forget_vdis(&self) {
        for vdi in &self.vdis {
            lock::forget(&vdi.to_string(), "vdi");
        }
    }
}
