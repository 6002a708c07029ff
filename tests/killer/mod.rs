//! Runs a command on a served disk and kills the disk's server, or the command, just before its n-th system call.
//!
//! The tracer is a process of its own: when it ends, the kernel lets go of all that it traced and that still lives.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, alarm};

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
    let options = ptrace::Options::PTRACE_O_TRACESYSGOOD
        | ptrace::Options::PTRACE_O_TRACECLONE
        | ptrace::Options::PTRACE_O_TRACEFORK
        | ptrace::Options::PTRACE_O_TRACEVFORK
        | ptrace::Options::PTRACE_O_TRACEEXEC;
    let mut server = server.map(Pid::from_raw);
    if let (Victim::Server, Some(server)) = (victim, server) {
        for thread in fs::read_dir(format!("/proc/{server}/task")).unwrap().flatten() {
            let thread = Pid::from_raw(thread.file_name().to_str().unwrap().parse().unwrap());
            ptrace::seize(thread, options).unwrap();
            ptrace::interrupt(thread).unwrap();
        }
    }
    // SAFETY: between fork and exec only the one system call is made.
    unsafe { command.pre_exec(|| ptrace::traceme().map_err(Into::into)) };
    let caller = Pid::from_raw(command.spawn().unwrap().id() as i32);
    assert!(matches!(waitpid(caller, Some(WaitPidFlag::__WALL)), Ok(WaitStatus::Stopped(_, Signal::SIGTRAP))));
    ptrace::setoptions(caller, options).unwrap();
    go_on(caller, None);

    let (mut seen, mut killed, mut ended, mut quiet) = (0, false, false, Instant::now());
    let (mut groups, mut begun) = (HashMap::new(), HashSet::from([caller]));
    // What the server does after the command has ended counts as well.
    while !ended || quiet.elapsed() < Duration::from_millis(100) {
        let flags = WaitPidFlag::__WALL | if ended { WaitPidFlag::WNOHANG } else { WaitPidFlag::empty() };
        let status = match waitpid(None, Some(flags)) {
            Ok(WaitStatus::StillAlive) => {
                std::thread::sleep(Duration::from_millis(1));
                continue;
            }
            Err(Errno::ECHILD) => break,
            other => other.unwrap(),
        };
        quiet = Instant::now();
        let pid = status.pid().unwrap();
        let mut deliver = None;
        match status {
            WaitStatus::PtraceSyscall(_) => {
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
            }
            WaitStatus::PtraceEvent(_, Signal::SIGTRAP, event) => {
                let is_server =
                    || fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| contains(&line, b"serve-image"));
                if event == libc::PTRACE_EVENT_FORK && server.is_none() && is_server() {
                    server = ptrace::getevent(pid).ok().map(|child| Pid::from_raw(child as i32));
                }
            }
            WaitStatus::Exited(..) | WaitStatus::Signaled(..) => {
                ended |= pid == caller;
                continue;
            }
            // The first stop of a process or thread.
            WaitStatus::Stopped(_, Signal::SIGSTOP) if begun.insert(pid) => {}
            WaitStatus::PtraceEvent(..) => {}
            WaitStatus::Stopped(_, signal) => deliver = Some(signal),
            _ => {}
        }
        go_on(pid, deliver);
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

fn go_on(pid: Pid, deliver: Option<Signal>) {
    match ptrace::syscall(pid, deliver) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(errno) => panic!("{errno}"),
    }
}
