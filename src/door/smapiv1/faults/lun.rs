//! The faults of LUNs, and the fixed texts of which clients compare every letter.

use crate::door::smapiv1::code::Code;
use crate::error::{Error, LunFault, Protocol};

/// The detail that the Python drivers have where clients compare the text as a whole. What it leaves out is in the log.
pub fn fixed(error: &Error, code: Code) -> Option<&'static str> {
    match (error, code) {
        (Error::MissingKey { .. }, _) if code != Code::ConfigParamsMissing => Some(""),
        (_, Code::ISCSITarget | Code::ISCSIPort | Code::ISCSILogin) => Some(""),
        (_, Code::ConfigTargetIQNMissing | Code::ConfigSCSIid | Code::ConfigISCSIIQNMissing) => Some(""),
        (_, Code::ISCSIDiscovery) => Some("check target settings"),
        (_, Code::ISCSIInitiator) => Some("Daemon already running with target(s) attached using different IQN"),
        (_, Code::ISCSIQueryDaemon) => Some("Failed to logout from target"),
        (Error::Server { protocol: Protocol::Iscsi, .. }, Code::DNSError) => Some(""),
        _ => None,
    }
}

/// The code of what failed on this host's side of the way to a LUN.
pub fn of_lun(fault: LunFault) -> Code {
    match fault {
        LunFault::OtherInitiator => Code::ISCSIInitiator,
        LunFault::NoInitiator => Code::ConfigISCSIIQNMissing,
        LunFault::NoDaemon => Code::ISCSIDaemon,
        LunFault::NoDisk => Code::ISCSIDevice,
        LunFault::Logout => Code::ISCSIQueryDaemon,
        LunFault::Users => Code::LVMRefCount,
        LunFault::NoMultipathd => Code::MultipathdCommsFailure,
        LunFault::NoMap => Code::MultipathMapperPathMissing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::door::smapiv1::command::Command;
    use crate::door::smapiv1::faults::{Attempt, fault, text};
    use crate::error::{NotChosen, Offered, ServerFault};
    use crate::sr::Substrate;
    use crate::sys::server;

    /// Texts of XCP-ng 8.3, "block transports".
    #[test]
    fn the_faults_of_iscsi_have_the_texts_that_clients_compare() {
        let server = |what| server::fault(Protocol::Iscsi, "filer", what, "because".to_owned());
        let lun = |fault| Error::Lun { lun: "x".to_owned(), fault, why: "because".to_owned() };
        let key = |key| Error::MissingKey { key, given: String::new() };
        let bad = |what| Error::Invalid { what, value: "x".to_owned(), expected: "y".to_owned() };
        let chosen = |wrong: Option<&str>, offered| {
            Error::NotChosen(Box::new(NotChosen { key: "x", wrong: wrong.map(str::to_owned), offered }))
        };
        let targets = || Offered::Targets { found: Vec::new(), asked: "filer".to_owned(), port: 3260 };
        let no_iqn = "The request is missing or has an incorrect target IQN parameter";
        let no_id = "The SCSIid parameter is missing or incorrect";
        let not_offered = "ISCSI discovery failed [opterr=check target settings]";
        for (error, number, expected) in [
            (key("target"), 95, "The request is missing the target parameter"),
            (key("targetIQN"), 96, no_iqn),
            (chosen(None, targets()), 96, no_iqn),
            (chosen(Some("iqn.a"), targets()), 83, not_offered),
            (server(ServerFault::NoExport), 83, not_offered),
            (key("SCSIid"), 107, no_id),
            (chosen(Some("3600"), Offered::Luns(Vec::new())), 107, no_id),
            (chosen(None, Offered::Disks { luns: Vec::new(), adapters: Vec::new() }), 107, no_id),
            (server(ServerFault::UnknownName), 140, "Incorrect DNS name, unable to resolve."),
            (server(ServerFault::NoAnswer), 141, "Unable to connect to ISCSI service on target"),
            (bad("port"), 142, "Incorrect value for iSCSI port, must be a number between 1 and 65535"),
            (
                server(ServerFault::Denied),
                68,
                "ISCSI login failed - check access settings for the initiator on the storage, if CHAP is used verify CHAP credentials",
            ),
            (
                lun(LunFault::OtherInitiator),
                70,
                "Failed to set ISCSI initiator [opterr=Daemon already running with target(s) attached using different IQN]",
            ),
            (lun(LunFault::Logout), 86, "Failed to query the iscsi daemon [opterr=Failed to logout from target]"),
            (lun(LunFault::NoInitiator), 97, "Unable to retrieve the host configuration ISCSI IQN parameter"),
        ] {
            let (code, detail) = fault(&error.into(), Attempt::new(Substrate::Lun, Some(Command::SrProbe)));
            assert_eq!((code as u16, text("", code, &detail).as_str()), (number, expected));
        }
    }
}
