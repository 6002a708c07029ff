//! The limits that this process runs under; setrlimit(2).

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};

/// The length in bytes beyond which this process may write no file (`ulimit -f`); `None` without such a limit. A write beyond
/// it is EFBIG, as one beyond what the filesystem can hold.
pub fn file_size() -> Option<u64> {
    getrlimit(Resource::RLIMIT_FSIZE).ok().map(|(soft, _)| soft).filter(|soft| *soft != RLIM_INFINITY)
}

/// Lets this process, and those that it starts, have as many files open as the administrator allows (the hard limit), 131072 at
/// most. The usual soft limit of 1024 is meant for programs that use select(2).
pub fn raise_open_files() {
    const MOST: u64 = 1 << 17;
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard.min(MOST)
    {
        // If it fails, the call that wants more files says so.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard.min(MOST), hard);
    }
}
