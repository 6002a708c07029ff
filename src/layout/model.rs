//! Models: what an operator writes of a layout. [`matching`](super::matching) makes a layout of a model and the media that there are.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::document::{self, Document, Fields};
use super::keys::{self, Options};
use super::{Active, Address, Attach, Gateway, LayoutName, Mode, installed};
use crate::error::{Error, Result};
use crate::registry::candidate::Class;
use crate::registry::line::{Misfit, Relation};
use crate::registry::view;
use crate::sys::{run_dir, small};
use crate::types::{LayoutUuid, SrUuid};

/// Bytes of the longest pattern.
pub const LONGEST_PATTERN: usize = 512;

/// Bytes of the longest model.
const LONGEST: u64 = 4 << 20;

/// A model as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    pub path: PathBuf,
    pub name: LayoutName,
    /// The UUID of the layout, if the operator says one.
    pub uuid: Option<LayoutUuid>,
    pub options: Options,
    /// The line of each option.
    pub option_lines: BTreeMap<&'static str, usize>,
    /// Each with its line; so are the next two.
    pub addresses: Vec<(usize, Address)>,
    pub attaches: Vec<(usize, Attach)>,
    pub gateways: Vec<(usize, Gateway)>,
    pub srs: Vec<SrLine>,
}

/// A line that asks for SRs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SrLine {
    pub line: usize,
    pub class: Class,
    /// The line says no host: the medium is one of this host, whose name stands in `wanted` as it is.
    pub of_this_host: bool,
    pub index: Option<u64>,
    pub mode: Mode,
    /// Whether all media that fit make one SR; else each makes one.
    pub spans_all: bool,
    pub active: Active,
    pub publish: bool,
    pub uuid: Option<SrUuid>,
    pub group: String,
    pub prep: String,
    /// Bytes that a medium has at least, at most, or exactly.
    pub sizes: Vec<(Relation, u64)>,
    /// What a medium has to be, by key of [`WANTED`]; patterns, or the very values where nothing is matched.
    pub wanted: BTreeMap<&'static str, String>,
}

/// The keys that a medium is compared by, in the order in which they are.
pub const WANTED: [&str; 7] = ["host", "ha_host", "dev", "jdev", "network", "tag", "fs"];

/// The keys of an SR line.
const KNOWN: [&str; 16] = [
    "host", "ha_host", "dev", "jdev", "index", "group", "mode", "network", "tag", "active", "prep", "span", "publish",
    "uuid", "fs", "size",
];

impl Model {
    /// Reads the model that a word names: a path, or the name of a layout whose model is in `/etc/sm/layouts`. `size`: reads a
    /// size in bytes.
    ///
    /// # Errors
    /// [`Error::BadLine`] with file and line; also with the system's words for a file that cannot be read.
    pub fn read(word: &str, size: fn(&str) -> Result<u64>) -> Result<Model> {
        let path = match word.parse::<LayoutName>() {
            Ok(name) => run_dir::models().join(format!("{name}.model")),
            Err(_) => PathBuf::from(word),
        };
        let whole = |what: String| Error::BadLine { path: path.clone(), line: 0, what };
        let text = small::read_text(&path, LONGEST).map_err(|e| whole(format!("the model cannot be read: {e}")))?;
        Model::parse(&text, &path, &view::host_name(), size)
    }

    /// Reads the text of a model. `here`: the name of this host, for lines that say none.
    ///
    /// # Errors
    /// [`Error::BadLine`] with file and line.
    pub fn parse(text: &str, path: &Path, here: &str, size: fn(&str) -> Result<u64>) -> Result<Model> {
        let bad = |misfit: Misfit| Error::BadLine { path: path.to_owned(), line: misfit.line, what: misfit.what };
        let Document { name, uuid, options, option_lines, addresses, mut attaches, gateways, srs } =
            Document::parse(text).map_err(bad)?;
        for (line, attach) in attaches.iter_mut().filter(|(_, attach)| attach.host.is_empty()) {
            attach.host = document::host(here).map_err(|what| bad(Misfit::at(*line, what)))?;
        }
        let read = |(line, class, fields)| {
            sr_line(line, class, fields, here, size).map_err(|what| bad(Misfit::at(line, what)))
        };
        let srs = srs.into_iter().map(read).collect::<Result<_>>()?;
        Ok(Model { path: path.to_owned(), name, uuid, options, option_lines, addresses, attaches, gateways, srs })
    }

    /// The error of a line of the model.
    pub fn bad(&self, line: usize, what: impl Into<String>) -> Error {
        Error::BadLine { path: self.path.clone(), line, what: what.into() }
    }
}

fn sr_line(
    line: usize,
    class: Class,
    mut fields: Fields,
    here: &str,
    size: fn(&str) -> Result<u64>,
) -> Result<SrLine, String> {
    let compared = fields.take_compared("size").into_iter();
    let sizes = compared.map(|(relation, text)| Ok((relation, size(&text).map_err(|e| e.to_string())?)));
    let sizes = sizes.collect::<Result<_, String>>()?;
    let mut wanted = BTreeMap::new();
    for key in WANTED {
        let Some(value) = fields.take(key)? else { continue };
        if value.len() > LONGEST_PATTERN {
            return Err(format!("the pattern of {key} has {} bytes, and {LONGEST_PATTERN} are the most", value.len()));
        }
        wanted.insert(key, value);
    }
    let of_this_host = !wanted.contains_key("host");
    match (of_this_host, class) {
        (false, _) => {}
        (true, Class::Nfs) => return Err("host= is missing, which names the server".to_owned()),
        // A host that was given no name is called "(none)" by the kernel, which no line could say.
        (true, Class::Lvm | Class::File) => drop(wanted.insert("host", here.to_owned())),
    }
    if !wanted.contains_key("dev") {
        return Err("dev= is missing".to_owned());
    }
    let mut text = |key: &str| fields.take(key).map(Option::unwrap_or_default);
    let found = SrLine {
        line,
        class,
        of_this_host,
        index: Some(text("index")?).filter(|it| !it.is_empty()).map(|it| keys::number(&it)).transpose()?,
        mode: installed::mode(&text("mode")?)?,
        spans_all: match text("span")?.as_str() {
            "" | "each" => false,
            "all" if class == Class::Lvm => true,
            "all" => return Err(format!("span=all is for the class lvm, not {class}")),
            other => return Err(format!("span={other} is neither each nor all")),
        },
        active: installed::active(&text("active")?)?,
        publish: Some(text("publish")?)
            .filter(|it| !it.is_empty())
            .map(|it| keys::boolean(&it))
            .transpose()?
            .unwrap_or(false),
        uuid: Some(text("uuid")?)
            .filter(|it| !it.is_empty())
            .map(|it| it.parse().map_err(|e| format!("{e}")))
            .transpose()?,
        group: text("group")?,
        prep: text("prep")?,
        sizes,
        wanted,
    };
    fields.finish(&KNOWN)?;
    Ok(found)
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Reads a model whose sizes are in bytes.
    pub(in crate::layout) fn read(text: &str) -> Result<Model> {
        let size = |text: &str| text.parse().map_err(|_| Error::Usage(format!("{text} is no size")));
        Model::parse(text, Path::new("/m.model"), "node.1", size)
    }

    #[test]
    fn an_sr_line_is_read_by_type() {
        let text = "layout: a\nlvm: host=node1 dev=/dev/disk/by-id/wwn-.* size>=100 size<=200 span=all index=0x10 tag=fast \
                    active=no publish=yes mode=external group=g uuid=87b8646b-b800-9500-cb7b-af3b74e02f5c\nnfs: host=f dev=/e\n";
        let model = read(text).unwrap();
        let [lvm, nfs] = model.srs.as_slice() else { panic!("{model:?}") };
        assert_eq!((lvm.index, lvm.spans_all, lvm.active, lvm.publish), (Some(16), true, Active::No, true));
        assert_eq!((lvm.mode, lvm.group.as_str()), (Mode::External, "g"));
        assert_eq!(lvm.sizes, [(Relation::AtLeast, 100), (Relation::AtMost, 200)]);
        assert_eq!((lvm.wanted["tag"].as_str(), lvm.wanted.len()), ("fast", 3));
        assert_eq!((nfs.line, nfs.index, nfs.active, nfs.uuid), (3, None, Active::Yes, None));
    }

    #[test]
    fn a_line_without_a_host_is_for_this_host() {
        let model = read("layout: a\nlvm: dev=/b\nfile: dev=/c host=node2\nattach: class=nfs\n").unwrap();
        let hosts: Vec<_> = model.srs.iter().map(|it| (it.wanted["host"].as_str(), it.of_this_host)).collect();
        assert_eq!(hosts, [("node.1", true), ("node2", false)]);
        assert_eq!(model.attaches[0].1.host, "node.1");
    }

    #[test]
    fn a_host_without_a_name_has_media_as_any() {
        let of = |text: &str| Model::parse(text, Path::new("/m.model"), "(none)", |_| Ok(0));
        assert_eq!(of("layout: a\nlvm: dev=/b\n").unwrap().srs[0].wanted["host"], "(none)");
        let said = of("layout: a\nattach: class=nfs\n").unwrap_err().to_string();
        assert!(said.contains("line 2: ") && said.contains("no name of a host"), "{said}");
    }

    #[test]
    fn each_fault_of_a_line_is_an_error_with_file_and_line() {
        for (bad, what) in [
            ("nfs: dev=/b", "host= is missing, which names the server"),
            ("lvm: host=a", "dev= is missing"),
            ("lvm: host=a dev=/b index=x", "\"x\" is no whole number"),
            ("lvm: host=a dev=/b index>=1", "index is compared by = alone"),
            ("lvm: host=a dev=/b tag=\"\"", "tag has no value"),
            ("lvm: host=a dev=/b size=big", "big is no size"),
            ("lvm: host=a dev=/b active=so", "active=so is none of"),
            ("lvm: host=a dev=/b mode=so", "mode=so is neither"),
            ("lvm: host=a dev=/b span=some", "span=some is neither"),
            ("file: host=a dev=/b span=all", "span=all is for the class lvm"),
            ("lvm: host=a dev=/b publish=so", "none of yes"),
            ("lvm: host=a dev=/b uuid=x", "expected a UUID"),
            ("lvm: host=a dev=/b colour=red", "there is no key \"colour\""),
            ("lvm: host=a dev=/b activ=no", "did you mean active?"),
            (&format!("lvm: host=a dev=/{}", "b".repeat(512)), "has 513 bytes"),
        ] {
            let error = read(&format!("layout: a\n\n{bad}\n")).unwrap_err();
            let said = error.to_string();
            assert!(matches!(error, Error::BadLine { line: 3, .. }), "{bad}: {said}");
            assert!(said.starts_with("/m.model: line 3: ") && said.contains(what), "{bad}: {said}");
        }
        let unread = Model::read("/nowhere/x.model", |_| Ok(0)).unwrap_err().to_string();
        assert!(unread.starts_with("/nowhere/x.model: the model cannot be read: "), "{unread}");
    }

    proptest! {
        #[test]
        fn any_line_is_read_or_refused(text in "(lvm|nfs|file): (host=a )?(dev=/b )?[a-z_]{0,8}[=><]{0,2}[a-z0-9\\[\\]-]{0,8}") {
            let _ = read(&format!("layout: a\n{text}\n"));
        }
    }
}
