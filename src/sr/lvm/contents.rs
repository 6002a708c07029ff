//! Changes of a volume's contents: zeroing, cutting, growing, and the end of what a killed call left of these.

use super::place::LvmPlace;
use super::{POOL, UNFINISHED, tags};
use crate::error::{Error, Result, ended};
use crate::sys::blockdev;
use crate::sys::lvm;

impl LvmPlace<'_> {
    /// Gives an active volume that was never attached the zeroes it promised.
    pub(super) fn zero_active(&self) -> Result<()> {
        blockdev::zero(&self.node(), &|_, _| {})?;
        self.untag(tags::ZERO)
    }

    /// Gives a volume that is not attached yet the zeroes it promised. While the volume is active and has the tag, it does not
    /// count as attached, so the tag is removed last.
    pub(super) fn zero_now(&self) -> Result<()> {
        self.activate()?;
        blockdev::zero(&self.node(), &|_, _| {})?;
        self.deactivate()?;
        self.untag(tags::ZERO)
    }

    pub(super) fn end_lending(&self) -> Result<()> {
        if self.lv.borrow().active {
            self.deactivate()?;
        }
        self.untag(tags::LENT)
    }

    /// Removes the extents that a killed vdi_resize was preparing, or completes the cut that it began, or ends what is left
    /// of a vdi_export or a vdi_revert. Extents that another host prepares are left to those calls that `may_change`
    /// the group.
    pub(super) fn sweep(&self, may_change: bool) -> Result<()> {
        self.sr.resume(&self.vg, self.vg.lvs.iter().chain([&*self.lv.borrow()]))?;
        let is_left = |tags: &Vec<String>| may_change || !tags::is_elsewhere(tags);
        if self.unfinished.borrow().as_ref().is_some_and(is_left) {
            self.sr.remove_unfinished(&self.vg, &format!("{UNFINISHED}{}", self.vdi))?;
            self.unfinished.take();
        }
        if may_change {
            self.sr.end_trim_left(&self.vg)?;
        }
        self.end_revert()?;
        if self.record().lent {
            self.end_lending()?;
        }
        if let Some(damaged) = self.damaged() {
            return Err(damaged);
        }
        match self.record().cut {
            Some(size) => self.cut(size),
            None => Ok(()),
        }
    }

    /// Cuts a thin disk that is tagged so. The data that is cut off is discarded first: it must not come back when the
    /// disk grows.
    pub(super) fn cut(&self, size: u64) -> Result<()> {
        if self.lv.borrow().size > size {
            self.activate()?;
            self.discard_from(size)?;
            self.deactivate()?;
            self.reduce(size)?;
        }
        self.untag(&tags::cut(size))
    }

    /// Makes the bytes behind `size` read as zeroes when the disk grows again. A pool takes back whole chunks only.
    pub(super) fn discard_from(&self, size: u64) -> Result<()> {
        let node = self.node();
        let chunk = lvm::chunks(&self.vg.name, POOL)?.size;
        let end = size.checked_next_multiple_of(chunk).unwrap_or(u64::MAX).min(self.lv.borrow().size);
        if size < end {
            let file = blockdev::open(&node, true)?;
            blockdev::zero_range(&file, &node, size, end)?;
            file.sync_all().map_err(Error::io("flush", &node))?;
        }
        blockdev::discard(&node, end)
    }

    pub(super) fn refuse_without_discards(&self) -> Result<()> {
        if lvm::chunks(&self.vg.name, POOL)?.discards {
            return Ok(());
        }
        Err(Error::Unsupported {
            op: "making a disk smaller",
            why: format!(
                "the pool ignores discards, so what is cut off would be seen when the disk grows: lvchange --discards \
                 nopassdown {}/{POOL}",
                self.vg.name
            ),
        })
    }

    pub(super) fn reduce(&self, size: u64) -> Result<()> {
        self.change("lvreduce", &["-y", "-f", "-L", &format!("{size}b")], &[&self.full_name()])?;
        self.lv.borrow_mut().size = size;
        Ok(())
    }

    /// Grows a thick disk whose contents count: the extents are zeroed before the disk has them, because a
    /// guest may write to them the moment it does.
    pub(super) fn grow_zeroed(&self, more: u64) -> Result<()> {
        const TRIES: u32 = 5;
        let name = format!("{UNFINISHED}{}", self.vdi);
        let extents = (more / self.vg.extent_size).to_string();
        let mut tries = 0;
        loop {
            tries += 1;
            let maker = tags::of_maker();
            let options = ["-y", "-ay", "-Zn", "-Wn", "-n", &name, "-l", &extents, "--addtag", &maker];
            self.change("lvcreate", &options, &[&self.vg.name]).map_err(|e| self.sr.explain(e, None, more))?;
            let zeroed = blockdev::zero(&lvm::node(&self.vg.name, &name), &|_, _| {})
                .and_then(|()| lvm::extents(&self.vg.name, &name));
            let removed = self.sr.remove_unfinished(&self.vg, &name);
            let ranges = ended(zeroed, removed)?;
            let full_name = self.full_name();
            let mut names = vec![full_name.as_str()];
            names.extend(ranges.iter().map(String::as_str));
            match self.change("lvextend", &["-y", "-l", &format!("+{extents}")], &names) {
                Ok(()) => return Ok(()),
                // Another call may have taken the extents between the two commands.
                Err(_) if tries < TRIES => {}
                Err(failed) => return Err(self.sr.explain(failed, None, more)),
            }
        }
    }
}
