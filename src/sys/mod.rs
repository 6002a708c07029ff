//! The system below: one purpose per file, no policy.

pub mod bind;
pub mod blockdev;
pub mod copy;
pub mod durable;
pub mod limits;
pub mod lio;
pub mod lock;
pub mod loopdev;
pub mod lvm;
pub mod mount;
pub mod pvlabel;
pub mod register;
pub mod run_dir;
pub mod server;
pub mod shared;
pub mod small;
pub mod stdio;
pub mod sunrpc;
pub mod syslog;
pub mod tapdisk;
pub mod threads;
pub mod tool;
pub mod uses;
pub mod watch;
