//! The last steps of merges: see [`Forest::end`](crate::vdi::tree::forest::Forest::end). Their order is in [`super`].

use std::rc::Rc;
use std::slice;

use super::directory::FileSr;
use super::layout::{image_name, remove_leftovers};
use super::recover::{begin_change, forget_change, recover_collapse};
use crate::error::Result;
use crate::sys::durable::Dir;
use crate::sys::threads;
use crate::types::{Format, Mode, VdiUuid};
use crate::vdi::layout;
use crate::vdi::tree::change::Change;
use crate::vdi::tree::forest::Ending;
use crate::vdi::tree::nodes::Nodes;

/// Merges whose steps wait for the storage at the same time, at most.
const MOST: usize = 8;

impl FileSr {
    /// Ends merges under one record. The caller holds the lock of the trees, under which `nodes` were read.
    pub(super) fn end_merges(&self, dir: &Dir, nodes: &Nodes, endings: &[Ending]) -> Vec<Result<()>> {
        let changes: Vec<Change> = endings.iter().map(change_of).collect();
        let begun = match changes.as_slice() {
            [one] => begin_change(dir, one),
            _ => begin_change(dir, &Change::Merges { of: changes.clone() }),
        };
        match (begun, endings) {
            (Ok(()), _) => {}
            (Err(error), [_]) => return vec![Err(error)],
            // Each then tells its own failure.
            (Err(_), _) => {
                return endings.iter().flat_map(|one| self.end_merges(dir, nodes, slice::from_ref(one))).collect();
            }
        }
        let mut results = threads::while_waiting(&changes, MOST, |change| self.take_steps(dir, nodes, change));
        let (mut happened, mut is_whole) = (Vec::new(), true);
        for (change, result) in changes.into_iter().zip(&mut results) {
            if let Err(cause) = std::mem::replace(result, Ok(())) {
                // A relink that was given up leaves nothing that has to be undone.
                let recovered = recover_collapse(dir, &change);
                is_whole &= recovered.is_ok();
                let has_happened = *recovered.as_ref().unwrap_or(&false);
                *result = Err(cause.undone(recovered.map(drop)));
                if !has_happened {
                    continue;
                }
            }
            happened.push(change);
        }
        // Otherwise the next call goes on.
        let ended = remove_gone(dir, &happened).and_then(|()| if is_whole { forget_change(dir) } else { Ok(()) });
        if let Err(error) = ended
            && let Some(result) = results.iter_mut().find(|result| result.is_ok())
        {
            *result = Err(error);
        }
        results
    }

    /// The steps of one merge after its record, up to the removal of its images.
    fn take_steps(&self, dir: &Dir, nodes: &Nodes, change: &Change) -> Result<()> {
        match change {
            Change::Relink { .. } => self.give_children(dir, nodes, change)?.map_or(Ok(()), Err),
            Change::Collapse { vdi, base, format, .. } => {
                let own = Rc::new(Dir::open(dir.path())?);
                let base = self.place(own.clone(), *base, *format);
                let image = base.open_image(Mode::ReadWrite)?;
                layout(*format).set_hidden(&**image, false)?;
                let file = image.file().ok_or_else(|| base.gone())?;
                // A temporary name: a host that repairs removes it first, see `recover_change`.
                own.passing_link(&image_name(base.vdi, *format), file)?.publish_over(&image_name(*vdi, *format))
            }
            Change::Fork { .. } | Change::Compose { .. } | Change::Merges { .. } => {
                unreachable!("the end of a merge is a relink or a collapse")
            }
        }
    }
}

fn change_of(ending: &Ending) -> Change {
    let Ending { vdi, base, format, ref between, is_disk } = *ending;
    let between = between.clone();
    match is_disk {
        true => Change::Collapse { vdi, base, format, between },
        false => Change::Relink { vdi, base, format, between },
    }
}

/// Removes the images that nothing needs when these changes have happened, durably; from the upper ones down, so that one whose parent
/// is gone is never seen.
///
/// # Errors
/// [`crate::Error::Io`].
pub(super) fn remove_gone(dir: &Dir, changes: &[Change]) -> Result<()> {
    let gone: Vec<(VdiUuid, Format)> = changes.iter().flat_map(gone).collect();
    for (vdi, format) in &gone {
        dir.remove(&image_name(*vdi, *format))?;
    }
    dir.sync()?;
    let mut removed = false;
    for (vdi, _) in gone {
        removed |= remove_leftovers(dir, vdi)?;
    }
    if removed { dir.sync() } else { Ok(()) }
}

fn gone(change: &Change) -> Vec<(VdiUuid, Format)> {
    let down = |between: &[VdiUuid]| between.iter().rev().copied().collect::<Vec<_>>();
    let (gone, format) = match change {
        Change::Relink { vdi, between, format, .. } => ([vec![*vdi], down(between)].concat(), format),
        Change::Collapse { base, between, format, .. } => ([down(between), vec![*base]].concat(), format),
        Change::Fork { .. } | Change::Compose { .. } | Change::Merges { .. } => return Vec::new(),
    };
    gone.into_iter().map(|vdi| (vdi, *format)).collect()
}
