//! `/etc/sm/sm.conf`: `KEY=VALUE`, `#` comments. Every key has a default; a key that is not known is an error.

use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::sys::{run_dir, small};

const KEYS: [&str; 5] = ["backend", "storage_file", "min_size", "target_iqn_prefix", "target_portals"];

/// Bytes; the least that a device must have unless the settings say otherwise.
const MIN_SIZE: u64 = 1 << 30;

/// The settings of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `scan`, `file`, `none` or `exec:NAME`.
    pub backend: String,
    /// The inventory of the backend `file`.
    pub storage_file: PathBuf,
    /// Bytes of the smallest device that is of use.
    pub min_size: u64,
    /// The start of the names of targets; none: one made of the host's name.
    pub target_prefix: Option<String>,
    /// The addresses at which targets listen, with commas between; empty: none.
    pub target_portals: String,
}

/// Bytes of the longest file of settings.
const LONGEST: u64 = 1 << 20;

impl Settings {
    fn usual() -> Settings {
        Settings {
            backend: "scan".to_owned(),
            storage_file: run_dir::inventory(),
            min_size: MIN_SIZE,
            target_prefix: None,
            target_portals: String::new(),
        }
    }

    /// The settings of this host; the defaults where there is no file. `size`: reads a size in bytes.
    ///
    /// # Errors
    /// [`Error::BadLine`] with the line; [`Error::Io`] if the file cannot be read.
    pub fn read(size: fn(&str) -> Result<u64>) -> Result<Settings> {
        let path = run_dir::settings();
        match small::read_text(&path, LONGEST) {
            Ok(text) => parse(&text, &path, size),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Settings::usual()),
            Err(e) => Err(Error::io("read", &path)(e)),
        }
    }
}

fn parse(text: &str, path: &Path, size: fn(&str) -> Result<u64>) -> Result<Settings> {
    let mut settings = Settings::usual();
    for (at, line) in text.lines().enumerate() {
        let bad = |what: String| Error::BadLine { path: path.to_owned(), line: at + 1, what };
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (key, value) = line.split_once('=').ok_or_else(|| bad("expected KEY=VALUE".to_owned()))?;
        let value = value.trim();
        match key.trim() {
            "backend" => settings.backend = value.to_owned(),
            "storage_file" if value.starts_with('/') => settings.storage_file = value.into(),
            "storage_file" => return Err(bad("storage_file is an absolute path".to_owned())),
            "min_size" => settings.min_size = size(value).map_err(|e| bad(e.to_string()))?,
            "target_iqn_prefix" => settings.target_prefix = Some(value.to_owned()),
            "target_portals" => settings.target_portals = value.to_owned(),
            key => {
                return Err(bad(format!("there is no setting {key:?}; there are {}", KEYS.join(", "))));
            }
        }
    }
    Ok(settings)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Settings> {
        parse(text, Path::new("/etc/sm/sm.conf"), |text| text.parse().map_err(|_| Error::Usage("no size".to_owned())))
    }

    #[test]
    fn settings_have_defaults_and_no_others() {
        assert_eq!(read("# nothing\n").unwrap(), Settings::usual());
        let read_all = read("backend = file\nstorage_file=/srv/inventory\nmin_size=4096\n").unwrap();
        assert_eq!(
            read_all,
            Settings {
                backend: "file".to_owned(),
                storage_file: "/srv/inventory".into(),
                min_size: 4096,
                ..Settings::usual()
            }
        );
        for (bad, line) in
            [("colour=red", 1), ("backend=scan\n\nnonsense", 3), ("storage_file=x", 1), ("min_size=big", 1)]
        {
            match read(bad) {
                Err(Error::BadLine { line: at, .. }) => assert_eq!(at, line, "{bad}"),
                other => panic!("{bad}: {other:?}"),
            }
        }
    }
}
