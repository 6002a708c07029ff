//! The exit status of each failure; SR API v1.0, "Results".

use std::path::Path;

use crate::error::{Error, Lost, LunFault, ServerFault};
use crate::sys::run_dir;
use crate::types::{Format, Size};
use crate::vdi;

/// The exit status of a failure, and its name.
pub fn exit_status(e: &Error) -> (u8, &'static str) {
    use nix::errno::Errno;
    match e {
        Error::Unsupported { .. }
        | Error::ReadOnlySr { .. }
        | Error::Foreign { .. }
        | Error::NotMaster { .. }
        | Error::IsBase { .. } => (1, "EPERM"),
        Error::TooBig { .. }
        | Error::Oversized { .. }
        | Error::DiskTooBig { .. }
        | Error::TooManyArguments(_)
        | Error::ChainTooLong { .. } => (7, "E2BIG"),
        Error::DeviceInUse { .. }
        | Error::Occupied { .. }
        | Error::HoldsSr { .. }
        | Error::NotEmpty { .. }
        | Error::NotAStore { .. } => (16, "EBUSY"),
        Error::SrExists { .. }
        | Error::VdiExists { .. }
        | Error::NameTaken { .. }
        | Error::Published { .. }
        | Error::TargetExists { .. } => (17, "EEXIST"),
        Error::NoDevice { .. } => (19, "ENODEV"),
        Error::Server { fault, .. } => match fault {
            ServerFault::UnknownName | ServerFault::NoAnswer | ServerFault::Version | ServerFault::NoExport => {
                (19, "ENODEV")
            }
            ServerFault::Denied => (13, "EACCES"),
            ServerFault::Mount => (5, "EIO"),
        },
        Error::NotChosen(choice) if choice.wrong.is_some() => (19, "ENODEV"),
        Error::NotChosen(_) => (22, "EINVAL"),
        Error::Lun { fault, .. } => match fault {
            LunFault::OtherInitiator => (16, "EBUSY"),
            LunFault::NoInitiator => (22, "EINVAL"),
            LunFault::NoDaemon | LunFault::NoDisk | LunFault::NoMultipathd | LunFault::NoMap => (19, "ENODEV"),
            LunFault::Logout | LunFault::Users => (5, "EIO"),
        },
        Error::Encrypted { .. } => (13, "EACCES"),
        Error::Invalid { .. }
        | Error::MissingKey { .. }
        | Error::ExportNotChosen { .. }
        | Error::WouldShrink { .. }
        | Error::Usage(_)
        | Error::HasVdis { .. } => (22, "EINVAL"),
        Error::NoSpace { .. } | Error::PlaceTooSmall { .. } | Error::PoolFull { .. } | Error::StoreFull { .. } => {
            (28, "ENOSPC")
        }
        Error::LockRefused { .. } | Error::Locked { .. } => (37, "ENOLCK"),
        Error::NoSuchCommand { .. } => (42, "ENOMSG"),
        Error::NoSr { .. } | Error::UnknownSr { .. } => (100, "ENOSR"),
        Error::NoVdi { .. } | Error::UnknownVdi { .. } => (101, "ENOVDI"),
        Error::SrUnavailable { .. } | Error::Busy { .. } => (102, "ESRBUSY"),
        Error::VdiInUse { .. } | Error::NotPaused { .. } => (103, "EVDIBUSY"),
        Error::NoBackend { .. } => (104, "ENOBACKEND"),
        Error::BadLine { .. } => (105, "EMODEL"),
        Error::NoMatch { .. } => (106, "ENOMATCH"),
        Error::BadIndex { .. } => (107, "EINDEX"),
        Error::Frozen { .. } => (108, "EFROZEN"),
        Error::StalePlan { .. } => (109, "ESTALEPLAN"),
        Error::PartlyApplied { .. } => (111, "EPARTIAL"),
        Error::HookDenied { .. } => (119, "EHOOKDENY"),
        Error::NoSnapshots { .. } => (120, "ENOSNAP"),
        Error::NotExported { .. } => (121, "EEXPORT"),
        Error::NotVerified { .. } | Error::NoExport { .. } => (122, "EVERIFY"),
        Error::NotCleaned { .. } => (125, "ECLEANUP"),
        Error::NoTarget { .. } => (113, "ENOLIO"),
        Error::ForeignTarget { .. } => (114, "EFOREIGN"),
        Error::WwnClash { .. } => (115, "EWWNCLASH"),
        Error::Drift { .. } => (116, "EDRIFT"),
        Error::Undo { cause, .. } | Error::Incomplete { cause, .. } => exit_status(cause),
        Error::Damaged { .. }
        | Error::NotTracked { .. }
        | Error::ChangesUnknown { .. }
        | Error::ChangesInconsistent { .. }
        | Error::ExportedInPart { .. }
        | Error::NotMerged { .. }
        | Error::NotWhole { .. }
        | Error::Tool { .. } => (5, "EIO"),
        Error::Io { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => (13, "EACCES"),
        Error::Io { .. } | Error::ImageServer { .. } => match e.errno().map(Errno::from_raw) {
            Some(Errno::EACCES | Errno::EPERM | Errno::EROFS) => (13, "EACCES"),
            Some(Errno::ENOSPC | Errno::EDQUOT) => (28, "ENOSPC"),
            _ => (5, "EIO"),
        },
    }
}

/// The options of this door that allow what was refused.
pub fn remedy(e: &Error) -> String {
    match e {
        Error::Occupied { .. } => "; --force overwrites it".to_owned(),
        Error::HoldsSr { held, .. } if held.lost == Lost::Nothing => "; --force overwrites it".to_owned(),
        Error::HoldsSr { held, .. } => format!("; to destroy it, name it: --destroy-sr {}", held.sr),
        Error::NotWhole { mendable, lasting, .. } => {
            let mend = if *mendable > 0 { "; sr_check --repair does it" } else { "" };
            let rescue = "; vdi_export --rescue exports what can be read of a damaged disk";
            format!("{mend}{}", if *lasting > 0 { rescue } else { "" })
        }
        Error::Busy { .. } => "; --wait gives it longer".to_owned(),
        Error::WouldShrink { .. } => "; --allow-shrink allows it".to_owned(),
        Error::DiskTooBig { format: Format::Vhd, .. } => {
            format!("; one made with --type qcow2 holds {}", Size(vdi::layout(Format::Qcow2).largest()))
        }
        Error::Invalid { what: "type", value, .. } if value.parse::<Format>().is_ok() => {
            "; the format of a disk is said by --type".to_owned()
        }
        Error::Io { path, source, .. }
            if source.kind() == std::io::ErrorKind::PermissionDenied
                && is_of_root(path)
                && !run_dir::user().is_root() =>
        {
            format!(
                "; what this host knows by names belongs to root: run sm as root, or set {} to a directory of your own",
                run_dir::VARIABLE
            )
        }
        _ => String::new(),
    }
}

/// Whether a file is one of those that only root writes.
fn is_of_root(path: &Path) -> bool {
    ["/etc/sm", "/var/lib/sm"].iter().any(|dir| path.starts_with(dir))
}
