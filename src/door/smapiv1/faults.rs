//! The faults: SMAPIv1, "Error codes". xapi raises `SR_BACKEND_FAILURE_<code>`, and its own errors for 16
//! (SR_DEVICE_IN_USE), 24 (VDI_IN_USE), 38 (not implemented), 39 (SR_NOT_EMPTY) and 144 (VDI_MISSING).

use nix::errno::Errno;

use super::command::Command;
use super::xapi::ApiError;
use crate::error::{self, Error};

/// Every code that this door uses; numbers, names and messages are the table's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Code {
    InvalidArg = 1,
    SRInUse = 16,
    InvalidDev = 19,
    VDIInUse = 24,
    LockErr = 37,
    Unimplemented = 38,
    SRNotEmpty = 39,
    SRScan = 40,
    SRExists = 42,
    VDIExists = 43,
    SRNoSpace = 44,
    VDIUnavailable = 46,
    SRUnavailable = 47,
    LVMCreate = 50,
    LVMDelete = 51,
    LVMMount = 52,
    LVMUnMount = 53,
    LVMFilesystem = 57,
    LVMMaster = 58,
    FileSRCreate = 61,
    FileSRDelete = 63,
    VDILoad = 65,
    VDIType = 66,
    VDICreate = 78,
    VDISize = 79,
    VDIDelete = 80,
    VDIClone = 81,
    VDISnapshot = 82,
    ConfigDeviceMissing = 90,
    ConfigDeviceInvalid = 91,
    ConfigLocationMissing = 94,
    ConfigServerPathMissing = 101,
    ConfigServerMissing = 102,
    ConfigServerPathBad = 103,
    SnapshotChainTooLong = 109,
    VDIResize = 110,
    ConfigParamsMissing = 115,
    BadRequest = 143,
    VDIMissing = 144,
    APIProtocolError = 154,
    SMGeneral = 202,
    IllegalXMLChar = 447,
    SharedFileSystemNoWrite = 461,
    GenericException = 1200,
}

impl Code {
    pub const fn message(self) -> &'static str {
        match self {
            Code::InvalidArg => "Invalid argument",
            Code::SRInUse => "The SR device is currently in use",
            Code::InvalidDev => "No such device",
            Code::VDIInUse => "The VDI is currently in use",
            Code::LockErr => "The lock/unlock request failed",
            Code::Unimplemented => "The requested method is not supported/implemented",
            Code::SRNotEmpty => "The SR is not empty",
            // The space at the end is the table's.
            Code::SRScan => "The SR scan failed ",
            Code::SRExists => "The SR already exists",
            Code::VDIExists => "The VDI already exists",
            Code::SRNoSpace => "There is insufficient space",
            Code::VDIUnavailable => "The VDI is not available",
            Code::SRUnavailable => "The SR is not available",
            Code::LVMCreate => "Logical Volume creation error",
            Code::LVMDelete => "Logical Volume deletion error",
            Code::LVMMount => "Logical Volume mount/activate error",
            Code::LVMUnMount => "Logical Volume unmount/deactivate error",
            Code::LVMFilesystem => "Logical Volume filesystem creation error",
            Code::LVMMaster => "Logical Volume request must come from master",
            Code::FileSRCreate => "File SR creation error",
            Code::FileSRDelete => "File SR deletion error",
            Code::VDILoad => "Failed to load VDI",
            Code::VDIType => "Invalid VDI type",
            Code::VDICreate => "VDI Creation failed",
            Code::VDISize => "VDI Invalid size",
            Code::VDIDelete => "Failed to mark VDI hidden",
            Code::VDIClone => "Failed to clone VDI",
            Code::VDISnapshot => "Failed to snapshot VDI",
            Code::ConfigDeviceMissing => "The request is missing the device parameter",
            Code::ConfigDeviceInvalid => "The device is not a valid path",
            Code::ConfigLocationMissing => "The request is missing the location parameter",
            Code::ConfigServerPathMissing => "The request is missing the serverpath parameter",
            Code::ConfigServerMissing => "The request is missing the server parameter",
            Code::ConfigServerPathBad => "The serverpath argument is not valid",
            Code::SnapshotChainTooLong => "The snapshot chain is too long",
            Code::VDIResize => "VDI resize failed",
            Code::ConfigParamsMissing => "Not all required parameters specified.",
            Code::BadRequest => "Failed to parse the request",
            Code::VDIMissing => "VDI could not be found",
            Code::APIProtocolError => "A protocol error was received when accessing the API",
            Code::SMGeneral => "General backend error",
            Code::IllegalXMLChar => "Illegal XML character.",
            Code::SharedFileSystemNoWrite => "The file system for SR cannot be written to.",
            Code::GenericException => "SM has thrown a generic python exception",
        }
    }
}

/// Why a command failed.
#[derive(Debug)]
pub enum Failure {
    /// The door refused it itself.
    Refused(Code, String),
    Driver(Error),
    Api(ApiError),
}

impl Failure {
    pub fn new(code: Code, detail: impl Into<String>) -> Failure {
        Failure::Refused(code, detail.into())
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Driver(error)
    }
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Failure {
        Failure::Api(error)
    }
}

/// The fault that xapi is told: code and detail.
pub fn fault(failure: &Failure, command: Option<Command>) -> (Code, String) {
    let general = command.map_or(Code::SMGeneral, Command::general_fault);
    match failure {
        Failure::Refused(code, detail) => (*code, detail.clone()),
        Failure::Driver(error) => (of_error(error, command, general), error::one_line(error)),
        Failure::Api(error) => {
            let code = match error {
                ApiError::Unreachable(_) | ApiError::Malformed(_) => Code::APIProtocolError,
                ApiError::Refused(_) => general,
            };
            (code, error.to_string())
        }
    }
}

/// The text of a fault: SMAPIv1, "Error codes", "Format".
pub fn text(code: Code, detail: &str) -> String {
    match detail {
        "" => code.message().to_owned(),
        // Uncaught exceptions come bare.
        _ if code == Code::GenericException => detail.to_owned(),
        _ => format!("{} [opterr={detail}]", code.message()),
    }
}

fn of_error(error: &Error, command: Option<Command>, general: Code) -> Code {
    match error {
        Error::MissingKey { key, .. } => match *key {
            "location" => Code::ConfigLocationMissing,
            "device" => Code::ConfigDeviceMissing,
            "server" => Code::ConfigServerMissing,
            "serverpath" => Code::ConfigServerPathMissing,
            _ => Code::ConfigParamsMissing,
        },
        Error::Invalid { what, .. } => match *what {
            "location" | "device" => Code::ConfigDeviceInvalid,
            "serverpath" => Code::ConfigServerPathBad,
            "size" => Code::VDISize,
            "type" => Code::VDIType,
            "VDI-UUID" => Code::VDIUnavailable,
            _ => Code::InvalidArg,
        },
        Error::Usage(_) | Error::TooManyArguments(_) | Error::NoSuchCommand(_) => Code::BadRequest,
        Error::Unsupported { .. } => match command {
            // A disk that can't become smaller, or not at all.
            Some(Command::VdiResize | Command::VdiResizeOnline) => Code::VDISize,
            // Here 38 would be an error of xapi's own that hides the reason.
            _ if general == Code::VDIUnavailable => general,
            _ => Code::Unimplemented,
        },
        Error::TooBig { .. } => Code::VDISize,
        Error::NoSr { .. } | Error::SrUnavailable { .. } => Code::SRUnavailable,
        Error::SrExists { .. } | Error::NotEmpty { .. } => Code::SRExists,
        Error::NoVdi { .. } => Code::VDIUnavailable,
        Error::VdiExists { .. } => Code::VDIExists,
        Error::VdiInUse { .. } => match command {
            Some(Command::SrDetach | Command::SrDelete) => Code::SRInUse,
            _ => Code::VDIInUse,
        },
        Error::ChainTooLong { .. } => Code::SnapshotChainTooLong,
        Error::LockRefused { .. } => Code::LockErr,
        Error::NoDevice { .. } => Code::InvalidDev,
        Error::DeviceInUse { .. } => Code::SRInUse,
        Error::NoSpace { .. } | Error::PoolFull { .. } => Code::SRNoSpace,
        Error::Damaged { .. } if general == Code::VDIUnavailable => Code::VDILoad,
        Error::Damaged { .. } => general,
        Error::Tool { argv, .. } => of_tool(argv.split(' ').next().unwrap_or(""), command).unwrap_or(general),
        Error::Io { source, .. } => match source.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOSPC | Errno::EDQUOT) => Code::SRNoSpace,
            Some(Errno::EROFS) => Code::SharedFileSystemNoWrite,
            _ => general,
        },
        Error::Undo { cause, .. } => of_error(cause, command, general),
    }
}

/// What went wrong with an SR on logical volumes, by the program that failed.
fn of_tool(program: &str, command: Option<Command>) -> Option<Code> {
    match (command?, program) {
        (Command::SrCreate, "vgcreate" | "lvcreate" | "vgchange") => Some(Code::LVMCreate),
        (Command::SrCreate, "mkfs.ext4") => Some(Code::LVMFilesystem),
        (Command::SrDelete, "vgremove" | "pvremove" | "vgchange") => Some(Code::LVMDelete),
        (Command::SrAttach, "lvchange" | "e2fsck") => Some(Code::LVMMount),
        (Command::SrDetach, "lvchange" | "dmsetup") => Some(Code::LVMUnMount),
        _ => None,
    }
}
