//! Failures of servers.

use std::fmt;

/// The protocol that a server speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Nfs,
    Smb,
    Ceph,
    Gluster,
    Moose,
    Iscsi,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Nfs => "NFS",
            Protocol::Smb => "SMB",
            Protocol::Ceph => "Ceph",
            Protocol::Gluster => "GlusterFS",
            Protocol::Moose => "MooseFS",
            Protocol::Iscsi => "iSCSI",
        })
    }
}

/// The fault of a server, or of the request that the server got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerFault {
    UnknownName,
    /// No answer comes, or that of another service.
    NoAnswer,
    Version,
    NoExport,
    Denied,
    /// It answers and does not refuse; mounting failed all the same.
    Mount,
}

impl fmt::Display for ServerFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ServerFault::UnknownName => "its name is not known",
            ServerFault::NoAnswer => "it does not answer",
            ServerFault::Version => "it does not speak the version asked for",
            ServerFault::NoExport => "it has no such path, or does not export it",
            ServerFault::Denied => "it refuses this host or user",
            ServerFault::Mount => "cannot mount from it",
        })
    }
}

/// A directory that a server offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exported {
    pub path: String,
    /// To whom, in the server's words; `*` if it does not say.
    pub access: String,
}
