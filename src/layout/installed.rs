//! Installed layouts: `/var/lib/sm/layouts/NAME.layout`, of root alone.
//!
//! The file is a layout as [`text`] writes it. It is replaced durably and as a whole, so a kill leaves the layout of before or
//! after the change. A file that cannot be read is an error, and never means that nothing is installed.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::document::{Document, Fields};
use super::keys;
use super::{Active, Layout, LayoutName, Medium, Mode, Slot, SlotId, text};
use crate::error::{Error, Result};
use crate::registry::candidate::Class;
use crate::registry::line::Misfit;
use crate::sys::durable::{self, Dir};
use crate::sys::run_dir;

const EXTENSION: &str = ".layout";

/// The file of an installed layout, for messages.
pub fn path(name: &LayoutName) -> PathBuf {
    run_dir::layouts().join(file(name))
}

fn file(name: &LayoutName) -> String {
    format!("{name}{EXTENSION}")
}

/// The names of the installed layouts, in order.
///
/// # Errors
/// [`Error::Io`] if the directory cannot be read.
pub fn names() -> Result<Vec<LayoutName>> {
    let Some(dir) = open()? else { return Ok(Vec::new()) };
    let mut names: Vec<LayoutName> =
        dir.names()?.iter().filter_map(|file| file.strip_suffix(EXTENSION)?.parse().ok()).collect();
    names.sort();
    Ok(names)
}

/// The text of an installed layout; `None` if there is none.
///
/// # Errors
/// [`Error::Io`], [`Error::Damaged`] if it cannot be read.
pub fn read(name: &LayoutName) -> Result<Option<String>> {
    let Some(dir) = open()? else { return Ok(None) };
    let Some(bytes) = dir.read(&file(name))? else { return Ok(None) };
    let text = String::from_utf8(bytes);
    text.map(Some).map_err(|_| Error::Damaged { path: path(name), what: "it is no text".to_owned() })
}

/// An installed layout; `None` if there is none.
///
/// # Errors
/// As [`read`]; [`Error::Damaged`] with the line that is wrong.
pub fn load(name: &LayoutName) -> Result<Option<Layout>> {
    let Some(text) = read(name)? else { return Ok(None) };
    let layout = parse(&text, &path(name))?;
    match layout.name == *name {
        true => Ok(Some(layout)),
        false => Err(Error::Damaged { path: path(name), what: format!("it is the layout {}", layout.name) }),
    }
}

/// Installs a layout, durably, in the place of the one that has its name. The text has to say all of it.
///
/// # Errors
/// [`Error::Damaged`] for a layout with values that its text cannot have; then nothing was changed. [`Error::Io`] if the file
/// cannot be written.
pub fn save(layout: &Layout) -> Result<()> {
    let path = path(&layout.name);
    let text = text_of(layout)?;
    let dir = match open()? {
        Some(dir) => dir,
        None => {
            durable::make_dirs(&run_dir::layouts())?;
            open()?.ok_or_else(|| Error::sys("open the directory", &path)(Errno::ENOENT))?
        }
    };
    let mut new = dir.new_record(text.as_bytes())?;
    let mode = Permissions::from_mode(0o640);
    new.file().set_permissions(mode).map_err(Error::io("set the mode of a file in", dir.path()))?;
    new.sync()?;
    new.publish_over(&file(&layout.name))
}

/// The text of a layout, which is read back as that layout.
///
/// # Errors
/// [`Error::Damaged`] for a layout with values that its text cannot have.
pub fn text_of(layout: &Layout) -> Result<String> {
    let path = path(&layout.name);
    let text = text::of(layout);
    match parse(&text, &path)? == *layout {
        true => Ok(text),
        false => Err(Error::Damaged { path, what: "a value of the layout cannot be written as it is".to_owned() }),
    }
}

/// Removes an installed layout, durably. Whether there was one.
///
/// # Errors
/// [`Error::Io`].
pub fn remove(name: &LayoutName) -> Result<bool> {
    let Some(dir) = open()? else { return Ok(false) };
    let was_there = dir.remove(&file(name))?;
    dir.sync()?;
    Ok(was_there)
}

fn open() -> Result<Option<Dir>> {
    match Dir::open(&run_dir::layouts()) {
        Err(e) if e.errno() == Some(Errno::ENOENT as i32) => Ok(None),
        other => other.map(Some),
    }
}

/// Reads the text of a layout.
///
/// # Errors
/// [`Error::Damaged`] with the line and what is wrong.
pub fn parse(text: &str, path: &Path) -> Result<Layout> {
    layout(text).map_err(|misfit| {
        let at = if misfit.line == 0 { String::new() } else { format!("line {}: ", misfit.line) };
        Error::Damaged { path: path.to_owned(), what: format!("{at}{}", misfit.what) }
    })
}

fn layout(text: &str) -> Result<Layout, Misfit> {
    let Document { name, uuid, options, addresses, attaches, gateways, srs, .. } = Document::parse(text)?;
    let uuid = uuid.ok_or_else(|| Misfit::at(0, "it has no line `uuid: UUID`"))?;
    if let Some((line, _)) = attaches.iter().find(|(_, attach)| attach.host.is_empty()) {
        return Err(Misfit::at(*line, "host= is missing"));
    }
    let mut layout = Layout {
        name,
        uuid,
        options,
        addresses: addresses.into_iter().map(|(_, it)| it).collect(),
        slots: Vec::new(),
        attaches: attaches.into_iter().map(|(_, it)| it).collect(),
        gateways: gateways.into_iter().map(|(_, it)| it).collect(),
    };
    for (line, class, fields) in srs {
        let slot = slot(&layout, class, fields).map_err(|what| Misfit::at(line, what))?;
        if layout.slots.last().is_some_and(|last| last.id >= slot.id) {
            return Err(Misfit::at(line, format!("{} is there twice or out of order", slot.id)));
        }
        layout.slots.push(slot);
    }
    Ok(layout)
}

/// The keys of an SR line of an installed layout.
const KNOWN: [&str; 16] = [
    "index", "host", "ha_host", "dev", "identity", "size", "uuid", "mode", "active", "publish", "tag", "group",
    "network", "jdev", "prep", "fs",
];

fn slot(layout: &Layout, class: Class, mut fields: Fields) -> Result<Slot, String> {
    let id: SlotId = format!("{class}/{}", fields.need("index")?).parse().map_err(|e| format!("{e}"))?;
    let listed = |text: String| text.split(',').map(str::to_owned).collect::<Vec<_>>();
    let one = |text: String| vec![text];
    let list: &dyn Fn(String) -> Vec<String> = if class == Class::Lvm { &listed } else { &one };
    let devs = list(fields.need("dev")?);
    let identities = list(fields.need("identity")?);
    let sizes = fields.take("size")?.map(listed).unwrap_or_else(|| vec![String::new(); devs.len()]);
    if devs.len() != identities.len() || devs.len() != sizes.len() {
        return Err("dev, identity and size have different numbers of items".to_owned());
    }
    let media = devs.into_iter().zip(identities).zip(sizes).map(|((dev, identity), size)| {
        let size = (!size.is_empty()).then(|| bytes(&size)).transpose()?;
        Ok(Medium { dev, identity: text::decoded(&identity)?, size })
    });
    let uuid = fields.take("uuid")?.map(|text| text.parse().map_err(|e| format!("{e}"))).transpose()?;
    let mut text = |key: &str| fields.take(key).map(Option::unwrap_or_default);
    let slot = Slot {
        id,
        mode: mode(&text("mode")?)?,
        host: text("host")?,
        ha_hosts: Some(text("ha_host")?).filter(|it| !it.is_empty()).map(listed).unwrap_or_default(),
        media: media.collect::<Result<_, String>>()?,
        uuid: uuid.unwrap_or_else(|| id.sr(layout.uuid)),
        active: active(&text("active")?)?,
        publish: Some(text("publish")?)
            .filter(|it| !it.is_empty())
            .map(|it| keys::boolean(&it))
            .transpose()?
            .unwrap_or(false),
        tag: text("tag")?,
        group: text("group")?,
        network: text("network")?,
        jdev: text("jdev")?,
        prep: text("prep")?,
        fs: text("fs")?,
    };
    fields.finish(&KNOWN)?;
    Ok(slot)
}

/// A mode; managed if the text is empty.
///
/// # Errors
/// A clause that says what is wrong.
pub fn mode(text: &str) -> Result<Mode, String> {
    match text {
        "" | "managed" => Ok(Mode::Managed),
        "external" => Ok(Mode::External),
        _ => Err(format!("mode={text} is neither managed nor external")),
    }
}

/// Whether an SR is brought up; yes if the text is empty.
///
/// # Errors
/// A clause that says what is wrong.
pub fn active(text: &str) -> Result<Active, String> {
    let known = Active::ALL.into_iter().find(|active| active.word() == text);
    match (known, text.is_empty()) {
        (Some(active), _) => Ok(active),
        (None, true) => Ok(Active::Yes),
        (None, false) => Err(format!("active={text} is none of yes, no, nocreate, manual")),
    }
}

fn bytes(text: &str) -> Result<u64, String> {
    let number = text.strip_suffix('B').and_then(|number| keys::number(number).ok());
    number.ok_or_else(|| format!("{text:?} is no number of bytes"))
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::layout::{Address, Attach, Gateway};
    use crate::types::LayoutUuid;
    use proptest::prelude::*;

    /// A layout with a slot of each class.
    pub fn sample() -> Layout {
        let uuid: LayoutUuid = "87b8646b-b800-9500-cb7b-af3b74e02f5c".parse().unwrap();
        let slot = |class, index, host: &str, devs: &[&str]| {
            let id = SlotId { class, index };
            let medium = |dev: &&str| Medium {
                dev: (*dev).to_owned(),
                identity: format!("wwid:{dev}, of \"x\" [0-1]"),
                size: (class == Class::Lvm).then_some(1 << 30),
            };
            Slot {
                id,
                mode: Mode::Managed,
                host: host.to_owned(),
                ha_hosts: Vec::new(),
                media: devs.iter().map(medium).collect(),
                uuid: id.sr(uuid),
                active: Active::Yes,
                publish: false,
                tag: String::new(),
                group: String::new(),
                network: String::new(),
                jdev: String::new(),
                prep: String::new(),
                fs: String::new(),
            }
        };
        let mut options = keys::Options::default();
        options.put(keys::find("description").unwrap(), "test rack".to_owned());
        options.put(keys::find("lvm_format").unwrap(), "allocation=thin".to_owned());
        let mut nfs: Vec<Slot> =
            (4..8).map(|index| slot(Class::Nfs, index, "filer1", &[&format!("/export/sr{}", index - 4)])).collect();
        for slot in &mut nfs {
            slot.media[0].identity = format!("nfs:10.0.0.11:{}", slot.media[0].dev);
        }
        let mut slots = vec![
            slot(Class::Lvm, 0, "node1", &["/dev/disk/by-id/wwn-0x5000", "/dev/disk/by-id/wwn-0x5001"]),
            slot(Class::File, 0, "node1", &["/srv/sr0"]),
        ];
        slots[0].tag = "fast disks".to_owned();
        slots.extend(nfs);
        Layout {
            name: "rack1".parse().unwrap(),
            uuid,
            options,
            addresses: [("filer1", "10.0.0.11"), ("filer2", "10.0.0.12")]
                .map(|(host, address)| Address { host: host.to_owned(), address: address.to_owned() })
                .to_vec(),
            slots,
            attaches: vec![Attach {
                host: "node1".to_owned(),
                class: Class::Nfs,
                path: String::new(),
                options: "timeo=300".to_owned(),
            }],
            gateways: vec![Gateway { host: "node1".to_owned(), fabric: "iscsi".to_owned() }],
        }
    }

    #[test]
    fn a_layout_is_read_back_as_it_was_written_and_lines_are_folded() {
        let text = text_of(&sample()).unwrap();
        assert!(text.contains("addr: host=filer[1-2] addr=10.0.0.[11-12]\n"), "{text}");
        assert!(
            text.contains("nfs: index=[4-7] host=filer1 dev=/export/sr[0-3] identity=nfs:10.0.0.11:/export/sr[0-3]\n"),
            "{text}"
        );
        let mut other = sample();
        let slot = &mut other.slots[0];
        slot.uuid = crate::types::SrUuid::random();
        slot.ha_hosts = vec!["node2".to_owned(), "node3".to_owned()];
        (slot.mode, slot.active, slot.publish) = (Mode::External, Active::Manual, true);
        for text in [&mut slot.group, &mut slot.network, &mut slot.jdev, &mut slot.prep, &mut slot.fs] {
            *text = "a#b c".to_owned();
        }
        slot.media[1].size = None;
        text_of(&other).unwrap();
        assert_ne!(text_of(&other).unwrap(), text);
    }

    #[test]
    fn a_value_that_cannot_be_written_is_refused() {
        for evil in ["a\"b", "[[0-1]-2]", "a\nb", "/d[0-3]"] {
            let mut layout = sample();
            layout.slots[1].tag = evil.to_owned();
            assert!(matches!(text_of(&layout), Err(Error::Damaged { .. })), "{evil}");
        }
    }

    #[test]
    fn a_text_that_is_no_layout_is_refused_with_its_line() {
        let path = Path::new("/x.layout");
        let text = text_of(&sample()).unwrap();
        for (bad, what) in [
            (text.replace("uuid:", "# "), "no line `uuid: UUID`"),
            (text.replace("index=0 host=node1 dev=/dev", "host=node1 dev=/dev"), "index= is missing"),
            (text.replace("index=[4-7]", "index=[4-4]"), "members"),
            (text.replace("dev=/dev/disk/by-id/wwn-0x5000,", "dev="), "different numbers"),
            (text.replace("index=0 host=node1 dev=/srv", "index=65535 host=node1 dev=/srv"), "65534 at most"),
            (text.replace("attach: host=node1", "attach:"), "host= is missing"),
            (text.replace("tag=", "colour="), "no key \"colour\""),
            (text.clone() + "lvm: index=0 host=a dev=/d identity=x\n", "out of order"),
            (text.replace("tag=", "active=so tag="), "active=so"),
        ] {
            assert_ne!(bad, text, "{what}");
            let said = parse(&bad, path).unwrap_err().to_string();
            assert!(said.contains(what) && said.starts_with("/x.layout: "), "{said}");
        }
    }

    proptest! {
        #[test]
        fn slots_in_any_number_survive_the_file(
            indexes in prop::collection::btree_set(0u16..200, 0..40), tag in "[a-z0-9 ]{0,8}", from in 0u32..20
        ) {
            let mut layout = sample();
            let template = layout.slots[1].clone();
            layout.slots = indexes.iter().map(|index| {
                let id = SlotId { class: Class::File, index: *index };
                let dev = format!("/srv/sr{:02}", u32::from(*index) + from);
                let media = vec![Medium { identity: format!("file:{dev}"), dev, size: None }];
                Slot { id, uuid: id.sr(layout.uuid), tag: tag.trim().to_owned(), media, ..template.clone() }
            }).collect();
            let text = text::of(&layout);
            prop_assert_eq!(parse(&text, Path::new("x")).unwrap(), layout);
        }
    }
}
