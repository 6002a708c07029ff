//! Encrypted exports. Images, the file of an agent and the key of the digests are files of [`age`](super::age). The manifest, the
//! maps and the sums are not encrypted: they tell the names and sizes of the disks, which blocks are zeroes, and how far each block
//! could be packed.
//!
//! The maps have no digests of blocks that anybody could compare with those of known data. A digest is the HMAC-SHA256 of the UUID of
//! the disk that was exported (16 bytes), the number of the block (8 bytes, the lowest first) and its bytes, with a random key. So
//! equal blocks at different places or of different disks have different digests, and no disk can be put in the place of another.
//! The key is one for all runs of a set on this host, `/var/lib/sm/backup/digests/NAME.key`, so that an increment needs no
//! key of a reader. Each run has it as well, encrypted for its readers.

use std::fmt;
use std::path::{Path, PathBuf};

use hmac::{Hmac, KeyInit as _, Mac as _};
use nix::errno::Errno;
use sha2::Sha256;

use super::age::header::Header;
use super::age::key::{self, Identity, Recipient};
use super::age::payload::{NONCE, Opener, Unsealer, opened_length};
use super::age::{opened, random, sealed};
use super::manifest::{AGE, Encryption};
use super::map::{Digest, hex, unhex};
use super::name::SetName;
use super::set::Set;
use super::store::Store;
use crate::error::{Error, Result};
use crate::sys::durable::{self, Dir};
use crate::sys::run_dir;
use crate::types::VdiUuid;

/// The key of the digests of a set.
#[derive(Clone, PartialEq, Eq)]
pub struct DigestKey([u8; 32]);

impl fmt::Debug for DigestKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DigestKey({})", self.id())
    }
}

impl DigestKey {
    /// The key of a set on this host, made durable if there was none. The caller has the lock of the set.
    ///
    /// # Errors
    /// [`Error::Damaged`] for a file that has no key; [`Error::Io`].
    pub fn of(set: &SetName) -> Result<DigestKey> {
        durable::make_dirs(&path())?;
        let (dir, file) = (Dir::open(&path())?, file_of(set));
        if let Some(text) = dir.read(&file)? {
            let what = || "it is no key of digests; if it is removed, the next export needs --since none".to_owned();
            return DigestKey::parse(&text).ok_or_else(|| Error::Damaged { path: dir.join(&file), what: what() });
        }
        let key = DigestKey(random().map_err(Error::io("make a key", dir.join(&file)))?);
        dir.replace(&file, key.text().as_bytes())?;
        Ok(key)
    }

    /// Removes the key of a set. The next increment on runs that used it cannot be made. Idempotent.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn forget(set: &SetName) -> Result<()> {
        let dir = match Dir::open(&path()) {
            Err(e) if e.errno() == Some(Errno::ENOENT as i32) => return Ok(()),
            other => other?,
        };
        dir.remove(&file_of(set))?;
        dir.sync()
    }

    fn parse(text: &[u8]) -> Option<DigestKey> {
        unhex(std::str::from_utf8(text).ok()?.trim_end()).map(DigestKey)
    }

    fn text(&self) -> String {
        format!("{}\n", hex(&self.0))
    }

    fn mac(&self, parts: &[&[u8]]) -> Digest {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("a key may have any length");
        parts.iter().for_each(|part| mac.update(part));
        mac.finalize().into_bytes().into()
    }

    /// The digest of a block of a disk.
    pub fn digest(&self, disk: VdiUuid, index: u64, block: &[u8]) -> Digest {
        self.mac(&[disk.as_bytes(), &index.to_le_bytes(), block])
    }

    /// The name of the key, which does not tell the key.
    pub fn id(&self) -> String {
        hex(&self.mac(&[b"the name of this key"]))[..16].to_owned()
    }
}

fn path() -> PathBuf {
    run_dir::backup().join("digests")
}

fn file_of(set: &SetName) -> String {
    format!("{set}.key")
}

/// What an export is encrypted with.
#[derive(Debug)]
pub struct Seal {
    pub recipients: Vec<Recipient>,
    pub digests: DigestKey,
}

impl Seal {
    /// What the manifest says of it.
    pub fn told(&self) -> Encryption {
        Encryption {
            algorithm: AGE.to_owned(),
            keys: self.recipients.iter().map(Recipient::id).collect(),
            digest_key: self.digests.id(),
        }
    }

    /// A small file, encrypted. `path`: its name in errors.
    ///
    /// # Errors
    /// [`Error::Io`] if the system has no random numbers.
    pub fn sealed(&self, bytes: &[u8], path: &Path) -> Result<Vec<u8>> {
        sealed(bytes, &self.recipients).map_err(Error::io("encrypt", path))
    }

    /// The file with the key of the digests.
    ///
    /// # Errors
    /// Those of [`Seal::sealed`].
    pub fn digest_key(&self, path: &Path) -> Result<Vec<u8>> {
        self.sealed(self.digests.text().as_bytes(), path)
    }
}

/// The file of recipients that counts: that of the command, of the set, or of the store.
pub fn recipient(option: Option<&PathBuf>, set: Option<&Set>, store: &Store) -> Option<PathBuf> {
    option.or(set.and_then(|set| set.recipient.as_ref())).or(store.recipient.as_ref()).cloned()
}

/// The file of identities that counts: that of the command, of the set, or of the store.
pub fn identity(option: Option<&PathBuf>, set: Option<&Set>, store: Option<&Store>) -> Option<PathBuf> {
    let (set, store) = (set.and_then(|set| set.identity.as_ref()), store.and_then(|store| store.identity.as_ref()));
    option.or(set).or(store).cloned()
}

/// The keys of a reader.
pub struct Keys {
    path: PathBuf,
    identities: Vec<Identity>,
}

impl Keys {
    /// # Errors
    /// Those of [`key::identities`].
    pub fn read(path: &Path) -> Result<Keys> {
        Ok(Keys { path: path.to_owned(), identities: key::identities(path)? })
    }

    /// The contents of a small file of an export.
    ///
    /// # Errors
    /// [`Error::Encrypted`] if no key is for it; [`Error::NotVerified`].
    pub fn opened(&self, file: &[u8], path: &Path, of: &Encryption) -> Result<Vec<u8>> {
        let wrong = |what: String| Error::NotVerified { path: path.to_owned(), what };
        opened(file, &self.identities).map_err(wrong)?.ok_or_else(|| self.refused(path, of))
    }

    /// The key of the digests of a run.
    ///
    /// # Errors
    /// Those of [`Keys::opened`].
    pub fn digest_key(&self, file: &[u8], path: &Path, of: &Encryption) -> Result<DigestKey> {
        let key = DigestKey::parse(&self.opened(file, path, of)?).filter(|key| key.id() == of.digest_key);
        let what = || "is not the key of the digests that the manifest tells of".to_owned();
        key.ok_or_else(|| Error::NotVerified { path: path.to_owned(), what: what() })
    }

    /// What opens a file as it comes. `begin`: its first bytes, with the whole header. Answers also how many of them are no chunk.
    ///
    /// # Errors
    /// Those of [`Keys::opened`].
    pub fn unsealer(&self, begin: &[u8], path: &Path, of: &Encryption) -> Result<(Unsealer, usize)> {
        let wrong = |what: String| Error::NotVerified { path: path.to_owned(), what };
        let header = Header::parse(begin).map_err(wrong)?;
        let key = header.open(&self.identities).map_err(wrong)?.ok_or_else(|| self.refused(path, of))?;
        let after = begin.get(header.length..).and_then(|after| after.first_chunk::<NONCE>());
        let after = after.ok_or_else(|| wrong("it was cut off".to_owned()))?;
        Ok((Unsealer::begin(&key, after), header.length + NONCE))
    }

    fn refused(&self, path: &Path, of: &Encryption) -> Error {
        let has: Vec<String> = self.identities.iter().map(|identity| identity.recipient().id()).collect();
        let why = format!("for the keys {}, and {} has {}", of.keys.join(", "), self.path.display(), has.join(", "));
        Error::Encrypted { path: path.to_owned(), why }
    }
}

/// Says that a key is needed.
pub fn no_key(path: &Path, of: &Encryption) -> Error {
    let why = format!("for the keys {}; --identity names a file with one of them", of.keys.join(", "));
    Error::Encrypted { path: path.to_owned(), why }
}

/// An encrypted image.
#[derive(Debug)]
pub struct Sealed {
    header: Header,
    /// Bytes of its contents.
    pub length: u64,
    open: Option<(Opener, DigestKey)>,
}

impl Sealed {
    /// Looks at an image of `length` bytes, which may come from anywhere. `begin`: its first bytes.
    ///
    /// # Errors
    /// A clause with what is wrong.
    pub fn look(begin: &[u8], length: u64) -> Result<Sealed, String> {
        let header = Header::parse(begin)?;
        let contents = length.checked_sub((header.length + NONCE) as u64).and_then(opened_length);
        let length = contents.ok_or_else(|| format!("has {length} bytes, which no file of age has"))?;
        Ok(Sealed { header, length, open: None })
    }

    /// Opens the image. `begin`: its first bytes; `length`: all of them; `digests`: of its run.
    ///
    /// # Errors
    /// [`Error::Encrypted`]; [`Error::NotVerified`].
    pub fn unlock(
        &mut self,
        (begin, length): (&[u8], u64),
        path: &Path,
        (keys, digests, of): (&Keys, &DigestKey, &Encryption),
    ) -> Result<()> {
        let wrong = |what: String| Error::NotVerified { path: path.to_owned(), what };
        let key = self.header.open(&keys.identities).map_err(wrong)?.ok_or_else(|| keys.refused(path, of))?;
        let after = &begin[self.header.length.min(begin.len())..];
        self.open = Some((Opener::new(&key, &self.header, after, length).map_err(wrong)?, digests.clone()));
        Ok(())
    }

    /// What reads the image and what makes its digests; `None` before [`Sealed::unlock`].
    pub fn open(&self) -> Option<(&Opener, &DigestKey)> {
        self.open.as_ref().map(|(opener, digests)| (opener, digests))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_depends_on_the_key_on_the_disk_and_on_the_place() {
        let (one, other) = (DigestKey([1; 32]), DigestKey([2; 32]));
        let (a, b) = ("11111111-1111-1111-1111-111111111111", "22222222-2222-2222-2222-222222222222");
        let [a, b]: [VdiUuid; 2] = [a, b].map(|uuid| uuid.parse().unwrap());
        let digests = [
            one.digest(a, 0, b"x"),
            one.digest(b, 0, b"x"),
            one.digest(a, 1, b"x"),
            one.digest(a, 0, b"y"),
            other.digest(a, 0, b"x"),
        ];
        for (at, digest) in digests.iter().enumerate() {
            assert!(!digests[..at].contains(digest), "{at}");
            assert_ne!(*digest, super::super::map::digest(b"x"));
        }
        // RFC 2104 by another program: 16 times \21, then printf '\5\0\0\0\0\0\0\0abc' | openssl dgst -sha256 -mac HMAC -macopt hexkey:0101…
        assert_eq!(hex(&one.digest(a, 5, b"abc")), "68b4aa9498db0d91596b5826f5a6f917fb2b79c9e86b43470ded648d70732e0b");
        assert_ne!(one.id(), other.id());
        assert!(!format!("{one:?}").contains("0101"));
    }
}
