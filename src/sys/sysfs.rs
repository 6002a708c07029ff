//! Attributes of sysfs.

use std::fs;
use std::path::Path;

/// The text of an attribute, without what surrounds it; empty if there is none. What a disk says of itself may end with NUL.
pub fn text(dir: &Path, file: &str) -> String {
    let bytes = fs::read(dir.join(file)).unwrap_or_default();
    String::from_utf8_lossy(&bytes).trim_matches(|c: char| c.is_whitespace() || c == '\0').to_owned()
}
