//! A share of an SMB server: what names it, and mounting it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;

use crate::error::{Error, Protocol, Result, ServerFault, one_line};
use crate::sr::{Pulse, absolute_path, nfs::export};
use crate::sys::server::{fault, listens};
use crate::sys::tool::Tool;
use crate::types::DeviceConfig;

/// What the mount table calls such mounts.
pub const FS_TYPES: &[&str] = &["cifs", "smb3"];

const PORT: u16 = 445;

/// How long mount.cifs may take: the kernel gives a server that is silent up after some 20 s.
const MOUNT_DEADLINE: Duration = Duration::from_secs(60);

/// What every mount has. `cache=none`: what one host changes, another sees with its next call.
const OPTIONS: &str = "cache=none,nosuid,nodev,noexec";

/// The kernel's default may show a name with an accent as something that is no UTF-8, and so as no image. First, so
/// that the caller's `iocharset` counts, on a kernel without this one.
const NAMES: &str = "iocharset=utf8";

/// Dialects as mount.cifs(8) names them.
const VERSIONS: [&str; 7] = ["1.0", "2.0", "2.1", "3", "3.0", "3.02", "3.1.1"];

/// Options that are ours to choose, or that would show a password to everyone on the host.
const REFUSED: [&str; 12] = [
    "password",
    "pass",
    "password2",
    "pass2",
    "username",
    "user",
    "domain",
    "dom",
    "workgroup",
    "credentials",
    "cred",
    "vers",
];

/// A share, as device_config names it.
pub struct Share {
    server: String,
    /// `//server/share/directory`.
    source: String,
    port: u16,
    vers: Option<String>,
    /// The caller's, each with a comma behind it.
    options: String,
    user: User,
}

/// Who is to log in.
enum User {
    Guest,
    /// A name, with a domain if need be, and the password if it is known here.
    Named {
        name: String,
        domain: Option<String>,
        password: Option<String>,
    },
    /// A file with all of it, mount.cifs(8).
    File(PathBuf),
}

impl Share {
    /// Parses a location and the keys `vers`, `options`, `username`, `cifspassword` and `credentials`; touches
    /// nothing.
    pub fn new(location: &str, config: &DeviceConfig) -> Result<Share> {
        let (server, path) = split(location)?;
        let server = export::server(&server)?;
        let (options, port) = options(config.get("options").unwrap_or(""))?;
        let vers = config.get("vers").filter(|vers| !vers.is_empty());
        if let Some(other) = vers.filter(|vers| !VERSIONS.contains(vers)) {
            let expected = format!("expected one of {}", VERSIONS.join(", "));
            return Err(Error::Invalid { what: "vers", value: other.to_owned(), expected });
        }
        Ok(Share {
            source: format!("//{server}{path}"),
            server,
            port,
            vers: vers.map(str::to_owned),
            options,
            user: user(config)?,
        })
    }

    /// As mount.cifs takes it and the mount table shows it.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Mounts it at an existing directory, after asking whether the server is there.
    ///
    /// # Errors
    /// [`Error::Server`], with what mount.cifs said.
    pub fn mount(&self, at: &Path) -> Result<()> {
        self.listens()?;
        let mut options = vec![format!("{NAMES},{}{OPTIONS},port={}", self.options, self.port)];
        options.extend(self.vers.iter().map(|vers| format!("vers={vers}")));
        let mut tool = Tool::new("/sbin/mount.cifs").deadline(MOUNT_DEADLINE);
        match &self.user {
            User::Guest => options.push("guest".to_owned()),
            User::File(path) => options.push(format!("credentials={}", path.display())),
            User::Named { name, domain, password } => {
                options.push(format!("username={name}"));
                options.extend(domain.iter().map(|domain| format!("domain={domain}")));
                let Some(password) = password else {
                    return Err(Error::MissingKey { key: "cifspassword", given: "username".to_owned() });
                };
                // Only root can read another process's environment; everyone can read its arguments.
                tool = tool.env("PASSWD", password);
            }
        }
        // The two come first and begin with slashes.
        let done = tool.args([self.source.as_str(), &at.display().to_string(), "-o", &options.join(",")]).run();
        done.map(drop).map_err(|e| self.why_not_mounted(&e))
    }

    /// mount.cifs quotes the kernel's errno: `mount error(13): Permission denied`.
    fn why_not_mounted(&self, e: &Error) -> Error {
        let errno = match e {
            Error::Tool { stderr, .. } => stderr
                .split_once("mount error(")
                .and_then(|(_, rest)| rest.split_once(')')?.0.parse().ok())
                .map(Errno::from_raw),
            _ => None,
        };
        let what = match errno {
            Some(Errno::EACCES | Errno::EPERM | Errno::ENOKEY | Errno::EKEYEXPIRED | Errno::EKEYREJECTED) => {
                ServerFault::Denied
            }
            Some(Errno::ENOENT | Errno::ENXIO) => ServerFault::NoExport,
            Some(Errno::EOPNOTSUPP) => ServerFault::Version,
            Some(Errno::ECONNREFUSED | Errno::ETIMEDOUT | Errno::EHOSTUNREACH | Errno::ENETUNREACH) => {
                ServerFault::NoAnswer
            }
            _ => ServerFault::Mount,
        };
        fault(Protocol::Smb, &self.server, what, format!("{}: {}", self.source, one_line(e)))
    }

    fn listens(&self) -> Result<()> {
        listens(Protocol::Smb, &self.server, self.port)
    }

    /// Whether the server still takes connections.
    pub fn pulse(&self) -> Pulse {
        let (server, port) = (self.server.clone(), self.port);
        Box::new(move || listens(Protocol::Smb, &server, port))
    }
}

/// The server and the path of `//server/share/directory`, or of the same with backslashes.
fn split(location: &str) -> Result<(String, String)> {
    let bad = || Error::Invalid {
        what: "location",
        value: location.to_owned(),
        expected: "expected //server/share".to_owned(),
    };
    let slashes = location.replace('\\', "/");
    let (server, path) = slashes.strip_prefix("//").and_then(|rest| rest.split_once('/')).ok_or_else(bad)?;
    // A comma would begin another mount option.
    if path.contains(',') {
        return Err(bad());
    }
    let path = absolute_path("location", &format!("/{path}"))?;
    Ok((server.to_owned(), path.display().to_string()))
}

fn user(config: &DeviceConfig) -> Result<User> {
    if let Some(path) = config.get("credentials") {
        let path = absolute_path("credentials", path)?;
        word("credentials", &path.display().to_string())?;
        return Ok(User::File(path));
    }
    let Some(username) = config.get("username").filter(|name| !name.is_empty()) else { return Ok(User::Guest) };
    let password = config.get("cifspassword");
    if password.is_none() && config.get("cifspassword_secret").is_none() {
        return Err(Error::MissingKey { key: "cifspassword", given: "username".to_owned() });
    }
    if password.is_some_and(|password| password.chars().any(char::is_control)) {
        let expected = "control characters are not allowed in it".to_owned();
        return Err(Error::Invalid { what: "cifspassword", value: "***".to_owned(), expected });
    }
    let (domain, name) = match username.split_once('\\') {
        Some((domain, name)) => (Some(domain), name),
        None => (None, username),
    };
    domain.map_or(Ok(()), |domain| word("username", domain))?;
    word("username", name)?;
    Ok(User::Named { name: name.to_owned(), domain: domain.map(str::to_owned), password: password.map(str::to_owned) })
}

/// What mount.cifs takes for one value: a comma ends it, `%` begins a password, a slash or a backslash ends a domain.
fn word(key: &'static str, value: &str) -> Result<()> {
    let special = if key == "username" { ",%/\\" } else { "," };
    if value.is_empty() || value.chars().any(|c| c.is_control() || special.contains(c)) {
        let expected = format!("it is empty, or has a control character or one of {special}");
        return Err(Error::Invalid { what: key, value: value.to_owned(), expected });
    }
    Ok(())
}

/// The caller's mount options with a comma behind each, and the port if they name one.
fn options(value: &str) -> Result<(String, u16)> {
    // Not the value itself: it may be a password that does not belong there.
    let bad = |expected: String| Error::Invalid { what: "options", value: "***".to_owned(), expected };
    let (mut checked, mut port) = (String::new(), PORT);
    for option in value.split(',').filter(|option| !option.is_empty()) {
        let (name, argument) = option.split_once('=').unwrap_or((option, ""));
        let plain = |text: &str, more: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c));
        if REFUSED.contains(&name) {
            return Err(bad(format!("{name} is not given there; there are username, cifspassword, credentials, vers")));
        }
        if name.is_empty() || !plain(name, "_") || !plain(argument, "_.:/-") {
            return Err(bad("one of them is no mount option".to_owned()));
        }
        match name {
            "port" => port = argument.parse().map_err(|_| bad("port is a number".to_owned()))?,
            _ => checked.push_str(&format!("{option},")),
        }
    }
    Ok((checked, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share<const N: usize>(location: &str, keys: [(&str, &str); N]) -> Result<Share> {
        Share::new(location, &DeviceConfig::from(keys))
    }

    #[test]
    fn slashes_and_backslashes_name_the_same_share() {
        for location in ["//filer/isos/linux", r"\\filer\isos\linux", "//filer/isos/linux/"] {
            assert_eq!(share(location, []).unwrap().source(), "//filer/isos/linux");
        }
        assert_eq!(share("//10.0.0.5/a b", []).unwrap().source(), "//10.0.0.5/a b");
    }

    #[test]
    fn what_is_no_share_or_could_be_an_option_is_refused() {
        for bad in
            ["", "/", "//", "//filer", "//filer/", "/filer/isos", "//-o/x", "//filer/a,b", "//filer/../x", "//f/a\nb"]
        {
            assert!(share(bad, []).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_user_has_a_name_a_domain_and_a_password_that_no_error_shows() {
        let keys = [("username", r"WORK\iso"), ("cifspassword", "hunter2,x")];
        let User::Named { name, domain, password } = share("//f/s", keys).unwrap().user else { panic!() };
        assert_eq!((name.as_str(), domain.as_deref(), password.as_deref()), ("iso", Some("WORK"), Some("hunter2,x")));
        for (username, password) in [("a,b", "p"), ("a%p", "p"), ("a/b", "p"), (r"a\b\c", "p"), ("a", "hunter2\n")] {
            let refused = share("//f/s", [("username", username), ("cifspassword", password)]).err().unwrap();
            assert!(!refused.to_string().contains("hunter2"), "{refused}");
        }
        assert!(share("//f/s", [("username", "a")]).is_err());
        assert!(share("//f/s", [("username", "a"), ("cifspassword_secret", "x")]).is_ok());
    }

    #[test]
    fn options_are_words_and_no_passwords() {
        assert_eq!(options("").unwrap(), (String::new(), 445));
        assert_eq!(options("ro,port=4450,sec=ntlmssp").unwrap(), ("ro,sec=ntlmssp,".to_owned(), 4450));
        for bad in ["password=hunter2", "pass=hunter2", "user=a%hunter2", "a b", "x=hunter2\"", "vers=1.0", "port=x"] {
            let refused = options(bad).unwrap_err().to_string();
            assert!(!refused.contains("hunter2"), "{refused}");
        }
    }

    #[test]
    fn what_mount_cifs_says_is_understood() {
        let it = share("//filer/isos", []).unwrap();
        for (stderr, expected) in [
            ("mount error(13): Permission denied\nRefer to the mount.cifs(8) manual page", ServerFault::Denied),
            ("mount error(2): No such file or directory", ServerFault::NoExport),
            ("mount error(95): Operation not supported", ServerFault::Version),
            ("mount error(111): could not connect to 10.0.0.5", ServerFault::NoAnswer),
            ("mount error(112): Host is down", ServerFault::Mount),
            ("mount.cifs: bad UNC (x)", ServerFault::Mount),
        ] {
            let said =
                Error::Tool { argv: "mount.cifs".into(), how: "failed with status 32".into(), stderr: stderr.into() };
            let Error::Server { fault, why, .. } = it.why_not_mounted(&said) else { panic!() };
            assert_eq!(fault, expected, "{stderr}");
            assert!(why.contains(stderr.lines().next().unwrap()), "{why}");
        }
    }
}
