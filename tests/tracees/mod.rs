//! Follows a command at its system calls: what the tracers that kill and that fail calls have in common.

#![allow(dead_code, reason = "each tracer uses its part")]
#![allow(clippy::disallowed_types, reason = "a traced child is not started like a tool")]

use std::collections::HashSet;
use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

use nix::errno::Errno;
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// What has come of the tracees. Who stands still waits for [`Tracees::go_on`].
pub enum Stop {
    /// Before or after a system call.
    Call(Pid),
    /// One of the events that were asked for, `PTRACE_EVENT_*`.
    Event(Pid, i32),
    Exited(Pid, i32),
    Signaled(Pid, Signal),
    /// None has stopped yet.
    NotYet,
    /// No process is left.
    Nobody,
}

/// The processes and threads that this thread traces.
pub struct Tracees {
    /// Those that have stopped for the first time, which is no signal that anybody sent.
    begun: HashSet<Pid>,
}

/// Starts to trace a process that runs already, all of its threads, which stop.
pub fn seize(process: Pid, options: ptrace::Options) {
    for thread in fs::read_dir(format!("/proc/{process}/task")).unwrap().flatten() {
        let thread = Pid::from_raw(thread.file_name().to_str().unwrap().parse().unwrap());
        ptrace::seize(thread, with_calls(options)).unwrap();
        ptrace::interrupt(thread).unwrap();
    }
}

/// Without this a stop at a call looks like a SIGTRAP.
fn with_calls(options: ptrace::Options) -> ptrace::Options {
    options | ptrace::Options::PTRACE_O_TRACESYSGOOD
}

impl Tracees {
    /// Starts the command, traced with `options`, and lets it go on from its exec.
    pub fn of(command: &mut Command, options: ptrace::Options) -> (Child, Self) {
        // SAFETY: between fork and exec only the one system call is made.
        unsafe { command.pre_exec(|| ptrace::traceme().map_err(Into::into)) };
        let child = command.spawn().expect("it starts");
        let pid = Pid::from_raw(child.id() as i32);
        assert!(matches!(waitpid(pid, Some(WaitPidFlag::__WALL)), Ok(WaitStatus::Stopped(_, Signal::SIGTRAP))));
        ptrace::setoptions(pid, with_calls(options)).unwrap();
        let tracees = Self { begun: HashSet::from([pid]) };
        tracees.go_on(pid);
        (child, tracees)
    }

    /// Waits for the next stop, unless `flags` say not to. Signals are delivered.
    pub fn next(&mut self, flags: WaitPidFlag) -> Stop {
        loop {
            // This thread's tracees: other tests of this process have theirs.
            let status = match waitpid(None, Some(WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD | flags)) {
                Err(Errno::ECHILD) => return Stop::Nobody,
                other => other.unwrap(),
            };
            match status {
                WaitStatus::StillAlive => return Stop::NotYet,
                WaitStatus::PtraceSyscall(pid) => return Stop::Call(pid),
                WaitStatus::PtraceEvent(pid, Signal::SIGTRAP, event) => return Stop::Event(pid, event),
                WaitStatus::Exited(pid, status) => return Stop::Exited(pid, status),
                WaitStatus::Signaled(pid, signal, _) => return Stop::Signaled(pid, signal),
                WaitStatus::Stopped(pid, Signal::SIGSTOP) if self.begun.insert(pid) => resume(pid, None),
                WaitStatus::Stopped(pid, signal) => resume(pid, Some(signal)),
                WaitStatus::PtraceEvent(pid, ..) | WaitStatus::Continued(pid) => resume(pid, None),
            }
        }
    }

    /// Lets what stands still go on to its next stop; nothing if it was killed meanwhile.
    pub fn go_on(&self, pid: Pid) {
        resume(pid, None);
    }
}

fn resume(pid: Pid, deliver: Option<Signal>) {
    match ptrace::syscall(pid, deliver) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(errno) => panic!("{errno}"),
    }
}
