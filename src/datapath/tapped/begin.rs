//! How a keeper gets its tapdisk: it starts one, or takes over that of a keeper that was killed.

use std::path::Path;
use std::sync::mpsc::Sender;

use super::{Chain, LONGEST_NAME, Now, Tapped, chain_of, kill_and_await, lock, log_path, silent};
use crate::datapath::cbt::ChangeLog;
use crate::datapath::control::why_silent;
use crate::datapath::record::{self, Record};
use crate::datapath::server::Arguments;
use crate::datapath::serving::Serving;
use crate::datapath::{Source, disk, is_same};
use crate::error::{Error, Result};
use crate::sys::syslog;
use crate::sys::tapdisk::Tapdisk;

impl Tapped {
    pub(super) fn begin(arguments: &Arguments, end: Sender<()>) -> Result<Tapped> {
        let (source, dir) = (&arguments.source, &arguments.dir);
        let orphan = record::all(dir).into_iter().find(|record| is_same(&record.image, &source.path));
        match orphan {
            Some(record) if record.is_kept(dir) => Err(Error::DeviceInUse {
                device: source.path.display().to_string(),
                holder: format!("tapdisk {}", record.tapdisk),
            }),
            Some(record) => Tapped::take_over(source, dir, record.take_over(dir)?, end),
            None => Tapped::open(source, dir, end),
        }
    }

    fn open(source: &Source, dir: &Path, end: Sender<()>) -> Result<Tapped> {
        let longest = source.path.as_os_str().len().max(log_path(source).map_or(0, |log| log.as_os_str().len()));
        if source.format.to_string().len() + 1 + longest >= LONGEST_NAME {
            return Err(Error::Unsupported { op: "opening it by tapdisk", why: "its path is too long".to_owned() });
        }
        if !source.read_only {
            // tapdisk does not mend what one that was killed has left of the footer at the end.
            disk::open_chain(source)?.close()?;
        }
        let (chain, size) = chain_of(source)?;
        let (tapdisk, starting) = Tapdisk::spawn()?;
        let record = Record::write(dir, tapdisk, source.read_only, source.format, &source.path)?;
        starting.is_found();
        let opened = Tapped::open_recorded(source, &record, (&chain, size), end);
        opened.inspect_err(|_| {
            kill_and_await(&record);
            if !record.lives() {
                record.remove(dir);
            }
        })
    }

    /// Steps 3 and 4. If it fails, tapdisk has closed the image or is about to be killed.
    fn open_recorded(
        source: &Source,
        record: &Record,
        (chain, size): (&Chain, u64),
        end: Sender<()>,
    ) -> Result<Tapped> {
        let tapdisk = record.tapdisk;
        let log = match source.read_only {
            true => Ok(None),
            false => ChangeLog::open(&source.path, size, None),
        };
        let log = log.inspect_err(|_| tapdisk.abandon())?;
        let tapped = Tapped::new(source, record.clone(), size, log, Now::Open { depth: chain.len() }, end);
        let driver = source.format.to_string();
        let opened = match tapdisk.open(&driver, &source.path, source.read_only, tapped.logged().as_deref()) {
            Ok(()) => tapped.check(chain).inspect_err(|_| drop(tapdisk.stop())),
            Err(refused) => {
                tapdisk.abandon();
                Err(refused)
            }
        };
        if opened.is_err() {
            kill_and_await(record);
            // Nobody has written through it.
            if let Some(log) = lock(&tapped.log).take().filter(|_| !record.lives()) {
                log.finish();
            }
        }
        opened.map(|()| tapped)
    }

    /// Goes on where a keeper was killed.
    fn take_over(source: &Source, dir: &Path, record: Record, end: Sender<()>) -> Result<Tapped> {
        let (chain, size) = chain_of(source)?;
        // Without the mark, which the other keeper took away, it is lost.
        let log = match source.read_only {
            true => None,
            false => ChangeLog::open(&source.path, size, None)?,
        };
        let tapdisk = record.tapdisk;
        let stopped = |refused| why_silent(tapdisk.pid()).map_or(refused, |_| silent(tapdisk));
        let Some(shown) = tapdisk.shown().map_err(stopped)? else { return Err(silent(tapdisk)) };
        if shown.driver.is_empty() {
            // It had not opened the image yet, or had closed it.
            tapdisk.abandon();
            kill_and_await(&record);
            if record.lives() {
                return Err(silent(tapdisk));
            }
            record.remove(dir);
            return Err(Error::NoDevice {
                device: format!("tapdisk {tapdisk}"),
                why: "it had no image open and was ended".to_owned(),
            });
        }
        let now = if shown.is_pausing() { Now::Paused } else { Now::Open { depth: chain.len() } };
        let tapped = Tapped::new(source, record, size, log, now, end);
        if shown.is_pausing() {
            if !shown.is_paused() {
                tapdisk.pause()?;
            }
            tapped.resume()?;
        } else {
            tapped.check(&chain)?;
            *lock(&tapped.mirror) = tapdisk.stats()?.secondary();
        }
        syslog::write(&format!(
            "the keeper of tapdisk {tapdisk} was killed; another one keeps {}",
            source.path.display()
        ));
        Ok(tapped)
    }
}
