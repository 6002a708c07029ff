//! The codes of failures: numbers, names and messages of SMAPIv1, "Error codes". xapi raises `SR_BACKEND_FAILURE_<code>`, and
//! errors of its own for 16 (SR_DEVICE_IN_USE), 24 (VDI_IN_USE), 38 (not implemented), 39 (SR_NOT_EMPTY) and 144
//! (VDI_MISSING).

use std::borrow::Cow;

/// Every code that this door uses; numbers, names and messages are the table's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Code {
    InvalidArg = 1,
    SRInUse = 16,
    InvalidDev = 19,
    InvalidSecret = 20,
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
    NFSVersion = 72,
    NFSMount = 73,
    NFSUnMount = 74,
    NFSAttached = 75,
    NFSDelete = 76,
    VDICreate = 78,
    VDISize = 79,
    VDIDelete = 80,
    VDIClone = 81,
    VDISnapshot = 82,
    NFSCreate = 88,
    ConfigDeviceMissing = 90,
    ConfigDeviceInvalid = 91,
    ConfigLocationMissing = 94,
    ConfigServerPathMissing = 101,
    ConfigServerMissing = 102,
    ConfigServerPathBad = 103,
    NFSTarget = 108,
    SnapshotChainTooLong = 109,
    VDIResize = 110,
    SMBMount = 111,
    SMBUnMount = 112,
    SMBAttached = 113,
    SMBDelete = 114,
    ConfigParamsMissing = 115,
    SMBCreate = 116,
    DNSError = 140,
    BadRequest = 143,
    VDIMissing = 144,
    APIProtocolError = 154,
    SMGeneral = 202,
    ISOMountFailure = 222,
    ISOUnmountFailure = 223,
    ISOSharenameFailure = 224,
    ISOLocationStringError = 225,
    ISOLocalPath = 226,
    ISOInvalidSMBversion = 227,
    IllegalXMLChar = 447,
    CBTActivateFailed = 457,
    CBTDeactivateFailed = 458,
    CBTMetadataInconsistent = 459,
    CBTChangedBlocksError = 460,
    SharedFileSystemNoWrite = 461,
    GenericException = 1200,
    ZFSSRCreate = 5000,
    ZFSSRDelete = 5001,
    LargeBlockIncorrectBlocksize = 5010,
}

impl Code {
    /// [`Code::message`] as a driver of this name says it: in the codes of SMB, the drivers of other network filesystems put their
    /// own name into the text.
    pub fn message_of(self, name: &str) -> Cow<'static, str> {
        match self {
            Code::SMBMount | Code::SMBUnMount | Code::SMBAttached | Code::SMBDelete | Code::SMBCreate => {
                self.message().replace("SMB", name).into()
            }
            _ => self.message().into(),
        }
    }

    /// The text that the table has for the code. Clients compare the text as a whole.
    pub const fn message(self) -> &'static str {
        match self {
            Code::InvalidArg => "Invalid argument",
            Code::SRInUse => "The SR device is currently in use",
            Code::InvalidDev => "No such device",
            Code::InvalidSecret => "No such secret.",
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
            Code::NFSVersion => "Required NFS server version unsupported",
            Code::NFSMount => "NFS mount error",
            Code::NFSUnMount => "NFS unmount error",
            Code::NFSAttached => "NFS mount point already attached",
            Code::NFSDelete => "Failed to remove NFS mount point",
            Code::VDICreate => "VDI Creation failed",
            Code::VDISize => "VDI Invalid size",
            Code::VDIDelete => "Failed to mark VDI hidden",
            Code::VDIClone => "Failed to clone VDI",
            Code::VDISnapshot => "Failed to snapshot VDI",
            Code::NFSCreate => "NFS SR creation error",
            Code::ConfigDeviceMissing => "The request is missing the device parameter",
            Code::ConfigDeviceInvalid => "The device is not a valid path",
            Code::ConfigLocationMissing => "The request is missing the location parameter",
            Code::ConfigServerPathMissing => "The request is missing the serverpath parameter",
            Code::ConfigServerMissing => "The request is missing the server parameter",
            Code::ConfigServerPathBad => "The serverpath argument is not valid",
            Code::NFSTarget => "Unable to detect an NFS service on this target.",
            Code::SnapshotChainTooLong => "The snapshot chain is too long",
            Code::VDIResize => "VDI resize failed",
            Code::SMBMount => "SMB mount error",
            Code::SMBUnMount => "SMB unmount error",
            Code::SMBAttached => "SMB mount point already attached",
            Code::SMBDelete => "Failed to remove SMB mount point",
            Code::SMBCreate => "Failed to create SMB SR.",
            Code::DNSError => "Incorrect DNS name, unable to resolve.",
            Code::ConfigParamsMissing => "Not all required parameters specified.",
            Code::BadRequest => "Failed to parse the request",
            Code::VDIMissing => "VDI could not be found",
            Code::APIProtocolError => "A protocol error was received when accessing the API",
            Code::SMGeneral => "General backend error",
            Code::ISOMountFailure => "Could not mount the directory specified in Device Configuration",
            Code::ISOUnmountFailure => "Could not unmount the directory specified in Device Configuration",
            Code::ISOSharenameFailure => {
                "Could not locate the ISO sharename on the target, or the access permissions may be incorrect."
            }
            Code::ISOLocationStringError => {
                "Incorrect Location string format. String must be in the format SERVER:PATH for NFS targets, or \\\\\
                 SERVER\\PATH for CIFS targets"
            }
            Code::ISOLocalPath => "Invalid local path",
            Code::ISOInvalidSMBversion => "Given SMB version is not allowed. Choose either 1.0 or 3.0",
            Code::IllegalXMLChar => "Illegal XML character.",
            Code::CBTActivateFailed => "Unable to activate changed block tracking.",
            Code::CBTDeactivateFailed => "Unable to deactivate changed block tracking.",
            Code::CBTMetadataInconsistent => "Changed block tracking log is in an inconsistent state.",
            Code::CBTChangedBlocksError => "Failed to calculate changed blocks for given VDIs.",
            Code::SharedFileSystemNoWrite => "The file system for SR cannot be written to.",
            Code::GenericException => "SM has thrown a generic python exception",
            Code::ZFSSRCreate => "ZFS SR creation error",
            Code::ZFSSRDelete => "ZFS SR deletion error",
            Code::LargeBlockIncorrectBlocksize => "Blocksize isn't compatible with the driver",
        }
    }
}
