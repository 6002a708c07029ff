//! Multipath maps: one block device over all paths to a LUN, which multipathd makes.
//!
//! A map is known by the UUID that device-mapper has for it, `mpath-` and the identifier of the LUN: its name is the
//! administrator's choice (`user_friendly_names`).

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::error::{Error, LunFault, Result, one_line};
use crate::sys::blockdev;
use crate::sys::run_dir;
use crate::sys::scsidisk::Disk;
use crate::sys::tool::Tool;

const BLOCK: &str = "/sys/block";
const TOOL_DEADLINE: Duration = Duration::from_secs(30);

/// Links by which the Python storage managers, and programs that look at their SRs, know that a map is in use.
const IN_USE: &str = "/dev/disk/mpInuse";

/// A map that the kernel has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Map {
    pub name: String,
    /// `dm-3`.
    kernel_name: String,
}

impl Map {
    pub fn node(&self) -> PathBuf {
        Path::new("/dev/mapper").join(&self.name)
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        let text = fs::read_to_string(Path::new(BLOCK).join(&self.kernel_name).join("size")).unwrap_or_default();
        text.trim().parse::<u64>().unwrap_or(0).saturating_mul(512)
    }
}

/// The map of a LUN.
pub fn map_of(scsi_id: &str) -> Option<Map> {
    let uuid = format!("mpath-{scsi_id}");
    fs::read_dir(BLOCK).ok()?.flatten().find_map(|entry| {
        let read = |file: &str| fs::read_to_string(entry.path().join(file)).ok();
        let is_it = entry.file_name().to_str()?.starts_with("dm-") && read("dm/uuid")?.trim() == uuid;
        is_it.then_some(())?;
        Some(Map { name: read("dm/name")?.trim().to_owned(), kernel_name: entry.file_name().into_string().ok()? })
    })
}

fn failed(scsi_id: &str, fault: LunFault, why: String) -> Error {
    Error::Lun { lun: format!("LUN {scsi_id}"), fault, why }
}

/// Sees to it that multipathd answers.
fn start(scsi_id: &str) -> Result<()> {
    const PATIENCE: Duration = Duration::from_secs(30);
    let ask = || Tool::new("multipathd").args(["show", "daemon"]).deadline(TOOL_DEADLINE).run();
    let Err(silent) = ask() else { return Ok(()) };
    let fail = |e: &Error| failed(scsi_id, LunFault::NoMultipathd, one_line(e));
    if !run_dir::systemd().is_dir() {
        return Err(fail(&silent));
    }
    Tool::new("systemctl").args(["start", "multipathd"]).run().map_err(|e| fail(&e))?;
    let until = Instant::now() + PATIENCE;
    while let Err(silent) = ask() {
        if Instant::now() > until {
            return Err(fail(&silent));
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

/// The map of a LUN that has several paths or may get them: waits for multipathd, which makes it.
///
/// # Errors
/// [`LunFault::NoMultipathd`]; [`LunFault::NoMap`] if none comes within 30 s.
pub fn make(scsi_id: &str, paths: &[Disk]) -> Result<Map> {
    const PATIENCE: Duration = Duration::from_secs(15);
    if let Some(map) = map_of(scsi_id) {
        return Ok(map);
    }
    start(scsi_id)?;
    // By default a map is made of a LUN that is known, or of one with two paths.
    for path in paths.iter().take(1) {
        let _ = Tool::new("multipath").args(["-a", &path.node().display().to_string()]).deadline(TOOL_DEADLINE).run();
    }
    let mut said = String::new();
    for attempt in 0..2 {
        let until = Instant::now() + PATIENCE;
        for path in paths {
            let add = ["add", "path", &path.name];
            let _ = Tool::new("multipathd").args(add).deadline(TOOL_DEADLINE).run();
        }
        if attempt > 0
            && let Err(e) = Tool::new("multipath").args(["-r", scsi_id]).deadline(TOOL_DEADLINE).run()
        {
            said = one_line(&e);
        }
        while Instant::now() < until {
            if let Some(map) = map_of(scsi_id) {
                return Ok(map);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    let names: Vec<&str> = paths.iter().map(|path| path.name.as_str()).collect();
    let why = format!("its paths are {}; multipath.conf may leave it out: {said}", names.join(", "));
    Err(failed(scsi_id, LunFault::NoMap, why))
}

/// Lets others know that the map is used, as the Python storage managers do.
pub fn mark_in_use(scsi_id: &str, map: &Map) {
    let link = Path::new(IN_USE).join(scsi_id);
    let _ = fs::create_dir_all(IN_USE);
    if fs::read_link(&link).is_ok_and(|to| to == map.node()) {
        return;
    }
    let _ = fs::remove_file(&link);
    let _ = std::os::unix::fs::symlink(map.node(), &link);
}

/// Removes the map of a LUN, if there is one. If `forget`, a map is no longer made of one path alone.
///
/// # Errors
/// [`Error::DeviceInUse`] with who has it open; [`Error::Tool`].
pub fn flush(scsi_id: &str, forget: bool) -> Result<()> {
    let _ = fs::remove_file(Path::new(IN_USE).join(scsi_id));
    let Some(map) = map_of(scsi_id) else { return Ok(()) };
    let node = map.node();
    if let Some(holder) = blockdev::claimed(&node) {
        return Err(Error::DeviceInUse { device: node.display().to_string(), holder });
    }
    let flushed = Tool::new("multipath").args(["-f", &map.name]).deadline(TOOL_DEADLINE).run();
    // What the tool says does not count where the map is gone.
    if let (Err(e), Some(map)) = (flushed, map_of(scsi_id)) {
        return match blockdev::openers(&map.node()) {
            Some(holder) => Err(Error::DeviceInUse { device: node.display().to_string(), holder }),
            None => Err(e),
        };
    }
    if forget {
        let _ = Tool::new("multipath").args(["-w", scsi_id]).deadline(TOOL_DEADLINE).run();
    }
    Ok(())
}

/// Lets the map have the size that its paths have by now.
///
/// # Errors
/// [`Error::Tool`].
pub fn resize(map: &Map) -> Result<()> {
    Tool::new("multipathd").args(["resize", "map", &map.name]).deadline(TOOL_DEADLINE).run().map(drop)
}
