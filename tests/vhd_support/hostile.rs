//! Everything that can be done to an image, done to bytes that somebody else wrote. Used by the bounded run in
//! `tests/vhd_hostile.rs` and by the fuzz target, so it depends on neither.

use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, Mutex};

use xcp_sm::image::vhd::{self, Chain, CheckOptions, Image, NewImage, Parent, ParentLink, Storage, Target};
use xcp_sm::types::Mode;

/// A file in memory that has no room beyond 24 MiB, and is read in parts of no more than so many bytes.
#[derive(Debug)]
struct Small(Mutex<Vec<u8>>, usize);

const ROOM: u64 = 24 << 20;

pub fn small(bytes: &[u8]) -> Arc<dyn Storage> {
    read_by(bytes, 8 << 20)
}

/// The same, read in parts of no more than `most` bytes.
pub fn read_by(bytes: &[u8], most: usize) -> Arc<dyn Storage> {
    Arc::new(Small(Mutex::new(bytes.to_vec()), most))
}

impl Storage for Small {
    fn path(&self) -> &Path {
        Path::new("hostile.vhd")
    }
    fn size(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().len() as u64)
    }
    fn is_device(&self) -> bool {
        false
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        assert!(buf.len() <= self.1, "a buffer of {} bytes", buf.len());
        let bytes = self.0.lock().unwrap();
        let from = (offset as usize).min(bytes.len());
        let len = buf.len().min(bytes.len() - from);
        buf[..len].copy_from_slice(&bytes[from..from + len]);
        Ok(len)
    }
    fn write_at(&self, new: &[u8], offset: u64) -> io::Result<()> {
        if offset.saturating_add(new.len() as u64) > ROOM {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let mut bytes = self.0.lock().unwrap();
        let end = offset as usize + new.len();
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        bytes[offset as usize..end].copy_from_slice(new);
        Ok(())
    }
    fn set_size(&self, size: u64) -> io::Result<()> {
        if size > ROOM {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.0.lock().unwrap().resize(size as usize, 0);
        Ok(())
    }
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
    fn punch(&self, offset: u64, len: u64) -> io::Result<bool> {
        let mut bytes = self.0.lock().unwrap();
        let end = bytes.len();
        bytes[(offset as usize).min(end)..(offset.saturating_add(len) as usize).min(end)].fill(0);
        Ok(true)
    }
}

/// Must return: no panic, no endless loop. What the operations say does not matter.
pub fn try_everything(bytes: &[u8]) {
    let reads = |chain: &Chain| {
        let size = chain.virtual_size();
        let mut buf = vec![0; 64 << 10];
        for at in [0, 1 << 20, 2 << 20, size / 2, size.saturating_sub(64 << 10)] {
            let at = at / 512 * 512;
            let len = (buf.len() as u64).min(size.saturating_sub(at)) as usize / 512 * 512;
            let _ = chain.read_at(&mut buf[..len], at);
        }
        let _ = chain.extents(0, size / 512 * 512, 8).take(64).count();
    };
    let place = small(bytes);
    let Ok(info) = vhd::query(&*place) else {
        assert!(vhd::check(&place, CheckOptions::default()).is_ok());
        return;
    };
    let _ = info.parent.as_ref().and_then(|p| p.file_name().map(str::to_owned));
    let resolve = |_: &vhd::ParentInfo| Ok(Parent::Vhd(place.clone()));
    if let Ok(chain) = Chain::open(place.clone(), Mode::ReadOnly, resolve) {
        reads(&chain);
    }
    let raw = small(&[7; 5000]);
    if let Ok(chain) = Chain::open(place.clone(), Mode::ReadOnly, |_| Ok(Parent::Raw(raw.clone()))) {
        reads(&chain);
    }
    let _ = vhd::check(&place, CheckOptions { bitmaps: true, ..Default::default() });

    let copy = small(bytes);
    if let Ok(chain) = Chain::open(copy.clone(), Mode::ReadWrite, |_| Ok(Parent::Raw(raw.clone()))) {
        let size = chain.virtual_size() / 512 * 512;
        for at in [0, 4 << 20, size / 2, size.saturating_sub(1024)] {
            let _ = chain.write_at(&[1; 1024], at / 512 * 512);
        }
        let _ = chain.write_zeroes(0, size.min(4 << 20));
        let _ = chain.flush();
        reads(&chain);
        let _ = chain.close();
    }
    let copy = small(bytes);
    let _ = vhd::set_hidden(&*copy, true);
    let link = ParentLink { path: "./other.vhd".into(), uuid: Some(info.uuid), timestamp: 0 };
    let _ = vhd::set_parent(&*copy, &link);
    let _ = vhd::resize(&copy, 600 << 20);
    let _ = vhd::repair(&copy);
    if let Ok(child) = Image::open(place, Mode::ReadOnly) {
        let go_on = |done, _| if done > 6 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
        // What the child names as its parent, where that is possible, or it would be refused before anything else.
        let named = info.parent.as_ref().and_then(|link| link.uuid);
        let new = NewImage::new(info.virtual_size.clamp(512, 16 << 20) / 512 * 512);
        let parent = small(&[]);
        vhd::create(&*parent, &NewImage { uuid: named.unwrap_or(new.uuid), ..new }).unwrap();
        let parent = Image::open(parent, Mode::ReadWrite).unwrap();
        let _ = vhd::coalesce(&child, Target::Vhd(&parent), &go_on);
        let raw = small(&vec![7; info.virtual_size.min(16 << 20) as usize]);
        let _ = vhd::coalesce(&child, Target::Raw(&*raw), &go_on);
    }
}
