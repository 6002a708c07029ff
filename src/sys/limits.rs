//! The limits that this process runs under; setrlimit(2).

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};

/// The length in bytes beyond which this process may write no file (`ulimit -f`); `None` without such a limit. A write beyond
/// it is EFBIG, as one beyond what the filesystem can hold.
pub fn file_size() -> Option<u64> {
    getrlimit(Resource::RLIMIT_FSIZE).ok().map(|(soft, _)| soft).filter(|soft| *soft != RLIM_INFINITY)
}
