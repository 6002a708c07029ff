//! The header of a file of age(1): a text of stanzas, one a recipient, with the key of the file sealed for it.

use std::io;

use base64ct::{Base64Unpadded, Encoding as _};
use chacha20poly1305::ChaCha20Poly1305;
use chacha20poly1305::aead::AeadInOut as _;
use hkdf::Hkdf;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use x25519_dalek::{PublicKey, StaticSecret};

use super::key::{Identity, Recipient};
use super::random;

/// "age-encryption.org/v1": the version line.
const VERSION: &str = "age-encryption.org/v1\n";
/// The label of the key that seals the key of a file.
const X25519: &[u8] = b"age-encryption.org/v1/X25519";
/// Characters of a line of a body; the last one is shorter.
const COLUMNS: usize = 64;
/// Bytes of the tag of a sealed text.
const TAG: usize = 16;
/// Bytes of the longest header that is read.
pub const LONGEST: usize = 64 << 10;

/// The key of a file.
pub struct FileKey(pub(super) [u8; 16]);

/// The header of a new file, and the key of the file.
///
/// # Errors
/// The system's error if it has no random numbers.
pub fn seal(recipients: &[Recipient]) -> io::Result<(Vec<u8>, FileKey)> {
    let key = FileKey(random()?);
    let mut text = VERSION.to_owned();
    for recipient in recipients {
        let once = StaticSecret::from(random()?);
        let share = PublicKey::from(&once);
        let wrapping = wrapping(&once, &recipient.0, &share, &recipient.0).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidInput, format!("nothing can be sealed for the recipient {recipient}"))
        })?;
        let mut body = key.0.to_vec();
        let tag = wrapping
            .encrypt_inout_detached(&[0; 12].into(), b"", body.as_mut_slice().into())
            .expect("a key is shorter than the limit");
        body.extend_from_slice(&tag);
        text.push_str(&format!("-> X25519 {}\n", Base64Unpadded::encode_string(share.as_bytes())));
        // Shorter than a line.
        text.push_str(&format!("{}\n", Base64Unpadded::encode_string(&body)));
    }
    text.push_str("---");
    let mac = Base64Unpadded::encode_string(&mac(&key, text.as_bytes()).finalize().into_bytes());
    text.push_str(&format!(" {mac}\n"));
    Ok((text.into_bytes(), key))
}

/// What seals the key of a file. `None`: a public key of low order, with which anybody could open it.
fn wrapping(
    secret: &StaticSecret,
    public: &PublicKey,
    share: &PublicKey,
    recipient: &PublicKey,
) -> Option<ChaCha20Poly1305> {
    let shared = secret.diffie_hellman(public);
    if !shared.was_contributory() {
        return None;
    }
    let salt = [share.as_bytes().as_slice(), recipient.as_bytes()].concat();
    Some(ChaCha20Poly1305::new(&derived(shared.as_bytes(), &salt, X25519).into()))
}

/// A key made of another one.
pub(super) fn derived(from: &[u8], salt: &[u8], label: &[u8]) -> [u8; 32] {
    let mut key = [0; 32];
    Hkdf::<Sha256>::new(Some(salt), from).expand(label, &mut key).expect("32 bytes are not too many");
    key
}

fn mac(key: &FileKey, text: &[u8]) -> Hmac<Sha256> {
    let mut mac = <Hmac<Sha256> as hmac::KeyInit>::new_from_slice(&derived(&key.0, b"", b"header"))
        .expect("a key may have any length");
    mac.update(text);
    mac
}

/// The header of a file.
#[derive(Debug)]
pub struct Header {
    /// Bytes of it.
    pub length: usize,
    /// The share and the sealed key of each stanza of type X25519.
    stanzas: Vec<([u8; 32], [u8; 16 + TAG])>,
    /// All of it that the MAC is of.
    text: Vec<u8>,
    mac: [u8; 32],
}

impl Header {
    /// Reads the header with which `file` begins, which may come from anywhere.
    ///
    /// # Errors
    /// A clause with what is wrong.
    pub fn parse(file: &[u8]) -> Result<Header, String> {
        let file = &file[..file.len().min(LONGEST)];
        let mut at = 0;
        let mut line = || {
            let end = file[at..].iter().position(|byte| *byte == b'\n')?;
            let line = std::str::from_utf8(&file[at..at + end]).ok().filter(|line| !line.contains('\r'))?;
            at += end + 1;
            Some((at, line))
        };
        let wrong = || "it has no header of age that can be read".to_owned();
        let (_, version) = line().ok_or_else(wrong)?;
        if version != VERSION.trim_end() {
            return Err("it does not begin as a file of age, version 1".to_owned());
        }
        let mut stanzas = Vec::new();
        loop {
            let (end, text) = line().ok_or_else(wrong)?;
            if let Some(mac) = text.strip_prefix("--- ") {
                let covered = end - 1 - (text.len() - "---".len());
                let mac = bytes_of(mac).ok_or_else(wrong)?;
                return Ok(Header { length: end, stanzas, text: file[..covered].to_vec(), mac });
            }
            let words: Vec<&str> = text.strip_prefix("-> ").ok_or_else(wrong)?.split(' ').collect();
            let mut body = String::new();
            loop {
                let (_, text) = line().ok_or_else(wrong)?;
                if text.len() > COLUMNS {
                    return Err(wrong());
                }
                body.push_str(text);
                if text.len() < COLUMNS {
                    break;
                }
            }
            // Stanzas of other types are for others.
            if let ["X25519", share] = words.as_slice() {
                stanzas.push((bytes_of(share).ok_or_else(wrong)?, bytes_of(&body).ok_or_else(wrong)?));
            }
        }
    }

    /// The key of the file; `None` if it is sealed for none of the identities.
    ///
    /// # Errors
    /// A clause if the header was changed.
    pub fn open(&self, identities: &[Identity]) -> Result<Option<FileKey>, String> {
        for (share, body) in &self.stanzas {
            let share = PublicKey::from(*share);
            for identity in identities {
                let Some(wrapping) = wrapping(&identity.0, &share, &share, &identity.recipient().0) else { continue };
                let (sealed, tag) = body.split_at(16);
                let mut key = [0; 16];
                key.copy_from_slice(sealed);
                let tag: [u8; TAG] = tag.try_into().expect("what is left of a body");
                let opened =
                    wrapping.decrypt_inout_detached(&[0; 12].into(), b"", key.as_mut_slice().into(), &tag.into());
                if opened.is_err() {
                    continue;
                }
                let key = FileKey(key);
                return match mac(&key, &self.text).verify_slice(&self.mac) {
                    Ok(()) => Ok(Some(key)),
                    Err(_) => Err("its header was changed".to_owned()),
                };
            }
        }
        Ok(None)
    }
}

/// Exactly so many bytes, in their one spelling.
fn bytes_of<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    let found = Base64Unpadded::decode(text, &mut bytes).ok()?.len();
    (found == N).then_some(bytes)
}
