//! LVM: one report that answers everything ([`report()`]), the commands that change something, and the kernel's view.
//!
//! Every command has a fixed locale, a deadline, and its stderr in the error ([`tool`](crate::sys::tool)); none goes
//! through a shell.

mod config;
mod delta;
mod direct;
mod dm;
mod free;
mod hidden;
mod kernel;
mod metadata;
mod report;
pub mod script;
mod settings;
mod signatures;
mod tag;
mod waits;

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::sys::blockdev;
use crate::sys::tool::Tool;
pub use delta::{can_tell, differences, mapped};
pub use direct::group;
pub use free::{Free, free, ranges};
pub use hidden::show;
use hidden::tool;
use kernel::dm_devices;
pub use kernel::{dm_name, kernel_device, kernel_names, node, refuse_without_device_mapper};
pub use metadata::parse as parse_metadata;
pub use report::{Chunks, UNREADABLE, chunks, device_sizes, extents, needs_check, parse_extents, parse_report, report};
pub use signatures::{parse_signatures, signatures, wipe};
pub use tag::{LONGEST_TAG, escape, unescape};

/// How long one LVM command may take: it waits for other commands on the volume group.
const DEADLINE: Duration = Duration::from_secs(120);

/// Extents of a volume are counted in 32 bits.
pub const MOST_EXTENTS: u64 = u32::MAX as u64;

/// A volume group. Sizes are bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vg {
    pub name: String,
    pub size: u64,
    pub free: u64,
    pub extent_size: u64,
    pub tags: Vec<String>,
    /// The host that owns it, if LVM's system IDs are in use.
    pub system_id: String,
    /// Of its metadata: each change makes it larger. `None`: it is not known.
    pub version: Option<u64>,
    pub pvs: Vec<Pv>,
    pub lvs: Vec<Lv>,
}

/// A physical volume. Sizes are bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pv {
    pub name: PathBuf,
    pub uuid: String,
    pub size: u64,
    pub missing: bool,
    /// Another device that claims to be the same.
    pub duplicate: Option<String>,
    /// Where the first extent begins on the device.
    pub first_extent: u64,
}

/// A logical volume. Sizes are bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lv {
    pub name: String,
    pub size: u64,
    pub tags: Vec<String>,
    pub active: bool,
    /// The kernel has the device, but its I/O waits or it has no table yet: an LVM command was killed between two steps.
    pub stuck: bool,
    pub read_only: bool,
    /// A process or the kernel has its device open on this host.
    pub open: bool,
    /// LVM's words: `linear`, `thin,sparse`, `thin,pool`.
    pub layout: Vec<String>,
    /// LVM's word: empty, `partial` (a physical volume is missing), `failed`, …
    pub health: String,
    /// Hundredths of a percent; only of what is active.
    pub data_used: Option<u64>,
    pub metadata_used: Option<u64>,
    pub metadata_size: u64,
    /// When the volume was made, in seconds since 1970-01-01 UTC. `None`: LVM does not say it, or not so.
    pub created: Option<u64>,
    /// Where its bytes are, in their order; see [`report()`] for whose are asked for.
    pub segments: Vec<Segment>,
}

/// A stretch of a logical volume, in extents of its group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// LVM's word: `linear`, `striped`, `raid1`, …
    pub kind: String,
    /// The first extent of the volume that it has, and how many.
    pub start: u64,
    pub count: u64,
    /// Of a linear one: the physical volume, and the first extent there. `None`: LVM says something else.
    pub on: Option<(PathBuf, u64)>,
}

/// The groups of which a report does not tell the segments of the volumes.
#[derive(Clone, Copy, Debug)]
pub enum Unmapped {
    All,
    /// Those that have one of these tags.
    Tagged(&'static [&'static str]),
}

impl Vg {
    pub fn lv(&self, name: &str) -> Option<&Lv> {
        self.lvs.iter().find(|lv| lv.name == name)
    }
}

impl Lv {
    pub fn is_thin_pool(&self) -> bool {
        self.is_thin() && self.layout.iter().any(|word| word == "pool")
    }

    pub fn is_thin(&self) -> bool {
        self.layout.iter().any(|word| word == "thin")
    }
}

/// Runs an LVM command that changes something. `names` are the things it works on, never options.
///
/// # Errors
/// [`crate::Error::Tool`] with LVM's words, also if it takes longer than 120 s.
pub fn change<S: AsRef<str>>(program: &str, options: &[S], names: &[&str]) -> Result<()> {
    command(program)?.args(options).arg("--").args(names).run().map(drop)
}

/// Activates a volume, and what it needs, on this host. Ours have the skip flag, so that nothing but this does.
///
/// # Errors
/// [`crate::Error::Tool`] if there is no such volume, a device of it is missing, or LVM fails.
pub fn activate(vg: &str, lv: &str) -> Result<()> {
    change("lvchange", &["-ay", "-K"], &[&format!("{vg}/{lv}")])
}

/// Lets the I/O of a suspended volume go on, and brings the kernel's table of it in line with LVM's metadata.
///
/// 1. Drop the table that waits to become live: a killed command may have loaded extents that the volume never got, and
///    every resume makes it live, LVM's as well. 2. `lvchange --refresh` resumes with the table that was live before.
/// 3. Once more: it loads the table of the metadata, if the command was killed after it had changed that.
///
/// # Errors
/// [`crate::Error::Tool`].
pub fn refresh(vg: &str, lv: &str) -> Result<()> {
    let name = dm_name(vg, lv);
    // The device of a thin pool has a name of its own.
    for (name, device) in dm_devices().filter(|(found, _)| *found == name || *found == format!("{name}-tpool")) {
        if blockdev::number(&device).is_some_and(blockdev::is_suspended) {
            Tool::new("dmsetup").args(["clear", "--", &name]).deadline(DEADLINE).run()?;
        }
    }
    (0..2).try_for_each(|_| change("lvchange", &["--refresh"], &[&format!("{vg}/{lv}")]))
}

/// Removes a volume without telling its devices to discard what it held, whatever `issue_discards` of lvm.conf says.
///
/// # Errors
/// [`crate::Error::Tool`] if there is no such volume, it is in use, or LVM fails.
pub fn remove_kept(vg: &str, lv: &str) -> Result<()> {
    let config = format!("{CONFIG} devices{{issue_discards=0}}");
    let tool = tool("lvremove")?.usual_args(["--config", &config]).deadline(DEADLINE);
    tool.args(["-y", "--", &format!("{vg}/{lv}")]).run().map(drop)
}

/// How an attempt to deactivate ended.
pub enum Deactivated {
    Done,
    /// Still in use, by these.
    Busy(String),
}

/// Deactivates a volume. udev probes new and closed devices for a moment, so what is busy with nobody to
/// blame but udev is tried again.
///
/// # Errors
/// [`crate::Error::Tool`] if LVM fails though only programs that look at every device have it open, for 10 s. A volume in use
/// is no error but [`Deactivated::Busy`].
pub fn deactivate(vg: &str, lv: &str) -> Result<Deactivated> {
    const PATIENCE: Duration = Duration::from_secs(10);
    let until = Instant::now() + PATIENCE;
    let mut pause = Duration::from_millis(20);
    loop {
        let Some(device) = kernel_device(vg, lv) else { return Ok(Deactivated::Done) };
        if let Some(who) = blockdev::claimed(&device) {
            return Ok(Deactivated::Busy(who));
        }
        let Err(failed) = change("lvchange", &["-an"], &[&format!("{vg}/{lv}")]) else { return Ok(Deactivated::Done) };
        let Some(device) = kernel_device(vg, lv) else { return Ok(Deactivated::Done) };
        let holder = blockdev::claimed(&device).or_else(|| blockdev::openers(&device));
        if !blockdev::is_passing(holder.as_deref()) {
            return Ok(Deactivated::Busy(holder.unwrap_or_default()));
        }
        if Instant::now() >= until {
            return Err(failed);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(500));
    }
}

/// Removes the kernel's device of a volume whose volume group LVM can't see any more. Idempotent.
///
/// # Errors
/// [`crate::Error::Tool`] if `dmsetup` fails. A device in use is no error but [`Deactivated::Busy`].
pub fn remove_lost_device(vg: &str, lv: &str) -> Result<Deactivated> {
    let name = dm_name(vg, lv);
    let Some(device) = kernel_device(vg, lv) else { return Ok(Deactivated::Done) };
    if let Some(who) = blockdev::claimed(&device).or_else(|| blockdev::openers(&device)) {
        return Ok(Deactivated::Busy(who));
    }
    remove_device(&name)?;
    let link = node(vg, lv);
    if link.is_symlink() && !link.exists() {
        let _ = fs::remove_file(&link);
        let _ = fs::remove_dir(link.parent().expect("it lies in the group's directory"));
    }
    Ok(Deactivated::Done)
}

/// Removes a device-mapper device by its name.
///
/// # Errors
/// [`crate::Error::Tool`] if there is no such device, or it is in use.
pub fn remove_device(name: &str) -> Result<()> {
    Tool::new("dmsetup").args(["remove", "--retry", "--", name]).deadline(DEADLINE).run().map(drop)
}

fn command(program: &str) -> Result<Tool> {
    Ok(tool(program)?.usual_args(["--config", CONFIG]).deadline(DEADLINE))
}

/// No daemon that extends pools behind our back; a full pool answers with an error and does not hang. A dom0's lvm.conf
/// forbids to write metadata, so that nobody does it by accident.
const CONFIG: &str = "activation{monitoring=0 error_when_full=1} global{metadata_read_only=0}";
