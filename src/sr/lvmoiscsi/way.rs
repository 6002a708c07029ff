//! The way to a LUN by iSCSI: which portals, login, the LUN among the disks that come, logout.
//!
//! Order of steps, under the lock of the target but for the discovery:
//!
//! - **open**: 1. discovery; 2. the SR becomes a user of the target; 3. each portal is written down, then logged in at; 4. the
//!   kernel looks for disks. After a kill the SR is a user: sr_attach goes on, sr_detach does what close does.
//! - **close**: 1. the SR is a user no more; 2. if there is none left, the map is removed, 3. sessions that this package opened are ended, their
//!   records removed, and 4. the portals forgotten. After any: sr_detach of an SR by this target does the rest.
//!
//! A session that somebody else opened is used and not ended. One that has a disk in use by something that is no SR is not ended
//! either; the log says so.

use std::collections::BTreeMap;
use std::time::Duration;

use super::portals::{named, no_logout, offered, silent_of, user_of};
use super::target::{ANY, Target};
use super::users;
use crate::context::Deadline;
use crate::error::{Error, NotChosen, Offered, OfferedTarget, Protocol, Result, ServerFault, ended, one_line};
use crate::sr::lun::{Lun, Transport};
use crate::sys::initiator::{self, Portal, Session};
use crate::sys::iscsiadm::{self, Offer, Refusal};
use crate::sys::lock::{self, Kind, Lock};
use crate::sys::scsidisk::{self, Disk};
use crate::sys::server;
use crate::sys::syslog;
use crate::sys::watch::Pulse;
use crate::types::{Done, SrInfo, SrUuid};

/// How long the kernel tries to get a lost session back before I/O fails: with several paths, another one takes over.
const PATIENCE_ALONE: Duration = Duration::from_secs(144);
const PATIENCE_OF_MANY: Duration = Duration::from_secs(15);

/// The way to a LUN, or to those of a target.
pub struct Way {
    pub target: Target,
    /// `None`: sr_probe looks for those that there are.
    pub lun: Option<Lun>,
    pub deadline: Deadline,
}

/// The portals to log in at, by the names of targets.
type Chosen = BTreeMap<String, Vec<Offer>>;

impl Way {
    fn failed(&self, fault: ServerFault, why: String) -> Error {
        server::fault(Protocol::Iscsi, &self.target.hosts.join(","), fault, why)
    }

    /// The failure of `iscsiadm` in the words of a target.
    fn refused(&self, e: Error) -> Error {
        let fault = match iscsiadm::refusal(&e) {
            Refusal::Denied => ServerFault::Denied,
            Refusal::Silent => ServerFault::NoAnswer,
            Refusal::Nothing | Refusal::Other => ServerFault::NoExport,
        };
        match e {
            Error::Tool { .. } => self.failed(fault, one_line(&e)),
            other => other,
        }
    }

    fn alone(&self, iqn: &str) -> Result<Lock> {
        lock::take("iscsi", iqn, Kind::Exclusive, self.deadline.end()).map_err(|refused| {
            refused.or_timed_out(|who| Error::Locked {
                what: format!("the iSCSI target {iqn}"),
                holder: who.to_owned(),
                remedy: String::new(),
            })
        })
    }

    /// An address of each host that answers.
    fn answering(&self) -> Result<Vec<Portal>> {
        let port = self.target.port;
        let (mut found, mut last) = (Vec::new(), None);
        for host in &self.target.hosts {
            let connect =
                |address| std::net::TcpStream::connect_timeout(&address, server::PATIENCE).map(|_| address.ip());
            match server::ask(Protocol::Iscsi, host, port, connect) {
                Ok(address) => found.push(Portal { address, port }),
                Err(e) => last = Some(e),
            }
        }
        match last {
            Some(e) if found.is_empty() => Err(e),
            _ => Ok(found),
        }
    }

    /// What the hosts offer that answer.
    fn offers(&self, answering: &[Portal]) -> Result<Vec<Offer>> {
        let chap = self.target.secrets()?;
        let (mut found, mut last): (Vec<Offer>, _) = (Vec::new(), None);
        for portal in answering {
            match iscsiadm::discover(portal, &chap) {
                Ok(offers) => found.extend(offers),
                Err(e) if iscsiadm::refusal(&e) == Refusal::Nothing => {}
                Err(e) => last = Some(self.refused(e)),
            }
        }
        match last {
            Some(e) if found.is_empty() => Err(e),
            _ => Ok(found),
        }
    }

    /// The portals to log in at. With a name that is missing or not offered, the failure has those that are.
    fn choose(&self) -> Result<Chosen> {
        let answering = self.answering()?;
        let offers = self.offers(&answering)?;
        let wanted = self.target.iqn.as_deref();
        let mut chosen: Chosen = BTreeMap::new();
        for offer in offers.iter().filter(|offer| wanted == Some(ANY) || wanted == Some(&offer.iqn)) {
            let portals = chosen.entry(offer.iqn.clone()).or_default();
            if !portals.iter().any(|it| it.portal == offer.portal) {
                portals.push(offer.clone());
            }
        }
        if chosen.is_empty() {
            let found = offers.into_iter().map(|offer| OfferedTarget {
                address: offer.portal.address.to_string(),
                port: offer.portal.port,
                iqn: offer.iqn,
            });
            return Err(Error::NotChosen(Box::new(NotChosen {
                key: "targetIQN",
                wrong: wanted.map(str::to_owned),
                offered: Offered::Targets {
                    found: found.collect(),
                    asked: self.target.hosts.join(","),
                    port: self.target.port,
                },
            })));
        }
        if !self.target.multihomed {
            for portals in chosen.values_mut() {
                *portals = named(portals, &answering, wanted == Some(ANY));
            }
        }
        Ok(chosen)
    }

    /// Logs in at the portals of a target that answer and have no session yet: those at which this call logged in.
    fn log_in(&self, iqn: &str, portals: &[Offer]) -> Result<Vec<Portal>> {
        let there = initiator::sessions();
        let has = |portal: &Portal| there.iter().any(|it| it.iqn == iqn && it.portal.as_ref() == Some(portal));
        let patience = if self.target.multihomed { PATIENCE_OF_MANY } else { PATIENCE_ALONE };
        let chap = self.target.secrets()?;
        let (mut new, mut tried, mut last) = (Vec::new(), Vec::new(), None);
        let silent = silent_of(portals);
        for offer in portals.iter().filter(|offer| !has(&offer.portal)) {
            if silent.contains(&offer.portal) {
                last = Some(self.failed(ServerFault::NoAnswer, format!("{} takes no connection", offer.portal)));
                continue;
            }
            let mut ours = users::portals(iqn)?;
            if !ours.contains(&offer.portal) {
                ours.push(offer.portal.clone());
                users::write_portals(iqn, &ours)?;
            }
            tried.push(offer.portal.clone());
            match iscsiadm::login(offer, &chap, patience) {
                Ok(()) => new.push(offer.portal.clone()),
                Err(e) => {
                    let refusal = iscsiadm::refusal(&e);
                    let e = self.refused(e);
                    if refusal != Refusal::Silent {
                        return Err(e.undone(self.log_out(iqn, &[new, vec![offer.portal.clone()]].concat())));
                    }
                    last = Some(e);
                }
            }
        }
        let has_session = initiator::sessions().iter().any(|it| it.iqn == iqn && it.is_logged_in());
        match last {
            // A session that was there before is another SR's, even if it has no connection just now.
            Some(e) if !has_session => Err(e.undone(self.log_out(iqn, &tried))),
            _ => Ok(new),
        }
    }

    /// Ends the sessions with a target at these portals, if this package opened them and nothing but SRs has their disks.
    fn log_out(&self, iqn: &str, portals: &[Portal]) -> Result<()> {
        let ours = users::portals(iqn)?;
        let goes = |portal: &Portal| ours.contains(portal) && portals.contains(portal);
        let of_portal = |it: &Session| it.iqn == iqn && it.portal.as_ref().is_some_and(goes);
        let ending: Vec<Session> = initiator::sessions().into_iter().filter(of_portal).collect();
        if let Some(user) = user_of(&ending) {
            syslog::write(&format!("the session with the iSCSI target {iqn} stays: {user}"));
            return Ok(());
        }
        for session in &ending {
            iscsiadm::logout(session.id).map_err(|e| no_logout(iqn, one_line(&e)))?;
        }
        if let Some(stays) = initiator::sessions().into_iter().find(|it| ending.iter().any(|ended| ended.id == it.id)) {
            return Err(no_logout(iqn, format!("session {} is there still, {}", stays.id, stays.state)));
        }
        for portal in portals.iter().filter(|portal| goes(portal)) {
            iscsiadm::forget(iqn, portal);
        }
        let left: Vec<Portal> = ours.iter().filter(|it| !portals.contains(it)).cloned().collect();
        if left.is_empty() && !users::has_any(iqn)? {
            return users::forget(iqn);
        }
        if left == ours { Ok(()) } else { users::write_portals(iqn, &left) }
    }

    /// The disks of the sessions with a target; if the LUN is not among them, the kernel looks for more.
    fn disks(&self, iqn: &str) -> Vec<Disk> {
        let listed = || {
            let sessions = initiator::sessions().into_iter().filter(|it| it.iqn == iqn && it.is_logged_in());
            let sessions: Vec<Session> = sessions.collect();
            let is_of = |disk: &Disk| sessions.iter().any(|it| disk.session == Some(it.id));
            let disks: Vec<Disk> = scsidisk::all().into_iter().filter(is_of).collect();
            (sessions, disks)
        };
        let (sessions, disks) = listed();
        let is_it = |disk: &Disk| self.lun.as_ref().is_some_and(|lun| disk.scsi_id == lun.scsi_id);
        // Each session has a disk of it.
        if sessions.iter().all(|session| disks.iter().any(|disk| disk.session == Some(session.id) && is_it(disk))) {
            return disks;
        }
        let hosts: Vec<u32> = sessions.iter().filter_map(|session| session.host).collect();
        scsidisk::scan_hosts(&hosts);
        scsidisk::settle(&hosts);
        listed().1
    }

    /// Ends what the SR has of a target, if no other SR needs it.
    fn leave(&self, iqn: &str, sr: SrUuid) -> Result<Done> {
        let was = users::remove(iqn, sr)?;
        if !users::has_any(iqn)? {
            self.log_out(iqn, &users::portals(iqn)?)?;
        }
        Ok(if was { Done::Changed } else { Done::Already })
    }

    /// Opens the way to one target. `false`: it has no such LUN, and `seen` gets those that it has.
    fn enter(&self, iqn: &str, portals: &[Offer], sr: SrUuid, seen: &mut Vec<Disk>) -> Result<bool> {
        let _alone = self.alone(iqn)?;
        if !users::is_known(iqn)? {
            // Sessions that a storage manager opened are ended with their last user, whoever that is. Those without such a
            // user are the administrator's.
            let has_users = users::has_any(iqn)?;
            let there = initiator::sessions().into_iter().filter(|it| has_users && it.iqn == iqn);
            users::write_portals(iqn, &there.filter_map(|it| it.portal).collect::<Vec<_>>())?;
        }
        let added = users::add(iqn, sr)?;
        let found = self.log_in(iqn, portals).map(|_| self.disks(iqn)).map(|disks| {
            let is_there = disks.iter().any(|disk| self.lun.as_ref().is_some_and(|lun| disk.scsi_id == lun.scsi_id));
            seen.extend(disks);
            is_there
        });
        match found {
            Ok(true) => Ok(true),
            found if added => ended(found, self.leave(iqn, sr).map(drop)),
            found => found,
        }
    }

    /// The failure of a LUN that is not there, with those that are.
    fn no_lun(&self, seen: &[Disk]) -> Error {
        Error::NotChosen(Box::new(NotChosen {
            key: "SCSIid",
            wrong: self.lun.as_ref().map(|lun| lun.scsi_id.clone()),
            offered: Offered::Luns(offered(seen)),
        }))
    }

    /// Does `work` with the disks of each target that is offered, and ends the sessions that this call opened.
    fn visit<A>(&self, work: &mut dyn FnMut(&[Disk]) -> Result<Option<A>>) -> Result<Option<A>> {
        initiator::prepare(self.target.initiator.as_deref())?;
        for (iqn, portals) in self.choose()? {
            let _alone = self.alone(&iqn)?;
            let was_known = users::is_known(&iqn)?;
            let done = self.log_in(&iqn, &portals).and_then(|opened| {
                let done = work(&self.disks(&iqn));
                ended(done, self.log_out(&iqn, &opened))
            });
            // With users of another storage manager, whose sessions were not looked at.
            let forgotten = match was_known || !users::portals(&iqn)?.is_empty() {
                true => Ok(()),
                false => users::forget(&iqn),
            };
            if let Some(answer) = ended(done, forgotten)? {
                return Ok(Some(answer));
            }
        }
        Ok(None)
    }

    /// The LUNs that the targets have, as a failure that has them to choose from.
    ///
    /// # Errors
    /// Always: [`Error::NotChosen`], or what keeps the LUNs from being seen.
    pub fn luns(&self) -> Result<Vec<SrInfo>> {
        let mut seen = Vec::new();
        self.visit::<()>(&mut |disks| {
            seen.extend_from_slice(disks);
            Ok(None)
        })?;
        Err(self.no_lun(&seen))
    }

    /// Whether a path to the LUN takes I/O, by a session with the target.
    fn is_running(&self) -> bool {
        let sessions: Vec<u32> =
            self.own_sessions().into_iter().filter(Session::is_logged_in).map(|it| it.id).collect();
        let is_path = |disk: &Disk| disk.is_running() && disk.session.is_some_and(|it| sessions.contains(&it));
        self.lun.as_ref().is_some_and(|lun| lun.paths().iter().any(is_path))
    }

    fn own_sessions(&self) -> Vec<Session> {
        let wanted = self.target.iqn.as_deref().unwrap_or(ANY);
        initiator::sessions().into_iter().filter(|it| wanted == ANY || it.iqn == wanted).collect()
    }
}

impl Transport for Way {
    fn sessions(&self) -> Option<usize> {
        Some(self.own_sessions().iter().filter(|session| session.is_logged_in()).count())
    }

    fn location(&self) -> String {
        let port = if self.target.port == 3260 { String::new() } else { format!(":{}", self.target.port) };
        let bracketed = |host: &String| match host.contains(':') && !port.is_empty() {
            true => format!("[{host}]{port}"),
            false => format!("{host}{port}"),
        };
        let hosts: Vec<String> = self.target.hosts.iter().map(bracketed).collect();
        let lun = self.lun.as_ref().map_or("", |lun| &lun.scsi_id);
        format!("iscsi@{}/{}/{lun}", hosts.join(","), self.target.iqn.as_deref().unwrap_or(""))
    }

    fn is_open(&self, sr: SrUuid) -> Result<bool> {
        users::targets_of(sr).map(|targets| !targets.is_empty())
    }

    fn open(&self, sr: SrUuid) -> Result<Done> {
        let was_open = self.is_open(sr)?;
        let is_running = self.is_running();
        if was_open && is_running && !self.target.multihomed {
            return Ok(Done::Already);
        }
        initiator::prepare(self.target.initiator.as_deref())?;
        let chosen = match self.choose() {
            Ok(chosen) => chosen,
            // A portal is away, and another has the LUN.
            Err(_) if is_running => {
                let there = self.own_sessions().into_iter().filter(Session::is_logged_in);
                there.map(|it| (it.iqn, Vec::new())).collect()
            }
            Err(e) => return Err(e),
        };
        let (mut seen, mut found, mut last) = (Vec::new(), Vec::new(), None);
        for (iqn, portals) in chosen {
            match self.enter(&iqn, &portals, sr, &mut seen) {
                Ok(true) => found.push(iqn),
                Ok(false) => {}
                // A target of several that is away does not count where another has the LUN.
                Err(e @ Error::Server { fault: ServerFault::NoAnswer | ServerFault::NoExport, .. }) => last = Some(e),
                Err(e) if was_open => return Err(e),
                Err(e) => return Err(e.undone(self.close(sr).map(drop))),
            }
            if !found.is_empty() && !self.target.multihomed {
                break;
            }
        }
        match (found.is_empty(), last) {
            (false, _) => Ok(if was_open { Done::Already } else { Done::Changed }),
            (true, Some(e)) => Err(e),
            (true, None) => Err(self.no_lun(&seen)),
        }
    }

    fn close(&self, sr: SrUuid) -> Result<Done> {
        let mut done = Done::Already;
        let mut targets = users::targets_of(sr)?;
        // A call that was killed left sessions without users.
        let wanted = self.target.iqn.as_deref().unwrap_or(ANY);
        targets.extend(users::opened_targets().into_iter().filter(|it| wanted == ANY || wanted == it));
        targets.sort_unstable();
        targets.dedup();
        for iqn in targets {
            let _alone = self.alone(&iqn)?;
            if self.leave(&iqn, sr)? == Done::Changed {
                done = Done::Changed;
            }
        }
        Ok(done)
    }

    fn while_open(&self, work: &dyn Fn() -> Result<Vec<SrInfo>>) -> Result<Vec<SrInfo>> {
        let mut seen = Vec::new();
        let found = self.visit(&mut |disks| {
            seen.extend_from_slice(disks);
            let is_there = disks.iter().any(|disk| self.lun.as_ref().is_some_and(|lun| disk.scsi_id == lun.scsi_id));
            if is_there { work().map(Some) } else { Ok(None) }
        })?;
        found.ok_or_else(|| self.no_lun(&seen))
    }

    fn trouble(&self) -> Option<String> {
        let lun = self.lun.as_ref()?;
        let paths = lun.paths();
        if paths.iter().any(Disk::is_running) {
            return None;
        }
        let sessions = self.own_sessions();
        let hosts = self.target.hosts.join(",");
        Some(match (sessions.iter().find(|it| !it.is_logged_in()).or(sessions.first()), paths.first()) {
            (None, _) => format!("this host has no session with its iSCSI target at {hosts}; sr_attach logs in"),
            (Some(session), _) if !session.is_logged_in() => format!(
                "its iSCSI target {} at {hosts} does not answer (session {} is {})",
                session.iqn, session.id, session.state
            ),
            (Some(session), None) => {
                format!("its iSCSI target {} has no LUN {} any more; sr_attach looks for it", session.iqn, lun.scsi_id)
            }
            (Some(_), Some(path)) => format!("the disk {} of its LUN is {}", path.name, path.state),
        })
    }

    fn pulse(&self) -> Option<Pulse> {
        let (hosts, port) = (self.target.hosts.clone(), self.target.port);
        Some(Box::new(move || {
            let mut said = Ok(());
            for host in &hosts {
                said = server::listens(Protocol::Iscsi, host, port);
                if said.is_ok() {
                    break;
                }
            }
            said
        }))
    }
}
