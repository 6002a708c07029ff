//! The rules that every agent has to respect, whatever protocol the agent speaks.

use super::Session;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::sr::{DRIVERS, Driver};
use crate::types::{DeviceConfig, Done, Params, ParamsChange, VdiInfo, nearest};

/// The verbs that only the host that may change the SR, its master, carries out.
const OF_THE_MASTER: &[&str] = &[
    "sr_scan",
    "vdi_create",
    "vdi_delete",
    "vdi_snapshot",
    "vdi_clone",
    "vdi_revert",
    "vdi_compose",
    "vdi_resize",
    "vdi_resize_online",
    "vdi_enable_cbt",
    "vdi_disable_cbt",
    "vdi_data_destroy",
    "vdi_list_changed_blocks",
];

/// Refuses a verb that only the master may carry out on a host that is not the master: the key `SRmaster` of
/// device_config is `false` there.
///
/// # Errors
/// [`Error::NotMaster`].
pub fn refuse_on_slave(config: &DeviceConfig, verb: &'static str) -> Result<()> {
    match OF_THE_MASTER.contains(&verb) && is_slave(config) {
        true => Err(Error::NotMaster { op: verb }),
        false => Ok(()),
    }
}

/// Keys of device_config that xapi gives to every driver.
const OF_AGENTS: &[&str] = &["SRmaster"];

/// Refuses a key of device_config that the driver does not declare. For people, who may have mistyped it: an SR that is made
/// without the option would differ from what was wanted. The records of agents keep keys of other releases, which count for
/// nothing.
///
/// # Errors
/// [`Error::Invalid`] with the key, the nearest one that the driver has, and all of these.
pub fn refuse_unknown_keys(driver: &Driver, config: &DeviceConfig) -> Result<()> {
    let is_known = |key: &str| driver.keys().chain(OF_AGENTS.iter().copied()).any(|known| known == key);
    let Some(key) = config.0.keys().find(|key| !is_known(key)) else { return Ok(()) };
    let meant = nearest(key, driver.keys()).map(|known| format!("did you mean {known}? ")).unwrap_or_default();
    let known: Vec<&str> = driver.keys().collect();
    let others: Vec<&str> =
        DRIVERS.iter().filter(|other| other.keys().any(|it| it == key)).map(|other| other.sr_type).collect();
    let of_others =
        if others.is_empty() { String::new() } else { format!("; {key} is a key of {}", others.join(", ")) };
    let expected = format!("{meant}an SR of type {} has the keys {}{of_others}", driver.sr_type, known.join(", "));
    Err(Error::Invalid { what: "key of device_config", value: key.clone(), expected })
}

fn is_slave(config: &DeviceConfig) -> bool {
    config.get("SRmaster") == Some("false")
}

/// device_config with the secrets that it names by reference: the key `x` gets the value of the secret whose UUID the
/// key `x_secret` has. Only keys that the driver knows count. `look_up`: the value of a secret by its UUID.
///
/// # Errors
/// Those of `look_up`, which is told the key as well.
pub fn with_secrets<E>(
    driver: &Driver,
    config: &DeviceConfig,
    mut look_up: impl FnMut(&str, &str) -> Result<String, E>,
) -> Result<DeviceConfig, E> {
    let mut complete = config.clone();
    for (key, uuid) in &config.0 {
        let Some(name) = key.strip_suffix("_secret") else { continue };
        if driver.keys().any(|known| known == key) {
            complete.0.insert(name.to_owned(), look_up(key, uuid)?);
        }
    }
    Ok(complete)
}

impl Session {
    /// How many VDIs sr_delete would destroy. Agents have to refuse it, or to ask, while there are any.
    ///
    /// Where the disks are seen only while the SR is attached, sr_probe looks first, which changes nothing. If it finds none,
    /// the SR is attached for a second look: the newest disks may be in the journal of its filesystem.
    ///
    /// # Errors
    /// Those that keep the disks from being seen. An SR that does not exist has no disks, which is no error.
    pub fn vdis_at_stake(&self, context: &Context) -> Result<usize> {
        if self.driver.keeps_disks {
            return Ok(0);
        }
        let found = match self.sr_get_params(context) {
            Err(Error::SrUnavailable { .. }) => {
                let probed = (self.driver.probe)(&self.config, context.deadline.into()).unwrap_or_default();
                match probed.iter().find(|info| info.uuid == self.sr).map_or(0, |info| info.vdi_uuids.len()) {
                    0 => self.sr_attach(context).and_then(|_| self.sr_get_params(context)),
                    disks => return Ok(disks),
                }
            }
            other => other,
        };
        match found {
            Ok(info) => Ok(info.vdi_uuids.len()),
            Err(Error::NoSr { .. }) => Ok(0),
            Err(other) => Err(other),
        }
    }

    /// Refuses an SR that has disks.
    ///
    /// # Errors
    /// [`Error::HasVdis`]; those of [`Session::vdis_at_stake`].
    pub fn refuse_disks(&self, context: &Context) -> Result<()> {
        match self.vdis_at_stake(context)? {
            0 => Ok(()),
            disks => Err(Error::HasVdis { sr: self.sr, disks }),
        }
    }

    /// Makes the SR available on this host, for an agent that keeps records. `knows_none`: the agent has no record of a disk
    /// in the SR; then an SR that other storage managers made is taken over although it shows no disks.
    ///
    /// # Errors
    /// As [`Session::sr_attach`].
    pub fn sr_attach_or_adopt(&self, knows_none: bool, context: &Context) -> Result<Done> {
        match self.sr_attach(context) {
            Err(Error::NoSr { .. }) if knows_none => match self.sr_adopt(context) {
                // The words of the attachment say more.
                Err(Error::Unsupported { .. }) => self.sr_attach(context),
                other => other,
            },
            other => other,
        }
    }

    /// The parameters of a VDI to be made, with the names that an agent's user gave it, where the SR stores such names with
    /// the disk. Elsewhere the agent's record is all there is.
    pub fn named(&self, params: Params, label: &str, description: &str) -> Params {
        match self.driver.about.keeps_names && can_be_stored(label, description) {
            true => Params { label: label.to_owned(), description: description.to_owned(), ..params },
            false => params,
        }
    }

    /// Stores a VDI's names with the disk, so that they come back with a scan after the agent forgot the SR. Where the SR
    /// cannot hold them, and on a host that must not change the SR, the agent's record is all there is.
    ///
    /// Names that are there already are not made durable once more: the agent has them in its own database, and its next
    /// update compares again.
    ///
    /// # Errors
    /// Those of [`Session::vdi_set`] but for [`Error::Unsupported`]: an SR that cannot store names is no error.
    pub fn keep_names(&self, info: &VdiInfo, label: &str, description: &str, context: &Context) -> Result<()> {
        let same = info.label == label && info.description == description;
        if info.hidden || same || is_slave(&self.config) || !can_be_stored(label, description) {
            return Ok(());
        }
        let (label, description) = (Some(label.to_owned()), Some(description.to_owned()));
        match self.vdi_set(info.uuid, ParamsChange { label, description, ..ParamsChange::default() }, context) {
            Ok(_) | Err(Error::Unsupported { .. }) => Ok(()),
            Err(e) => Err(e),
        }
    }
}

/// Whether the record beside a disk has room for the names.
fn can_be_stored(label: &str, description: &str) -> bool {
    label.len() <= Params::LONGEST_LABEL && description.len() <= Params::LONGEST_DESCRIPTION
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::call::{Disks, Unreadable};
    use crate::sr::{file, iso};
    use crate::types::{NewSr, NewVdi, Overwrite, SrUuid, VdiUuid};

    #[test]
    fn only_a_slave_is_refused_and_only_what_the_master_does() {
        let slave = DeviceConfig::from([("SRmaster", "false")]);
        for verb in OF_THE_MASTER {
            assert!(matches!(refuse_on_slave(&slave, verb), Err(Error::NotMaster { op }) if op == *verb));
            refuse_on_slave(&DeviceConfig::from([("SRmaster", "true")]), verb).unwrap();
            refuse_on_slave(&DeviceConfig::default(), verb).unwrap();
        }
        for verb in ["vdi_attach", "vdi_activate", "vdi_detach", "sr_attach", "sr_detach"] {
            refuse_on_slave(&slave, verb).unwrap();
        }
    }

    #[test]
    fn a_key_that_no_driver_declares_is_refused_and_the_nearest_is_named() {
        for driver in crate::sr::DRIVERS {
            let mut config: Vec<(&str, &str)> = driver.keys().map(|key| (key, "x")).collect();
            config.push(("SRmaster", "true"));
            let mut config = DeviceConfig(config.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect());
            refuse_unknown_keys(driver, &config).unwrap();
            let first = driver.keys().next().unwrap();
            config.0.insert(format!("{first}x"), "x".to_owned());
            let refused = refuse_unknown_keys(driver, &config).unwrap_err().to_string();
            assert!(refused.contains(&format!("did you mean {first}?")), "{refused}");
            for key in driver.keys() {
                assert!(refused.contains(key), "{refused}");
            }
        }
    }

    #[test]
    fn the_short_form_of_a_dconf_has_keys_that_its_driver_declares() {
        for (sr_type, dconf) in [
            ("file", "/srv/sr"),
            ("lvm", "/dev/sdb,/dev/sdc"),
            ("ext", "/dev/sdb"),
            ("xfs", "/dev/sdb"),
            ("nfs", "nfs@server:/export@/mnt"),
            ("smb", "//server/share"),
            ("smb", "smb@//server/share@/mnt"),
            ("iso", "/srv/iso"),
            ("iso", "nfs@server:/export@/mnt"),
            ("iso", "smb@//server/share@/mnt"),
        ] {
            let driver = crate::sr::driver(sr_type).unwrap();
            refuse_unknown_keys(driver, &(driver.parse_dconf)(dconf).unwrap()).unwrap();
        }
    }

    #[test]
    fn a_secret_is_looked_up_for_the_keys_that_the_driver_knows() {
        let config =
            DeviceConfig::from([("cifspassword_secret", "uuid"), ("other_secret", "x"), ("location", "//a/b")]);
        let look_up = |key: &str, uuid: &str| Ok::<_, ()>(format!("{key} {uuid}"));
        let complete = with_secrets(&iso::DRIVER, &config, look_up).unwrap();
        assert_eq!(complete.get("cifspassword"), Some("cifspassword_secret uuid"));
        assert_eq!(complete.0.len(), config.0.len() + 1);
        assert_eq!(with_secrets(&file::DRIVER, &config, look_up).unwrap(), config);
        assert_eq!(with_secrets(&iso::DRIVER, &config, |_, _| Err(7)), Err(7));
    }

    fn context() -> Context<'static> {
        Context { deadline: Instant::now() + Duration::from_secs(20), progress: &|_, _| {}, others: None }
    }

    #[test]
    fn what_a_deletion_would_destroy_is_counted_and_an_sr_that_is_not_there_has_nothing() {
        let scratch = tempfile::tempdir().unwrap();
        let location = scratch.path().join("sr").display().to_string();
        let config = DeviceConfig::from([("location", location.as_str())]);
        let session = Session::open(&file::DRIVER, SrUuid::random(), config).unwrap();
        assert_eq!(session.vdis_at_stake(&context()).unwrap(), 0);
        session.sr_create(&NewSr::default(), &Overwrite::default(), &context()).unwrap();
        assert_eq!(session.vdis_at_stake(&context()).unwrap(), 0);
        let vdi = VdiUuid::random();
        let new = NewVdi { vdi, virtual_size: 1 << 20, format: None, params: Params::default() };
        session.vdi_create(new, &context()).unwrap();
        assert_eq!(session.vdis_at_stake(&context()).unwrap(), 1);
        assert!(matches!(session.sr_delete(Disks::NONE, &context()), Err(Error::HasVdis { disks: 1, .. })));
        session.vdi_delete(vdi, Unreadable::Refused, &context()).unwrap();
        session.sr_delete(Disks::NONE, &context()).unwrap();
    }

    #[test]
    fn names_are_stored_where_the_driver_keeps_them_and_they_fit() {
        let named = |driver, config: [(&str, &str); 2], label: &str, description: &str| {
            let session = Session::open(driver, SrUuid::random(), DeviceConfig::from(config)).unwrap();
            session.named(Params { read_only: true, ..Params::default() }, label, description)
        };
        let (files, isos) =
            ([("location", "/srv/sr"), ("x", "")], [("location", "/srv/isos"), ("legacy_mode", "true")]);
        let params = named(&file::DRIVER, files, "web", "a server");
        assert_eq!((params.label.as_str(), params.description.as_str(), params.read_only), ("web", "a server", true));
        let longest = ("l".repeat(Params::LONGEST_LABEL), "d".repeat(Params::LONGEST_DESCRIPTION));
        assert_eq!(named(&file::DRIVER, files, &longest.0, &longest.1).label, longest.0);
        let alone = Params { read_only: true, ..Params::default() };
        assert_eq!(named(&iso::DRIVER, isos, "web", "a server"), alone);
        assert_eq!(named(&file::DRIVER, files, &(longest.0.clone() + "l"), ""), alone);
        assert_eq!(named(&file::DRIVER, files, "", &(longest.1.clone() + "d")), alone);
    }

    #[test]
    fn an_empty_directory_is_an_sr_only_for_an_agent_that_knows_of_no_disks() {
        let scratch = tempfile::tempdir().unwrap();
        let config = DeviceConfig::from([("location", scratch.path().to_str().unwrap())]);
        let session = Session::open(&file::DRIVER, SrUuid::random(), config).unwrap();
        let refused = session.sr_attach_or_adopt(false, &context());
        assert!(matches!(refused, Err(Error::NoSr { .. })), "{refused:?}");
        assert!(std::fs::read_dir(scratch.path()).unwrap().next().is_none(), "a refusal wrote something");
        assert_eq!(session.sr_attach_or_adopt(true, &context()).unwrap(), Done::Changed);
        assert_eq!(session.sr_attach_or_adopt(false, &context()).unwrap(), Done::Already);
    }
}
