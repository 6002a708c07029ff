//! The secrets with which an initiator and a target prove who they are (CHAP, RFC 3720, 8.2.1 and 11.1.4).
//!
//! They are read from a file or from standard input, never from a command line, and kept in a file of root alone.

use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::sys::small;

/// The secrets for one initiator. Shown, they are `***`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chap {
    pub userid: String,
    pub password: String,
    /// The secret with which the target proves itself to the initiator, if it does.
    pub mutual: Option<(String, String)>,
}

impl fmt::Debug for Chap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Chap({}, ***)", self.userid)
    }
}

/// The longest name and secret that the kernel keeps.
const LONGEST_NAME: usize = 255;
/// Characters of a secret: RFC 3720 asks for 96 bits or more, and initiators of Windows take 16 characters at most.
const SECRET: std::ops::RangeInclusive<usize> = 12..=16;

impl Chap {
    /// Reads the lines `userid=`, `password=` and, for mutual authentication, `mutual_userid=` and `mutual_password=`.
    ///
    /// # Errors
    /// What is wrong, without a secret in it.
    pub fn parse(text: &str) -> Result<Chap, String> {
        let mut values: [Option<String>; 4] = Default::default();
        const KEYS: [&str; 4] = ["userid", "password", "mutual_userid", "mutual_password"];
        for (at, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (key, value) = line.split_once('=').unwrap_or((line, ""));
            let slot = KEYS
                .iter()
                .position(|known| *known == key.trim())
                .ok_or_else(|| format!("line {}: expected one of {}, with = and a value", at + 1, KEYS.join(", ")))?;
            if values[slot].replace(value.trim().to_owned()).is_some() {
                return Err(format!("line {}: {} is there twice", at + 1, KEYS[slot]));
            }
        }
        let [userid, password, mutual_userid, mutual_password] = values;
        let both = |name: Option<String>, secret: Option<String>, keys: &str| match (name, secret) {
            (Some(name), Some(secret)) => checked(name, secret).map(Some).map_err(|why| format!("{keys}: {why}")),
            (None, None) => Ok(None),
            _ => Err(format!("{keys} come together")),
        };
        let (userid, password) =
            both(userid, password, "userid and password")?.ok_or("userid and password are missing")?;
        let mutual = both(mutual_userid, mutual_password, "mutual_userid and mutual_password")?;
        if mutual.as_ref().is_some_and(|(_, secret)| *secret == password) {
            return Err("password and mutual_password are equal; RFC 3720 wants two secrets".to_owned());
        }
        Ok(Chap { userid, password, mutual })
    }

    /// Reads them from a file that its owner alone can read, or from standard input for `-`. `what`: the option or the key that names
    /// the file.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Invalid`] for the contents, without a secret in it.
    pub fn read(what: &'static str, file: &str) -> Result<Chap> {
        const MOST: u64 = 64 << 10;
        let text = if file == "-" {
            small::bounded_text(io::stdin(), MOST).map_err(Error::io("read the secrets from", "stdin"))?
        } else {
            let path = Path::new(file);
            let open = small::open(path).map_err(Error::io("open", path))?;
            let meta = open.metadata().map_err(Error::io("examine", path))?;
            if meta.mode() & 0o077 != 0 {
                let why =
                    format!("other users can read it (mode {:o}); chmod 600 keeps it secret", meta.mode() & 0o777);
                return Err(Error::Invalid { what, value: file.to_owned(), expected: why });
            }
            small::bounded_text(open, MOST).map_err(Error::io("read", path))?
        };
        Chap::parse(&text).map_err(|expected| Error::Invalid { what, value: file.to_owned(), expected })
    }
}

fn checked(name: String, secret: String) -> Result<(String, String), String> {
    if name.is_empty() || name.len() > LONGEST_NAME || name == "NULL" || name.chars().any(char::is_control) {
        return Err(format!("a name has 1 to {LONGEST_NAME} bytes, and NULL is none"));
    }
    if !SECRET.contains(&secret.len()) || !secret.chars().all(|c| c.is_ascii_graphic()) {
        return Err(format!("a secret has {} to {} ASCII characters, without blanks", SECRET.start(), SECRET.end()));
    }
    Ok((name, secret))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_pairs_of_names_and_secrets() {
        let one = Chap::parse("# of host1\nuserid=host1\npassword = secret-secret\n").unwrap();
        assert_eq!((one.userid.as_str(), one.password.as_str(), one.mutual), ("host1", "secret-secret", None));
        let both = "userid=a\npassword=secret-secret\nmutual_userid=t\nmutual_password=other-secret1\n";
        assert_eq!(Chap::parse(both).unwrap().mutual, Some(("t".to_owned(), "other-secret1".to_owned())));
    }

    #[test]
    fn what_is_refused_does_not_show_a_secret() {
        for bad in [
            "",
            "userid=a",
            "userid=a\npassword=hunter2",
            "userid=a\npassword=hunter2-hunter2-hunter2",
            "userid=a\npassword=hunter2 hunter2",
            "userid=NULL\npassword=hunter2-hunter2",
            "userid=a\npassword=hunter2-hunter2\npassword=hunter2-hunter2",
            "userid=a\npassword=hunter2-hunter2\nmutual_userid=t",
            "userid=a\npassword=hunter2-hunter2\nmutual_userid=t\nmutual_password=hunter2-hunter2",
            "hunter2-hunter2",
        ] {
            let why = Chap::parse(bad).unwrap_err();
            assert!(!why.contains("hunter2"), "{why}");
        }
        let chap = Chap::parse("userid=a\npassword=hunter2-hunter2").unwrap();
        assert!(!format!("{chap:?}").contains("hunter2"));
    }
}
