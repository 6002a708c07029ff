//! Whether a read of a device may wait without an end, as what the device lies on tells. No device is opened.
//!
//! A process that waits so cannot be killed, and its caller waits for it; an LVM command that waits so is a child, which is let be after
//! its time.

use std::fs;
use std::path::Path;

use super::direct::ALL;
use crate::sys::sysfs::text;
use crate::sys::{blockdev, mount};

/// How long a read may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wait {
    /// For a disk, which answers, or of which the kernel says after a while that it does not.
    Bounded,
    /// For another program or host, as long as that takes.
    Unbounded,
    /// Its I/O waits now: device-mapper has suspended it, or what it lies on.
    Now,
}

/// Devices whose I/O goes to another program or host, by the beginnings of their names.
const FAR: &[&str] = &["nbd", "rbd", "drbd"];
/// Filesystems whose files are elsewhere, likewise.
const FAR_FILES: &[&str] = &["nfs", "cifs", "smb", "ceph", "fuse", "9p", "afs", "gfs", "ocfs", "lustre"];
/// Devices on devices.
const DEEPEST: usize = 8;

/// Of the device that the kernel calls so: `sda1`.
pub fn wait_for(name: &str) -> Wait {
    look(name, DEEPEST)
}

fn look(name: &str, deeper: usize) -> Wait {
    let dir = Path::new(ALL).join(name);
    if name.starts_with("dm-") && text(&dir, "dm/suspended") == "1" {
        return Wait::Now;
    }
    let own = if FAR.iter().any(|far| name.starts_with(far)) { Wait::Unbounded } else { Wait::Bounded };
    if deeper == 0 {
        return Wait::Unbounded;
    }
    let on = fs::read_dir(dir.join("slaves")).into_iter().flatten().flatten();
    let mut on: Vec<String> = on.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    if dir.join("partition").exists() {
        on.extend(fs::canonicalize(&dir).ok().and_then(|dir| last(dir.parent()?)));
    }
    let below = on.iter().map(|name| look(name, deeper - 1)).max().unwrap_or(own);
    let file = if name.starts_with("loop") { text(&dir, "loop/backing_file") } else { String::new() };
    let file = if file.is_empty() { Wait::Bounded } else { of_file(Path::new(&file), deeper) };
    own.max(below).max(file)
}

/// Of the file below a loop device.
fn of_file(file: &Path, deeper: usize) -> Wait {
    let of_device = |device: &Path| {
        let name = blockdev::number(device).and_then(|number| last(&fs::canonicalize(blockdev::sysfs(number)).ok()?));
        name.map(|name| look(&name, deeper - 1))
    };
    if file.starts_with("/dev/")
        && let Some(wait) = of_device(file)
    {
        return wait;
    }
    let mounts = mount::all().unwrap_or_default();
    let Some(on) =
        mounts.iter().rev().filter(|mount| file.starts_with(&mount.path)).max_by_key(|it| it.path.as_os_str().len())
    else {
        return Wait::Unbounded;
    };
    match FAR_FILES.iter().any(|far| on.fs_type.starts_with(far)) {
        true => Wait::Unbounded,
        false => of_device(Path::new(&on.source)).unwrap_or(Wait::Bounded),
    }
}

fn last(path: &Path) -> Option<String> {
    Some(path.file_name()?.to_str()?.to_owned())
}
