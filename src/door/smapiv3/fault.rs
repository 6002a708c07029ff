//! The answer to a call that failed; SMAPIv3, "Errors". The codes and the texts are those of the SMAPIv1 door, with which clients
//! are written.

use serde_json::json;

use crate::door::smapiv1::choice;
use crate::door::smapiv1::faults::{self, Attempt, Failure};
use crate::error::Error;
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
/// what may be chosen, or nothing.
pub fn told(fault: &Fault, attempt: Attempt) -> (String, Vec<String>) {
    match fault {
        Fault::Failed(failure) => {
            let (code, detail) = faults::fault(failure, attempt);
            let words =
                [String::new(), faults::text("SMB", code, &detail), choice::document(failure).unwrap_or_default()];
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
