//! Runs a command on a served disk and kills the disk's server, or the command, just before its n-th system call.
//!
//! The tracer is a process of its own: when it ends, the kernel lets go of all that it traced and that still lives.

use std::collections::HashMap;
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::WaitPidFlag;
use nix::unistd::{Pid, alarm};

use crate::tracees::{self, Stop, Tracees};

/// The process that is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victim {
    Server,
    Caller,
}

/// What a tracer that killed something ends with; 0 if there was no n-th call any more.
pub const KILLED: i32 = 10;

/// How long a command may take before its tracer dies of SIGALRM.
const PATIENCE: u32 = 60;

/// Calls that change nothing but the process itself.
const INWARD: &[i64] = &[
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
    libc::SYS_geteuid,
    libc::SYS_getpid,
    libc::SYS_futex,
    libc::SYS_rseq,
    libc::SYS_set_robust_list,
    libc::SYS_clock_nanosleep,
];

/// Runs `command` to its end and kills the victim at its `n`-th call. `server` is the process that serves already. Does
/// not return.
pub fn main(victim: Victim, n: u64, server: Option<i32>, mut command: Command) -> ! {
    alarm::set(PATIENCE);
    let options = ptrace::Options::PTRACE_O_TRACECLONE
        | ptrace::Options::PTRACE_O_TRACEFORK
        | ptrace::Options::PTRACE_O_TRACEVFORK
        | ptrace::Options::PTRACE_O_TRACEEXEC;
    let mut server = server.map(Pid::from_raw);
    if let (Victim::Server, Some(server)) = (victim, server) {
        tracees::seize(server, options);
    }
    let (child, mut tracees) = Tracees::of(&mut command, options);
    let caller = Pid::from_raw(child.id() as i32);

    let (mut seen, mut killed, mut ended, mut quiet) = (0, false, false, Instant::now());
    let mut groups = HashMap::new();
    // What the server does after the command has ended counts as well.
    while !ended || quiet.elapsed() < Duration::from_millis(100) {
        let stop = tracees.next(if ended { WaitPidFlag::WNOHANG } else { WaitPidFlag::empty() });
        if !matches!(stop, Stop::NotYet) {
            quiet = Instant::now();
        }
        match stop {
            Stop::NotYet => std::thread::sleep(Duration::from_millis(1)),
            Stop::Nobody => break,
            Stop::Exited(pid, _) | Stop::Signaled(pid, _) => ended |= pid == caller,
            Stop::Call(pid) => {
                // It may have been killed meanwhile.
                let Ok(registers) = ptrace::getregs(pid) else { continue };
                let group = *groups.entry(pid).or_insert_with(|| group_of(pid));
                let wanted = match victim {
                    Victim::Server => server,
                    Victim::Caller => Some(caller),
                };
                // The kernel of a guest has no PTRACE_GET_SYSCALL_INFO. Before a call the result is set to this.
                if registers.rax as i64 == -i64::from(libc::ENOSYS) && group == wanted && !killed {
                    let number = registers.orig_rax as i64;
                    seen += u64::from(!INWARD.contains(&number));
                    if seen == n {
                        println!("killed before system call {number}");
                        kill(group.unwrap(), Signal::SIGKILL).unwrap();
                        killed = true;
                    }
                }
                tracees.go_on(pid);
            }
            Stop::Event(pid, event) => {
                let is_server =
                    || fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| contains(&line, b"serve-image"));
                if event == libc::PTRACE_EVENT_FORK && server.is_none() && is_server() {
                    server = ptrace::getevent(pid).ok().map(|child| Pid::from_raw(child as i32));
                }
                tracees.go_on(pid);
            }
        }
    }
    std::process::exit(if killed { KILLED } else { 0 })
}

fn contains(text: &[u8], word: &[u8]) -> bool {
    text.windows(word.len()).any(|window| window == word)
}

/// The process of a thread.
fn group_of(thread: Pid) -> Option<Pid> {
    let status = fs::read_to_string(format!("/proc/{thread}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("Tgid:"))?;
    Some(Pid::from_raw(line.trim().parse().ok()?))
}
