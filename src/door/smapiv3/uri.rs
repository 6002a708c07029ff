//! The words by which this door's callers name an SR and a volume. The handle of an SR is `sm://file/<sr>`, the URI of a volume
//! `sm://file/<sr>/<vdi>`; `sm` is the name of the datapath plug-in. Neither has anything that could be a secret, because callers
//! log both.

use std::fmt;

use crate::error::{Error, Result};
use crate::sr::{self, Driver};
use crate::types::{SrUuid, VdiUuid};

/// The scheme of a URI, and the name of the datapath plug-in.
pub const SCHEME: &str = "sm";

/// The prefix of the type that an SR has behind this door. The name without the prefix belongs to the driver behind SMAPIv1.
pub const PREFIX: &str = "sm-";

/// An SR, by the handle that SR.attach gave.
#[derive(Clone, Copy)]
pub struct Handle {
    pub driver: &'static Driver,
    pub sr: SrUuid,
}

/// A volume, by its URI.
#[derive(Clone, Copy)]
pub struct Uri {
    pub handle: Handle,
    pub vdi: VdiUuid,
}

impl fmt::Display for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}://{}/{}", self.driver.sr_type, self.sr)
    }
}

impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.handle, self.vdi)
    }
}

/// The driver of a type that is served behind this door: one that stores what an agent wants to find again with a volume.
pub fn driver_of(sr_type: &str) -> Option<&'static Driver> {
    let name = sr_type.strip_prefix(PREFIX)?;
    sr::driver(name).ok().filter(|driver| driver.about.keeps_keys)
}

fn invalid(what: &'static str, value: &str, expected: &str) -> Error {
    Error::Invalid { what, value: value.to_owned(), expected: format!("expected {expected}") }
}

impl Handle {
    /// Reads a handle that [`Handle`] wrote.
    ///
    /// # Errors
    /// [`Error::Invalid`].
    pub fn parse(text: &str) -> Result<Handle> {
        let invalid = || invalid("sr", text, "what SR.attach answered, sm://TYPE/SR-UUID");
        let (scheme, rest) = text.split_once("://").ok_or_else(invalid)?;
        let (name, sr) = rest.split_once('/').ok_or_else(invalid)?;
        let driver = driver_of(&format!("{PREFIX}{name}")).filter(|_| scheme == SCHEME).ok_or_else(invalid)?;
        Ok(Handle { driver, sr: sr.parse().map_err(|_| invalid())? })
    }
}

impl Uri {
    /// Reads a URI that [`Uri`] wrote.
    ///
    /// # Errors
    /// [`Error::Invalid`].
    pub fn parse(text: &str) -> Result<Uri> {
        let invalid = || invalid("uri", text, "the uri of a volume, sm://TYPE/SR-UUID/VDI-UUID");
        let (handle, vdi) = text.rsplit_once('/').ok_or_else(invalid)?;
        Ok(Uri { handle: Handle::parse(handle).map_err(|_| invalid())?, vdi: vdi.parse().map_err(|_| invalid())? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SR: &str = "87b8646b-b800-9500-cb7b-af3b74e02f5c";
    const VDI: &str = "98de866e-b035-4b1a-a571-000000000001";

    #[test]
    fn a_handle_and_a_uri_are_read_as_they_are_written() {
        let uri = format!("sm://nfs/{SR}/{VDI}");
        let read = Uri::parse(&uri).unwrap();
        assert_eq!((read.to_string(), read.handle.to_string()), (uri, format!("sm://nfs/{SR}")));
        assert_eq!(Handle::parse(&read.handle.to_string()).unwrap().driver.executable, "NFSSR");
    }

    #[test]
    fn nothing_else_is_a_handle_or_a_uri() {
        for bad in
            ["", "sm", "sm://", "sm://file", "sm://file/", &format!("x://file/{SR}"), &format!("sm://file/{SR}/")]
        {
            assert!(Handle::parse(bad).is_err(), "{bad}");
        }
        for (bad, why) in [
            ("sm://file/../../etc/passwd".to_owned(), "a path"),
            (format!("sm://file/{SR}/-x"), "an option"),
            (format!("sm://file/{SR}/{VDI}/"), "more"),
            (format!("sm://file/{SR}/{VDI}\n"), "a line"),
            (format!("sm://lvm/{SR}/{VDI}"), "a type that stores no keys"),
            (format!("sm://iso/{SR}/{VDI}"), "another one"),
            (format!("sm://none/{SR}/{VDI}"), "no type"),
            (format!("sm:/file/{SR}/{VDI}"), "no scheme"),
        ] {
            assert!(Uri::parse(&bad).is_err(), "{why}: {bad}");
        }
        assert!(driver_of("file").is_none() && driver_of("sm-lvm").is_none() && driver_of("sm-ext").is_some());
    }
}
