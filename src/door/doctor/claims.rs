//! What is left on this host of what is gone: devices without their servers, links, mounts, claims on media, flags.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Area, Trouble, below};
use crate::datapath;
use crate::door::cli::devices;
use crate::door::v1::listing::Listed;
use crate::error::Result;
use crate::layout::installed as layouts;
use crate::registry::claims::{BY_HAND, Claim, Claims};
use crate::registry::{ledger, view};
use crate::sys::{loopdev, mount, process, run_dir};
use crate::types::SrUuid;

/// Looks at everything.
pub fn look(srs: &[Listed]) -> Vec<Trouble> {
    let mut found = Vec::new();
    let mut part = |object: &str, part: Result<Vec<Trouble>>| match part {
        Ok(part) => found.extend(part),
        Err(error) => found.push(Trouble::failed(Area::Claims, object, &error)),
    };
    part("attached disks", attached());
    part("mounts", mounts());
    part("claims on devices", media(srs));
    found.extend(links(&run_dir::devices().join("backend"), "block device"));
    found.extend(flags());
    found
}

/// Devices whose server or file is gone, and servers whose device is gone.
fn attached() -> Result<Vec<Trouble>> {
    let mut found = Vec::new();
    let devices = loopdev::attached()?;
    let served = datapath::all_among(&devices);
    for dead in served.iter().filter(|attached| attached.is_dead()) {
        let what = format!("its device {} is left of an image server that died: all I/O fails", dead.device.display());
        let remedy = "vdi_detach of the disk removes the device; stop what uses it first";
        found.push(Trouble::wrong(Area::Claims, dead.image.display().to_string(), what, remedy));
    }
    for (file, names) in &devices {
        let Some(image) = file.to_str().and_then(|file| file.strip_suffix(" (deleted)")) else { continue };
        if Path::new(image).starts_with(run_dir::mounts()) {
            let what = format!("the file was removed, and {} still shows it", names.join(", "));
            let remedy = "stop what uses the device: with the last close, what is in the disk is lost";
            found.push(Trouble::wrong(Area::Claims, image, what, remedy));
        }
    }
    let with_device: Vec<u32> = served.iter().map(|attached| attached.server).collect();
    for (pid, image) in datapath::running() {
        if !with_device.contains(&pid) {
            let what = format!("its image server, {}, has no device any more and has not ended", process::shown(pid));
            let remedy = "the next vdi_attach or vdi_detach of the disk ends it";
            found.push(Trouble::wrong(Area::Claims, image.display().to_string(), what, remedy));
        }
    }
    Ok(found)
}

/// Directories of SRs that hold files because the mount above them was missing, and mounts whose process died.
fn mounts() -> Result<Vec<Trouble>> {
    let (mut found, at) = (Vec::new(), run_dir::mounts());
    let table = mount::all()?;
    let place = fs::canonicalize(&at).unwrap_or_else(|_| at.clone());
    for entry in fs::read_dir(&at).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let is_of_sr = name.to_str().is_some_and(|name| name.parse::<SrUuid>().is_ok());
        let path = place.join(&name);
        // Nothing below a mount is looked at: its server may not answer.
        if !is_of_sr || table.iter().any(|mount| mount.path == path) || !entry.file_type().is_ok_and(|it| it.is_dir()) {
            continue;
        }
        if fs::read_dir(&path).is_ok_and(|mut entries| entries.next().is_some()) {
            let what = "nothing is mounted there, and it holds files, which a mount would hide";
            let remedy = "look whether they are disks that were made while the SR was not mounted, and move them away";
            found.push(Trouble::wrong(Area::Claims, path.display().to_string(), what, remedy));
        }
    }
    Ok(found)
}

/// Links whose end is gone.
fn links(directory: &Path, what: &str) -> Vec<Trouble> {
    let dangling = below(directory.to_owned()).flat_map(below).filter(|link| link.is_symlink() && !link.exists());
    let told = |link: PathBuf| {
        let to = fs::read_link(&link).unwrap_or_default();
        let what = format!("the {what} that it leads to, {}, is gone", to.display());
        let remedy = "vdi_deactivate and vdi_detach of the disk remove the link";
        Trouble::wrong(Area::Claims, link.display().to_string(), what, remedy)
    };
    dangling.map(told).collect()
}

/// Flags that end a collector, of calls that do not wait any more.
fn flags() -> Vec<Trouble> {
    let srs = below(run_dir::state().join("ipc"));
    let told = |flag: PathBuf| {
        let pid: u32 = fs::read_to_string(&flag).ok()?.trim().parse().ok()?;
        let what = format!("process {pid} asked the collector of the SR to end, and is gone");
        let remedy = "the next sr_collect removes the flag";
        let is_gone = process::stat(pid, 4).is_none();
        is_gone.then(|| Trouble::wrong(Area::Claims, flag.display().to_string(), what, remedy).note())
    };
    srs.map(|sr| sr.join("abort")).filter_map(told).collect()
}

/// Claims on media that nothing is behind.
fn media(srs: &[Listed]) -> Result<Vec<Trouble>> {
    let claims = ledger::read()?;
    if claims.claims.is_empty() {
        return Ok(Vec::new());
    }
    let present = view::Host::identities()?;
    let installed: Vec<String> = layouts::names()?.iter().map(ToString::to_string).collect();
    let mut found = Vec::new();
    for claim in claims.claims.iter().filter(|claim| claim.host == view::host_name()) {
        let is_here = present.contains(&claim.identity) || claim.identity.starts_with("file:");
        // An SR that answers is there. Of the others, their devices are asked.
        let answers = srs.iter().any(|sr| sr.uuid == claim.sr_uuid && sr.state == "available");
        let is_there = || claim.sr_uuid.is_none_or(|sr| answers || devices::exists(sr, claim).unwrap_or(true));
        found.extend(judged(claim, &claims, &installed, is_here, is_there));
    }
    Ok(found)
}

/// `is_here`: the medium is. `is_there`: its SR is, or may be.
fn judged(
    claim: &Claim,
    claims: &Claims,
    installed: &[String],
    is_here: bool,
    is_there: impl FnOnce() -> bool,
) -> Option<Trouble> {
    let object = format!("{} ({})", claim.dev, claim.identity);
    let release = || run_dir::sm(&["devices", "release", &claim.identity]);
    let told = |what: String, remedy: String| Trouble::wrong(Area::Claims, object.clone(), what, remedy);
    let is_removed = claims.layouts.get(&claim.layout).is_some_and(|layout| layout.removed);
    if claim.layout != BY_HAND && is_removed && !installed.contains(&claim.layout) {
        return Some(told(format!("claimed for {}, a layout that was removed", claim.owner()), release()));
    }
    if !is_here {
        let what = format!("claimed for {}, and this host has no such device now", claim.owner());
        return Some(told(what, format!("{} if it does not come back", release())).note());
    }
    // A reservation is for an SR that is to be made.
    if claim.layout == BY_HAND && claim.sr_uuid.is_some() && !is_there() {
        return Some(told(format!("claimed for {}, and no such SR is on it", claim.owner()), release()));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::os::unix::fs::symlink;

    use crate::registry::claims::{LayoutRecord, VERSION};

    #[test]
    fn a_claim_is_stale_if_its_layout_or_its_sr_is_gone() {
        let claim = |layout: &str, sr_uuid| Claim {
            identity: "wwid:x".to_owned(),
            host: String::new(),
            dev: "/dev/sdx".to_owned(),
            layout: layout.to_owned(),
            class: "lvm".to_owned(),
            index: None,
            sr_uuid,
            since: 0,
        };
        let record = |removed| LayoutRecord { uuid: String::new(), since: 0, removed };
        let layouts = BTreeMap::from([("old".to_owned(), record(true)), ("new".to_owned(), record(false))]);
        let claims = Claims { version: VERSION, generation: 0, layouts, claims: Vec::new() };
        let sr = Some(SrUuid::random());
        for (claim, is_here, is_there, words) in [
            (claim("old", sr), true, true, "was removed"),
            (claim("new", sr), true, false, ""),
            (claim(BY_HAND, sr), true, true, ""),
            (claim(BY_HAND, sr), true, false, "no such SR"),
            (claim(BY_HAND, sr), false, false, "no such device"),
            (claim(BY_HAND, None), true, false, ""),
        ] {
            let told = judged(&claim, &claims, &["new".to_owned()], is_here, || is_there);
            let what = told.map(|it| it.what).unwrap_or_default();
            assert!(what.contains(words) && what.is_empty() == words.is_empty(), "{words}: {what}");
        }
    }

    #[test]
    fn a_link_to_a_device_that_is_gone_is_told_and_no_other() {
        let scratch = tempfile::tempdir().unwrap();
        let sr = scratch.path().join("sr");
        fs::create_dir(&sr).unwrap();
        symlink("/dev/null", sr.join("good")).unwrap();
        symlink("/dev/gone", sr.join("bad")).unwrap();
        let told = links(scratch.path(), "device");
        assert_eq!(
            told.iter().map(|it| it.object.as_str()).collect::<Vec<_>>(),
            [sr.join("bad").display().to_string()]
        );
        assert!(told[0].what.contains("/dev/gone"), "{told:?}");
    }
}
