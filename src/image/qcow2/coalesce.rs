//! Coalescing: what a child holds is written into its parent, which afterwards holds all that the child shows.
//!
//! 1. Write the child's clusters to the parent: data as data, zero clusters as zeroes.
//! 2. Flush the parent; on the way too, when many of its tables have changed.
//!
//! As long as the child is the parent's only child, no disk shows those bytes of the parent that the child holds as well.
//! So a crash leaves every disk as it was, and doing it again completes it. The child is not changed. Relinking the children of the
//! child, or renaming the parent into its place, is the caller's next step, never before this returned `Ok`.

use std::io;
use std::ops::ControlFlow;

use super::Chain;
use super::image::{Image, What};
use crate::error::{Error, Result};
use crate::image::disk::{PIECE, Served};
use crate::types::Size;

/// Copies what `child` holds into `parent`, which is open for writing and at least as large. `progress` is told the
/// bytes that the last step copied and all so far, and ends the work by [`ControlFlow::Break`].
///
/// # Errors
/// [`Error::TooBig`], before anything was written, if the parent is smaller: grow it first. [`Error::Io`] with `ECANCELED` if
/// `progress` said so.
pub fn coalesce(child: &Image, parent: &Chain, progress: &dyn Fn(u64, u64) -> ControlFlow<()>) -> Result<()> {
    coalesce_all(std::slice::from_ref(child), parent, progress)
}

/// As [`coalesce`], of several images with one flush at the end: the parent's child, the child of that, and so on. The caller knows
/// that each is the parent of the next.
///
/// # Errors
/// As [`coalesce`].
pub fn coalesce_all(children: &[Image], parent: &Chain, progress: &dyn Fn(u64, u64) -> ControlFlow<()>) -> Result<()> {
    if let Some(size) = children.iter().map(Image::virtual_size).find(|size| *size > parent.virtual_size()) {
        return Err(Error::TooBig {
            what: "a child image",
            bytes: size,
            limit: format!("its parent holds {}; grow it first", Size(parent.virtual_size())),
        });
    }
    let mut copied = 0;
    children.iter().try_for_each(|child| copy(child, parent, &mut copied, progress))?;
    parent.flush()
}

/// Copies what a child holds, and adds the bytes to `copied`. Nothing is flushed.
fn copy(child: &Image, parent: &Chain, copied: &mut u64, progress: &dyn Fn(u64, u64) -> ControlFlow<()>) -> Result<()> {
    let size = child.virtual_size();
    let place = &**child.place();
    let mut buf = vec![0; PIECE];
    let mut at = 0;
    while at < size {
        let (what, run) = child.look(at, size - at)?;
        let run = if matches!(what, What::Data(..)) { run.min(PIECE as u64) } else { run };
        let part = &mut buf[..run.min(PIECE as u64) as usize];
        let step = if matches!(what, What::Data(..) | What::Compressed(_)) { run } else { 0 };
        match what {
            What::Absent(_) => {}
            What::Zero(_) => parent.write_zeroes(at, run)?,
            What::Data(host, _) => {
                // A hole: its space was never written, or another program gave it back.
                if place.next_data(host, host + run).map_err(place.fail("look for data in"))?.is_none() {
                    parent.write_zeroes(at, run)?;
                } else {
                    place.get(part, host)?;
                    parent.write_at(part, at)?;
                }
            }
            What::Compressed(entry) => {
                let within = (at % child.header().cluster()) as usize;
                parent.write_at(&child.inflate(entry)?[within..][..run as usize], at)?;
            }
        }
        at += run;
        *copied += step;
        if progress(step, *copied).is_break() {
            return Err(place.fail("coalesce")(io::Error::from_raw_os_error(nix::libc::ECANCELED)));
        }
    }
    Ok(())
}

/// Tells the stretches of the disk, from a byte to before another, that an image itself holds: data, and zeroes that hide what
/// its parents hold.
///
/// # Errors
/// [`crate::Error::Io`], [`crate::Error::Damaged`] for a table that cannot be read.
pub fn own(image: &Image, tell: &mut dyn FnMut(u64, u64)) -> Result<()> {
    let (size, mut at) = (image.virtual_size(), 0);
    while at < size {
        let (what, run) = image.look(at, size - at)?;
        if !matches!(what, What::Absent(_)) {
            tell(at, at + run);
        }
        at += run;
    }
    Ok(())
}
