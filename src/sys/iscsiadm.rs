//! Runs `iscsiadm` of open-iscsi: discovery, login, logout.
//!
//! Every user of a host sees the arguments of a program, so no secret is one. What a login needs is in a record of open-iscsi's
//! database, a file of mode 0600: `iscsiadm` makes the record without secrets, and the values are then written into the
//! file. The file is made beside the database and renamed, because `iscsiadm` takes every file in it for a record. A record of
//! this package is removed after the logout. Discovery leaves no records.
//!
//! Formats: `iscsiadm(8)`; the records' keys stand in `/etc/iscsi/iscsid.conf`. What counts is the exit status, never a text;
//! `include/iscsi_err.h` of open-iscsi.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::sys::initiator::Portal;
use crate::sys::lock::{self, Kind, Lock};
use crate::sys::tool::{Output, Tool};

/// Where open-iscsi keeps its records: Debian's place, and that of the packages of XCP-ng.
const DATABASES: [&str; 2] = ["/etc/iscsi", "/var/lib/iscsi"];

/// The file that is renamed into the database.
const DRAFT: &str = ".sm-record";

/// A discovery or a logout may take so long: the target was asked for a TCP connection before.
const DEADLINE: Duration = Duration::from_secs(30);
/// A login that is answered takes less than a second.
const LOGIN_DEADLINE: Duration = Duration::from_secs(60);

/// A target at a portal, as a discovery tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    pub portal: Portal,
    /// The number of the portal's group. `None`: the target did not say it.
    pub group: Option<u16>,
    pub iqn: String,
}

/// The secrets of a login.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Chap {
    /// The user and the password by which the target knows this host.
    pub outgoing: Option<(String, String)>,
    /// Those by which this host knows the target.
    pub incoming: Option<(String, String)>,
}

/// Why the target was not reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It refuses this host or its secrets.
    Denied,
    /// It does not answer, or not in time.
    Silent,
    /// It has no such object.
    Nothing,
    Other,
}

/// The meaning of an exit status; `include/iscsi_err.h`.
fn meaning(status: Option<i32>) -> Refusal {
    match status {
        // LOGIN, ACCESS, FATAL_LOGIN, LOGIN_AUTH_FAILED.
        Some(5 | 13 | 19 | 24) => Refusal::Denied,
        // TRANS, TRANS_TIMEOUT, PDU_TIMEOUT, HOST_NOT_FOUND.
        Some(4 | 8 | 11 | 23) => Refusal::Silent,
        // SESS_NOT_FOUND, NO_OBJS_FOUND.
        Some(2 | 21) => Refusal::Nothing,
        Some(_) => Refusal::Other,
        // It was killed at its deadline.
        None => Refusal::Silent,
    }
}

/// Why `iscsiadm` failed.
pub fn refusal(error: &Error) -> Refusal {
    match error {
        Error::Tool { how, .. } if how.starts_with("was not started") => Refusal::Other,
        Error::Tool { how, .. } => meaning(status(how)),
        _ => Refusal::Other,
    }
}

fn status(how: &str) -> Option<i32> {
    how.rsplit_once("status ")?.1.parse().ok()
}

/// The lock that the Python storage managers take around each `iscsiadm`; its name is spelt so.
fn alone() -> Result<Lock> {
    lock::take("iscsiadm", "isciadm_running", Kind::Exclusive, Instant::now() + LOGIN_DEADLINE * 2).map_err(|refused| {
        refused.or_timed_out(|who| Error::Locked {
            what: "open-iscsi".to_owned(),
            holder: who.to_owned(),
            remedy: String::new(),
        })
    })
}

fn iscsiadm(mode: &str, args: &[&str], deadline: Duration) -> Result<Output> {
    Tool::new("iscsiadm").args(["-m", mode]).args(args).deadline(deadline).run()
}

/// The targets that a portal tells. Leaves no records. The secrets are used if the portal tells nothing without: a target may have
/// secrets for its LUNs and none for a discovery, and refuses one that offers some (LIO).
///
/// # Errors
/// [`Error::Tool`]; [`refusal`] says why.
pub fn discover(portal: &Portal, chap: &Chap) -> Result<Vec<Offer>> {
    let (_alone, at) = (alone()?, portal.to_string());
    let open = iscsiadm("discovery", &["-t", "st", "-p", &at, "-o", "nonpersistent"], DEADLINE);
    let (user, password) = match (open, &chap.outgoing) {
        (Ok(said), _) => return Ok(offers(&said.stdout)),
        (Err(e), Some(secrets)) if refusal(&e) == Refusal::Denied => secrets,
        (Err(e), _) => return Err(e),
    };
    let mut values = vec![("authmethod", "CHAP"), ("username", user), ("password", password)];
    if let Some((user, password)) = &chap.incoming {
        values.extend([("username_in", user.as_str()), ("password_in", password)]);
    }
    let values: Vec<(String, &str)> =
        values.into_iter().map(|(key, value)| (format!("discovery.sendtargets.auth.{key}"), value)).collect();
    let place = format!("send_targets/{},{}/st_config", portal.address, portal.port);
    // A record that somebody else made is given back.
    let before = record(&place).and_then(|path| Some((fs::read(&path).ok()?, path)));
    let words = ["-t", "st", "-p", &at];
    iscsiadm("discoverydb", &[&words[..], &["-o", "new"]].concat(), DEADLINE)?;
    let said = write_values(&place, &values).and_then(|()| {
        iscsiadm("discoverydb", &[&words[..], &["--discover", "-o", "nonpersistent"]].concat(), DEADLINE)
    });
    let ended = match before {
        Some((bytes, path)) => replace(&path, &bytes),
        None => iscsiadm("discoverydb", &[&words[..], &["-o", "delete"]].concat(), DEADLINE).map(drop),
    };
    crate::error::ended(said, ended).map(|said| offers(&said.stdout))
}

/// Reads lines such as `10.1.0.1:3260,1 iqn.2003-01.org.example:t1`. Others are passed over, as those of targets with addresses that
/// are no addresses.
fn offers(text: &str) -> Vec<Offer> {
    let one = |line: &str| {
        let (at, iqn) = line.trim().split_once(' ')?;
        let (portal, group) = at.rsplit_once(',')?;
        let offer = Offer { portal: Portal::read(portal)?, group: group.parse().ok(), iqn: iqn.trim().to_owned() };
        is_iqn(&offer.iqn).then_some(offer)
    };
    let mut found: Vec<Offer> = Vec::new();
    for offer in text.lines().filter_map(one) {
        if !found.contains(&offer) {
            found.push(offer);
        }
    }
    found
}

/// Whether a text is the name of a target that may be an argument and the name of a file. Arrays have names with capitals
/// and underscores, which the standard does not know.
pub fn is_iqn(text: &str) -> bool {
    const LONGEST: usize = 223;
    let is_of_name = |c: char| c.is_ascii_alphanumeric() || ".-:_+@%".contains(c);
    let begins = ["iqn.", "eui.", "naa."].iter().any(|kind| text.to_ascii_lowercase().starts_with(kind));
    begins && text.len() <= LONGEST && text.chars().all(is_of_name)
}

/// Logs in to a target at a portal. A session that is there already is no failure. The login goes by a record of the administrator's
/// if there is one, which gets the values of this login and keeps its startup.
///
/// # Errors
/// [`Error::Tool`]; [`refusal`] says why. Then no record of this login is left, and the administrator's is as it was.
pub fn login(offer: &Offer, chap: &Chap, replacement: Duration) -> Result<()> {
    /// SESS_EXISTS.
    const THERE_ALREADY: i32 = 15;
    let _alone = alone()?;
    let group = offer.group.map(|group| format!(",{group}")).unwrap_or_default();
    let (at, replacement) = (format!("{}{group}", offer.portal), replacement.as_secs().to_string());
    let words = ["-T", &offer.iqn, "-p", &offer.portal.to_string()];
    let values = values(chap, &replacement);
    let before = automatic(&offer.iqn, &offer.portal);
    let written = match before.as_slice() {
        [] => {
            iscsiadm("node", &["-o", "new", "-T", &offer.iqn, "-p", &at], DEADLINE)?;
            write_values(&place(offer), &values)
        }
        records => {
            let login: Vec<_> = values.into_iter().filter(|(key, _)| !STARTUP.contains(&key.as_str())).collect();
            records.iter().try_for_each(|(path, text)| replace(path, with_values(text, &login).as_bytes()))
        }
    };
    let done = written.and_then(|()| {
        let tool = Tool::new("iscsiadm").args(["-m", "node"]).args(words).arg("--login");
        tool.deadline(LOGIN_DEADLINE).or_status(THERE_ALREADY).run()
    });
    match (done, before.is_empty()) {
        (Ok(_), _) => Ok(()),
        (Err(e), true) => {
            let _ = iscsiadm("node", &[&words[..], &["-o", "delete"]].concat(), DEADLINE);
            Err(e)
        }
        (Err(e), false) => Err(e.undone(before.iter().try_for_each(|(path, text)| replace(path, text.as_bytes())))),
    }
}

/// When a record logs in.
const STARTUP: [&str; 2] = ["node.startup", "node.conn[0].startup"];

/// The file of the record of a target at a portal.
fn place(offer: &Offer) -> String {
    let Offer { portal, group, iqn } = offer;
    match group {
        Some(group) => format!("nodes/{iqn}/{},{},{group}/default", portal.address, portal.port),
        None => format!("nodes/{iqn}/{},{}", portal.address, portal.port),
    }
}

/// The values of a record that count for a login.
fn values<'a>(chap: &'a Chap, replacement: &'a str) -> Vec<(String, &'a str)> {
    let mut values = vec![
        // After a restart of the host, sr_attach logs in.
        (STARTUP[0].to_owned(), "manual"),
        (STARTUP[1].to_owned(), "manual"),
        ("node.session.timeo.replacement_timeout".to_owned(), replacement),
        // A portal that takes connections and does not answer is given up soon.
        ("node.session.initial_login_retry_max".to_owned(), "1"),
        ("node.session.auth.authmethod".to_owned(), if chap.outgoing.is_some() { "CHAP" } else { "None" }),
    ];
    let mut pair = |end: &str, pair: Option<&'a (String, String)>| {
        let (user, password) = pair.map_or(("", ""), |(user, password)| (user.as_str(), password.as_str()));
        values.push((format!("node.session.auth.username{end}"), user));
        values.push((format!("node.session.auth.password{end}"), password));
    };
    pair("", chap.outgoing.as_ref());
    pair("_in", chap.incoming.as_ref().filter(|_| chap.outgoing.is_some()));
    values
}

/// The path of a record that is there.
fn record(place: &str) -> Option<PathBuf> {
    DATABASES.iter().map(|database| Path::new(database).join(place)).find(|path| path.is_file())
}

/// Writes values into a record.
fn write_values(place: &str, values: &[(String, &str)]) -> Result<()> {
    let none = || io::Error::new(io::ErrorKind::NotFound, "iscsiadm made it, and it is in neither place of records");
    let path = record(place).ok_or_else(none).map_err(Error::io("find the record", place))?;
    let text = fs::read_to_string(&path).map_err(Error::io("read", &path))?;
    replace(&path, with_values(&text, values).as_bytes())
}

/// The record with these values; an empty value removes its key.
fn with_values(text: &str, values: &[(String, &str)]) -> String {
    const END: &str = "# END RECORD";
    let key_of = |line: &str| line.split_once('=').map(|(key, _)| key.trim().to_owned());
    let is_kept = |line: &&str| *line != END && !values.iter().any(|(key, _)| key_of(line).as_ref() == Some(key));
    let kept = text.lines().filter(is_kept).map(str::to_owned);
    let new = values.iter().filter(|(_, value)| !value.is_empty()).map(|(key, value)| format!("{key} = {value}"));
    kept.chain(new).chain([END.to_owned()]).map(|line| line + "\n").collect()
}

/// Replaces a record: readers see the old or the new one. The caller has [`alone`].
fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let database = DATABASES.iter().map(Path::new).find(|database| path.starts_with(database));
    let draft = database.expect("records are in a database").join(DRAFT);
    let _ = fs::remove_file(&draft);
    let written = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft);
    let written = written.and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()));
    written.map_err(Error::io("write", &draft))?;
    fs::rename(&draft, path).map_err(Error::io("replace", path))
}

/// Ends a session, by its number.
///
/// # Errors
/// [`Error::Tool`]. A session that is not there is no failure.
pub fn logout(session: u32) -> Result<()> {
    /// SESS_NOT_FOUND.
    const GONE_ALREADY: i32 = 2;
    /// NO_OBJS_FOUND.
    const NONE: i32 = 21;
    let _alone = alone()?;
    let tool = Tool::new("iscsiadm").args(["-m", "session", "-r", &session.to_string(), "-u"]);
    match tool.deadline(LOGIN_DEADLINE).or_status(NONE).run() {
        Err(Error::Tool { how, .. }) if status(&how) == Some(GONE_ALREADY) => Ok(()),
        other => other.map(drop),
    }
}

/// Removes the records of a target at a portal, with their secrets, unless they are somebody else's.
pub fn forget(iqn: &str, portal: &Portal) {
    let Ok(_alone) = alone() else { return };
    if automatic(iqn, portal).is_empty() {
        let _ = iscsiadm("node", &["-T", iqn, "-p", &portal.to_string(), "-o", "delete"], DEADLINE);
    }
}

/// The records of a target at a portal that log in by themselves when the host starts, with their texts: these are somebody else's.
fn automatic(iqn: &str, portal: &Portal) -> Vec<(PathBuf, String)> {
    let start = format!("{},{}", portal.address, portal.port);
    let files = DATABASES.iter().flat_map(|database| {
        let entries = fs::read_dir(Path::new(database).join("nodes").join(iqn)).into_iter().flatten().flatten();
        entries.map(|entry| (entry.file_name(), entry.path())).collect::<Vec<_>>()
    });
    let is_of_portal =
        |name: &str| name.strip_prefix(&start).is_some_and(|rest| rest.is_empty() || rest.starts_with(','));
    let is_automatic =
        |text: &String| text.lines().any(|line| STARTUP[0].to_owned() + "=automatic" == line.replace(' ', ""));
    let of_portal = files.filter(|(name, _)| name.to_str().is_some_and(is_of_portal));
    of_portal
        .filter_map(|(_, path)| {
            let file = if path.is_dir() { path.join("default") } else { path };
            let text = fs::read_to_string(&file).ok().filter(is_automatic)?;
            Some((file, text))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_discovery_tells_targets_and_their_portals() {
        let said = "10.1.0.1:3260,1 iqn.2003-01.org.example:t1\n[fe80::5054:1]:3260,2 iqn.2003-01.org.example:T_2\n\
                    10.1.0.1:3260,1 iqn.2003-01.org.example:t1\nfiler:3260,1 iqn.a\n10.1.0.1:3260,1 iqn.a/../b\n\nx\n";
        let found: Vec<String> =
            offers(said).iter().map(|it| format!("{} {:?} {}", it.portal, it.group, it.iqn)).collect();
        assert_eq!(
            found,
            [
                "10.1.0.1:3260 Some(1) iqn.2003-01.org.example:t1",
                "[fe80::5054:1]:3260 Some(2) iqn.2003-01.org.example:T_2"
            ]
        );
    }

    #[test]
    fn a_name_of_a_target_is_no_path_and_no_option() {
        for good in ["iqn.2000-01.com.synology:NAS.Target-1.a_b", "eui.0123456789abcdef", "iqn.2003-01.org.example"] {
            assert!(is_iqn(good), "{good}");
        }
        let long = format!("iqn.{}", "a".repeat(220));
        for bad in ["", "-u", "iqn.a/b", "iqn.a b", "iqn.a\n", "iqn.a\"", "iqn.ä", "*", "../iqn.a", &long] {
            assert!(!is_iqn(bad), "{bad}");
        }
    }

    #[test]
    fn a_record_has_the_values_of_this_login_and_no_old_secret() {
        let old = "# BEGIN RECORD 2.1.8\nnode.name = iqn.a\nnode.startup = automatic\nnode.session.auth.authmethod = CHAP\n\
                   node.session.auth.username = old\nnode.session.auth.password = old-secret\n\
                   node.session.auth.password_in = old-secret\nnode.conn[0].startup = manual\n# END RECORD\n";
        let plain = with_values(old, &values(&Chap::default(), "144"));
        assert!(plain.starts_with("# BEGIN RECORD 2.1.8\nnode.name = iqn.a\n") && plain.ends_with("\n# END RECORD\n"));
        assert!(plain.contains("authmethod = None\n") && !plain.contains("old"), "{plain}");
        assert!(plain.contains("node.startup = manual\n") && plain.contains("replacement_timeout = 144\n"), "{plain}");
        let pair = |a: &str, b: &str| Some((a.to_owned(), b.to_owned()));
        let chap = Chap { outgoing: pair("host1", "s3cret = x"), incoming: pair("target", "other") };
        let both = with_values(&plain, &values(&chap, "15"));
        for line in ["username = host1", "password = s3cret = x", "username_in = target", "password_in = other"] {
            assert_eq!(both.matches(&format!("node.session.auth.{line}\n")).count(), 1, "{both}");
        }
        assert_eq!(with_values(&both, &values(&Chap::default(), "144")), plain);
    }

    #[test]
    fn only_the_exit_status_tells_why() {
        for (how, expected) in [
            ("failed with status 24", Refusal::Denied),
            ("failed with status 5", Refusal::Denied),
            ("failed with status 8", Refusal::Silent),
            ("failed with status 21", Refusal::Nothing),
            ("failed with status 6", Refusal::Other),
            ("did not end within 60 s", Refusal::Silent),
            ("was not started: No such file or directory", Refusal::Other),
        ] {
            let error = Error::Tool { argv: "iscsiadm".into(), how: how.into(), stderr: "24 denied".into() };
            assert_eq!(refusal(&error), expected, "{how}");
        }
    }
}
