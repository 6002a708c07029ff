//! A share of an SMB server: what names it, and mounting it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;

use crate::error::{Error, Protocol, Result, ServerFault, one_line};
use crate::sr::config::absolute_path;
use crate::sr::nfs::export;
use crate::sr::served::{Holds, Purpose, Remote};
use crate::sys::server::{fault, listens};
use crate::sys::syslog;
use crate::sys::tool::Tool;
use crate::sys::watch::Pulse;
use crate::types::DeviceConfig;

/// The filesystem types that the mount table has for such mounts.
pub const FS_TYPES: &[&str] = &["cifs", "smb3"];

const PORT: u16 = 445;

/// How long mount.cifs may take: the kernel gives a server that is silent up after some 20 s.
const MOUNT_DEADLINE: Duration = Duration::from_secs(60);

/// The options of every mount. `cache=none`: a host sees with its next call what another host has changed.
const OPTIONS: &str = "cache=none,nosuid,nodev,noexec";

/// Those of a mount with disks. A write waits for a server that is gone, as [`Holds::Disks`] says. `actimeo=0`: names and
/// attributes are asked for anew. The files belong to root, as the server has no modes of its own to show.
const OPTIONS_OF_DISKS: &str = "hard,actimeo=0,uid=0,gid=0,forceuid,forcegid,file_mode=0600,dir_mode=0700";

/// Of a mount with disks, on kernels that know it. A kernel that closes files late has some open when a server goes away, and
/// an unmounting then crashed Linux 6.1. Before 6.1, `actimeo=0` does the same.
const CLOSE_AT_ONCE: &str = ",closetimeo=0";

/// The kernel's default may show a name with an accent as something that is no UTF-8, and so as no image. First, so
/// that the caller's `iocharset` counts, on a kernel without this one.
const NAMES: &str = "iocharset=utf8";

/// Dialects as mount.cifs(8) names them.
const VERSIONS: [&str; 8] = ["1.0", "2.0", "2.1", "3", "3.0", "3.02", "3.11", "3.1.1"];

/// Options that follow from the share and the rest of ours, and those that only mount(8) and systemd read.
const OURS: [&str; 13] = [
    "nosuid", "nodev", "noexec", "rw", "defaults", "auto", "noauto", "nofail", "nouser", "users", "_netdev", "ip",
    "unc",
];

/// Options that ours take the place of.
const REPLACED: [&str; 4] = ["cache", "suid", "dev", "exec"];

/// Of disks: those that would lose writes or locks, or show what another host has changed late.
const REPLACED_OF_DISKS: &str = "closetimeo soft hard nobrl nolock nosharesock actimeo acregmax acdirmax uid gid forceuid forcegid \
                                 file_mode dir_mode nostrictsync mfsymlinks ro";

/// The keys of device_config that name a share, which differ by the type of the SR.
pub struct Keys {
    holds: Holds,
    /// Of the share: `//server/share`.
    location: &'static str,
    password: &'static str,
    /// Of the UUID of xapi's secret with the password.
    secret: &'static str,
}

/// The keys of an ISO SR.
pub const OF_CDS: Keys =
    Keys { holds: Holds::Images, location: "location", password: "cifspassword", secret: "cifspassword_secret" };

/// The keys of an SR with disks.
pub const OF_DISKS: Keys =
    Keys { holds: Holds::Disks, location: "server", password: "password", secret: "password_secret" };

/// A share, as device_config names it.
pub struct Share {
    keys: &'static Keys,
    server: String,
    /// `//server/share/directory`.
    source: String,
    port: u16,
    /// How to log in and to mount; [`Login::of`] reads it.
    config: DeviceConfig,
}

/// How a share is mounted, and by whom.
struct Login {
    vers: Option<String>,
    /// The caller's mount options, each with a comma behind it.
    options: String,
    user: User,
}

/// The user that logs in at the server.
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
    /// Parses the location; touches nothing. The keys of the user and the password, `vers`, `options` and `credentials` say how
    /// to mount and are judged by [`Share::mount`], so that what is mounted can be unmounted whatever they say.
    ///
    /// # Errors
    /// [`Error::MissingKey`], [`Error::Invalid`].
    pub fn new(keys: &'static Keys, config: &DeviceConfig) -> Result<Share> {
        let (server, path) = split(keys, config.require(keys.location)?)?;
        let server = export::server(&server)?;
        let port = words(config.get("options").unwrap_or("")).filter_map(|it| it.strip_prefix("port=")?.parse().ok());
        Ok(Share {
            keys,
            source: format!("//{server}{path}"),
            server,
            port: port.last().unwrap_or(PORT),
            config: config.clone(),
        })
    }

    /// The end of the options, which counts where the caller's contradict it.
    fn ours(&self) -> String {
        match self.keys.holds {
            Holds::Disks => {
                let at_once = if closes_late() { CLOSE_AT_ONCE } else { "" };
                format!("{OPTIONS},{OPTIONS_OF_DISKS}{at_once}")
            }
            Holds::Images => OPTIONS.to_owned(),
        }
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
        self.failed(what, format!("{}: {}", self.source, one_line(e)))
    }
}

impl Remote for Share {
    fn source(&self, below: &str) -> String {
        if below.is_empty() { self.source.clone() } else { format!("{}/{below}", self.source) }
    }

    fn mount(&self, below: &str, at: &Path, _purpose: Purpose) -> Result<()> {
        let login = Login::of(self.keys, &self.config)?;
        (self.pulse())()?;
        let mut options = vec![format!("{NAMES},{}{},port={}", login.options, self.ours(), self.port)];
        options.extend(login.vers.iter().map(|vers| format!("vers={vers}")));
        let mut tool = Tool::new("/sbin/mount.cifs").deadline(MOUNT_DEADLINE);
        match &login.user {
            User::Guest => options.push("guest".to_owned()),
            User::File(path) => options.push(format!("credentials={}", path.display())),
            User::Named { name, domain, password } => {
                options.push(format!("username={name}"));
                options.extend(domain.iter().map(|domain| format!("domain={domain}")));
                let Some(password) = password else {
                    return Err(Error::MissingKey { key: self.keys.password, given: "username".to_owned() });
                };
                // Only root can read another process's environment; everyone can read its arguments.
                tool = tool.env("PASSWD", password);
            }
        }
        // The two come first and begin with slashes.
        let done = tool.args([&self.source(below), &at.display().to_string(), "-o", &options.join(",")]).run();
        done.map(drop).map_err(|e| self.why_not_mounted(&e))
    }

    /// Whether the server takes connections.
    fn pulse(&self) -> Pulse {
        let (server, port) = (self.server.clone(), self.port);
        Box::new(move || listens(Protocol::Smb, &server, port))
    }

    fn failed(&self, what: ServerFault, why: String) -> Error {
        fault(Protocol::Smb, &self.server, what, why)
    }
}

/// The server and the path of `//server/share/directory`, or of the same with backslashes.
fn split(keys: &Keys, location: &str) -> Result<(String, String)> {
    let bad = || Error::Invalid {
        what: keys.location,
        value: location.to_owned(),
        expected: "expected //server/share".to_owned(),
    };
    let slashes = location.replace('\\', "/");
    let (server, path) = slashes.strip_prefix("//").and_then(|rest| rest.split_once('/')).ok_or_else(bad)?;
    if server.contains('@') {
        // A password may stand before it.
        let expected =
            format!("expected //server/share; the user and the password are keys, username and {}", keys.password);
        return Err(Error::Invalid { what: keys.location, value: "//***".to_owned(), expected });
    }
    // A comma would begin another mount option.
    if path.contains(',') {
        return Err(bad());
    }
    let path = absolute_path(keys.location, &format!("/{path}"))?;
    Ok((server.to_owned(), path.display().to_string()))
}

/// Whether the kernel has the option `closetimeo`: since Linux 6.1.
fn closes_late() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(['.', '-']).map(|word| word.trim().parse::<u32>().unwrap_or(0));
    (numbers.next(), numbers.next()) >= (Some(6), Some(1))
}

/// Mount options one by one; they are separated by commas, and `-o` may stand before some.
fn words(options: &str) -> impl Iterator<Item = &str> {
    options.split([',', ' ']).map(str::trim).filter(|word| !word.is_empty() && *word != "-o")
}

impl Login {
    /// Reads the keys, then what `options` have of the same: `xe-mount-iso-sr` puts the user and the password there. Keys
    /// count, if both are given.
    ///
    /// # Errors
    /// [`Error::Invalid`], without the value if that may be a password; [`Error::MissingKey`].
    fn of(keys: &Keys, config: &DeviceConfig) -> Result<Login> {
        let given = |key| config.get(key).filter(|value| !value.is_empty()).map(str::to_owned);
        let mut found = options(config.get("options").unwrap_or(""), keys.holds)?;
        if given("username").is_some() {
            found.credentials = None;
            // A password belongs to the name it stands beside.
            if found.username.is_some() {
                (found.password, found.domain) = (None, None);
            }
        }
        if !found.replaced.is_empty() {
            let ours = if keys.holds == Holds::Disks { OPTIONS_OF_DISKS } else { "" };
            syslog::write(&format!("mount options {} are not used, but {OPTIONS},{ours}", found.replaced.join(", ")));
        }
        let vers = given("vers").or(found.vers).filter(|vers| vers != "default");
        if let Some(other) = vers.as_deref().filter(|vers| !VERSIONS.contains(vers)) {
            let expected = format!("expected one of {}", VERSIONS.join(", "));
            return Err(Error::Invalid { what: "vers", value: other.to_owned(), expected });
        }
        let user = match (given("credentials").or(found.credentials), given("username").or(found.username)) {
            (Some(path), _) => {
                let path = absolute_path("credentials", &path)?;
                word("credentials", &path.display().to_string())?;
                User::File(path)
            }
            (None, None) => User::Guest,
            (None, Some(username)) => {
                // Even an empty password is one.
                let password = config.get(keys.password).map(str::to_owned).or(found.password);
                named(keys, &username, found.domain, password, config.get(keys.secret).is_some())?
            }
        };
        Ok(Login { vers, options: found.kept, user })
    }
}

/// The user that a name like `domain\\user`, `domain/user` or `user%password` stands for.
fn named(keys: &Keys, username: &str, domain: Option<String>, password: Option<String>, secret: bool) -> Result<User> {
    let (name, inline) = match username.split_once('%') {
        Some((name, password)) => (name, Some(password.to_owned())),
        None => (username, None),
    };
    let password = password.or(inline);
    if password.is_none() && !secret {
        return Err(Error::MissingKey { key: keys.password, given: "username".to_owned() });
    }
    if password.as_ref().is_some_and(|password| password.chars().any(char::is_control)) {
        let expected = "control characters are not allowed in it".to_owned();
        return Err(Error::Invalid { what: keys.password, value: "***".to_owned(), expected });
    }
    let (domain, name) = match name.split_once(['\\', '/']) {
        Some((domain, name)) => (Some(domain.to_owned()), name),
        None => (domain, name),
    };
    domain.as_deref().map_or(Ok(()), |domain| word("username", domain))?;
    word("username", name)?;
    Ok(User::Named { name: name.to_owned(), domain, password })
}

/// Refuses a value that mount.cifs would not take for a single one: a comma ends it, `%` begins a password, a slash or
/// a backslash ends a domain.
fn word(key: &'static str, value: &str) -> Result<()> {
    let special = if key == "username" { ",%/\\" } else { "," };
    if value.is_empty() || value.chars().any(|c| c.is_control() || special.contains(c)) {
        // Not the value itself: a password may stand in it.
        let expected = format!("it is empty, or has a control character or one of {special}");
        return Err(Error::Invalid { what: key, value: "***".to_owned(), expected });
    }
    Ok(())
}

/// The caller's mount options, sorted.
#[derive(Default)]
struct Given {
    /// Those that are passed on, each with a comma behind it.
    kept: String,
    /// The names of those that ours take the place of.
    replaced: Vec<String>,
    vers: Option<String>,
    username: Option<String>,
    password: Option<String>,
    domain: Option<String>,
    credentials: Option<String>,
}

/// Sorts the caller's mount options. Passwords among them go where those of the keys go, never into arguments.
fn options(value: &str, holds: Holds) -> Result<Given> {
    // Not the value itself: it may be a password that does not belong there.
    let bad = |expected: String| Error::Invalid { what: "options", value: "***".to_owned(), expected };
    let mut given = Given::default();
    for option in words(value) {
        let (name, argument) = option.split_once('=').unwrap_or((option, ""));
        let plain = |text: &str, more: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c));
        let argument_is_given = || Some(argument.to_owned());
        match name {
            "username" | "user" => given.username = argument_is_given(),
            "password" | "pass" => given.password = argument_is_given(),
            "domain" | "dom" | "workgroup" => given.domain = argument_is_given(),
            "credentials" | "cred" => given.credentials = argument_is_given(),
            "vers" => given.vers = argument_is_given(),
            "guest" => {}
            "port" if argument.parse::<u16>().is_err() => return Err(bad("port is a number".to_owned())),
            "port" => {}
            "password2" | "pass2" | "remount" => return Err(bad(format!("{name} is not taken there"))),
            _ if OURS.contains(&name) || name.starts_with("x-") => {}
            _ if REPLACED.contains(&name)
                || holds == Holds::Disks && REPLACED_OF_DISKS.split(' ').any(|it| it == name) =>
            {
                given.replaced.push(name.to_owned())
            }
            _ if name.is_empty() || !plain(name, "_") || !plain(argument, "_.:/-") => {
                return Err(bad("one of them is no mount option".to_owned()));
            }
            _ => {
                given.kept.push_str(option);
                given.kept.push(',');
            }
        }
    }
    Ok(given)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share<const N: usize>(location: &str, keys: [(&str, &str); N]) -> Result<Share> {
        let mut config = DeviceConfig::from(keys);
        config.0.insert("location".to_owned(), location.to_owned());
        Share::new(&OF_CDS, &config)
    }

    #[test]
    fn slashes_and_backslashes_name_the_same_share() {
        for location in ["//filer/isos/linux", r"\\filer\isos\linux", "//filer/isos/linux/"] {
            assert_eq!(share(location, []).unwrap().source(""), "//filer/isos/linux");
        }
        assert_eq!(share("//10.0.0.5/a b", []).unwrap().source(""), "//10.0.0.5/a b");
    }

    #[test]
    fn what_is_no_share_or_could_be_an_option_is_refused() {
        for bad in
            ["", "/", "//", "//filer", "//filer/", "/filer/isos", "//-o/x", "//filer/a,b", "//filer/../x", "//f/a\nb"]
        {
            assert!(share(bad, []).is_err(), "{bad:?}");
        }
    }

    /// The name, the domain and the password that these keys come to.
    fn user<const N: usize>(keys: [(&str, &str); N]) -> Result<[Option<String>; 3]> {
        Ok(match Login::of(&OF_CDS, &DeviceConfig::from(keys))?.user {
            User::Guest => [None, None, None],
            User::File(path) => [Some(path.display().to_string()), None, None],
            User::Named { name, domain, password } => [Some(name), domain, password],
        })
    }

    #[test]
    fn a_user_has_a_name_a_domain_and_a_password_that_no_error_shows() {
        let of = |words: [&str; 3]| words.map(|word| (!word.is_empty()).then(|| word.to_owned()));
        let password = ("cifspassword", "hunter2,x");
        assert_eq!(user([("username", r"WORK\iso"), password]).unwrap(), of(["iso", "WORK", "hunter2,x"]));
        assert_eq!(user([("username", "a%hunter2")]).unwrap(), of(["a", "", "hunter2"]));
        assert_eq!(user([("username", "W/a%x"), password]).unwrap(), of(["a", "W", "hunter2,x"]));
        for options in
            ["username=a,password=hunter2!,dom=W", "-o user=W/a%hunter2!", r"-o user=W\a -o pass=hunter2!,ro"]
        {
            assert_eq!(user([("options", options)]).unwrap(), of(["a", "W", "hunter2!"]), "{options}");
        }
        // Keys count.
        let both = [("username", "a"), password, ("options", "username=b,password=y,domain=W")];
        assert_eq!(user(both).unwrap(), of(["a", "", "hunter2,x"]));
        assert_eq!(user([("options", "credentials=/etc/c")]).unwrap(), of(["/etc/c", "", ""]));
        assert_eq!(user([("options", "guest,ro")]).unwrap(), of([""; 3]));
        for (username, password) in [("a,hunter2", "p"), (r"a\b\hunter2", "p"), ("a", "hunter2\n"), ("a%hunter2\n", "")]
        {
            let keys = DeviceConfig::from([("username", username), ("cifspassword", password)]);
            let keys = if password.is_empty() { DeviceConfig::from([("username", username)]) } else { keys };
            let refused = Login::of(&OF_CDS, &keys).err().unwrap().to_string();
            assert!(!refused.contains("hunter2"), "{refused}");
        }
        assert!(user([("username", "a")]).is_err());
        assert!(user([("username", "a"), ("cifspassword_secret", "x")]).is_ok());
    }

    #[test]
    fn options_are_words_and_no_passwords() {
        assert_eq!(options("", Holds::Images).unwrap().kept, "");
        assert_eq!(
            options("-o ro,port=4450,sec=ntlmssp,_netdev,cache=loose", Holds::Images).unwrap().kept,
            "ro,sec=ntlmssp,"
        );
        assert_eq!(share("//f/s", [("options", "ro,port=4450")]).unwrap().port, 4450);
        let vers = |keys: [(&str, &str); 2]| Login::of(&OF_CDS, &DeviceConfig::from(keys)).map(|it| it.vers);
        assert_eq!(vers([("vers", ""), ("options", "vers=2.1")]).unwrap().as_deref(), Some("2.1"));
        assert_eq!(vers([("vers", "3.0"), ("options", "vers=2.1")]).unwrap().as_deref(), Some("3.0"));
        assert_eq!(vers([("vers", "default"), ("options", "")]).unwrap(), None);
        assert!(vers([("vers", "4"), ("options", "")]).is_err());
        for bad in ["password2=hunter2", "x=hunter2\"", "hunter2=\"", "port=x", "a$b"] {
            let refused = options(bad, Holds::Disks).err().unwrap().to_string();
            assert!(!refused.contains("hunter2"), "{refused}");
            // A share that is mounted can be unmounted, whatever these keys say.
            assert!(share("//f/s", [("options", bad), ("vers", "4"), ("username", "a,b")]).is_ok());
        }
    }

    #[test]
    fn a_mount_of_disks_waits_caches_nothing_and_keeps_its_locks() {
        let given = options("soft,nobrl,cache=loose,actimeo=30,seal,ro", Holds::Disks).unwrap();
        assert_eq!(given.kept, "seal,");
        assert_eq!(given.replaced, ["soft", "nobrl", "cache", "actimeo", "ro"]);
        let config = DeviceConfig::from([("server", "//filer/disks"), ("username", "xen"), ("password_secret", "x")]);
        let share = Share::new(&OF_DISKS, &config).unwrap();
        assert_eq!(share.source("87b8"), "//filer/disks/87b8");
        let ours = share.ours();
        let has = |option: &str| ours.split(',').any(|it| it == option);
        assert!(
            ["hard", "cache=none", "actimeo=0", "nosuid", "nodev", "noexec", "file_mode=0600"].into_iter().all(has),
            "{ours}"
        );
        let no_password = DeviceConfig::from([("server", "//filer/disks"), ("username", "xen")]);
        let refused = Login::of(&OF_DISKS, &no_password).err().unwrap().to_string();
        assert!(refused.contains("password") && !refused.contains("cifspassword"), "{refused}");
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
