//! `ISOSR`: the CD images of a local directory, each a read-only disk that is called by its file's name.
//!
//! Nothing is written: no marker, no lock, no parameters. So an ISO SR is whatever files with a name in `.iso` or
//! `.img` its directory has now, and putting a file there or taking it away is how one is made or deleted. A
//! VDI's UUID follows from the SR's and the file's name.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::sr::{About, Driver, Sr};
use crate::sys::copy::Progress;
use crate::sys::durable::Dir;
use crate::sys::loopdev;
use crate::types::{
    DeviceConfig, Done, Format, Mode, NewVdi, Params, SmConfig, SrInfo, SrUuid, Tagged, VdiInfo, VdiUuid,
};
use crate::vdi::{self, Extent, Holders, Node, Place, Vdi};

pub const DRIVER: Driver = Driver {
    sr_type: "iso",
    executable: "ISOSR",
    description: "the CD images of a local directory, read-only",
    dconf_form: "/path/to/directory",
    formats: &[Format::Raw],
    parse_dconf: |dconf| Ok(DeviceConfig::from([("location", dconf), ("legacy_mode", "true")])),
    open: |sr, config| Ok(Box::new(IsoSr { sr, path: location(config)? })),
    // Nothing in a directory says which ISO SR it is.
    probe: |config| location(config).map(|_| Vec::new()),
    about: About {
        name: "ISO",
        capabilities: &[
            "SR_ATTACH",
            "SR_DETACH",
            "SR_SCAN",
            "SR_UPDATE",
            "VDI_ATTACH",
            "VDI_DETACH",
            "VDI_ACTIVATE",
            "VDI_DEACTIVATE",
        ],
        configuration: &[
            ("location", "absolute path of a local directory (required)"),
            ("legacy_mode", "any value: location is a local directory (required)"),
        ],
        vdi_at: |sr, location| Ok(VdiUuid::of_name(sr, location)),
        sm_config: |_| SmConfig::new(),
    },
};

fn location(config: &DeviceConfig) -> Result<PathBuf> {
    let path = config.require("location")?;
    if config.get("legacy_mode").is_none() {
        return Err(Error::Unsupported {
            op: "an ISO SR on a server",
            why: "this release serves local directories: legacy_mode=true".to_owned(),
        });
    }
    super::absolute_path("location", path)
}

struct IsoSr {
    sr: SrUuid,
    path: PathBuf,
}

/// A CD image.
struct Iso {
    name: String,
    extent: Extent,
    id: loopdev::FileId,
}

impl IsoSr {
    fn dir(&self) -> Result<Dir> {
        // A link to a directory will do: nothing is written, so nothing can end up elsewhere.
        let path = fs::canonicalize(&self.path)
            .map_err(|e| Error::NoSr { sr: self.sr, looked: format!("{}: {e}", self.path.display()) })?;
        Dir::open(&path)
    }

    fn list(&self, dir: &Dir) -> Result<Vec<Iso>> {
        let mut found = Vec::new();
        for name in dir.names()?.into_iter().filter(|name| is_image(name)) {
            // Through a link, if it is one. What it points to may be missing or be no file: then it is no image.
            match fs::metadata(dir.join(&name)) {
                Ok(meta) if meta.is_file() => found.push(Iso {
                    name,
                    extent: Extent { length: meta.len(), allocated: meta.blocks() * 512 },
                    id: (meta.dev(), meta.ino()),
                }),
                _ => continue,
            }
        }
        found.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    fn place(&self, dir: &Dir, iso: Iso) -> IsoPlace<'_> {
        IsoPlace { sr: self, path: dir.join(&iso.name), iso }
    }

    fn refuse<T>(&self, op: &'static str) -> Result<T> {
        let why = format!("files are put into {} and removed from it by other means", self.path.display());
        Err(Error::Unsupported { op, why })
    }
}

fn is_image(name: &str) -> bool {
    let extension = Path::new(name).extension().and_then(|e| e.to_str()).unwrap_or("");
    extension.eq_ignore_ascii_case("iso") || extension.eq_ignore_ascii_case("img")
}

impl Sr for IsoSr {
    /// Finds the directory: there is nothing to make.
    fn create(&self, _size: Option<u64>) -> Result<()> {
        self.dir().map(drop)
    }

    /// Leaves the directory: it was there before.
    fn delete(&self) -> Result<Done> {
        Ok(Done::Already)
    }

    fn attach(&self) -> Result<Done> {
        self.dir().map(|_| Done::Already)
    }

    fn detach(&self) -> Result<Done> {
        let Ok(dir) = self.dir() else { return Ok(Done::Already) };
        for iso in self.list(&dir)? {
            vdi::refuse_if_attached(&*(vdi::raw::KIND.open)(Box::new(self.place(&dir, iso))))?;
        }
        Ok(Done::Already)
    }

    fn stat(&self) -> Result<SrInfo> {
        Ok(SrInfo { vdis: Vec::new(), ..self.scan()? })
    }

    fn scan(&self) -> Result<SrInfo> {
        let dir = self.dir()?;
        let devices = loopdev::attached()?;
        let mut vdis = Vec::new();
        for iso in self.list(&dir)? {
            let attached = loopdev::find(&devices, &dir.join(&iso.name), iso.id).is_some();
            vdis.push(self.place(&dir, iso).info(attached));
        }
        let fs = dir.statvfs()?;
        Ok(SrInfo {
            uuid: self.sr,
            label: String::new(),
            description: String::new(),
            vdi_uuids: vdis.iter().map(|vdi| vdi.uuid).collect(),
            physical_utilisation: vdis.iter().map(|vdi| vdi.physical_utilisation).sum(),
            virtual_allocation: vdis.iter().map(|vdi| vdi.virtual_size).sum(),
            size: fs.blocks() * fs.fragment_size(),
            free: fs.blocks_free() * fs.fragment_size(),
            sr_type: DRIVER.sr_type.to_owned(),
            location: self.path.display().to_string(),
            pool: None,
            vdis: vdis.into_iter().map(Tagged::Vdi).collect(),
        })
    }

    fn vdi(&self, vdi: VdiUuid) -> Result<Box<dyn Vdi + '_>> {
        let dir = self.dir()?;
        match self.list(&dir)?.into_iter().find(|iso| VdiUuid::of_name(self.sr, &iso.name) == vdi) {
            Some(iso) => Ok(Box::new(IsoVdi(self.place(&dir, iso)))),
            None => Err(Error::NoVdi { vdi, sr: self.sr, looked: self.path.display().to_string() }),
        }
    }

    fn create_vdi(&self, _new: &NewVdi) -> Result<VdiInfo> {
        self.refuse("vdi_create")
    }

    fn content_type(&self) -> &'static str {
        "iso"
    }
}

/// A CD: a raw disk that says its file's name and can only be read.
struct IsoVdi<'a>(IsoPlace<'a>);

impl Vdi for IsoVdi<'_> {
    fn place(&self) -> &dyn Place {
        &self.0
    }

    fn info(&self) -> Result<VdiInfo> {
        Ok(self.0.info(self.device()?.is_some()))
    }

    fn device(&self) -> Result<Option<PathBuf>> {
        self.0.device()
    }

    fn attach(&self, _mode: Mode) -> Result<PathBuf> {
        self.0.attach(Mode::ReadOnly)
    }

    fn detach(&self) -> Result<Done> {
        self.0.detach()
    }

    fn delete(&self, _context: &crate::call::Context) -> Result<()> {
        self.0.sr.refuse("vdi_delete")
    }

    fn open_disk(&self) -> Result<Box<dyn crate::image::disk::Disk>> {
        self.0.sr.refuse("vdi_export")
    }

    fn resize(&self, _size: u64, _allow_shrink: bool) -> Result<Done> {
        self.0.sr.refuse("vdi_resize")
    }
}

struct IsoPlace<'a> {
    sr: &'a IsoSr,
    path: PathBuf,
    iso: Iso,
}

impl IsoPlace<'_> {
    fn info(&self, attached: bool) -> VdiInfo {
        let node = Node { virtual_size: self.iso.extent.length, hidden: false, parent: None };
        let params = Params { label: self.iso.name.clone(), read_only: true, ..Params::default() };
        let info = vdi::describe(self, &node, self.iso.extent.allocated, params, Vec::new(), attached, Vec::new());
        VdiInfo { location: Some(self.iso.name.clone()), ..info }
    }
}

impl Place for IsoPlace<'_> {
    fn sr(&self) -> SrUuid {
        self.sr.sr
    }

    fn vdi(&self) -> VdiUuid {
        VdiUuid::of_name(self.sr.sr, &self.iso.name)
    }

    fn format(&self) -> Format {
        Format::Raw
    }

    fn path(&self) -> PathBuf {
        self.path.clone()
    }

    fn image(&self, _mode: Mode) -> Result<File> {
        File::open(&self.path).map_err(Error::io("open", &self.path))
    }

    fn stat(&self) -> Result<Extent> {
        Ok(self.iso.extent)
    }

    fn params(&self) -> Result<Params> {
        Ok(Params { label: self.iso.name.clone(), read_only: true, ..Params::default() })
    }

    fn holders(&self) -> Result<Holders> {
        Ok(Holders::default())
    }

    fn set_holders(&self, _seen: &Holders, _users: Vec<String>) -> Result<bool> {
        self.sr.refuse("vdi_lock")
    }

    fn device(&self) -> Result<Option<PathBuf>> {
        Ok(loopdev::find(&loopdev::attached()?, &self.path, self.iso.id))
    }

    fn attach(&self, _mode: Mode) -> Result<PathBuf> {
        match self.device()? {
            Some(device) => Ok(device),
            None => loopdev::attach(&self.image(Mode::ReadOnly)?, &self.path, true),
        }
    }

    fn detach(&self) -> Result<Done> {
        let Some(device) = self.device()? else { return Ok(Done::Already) };
        match loopdev::detach(&device)? {
            loopdev::Detached::Done(done) => Ok(done),
            loopdev::Detached::Busy(who) => Err(vdi::in_use(self, format!("{who}, through {}", device.display()))),
        }
    }

    fn resize(&self, _bytes: u64) -> Result<()> {
        self.sr.refuse("vdi_resize")
    }

    fn copy_to(&self, _dest: VdiUuid, _params: &Params, _progress: Progress) -> Result<VdiInfo> {
        self.sr.refuse("vdi_clone")
    }

    fn remove(&self) -> Result<()> {
        self.sr.refuse("vdi_delete")
    }
}
