//! Runs a command and kills it just before its n-th system call, or lets that call fail.

#![allow(clippy::disallowed_types, reason = "a traced child is not started like a tool")]

use std::collections::HashMap;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::libc;
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::WaitPidFlag;
use nix::unistd::Pid;

use super::tracees::{Stop, Tracees};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Killed,
    /// It ended by itself, with this status.
    Status(i32),
    /// It died of a signal that we did not send.
    Died(Signal),
}

/// Which system calls are counted.
#[derive(Clone, Copy)]
pub enum Points {
    /// All of them.
    Every,
    /// Those after which the world may look different. Being killed before a call that only looks is the same as
    /// being killed before the next that does more.
    Changing,
    /// Those that can fail with an error of the disk, after the runtime has started.
    CanFail,
    /// Those that this says, by number and arguments.
    Matching(fn(i64, [u64; 6]) -> bool),
}

/// Acts on all of them.
pub const ALL: u64 = 0;

/// Memory and signals; and close, whose error nobody is told of.
const NEVER_FAILS: &[i64] = &[
    libc::SYS_close,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_getrandom,
    libc::SYS_sched_getaffinity,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getpid,
    libc::SYS_futex,
    libc::SYS_rseq,
    libc::SYS_set_robust_list,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// Calls that only look, or change nothing that outlives the process: its memory, descriptors and locks.
const LOOKING: &[i64] = &[
    libc::SYS_close,
    libc::SYS_fcntl,
    libc::SYS_flock,
    libc::SYS_dup,
    libc::SYS_read,
    libc::SYS_pread64,
    libc::SYS_lseek,
    libc::SYS_stat,
    libc::SYS_fstat,
    libc::SYS_lstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_getdents64,
    libc::SYS_readlink,
    libc::SYS_readlinkat,
    libc::SYS_access,
    libc::SYS_faccessat,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_arch_prctl,
    libc::SYS_prctl,
    libc::SYS_set_tid_address,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_prlimit64,
    libc::SYS_getrandom,
    libc::SYS_poll,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_sigaltstack,
    libc::SYS_sched_getaffinity,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getpid,
    libc::SYS_futex,
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_exit,
];

fn changes(number: i64, args: [u64; 6]) -> bool {
    const MAKES: u64 = (libc::O_CREAT | libc::O_TRUNC | libc::O_TMPFILE & !libc::O_DIRECTORY) as u64;
    match number {
        libc::SYS_openat => args[2] & MAKES != 0,
        libc::SYS_open => args[1] & MAKES != 0,
        _ => !LOOKING.contains(&number),
    }
}

/// What is done to the n-th call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Act {
    /// The process is killed before it.
    Kill,
    /// It does nothing and reports this error.
    Fail(nix::errno::Errno),
}

/// What became of the command.
pub struct Traced {
    pub end: End,
    /// The call that was acted on.
    pub call: Option<u64>,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

/// Runs `program` and acts on its `n`-th counted system call, 1 being the first, or on [`ALL`].
pub fn run(n: u64, points: Points, act: Act, program: &Path, args: &[String], run_dir: &Path) -> Traced {
    run_on(Stdio::null(), n, points, act, program, args, run_dir)
}

/// As [`run`], of a program that reads `input`.
pub fn run_on(
    input: Stdio,
    n: u64,
    points: Points,
    act: Act,
    program: &Path,
    args: &[String],
    run_dir: &Path,
) -> Traced {
    let mut command = Command::new(program);
    command.args(args).env("XCP_SM_RUN_DIR", run_dir).env_remove("LD_LIBRARY_PATH");
    command.stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped());
    let options = ptrace::Options::PTRACE_O_EXITKILL | ptrace::Options::PTRACE_O_TRACECLONE;
    let (mut child, tracees) = Tracees::of(&mut command, options);
    let (end, call) = trace(tracees, Pid::from_raw(child.id() as i32), n, points, act);
    let mut said = [Vec::new(), Vec::new()];
    child.stdout.take().expect("it is piped").read_to_end(&mut said[0]).unwrap();
    child.stderr.take().expect("it is piped").read_to_end(&mut said[1]).unwrap();
    let [stdout, stderr] = said;
    Traced { end, call, stdout, stderr }
}

/// Follows the process and its threads, whose calls are counted together. Only the order of two threads' calls is not
/// the same each time.
fn trace(mut tracees: Tracees, leader: Pid, n: u64, points: Points, act: Act) -> (End, Option<u64>) {
    let (mut seen, mut call, mut started) = (0, None, false);
    let mut failing = HashMap::new();
    loop {
        match tracees.next(WaitPidFlag::empty()) {
            Stop::Call(pid) => {
                // Killed by another thread's call.
                let Ok(info) = ptrace::syscall_info(pid) else { continue };
                if let Some(errno) = failing.remove(&pid) {
                    let mut registers = ptrace::getregs(pid).unwrap();
                    registers.rax = -(errno as i64) as u64;
                    ptrace::setregs(pid, registers).unwrap();
                }
                if info.op == libc::PTRACE_SYSCALL_INFO_ENTRY {
                    // SAFETY: `op` says which member of the union was filled in.
                    let (number, args) = unsafe { (info.u.entry.nr, info.u.entry.args) };
                    started |= number as i64 == libc::SYS_sigaltstack;
                    let counts = match points {
                        Points::Every => true,
                        Points::Changing => changes(number as i64, args),
                        Points::Matching(these) => these(number as i64, args),
                        Points::CanFail => started && !NEVER_FAILS.contains(&(number as i64)),
                    };
                    seen += u64::from(counts);
                    if counts && (seen == n || n == ALL) {
                        call = Some(number);
                        match act {
                            Act::Kill => nix::sys::signal::kill(leader, Signal::SIGKILL).unwrap(),
                            Act::Fail(errno) => {
                                let mut registers = ptrace::getregs(pid).unwrap();
                                registers.orig_rax = u64::MAX;
                                ptrace::setregs(pid, registers).unwrap();
                                failing.insert(pid, errno);
                            }
                        }
                    }
                }
                tracees.go_on(pid);
            }
            Stop::Exited(pid, status) if pid == leader => return (End::Status(status), call),
            Stop::Signaled(pid, Signal::SIGKILL) if pid == leader && call.is_some() => return (End::Killed, call),
            Stop::Signaled(pid, signal) if pid == leader => return (End::Died(signal), call),
            Stop::Exited(..) | Stop::Signaled(..) => {}
            Stop::Event(pid, _) => tracees.go_on(pid),
            Stop::NotYet | Stop::Nobody => unreachable!("the leader has not ended"),
        }
    }
}
