//! Keys and values of device_config that several drivers share. Values are checked before anything uses them.

use std::path::{Component, Path, PathBuf};

use crate::error::{Error, Result};
use crate::sys::run_dir;
use crate::types::DeviceConfig;

/// The key of device_config by which xapi's administrators choose the formats of new disks, and what it means; XCP-ng 8.3,
/// "Image formats". For drivers with several formats.
pub const PREFERRED_FORMATS: (&str, &str) = (
    "preferred-image-formats",
    "under xapi, formats of new disks: the first that can hold one; vhd,qcow2 if not given",
);

/// Checks a directory that a caller named in device_config.
///
/// # Errors
/// [`Error::Invalid`] for a relative path, `..`, control characters, or what a tool could take for an option.
pub fn absolute_path(key: &'static str, value: &str) -> Result<PathBuf> {
    let bad = |expected: &str| Error::Invalid { what: key, value: value.to_owned(), expected: expected.to_owned() };
    if value.chars().any(char::is_control) {
        return Err(bad("control characters are not allowed in it"));
    }
    let path = Path::new(value);
    if !path.is_absolute() {
        return Err(bad("expected an absolute path"));
    }
    if path.components().any(|c| c == Component::ParentDir) {
        return Err(bad("'..' is not allowed in it"));
    }
    if path == Path::new("/") {
        return Err(bad("expected a directory of its own, not the root"));
    }
    // Normalised: no trailing or doubled slash, no '.'.
    Ok(path.components().collect())
}

/// The directory below which SRs are mounted: that of the key `mountpoint`, or the one where xapi looks for SRs.
///
/// # Errors
/// [`Error::Invalid`], see [`absolute_path`].
pub fn mountpoint(config: &DeviceConfig) -> Result<PathBuf> {
    match config.get("mountpoint").map(str::trim).filter(|path| !path.is_empty()) {
        Some(path) => absolute_path("mountpoint", path),
        None => Ok(run_dir::mounts()),
    }
}

/// Block devices in the form of the device_config key `device`.
pub fn device_list<'a>(devices: impl Iterator<Item = &'a Path>) -> String {
    devices.map(|device| device.display().to_string()).collect::<Vec<_>>().join(",")
}
