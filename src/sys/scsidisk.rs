//! SCSI disks of this host, in sysfs: their identifiers as `scsi_id` prints them, their sizes, and the sessions they came by.
//!
//! No device is opened: the kernel keeps the pages of the disk's answers. An identifier is made of these pages as `scsi_id` of
//! systemd makes it, in its order; device_config has such identifiers (`SCSIid`).

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use crate::sys::blockdev;
use crate::sys::scsidev::Address;
use crate::sys::sysfs::text;

const BLOCK: &str = "/sys/block";
const HOSTS: &str = "/sys/class/scsi_host";

/// How long a disk has to answer what the kernel asks it for [`rescan`] and [`scan_hosts`].
const PATIENCE: Duration = Duration::from_secs(10);

/// A disk that a SCSI host has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// `sda`.
    pub name: String,
    pub address: Address,
    /// The identifier; empty if the disk gives none.
    pub scsi_id: String,
    pub vendor: String,
    pub serial: String,
    /// Bytes.
    pub size: u64,
    /// The kernel's word: `running`, `blocked`, `offline`, `transport-offline`, …
    pub state: String,
    /// The number of the iSCSI session that the disk came by.
    pub session: Option<u32>,
}

impl Disk {
    pub fn node(&self) -> PathBuf {
        Path::new("/dev").join(&self.name)
    }

    /// Whether it takes I/O now, as far as the kernel knows.
    pub fn is_running(&self) -> bool {
        is_good(&self.state)
    }
}

/// The disks that there are, in the order of their names.
pub fn all() -> Vec<Disk> {
    let names = fs::read_dir(BLOCK).into_iter().flatten().flatten();
    let mut names: Vec<String> = names.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.retain(|name| name.starts_with("sd"));
    // sdb before sdaa.
    names.sort_by(|a, b| (a.len(), a).cmp(&(b.len(), b)));
    names.into_iter().filter_map(disk).collect()
}

/// The disks with an identifier: the paths to one LUN.
pub fn of_id(scsi_id: &str) -> Vec<Disk> {
    all().into_iter().filter(|disk| disk.scsi_id == scsi_id).collect()
}

/// The nodes on which I/O waits or fails because the kernel has lost the way to their LUN: disks, and multipath maps without a path
/// that works.
pub fn stalled() -> Vec<PathBuf> {
    let names = |prefix: &'static str| {
        let entries = fs::read_dir(BLOCK).into_iter().flatten().flatten();
        entries.filter(move |it| it.file_name().to_string_lossy().starts_with(prefix)).map(|it| it.path())
    };
    let is_lost = |dir: &Path| fs::read_to_string(dir.join("device/state")).is_ok_and(|state| !is_good(state.trim()));
    let node = |dir: &Path| Path::new("/dev").join(dir.file_name().unwrap_or_default());
    let mut found: Vec<PathBuf> = names("sd").filter(|dir| is_lost(dir)).map(|dir| node(&dir)).collect();
    if found.is_empty() {
        return found;
    }
    let maps = names("dm-").filter(|dir| text(dir, "dm/uuid").starts_with("mpath-"));
    let is_lost_map = |dir: &PathBuf| {
        let paths: Vec<PathBuf> =
            fs::read_dir(dir.join("slaves")).into_iter().flatten().flatten().map(|it| it.path()).collect();
        !paths.is_empty() && paths.iter().all(|path| is_lost(path))
    };
    for dir in maps.filter(is_lost_map).collect::<Vec<_>>() {
        found.push(Path::new("/dev/mapper").join(text(&dir, "dm/name")));
        found.push(node(&dir));
    }
    found
}

/// How a device has lost the way to its LUN, in words: see [`stalled`].
pub fn lost(device: &Path) -> Option<String> {
    let number = blockdev::number(device)?;
    let is_it = stalled().into_iter().any(|node| blockdev::number(&node) == Some(number));
    is_it.then(|| "the kernel has lost the way to its LUN".to_owned())
}

/// Whether a disk in a state of this name takes I/O: a `quiesce` is short and the kernel's own.
fn is_good(state: &str) -> bool {
    matches!(state, "running" | "quiesce" | "created")
}

fn disk(name: String) -> Option<Disk> {
    let dir = Path::new(BLOCK).join(&name);
    let device = fs::canonicalize(dir.join("device")).ok()?;
    let address = device.file_name()?.to_str()?.parse().ok()?;
    let session = device.components().find_map(|part| part.as_os_str().to_str()?.strip_prefix("session")?.parse().ok());
    let vendor = text(&device, "vendor");
    let pages = |name: &str| fs::read(device.join(name)).unwrap_or_default();
    let (page80, page83) = (pages("vpd_pg80"), pages("vpd_pg83"));
    let scsi_id = of_page_83(&page83, &vendor, &text(&device, "model"))
        .or_else(|| of_page_80(&page80, &vendor, &text(&device, "model")))
        .unwrap_or_default();
    let size = text(&dir, "size").parse::<u64>().ok()?.saturating_mul(512);
    let state = text(&device, "state");
    Some(Disk { name, address, scsi_id, vendor, serial: serial(&page80), size, state, session })
}

/// A character of text that a disk gave, as a name of a file or an argument may have it.
fn plain(text: &[u8]) -> String {
    let text = text.split(|byte| *byte == 0).next().unwrap_or_default();
    let words = text.split(|byte| byte.is_ascii_whitespace()).filter(|word| !word.is_empty());
    let words: Vec<String> = words
        .map(|word| word.iter().map(|byte| if byte.is_ascii_graphic() { *byte as char } else { '_' }).collect())
        .collect();
    words.join("_")
}

/// Vendor and model as `scsi_id` puts them before what is unique for the vendor only: 8 and 16 characters.
fn of_vendor(vendor: &str, model: &str) -> String {
    format!("{vendor:<8.8}{model:<16.16}")
}

/// The kinds of designators in page 83, and of their NAA formats, in the order in which `scsi_id` takes one; SPC-4, 7.8.6.
const ORDER: [(u8, Option<u8>); 6] = [(3, Some(6)), (3, Some(5)), (3, None), (2, None), (1, None), (0, None)];

/// The identifier of page 83, "device identification"; SPC-4, 7.8.6. `None`: the page has no designator of the logical unit.
///
/// The first character is the kind of the designator; hexadecimal digits follow if the designator is binary, else its text.
pub fn of_page_83(page: &[u8], vendor: &str, model: &str) -> Option<String> {
    let designators = designators(page);
    let is_binary = |designator: &&[u8]| designator[0] & 0x0f == 1;
    let is_text = |designator: &&[u8]| matches!(designator[0] & 0x0f, 2 | 3);
    for (kind, format) in ORDER {
        let fits = |designator: &&&[u8]| {
            let is_of_unit = designator[1] & 0x30 == 0;
            let is_format = format.is_none_or(|format| designator.get(4).is_some_and(|byte| byte >> 4 == format));
            is_of_unit && designator[1] & 0x0f == kind && is_format && designator.len() > 4
        };
        let found = |is: &dyn Fn(&&[u8]) -> bool| designators.iter().filter(fits).copied().find(|it| is(it));
        if let Some(designator) = found(&is_binary) {
            let before = if kind == 0 { of_vendor(vendor, model) } else { String::new() };
            let digits: String = designator[4..].iter().map(|byte| format!("{byte:02x}")).collect();
            return Some(plain(format!("{kind}{before}{digits}").as_bytes()));
        }
        if let Some(designator) = found(&is_text) {
            let before = if kind == 0 { of_vendor(vendor, model) } else { String::new() };
            let text = [format!("{kind}{before}").as_bytes(), &designator[4..]].concat();
            return Some(plain(&text));
        }
    }
    None
}

/// The designators of page 83, each with its header of 4 bytes.
fn designators(page: &[u8]) -> Vec<&[u8]> {
    let mut found = Vec::new();
    let Some(length) = page.get(2..4).map(|bytes| usize::from(u16::from_be_bytes([bytes[0], bytes[1]]))) else {
        return found;
    };
    let mut rest = page.get(4..).unwrap_or_default();
    rest = &rest[..length.min(rest.len())];
    while let Some(end) = rest.get(3).map(|length| 4 + usize::from(*length)).filter(|end| *end <= rest.len()) {
        found.push(&rest[..end]);
        rest = &rest[end..];
    }
    found
}

/// The identifier of page 80, "unit serial number", for a disk without page 83.
pub fn of_page_80(page: &[u8], vendor: &str, model: &str) -> Option<String> {
    let serial = page.get(4..).filter(|serial| serial.iter().any(|byte| byte.is_ascii_graphic()))?;
    Some(plain(&[format!("S{}", of_vendor(vendor, model)).as_bytes(), serial].concat()))
}

fn serial(page: &[u8]) -> String {
    plain(page.get(4..).unwrap_or_default())
}

/// Whether the root filesystem of this host lies on the disk or on something above it.
pub fn carries_root(disk: &Disk) -> bool {
    let Ok(root) = fs::metadata("/") else { return false };
    let Some(number) = blockdev::number(&disk.node()) else { return false };
    is_above(std::os::unix::fs::MetadataExt::dev(&root), number, 0)
}

/// Whether a device is another one, a partition of it, or above it.
fn is_above(device: u64, below: u64, depth: usize) -> bool {
    const DEEPEST: usize = 8;
    if device == below {
        return true;
    }
    if depth > DEEPEST {
        return false;
    }
    let dir = blockdev::sysfs(device);
    let whole = dir.join("partition").exists().then(|| fs::canonicalize(&dir).ok()).flatten();
    let whole = whole.and_then(|dir| blockdev::number_in(dir.parent()?));
    let below_it = blockdev::below(device).into_iter().map(|(number, _)| number).chain(whole);
    below_it.into_iter().any(|it| is_above(it, below, depth + 1))
}

/// Lets the kernel ask the disk for its size once more. A disk that does not answer in time is left to the kernel.
pub fn rescan(disk: &Disk) {
    write(&Path::new(BLOCK).join(&disk.name).join("device/rescan"), "1");
}

/// Takes the disk out of the kernel's list; a scan brings it back.
pub fn remove(disk: &Disk) {
    write(&Path::new(BLOCK).join(&disk.name).join("device/delete"), "1");
}

/// Lets I/O go to the disk in the order in which it comes: the array has its own.
pub fn schedule_nothing(disk: &Disk) {
    write(&Path::new(BLOCK).join(&disk.name).join("queue/scheduler"), "none");
}

/// The driver of a SCSI host: `iscsi_tcp`, `qla2xxx`.
pub fn driver_of(host: u32) -> String {
    text(&Path::new(HOSTS).join(format!("host{host}")), "proc_name")
}

/// The numbers of the SCSI hosts, ascending.
pub fn hosts() -> Vec<u32> {
    let names = fs::read_dir(HOSTS).into_iter().flatten().flatten();
    let mut hosts: Vec<u32> =
        names.filter_map(|entry| entry.file_name().to_str()?.strip_prefix("host")?.parse().ok()).collect();
    hosts.sort_unstable();
    hosts
}

/// Lets the kernel look for devices of these SCSI hosts, all at the same time, and returns when they are found.
pub fn scan_hosts(hosts: &[u32]) {
    thread::scope(|scope| {
        for host in hosts {
            scope.spawn(move || write(&Path::new(HOSTS).join(format!("host{host}/scan")), "- - -"));
        }
    });
}

/// Waits until the kernel has given a device to each disk that it has found by these SCSI hosts.
pub fn settle(hosts: &[u32]) {
    let is_pending = || {
        let devices = fs::read_dir("/sys/bus/scsi/devices").into_iter().flatten().flatten();
        devices.filter(|it| is_of(&it.file_name(), hosts)).any(|it| {
            let nodes = fs::read_dir(it.path().join("block")).into_iter().flatten().flatten();
            // The link in /sys/block comes last.
            let has_node = nodes.into_iter().any(|node| Path::new(BLOCK).join(node.file_name()).exists());
            text(&it.path(), "type") == "0" && !has_node
        })
    };
    let until = Instant::now() + PATIENCE;
    while is_pending() && Instant::now() < until {
        thread::sleep(Duration::from_millis(20));
    }
}

fn is_of(name: &std::ffi::OsStr, hosts: &[u32]) -> bool {
    let address = name.to_str().and_then(|name| name.parse::<Address>().ok());
    address.is_some_and(|address| hosts.contains(&address.host))
}

/// Writes to a file of sysfs. The kernel may wait for a device that does not answer: the wait is given up.
fn write(path: &Path, text: &'static str) {
    let path = path.to_owned();
    within(PATIENCE, move || fs::write(path, text).ok());
}

/// The answer of work that may hang in the kernel, if it comes in time. The work is left to end by itself.
pub fn within<T: Send + 'static>(limit: Duration, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (tell, told) = mpsc::channel();
    thread::Builder::new().spawn(move || tell.send(work())).ok()?;
    told.recv_timeout(limit).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(designators: &[&[u8]]) -> Vec<u8> {
        let all = designators.concat();
        [&[0, 0x83, 0, all.len() as u8][..], &all].concat()
    }

    fn id(designators: &[&[u8]]) -> Option<String> {
        of_page_83(&page(designators), "LIO-ORG", "disk 1")
    }

    /// As /usr/lib/udev/scsi_id of Debian 12 prints it of the same disk of LIO.
    #[test]
    fn the_identifier_of_a_disk_of_lio_is_that_of_scsi_id() {
        let naa = b"\x01\x03\x00\x10\x60\x01\x40\x51\xa1\xab\x1e\x00\x00\x04\x00\x08\x00\x00\x00\x00";
        let t10 = b"\x02\x01\x00\x34LIO-ORG FILEIO:1a1ab1e0-0000-4000-8000-000000000000\x00";
        let port = b"\x51\x94\x00\x04\x00\x00\x00\x01";
        assert_eq!(id(&[port, t10, naa]).unwrap(), "360014051a1ab1e000004000800000000");
        assert_eq!(id(&[port, t10]).unwrap(), "1LIO-ORG_FILEIO:1a1ab1e0-0000-4000-8000-000000000000");
        assert_eq!(id(&[port]), None);
    }

    #[test]
    fn the_order_of_designators_is_that_of_scsi_id() {
        let extended = b"\x01\x03\x00\x10\x60\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x02";
        let registered = b"\x01\x03\x00\x08\x50\x00\x00\x00\x00\x00\x00\x03";
        let local = b"\x01\x03\x00\x08\x33\x33\x33\x30\x00\x00\x07\xd0";
        let eui = b"\x01\x02\x00\x08\x00\x11\x22\x33\x44\x55\x66\x77";
        let vendor = b"\x02\x00\x00\x04ab c";
        let named = b"\x03\x08\x00\x04iqn.";
        assert_eq!(id(&[local, registered, extended]).unwrap(), "360000000000000010000000000000002");
        assert_eq!(id(&[eui, local, registered]).unwrap(), "35000000000000003");
        assert_eq!(id(&[eui, local]).unwrap(), "333333330000007d0");
        assert_eq!(id(&[named, vendor, eui]).unwrap(), "20011223344556677");
        assert_eq!(id(&[vendor]).unwrap(), "0LIO-ORG_disk_1_ab_c");
        assert_eq!(id(&[named]), None);
    }

    #[test]
    fn a_page_that_is_cut_or_lies_gives_what_is_whole() {
        let naa = b"\x01\x03\x00\x08\x50\x00\x00\x00\x00\x00\x00\x03";
        let whole = page(&[naa]);
        for end in 0..whole.len() {
            assert_eq!(of_page_83(&whole[..end], "", ""), None, "{end}");
        }
        let longer = [&[0, 0x83, 0xff, 0xff][..], naa, b"\x01\x03\x00\xff"].concat();
        assert_eq!(of_page_83(&longer, "", "").unwrap(), "35000000000000003");
        assert_eq!(of_page_83(&page(&[b"\x01\x03\x00\x00"]), "", ""), None);
        assert_eq!(of_page_83(&page(&[b"\x02\x01\x00\x06a/\x01b \n"]), "", "").unwrap(), "1a/_b");
    }

    #[test]
    fn a_serial_number_alone_is_an_identifier() {
        assert_eq!(of_page_80(b"\x00\x80\x00\x04 12 ", "QEMU", "HARDDISK").unwrap(), "SQEMU_HARDDISK_12");
        assert_eq!(of_page_80(b"\x00\x80\x00\x02  ", "QEMU", "HARDDISK"), None);
        assert_eq!(of_page_80(b"", "", ""), None);
        assert_eq!(serial(b"\x00\x80\x00\x03abc\x00junk"), "abc");
    }

    #[test]
    fn work_that_hangs_is_given_up() {
        assert_eq!(within(Duration::from_secs(5), || 7), Some(7));
        assert_eq!(within(Duration::from_millis(10), || thread::sleep(Duration::from_secs(20))), None);
    }
}
