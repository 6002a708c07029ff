//! The locks by which other hosts see which images of a shared SR are open, and what happens when they are lost.

use std::fs::OpenOptions;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;

use super::super::{Source, USES, use_of};
use super::chain::{open, open_image};
use super::{Disk, Gate, lock, read};
use crate::error::{Error, Result, one_line};
use crate::image::disk::Served;
use crate::image::name::ImageName;
use crate::image::storage::FileStorage;
use crate::image::{qcow2, vhd};
use crate::sys::uses::{self, Uses};
use crate::types::{Format, Mode};

/// How long the locks on the images count after they were asked for: no lease of an NFS server is shorter.
const COUNTS_FOR: Duration = Duration::from_secs(10);

/// How long a change of a tree by another host is waited for. It takes milliseconds, on a slow server more.
const PATIENCE: Duration = Duration::from_secs(30);

/// Images that other hosts see in use, and what they were when that began.
pub(super) struct Used {
    _locks: Uses,
    images: Vec<Identity>,
}

/// The facts that change when another image takes an image's name, or when an image grows.
#[derive(Clone, PartialEq, Eq)]
struct Identity {
    path: PathBuf,
    file: (u64, u64),
    virtual_size: u64,
}

impl Disk {
    /// Takes the locks again from time to time by which other hosts see which images are open, as long as the disk lives: an
    /// NFS client that was away from its server for longer than the lease loses them, and nobody tells. If an image was
    /// changed meanwhile, requests fail from then on instead of being written into what may be another disk's base by now.
    ///
    /// Nothing is read or written either once the locks were not taken for [`COUNTS_FOR`]: the request takes them first.
    /// Data that the kernel had in its cache before an outage is out of reach; the kernel writes it when the server is
    /// back.
    pub fn stay_in_use(self: &Arc<Self>) {
        if !self.source.shared {
            return;
        }
        let disk = Arc::downgrade(self);
        std::thread::spawn(move || {
            loop {
                std::thread::sleep(COUNTS_FOR / 2);
                match disk.upgrade() {
                    // It is asked again, and so does a request.
                    Some(disk) => drop(disk.renew_uses().map_err(|error| disk.complain(&error))),
                    None => break,
                }
            }
        });
    }

    /// Keeps locks that were asked for at this time.
    pub(super) fn have_taken(&self, uses: Option<Used>, asked: Instant) {
        let until = (asked + COUNTS_FOR).saturating_duration_since(self.born).as_millis() as u64;
        self.counts_until.store(if uses.is_some() { until } else { u64::MAX }, Relaxed);
        *lock(&self.uses) = uses;
    }

    pub(super) fn may_have_lost_uses(&self) -> bool {
        match self.counts_until.load(Relaxed) {
            u64::MAX => false,
            until => self.born.elapsed().as_millis() as u64 > until,
        }
    }

    /// Asks for the locks on the images of `chain` again, until `patience` from now if another host has one of them alone.
    /// `false`: another host changed the images since the locks were taken. `true`: it did not, or there is nothing to
    /// lock.
    fn ask_again(&self, chain: &dyn Served, patience: Duration) -> Result<bool> {
        let Some(images) = lock(&self.uses).as_ref().map(|used| used.images.clone()) else { return Ok(true) };
        let asked = Instant::now();
        match used_images(&self.source, &chain.images(), asked + patience)? {
            Some(now) if now.images == images => {
                self.have_taken(Some(now), asked);
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// Takes the locks again. If it answers, no other host can have changed the images, or all requests fail.
    ///
    /// # Errors
    /// [`Error::Io`]: the server answers with an error, so it is not known.
    pub(super) fn renew_uses(&self) -> Result<()> {
        {
            // A pause, after which the images may be changed, waits for the end of this.
            let gate = read(&self.gate);
            let Gate::Open(chain) = &*gate else { return Ok(()) };
            match self.ask_again(&**chain, Duration::ZERO) {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                // Another host has an image alone, which it could not have if our lock still counted; or has had it.
                Err(e) if matches!(e.errno().map(Errno::from_raw), Some(Errno::ETIMEDOUT | Errno::ENOENT)) => {}
                Err(other) => return Err(other),
            }
        }
        // Requests wait until it is known what became of the images.
        let mut gate = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        let Gate::Open(chain) = &*gate else { return Ok(()) };
        let why = match self.ask_again(&**chain, PATIENCE) {
            Ok(true) => return Ok(()),
            Ok(false) => {
                "another host changed the images of the disk while this one had lost its lock on them".to_owned()
            }
            Err(error) => format!("the lock on the images of the disk was lost: {}", one_line(&error)),
        };
        *lock(&self.complaint) = Some(why.clone());
        // Not closed: that would write into the images.
        *gate = Gate::Failed(format!("{why}; detach it"));
        self.have_taken(None, Instant::now());
        Ok(())
    }
}

/// Opens the chain, and says so where other hosts may change it: once they see it, they leave it alone.
pub(super) fn open_used(source: &Source) -> Result<(Box<dyn Served>, Option<Used>)> {
    let mut chain = open(source)?;
    if !source.shared {
        return Ok((chain, None));
    }
    let deadline = Instant::now() + PATIENCE;
    loop {
        let images = chain.images();
        let Some(used) = used_images(source, &images, deadline)? else { return Ok((chain, None)) };
        // The tree may have been changed before it was seen that we use it.
        chain = open(source)?;
        if chain.images() == images {
            return Ok((chain, Some(used)));
        }
    }
}

/// Shows other hosts that these images are in use. `None`: they can't be changed here, and no host has changed one yet.
fn used_images(source: &Source, images: &[PathBuf], deadline: Instant) -> Result<Option<Used>> {
    let path = source.path.with_file_name(USES);
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).mode(0o600).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    let file = match options.open(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::ReadOnlyFilesystem => {
            match options.write(false).create(false).open(&path) {
                // The hosts that can write here have not changed a tree yet.
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                file => file,
            }
        }
        file => file,
    };
    let file = file.map_err(Error::io("open", &path))?;
    let locks = uses::hold(file, &path, images.iter().map(|image| use_of(image)), deadline)?;
    let images = images.iter().map(|image| identity(image)).collect::<Result<_>>()?;
    Ok(Some(Used { _locks: locks, images }))
}

/// Opens the image by its name, so that an NFS server is asked what has it now.
fn identity(path: &Path) -> Result<Identity> {
    let file = open_image(path, Mode::ReadOnly)?;
    let meta = file.metadata().map_err(Error::io("examine", path))?;
    let place = FileStorage::new(file, path)?;
    let virtual_size = match ImageName::format_of(path) {
        Some(Format::Vhd) => vhd::query(&place)?.virtual_size,
        Some(Format::Qcow2) => qcow2::Header::read(&place)?.virtual_size,
        Some(Format::Raw) | None => meta.len(),
    };
    Ok(Identity { path: path.to_owned(), file: (meta.dev(), meta.ino()), virtual_size })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    const SIZE: u64 = 4 << 20;

    fn image(path: &Path, parent: Option<&Path>) {
        let file = File::options().read(true).write(true).create_new(true).open(path).unwrap();
        let place = FileStorage::new(file, path).unwrap();
        let Some(parent) = parent else { return drop(vhd::create(&place, &vhd::NewImage::new(SIZE)).unwrap()) };
        let info = vhd::query(&FileStorage::open(parent, Mode::ReadOnly).unwrap()).unwrap();
        let link = vhd::ParentLink::beside(
            parent.file_name().unwrap().to_str().unwrap(),
            Some(info.uuid),
            vhd::timestamp(std::time::SystemTime::now()),
        );
        vhd::create_child(&place, &vhd::NewImage::new(SIZE), &link).unwrap();
    }

    /// A disk of an SR that hosts share, with data in it.
    fn disk(dir: &Path) -> Disk {
        let path = dir.join("leaf.vhd");
        image(&path, None);
        let disk = Disk::open(&Source { format: Format::Vhd, path, read_only: false, shared: true }).unwrap();
        disk.write(&[7; 4096], 0).unwrap();
        disk.flush().unwrap();
        disk
    }

    /// Takes the locks from the disk, as an outage that is longer than the lease does.
    fn lose_lock(disk: &Disk) {
        let elsewhere = tempfile::tempfile().unwrap();
        let nothing = uses::hold(elsewhere, Path::new("nothing"), [], Instant::now()).unwrap();
        lock(&disk.uses).as_mut().unwrap()._locks = nothing;
    }

    /// Another host wants the leaf to itself.
    fn alone(dir: &Path) -> Option<Uses> {
        let path = dir.join(USES);
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        uses::alone(file, &path, ["leaf"]).unwrap()
    }

    #[test]
    fn a_lost_lock_on_the_images_is_taken_again() {
        let dir = tempfile::tempdir().unwrap();
        let disk = disk(dir.path());
        assert!(alone(dir.path()).is_none());
        lose_lock(&disk);
        drop(alone(dir.path()).expect("it is lost"));
        disk.renew_uses().unwrap();
        assert!(alone(dir.path()).is_none(), "it was not taken again");
        disk.write(&[8; 4096], 0).unwrap();
        disk.pause().unwrap();
        assert!(alone(dir.path()).is_some(), "a paused disk is nobody's");
        disk.renew_uses().unwrap();
        assert!(alone(dir.path()).is_some(), "a paused disk is nobody's");
        disk.resume().unwrap();
        disk.close().unwrap();
    }

    #[test]
    fn requests_wait_for_another_host_that_has_the_images_alone() {
        let dir = tempfile::tempdir().unwrap();
        let disk = disk(dir.path());
        lose_lock(&disk);
        let other = alone(dir.path()).unwrap();
        std::thread::scope(|scope| {
            let renewal = scope.spawn(|| disk.renew_uses().unwrap());
            std::thread::sleep(Duration::from_millis(200));
            assert!(!renewal.is_finished());
            drop(other);
        });
        disk.write(&[8; 4096], 0).unwrap();
        assert!(alone(dir.path()).is_none());
        disk.close().unwrap();
    }

    #[test]
    fn nothing_is_written_into_an_image_that_became_a_base_while_the_lock_was_lost() {
        for renew in [|disk: &Disk| drop(disk.renew_uses()), |disk: &Disk| disk.counts_until.store(0, Relaxed)] {
            nothing_is_written_after(renew);
        }
    }

    fn nothing_is_written_after(renew: impl Fn(&Disk)) {
        let dir = tempfile::tempdir().unwrap();
        let (leaf, base) = (dir.path().join("leaf.vhd"), dir.path().join("base.vhd"));
        let disk = disk(dir.path());
        lose_lock(&disk);
        let other = alone(dir.path()).unwrap();
        let new = dir.path().join("new.vhd");
        image(&new, Some(&leaf));
        std::fs::rename(&leaf, &base).unwrap();
        std::fs::rename(&new, &leaf).unwrap();
        drop(other);
        let before = std::fs::read(&base).unwrap();
        renew(&disk);
        assert_eq!(disk.write(&[9; 4096], 0), Err(Errno::EIO));
        assert_eq!(disk.flush(), Err(Errno::EIO));
        assert!(disk.complaint().unwrap().contains("another host changed the images"));
        assert!(alone(dir.path()).is_some(), "it holds the lock of what it does not serve");
        disk.close().unwrap();
        assert!(std::fs::read(&base).unwrap() == before, "the base was written to");
    }

    #[test]
    fn an_image_that_another_host_made_larger_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let disk = disk(dir.path());
        lose_lock(&disk);
        let place: Arc<dyn vhd::Storage> =
            Arc::new(FileStorage::open(dir.path().join("leaf.vhd"), Mode::ReadWrite).unwrap());
        vhd::resize(&place, 2 * SIZE).unwrap();
        disk.renew_uses().unwrap();
        assert_eq!(disk.write(&[9; 4096], 0), Err(Errno::EIO));
    }
}
