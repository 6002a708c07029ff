//! Signed manifests: hosts that share a secret find out whether a manifest is one that a host of theirs wrote.
//!
//! The secret is a file, `/etc/sm/domain.secret`. The signature is the HMAC-SHA256, with the contents of that file without the end of
//! its line as the key, of the text of `salt` and of the whole manifest as it is with `"hmac": null`. A manifest names the digests of
//! its maps and of its parent, and maps name those of blocks, so the signature is for all that an export has, but for SHA256SUMS.
//! On a host without a secret, nothing is signed and nothing compared.

use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use hmac::{Hmac, KeyInit as _, Mac as _};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use super::age::random;
use super::manifest::{FILE, Manifest};
use super::map::{hex, unhex};
use crate::error::{Error, Result};
use crate::sys::{run_dir, small};

/// The way out for those who take an export as it is.
pub const UNSIGNED: &str = "--unsigned takes it all the same";

const ALGORITHM: &str = "HMAC-SHA256";
/// Bytes of the shortest secret, and of the longest file.
const SHORTEST: usize = 16;
const LONGEST: u64 = 4096;
/// How the last member of a manifest begins.
const MEMBER: &str = "  \"hmac\": ";

/// The signature of a manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature {
    alg: String,
    /// Random, so that equal manifests do not have equal signatures.
    salt: String,
    value: String,
}

/// What the hosts of a domain share.
struct Secret(Vec<u8>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

impl Secret {
    /// The secret of this host; `None` if it has none.
    fn of_host() -> Result<Option<Secret>> {
        let path = run_dir::domain_secret();
        let file = match small::open(&path) {
            // A link to a secret that is away does not mean that there is none.
            Err(e) if e.kind() == io::ErrorKind::NotFound && path.symlink_metadata().is_err() => return Ok(None),
            other => other.map_err(Error::io("open", &path))?,
        };
        let meta = file.metadata().map_err(Error::io("examine", &path))?;
        if !run_dir::is_trusted(meta.uid()) || meta.mode() & 0o077 != 0 {
            let why = "others can read or write it; chown root and chmod go= mend that";
            return Err(Error::io("trust", &path)(io::Error::new(io::ErrorKind::PermissionDenied, why)));
        }
        let text = small::bounded(file, LONGEST).map_err(Error::io("read", &path))?;
        match text.trim_ascii_end() {
            key if key.len() >= SHORTEST => Ok(Some(Secret(key.to_vec()))),
            _ => Err(Error::Damaged { path, what: format!("a secret has {SHORTEST} characters at least") }),
        }
    }

    fn mac(&self, salt: &str, unsigned: &[u8]) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("a key may have any length");
        mac.update(salt.as_bytes());
        mac.update(unsigned);
        mac
    }

    fn signature(&self, unsigned: &[u8]) -> io::Result<Signature> {
        let salt = hex(&random::<32>()?)[..32].to_owned();
        let value = hex(&self.mac(&salt, unsigned).finalize().into_bytes().into());
        Ok(Signature { alg: ALGORITHM.to_owned(), salt, value })
    }

    fn is_of(&self, signature: &Signature, unsigned: &[u8]) -> bool {
        signature.alg == ALGORITHM
            && unhex(&signature.value)
                .is_some_and(|value| self.mac(&signature.salt, unsigned).verify_slice(&value).is_ok())
    }
}

/// Refuses a secret that no manifest can be signed with, before there is one.
///
/// # Errors
/// Those of [`signed`].
pub fn refuse_bad_secret() -> Result<()> {
    Secret::of_host().map(drop)
}

/// Signs a manifest, if this host has a secret. Answers the text of its file.
///
/// # Errors
/// [`Error::Io`] if the secret cannot be read, or others can read it; [`Error::Damaged`] if it is too short.
pub fn signed(manifest: &mut Manifest) -> Result<Vec<u8>> {
    manifest.hmac = None;
    if let Some(secret) = Secret::of_host()? {
        let failed = Error::io("sign", FILE);
        manifest.hmac = Some(secret.signature(&manifest.text()).map_err(failed)?);
    }
    Ok(manifest.text())
}

/// Refuses a manifest whose signature is not that of this domain. `text`: its file. A manifest without a signature is not refused, and
/// none is on a host without a secret.
///
/// # Errors
/// [`Error::NotVerified`]; those of [`signed`].
pub fn compare(text: &[u8], manifest: &Manifest, path: &Path) -> Result<()> {
    let Some(signature) = &manifest.hmac else { return Ok(()) };
    let Some(secret) = Secret::of_host()? else { return Ok(()) };
    match unsigned(text, signature).is_some_and(|unsigned| secret.is_of(signature, &unsigned)) {
        true => Ok(()),
        false => Err(Error::NotVerified {
            path: path.to_owned(),
            what: format!(
                "was changed after it was signed, or was signed with another secret than {} has",
                run_dir::domain_secret().display()
            ),
        }),
    }
}

/// Refuses an export that is not signed, if this host has a secret: whoever changes a manifest can take its signature away. What a
/// signed one is an increment on is what that says.
///
/// # Errors
/// [`Error::NotVerified`] with the way out; those of [`signed`].
pub fn refuse_unsigned(manifest: &Manifest, path: &Path, remedy: &str) -> Result<()> {
    match manifest.hmac {
        None if Secret::of_host()?.is_some() => {
            let what = format!("is not signed, and this host has a secret; {remedy}");
            Err(Error::NotVerified { path: path.to_owned(), what })
        }
        _ => Ok(()),
    }
}

/// The text that a signature is for; `None` if the signature is not written as the last member, as [`signed`] does.
fn unsigned(text: &[u8], signature: &Signature) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(text).ok()?;
    let at = text.rfind(MEMBER)? + MEMBER.len();
    let written = serde_json::to_string_pretty(signature).expect("a signature is plain data").replace('\n', "\n  ");
    (text[at..] == format!("{written}\n}}\n")).then(|| format!("{}null\n}}\n", &text[..at]).into_bytes())
}

#[cfg(test)]
mod tests {
    use super::super::codec::Compression;
    use super::super::name::RunId;
    use super::super::store::Identity;
    use super::*;

    #[test]
    fn a_signature_is_for_every_byte_of_its_manifest() {
        let host = Identity { name: "h".to_owned(), machine: None };
        let mut manifest =
            Manifest::new("web".parse().unwrap(), RunId::new(0), "now".to_owned(), Compression::None, host);
        // A label may look as the member does.
        manifest.warnings.push("\n  \"hmac\": null\n}\n".to_owned());
        let secret = Secret(b"sixteen letters!".to_vec());
        let plain = manifest.text();
        manifest.hmac = Some(secret.signature(&plain).unwrap());
        let (text, signature) = (manifest.text(), manifest.hmac.clone().unwrap());
        assert_eq!(unsigned(&text, &signature).unwrap(), plain);
        assert!(secret.is_of(&signature, &plain));
        assert!(!Secret(b"sixteen letters?".to_vec()).is_of(&signature, &plain));
        for at in 0..text.len() {
            let mut changed = text.clone();
            changed[at] ^= 1;
            let read = serde_json::from_slice::<Manifest>(&changed).ok().and_then(|it| it.hmac);
            let is_good = read.is_some_and(|it| unsigned(&changed, &it).is_some_and(|plain| secret.is_of(&it, &plain)));
            assert!(!is_good, "byte {at}");
        }
        // Not even blanks behind it.
        assert!(unsigned(&[&text[..], b"\n"].concat(), &signature).is_none());
    }

    #[test]
    fn a_signature_is_what_other_programs_make() {
        // printf '%s' 0011ab | openssl dgst -sha256 -mac HMAC -macopt 'key:sixteen letters!'
        let value = hex(&Secret(b"sixteen letters!".to_vec()).mac("00", b"11ab").finalize().into_bytes().into());
        assert_eq!(value, "7ddfd9621ceef6f65a59e6f6bbf1ebfe87e82b9667dcaa003ab7f628dfdb0ebd");
    }
}
