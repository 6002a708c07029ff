//! The faults: what xapi is told when a command fails; SMAPIv1, "Error codes".

mod lun;
mod tool;

use nix::errno::Errno;

use self::lun::{fixed, of_lun};
use self::tool::of_tool;
use super::code::Code;
use super::command::Command;
use crate::door::xapi::ApiError;
use crate::error::{self, Error, Offered, Protocol, ServerFault};
use crate::sr::{Driver, SECTORS, Substrate};
use crate::types::Misread;

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

impl From<Misread> for Failure {
    fn from(misread: Misread) -> Failure {
        Failure::Driver(misread.into())
    }
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Failure {
        Failure::Api(error)
    }
}

/// The code of a failure that has none of its own.
pub fn general_fault(command: Command) -> Code {
    match command {
        Command::SrScan => Code::SRScan,
        Command::VdiCreate => Code::VDICreate,
        Command::VdiDelete => Code::VDIDelete,
        Command::VdiAttach
        | Command::VdiDetach
        | Command::VdiActivate
        | Command::VdiDeactivate
        | Command::VdiAttachFromConfig
        | Command::VdiDetachFromConfig
        | Command::VdiIntroduce => Code::VDIUnavailable,
        Command::VdiResize | Command::VdiResizeOnline => Code::VDIResize,
        Command::VdiSnapshot => Code::VDISnapshot,
        Command::VdiClone => Code::VDIClone,
        Command::SrCreate => Code::FileSRCreate,
        Command::SrDelete => Code::FileSRDelete,
        Command::SrGetDriverInfo
        | Command::SrAttach
        | Command::SrDetach
        | Command::SrUpdate
        | Command::SrProbe
        | Command::SrContentType
        | Command::VdiUpdate
        | Command::VdiRevert
        | Command::VdiCompose
        | Command::VdiGenerateConfig
        | Command::VdiEpochBegin
        | Command::VdiEpochEnd
        | Command::VdiDataDestroy => Code::SMGeneral,
        Command::VdiEnableCbt => Code::CBTActivateFailed,
        Command::VdiDisableCbt => Code::CBTDeactivateFailed,
        Command::VdiListChangedBlocks => Code::CBTChangedBlocksError,
    }
}

/// The attempt that failed, as far as the choice of a code depends on it.
#[derive(Clone, Copy)]
pub struct Attempt {
    command: Option<Command>,
    on: Substrate,
    /// Empty if it does not matter.
    sr_type: &'static str,
    /// For failures that have no code of their own.
    general: Code,
}

impl Attempt {
    /// `command`: none if the request was not even understood.
    pub fn new(on: Substrate, command: Option<Command>) -> Attempt {
        let general = match (on, command) {
            (Substrate::NfsExport, Some(Command::SrCreate)) => Code::NFSCreate,
            (Substrate::NfsExport, Some(Command::SrDelete)) => Code::NFSDelete,
            (Substrate::NfsExport, Some(Command::SrDetach)) => Code::NFSUnMount,
            (Substrate::Share, Some(Command::SrCreate)) => Code::SMBCreate,
            (Substrate::Share, Some(Command::SrDelete)) => Code::SMBDelete,
            (Substrate::Share, Some(Command::SrDetach)) => Code::SMBUnMount,
            (Substrate::CdLibrary, Some(Command::SrCreate | Command::SrDelete)) => Code::SMGeneral,
            (Substrate::CdLibrary, Some(Command::SrDetach)) => Code::ISOUnmountFailure,
            (_, Some(command)) => general_fault(command),
            (_, None) => Code::SMGeneral,
        };
        Attempt { command, on, sr_type: "", general }
    }

    /// An attempt of this driver. The Python drivers of some types have codes of their own.
    pub fn of(driver: &Driver, command: Option<Command>) -> Attempt {
        Attempt { sr_type: driver.sr_type, ..Attempt::new(driver.about.substrate, command) }
    }

    fn begins_the_sr(self) -> bool {
        matches!(self.command, Some(Command::SrCreate | Command::SrAttach))
    }

    fn ends_the_sr(self) -> bool {
        matches!(self.command, Some(Command::SrDetach | Command::SrDelete))
    }
}

/// The fault that xapi is told: code and detail.
pub fn fault(failure: &Failure, attempt: Attempt) -> (Code, String) {
    match failure {
        Failure::Refused(code, detail) => (*code, detail.clone()),
        Failure::Driver(error) => {
            let code = of_error(error, attempt);
            (code, fixed(error, code).map_or_else(|| error::one_line(error) + remedy(error), str::to_owned))
        }
        Failure::Api(error) => {
            let code = match error {
                ApiError::Unreachable(_) | ApiError::Malformed(_) => Code::APIProtocolError,
                ApiError::Refused(_) => attempt.general,
            };
            (code, error.to_string())
        }
    }
}

/// The whole reason of a failure of which the fault tells a fixed text only.
pub fn unsaid(failure: &Failure, code: Code) -> Option<String> {
    match failure {
        Failure::Driver(error) if fixed(error, code).is_some() => Some(error::one_line(error)),
        _ => None,
    }
}

/// The remedy of an administrator for a refusal, in words that need no command line of ours; empty if none is known.
fn remedy(error: &Error) -> &'static str {
    match error {
        Error::Occupied { .. } => "; wipe the device first (wipefs), or choose another",
        Error::HoldsSr { .. } => "; destroy that SR first, or choose another device",
        _ => "",
    }
}

/// The text of a fault: SMAPIv1, "Error codes", "Format". `name`: that of the driver, see [`Code::message_of`].
pub fn text(name: &str, code: Code, detail: &str) -> String {
    let message = code.message_of(name);
    match detail {
        "" => message.into_owned(),
        // Uncaught exceptions come bare.
        _ if code == Code::GenericException => detail.to_owned(),
        _ => format!("{message} [opterr={detail}]"),
    }
}

fn of_error(error: &Error, attempt: Attempt) -> Code {
    let Attempt { command, on, sr_type, general } = attempt;
    match error {
        Error::Invalid { what: SECTORS, .. } => Code::LargeBlockIncorrectBlocksize,
        // The dataset is not mounted.
        Error::SrUnavailable { .. } if sr_type == "zfs" && command == Some(Command::SrCreate) => Code::ZFSSRCreate,
        Error::SrUnavailable { .. } if sr_type == "zfs" && command == Some(Command::SrDelete) => Code::ZFSSRDelete,
        Error::MissingKey { key, .. } => match *key {
            "location" => Code::ConfigLocationMissing,
            "device" => Code::ConfigDeviceMissing,
            "server" => Code::ConfigServerMissing,
            "serverpath" => Code::ConfigServerPathMissing,
            "target" => Code::ConfigTargetMissing,
            "targetIQN" => Code::ConfigTargetIQNMissing,
            "SCSIid" => Code::ConfigSCSIid,
            _ => Code::ConfigParamsMissing,
        },
        Error::NotChosen(choice) => match (&choice.offered, &choice.wrong) {
            (Offered::Targets { .. }, None) => Code::ConfigTargetIQNMissing,
            (Offered::Targets { .. }, Some(_)) => Code::ISCSIDiscovery,
            (Offered::Luns(_) | Offered::Disks { .. }, _) => Code::ConfigSCSIid,
        },
        Error::Lun { fault, .. } => of_lun(*fault),
        Error::ExportNotChosen { .. } => Code::ConfigServerPathMissing,
        Error::Invalid { what, .. } => match *what {
            "location" if on == Substrate::CdLibrary => Code::ISOLocationStringError,
            "location" | "device" => Code::ConfigDeviceInvalid,
            "server" if on == Substrate::Share => Code::SMBMount,
            "server" | "target" => Code::DNSError,
            "port" => Code::ISCSIPort,
            "targetIQN" => Code::ConfigTargetIQNMissing,
            "SCSIid" => Code::ConfigSCSIid,
            "serverpath" => Code::ConfigServerPathBad,
            "nfsversion" => Code::NFSVersion,
            "vers" if on == Substrate::Share => Code::SMBMount,
            "vers" => Code::ISOInvalidSMBversion,
            "size" => Code::VDISize,
            "type" => Code::VDIType,
            "VDI-UUID" => Code::VDIUnavailable,
            _ => Code::InvalidArg,
        },
        Error::Usage(_) | Error::TooManyArguments(_) | Error::NoSuchCommand { .. } => Code::BadRequest,
        // 38 would be an error of xapi's own that hides the reason.
        Error::Foreign { .. } | Error::ReadOnlySr { .. } => Code::SRUnavailable,
        Error::NotMaster { .. } => Code::LVMMaster,
        // As the Python drivers: VDIClone also for a snapshot.
        Error::IsBase { .. } => match command {
            Some(Command::VdiSnapshot | Command::VdiClone) => Code::VDIClone,
            _ => Code::VDIUnavailable,
        },
        Error::Unsupported { .. } => match command {
            // A disk that can't become smaller, or not at all.
            Some(Command::VdiResize | Command::VdiResizeOnline) => Code::VDISize,
            // A raw disk, or one that cannot be written to.
            Some(Command::VdiEnableCbt) => Code::VDIType,
            // Here 38 would be an error of xapi's own that hides the reason.
            Some(Command::VdiCompose) => general,
            _ if general == Code::VDIUnavailable => general,
            _ => Code::Unimplemented,
        },
        Error::TooBig { .. } | Error::Oversized { .. } | Error::DiskTooBig { .. } | Error::WouldShrink { .. } => {
            Code::VDISize
        }
        // The only SRs of this type that can be missing are directories of this host.
        Error::NoSr { .. } if on == Substrate::CdLibrary && attempt.begins_the_sr() => Code::ISOLocalPath,
        Error::NoSr { .. } | Error::UnknownSr { .. } | Error::SrUnavailable { .. } | Error::Busy { .. } => {
            Code::SRUnavailable
        }
        Error::HasVdis { .. } => Code::SRNotEmpty,
        Error::SrExists { .. } | Error::NameTaken { .. } | Error::NotEmpty { .. } => Code::SRExists,
        Error::NoVdi { .. } | Error::UnknownVdi { .. } => Code::VDIUnavailable,
        Error::VdiExists { .. } => Code::VDIExists,
        Error::VdiInUse { .. } if attempt.ends_the_sr() => Code::SRInUse,
        Error::VdiInUse { .. } => Code::VDIInUse,
        Error::ChainTooLong { .. } => Code::SnapshotChainTooLong,
        Error::NotTracked { .. } => general,
        Error::ChangesUnknown { .. } => Code::CBTChangedBlocksError,
        Error::ChangesInconsistent { .. } => Code::CBTMetadataInconsistent,
        Error::LockRefused { .. } => Code::LockErr,
        Error::NoDevice { .. } if on == Substrate::Directory && command == Some(Command::SrCreate) => general,
        Error::NoDevice { .. } => Code::InvalidDev,
        Error::Server { protocol, fault, .. } => of_server(*protocol, *fault, on),
        // At a mountpoint: of something else before, of a process after.
        Error::DeviceInUse { .. } | Error::Occupied { .. } | Error::HoldsSr { .. } => match on {
            Substrate::NfsExport if attempt.begins_the_sr() => Code::NFSAttached,
            Substrate::NfsExport if attempt.ends_the_sr() => Code::NFSUnMount,
            Substrate::Share if attempt.begins_the_sr() => Code::SMBAttached,
            Substrate::Share if attempt.ends_the_sr() => Code::SMBUnMount,
            Substrate::CdLibrary if attempt.begins_the_sr() => Code::ISOMountFailure,
            Substrate::CdLibrary if attempt.ends_the_sr() => Code::ISOUnmountFailure,
            _ => Code::SRInUse,
        },
        Error::NoSpace { .. } | Error::PlaceTooSmall { .. } | Error::PoolFull { .. } => Code::SRNoSpace,
        Error::Damaged { .. } if general == Code::VDIUnavailable => Code::VDILoad,
        Error::Damaged { .. } | Error::NotMerged { .. } | Error::NotWhole { .. } | Error::NotPaused { .. } => general,
        // Of people's commands.
        Error::ExportedInPart { .. }
        | Error::BadLine { .. }
        | Error::NoBackend { .. }
        | Error::NoMatch { .. }
        | Error::BadIndex { .. }
        | Error::Frozen { .. }
        | Error::StalePlan { .. }
        | Error::PartlyApplied { .. } => general,
        // SMAPIv1 has no backups.
        Error::Locked { .. }
        | Error::NoExport { .. }
        | Error::NotVerified { .. }
        | Error::Encrypted { .. }
        | Error::NotExported { .. }
        | Error::NotCleaned { .. }
        | Error::NoSnapshots { .. }
        | Error::HookDenied { .. }
        | Error::StoreFull { .. }
        | Error::NotAStore { .. } => general,
        // Nor targets.
        Error::NoTarget { .. }
        | Error::ForeignTarget { .. }
        | Error::WwnClash { .. }
        | Error::Published { .. }
        | Error::TargetExists { .. }
        | Error::Drift { .. } => general,
        Error::Tool { argv, .. } => of_tool(argv.split(' ').next().unwrap_or(""), command).unwrap_or(general),
        Error::Io { .. } | Error::ImageServer { .. } => match error.errno().map(Errno::from_raw) {
            Some(Errno::ENOSPC | Errno::EDQUOT) => Code::SRNoSpace,
            Some(Errno::EROFS) => Code::SharedFileSystemNoWrite,
            // Root may do anything, except where a server does not take it for root.
            Some(Errno::EACCES | Errno::EPERM)
                if matches!(on, Substrate::NfsExport | Substrate::Share | Substrate::CdLibrary) =>
            {
                Code::SharedFileSystemNoWrite
            }
            _ => general,
        },
        Error::Undo { cause, .. } | Error::Incomplete { cause, .. } => of_error(cause, attempt),
    }
}

fn of_server(protocol: Protocol, fault: ServerFault, on: Substrate) -> Code {
    match (protocol, fault) {
        (_, ServerFault::UnknownName) => Code::DNSError,
        (Protocol::Iscsi, ServerFault::NoAnswer) => Code::ISCSITarget,
        (Protocol::Iscsi, ServerFault::Denied) => Code::ISCSILogin,
        (Protocol::Iscsi, _) => Code::ISCSIDiscovery,
        (Protocol::Nfs, ServerFault::NoAnswer) => Code::NFSTarget,
        (Protocol::Nfs, ServerFault::Version) => Code::NFSVersion,
        (_, ServerFault::NoExport | ServerFault::Denied) if on == Substrate::CdLibrary => Code::ISOSharenameFailure,
        (_, ServerFault::Mount | ServerFault::NoAnswer | ServerFault::Version) if on == Substrate::CdLibrary => {
            Code::ISOMountFailure
        }
        (Protocol::Nfs, ServerFault::NoExport | ServerFault::Denied | ServerFault::Mount) => Code::NFSMount,
        (Protocol::Smb | Protocol::Ceph | Protocol::Gluster | Protocol::Moose, _) => Code::SMBMount,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{HeldSr, Lost};
    use crate::sr;
    use crate::sys::server;
    use crate::types::{Format, SrUuid, VdiUuid};

    fn attempt(sr_type: &str, command: Command) -> Attempt {
        Attempt::of(sr::driver(sr_type).unwrap(), Some(command))
    }

    fn code(error: Error, sr_type: &str, command: Command) -> u16 {
        fault(&error.into(), attempt(sr_type, command)).0 as u16
    }

    #[test]
    fn what_a_server_does_has_the_codes_of_its_sr_type() {
        use Protocol::*;
        use ServerFault::*;
        for what in [NoAnswer, Version, NoExport, Denied, Mount] {
            let error = server::fault(Smb, "filer", what, "because".to_owned());
            assert_eq!(code(error, "smb", Command::SrAttach), 111, "{what:?}");
        }
        for (protocol, what, nfs, iso) in [
            (Nfs, UnknownName, 140, 140),
            (Nfs, NoAnswer, 108, 108),
            (Nfs, Version, 72, 72),
            (Nfs, NoExport, 73, 224),
            (Nfs, Denied, 73, 224),
            (Nfs, Mount, 73, 222),
            (Smb, UnknownName, 140, 140),
            (Smb, NoAnswer, 111, 222),
            (Smb, Version, 111, 222),
            (Smb, NoExport, 111, 224),
            (Smb, Denied, 111, 224),
            (Smb, Mount, 111, 222),
        ] {
            for (sr_type, expected) in [("nfs", nfs), ("iso", iso)] {
                let error = server::fault(protocol, "filer", what, "because".to_owned());
                assert_eq!(code(error, sr_type, Command::SrAttach), expected, "{protocol} {what:?} {sr_type}");
            }
        }
    }

    #[test]
    fn a_mountpoint_in_use_and_an_export_that_cannot_be_written_have_them_too() {
        let busy = || Error::DeviceInUse { device: "/m".to_owned(), holder: "somebody".to_owned() };
        assert_eq!(code(busy(), "nfs", Command::SrAttach), 75);
        assert_eq!(code(busy(), "nfs", Command::SrDetach), 74);
        assert_eq!(code(busy(), "iso", Command::SrDetach), 223);
        assert_eq!(code(busy(), "smb", Command::SrAttach), 113);
        assert_eq!(code(busy(), "smb", Command::SrDetach), 112);
        assert_eq!(code(busy(), "lvm", Command::SrCreate), 16);
        let io = |errno: Errno| Error::Io { op: "create", path: "/m".into(), source: errno.into() };
        for (errno, nfs, file) in [(Errno::EROFS, 461, 461), (Errno::EACCES, 461, 61), (Errno::EIO, 88, 61)] {
            assert_eq!(code(io(errno), "nfs", Command::SrCreate), nfs);
            assert_eq!(code(io(errno), "file", Command::SrCreate), file);
        }
        assert_eq!(code(io(Errno::EIO), "nfs", Command::SrDelete), 76);
    }

    #[test]
    fn a_full_filesystem_that_an_image_server_met_is_no_space() {
        let full = |errno: Errno| Error::ImageServer {
            attempt: "cannot use the image server at /run/sm/datapath/7.sock".to_owned(),
            errno: Some(errno as i32),
            why: "cannot write /sr/1.vhd".to_owned(),
        };
        for sr_type in ["file", "ext", "nfs"] {
            assert_eq!(code(full(Errno::ENOSPC), sr_type, Command::VdiSnapshot), 44);
            assert_eq!(code(full(Errno::EDQUOT), sr_type, Command::VdiSnapshot), 44);
            assert_eq!(code(full(Errno::EIO), sr_type, Command::VdiSnapshot), 82);
        }
    }

    fn said(error: Error, sr_type: &str, command: Command) -> String {
        let (code, detail) = fault(&error.into(), attempt(sr_type, command));
        text(sr::driver(sr_type).unwrap().about.name, code, &detail)
    }

    #[test]
    fn a_share_is_called_by_the_name_of_its_type() {
        let busy = || Error::DeviceInUse { device: "/m".to_owned(), holder: "somebody".to_owned() };
        for (sr_type, name, protocol) in [
            ("smb", "SMB", Protocol::Smb),
            ("cephfs", "CephFS", Protocol::Ceph),
            ("glusterfs", "GlusterFS", Protocol::Gluster),
            ("moosefs", "MooseFS", Protocol::Moose),
        ] {
            let silent = server::fault(protocol, "filer", ServerFault::NoAnswer, "because".to_owned());
            assert!(said(silent, sr_type, Command::SrAttach).starts_with(&format!("{name} mount error [opterr=")));
            assert!(
                said(busy(), sr_type, Command::SrAttach).starts_with(&format!("{name} mount point already attached"))
            );
        }
    }

    #[test]
    fn zfs_and_large_sectors_have_the_codes_of_their_python_drivers() {
        let away = || Error::SrUnavailable { sr: SrUuid::random(), why: "not mounted".to_owned() };
        for (command, zfs) in [(Command::SrCreate, 5000), (Command::SrDelete, 5001), (Command::SrScan, 47)] {
            assert_eq!(code(away(), "zfs", command), zfs);
            assert_eq!(code(away(), "xfs", command), 47);
        }
        let small = Error::Invalid { what: SECTORS, value: "/dev/sdb".to_owned(), expected: "4,096".to_owned() };
        let text = said(small, "largeblock", Command::SrCreate);
        assert!(text.starts_with("Blocksize isn't compatible with the driver [opterr="), "{text}");
    }

    #[test]
    fn a_missing_key_is_said_by_the_message_alone() {
        let missing = |key| Error::MissingKey { key, given: "x".to_owned() };
        for (key, message) in [
            ("device", "The request is missing the device parameter"),
            ("location", "The request is missing the location parameter"),
            ("server", "The request is missing the server parameter"),
            ("serverpath", "The request is missing the serverpath parameter"),
        ] {
            assert_eq!(said(missing(key), "lvm", Command::SrProbe), message);
        }
        let other = said(missing("username"), "iso", Command::SrCreate);
        assert!(other.ends_with("[opterr=device_config lacks the key username; it has x]"), "{other}");
    }

    #[test]
    fn no_fault_names_an_option_of_a_command_line() {
        let (sr, vdi) = (SrUuid::random(), VdiUuid::random());
        let device = || "/dev/sdb".to_owned();
        let held = HeldSr { sr, group: "a group".to_owned(), on: Vec::new(), lost: Lost::Nothing };
        for (error, expected) in [
            (Error::Busy { sr, holder: "sr_scan".to_owned(), what: "it".to_owned() }, "sr_scan works on it"),
            (Error::WouldShrink { vdi, now: 2 << 30, wanted: 1 << 30 }, "making it 1GiB would destroy the data"),
            (
                Error::DiskTooBig { format: Format::Vhd, bytes: 3 << 40, largest: 2040 << 30 },
                "vhd holds 2040GiB at most",
            ),
            (Error::Occupied { device: device(), holds: "ext4".to_owned() }, "wipe the device first"),
            (Error::HoldsSr { device: device(), held: Box::new(held) }, "destroy that SR first"),
        ] {
            let text = said(error, "ext", Command::SrCreate);
            assert!(text.contains(expected) && !text.contains("--"), "{text}");
        }
    }

    #[test]
    fn a_base_and_a_directory_that_cannot_be_have_the_codes_of_the_python_drivers() {
        let base = || Error::IsBase { op: "it", vdi: VdiUuid::random() };
        for (command, expected) in [
            (Command::VdiSnapshot, 81),
            (Command::VdiClone, 81),
            (Command::VdiResize, 46),
            (Command::VdiResizeOnline, 46),
        ] {
            assert_eq!(code(base(), "file", command), expected, "{command:?}");
        }
        let missing = || Error::NoDevice { device: "/a/b".to_owned(), why: "No such file or directory".to_owned() };
        assert_eq!(code(missing(), "file", Command::SrCreate), 61);
        assert_eq!(code(missing(), "file", Command::SrAttach), 19);
        assert_eq!(code(missing(), "lvm", Command::SrCreate), 19);
    }

    #[test]
    fn a_choice_has_the_code_of_its_key() {
        let exports = Error::ExportNotChosen { server: "filer".to_owned(), exports: Vec::new() };
        assert_eq!(code(exports, "nfs", Command::SrProbe), 101);
    }
}
