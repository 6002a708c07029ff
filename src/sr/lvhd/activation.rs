//! The volumes that are active on this host for disks that are attached here, counted as the Python drivers count them
//! (`refcounter.py`), so that either side leaves active what the other one uses.
//!
//! The file `/run/sm/refcount/lvm-<sr>/<vdi>` says `<users> <attached>`: how many attached disks have the image in their chain,
//! and 1 if the disk itself is attached. Without a file both are 0. A volume is active while one of them is not. The lock of the
//! counts is `/var/lock/sm/lvm-<sr>/<vdi>`. A reboot clears all of these, and deactivates the volumes.
//!
//! Attaching: 1. count; 2. activate; 3. make the device. Detaching: 1. remove the device; 2. count; 3. deactivate what has no user. A
//! kill after the first step of either leaves a count of an attached disk without a device: the next vdi_attach of the disk goes on
//! from there, and vdi_detach of it ends it.

use std::fs;
use std::io;
use std::path::PathBuf;

use super::step::{Step, plan};
use super::{Group, Rights};
use crate::error::{Error, Result};
use crate::sys::lock::{self, Kind, Lock};
use crate::sys::lvm::script::Shell;
use crate::sys::lvm::{self, Deactivated};
use crate::sys::{run_dir, syslog};
use crate::types::{SrUuid, VdiUuid};

/// The users of a volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    users: u64,
    /// 0 or 1.
    attached: u64,
}

impl Count {
    fn parse(text: &str) -> Option<Count> {
        let mut words = text.split_whitespace().map(|word| word.parse().ok());
        Some(Count { users: words.next()??, attached: words.next()?? })
    }

    fn is_used(self) -> bool {
        self.users > 0 || self.attached > 0
    }
}

/// One user more, or less.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    More,
    Less,
}

/// The counts of the images of a disk, the disk's own first, locked.
struct Counts<'g, 'a> {
    group: &'g Group<'a>,
    chain: &'g [VdiUuid],
    counts: Vec<Count>,
    _locks: Vec<Lock>,
}

impl<'g, 'a> Counts<'g, 'a> {
    fn lock(group: &'g Group<'a>, chain: &'g [VdiUuid]) -> Result<Counts<'g, 'a>> {
        let (sr, deadline) = (group.own().sr, group.own().deadline.end());
        let take = |vdi: &VdiUuid| {
            lock::take(&format!("lvm-{sr}"), &vdi.to_string(), Kind::Exclusive, deadline).map_err(|refused| {
                refused.or_timed_out(|who| Error::Busy {
                    sr,
                    holder: who.to_owned(),
                    what: format!("the volume of VDI {vdi}"),
                })
            })
        };
        // In the order of their UUIDs, as all calls do that take several.
        let mut sorted = chain.to_vec();
        sorted.sort_unstable();
        let locks = sorted.iter().map(take).collect::<Result<Vec<Lock>>>()?;
        let counts = chain.iter().map(|vdi| read(&file(group, *vdi))).collect::<Result<Vec<Count>>>()?;
        Ok(Counts { group, chain, counts, _locks: locks })
    }

    fn is_attached(&self) -> bool {
        self.counts[0].attached > 0
    }

    /// Counts the disk as attached, or as attached no more.
    fn set_attached(&mut self, attached: bool) -> Result<()> {
        for (n, count) in self.counts.iter_mut().enumerate() {
            match (n, attached) {
                (0, _) => count.attached = u64::from(attached),
                (_, true) => count.users += 1,
                (_, false) => count.users = count.users.saturating_sub(1),
            }
        }
        self.chain.iter().zip(&self.counts).try_for_each(|(vdi, count)| write(&file(self.group, *vdi), *count))
    }

    /// `group/volume` of each image of the chain for which `wanted` holds.
    fn volumes(&self, wanted: impl Fn(Count, &lvm::Lv) -> bool) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for (vdi, count) in self.chain.iter().zip(&self.counts) {
            let lv = &self.group.volume(*vdi)?.lv;
            if wanted(*count, lv) {
                names.push(lv.name.clone());
            }
        }
        Ok(names)
    }

    /// Deactivates the volumes that have no user. One that is open all the same stays active, which is noted.
    fn deactivate_unused(&self) -> Result<()> {
        let vg = &self.group.vg().name;
        for lv in self.volumes(|count, _| !count.is_used())? {
            if let Deactivated::Busy(who) = lvm::deactivate(vg, &lv)? {
                syslog::write(&format!("{} stays active: {who} has it open", lvm::node(vg, &lv).display()));
            }
        }
        Ok(())
    }
}

impl Group<'_> {
    /// Activates the volumes of a disk's chain, the disk's own first, and counts them. `first`: steps that are taken before, by the
    /// same process, which is that of `shell` if it has one.
    ///
    /// # Errors
    /// [`Error::VdiInUse`] if another storage manager has the disk attached on this host; what LVM says. Then nothing is active
    /// that was not before.
    pub fn activate(&self, chain: &[VdiUuid], first: &[Step], shell: &Shell) -> Result<()> {
        let mut counts = Counts::lock(self, chain)?;
        let was_attached = counts.is_attached();
        let leaf = &self.volume(chain[0])?.lv;
        if leaf.open {
            let holder = "this host, where another program has its volume open".to_owned();
            return Err(Error::VdiInUse { vdi: chain[0], sr: self.own().sr, holder });
        }
        if !was_attached {
            counts.set_attached(true)?;
        }
        // The report may be older than the lock of the counts.
        let here = lvm::kernel_names(&self.vg().name);
        let is_active = |lv: &lvm::Lv| lv.active && here.contains(&lvm::dm_name(&self.vg().name, &lv.name));
        let names = counts.volumes(|_, lv| !is_active(lv))?;
        let mut steps = first.to_vec();
        if !names.is_empty() {
            steps.push(Step::Activate { names });
        }
        // Another host may have changed them since they were activated.
        let stale = counts.volumes(|_, lv| is_active(lv))?;
        if !stale.is_empty() && self.rights() == Rights::Slave {
            steps.push(Step::Refresh { names: stale });
        }
        let (commands, ..) = plan(self.vg(), &steps);
        let activated = match first {
            // A group without all its devices is not changed, but read.
            [] => shell.end_with(&commands),
            _ => self.own().changed(self.vg(), || shell.end_with(&commands)),
        };
        activated.map_err(|cause| cause.undone(counts.set_attached(false).and_then(|()| counts.deactivate_unused())))
    }

    /// Whether a disk is counted as attached on this host.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Damaged`] if the count cannot be read.
    pub fn is_counted(&self, vdi: VdiUuid) -> Result<bool> {
        read(&file(self, vdi)).map(|count| count.attached > 0)
    }

    /// Counts what uses an image that a change of its tree has given another part: so many disks have it in their chains. The
    /// caller holds the lock of the trees, and no process has the image open.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Busy`].
    pub fn recount(&self, vdi: VdiUuid, users: u64) -> Result<()> {
        let chain = [vdi];
        let mut counts = Counts::lock(self, &chain)?;
        counts.counts[0].users = users;
        write(&file(self, vdi), counts.counts[0])
    }

    /// Counts one user of an image more or less, of which another host said so. Whether it has one now.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Busy`].
    pub fn count(&self, vdi: VdiUuid, counted: Counted) -> Result<bool> {
        let chain = [vdi];
        let mut counts = Counts::lock(self, &chain)?;
        let count = &mut counts.counts[0];
        count.users = match counted {
            Counted::More => count.users + 1,
            Counted::Less => count.users.saturating_sub(1),
        };
        let count = *count;
        write(&file(self, vdi), count).map(|()| count.is_used())
    }

    /// Counts no user of an image that is gone.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Busy`].
    pub fn uncount(&self, vdi: VdiUuid) -> Result<()> {
        let chain = [vdi];
        let _counts = Counts::lock(self, &chain)?;
        write(&file(self, vdi), Count::default())
    }

    /// Ends what [`Group::activate`] did. Idempotent.
    ///
    /// # Errors
    /// What LVM says.
    pub fn deactivate(&self, chain: &[VdiUuid]) -> Result<bool> {
        let mut counts = Counts::lock(self, chain)?;
        if !counts.is_attached() {
            return Ok(false);
        }
        counts.set_attached(false)?;
        counts.deactivate_unused().map(|()| true)
    }
}

fn directory(sr: SrUuid) -> PathBuf {
    run_dir::state().join("refcount").join(format!("lvm-{sr}"))
}

fn file(group: &Group, vdi: VdiUuid) -> PathBuf {
    directory(group.own().sr).join(vdi.to_string())
}

/// Counts no user of any image of an SR.
///
/// # Errors
/// [`Error::Io`].
pub fn forget_all(sr: SrUuid) -> Result<()> {
    let directory = directory(sr);
    match fs::remove_dir_all(&directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", &directory)(error)),
        _ => Ok(()),
    }
}

fn read(path: &PathBuf) -> Result<Count> {
    match fs::read_to_string(path) {
        Ok(text) => Count::parse(&text).ok_or_else(|| Error::Damaged {
            path: path.clone(),
            what: format!("it says {text:.40?} for the users of a volume; if no disk of the SR is attached, remove it"),
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Count::default()),
        Err(error) => Err(Error::io("read", path)(error)),
    }
}

/// The file is there only while there is a user, and its directory while it has a file.
fn write(path: &PathBuf, count: Count) -> Result<()> {
    let dir = path.parent().expect("it lies in the directory of its SR");
    if !count.is_used() {
        return match fs::remove_file(path) {
            Ok(()) => {
                let _ = fs::remove_dir(dir);
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(Error::io("remove", path)(error)),
        };
    }
    fs::create_dir_all(dir).map_err(Error::io("create the directory", dir))?;
    fs::write(path, format!("{} {}\n", count.users, count.attached)).map_err(Error::io("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_as_they_are_written_and_are_gone_with_the_last_user() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("lvm-sr").join("vdi");
        assert_eq!(read(&path).unwrap(), Count::default());
        for count in [Count { users: 0, attached: 1 }, Count { users: 12, attached: 0 }] {
            write(&path, count).unwrap();
            assert_eq!(read(&path).unwrap(), count);
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), "12 0\n", "the text of refcounter.py");
        write(&path, Count::default()).unwrap();
        write(&path, Count::default()).unwrap();
        assert!(!path.parent().unwrap().exists());
        for bad in ["", "1", "x 1", "1 -1"] {
            assert_eq!(Count::parse(bad), None, "{bad:?}");
        }
    }
}
