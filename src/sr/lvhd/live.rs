//! A group while it is changed: every change gives the group as it is then.
//!
//! Changes are made under two locks of this host: the SR's, which each verb that changes something shares and the Python drivers
//! take alone, and that of the SR's trees. The group is looked at once under them, as the call found it at first if the metadata on
//! the devices still has that version. What is changed afterwards is known, so it is not asked for again, see [`step`](super::step). One LVM
//! process runs all commands of a change. Only the SR's master may change a group.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use super::Group;
use super::step::{Known, Step, plan};
use crate::error::{Error, Result};
use crate::sr::volume_group::VolumeGroup;
use crate::sys::lock::{self, Kind, Lock};
use crate::sys::lvm::Vg;
use crate::sys::lvm::script::{Command, Shell};

/// A group, as the last report and the changes since then show it.
pub struct Live<'a> {
    group: RefCell<Rc<Group<'a>>>,
    shell: Arc<Shell>,
}

/// Ends the LVM process of a change when the lock is released: it would not know of disks that are attached later.
struct Ending(Arc<Shell>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.end();
    }
}

impl<'a> Live<'a> {
    pub fn of(group: Group<'a>) -> Live<'a> {
        Live { group: RefCell::new(Rc::new(group)), shell: Arc::default() }
    }

    /// The group as it is now.
    pub fn now(&self) -> Rc<Group<'a>> {
        self.group.borrow().clone()
    }

    pub fn own(&self) -> &'a VolumeGroup {
        self.group.borrow().own()
    }

    /// The SR as another report shows it.
    pub fn set(&self, vg: Vg) {
        let group = self.now().anew(vg);
        self.group.replace(Rc::new(group));
    }

    /// Forgets what was read of the images. LVM is not asked.
    pub fn reread(&self) {
        let vg = self.now().vg().clone();
        self.set(vg);
    }

    /// Looks at the group again.
    ///
    /// # Errors
    /// Those of [`VolumeGroup::whole`].
    pub fn look_again(&self) -> Result<()> {
        self.own().whole().map(|vg| self.set(vg))
    }

    /// Waits for other calls that change the group, and looks at it again if it has changed meanwhile.
    ///
    /// # Errors
    /// Those of [`Rights::refuse`](super::Rights::refuse); [`Error::Busy`] at the deadline; what looking says.
    pub fn lock(&self, op: &'static str, deadline: Instant) -> Result<Lock> {
        let sr = self.own().sr;
        self.now().rights().refuse(op, sr)?;
        let lock = lock::take(&sr.to_string(), "tree", Kind::Exclusive, deadline).map_err(|refused| {
            refused.or_timed_out(|who| Error::Busy { sr, holder: who.to_owned(), what: "its volumes".to_owned() })
        })?;
        let group = self.now();
        if group.is_current() {
            self.own().refuse_incomplete(group.vg())?;
            self.reread();
        } else {
            self.look_again()?;
        }
        Ok(lock.ending(Ending(self.shell.clone())))
    }

    /// Takes steps one after the other, durably. The caller holds the lock.
    ///
    /// # Errors
    /// [`Error::Tool`] with LVM's words: the steps before the one that failed are taken then, and the group is what it is.
    pub fn take(&self, steps: &[Step]) -> Result<()> {
        self.take_by(steps, |commands| self.shell.run(commands))
    }

    /// [`Live::take`] of the last steps of a change.
    ///
    /// # Errors
    /// Those of [`Live::take`].
    pub fn take_last(&self, steps: &[Step]) -> Result<()> {
        self.take_by(steps, |commands| self.shell.end_with(commands))
    }

    /// The process that runs the commands of a change.
    pub fn shell(&self) -> &Shell {
        &self.shell
    }

    fn take_by(&self, steps: &[Step], run: impl FnOnce(&[Command]) -> Result<()>) -> Result<()> {
        if steps.is_empty() {
            return Ok(());
        }
        let group = self.now();
        let (commands, after, known) = plan(group.vg(), steps);
        match group.own().changed(group.vg(), || run(&commands)) {
            Ok(()) if known == Known::Yes => {
                // How many changes LVM made of each command it alone knows.
                self.set(Vg { version: None, ..after });
                Ok(())
            }
            Ok(()) => self.look_again(),
            Err(failed) => {
                // What LVM says counts; whether the group can be seen shows when it is needed.
                let _ = self.look_again();
                Err(failed)
            }
        }
    }

    /// Refuses volumes of these sizes, in bytes, if the group has no room for them.
    ///
    /// # Errors
    /// [`Error::NoSpace`].
    pub fn refuse_full(&self, sizes: &[u64]) -> Result<()> {
        let group = self.now();
        let (free, wanted) = (group.vg().free, sizes.iter().map(|size| group.round(*size)).sum());
        match wanted > free {
            true => Err(Error::NoSpace { sr: self.own().sr, free, wanted }),
            false => Ok(()),
        }
    }
}
