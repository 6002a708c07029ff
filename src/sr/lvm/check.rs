//! The check of a volume group and its volumes, and the repair of what killed calls left.
//!
//! A look takes no lock. A fault that the repair could mend may be the work of a call that goes on, so it is told only if it is
//! found again under the lock of its VDI. The repair does what the next call for the VDI would do.

use std::collections::BTreeSet;
use std::time::Instant;

use super::group::{refuse_foreign, vdi_of};
use super::place::{Group, LvmPlace};
use super::revert::reverted;
use super::{Kind, LvmSr, POOL, POOL_DATA_FULL, POOL_METADATA_FULL, RAW, THICK, THIN, UNFINISHED, VHD, tags};
use crate::error::{Error, Result, one_line};
use crate::sr::driver::finding_of_state;
use crate::sr::lvhd::Lvhd;
use crate::sr::volume_group::trim;
use crate::sys::lvm::{self, Lv, Vg};
use crate::sys::{blockdev, lock};
use crate::types::{Finding, Format, Outcome, Size, State, VdiUuid};
use crate::vdi::Place;

/// Hundredths of a percent below a limit of the pool, from which on the pool is told to be nearly full.
const NEARLY: u64 = 10_00;
/// The volume in which other storage managers of an LVM SR keep names.
const NAMES_OF_OTHERS: &str = "MGT";

fn finding(vdi: Option<VdiUuid>, object: &str, outcome: Outcome, what: impl Into<String>) -> Finding {
    Finding { vdi, object: object.to_owned(), label: String::new(), what: what.into(), outcome }
}

impl LvmSr {
    /// Looks at the group, the pool and the volumes, see [`crate::sr::Sr::check`].
    ///
    /// # Errors
    /// Those of [`crate::sr::Sr::scan`], but for a device that is there twice, which is a finding.
    pub(super) fn check_volumes(&self, thorough: bool, repair: bool) -> Result<Vec<Finding>> {
        let vg = match self.kind(self.group.look()?) {
            Kind::Own(vg) => vg,
            Kind::Lvhd(theirs) => return self.check_theirs(theirs, thorough, repair),
        };
        let mut found = of_group(&vg);
        found.extend(self.of_devices(&vg)?);
        if let Some(pool) = vg.lv(POOL) {
            found.extend(self.of_pool(&vg, pool, repair)?);
        }
        found.extend(self.of_trim(&vg, repair));
        for vdi in vdis(&vg) {
            let of_vdi = self.of_vdi(&vg, vdi);
            match of_vdi.iter().any(is_mendable) {
                true => found.extend(self.again(vdi, of_vdi, repair)?),
                false => found.extend(of_vdi),
            }
        }
        found.sort_by(|a, b| a.object.cmp(&b.object));
        Ok(found)
    }

    fn check_theirs(&self, theirs: Lvhd, thorough: bool, repair: bool) -> Result<Vec<Finding>> {
        let theirs = theirs.settled(|| self.group.look())?;
        let mut found = self.of_devices(&theirs.vg())?;
        found.extend(if repair { theirs.repair(thorough)? } else { theirs.check(thorough)? });
        found.sort_by(|a, b| a.object.cmp(&b.object));
        Ok(found)
    }

    fn of_devices(&self, vg: &Vg) -> Result<Vec<Finding>> {
        let sizes = lvm::device_sizes(&vg.name)?;
        let mut found = Vec::new();
        for pv in &vg.pvs {
            let name = pv.name.display().to_string();
            if pv.missing {
                let what = "is missing, and nothing can be changed until it is back: connect the device again";
                let what = format!("physical volume {} of {} {what}", pv.uuid, Size(pv.size));
                found.push(finding(None, &vg.name, Outcome::Lasting, what));
            }
            if let Some(other) = &pv.duplicate {
                let what = format!(
                    "it is seen on {other} as well, and nothing can be changed: disconnect the copy, or hide it with LVM's \
                     global_filter"
                );
                found.push(finding(None, &name, Outcome::Lasting, what));
            }
            let size = sizes.iter().find(|(uuid, _)| *uuid == pv.uuid).map_or(0, |(_, size)| *size);
            if !pv.missing && size > 0 && size < pv.size {
                let what = format!(
                    "the device has {}, and LVM keeps data on {} of it: what lies beyond its end cannot be read",
                    Size(size),
                    Size(pv.size)
                );
                found.push(finding(None, &name, Outcome::Lasting, what));
            }
        }
        Ok(found)
    }

    fn of_pool(&self, vg: &Vg, pool: &Lv, repair: bool) -> Result<Vec<Finding>> {
        if !pool.is_thin_pool() {
            return Ok(vec![finding(None, POOL, Outcome::Lasting, "it is no thin pool, and its name is that of one")]);
        }
        let mut found = Vec::new();
        if pool.stuck {
            let mended = repair && self.group.refuse_incomplete(vg).and_then(|()| self.resume(vg, [pool])).is_ok();
            let outcome = if mended { Outcome::Mended } else { Outcome::Mendable };
            found.push(finding(None, POOL, outcome, SUSPENDED));
        }
        let check = format!("detach the SR, and lvconvert --repair {}/{POOL}", vg.name);
        match pool.health.as_str() {
            "" => {}
            "out_of_data" => {
                found.push(finding(None, POOL, Outcome::Lasting, "its data is full: writes of guests fail"))
            }
            health => {
                let what = format!("LVM says that it is {health}: {check}");
                found.push(finding(None, POOL, Outcome::Lasting, what));
            }
        }
        if lvm::needs_check(&vg.name, POOL)? {
            found.push(finding(None, POOL, Outcome::Lasting, format!("its metadata needs a check: {check}")));
        }
        found.extend(fullness(pool));
        Ok(found)
    }

    /// The caller has the SR's lock, so no sr_trim of this host is at work.
    fn of_trim(&self, vg: &Vg, repair: bool) -> Option<Finding> {
        let left = vg.lvs.iter().find(|lv| trim::is_volume(&lv.name))?;
        if tags::is_elsewhere(&left.tags) {
            let what = "it has free space: another host discards it in an sr_trim, or its call was killed there";
            return Some(finding(None, &left.name, Outcome::Note, what));
        }
        let is_mended =
            repair && !self.is_slave && self.group.refuse_incomplete(vg).and_then(|()| self.end_trim_left(vg)).is_ok();
        let outcome = if is_mended { Outcome::Mended } else { Outcome::Mendable };
        let what = "an sr_trim that was killed left it with free space: it is to be removed";
        Some(finding(None, &left.name, outcome, what))
    }

    /// The faults of all volumes of a VDI.
    fn of_vdi(&self, vg: &Vg, vdi: VdiUuid) -> Vec<Finding> {
        let mut found = Vec::new();
        let named = |prefix: &str| vg.lv(&format!("{prefix}{vdi}"));
        let (raw, vhd) = (named(RAW), named(VHD));
        if let (Some(raw), Some(vhd)) = (raw, vhd) {
            let what = format!("the volume {} is named as the same VDI", vhd.name);
            found.push(finding(Some(vdi), &raw.name, Outcome::Lasting, what));
        }
        if let Some(vhd) = vhd
            && let Err(foreign) = refuse_foreign(vdi, Format::Vhd)
        {
            found.push(finding_of_state(vdi, vhd.name.clone(), &State::of(&foreign)));
        }
        if let Some(lv) = named(UNFINISHED) {
            found.push(match tags::is_elsewhere(&lv.tags) {
                true => {
                    let what = "another host fills it for a vdi_resize or vdi_import, or its call was killed there";
                    finding(Some(vdi), &lv.name, Outcome::Note, what)
                }
                false => {
                    let what = "a vdi_resize or vdi_import that was killed left it: it is to be removed";
                    finding(Some(vdi), &lv.name, Outcome::Mendable, what)
                }
            });
        }
        if let Some(lv) = vg.lvs.iter().find(|lv| reverted(&lv.name) == Some(vdi)) {
            let what = match raw {
                Some(_) => "a vdi_revert that was killed left it: it is to be removed".to_owned(),
                None => format!("a vdi_revert that was killed left the VDI here: it is to become {RAW}{vdi}"),
            };
            found.push(finding(Some(vdi), &lv.name, Outcome::Mendable, what));
        }
        let disk = self.volumes(vg).find(|(found, format, _)| *found == vdi && *format == Format::Raw);
        if let Some((.., lv)) = disk {
            self.of_disk(vg, vdi, lv, &mut found);
        }
        found
    }

    fn of_disk(&self, vg: &Vg, vdi: VdiUuid, lv: &Lv, found: &mut Vec<Finding>) {
        let mut say = |outcome, what: String| found.push(finding(Some(vdi), &lv.name, outcome, what));
        let record = tags::read(&lv.tags);
        if lv.stuck {
            say(Outcome::Mendable, SUSPENDED.to_owned());
        }
        if record.lent {
            say(Outcome::Mendable, "a vdi_export that was killed left it active for itself".to_owned());
        }
        if let Some(bytes) = record.cut.filter(|_| record.damaged.is_none()) {
            say(Outcome::Mendable, format!("a vdi_resize to {} was killed: it is to be completed", Size(bytes)));
        }
        if record.zero && lv.active {
            let what = "its first vdi_attach was killed; the next one gives it its zeroes";
            say(Outcome::Note, what.to_owned());
        }
        for tag in tags::odd(&lv.tags) {
            say(Outcome::Note, format!("its tag {tag} says nothing to this release"));
        }
        if vg.lv(POOL).is_some_and(Lv::is_thin_pool) && !lv.is_thin() {
            say(Outcome::Note, format!("it is not in {POOL}: it has no snapshots"));
        }
        // While a cut is unfinished the two may differ.
        let device = lv.active.then(|| blockdev::known_size(&lvm::node(&vg.name, &lv.name))).flatten();
        if let Some(size) = device.filter(|size| *size != lv.size && record.cut.is_none() && !lv.stuck) {
            let what = format!(
                "its device has {}, and the volume {}: another host changed it, or a call was killed; the device is to follow",
                Size(size),
                Size(lv.size)
            );
            say(Outcome::Mendable, what);
        }
        let state = LvmPlace::listed(self, &Group::of(vg), vdi, lv).state();
        if !state.is_healthy() {
            found.push(finding_of_state(vdi, lv.name.clone(), &state));
        }
    }

    /// Looks again under the lock of the VDI, and mends what is found again. `before`: what was found without the lock.
    fn again(&self, vdi: VdiUuid, before: Vec<Finding>, repair: bool) -> Result<Vec<Finding>> {
        let _lock = match lock::take(&vdi.to_string(), "vdi", lock::Kind::Exclusive, Instant::now()) {
            Ok(lock) => lock,
            // A call works on it, and this is what the call does.
            Err(lock::Refused::TimedOut { .. }) => {
                return Ok(before.into_iter().filter(|finding| !is_mendable(finding)).collect());
            }
            Err(lock::Refused::Failed(error)) => return Err(error),
        };
        let vg = self.group.look()?;
        let found = self.of_vdi(&vg, vdi);
        if !repair || !found.iter().any(is_mendable) {
            return Ok(found);
        }
        let failed = self.mend(&vg, vdi).err();
        let now = self.group.look()?;
        let still = self.of_vdi(&now, vdi);
        if !vdis(&now).contains(&vdi) {
            lock::forget(&vdi.to_string(), "vdi");
        }
        let outcome = |finding: Finding| match (is_mendable(&finding), still.contains(&finding), &failed) {
            (true, false, _) => Finding { outcome: Outcome::Mended, ..finding },
            (true, true, Some(why)) => {
                Finding { what: format!("{}; that failed: {}", finding.what, one_line(why)), ..finding }
            }
            _ => finding,
        };
        Ok(found.into_iter().map(outcome).collect())
    }

    /// Does what the next call for the VDI would do. The caller has the lock of the VDI.
    fn mend(&self, vg: &Vg, vdi: VdiUuid) -> Result<()> {
        if self.is_slave {
            let why = "only the SR's master may change the volume group".to_owned();
            return Err(Error::SrUnavailable { sr: self.group.sr, why });
        }
        self.group.refuse_incomplete(vg)?;
        let disk = self.volumes(vg).find(|(found, format, _)| *found == vdi && *format == Format::Raw);
        let Some((.., lv)) = disk else {
            let left = vg.lv(&format!("{UNFINISHED}{vdi}")).filter(|lv| !tags::is_elsewhere(&lv.tags));
            self.resume(vg, left)?;
            return left.map_or(Ok(()), |lv| self.remove_unfinished(vg, &lv.name));
        };
        let place = LvmPlace::new(self, vg, vdi, lv);
        match place.sweep(false) {
            // It stays as it is, and is told by its state.
            Err(Error::Damaged { .. }) => {}
            other => other?,
        }
        let lv = place.lv.borrow();
        let node = lvm::node(&vg.name, &lv.name);
        match lv.active && blockdev::known_size(&node).is_some_and(|size| size != lv.size) {
            true => lvm::refresh(&vg.name, &lv.name),
            false => Ok(()),
        }
    }
}

const SUSPENDED: &str = "an LVM command that was killed left it suspended: I/O on it waits until it is resumed";

fn is_mendable(finding: &Finding) -> bool {
    finding.outcome == Outcome::Mendable
}

/// The VDIs that volumes of the group are named after.
fn vdis(vg: &Vg) -> BTreeSet<VdiUuid> {
    let unfinished = |name: &str| name.strip_prefix(UNFINISHED)?.parse().ok();
    let of = |lv: &Lv| vdi_of(&lv.name).map(|(vdi, _)| vdi).or(unfinished(&lv.name)).or(reverted(&lv.name));
    vg.lvs.iter().filter_map(of).collect()
}

/// What the group's tags and the names of its volumes say.
fn of_group(vg: &Vg) -> Vec<Finding> {
    let has = |tag: &str| vg.tags.iter().any(|it| it == tag);
    let pool = vg.lv(POOL).is_some_and(Lv::is_thin_pool);
    let mut found = Vec::new();
    let mut say = |outcome, what: String| found.push(finding(None, &vg.name, outcome, what));
    match (has(THIN), has(THICK)) {
        (true, _) if !pool => {
            let what =
                format!("its tag {THIN} says that it has the pool {POOL}, and it has none: sr_attach refuses it");
            say(Outcome::Lasting, what);
        }
        (true, true) => say(Outcome::Note, format!("it has the tags {THIN} and {THICK}; it is thin, as it has a pool")),
        (false, true) if pool => {
            let what = format!(
                "it has the tag {THICK} and a pool, and is taken for thin: vgchange --deltag {THICK} --addtag {THIN} {}",
                vg.name
            );
            say(Outcome::Note, what);
        }
        _ => {}
    }
    let known = vdis(vg);
    for lv in &vg.lvs {
        let name = lv.name.as_str();
        let uuid = [RAW, VHD, UNFINISHED, super::REVERTED].iter().find_map(|prefix| name.strip_prefix(prefix));
        let is_vdi = uuid.and_then(|uuid| uuid.parse().ok()).is_some_and(|vdi| known.contains(&vdi));
        let what = match uuid {
            _ if is_vdi || name == POOL || name == NAMES_OF_OTHERS || trim::is_volume(name) => continue,
            Some(_) => "its name is like that of a VDI, and has no UUID: it is left alone",
            None => "no volume of an SR has such a name: it is left alone, and takes space",
        };
        found.push(finding(None, name, Outcome::Note, what));
    }
    found
}

/// Says how full a pool is, if that is worth a word.
fn fullness(pool: &Lv) -> Vec<Finding> {
    let percent = |n: u64| format!("{}.{:02} %", n / 100, n % 100);
    let parts = [("data", pool.data_used, POOL_DATA_FULL), ("metadata", pool.metadata_used, POOL_METADATA_FULL)];
    let of_part = |(part, used, limit): (&str, Option<u64>, u64)| {
        let used = used?;
        let from = limit - NEARLY;
        let refused = "vdi_create, vdi_clone, vdi_snapshot and growing are refused";
        match used {
            _ if used >= limit => Some(finding(
                None,
                POOL,
                Outcome::Lasting,
                format!(
                    "{} of its {part} is in use, and {refused}: delete VDIs, or add devices to the group",
                    percent(used)
                ),
            )),
            _ if used >= from => {
                let what = format!("{} of its {part} is in use; from {} on {refused}", percent(used), percent(limit));
                Some(finding(None, POOL, Outcome::Note, what))
            }
            _ => None,
        }
    };
    parts.into_iter().filter_map(of_part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const VDI: &str = "98de866e-b035-4b1a-a571-613bff542b89";

    fn lv(name: &str) -> Lv {
        Lv { name: name.replace('*', VDI), layout: vec!["linear".to_owned()], ..Lv::default() }
    }

    fn pool() -> Lv {
        Lv { layout: vec!["thin".to_owned(), "pool".to_owned()], ..lv(POOL) }
    }

    fn group(tags: &[&str], lvs: Vec<Lv>) -> Vg {
        let tags = tags.iter().map(|tag| (*tag).to_owned()).collect();
        Vg { name: "vg".to_owned(), extent_size: 4 << 20, tags, lvs, ..Vg::default() }
    }

    fn said(found: &[Finding]) -> Vec<(String, &'static str)> {
        found.iter().map(|finding| (finding.object.replace(VDI, "*"), finding.outcome.word())).collect()
    }

    #[test]
    fn tags_that_contradict_the_volumes_are_told() {
        for (tags, lvs, outcome) in [
            (&[THIN][..], vec![lv("LV-*")], Some("lasting")),
            (&[THIN, THICK], vec![pool()], Some("note")),
            (&[THICK], vec![pool()], Some("note")),
            (&[THICK], vec![lv("LV-*")], None),
            (&[THIN], vec![pool()], None),
            (&[], vec![lv("LV-*"), lv("MGT")], None),
        ] {
            let found = of_group(&group(tags, lvs));
            assert_eq!(found.first().map(|finding| finding.outcome.word()), outcome, "{tags:?}: {found:?}");
        }
    }

    #[test]
    fn names_that_no_volume_of_an_sr_has_are_told() {
        let lvs = ["LV-*", "NEW-*", "REV-*", "VHD-*", "MGT", "LV-x", "NEW-", "home"].map(lv);
        let found = of_group(&group(&[THICK], lvs.into()));
        assert_eq!(said(&found), ["LV-x", "NEW-", "home"].map(|name| (name.to_owned(), "note")));
    }

    #[test]
    fn a_pool_is_nearly_full_before_it_is_full() {
        let used = |data, metadata| said(&fullness(&Lv { data_used: data, metadata_used: metadata, ..pool() }));
        let pool = |outcome| (POOL.to_owned(), outcome);
        assert_eq!(used(None, None), []);
        assert_eq!(used(Some(84_99), Some(69_99)), []);
        assert_eq!(used(Some(85_00), Some(70_00)), [pool("note"), pool("note")]);
        assert_eq!(used(Some(95_00), Some(80_00)), [pool("lasting"), pool("lasting")]);
    }

    #[test]
    fn what_killed_calls_left_is_mendable_and_what_another_host_does_is_not() {
        use crate::sr::lvm::{DRIVER, NAMING};
        use crate::types::{DeviceConfig, SrUuid};
        let config = DeviceConfig::from([("device", "/dev/sdb")]);
        let sr = LvmSr::new(&DRIVER, &NAMING, SrUuid::random(), &config, Instant::now().into()).unwrap();
        let tagged =
            |name: &str, tags: &[&str]| Lv { tags: tags.iter().map(|tag| (*tag).to_owned()).collect(), ..lv(name) };
        let of = |lvs: Vec<Lv>| said(&sr.of_vdi(&group(&[THICK], lvs), VDI.parse().unwrap()));
        for (lvs, object, outcome) in [
            (vec![lv("LV-*"), lv("NEW-*")], "NEW-*", "mendable"),
            (vec![tagged("NEW-*", &[&tags::of_maker()])], "NEW-*", "mendable"),
            (vec![tagged("NEW-*", &["xcp.maker=another"])], "NEW-*", "note"),
            (vec![lv("LV-*"), lv("REV-*")], "REV-*", "mendable"),
            (vec![lv("REV-*")], "REV-*", "mendable"),
            (vec![tagged("LV-*", &[tags::LENT])], "LV-*", "mendable"),
            (vec![tagged("LV-*", &["xcp.cut=8388608"])], "LV-*", "mendable"),
            (vec![tagged("LV-*", &["xcp.cut=x"])], "LV-*", "lasting"),
            (vec![tagged("LV-*", &["xcp.colour=red"])], "LV-*", "note"),
            (vec![Lv { stuck: true, ..lv("LV-*") }], "LV-*", "mendable"),
            (vec![Lv { health: "partial".to_owned(), ..lv("LV-*") }], "LV-*", "lasting"),
            (vec![Lv { active: true, ..tagged("LV-*", &[tags::ZERO]) }], "LV-*", "note"),
        ] {
            assert_eq!(of(lvs.clone()), [(object.to_owned(), outcome)], "{lvs:?}");
        }
        assert_eq!(of(vec![tagged("LV-*", &[tags::ZERO, "xcp.label.0=x", "xcp.lock=2", "theirs"])]), []);
        assert_eq!(of(vec![lv("LV-*"), lv("VHD-*")]).len(), 2);
    }
}
