//! A disk in memory that records writes and syncs, so that what an operation did can be replayed up to each point,
//! with those of the writes since the last sync that the dice choose. Writes are atomic by sector, as disks promise,
//! and in no order between syncs.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use xcp_sm::image::storage::Storage;

pub const SECTOR: u64 = 512;
pub type Sector = [u8; 512];

/// A file or device in memory.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    pub sectors: HashMap<u64, Sector>,
    pub size: u64,
    device: bool,
}

impl Disk {
    pub fn file() -> Self {
        Disk::default()
    }

    /// A device that holds what others left there.
    pub fn device(size: u64) -> Self {
        Disk { size, device: true, ..Disk::default() }
    }

    pub fn sector(&self, n: u64) -> Sector {
        self.sectors.get(&n).copied().unwrap_or([if self.device { 0xA5 } else { 0 }; 512])
    }

    pub fn put(&mut self, n: u64, bytes: Sector) {
        self.sectors.insert(n, bytes);
        if !self.device {
            self.size = self.size.max((n + 1) * SECTOR);
        }
    }

    pub fn cut(&mut self, size: u64) {
        self.size = size;
        self.sectors.retain(|n, _| (n + 1) * SECTOR <= size);
    }

    fn apply(&mut self, op: &Op, mut keep: impl FnMut() -> bool) {
        match op {
            Op::Write(sectors) => sectors.iter().filter(|_| keep()).for_each(|(n, bytes)| self.put(*n, *bytes)),
            Op::Punch(sectors) => {
                for n in sectors.clone().filter(|_| keep()) {
                    self.sectors.remove(&n);
                }
            }
            Op::Size(size) => {
                if keep() {
                    self.cut(*size);
                }
            }
            Op::Sync => {}
        }
    }
}

#[derive(Clone, Debug)]
pub enum Op {
    Write(Vec<(u64, Sector)>),
    Punch(std::ops::Range<u64>),
    Size(u64),
    Sync,
}

impl Op {
    /// What can happen or not by itself.
    fn parts(&self) -> usize {
        match self {
            Op::Write(sectors) => sectors.len(),
            Op::Punch(sectors) => (sectors.end - sectors.start) as usize,
            Op::Size(_) => 1,
            Op::Sync => 0,
        }
    }
}

/// A [`Storage`] that remembers what was done to it.
#[derive(Debug)]
pub struct Recorder(Mutex<(Disk, Vec<Op>)>);

impl Recorder {
    pub fn new(disk: Disk) -> Arc<Self> {
        Arc::new(Recorder(Mutex::new((disk, Vec::new()))))
    }
    pub fn disk(&self) -> Disk {
        self.0.lock().unwrap().0.clone()
    }
    pub fn ops(&self) -> Vec<Op> {
        self.0.lock().unwrap().1.clone()
    }
    pub fn position(&self) -> usize {
        self.0.lock().unwrap().1.len()
    }
    fn record(&self, op: Op) {
        let (disk, ops) = &mut *self.0.lock().unwrap();
        disk.apply(&op, || true);
        ops.push(op);
    }
}

impl Storage for Recorder {
    fn path(&self) -> &Path {
        Path::new("recorded")
    }
    fn size(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().0.size)
    }
    fn is_device(&self) -> bool {
        self.0.lock().unwrap().0.device
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let disk = &self.0.lock().unwrap().0;
        let len = disk.size.saturating_sub(offset).min(buf.len() as u64) as usize;
        let mut done = 0;
        while done < len {
            let at = offset + done as u64;
            let within = (at % SECTOR) as usize;
            let step = (512 - within).min(len - done);
            buf[done..done + step].copy_from_slice(&disk.sector(at / SECTOR)[within..within + step]);
            done += step;
        }
        Ok(len)
    }
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let disk = self.0.lock().unwrap();
        let (mut sectors, mut done) = (Vec::new(), 0);
        while done < bytes.len() {
            let at = offset + done as u64;
            let within = (at % SECTOR) as usize;
            let step = (512 - within).min(bytes.len() - done);
            let mut sector = disk.0.sector(at / SECTOR);
            sector[within..within + step].copy_from_slice(&bytes[done..done + step]);
            sectors.push((at / SECTOR, sector));
            done += step;
        }
        assert!(!disk.0.device || offset + bytes.len() as u64 <= disk.0.size, "a write past the end of a device");
        drop(disk);
        self.record(Op::Write(sectors));
        Ok(())
    }
    fn set_size(&self, size: u64) -> io::Result<()> {
        if !self.is_device() {
            assert!(size.is_multiple_of(SECTOR));
            self.record(Op::Size(size));
        }
        Ok(())
    }
    fn sync(&self) -> io::Result<()> {
        self.record(Op::Sync);
        Ok(())
    }
    fn punch(&self, offset: u64, len: u64) -> io::Result<bool> {
        if self.is_device() {
            return Ok(false);
        }
        self.record(Op::Punch(offset / SECTOR..(offset + len) / SECTOR));
        Ok(true)
    }
}

/// A [`Storage`] over a recorded one whose operations fail when they are told to.
#[derive(Debug)]
pub struct Faulty {
    pub disk: Arc<Recorder>,
    /// Bytes up to which there is space; `u64::MAX`: no end.
    pub room: AtomicU64,
    /// How many changes and syncs succeed until one fails with this errno.
    pub fault: Mutex<Option<(usize, i32)>>,
}

impl Faulty {
    pub fn new(disk: Arc<Recorder>) -> Arc<Self> {
        Arc::new(Faulty { disk, room: AtomicU64::new(u64::MAX), fault: Mutex::new(None) })
    }

    fn step(&self) -> io::Result<()> {
        let mut fault = self.fault.lock().unwrap();
        match &mut *fault {
            Some((0, errno)) => {
                let error = io::Error::from_raw_os_error(*errno);
                *fault = None;
                Err(error)
            }
            Some((left, _)) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl Storage for Faulty {
    fn path(&self) -> &Path {
        self.disk.path()
    }
    fn size(&self) -> io::Result<u64> {
        self.disk.size()
    }
    fn is_device(&self) -> bool {
        self.disk.is_device()
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.disk.read_at(buf, offset)
    }
    /// What is there can be written over when nothing else can be written.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.step()?;
        let disk = self.disk.disk();
        let new =
            (offset / SECTOR..(offset + bytes.len() as u64).div_ceil(SECTOR)).any(|n| !disk.sectors.contains_key(&n));
        if new && offset + bytes.len() as u64 > self.room.load(Relaxed) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.disk.write_at(bytes, offset)
    }
    fn set_size(&self, size: u64) -> io::Result<()> {
        self.step()?;
        self.disk.set_size(size)
    }
    fn sync(&self) -> io::Result<()> {
        self.step()?;
        self.disk.sync()
    }
    fn punch(&self, offset: u64, len: u64) -> io::Result<bool> {
        self.step()?;
        self.disk.punch(offset, len)
    }
}

/// A small generator (splitmix64), so that a failure can be repeated.
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides
    }
}

/// Calls `judge` with the disk as a crash after the first `k` operations may leave it, for each `k` and every choice
/// of the sectors that had reached it if they are few, or else several choices.
pub fn crashes(start: &Disk, ops: &[Op], judge: impl FnMut(usize, Disk)) {
    crashes_of(3, start, ops, judge);
}

/// The same; `few` sectors are those of which every choice is tried.
pub fn crashes_of(few: usize, start: &Disk, ops: &[Op], mut judge: impl FnMut(usize, Disk)) {
    let mut durable = start.clone();
    let mut pending = 0;
    for k in 0..=ops.len() {
        let window = &ops[pending..k];
        let sectors: usize = window.iter().map(Op::parts).sum();
        let choices = if sectors <= few { 1 << sectors } else { 6 };
        for choice in 0..choices {
            let mut disk = durable.clone();
            let mut dice = Dice((k as u64) << 8 | choice);
            let mut part = 0;
            for (i, op) in window.iter().enumerate() {
                disk.apply(op, || {
                    part += 1;
                    match choice {
                        _ if sectors <= few => choice >> (part - 1) & 1 == 1,
                        0 => true,
                        1 => i + 1 == window.len(),
                        2 => dice.roll(8) == 0,
                        3 => dice.roll(8) != 0,
                        _ => dice.roll(2) == 0,
                    }
                });
            }
            judge(k, disk);
        }
        if let Some(Op::Sync) = ops.get(k) {
            window.iter().for_each(|op| durable.apply(op, || true));
            pending = k + 1;
        }
    }
}

pub fn tag(id: u64) -> Sector {
    let mut sector = [0; 512];
    sector.chunks_mut(8).for_each(|c| c.copy_from_slice(&id.to_le_bytes()));
    sector
}

pub fn tag_of(sector: &[u8]) -> u64 {
    let id = u64::from_le_bytes(sector[..8].try_into().unwrap());
    assert!(sector == tag(id), "a torn sector, or one that nobody wrote: {:x?}", &sector[..16]);
    id
}
