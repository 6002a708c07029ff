//! The keys of age(1), of type X25519: a recipient may seal and an identity may open.
//!
//! A file has one key a line, as age-keygen(1) writes it. Blank lines, and lines that begin with `#`, are left out.

use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use bech32::{Bech32, Hrp};
use x25519_dalek::{PublicKey, StaticSecret};

use super::super::map::{digest, hex};
use super::random;
use crate::error::{Error, Result};
use crate::sys::{run_dir, small};

/// How a recipient begins, before the `1`.
const RECIPIENT: &str = "age";
/// How an identity begins, before the `1`.
const IDENTITY: &str = "AGE-SECRET-KEY-";
/// Keys of a file, at most.
const MOST: usize = 64;
/// Bytes of the longest file of keys.
const LONGEST: u64 = 64 << 10;

/// The public key of somebody who is to read what is sealed.
#[derive(Clone, PartialEq, Eq)]
pub struct Recipient(pub(super) PublicKey);

impl Recipient {
    /// The key of a line; `None` if it is none.
    pub fn parse(text: &str) -> Option<Recipient> {
        let is_lower = !text.contains(|c: char| c.is_ascii_uppercase());
        key_of(text, RECIPIENT).filter(|_| is_lower).map(|bytes| Recipient(PublicKey::from(bytes)))
    }

    /// A short name of the key, which does not tell the key: the start of its SHA-256.
    pub fn id(&self) -> String {
        hex(&digest(self.0.as_bytes()))[..16].to_owned()
    }
}

impl fmt::Display for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = bech32::encode::<Bech32>(Hrp::parse_unchecked(RECIPIENT), self.0.as_bytes());
        f.write_str(&text.expect("32 bytes are shorter than the limit"))
    }
}

impl fmt::Debug for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Recipient({})", self.id())
    }
}

/// A secret key.
pub struct Identity(pub(super) StaticSecret);

impl Identity {
    /// A new key.
    ///
    /// # Errors
    /// The system's error if it has no random numbers.
    pub fn new() -> io::Result<Identity> {
        Ok(Identity(StaticSecret::from(random()?)))
    }

    /// The key of a line; `None` if it is none.
    pub fn parse(text: &str) -> Option<Identity> {
        let is_upper = !text.contains(|c: char| c.is_ascii_lowercase());
        key_of(text, IDENTITY).filter(|_| is_upper).map(|bytes| Identity(StaticSecret::from(bytes)))
    }

    /// Its public key.
    pub fn recipient(&self) -> Recipient {
        Recipient(PublicKey::from(&self.0))
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.recipient().id())
    }
}

fn key_of(text: &str, begin: &str) -> Option<[u8; 32]> {
    let checked = bech32::primitives::decode::CheckedHrpstring::new::<Bech32>(text).ok()?;
    let is_of = checked.hrp().as_str().eq_ignore_ascii_case(begin);
    let bytes: Vec<u8> = checked.byte_iter().collect();
    is_of.then(|| bytes.try_into().ok())?
}

/// The recipients of a file. Others may read it, and may not write it.
///
/// # Errors
/// [`Error::Io`] if it cannot be read, or if others can write it; [`Error::BadLine`] with the line that is no recipient.
pub fn recipients(path: &Path) -> Result<Vec<Recipient>> {
    let kind = format!("a recipient of type X25519 as age-keygen writes it: {RECIPIENT}1…");
    keys(path, 0o022, "write to it; chmod go-w mends that", &kind, Recipient::parse)
}

/// The identities of a file, which others can neither read nor write.
///
/// # Errors
/// [`Error::Io`] if it cannot be read, or if others can read it; [`Error::BadLine`] with the line that is no identity.
pub fn identities(path: &Path) -> Result<Vec<Identity>> {
    let kind = format!("an identity of type X25519 as age-keygen writes it: {IDENTITY}1…");
    keys(path, 0o077, "read it; chmod go= mends that", &kind, Identity::parse)
}

fn keys<K>(path: &Path, others: u32, can: &str, kind: &str, parse: impl Fn(&str) -> Option<K>) -> Result<Vec<K>> {
    let file = small::open(path).map_err(Error::io("open", path))?;
    let meta = file.metadata().map_err(Error::io("examine", path))?;
    let is_ours = run_dir::is_trusted(meta.uid());
    if !is_ours || meta.mode() & others != 0 {
        let why = if is_ours { format!("others can {can}") } else { "it belongs to another user".to_owned() };
        return Err(Error::io("trust the keys", path)(io::Error::new(io::ErrorKind::PermissionDenied, why)));
    }
    let text = small::bounded_text(file, LONGEST).map_err(Error::io("read", path))?;
    // The line itself is not told: it may be a secret.
    let bad = |line: usize, what: &str| Error::BadLine { path: path.to_owned(), line, what: what.to_owned() };
    let mut found = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        found.push(parse(line).ok_or_else(|| bad(at + 1, &format!("is not {kind}")))?);
    }
    match found.len() {
        0 => Err(bad(1, &format!("no line is {kind}"))),
        1..=MOST => Ok(found),
        _ => Err(bad(1, &format!("more than {MOST} keys"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::one_line;

    // A pair that age-keygen made.
    const SECRET: &str = "AGE-SECRET-KEY-1JY7TP5P6SXEW75YKQ3C9QZCCMU583JTL3WEAH0HAFLNEYCQFY83SV9QUHL";
    const PUBLIC: &str = "age1dngda3a58ypflncxywzagvhmfmnlu23t38vw5hcl8u4rte4a7p8srfa04c";

    #[test]
    fn keys_are_those_of_age_keygen() {
        let identity = Identity::parse(SECRET).unwrap();
        assert_eq!(identity.recipient().to_string(), PUBLIC);
        assert_eq!(Recipient::parse(PUBLIC).unwrap(), identity.recipient());
        assert!(!format!("{identity:?}").contains(SECRET));
        let mut wrong = PUBLIC.to_owned();
        wrong.replace_range(9..10, if &PUBLIC[9..10] == "q" { "p" } else { "q" });
        for bad in ["", "age1", &wrong, SECRET, &PUBLIC.to_uppercase(), &PUBLIC[..40]] {
            assert!(Recipient::parse(bad).is_none(), "{bad}");
        }
        for bad in [PUBLIC, &SECRET.to_lowercase(), &SECRET[..40]] {
            assert!(Identity::parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn a_file_of_keys_has_lines_and_is_not_for_others() {
        use std::os::unix::fs::PermissionsExt as _;
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("keys");
        let with = |text: &str, mode: u32| {
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        with(&format!("# created\n\n{SECRET}\n"), 0o600);
        assert_eq!(identities(&path).unwrap().len(), 1);
        let refused = one_line(&recipients(&path).unwrap_err());
        assert!(refused.contains("keys") && !refused.contains("SECRET-KEY-1"), "{refused}");
        with(&format!("{SECRET}\n"), 0o640);
        assert!(one_line(&identities(&path).unwrap_err()).contains("chmod"));
        with(&format!("{PUBLIC}\n"), 0o644);
        assert_eq!(recipients(&path).unwrap().len(), 1);
        with(&format!("{PUBLIC}\n"), 0o666);
        assert!(recipients(&path).is_err());
        with("# nothing\n", 0o600);
        assert!(recipients(&path).is_err() && identities(&path).is_err());
    }
}
