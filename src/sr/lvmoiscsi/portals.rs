//! Which portals a login takes, what has the disks of sessions, and which LUNs they are.

use crate::error::{Error, LunFault, OfferedLun, one_line};
use crate::sys::blockdev;
use crate::sys::initiator::{Portal, Session};
use crate::sys::iscsiadm::Offer;
use crate::sys::multipath;
use crate::sys::scsidisk::{self, Disk};
use crate::sys::server;

/// Of the portals of a target those that were asked, or those at the same addresses: one host may have its targets at several
/// ports. If the target names other addresses, as behind a translation, the asked portals; of one target among all, its first.
pub fn named(portals: &[Offer], asked: &[Portal], is_one_of_all: bool) -> Vec<Offer> {
    let same: Vec<Offer> = portals.iter().filter(|offer| asked.contains(&offer.portal)).cloned().collect();
    if !same.is_empty() {
        return same;
    }
    let near = |offer: &&Offer| asked.iter().any(|portal| portal.address == offer.portal.address);
    match (portals.iter().filter(near).cloned().collect::<Vec<_>>(), portals.first()) {
        (near, Some(first)) if near.is_empty() && is_one_of_all => vec![first.clone()],
        (near, Some(first)) if near.is_empty() => {
            asked.iter().map(|portal| Offer { portal: portal.clone(), ..first.clone() }).collect()
        }
        (near, _) => near,
    }
}

fn portals_of(offers: &[Offer]) -> Vec<Portal> {
    offers.iter().map(|offer| offer.portal.clone()).collect()
}

/// The portals that take no connection, asked at the same time.
pub fn silent_of(offers: &[Offer]) -> Vec<Portal> {
    std::thread::scope(|scope| {
        let ask = |portal: Portal| {
            let at = std::net::SocketAddr::new(portal.address, portal.port);
            std::net::TcpStream::connect_timeout(&at, server::PATIENCE).is_err().then_some(portal)
        };
        let asked: Vec<_> = portals_of(offers).into_iter().map(|portal| scope.spawn(move || ask(portal))).collect();
        asked.into_iter().filter_map(|asked| asked.join().ok().flatten()).collect()
    })
}

/// The failure of a session that does not end.
pub fn no_logout(iqn: &str, why: String) -> Error {
    Error::Lun { lun: format!("iSCSI target {iqn}"), fault: LunFault::Logout, why }
}

/// What has a disk of these sessions in use, after their maps were removed.
pub fn user_of(sessions: &[Session]) -> Option<String> {
    let all = scsidisk::all();
    let ends = |disk: &&Disk| sessions.iter().any(|it| disk.session == Some(it.id));
    for disk in all.iter().filter(ends) {
        let paths = all.iter().filter(|path| path.scsi_id == disk.scsi_id && !disk.scsi_id.is_empty());
        let all_end = paths.into_iter().all(|path| ends(&path));
        if all_end && let Err(e) = multipath::flush(&disk.scsi_id, true) {
            return Some(one_line(&e));
        }
        // A map that goes on by other paths is no user.
        let is_path = multipath::map_of(&disk.scsi_id).is_some() && !all_end;
        if let Some(who) = blockdev::loser(&disk.node()).filter(|_| !is_path) {
            return Some(format!("{} has {}", who, disk.node().display()));
        }
    }
    None
}

/// The LUNs of disks, each once, without those of this host's own system.
pub fn offered(disks: &[Disk]) -> Vec<OfferedLun> {
    let mut luns: Vec<OfferedLun> = Vec::new();
    for disk in disks.iter().filter(|disk| !scsidisk::carries_root(disk)) {
        let path = disk.node().display().to_string();
        match luns.iter_mut().find(|lun| lun.scsi_id == disk.scsi_id && !lun.scsi_id.is_empty()) {
            Some(lun) => lun.paths.push(path),
            None => luns.push(OfferedLun {
                scsi_id: disk.scsi_id.clone(),
                vendor: disk.vendor.clone(),
                serial: disk.serial.clone(),
                lun: disk.address.lun,
                size: disk.size,
                paths: vec![path],
                at: (disk.address.host, disk.address.channel, disk.address.target),
                driver: scsidisk::driver_of(disk.address.host),
            }),
        }
    }
    luns
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(at: &str) -> Offer {
        Offer { portal: Portal::read(at).unwrap(), group: Some(1), iqn: "iqn.a".to_owned() }
    }

    #[test]
    fn only_the_portals_that_are_named_are_used_and_those_behind_a_translation_too() {
        let portals = [offer("10.0.0.1:3260"), offer("10.0.0.2:3260")];
        let asked = |at: &str| named(&portals, &[Portal::read(at).unwrap()], false);
        assert_eq!(asked("10.0.0.2:3260"), [portals[1].clone()]);
        assert_eq!(asked("10.0.0.1:860"), [portals[0].clone()]);
        let translated = asked("192.0.2.1:860");
        assert_eq!(named(&portals, &[Portal::read("192.0.2.1:860").unwrap()], true), [portals[0].clone()]);
        assert_eq!(translated.len(), 1);
        assert_eq!((translated[0].portal.to_string().as_str(), translated[0].group), ("192.0.2.1:860", Some(1)));
    }

    #[test]
    fn two_paths_of_one_lun_are_offered_once() {
        let disk = |name: &str, id: &str| Disk {
            name: name.to_owned(),
            address: "7:0:0:3".parse().unwrap(),
            scsi_id: id.to_owned(),
            vendor: String::new(),
            serial: String::new(),
            size: 1 << 20,
            state: "running".to_owned(),
            session: Some(1),
        };
        let luns = offered(&[disk("sdx", "3600"), disk("sdy", "3600"), disk("sdz", "")]);
        assert_eq!(luns.len(), 2);
        assert_eq!((luns[0].paths.join(" ").as_str(), luns[0].lun), ("/dev/sdx /dev/sdy", 3));
    }
}
