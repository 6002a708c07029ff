//! Files that only the owner of a key can read, in the format of age(1): <https://age-encryption.org/v1>. The program `age` reads
//! them, and this module reads what it writes for recipients of type X25519.
//!
//! | file | what |
//! |---|---|
//! | [`key`] | recipients and identities, and the files that have them |
//! | [`header`] | the start of a file: the key of the file, sealed for each recipient |
//! | [`payload`] | the contents, in chunks that are found and opened one by one |
//!
//! The primitives are those of RustCrypto and dalek. Their sum is a sixth of what the crate `age` takes in the executable, which
//! also seals and opens a file from its start to its end alone.

pub mod header;
pub mod key;
pub mod payload;

use std::io;

use self::header::{Header, seal};
use self::key::{Identity, Recipient};
use self::payload::{Opener, Sealer};

/// A small file, sealed.
///
/// # Errors
/// The system's error if it has no random numbers.
pub fn sealed(bytes: &[u8], recipients: &[Recipient]) -> io::Result<Vec<u8>> {
    let (mut file, key) = seal(recipients)?;
    let mut sealer = Sealer::begin(&key, &mut file)?;
    sealer.push(bytes, &mut file);
    sealer.finish(&mut file);
    Ok(file)
}

/// The contents of a small file; `None` if it is sealed for none of the identities.
///
/// # Errors
/// A clause with what is wrong with the file.
pub fn opened(file: &[u8], identities: &[Identity]) -> Result<Option<Vec<u8>>, String> {
    let header = Header::parse(file)?;
    let Some(key) = header.open(identities)? else { return Ok(None) };
    let opener = Opener::new(&key, &header, &file[header.length..], file.len() as u64)?;
    let mut bytes = vec![0; opener.length() as usize];
    let body = &file[opener.start() as usize..];
    opener.read_at(&mut bytes, 0, |buf, at| {
        buf.copy_from_slice(&body[at as usize..][..buf.len()]);
        Ok::<(), String>(())
    })?;
    Ok(Some(bytes))
}

/// Random bytes of the kernel.
pub(super) fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_by_its_recipients_and_no_bit_of_it_may_change() {
        let (one, other, third) = (Identity::new().unwrap(), Identity::new().unwrap(), Identity::new().unwrap());
        for length in [0, 1, 31, 65_535, 65_536, 65_537, 200_000] {
            let bytes: Vec<u8> = (0..length).map(|n| (n % 251) as u8).collect();
            let file = sealed(&bytes, &[one.recipient(), other.recipient()]).unwrap();
            for identity in [&one, &other] {
                assert!(opened(&file, std::slice::from_ref(identity)).unwrap().unwrap() == bytes, "{length}");
            }
            assert_eq!(opened(&file, std::slice::from_ref(&third)).unwrap(), None);
        }
        let file = sealed(b"some bytes", &[one.recipient()]).unwrap();
        for at in 0..file.len() {
            for bit in 0..8 {
                let mut changed = file.clone();
                changed[at] ^= 1 << bit;
                let got = opened(&changed, std::slice::from_ref(&one));
                assert!(!matches!(got, Ok(Some(_))), "byte {at}, bit {bit}");
            }
        }
        for cut in 0..file.len() {
            assert!(!matches!(opened(&file[..cut], std::slice::from_ref(&one)), Ok(Some(_))), "{cut} bytes");
        }
    }
}
