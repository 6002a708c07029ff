//! Backstores and storage objects of pass-through one by one, as the kernel has them, for those who build a target of their own.
//! A publication ([`super::publication`]) makes its own.
//!
//! The objects of this file have the alias [`ALIAS`]. Those of others are shown, and not changed.

use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::physical::{Hba, no_host, on_host, refuse_in_use};
use super::scsi::{self, PASS_THROUGH};
use crate::error::{Error, Result, needs_root};
use crate::sys::configfs::{self, dirs, get, make, remove, remove_if_empty, set};
use crate::sys::lio::{self, Object, ROOT};
use crate::sys::scsidev::{self, Address, Device};

const ALIAS: &str = "sm";

/// Whether an object is made or only looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// It is made unless it is there.
    Any,
    /// It is there.
    Lookup,
    /// It is made anew.
    Create,
}

/// A storage object to look for or to make.
#[derive(Clone, Debug)]
pub struct WantedObject {
    pub name: String,
    /// None: it is only looked for.
    pub device: Option<Device>,
    /// A disk is shown whatever it holds.
    pub force: bool,
}

/// A storage object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    pub name: String,
    pub alias: String,
    pub is_enabled: bool,
    /// LUNs of all fabrics that show it.
    pub luns: usize,
    /// The text of the kernel, in one line.
    pub info: String,
}

/// A backstore.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backstore {
    pub path: PathBuf,
    pub plugin: String,
    pub index: u32,
    /// None for a plugin that has no modes.
    pub hba: Option<Hba>,
    /// Of the plugin.
    pub version: String,
    pub objects: Vec<Shown>,
    /// What was asked for was made now.
    pub is_fresh: bool,
}

/// Refuses a name that cannot be one of a directory of the kernel.
fn checked(name: &str) -> Result<&str> {
    let is_of_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':');
    if !name.is_empty() && name.len() <= 255 && !name.starts_with('.') && name.chars().all(is_of_name) {
        return Ok(name);
    }
    let expected = "expected letters, digits and -_.:, and no . first".to_owned();
    Err(Error::Invalid { what: "name of a storage object", value: name.to_owned(), expected })
}

fn absent(object: String) -> Error {
    Error::NoDevice { device: object, why: "the kernel's target has no such object".to_owned() }
}

fn named(plugin: &str, index: u32) -> String {
    format!("{plugin}_{index}")
}

/// Finds or makes a backstore of pass-through, and a storage object in it. If the object cannot be made, the backstore is as it was
/// before.
///
/// # Errors
/// [`Error::NoDevice`] for what is looked for and is not there, and for an index that is no SCSI host; [`Error::TargetExists`] for
/// what is to be made and is there; [`Error::Invalid`] for a mode of the HBA that the backstore does not have, and for a device of
/// another host; [`Error::ForeignTarget`]; [`Error::DeviceInUse`]; [`Error::Io`].
pub fn backstore(mode: Mode, index: Option<u32>, hba: Option<Hba>, wanted: Option<&WantedObject>) -> Result<Backstore> {
    needs_root("change", configfs::ROOT)?;
    if let Some(wanted) = wanted {
        checked(&wanted.name)?;
    }
    lio::prepare(&["target_core_pscsi"])?;
    let (index, done) = find_or_make(mode, index, hba)?;
    let dir = lio::backstore(PASS_THROUGH, index);
    let made = match wanted {
        Some(wanted) => object(mode, &dir, index, wanted),
        None => Ok(done != Step::Found),
    };
    match made {
        Ok(is_fresh) => look(&dir, is_fresh),
        Err(error) => Err(error.undone(done.undo(&dir))),
    }
}

/// What a call did to a backstore.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Found,
    Made,
    /// It was there, and empty. The mode of its HBA before.
    Reused(String),
}

impl Step {
    /// Undoes it, and nothing that others did.
    fn undo(&self, dir: &Path) -> Result<()> {
        match self {
            Step::Found => Ok(()),
            Step::Made => remove_if_empty(dir),
            Step::Reused(mode) => set_mode(dir, mode),
        }
    }
}

/// Sets the mode of the HBA of an empty backstore.
fn set_mode(dir: &Path, mode: &str) -> Result<()> {
    let file = dir.join("hba_mode");
    if get(&file) == mode { Ok(()) } else { set(&file, mode) }
}

fn find_or_make(mode: Mode, index: Option<u32>, hba: Option<Hba>) -> Result<(u32, Step)> {
    let index = match (index, mode, hba) {
        (Some(index), ..) => index,
        (None, Mode::Lookup, _) | (None, _, Some(Hba::Physical)) => {
            return Err(Error::Usage("--index N is missing: the number of the backstore".to_owned()));
        }
        (None, ..) => lio::free_number(PASS_THROUGH, scsidev::has_host)?,
    };
    if hba == Some(Hba::Physical) && !scsidev::has_host(index) {
        return Err(no_host(index));
    }
    let dir = lio::backstore(PASS_THROUGH, index);
    if dir.is_dir() {
        let is_stale = mode == Mode::Create && dirs(&dir)?.is_empty();
        if mode == Mode::Create && !is_stale {
            return Err(Error::TargetExists { object: named(PASS_THROUGH, index) });
        }
        let has = mode_of(&dir).unwrap_or(Hba::Virtual);
        if is_stale {
            let had = get(&dir.join("hba_mode"));
            set_mode(&dir, if hba == Some(Hba::Physical) { "1" } else { "0" })?;
            return Ok((index, Step::Reused(had)));
        }
        if let Some(wanted) = hba.filter(|wanted| *wanted != has) {
            let expected = format!("{} has a {} HBA", named(PASS_THROUGH, index), has.word());
            return Err(Error::Invalid { what: "--hba", value: wanted.word().to_owned(), expected });
        }
        return Ok((index, Step::Found));
    }
    if mode == Mode::Lookup {
        return Err(absent(named(PASS_THROUGH, index)));
    }
    let is_fresh = match hba {
        Some(Hba::Physical) => scsi::physical_backstore(index)?,
        _ => make(&dir)?,
    };
    match (is_fresh, mode) {
        (true, _) => Ok((index, Step::Made)),
        // Another program was faster.
        (false, Mode::Create) => Err(Error::TargetExists { object: named(PASS_THROUGH, index) }),
        (false, _) => Ok((index, Step::Found)),
    }
}

fn mode_of(dir: &Path) -> Option<Hba> {
    match get(&dir.join("hba_mode")).as_str() {
        "0" => Some(Hba::Virtual),
        "1" => Some(Hba::Physical),
        _ => None,
    }
}

/// Finds or makes a storage object. Whether it was made.
fn object(mode: Mode, backstore: &Path, index: u32, wanted: &WantedObject) -> Result<bool> {
    let object = Object { path: backstore.join(&wanted.name) };
    let hba = mode_of(backstore).unwrap_or(Hba::Virtual);
    let Some(device) = &wanted.device else {
        return if object.path.is_dir() { Ok(false) } else { Err(absent(object.shown())) };
    };
    if hba == Hba::Physical {
        on_host(device.address, index)?;
    }
    if object.path.is_dir() && (object.is_enabled() || mode == Mode::Lookup) {
        if mode == Mode::Create {
            return Err(Error::TargetExists { object: object.shown() });
        }
        return if scsi::shows(&object, device.address) {
            Ok(false)
        } else {
            let expected = format!("{} shows another device", object.shown());
            Err(Error::Invalid { what: "device", value: device.address.to_string(), expected })
        };
    }
    if mode == Mode::Lookup {
        return Err(absent(object.shown()));
    }
    refuse_in_use(device, wanted.force)?;
    let is_fresh = make(&object.path)?;
    if !is_fresh && object.alias() != ALIAS {
        let why = match object.alias().as_str() {
            "" => format!(
                "another program or a killed command made it, and has not configured it; sm target backstore delete {} removes it",
                object.shown()
            ),
            _ => "another program made it".to_owned(),
        };
        return Err(Error::ForeignTarget { object: object.shown(), why });
    }
    match configure(&object, device.address, device, hba) {
        Ok(()) => Ok(true),
        Err(error) if is_fresh => Err(error.undone(remove(&object.path))),
        Err(error) => Err(error),
    }
}

fn configure(object: &Object, address: Address, device: &Device, hba: Hba) -> Result<()> {
    let at = |name: &str| object.path.join(name);
    set(&at("alias"), ALIAS)?;
    set(&at("control"), &scsi::control_of(address, hba))?;
    set(&at("udev_path"), &device.node.display().to_string())?;
    set(&at("enable"), "1").map_err(|error| match error.errno() {
        Some(errno) if errno == Errno::EBUSY as i32 => Error::DeviceInUse {
            device: device.node.display().to_string(),
            holder: "something in the kernel, such as a mount or another storage object".to_owned(),
        },
        _ => error,
    })
}

/// Every backstore of this host, in order of their names.
///
/// # Errors
/// [`Error::Io`].
pub fn list() -> Result<Vec<Backstore>> {
    let all = dirs(&Path::new(ROOT).join("core"))?;
    all.iter().filter(|dir| split(dir).is_some()).map(|dir| look(dir, false)).collect()
}

/// One backstore, by its name such as `pscsi_0`; of `pscsi_0/NAME` with this object alone.
///
/// # Errors
/// [`Error::NoDevice`] if it is not there.
pub fn show(word: &str) -> Result<Backstore> {
    let (name, object) = word.split_once('/').map_or((word, None), |(name, object)| (name, Some(object)));
    let mut found = list()?.into_iter().find(|it| named(&it.plugin, it.index) == name);
    if let (Some(backstore), Some(object)) = (&mut found, object) {
        backstore.objects.retain(|it| it.name == object);
        if backstore.objects.is_empty() {
            return Err(absent(word.to_owned()));
        }
    }
    found.ok_or_else(|| absent(word.to_owned()))
}

/// Removes a backstore of pass-through, or an object of it. One that is gone is no error.
///
/// # Errors
/// [`Error::DeviceInUse`] for a backstore with objects, unless `is_recursive`, and for an object that a LUN shows;
/// [`Error::ForeignTarget`] for objects of others, those of publications among them.
pub fn delete(word: &str, is_recursive: bool) -> Result<()> {
    needs_root("change", configfs::ROOT)?;
    let backstore = match show(word) {
        Err(Error::NoDevice { .. }) => return Ok(()),
        other => other?,
    };
    let one_object = word.contains('/');
    let in_use = |holder: String| Err(Error::DeviceInUse { device: word.to_owned(), holder });
    if !one_object && !is_recursive && !backstore.objects.is_empty() {
        return in_use(format!("{} storage objects; --recursive removes them with it", backstore.objects.len()));
    }
    let foreign = |it: &&Shown| it.alias != ALIAS && (!it.alias.is_empty() || it.is_enabled);
    if let Some(it) = backstore.objects.iter().find(foreign) {
        let why = match it.alias.strip_prefix("sm:") {
            Some(id) => format!("sm target publishes it as {id}; sm target unpublish removes it"),
            None => "another program made it".to_owned(),
        };
        return Err(Error::ForeignTarget {
            object: format!("{}/{}", named(&backstore.plugin, backstore.index), it.name),
            why,
        });
    }
    if backstore.plugin != PASS_THROUGH {
        return Err(Error::ForeignTarget { object: word.to_owned(), why: "another program made it".to_owned() });
    }
    if let Some(it) = backstore.objects.iter().find(|it| it.luns > 0) {
        return in_use(format!("{} LUNs that show {}", it.luns, it.name));
    }
    backstore.objects.iter().try_for_each(|it| remove(&backstore.path.join(&it.name)))?;
    if one_object { Ok(()) } else { remove(&backstore.path) }
}

/// Plugin and number of the directory of a backstore.
fn split(dir: &Path) -> Option<(&str, u32)> {
    let (plugin, number) = dir.file_name()?.to_str()?.rsplit_once('_')?;
    Some((plugin, number.parse().ok()?))
}

fn look(dir: &Path, is_fresh: bool) -> Result<Backstore> {
    let (plugin, index) = split(dir).ok_or_else(|| absent(dir.display().to_string()))?;
    let info = get(&dir.join("hba_info"));
    let version = info.split_once("version: ").map(|(_, version)| version.trim().to_owned()).unwrap_or_default();
    let objects = dirs(dir)?.into_iter().map(|path| shown(&Object { path })).collect::<Result<_>>()?;
    let hba = (plugin == PASS_THROUGH).then(|| mode_of(dir)).flatten();
    Ok(Backstore { path: dir.to_owned(), plugin: plugin.to_owned(), index, hba, version, objects, is_fresh })
}

fn shown(object: &Object) -> Result<Shown> {
    let words = get(&object.path.join("info"));
    Ok(Shown {
        name: object.name(),
        alias: object.alias(),
        is_enabled: object.is_enabled(),
        luns: luns_of(object)?,
        info: words.split_whitespace().collect::<Vec<_>>().join(" "),
    })
}

/// The LUNs of all fabrics that show an object.
fn luns_of(object: &Object) -> Result<usize> {
    let mut count = 0;
    for fabric in dirs(Path::new(ROOT))?.iter().filter(|dir| !dir.ends_with("core")) {
        for group in dirs(fabric)?.iter().map(|target| dirs(target)).collect::<Result<Vec<_>>>()?.concat() {
            for lun in dirs(&group.join("lun"))? {
                count += usize::from(configfs::links(&lun).contains(&object.path));
            }
        }
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn tape() -> WantedObject {
        let device = Device {
            address: "9:0:0:0".parse().unwrap(),
            wwid: String::new(),
            node: "/dev/null".into(),
            is_disk: false,
        };
        WantedObject { name: "a".to_owned(), device: Some(device), force: false }
    }

    #[test]
    fn what_another_program_made_is_neither_taken_nor_removed() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("a");
        let done = |mode| object(mode, scratch.path(), 0, &tape());
        // In place of the kernel, a directory: no attribute can be set, so each attempt fails.
        assert!(matches!(done(Mode::Create), Err(Error::Io { .. })));
        assert!(!path.exists());
        fs::create_dir(&path).unwrap();
        for alias in ["", "theirs"] {
            fs::write(path.join("alias"), alias).unwrap();
            for mode in [Mode::Any, Mode::Create] {
                assert!(matches!(done(mode), Err(Error::ForeignTarget { .. })), "{alias}");
                assert_eq!(get(&path.join("alias")), alias);
            }
        }
        // Left by a killed call of ours: it is completed, and stays if that fails.
        fs::write(path.join("alias"), ALIAS).unwrap();
        assert!(matches!(done(Mode::Any), Err(Error::Io { .. })));
        assert!(path.exists());
    }

    #[test]
    fn of_a_backstore_only_what_the_call_did_is_undone() {
        let scratch = tempfile::tempdir().unwrap();
        let dir = scratch.path().join("pscsi_0");
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("hba_mode"), "1").unwrap();
        for (step, mode) in [(Step::Found, "1"), (Step::Reused("0".to_owned()), "0"), (Step::Made, "0")] {
            step.undo(&dir).unwrap();
            assert_eq!(get(&dir.join("hba_mode")), mode);
        }
        fs::remove_file(dir.join("hba_mode")).unwrap();
        Step::Made.undo(&dir).unwrap();
        assert!(!dir.exists());
    }

    #[test]
    fn a_name_is_no_path() {
        assert!(checked("tape-1.a:b").is_ok());
        for bad in ["", ".", "..", "a/b", "a b", "a\n", "ä"] {
            assert!(checked(bad).is_err(), "{bad}");
        }
        assert_eq!(split(Path::new("/x/rd_mcp_3")), Some(("rd_mcp", 3)));
        assert_eq!(split(Path::new("/x/alua")), None);
    }
}
