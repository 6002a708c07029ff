//! Changes of a group: the LVM command of each, and what the group is afterwards, so that it need not be asked for.
//!
//! A volume that is made or made larger gets one range of extents that is chosen here, where there is one: then it is known where
//! its bytes are. Else LVM chooses, and the group has to be looked at again ([`Known`]).

use std::path::{Path, PathBuf};

use crate::sys::lvm::script::Command;
use crate::sys::lvm::{Lv, Segment, Vg};

/// The tag of a journal (`journaler.py`).
const JOURNALER: &str = "journaler";

/// A change of a group by one LVM command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A volume with old bytes in it.
    Create {
        name: String,
        size: u64,
        tags: Vec<String>,
        active: bool,
    },
    Rename {
        from: String,
        to: String,
    },
    /// Also of an active volume that no process has open.
    Remove {
        name: String,
    },
    /// To so many bytes or more. What is added has old bytes in it.
    Extend {
        name: String,
        size: u64,
    },
    /// To so many bytes or more.
    Reduce {
        name: String,
        size: u64,
    },
    SetWritable {
        name: String,
        writable: bool,
    },
    Tag {
        name: String,
        add: Vec<String>,
        remove: Vec<String>,
    },
    Activate {
        names: Vec<String>,
    },
    /// Active volumes get the extents that the group says.
    Refresh {
        names: Vec<String>,
    },
}

impl Step {
    pub fn create(name: impl Into<String>, size: u64) -> Step {
        Step::Create { name: name.into(), size, tags: Vec::new(), active: false }
    }

    /// A journal, which has one extent.
    pub fn journal(name: impl Into<String>) -> Step {
        Step::Create { name: name.into(), size: 1, tags: vec![JOURNALER.to_owned()], active: false }
    }

    /// Adds tags to a volume.
    pub fn tag(name: impl Into<String>, add: Vec<String>) -> Step {
        Step::Tag { name: name.into(), add, remove: Vec::new() }
    }

    /// Takes tags from a volume.
    pub fn untag(name: impl Into<String>, remove: Vec<String>) -> Step {
        Step::Tag { name: name.into(), add: Vec::new(), remove }
    }

    pub fn rename(from: impl Into<String>, to: impl Into<String>) -> Step {
        Step::Rename { from: from.into(), to: to.into() }
    }

    pub fn remove(name: impl Into<String>) -> Step {
        Step::Remove { name: name.into() }
    }
}

/// Whether it is known where all bytes of the group's volumes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    Yes,
    /// LVM chose extents.
    No,
}

/// The commands for steps that are taken one after the other, and the group as it is then.
pub fn plan(vg: &Vg, steps: &[Step]) -> (Vec<Command>, Vg, Known) {
    let (mut vg, mut known) = (vg.clone(), Known::Yes);
    let mut commands = Vec::with_capacity(steps.len());
    for step in steps {
        let (command, is_known) = take(&mut vg, step);
        commands.push(command);
        if !is_known {
            known = Known::No;
        }
    }
    (commands, vg, known)
}

fn take(vg: &mut Vg, step: &Step) -> (Command, bool) {
    let full = |name: &str| format!("{}/{name}", vg.name);
    match step {
        Step::Create { name, size, tags, active } => {
            let extents = size.div_ceil(vg.extent_size).max(1);
            let range = choose(vg, extents);
            let (count, mut names) = (extents.to_string(), vec![vg.name.clone()]);
            let mut options = vec!["-y", if *active { "-ay" } else { "-an" }, "-Zn", "-Wn", "-l", &count];
            options.extend(tags.iter().flat_map(|tag| ["--addtag", tag]));
            options.extend(["-n", name]);
            names.extend(range.as_ref().map(|range| range.words(extents)));
            let command = Command::new("lvcreate", &options, &names);
            let mut lv = Lv { name: name.clone(), active: *active, layout: vec!["linear".to_owned()], ..Lv::default() };
            lv.tags.clone_from(tags);
            let known = range.is_some();
            give(vg.extent_size, &mut lv, extents, range);
            vg.free = vg.free.saturating_sub(extents * vg.extent_size);
            vg.lvs.push(lv);
            (command, known)
        }
        Step::Rename { from, to } => {
            let command = Command::new("lvrename", &[], &[&vg.name, from, to]);
            with(vg, from, |lv| lv.name.clone_from(to));
            (command, true)
        }
        Step::Remove { name } => {
            let command = Command::new("lvremove", &["-f", "-y"], &[full(name)]);
            let freed: u64 = vg.lv(name).map_or(0, |lv| lv.size);
            vg.lvs.retain(|lv| lv.name != *name);
            vg.free += freed;
            (command, true)
        }
        Step::Extend { name, size } => {
            let extents = size.div_ceil(vg.extent_size);
            let more = extents.saturating_sub(vg.lv(name).map_or(0, |lv| lv.size / vg.extent_size));
            let range = choose(vg, more);
            let mut names = vec![full(name)];
            names.extend(range.as_ref().map(|range| range.words(more)));
            let command = Command::new("lvextend", &["-y", "-l", &extents.to_string()], &names);
            let (known, extent) = (range.is_some(), vg.extent_size);
            with(vg, name, |lv| give(extent, lv, more, range));
            vg.free = vg.free.saturating_sub(more * extent);
            (command, known)
        }
        Step::Reduce { name, size } => {
            let extents = size.div_ceil(vg.extent_size);
            let command = Command::new("lvreduce", &["-f", "-y", "-l", &extents.to_string()], &[full(name)]);
            let freed = vg.lv(name).map_or(0, |lv| lv.size).saturating_sub(extents * vg.extent_size);
            let extent = vg.extent_size;
            with(vg, name, |lv| cut(extent, lv, extents));
            vg.free += freed;
            (command, true)
        }
        Step::SetWritable { name, writable } => {
            let command = Command::new("lvchange", &["-p", if *writable { "rw" } else { "r" }], &[full(name)]);
            with(vg, name, |lv| lv.read_only = !writable);
            (command, true)
        }
        Step::Tag { name, add, remove } => {
            let mut options: Vec<&str> = add.iter().flat_map(|tag| ["--addtag", tag]).collect();
            options.extend(remove.iter().flat_map(|tag| ["--deltag", tag]));
            let command = Command::new("lvchange", &options, &[full(name)]);
            with(vg, name, |lv| {
                lv.tags.retain(|tag| !remove.contains(tag) && !add.contains(tag));
                lv.tags.extend(add.iter().cloned());
            });
            (command, true)
        }
        Step::Refresh { names } => {
            let all: Vec<String> = names.iter().map(|name| full(name)).collect();
            (Command::new("lvchange", &["--refresh"], &all), true)
        }
        Step::Activate { names } => {
            let all: Vec<String> = names.iter().map(|name| full(name)).collect();
            let command = Command::new("lvchange", &["-ay", "-K"], &all);
            names.iter().for_each(|name| with(vg, name, |lv| lv.active = true));
            (command, true)
        }
    }
}

fn with(vg: &mut Vg, name: &str, change: impl FnOnce(&mut Lv)) {
    if let Some(lv) = vg.lvs.iter_mut().find(|lv| lv.name == name) {
        change(lv);
    }
}

/// Adds extents at the end of a volume.
fn give(extent: u64, lv: &mut Lv, count: u64, range: Option<Range>) {
    let start = lv.size / extent;
    lv.size += count * extent;
    let on = range.map(|range| (range.device, range.first));
    if count > 0 {
        lv.segments.push(Segment { kind: "linear".to_owned(), start, count, on });
    }
}

/// Takes the extents behind the first so many from a volume.
fn cut(extent: u64, lv: &mut Lv, extents: u64) {
    lv.size = lv.size.min(extents * extent);
    lv.segments.retain_mut(|segment| {
        segment.count = segment.count.min(extents.saturating_sub(segment.start));
        segment.count > 0
    });
}

/// Extents of a physical volume, from the first on.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Range {
    device: PathBuf,
    first: u64,
}

impl Range {
    fn words(&self, count: u64) -> String {
        let last = self.first + count - 1;
        // A colon in the device's own name would end it.
        format!("{}:{}-{last}", self.device.display().to_string().replace(':', "\\:"), self.first)
    }
}

/// The first free extents of which there are so many in one range. `None`: there are not, or the report does not tell which are
/// free.
fn choose(vg: &Vg, count: u64) -> Option<Range> {
    let extents = |bytes: u64| bytes / vg.extent_size.max(1);
    let segments = || vg.lvs.iter().flat_map(|lv| &lv.segments);
    let used: u64 = segments().filter(|segment| segment.on.is_some()).map(|segment| segment.count).sum();
    let all: u64 = vg.pvs.iter().map(|pv| extents(pv.size)).sum();
    // A volume that the report leaves out, or whose extents it does not tell, has some of them.
    if count == 0 || used + extents(vg.free) != all || vg.pvs.iter().any(|pv| pv.missing) {
        return None;
    }
    vg.pvs.iter().find_map(|pv| {
        let mut taken: Vec<(u64, u64)> = on(segments(), &pv.name).collect();
        taken.sort_unstable();
        taken.push((extents(pv.size), 0));
        let mut next = 0;
        for (first, length) in taken {
            if first >= next + count {
                return Some(Range { device: pv.name.clone(), first: next });
            }
            next = next.max(first + length);
        }
        None
    })
}

fn on<'s>(segments: impl Iterator<Item = &'s Segment>, device: &Path) -> impl Iterator<Item = (u64, u64)> {
    segments.filter_map(move |segment| {
        let (name, first) = segment.on.as_ref()?;
        (name == device).then_some((*first, segment.count))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::lvm::Pv;

    const EXTENT: u64 = 4 << 20;

    /// A volume: its name, and the device, the first extent and the number of each of its segments.
    type Volume<'v> = (&'v str, &'v [(usize, u64, u64)]);

    fn group(volumes: &[Volume]) -> Vg {
        let pv = |name: &str, extents| Pv { name: PathBuf::from(name), size: extents * EXTENT, ..Pv::default() };
        let pvs = vec![pv("/dev/a", 10), pv("/dev/b", 20)];
        let mut vg = Vg { name: "vg".to_owned(), extent_size: EXTENT, free: 30 * EXTENT, pvs, ..Vg::default() };
        for (name, segments) in volumes {
            let mut lv = Lv { name: (*name).to_owned(), ..Lv::default() };
            for (pv, first, count) in *segments {
                let range = Range { device: vg.pvs[*pv].name.clone(), first: *first };
                give(EXTENT, &mut lv, *count, Some(range));
                vg.free -= count * EXTENT;
            }
            vg.lvs.push(lv);
        }
        vg
    }

    #[test]
    fn a_volume_gets_the_first_range_that_is_large_enough() {
        let vg = group(&[("x", &[(0, 1, 2), (1, 0, 3)]), ("y", &[(0, 5, 1)])]);
        for (count, wanted) in [
            (1, Some(("/dev/a", 0))),
            (2, Some(("/dev/a", 3))),
            (4, Some(("/dev/a", 6))),
            (5, Some(("/dev/b", 3))),
            (17, Some(("/dev/b", 3))),
            (18, None),
            (0, None),
        ] {
            let found = choose(&vg, count);
            assert_eq!(found.as_ref().map(|range| (range.device.to_str().unwrap(), range.first)), wanted, "{count}");
        }
        // Not all of what is used is told.
        assert_eq!(choose(&Vg { free: vg.free - EXTENT, ..vg.clone() }, 1), None);
        let mut missing = vg;
        missing.pvs[1].missing = true;
        assert_eq!(choose(&missing, 1), None);
    }

    #[test]
    fn steps_are_commands_and_what_the_group_is_then() {
        let vg = group(&[("VHD-u", &[(0, 0, 4)])]);
        let steps = [
            Step::journal("clone_u_1"),
            Step::create("NEW-u", 8 << 20),
            Step::rename("VHD-u", "VHD-b"),
            Step::rename("NEW-u", "VHD-u"),
            Step::SetWritable { name: "VHD-b".to_owned(), writable: false },
            Step::Reduce { name: "VHD-b".to_owned(), size: 9 << 20 },
            Step::remove("clone_u_1"),
            Step::Extend { name: "VHD-u".to_owned(), size: 21 << 20 },
            Step::tag("VHD-u", vec!["a".to_owned(), "b".to_owned()]),
            Step::untag("VHD-u", vec!["a".to_owned()]),
        ];
        let (commands, now, known) = plan(&vg, &steps);
        let shown: Vec<String> = commands
            .iter()
            .map(|it| format!("{} {} -- {}", it.program, it.options.join(" "), it.names.join(" ")))
            .collect();
        assert_eq!(
            shown,
            [
                "lvcreate -y -an -Zn -Wn -l 1 --addtag journaler -n clone_u_1 -- vg /dev/a:4-4",
                "lvcreate -y -an -Zn -Wn -l 2 -n NEW-u -- vg /dev/a:5-6",
                "lvrename  -- vg VHD-u VHD-b",
                "lvrename  -- vg NEW-u VHD-u",
                "lvchange -p r -- vg/VHD-b",
                "lvreduce -f -y -l 3 -- vg/VHD-b",
                "lvremove -f -y -- vg/clone_u_1",
                "lvextend -y -l 6 -- vg/VHD-u /dev/b:0-3",
                "lvchange --addtag a --addtag b -- vg/VHD-u",
                "lvchange --deltag a -- vg/VHD-u",
            ]
        );
        assert_eq!(known, Known::Yes);
        assert_eq!(now.lvs.iter().map(|lv| lv.name.as_str()).collect::<Vec<_>>(), ["VHD-b", "VHD-u"]);
        assert_eq!((now.lvs[0].read_only, now.lvs[0].size, now.lvs[0].segments.len()), (true, 3 * EXTENT, 1));
        assert_eq!(now.lvs[0].segments[0].count, 3);
        assert_eq!(now.lvs[1].tags, ["b"]);
        let places: Vec<_> = now.lvs[1].segments.iter().map(|s| (s.start, s.count, s.on.as_ref().unwrap().1)).collect();
        assert_eq!(places, [(0, 2, 5), (2, 4, 0)]);
        assert_eq!(now.free, (30 - 3 - 6) * EXTENT);
        assert_eq!(choose(&now, 1).unwrap().first, 3);
    }

    #[test]
    fn where_there_is_no_range_lvm_chooses() {
        let vg = group(&[("x", &[(1, 10, 1)])]);
        let (commands, now, known) = plan(&vg, &[Step::create("y", 12 * EXTENT)]);
        assert_eq!((commands[0].names.as_slice(), known), (&["vg".to_owned()][..], Known::No));
        assert_eq!((now.lvs[1].size, now.lvs[1].segments[0].on.as_ref()), (12 * EXTENT, None));
    }
}
