//! A target, as device_config names it. Nothing here touches the network.

use crate::error::{Error, Result};
use crate::sr::config::absolute_path;
use crate::sr::lun::flag;
use crate::sr::nfs::export;
use crate::sys::chap;
use crate::sys::iscsiadm::{Chap, is_iqn};
use crate::types::DeviceConfig;

const PORT: u16 = 3260;

/// Every target that is offered.
pub const ANY: &str = "*";

/// The keys of a target.
#[derive(Clone)]
pub struct Target {
    /// Host names or addresses.
    pub hosts: Vec<String>,
    pub port: u16,
    /// `None`: not given. [`ANY`] stands for all of them.
    pub iqn: Option<String>,
    pub chap: Chap,
    /// A file with secrets, which counts if device_config has none itself.
    pub chap_file: Option<String>,
    /// By every portal of the target, not only by those named.
    pub multihomed: bool,
    /// The name that the initiator has to have.
    pub initiator: Option<String>,
}

impl Target {
    /// Reads the keys.
    ///
    /// # Errors
    /// [`Error::MissingKey`] for the key `target`; [`Error::Invalid`], without the value if that may be a password.
    pub fn new(config: &DeviceConfig) -> Result<Target> {
        let bad = |what, value: &str, expected: &str| Error::Invalid {
            what,
            value: value.to_owned(),
            expected: expected.to_owned(),
        };
        let mut hosts: Vec<String> = Vec::new();
        for host in config.require("target")?.split(',').map(str::trim).filter(|host| !host.is_empty()) {
            let host = export::server(host)
                .map_err(|_| bad("target", host, "expected host names or addresses, separated by commas"))?;
            if !hosts.contains(&host) {
                hosts.push(host);
            }
        }
        if hosts.is_empty() {
            return Err(bad("target", config.get("target").unwrap_or(""), "expected a host name or an address"));
        }
        let given = |key| config.get(key).map(str::trim).filter(|value| !value.is_empty());
        let port = match given("port") {
            None => PORT,
            Some(text) => text
                .parse()
                .ok()
                .filter(|port| *port > 0)
                .ok_or_else(|| bad("port", text, "expected a number between 1 and 65535"))?,
        };
        let name = |key: &'static str| match given(key) {
            Some(iqn) if iqn != ANY && !is_iqn(iqn) => {
                Err(bad(key, iqn, "expected a name such as iqn.2003-01.org.example:t1"))
            }
            iqn => Ok(iqn.map(str::to_owned)),
        };
        let iqn = name("targetIQN")?;
        let initiator = name("localIQN")?;
        let outgoing = pair(config, "chapuser", "chappassword")?;
        let incoming = pair(config, "incoming_chapuser", "incoming_chappassword")?.filter(|_| outgoing.is_some());
        let chap_file = match given("chapfile") {
            Some(path) => Some(absolute_path("chapfile", path)?.display().to_string()),
            None => None,
        };
        let multihomed = match flag(config, "multihomed")? {
            Some(multihomed) => multihomed,
            None => flag(config, "multipathing")?.unwrap_or(false),
        };
        Ok(Target { hosts, port, iqn, chap: Chap { outgoing, incoming }, chap_file, multihomed, initiator })
    }

    /// The secrets to log in with.
    ///
    /// # Errors
    /// Those of [`chap::Chap::read`].
    pub fn secrets(&self) -> Result<Chap> {
        match self.chap_file.as_deref().filter(|_| self.chap.outgoing.is_none()) {
            None => Ok(self.chap.clone()),
            Some(file) => {
                let read = chap::Chap::read("chapfile", file)?;
                Ok(Chap { outgoing: Some((read.userid, read.password)), incoming: read.mutual })
            }
        }
    }

    /// The name of the target, for a call that has to know it.
    ///
    /// # Errors
    /// [`Error::MissingKey`].
    pub fn required_iqn(&self, config: &DeviceConfig) -> Result<&str> {
        config.require("targetIQN")?;
        Ok(self.iqn.as_deref().unwrap_or(ANY))
    }
}

/// A user and a password. Both have to be there to count, as with the Python storage managers.
fn pair(config: &DeviceConfig, user: &'static str, password: &'static str) -> Result<Option<(String, String)>> {
    let given = |key| config.get(key).filter(|value| !value.is_empty());
    let (Some(name), Some(secret)) = (given(user), given(password)) else { return Ok(None) };
    for (key, value) in [(user, name), (password, secret)] {
        // A record of open-iscsi has a line for each value.
        if value.len() > 255 || value.chars().any(char::is_control) || value.trim() != value {
            return Err(Error::Invalid {
                what: key,
                value: "***".to_owned(),
                expected: "expected 255 bytes at most, without control characters, and no space at either end"
                    .to_owned(),
            });
        }
    }
    Ok(Some((name.to_owned(), secret.to_owned())))
}

/// `iscsi@portal[,portal…][/iqn[/SCSIid]]`; a portal is a host or an address, with a port if need be, which all of them have.
///
/// # Errors
/// [`Error::Invalid`] with the form that it must have.
pub fn parse_dconf(dconf: &str, form: &str) -> Result<DeviceConfig> {
    let bad = |why: &str| Error::Invalid {
        what: "dconf",
        value: dconf.to_owned(),
        expected: format!("expected {form}{why}"),
    };
    let rest = dconf.strip_prefix("iscsi@").ok_or_else(|| bad(""))?;
    let mut parts = rest.splitn(3, '/');
    let (mut hosts, mut port) = (Vec::new(), None);
    for portal in parts.next().unwrap_or_default().split(',') {
        let (host, its) = split_port(portal);
        if host.is_empty() {
            return Err(bad(""));
        }
        if port.is_some_and(|port| port != its) {
            return Err(bad("; all portals have one port"));
        }
        hosts.push(host);
        port = Some(its);
    }
    let mut config = DeviceConfig::from([("target", hosts.join(",").as_str())]);
    let mut insert = |key: &str, value: Option<&str>| {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            config.0.insert(key.to_owned(), value.to_owned());
        }
    };
    insert("port", port.flatten());
    insert("targetIQN", parts.next());
    insert("SCSIid", parts.next());
    Ok(config)
}

/// `10.1.0.1:3260`, `[fe80::1]:3260`, `fe80::1`: the host and the port.
fn split_port(portal: &str) -> (&str, Option<&str>) {
    match portal.rsplit_once(':') {
        Some((host, port)) if host.ends_with(']') || !host.contains(':') => (host, Some(port)),
        _ => (portal, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORM: &str = "iscsi@portal/iqn/SCSIid";

    #[test]
    fn the_short_form_has_portals_a_name_and_an_identifier() {
        let words = |dconf| {
            let config = parse_dconf(dconf, FORM).unwrap();
            ["target", "port", "targetIQN", "SCSIid"].map(|key| config.get(key).unwrap_or("-").to_owned()).join(" ")
        };
        assert_eq!(
            words("iscsi@10.1.0.1/iqn.2003-01.org.example:t1/3600"),
            "10.1.0.1 - iqn.2003-01.org.example:t1 3600"
        );
        assert_eq!(words("iscsi@filer:860,filer2:860/iqn.a/3600"), "filer,filer2 860 iqn.a 3600");
        assert_eq!(words("iscsi@[fe80::1]:3261/*/3600"), "[fe80::1] 3261 * 3600");
        assert_eq!(words("iscsi@2001:db8::5/iqn.a"), "2001:db8::5 - iqn.a -");
        assert_eq!(words("iscsi@filer"), "filer - - -");
        for bad in ["", "iscsi@", "filer/iqn.a/3600", "iscsi@a:1,b:2/iqn.a", "iscsi@a,/iqn.a", "iscsi@/iqn.a/3600"] {
            assert!(parse_dconf(bad, FORM).is_err(), "{bad}");
        }
    }

    fn target(keys: &[(&str, &str)]) -> Result<Target> {
        let keys = keys.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        Target::new(&DeviceConfig(keys.collect()))
    }

    #[test]
    fn keys_are_checked_and_no_password_is_told() {
        let it = target(&[("target", "a, b,a"), ("targetIQN", "*"), ("multipathing", "true")]).unwrap();
        assert_eq!(
            (it.hosts, it.port, it.iqn.as_deref(), it.multihomed),
            (vec!["a".into(), "b".into()], 3260, Some("*"), true)
        );
        assert!(!target(&[("target", "a"), ("multihomed", "false"), ("multipathing", "true")]).unwrap().multihomed);
        for port in ["0", "65536", "x", "-1", "3260 "] {
            let keys = [("target", "a"), ("port", port)];
            assert_eq!(target(&keys).is_ok(), port == "3260 ", "{port}");
        }
        for bad in [&[("target", "")][..], &[], &[("target", ",")], &[("target", "-a")], &[("target", "a b")]] {
            assert!(target(bad).is_err(), "{bad:?}");
        }
        for iqn in ["-u", "iqn.a/../b", "filer"] {
            assert!(target(&[("target", "a"), ("targetIQN", iqn)]).is_err(), "{iqn}");
        }
        let chap = |user, password| target(&[("target", "a"), ("chapuser", user), ("chappassword", password)]);
        assert!(chap("u", "").unwrap().chap.outgoing.is_none());
        assert_eq!(chap("u", "p q").unwrap().chap.outgoing, Some(("u".to_owned(), "p q".to_owned())));
        for bad in ["hunter2\nnode.startup = automatic", " hunter2", "hunter2 "] {
            let refused = chap("u", bad).err().unwrap().to_string();
            assert!(refused.contains("chappassword") && !refused.contains("hunter2"), "{refused}");
        }
        let one_way = [("target", "a"), ("incoming_chapuser", "u"), ("incoming_chappassword", "p")];
        assert!(target(&one_way).unwrap().chap == Chap::default());
    }
}
