//! What uses the disks of a run is paused, what the disks do not use becomes zeroes, and then they are snapshotted or kept as they are.

use std::time::Duration;

use super::Call;
use super::export::Wanted;
use super::hooks::{self, Point, Variables};
use super::record::Begun;
use super::source::{self, Hold, Holding, Source};
use crate::call::Held;
use crate::error::{Error, Result, ended};
use crate::types::Mode;

/// The longest time for one program, whatever its options come to.
const LONGEST: Duration = Duration::from_secs(30 * 86_400);

/// How long a program that zeroes may take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Zeroing {
    /// Seconds, whatever the disks are.
    pub fixed: u32,
    /// Seconds for each MiB of all disks.
    pub per_mib: f64,
}

impl Default for Zeroing {
    fn default() -> Zeroing {
        Zeroing { fixed: 120, per_mib: 0.1 }
    }
}

impl Zeroing {
    /// How long a program may take for disks of so many bytes together.
    fn patience(self, bytes: u64) -> Duration {
        let seconds = f64::from(self.fixed) + self.per_mib * (bytes as f64 / f64::from(1 << 20));
        Duration::try_from_secs_f64(seconds).unwrap_or(LONGEST).min(LONGEST)
    }
}

/// A run that has begun, and the pause in it of what uses its disks.
pub(super) struct Pause<'a> {
    pub begun: &'a mut Begun,
    variables: &'a Variables,
    is_on: bool,
}

impl<'a> Pause<'a> {
    pub fn new(begun: &'a mut Begun, variables: &'a Variables) -> Pause<'a> {
        Pause { begun, variables, is_on: false }
    }

    fn begin(&mut self, patience: Duration) -> Result<()> {
        self.begun.note_paused(Some(self.variables.clone()))?;
        self.is_on = true;
        hooks::run(Point::Pause, self.variables, patience)
    }

    /// What was paused goes on. Only the first call of this does something. If it fails, the record stays, and the next command
    /// tries again.
    ///
    /// # Errors
    /// Those of the hooks; [`Error::Io`] of the record.
    pub fn end(&mut self) -> Result<()> {
        match std::mem::take(&mut self.is_on) {
            true => {
                hooks::run(Point::Resume, self.variables, hooks::PATIENCE).and_then(|()| self.begun.note_paused(None))
            }
            false => Ok(()),
        }
    }

    /// What was paused does not go on: its disks are about to be deleted. Durable.
    ///
    /// # Errors
    /// [`Error::Io`] of the record.
    pub fn end_for_good(&mut self) -> Result<()> {
        self.begun.note_deletes()?;
        self.is_on = false;
        Ok(())
    }
}

/// Snapshots the disks of a run or keeps them as they are, within a pause if one is wanted. If disks are to be read in the pause, it
/// is still on. If what uses them was stopped, it is on also if this failed.
///
/// # Errors
/// [`Error::HookDenied`]; those of [`source::lock`] and [`source::hold`].
pub(super) fn hold(
    call: &Call,
    wanted: &Wanted,
    sources: &mut [Source],
    how: Hold,
    pause: &mut Pause,
) -> Result<Vec<Held>> {
    let held = within(call, wanted, sources, how, pause);
    let goes_on = match how {
        // The caller gives the locks of the disks back before.
        Hold::Stopped => false,
        Hold::LongPause => held.is_err() || sources.iter().all(|source| source.snapshot.is_some()),
        _ => true,
    };
    if goes_on { ended(held, pause.end()) } else { held }
}

fn within(call: &Call, wanted: &Wanted, sources: &mut [Source], how: Hold, pause: &mut Pause) -> Result<Vec<Held>> {
    let denied = |op| {
        let set = wanted.set.to_string();
        move |cause| Error::HookDenied { op, set, cause: Box::new(cause) }
    };
    // A pause that stops what uses the disks makes them unlock them.
    if wanted.zero_free.is_some() && how != Hold::Stopped {
        sources.iter().try_for_each(|source| source::refuse_elsewhere(source, &source.info))?;
    }
    if let Some(patience) = wanted.pause.filter(|_| how.pauses()) {
        pause.begin(patience).map_err(denied("the pause"))?;
    }
    if how == Hold::Stopped {
        source::refuse_unless_stopped(call, sources)?;
    }
    let record = pause.begun.record();
    let (user, label, made) = (record.user(), format!("backup:{}:{}", wanted.set, record.run), record.made.clone());
    source::lock(call, sources, &user)?;
    let mut held = Vec::new();
    if let Some(zeroing) = wanted.zero_free {
        held = source::hold_unused(call, sources)?;
        zero(call, sources, &held, zeroing, pause)?.map_err(denied("the zeroing"))?;
    }
    let keeps_locks = wanted.zero_free.is_some();
    let holding = Holding { how, user: &user, keeps_locks, snapshots: &made, label: &label };
    source::hold(call, &wanted.set, sources, &holding, held)
}

/// Has programs fill with zeroes what the disks do not use. Those that the caller holds are attached for them. The inner result is
/// that of the programs.
fn zero(call: &Call, sources: &[Source], held: &[Held], zeroing: Zeroing, pause: &mut Pause) -> Result<Result<()>> {
    let held_of = |source: &Source| held.iter().find(|held| held.vdi() == source.member.vdi);
    let idle: Vec<(&Source, &Held)> = sources
        .iter()
        .filter(|source| source.info.device.is_none() && !source.info.read_only)
        .filter_map(|source| Some((source, held_of(source)?)))
        .collect();
    pause.begun.note_attached(idle.iter().map(|(source, _)| source.member).collect())?;
    let done = devices(call, sources, &idle, pause.variables).map(|variables| {
        let bytes = sources.iter().map(|source| source.info.virtual_size).sum();
        hooks::run(Point::Zero, &variables, zeroing.patience(bytes))
    });
    let mut detached = Ok(());
    for (source, held) in idle {
        let gone = source.session.vdi_detach_held(held, &call.context());
        detached = detached.and(gone.and_then(|_| pause.begun.note_detached(&source.member)));
    }
    ended(done, detached)
}

/// The variables for programs that write to the disks. `idle`: those that are attached for them.
fn devices(call: &Call, sources: &[Source], idle: &[(&Source, &Held)], variables: &Variables) -> Result<Variables> {
    let mut variables = variables.clone();
    for (n, source) in sources.iter().enumerate() {
        let name = format!("SM_DISK{n}_PATH");
        let held = idle.iter().find(|(it, _)| it.member == source.member);
        let device = match (&source.info.device, held) {
            (Some(device), _) => device.clone(),
            (None, Some((_, held))) => source.session.vdi_attach_held(held, Mode::ReadWrite, &call.context())?,
            (None, None) => {
                variables.remove(&name);
                continue;
            }
        };
        variables.insert(name, device.display().to_string());
    }
    Ok(variables)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_for_zeroing_follows_the_size_of_the_disks() {
        let after = |fixed, per_mib, bytes| Zeroing { fixed, per_mib }.patience(bytes);
        assert_eq!(Zeroing::default().patience(100 << 20), Duration::from_secs(130));
        assert_eq!(after(0, 0.0, 1 << 40), Duration::ZERO);
        assert_eq!(after(1, 0.5, 3 << 19), Duration::from_millis(1750));
        assert_eq!(after(u32::MAX, 1e300, u64::MAX), LONGEST);
    }
}
