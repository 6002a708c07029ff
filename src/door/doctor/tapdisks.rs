//! The tapdisks of this host. One of the Python drivers that has an image of an SR open is told if this package serves the SR: two
//! programs that do not know of each other would write to the image.

use std::path::{Path, PathBuf};

use super::{Area, Trouble};
use crate::datapath;
use crate::door::v1::listing::Listed;
use crate::sys::tapdisk::{self, Blktap, Running, Tapdisk};

/// Looks at every tapdisk, and at the links that lead to one. `srs`: those that this package serves.
pub fn look(srs: &[Listed]) -> Vec<Trouble> {
    if tapdisk::present() == Blktap::Absent {
        return Vec::new();
    }
    let running = match tapdisk::list() {
        Ok(running) => running,
        Err(error) => return vec![Trouble::failed(Area::Tapdisks, "tapdisks", &error)],
    };
    let linked = linked();
    let is_ours = |image: &Path| srs.iter().any(|sr| is_in(image, sr));
    let is_kept = |it: &Running| datapath::image_of(it.tapdisk).is_some();
    let mut found: Vec<Trouble> = running.iter().filter_map(|it| judged(it, &linked, is_kept(it), is_ours)).collect();
    for (link, _) in linked.iter().filter(|(_, to)| !running.iter().any(|it| Some(it.tapdisk) == *to)) {
        let what = "it leads to a tapdisk that is gone";
        let remedy =
            "vdi_deactivate of the disk removes the link; a VM that has the disk gets errors: shut it down first";
        found.push(Trouble::wrong(Area::Tapdisks, link.display().to_string(), what, remedy));
    }
    found
}

/// The links by which tapdisks are found, and the tapdisk of each.
fn linked() -> Vec<(PathBuf, Option<Tapdisk>)> {
    tapdisk::links().map(|link| (link.clone(), Tapdisk::at(&link))).collect()
}

/// Whether an image lies in an SR. By its path: a look at an SR whose server is dead would take for ever.
fn is_in(image: &Path, sr: &Listed) -> bool {
    let Some(directory) = image.parent() else { return false };
    let mounted = sr.uuid.map(|uuid| uuid.to_string());
    directory == Path::new(&sr.location)
        || mounted.is_some_and(|uuid| directory.file_name().is_some_and(|name| name == uuid.as_str()))
}

fn judged(
    running: &Running,
    linked: &[(PathBuf, Option<Tapdisk>)],
    is_kept: bool,
    is_ours: impl FnOnce(&Path) -> bool,
) -> Option<Trouble> {
    let object = format!("tapdisk {} ({}:{})", running.tapdisk, running.driver, running.path.display());
    let wrong = |what: &str, remedy: &str| Some(Trouble::wrong(Area::Tapdisks, object.clone(), what, remedy));
    let is_linked = linked.iter().any(|(_, to)| *to == Some(running.tapdisk));
    let is_device = running.path.starts_with("/dev");
    if running.is_paused() {
        let remedy = "tap-ctl unpause, or plug-in tapdisk-pause, function unpause, once no snapshot is being made";
        return wrong("it is paused, and its VM waits", remedy);
    }
    if is_device && !running.path.exists() {
        return wrong("the device below it is gone: all I/O fails", "shut the VM down, and vdi_deactivate the disk");
    }
    if !running.driver.is_empty() && !is_device && !is_kept && is_ours(&running.path) {
        let remedy =
            "shut down or migrate the VM that has the disk; with the next start, its disk is served by this package";
        return wrong("another driver opened it in an SR of this package, which does not see it as attached", remedy);
    }
    if !running.driver.is_empty() && !is_linked {
        let what = "no VDI of this host leads to it";
        return Some(Trouble::wrong(Area::Tapdisks, object, what, "tap-ctl destroy, if nothing uses it").note());
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_in_an_sr_by_its_path() {
        let uuid: crate::types::SrUuid = "87b8646b-b800-9500-cb7b-af3b74e02f5c".parse().unwrap();
        let sr = Listed { uuid: Some(uuid), location: "/srv/sr0".to_owned(), ..Listed::default() };
        for (image, is_there) in [
            ("/srv/sr0/a.vhd", true),
            ("/var/run/sr-mount/87b8646b-b800-9500-cb7b-af3b74e02f5c/a.vhd", true),
            ("/srv/sr0/b/a.vhd", false),
            ("/dev/loop0", false),
        ] {
            assert_eq!(is_in(Path::new(image), &sr), is_there, "{image}");
        }
    }

    #[test]
    fn tapdisks_of_other_drivers_and_those_that_wait_are_told() {
        let link = |line: &str| {
            let running = tapdisk::parse_list(line).unwrap().pop().unwrap();
            (PathBuf::from("/link"), Some(running.tapdisk))
        };
        for (line, ours, has_link, is_kept, words) in [
            ("pid=12 minor=0 state=0 args=aio:/dev/null", false, true, false, ""),
            ("pid=12 minor=0 state=0 args=aio:/dev/null", false, false, false, "no VDI"),
            ("pid=12 minor=0 state=0x2a args=aio:/dev/null", false, true, false, "paused"),
            ("pid=12 minor=0 state=0 args=aio:/dev/gone", false, true, false, "below it is gone"),
            ("pid=12 minor=0 state=0 args=vhd:/run/sr-mount/x/a b.vhd", true, true, false, "another driver"),
            ("pid=12 minor=0 state=0 args=vhd:/run/sr-mount/x/a b.vhd", true, true, true, ""),
            ("pid=12 minor=0 state=0 args=vhd:/run/sr-mount/x/a=b.vhd", false, true, false, ""),
        ] {
            let running = tapdisk::parse_list(line).unwrap().pop().unwrap();
            let linked = if has_link { vec![link(line)] } else { Vec::new() };
            let what = judged(&running, &linked, is_kept, |_| ours).map(|it| it.what).unwrap_or_default();
            assert!(what.contains(words) && what.is_empty() == words.is_empty(), "{line}: {what}");
        }
    }
}
