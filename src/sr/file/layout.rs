//! What the names in the SR's directory are, and what stands in its small files.

use super::*;

/// The file that says which SR a directory is.
pub const MARKER: &str = ".sm-sr";
pub(super) const DELETING: &str = ".sm-sr-deleting";
pub(super) const PARAMS: &str = "params";
pub(super) const LOCK: &str = "lock";
pub(super) const CHANGE: &str = ".sm-tree";
/// Locked by the host that changes a tree.
pub(super) const TREE_LOCK: &str = ".sm-tree-lock";
/// Locked by the host that collects.
pub(super) const COLLECT_LOCK: &str = ".sm-collect-lock";
/// Names that the collector of the Python storage managers begins its journals with.
pub(super) const JOURNALS: [&str; 3] = ["coalesce_", "relink_", "leaf_"];
/// Extensions of images by format, in the order they are looked for.
pub(super) const IMAGES: [(&str, Format); 3] = [("raw", Format::Raw), ("vhd", Format::Vhd), ("qcow2", Format::Qcow2)];

/// The marker's contents: `(sr (uuid . "…") …)`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename = "sr")]
pub(super) struct Marker {
    pub(super) uuid: SrUuid,
    #[serde(rename = "type")]
    pub(super) sr_type: String,
    /// sr_create made the directory, so sr_delete removes it.
    #[serde(default)]
    pub(super) made_directory: bool,
    /// It was found under [`DELETING`].
    #[serde(skip)]
    pub(super) deleting: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Record {
    Sr(Marker),
    Vdi(Params),
    Lock {
        users: Vec<String>,
    },
    /// Which tree is being changed.
    Fork {
        vdi: VdiUuid,
        base: VdiUuid,
        dest: Option<VdiUuid>,
        format: Format,
    },
    /// The children of `vdi` become those of its parent.
    Relink {
        vdi: VdiUuid,
        base: VdiUuid,
        format: Format,
    },
    /// `base` takes the place of `vdi`, its only child.
    Collapse {
        vdi: VdiUuid,
        base: VdiUuid,
        format: Format,
    },
}

/// The format of the image that a VDI has, if it has one.
///
/// # Errors
/// [`Error::Damaged`] if it has two: nothing tells which of them is the disk.
pub(super) fn format_of(dir: &Dir, vdi: VdiUuid) -> Result<Option<Format>> {
    let mut found = None;
    for (extension, format) in IMAGES {
        if dir.lookup(&beside(vdi, extension))?.is_some()
            && let Some(first) = found.replace(format)
        {
            let what = two_images(first, format);
            return Err(Error::Damaged { path: dir.join(&image_name(vdi, first)), what });
        }
    }
    Ok(found)
}

/// What a name in the directory is.
pub(super) enum Role {
    Image(Format),
    Params,
    Lock,
}

pub(super) fn classify(name: &str) -> Option<(VdiUuid, Role)> {
    let (stem, extension) = name.split_once('.')?;
    let file = match extension {
        PARAMS => Role::Params,
        LOCK => Role::Lock,
        _ => Role::Image(IMAGES.iter().find(|(e, _)| *e == extension)?.1),
    };
    Some((stem.parse().ok()?, file))
}

/// What NFS makes of a file that is removed while it is open on the same host. The host removes it when it
/// is closed; one that crashed leaves it.
pub(super) fn is_orphan(name: &str) -> bool {
    name.starts_with(".nfs")
}

pub(super) fn image_name(vdi: VdiUuid, format: Format) -> String {
    format!("{vdi}.{format}")
}

pub(super) fn beside(vdi: VdiUuid, extension: &str) -> String {
    format!("{vdi}.{extension}")
}

/// Removes what is beside an image that does not exist, unless its maker is alive.
pub(super) fn remove_leftovers(dir: &Dir, vdi: VdiUuid) -> Result<bool> {
    let name = beside(vdi, PARAMS);
    let mut removed = false;
    if let Some(file) = dir.try_open_record(&name)?
        && durable::is_abandoned(&file)
        && !has_image(dir, vdi)?
    {
        removed |= dir.remove(&name)?;
    }
    if !has_image(dir, vdi)? {
        removed |= register::remove(dir, &beside(vdi, LOCK))?;
    }
    Ok(removed)
}

pub(super) fn has_image(dir: &Dir, vdi: VdiUuid) -> Result<bool> {
    for (extension, _) in IMAGES {
        if dir.lookup(&beside(vdi, extension))?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

pub(super) fn read_marker(dir: &Dir) -> Result<Option<Marker>> {
    for (name, deleting) in [(MARKER, false), (DELETING, true)] {
        if let Some(bytes) = dir.read(name)? {
            return match decode(&bytes) {
                Some(Record::Sr(marker)) => Ok(Some(Marker { deleting, ..marker })),
                _ => Err(damaged_record(dir, name)),
            };
        }
    }
    Ok(None)
}

pub(super) fn read_change(dir: &Dir) -> Result<Option<Record>> {
    match dir.read(CHANGE)? {
        None => Ok(None),
        Some(bytes) => match decode(&bytes) {
            Some(record @ (Record::Fork { .. } | Record::Relink { .. } | Record::Collapse { .. })) => Ok(Some(record)),
            _ => Err(damaged_record(dir, CHANGE)),
        },
    }
}

pub(super) fn damaged_record(dir: &Dir, name: &str) -> Error {
    Error::Damaged {
        path: dir.join(name),
        what: "is not a record of this program; restore it or move it away".to_owned(),
    }
}

pub(super) fn encode(record: &Record) -> Vec<u8> {
    let mut bytes = serde_lexpr::to_vec(record).expect("a record is plain data");
    bytes.push(b'\n');
    bytes
}

pub(super) fn decode(bytes: &[u8]) -> Option<Record> {
    // The parser recurses once per quote sign. What we write has strings, words and pairs.
    let mut quoted = false;
    let mut escaped = false;
    for byte in bytes {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            _ if quoted || byte.is_ascii_alphanumeric() || b"()#._- \t\r\n".contains(byte) => {}
            _ => return None,
        }
    }
    serde_lexpr::from_slice(bytes).ok()
}

pub(super) fn extent(stat: &Stat) -> Extent {
    Extent { length: stat.length, allocated: stat.allocated }
}

/// What is at `name`, if anything is, which must then be of this kind: a link or a pipe named like a disk is
/// neither taken for one nor left out of a list.
pub(super) fn must_be(dir: &Dir, name: &str, kind: SFlag) -> Result<Option<Stat>> {
    let found = dir.lookup(name)?;
    if found.is_some_and(|stat| stat.mode & SFlag::S_IFMT.bits() != kind.bits()) {
        let what = if kind == SFlag::S_IFDIR { "is not a directory" } else { "is not a regular file" };
        return Err(Error::Damaged { path: dir.join(name), what: format!("{what}; move it away") });
    }
    Ok(found)
}
