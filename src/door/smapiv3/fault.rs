//! The answer to a call that failed; SMAPIv3, "Errors". The codes and the texts are those of the SMAPIv1 door, with which clients
//! are written.

use serde_json::json;

use crate::door::smapiv1::choice;
use crate::door::smapiv1::command::Command;
use crate::door::smapiv1::faults::{self, Attempt, Failure};
use crate::error::Error;
use crate::sr::{Driver, Substrate};
use crate::types::Misread;

/// Why a call failed.
#[derive(Debug)]
pub enum Fault {
    Failed(Failure),
    /// Another host has the volume activated, and only that host can do it. xapi asks that host then.
    Elsewhere {
        host: String,
    },
}

impl From<Failure> for Fault {
    fn from(failure: Failure) -> Fault {
        Fault::Failed(failure)
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Fault {
        Fault::Failed(error.into())
    }
}

impl From<Misread> for Fault {
    fn from(misread: Misread) -> Fault {
        Fault::Failed(misread.into())
    }
}

/// The code of a fault, and its three parameters: as xapi makes them of a fault of SMAPIv1, the second is the text, and the third
/// what may be chosen, or nothing. `driver`: that of the SR, if the request named one.
pub fn told(fault: &Fault, driver: Option<&Driver>, command: Command) -> (String, Vec<String>) {
    let command = Some(command);
    let attempt =
        driver.map_or_else(|| Attempt::new(Substrate::Directory, command), |driver| Attempt::of(driver, command));
    let name = driver.map_or("SMB", |driver| driver.about.name);
    match fault {
        Fault::Failed(failure) => {
            let (code, detail) = faults::fault(failure, attempt);
            let words =
                [String::new(), faults::text(name, code, &detail), choice::document(failure).unwrap_or_default()];
            (format!("SR_BACKEND_FAILURE_{}", code as u16), words.into())
        }
        Fault::Elsewhere { host } => {
            ("SR_BACKEND_FAILURE".to_owned(), vec!["Activated_on_another_host".to_owned(), host.clone()])
        }
    }
}

/// The document of a fault.
pub fn document(code: &str, params: &[String], why: &str) -> String {
    json!({ "code": code, "params": params, "backtrace": { "error": why, "files": [], "lines": [] } }).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Protocol, ServerFault};
    use crate::sr;
    use crate::types::SrUuid;

    #[test]
    fn the_text_names_the_file_system() {
        for (sr_type, protocol, message) in [
            ("smb", Protocol::Smb, "SMB mount error"),
            ("cephfs", Protocol::Ceph, "CephFS mount error"),
            ("glusterfs", Protocol::Gluster, "GlusterFS mount error"),
        ] {
            let (server, why) = ("s".to_owned(), "w".to_owned());
            let error = Error::Server { protocol, server, fault: ServerFault::Mount, why };
            let (code, params) = told(&error.into(), sr::driver(sr_type).ok(), Command::SrAttach);
            assert_eq!(code, "SR_BACKEND_FAILURE_111");
            assert!(params[1].starts_with(message), "{}", params[1]);
        }
    }

    #[test]
    fn a_dataset_that_is_not_mounted_has_the_code_of_zfs() {
        let error = Error::SrUnavailable { sr: SrUuid::random(), why: "w".to_owned() };
        assert_eq!(told(&error.into(), sr::driver("zfs").ok(), Command::SrCreate).0, "SR_BACKEND_FAILURE_5000");
    }
}
