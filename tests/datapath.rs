//! Images served as block devices: what their users see, and what is left when it ends, however it ends.
//!
//! Needs root. `tests/guest/datapath.sh` runs this on an older kernel. Not the standard harness: a server is this
//! executable, started again.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that cannot go on ends here"
)]
#![allow(clippy::disallowed_types, reason = "the rule is for what we ship")]
#![allow(clippy::type_complexity, reason = "a table of tests")]

mod killer;
mod tracees;

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, FileTypeExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::*};
use std::time::{Duration, Instant};

use killer::Victim;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use xcp_sm::datapath::{self, Source};
use xcp_sm::image::vhd;
use xcp_sm::sys::lock;
use xcp_sm::sys::loopdev::{self, Backing, Detached};
use xcp_sm::types::{Done, Format, Mode};

const SIZE: u64 = 64 << 20;

type Test = (&'static str, fn(&Path));

const TESTS: &[Test] = &[
    ("what_is_written_is_read_through_a_chain_and_after_a_new_attach", model),
    ("a_filesystem_on_it_is_sound", filesystem),
    ("attach_is_idempotent_whatever_path_leads_there", idempotent),
    ("detach_names_who_holds_the_device", busy),
    ("a_read_only_disk_refuses_writes", read_only),
    ("what_was_flushed_is_in_the_image", flushed),
    ("a_killed_server_fails_io_is_reported_and_replaced_in_a_guest", killed),
    ("a_killed_server_can_be_detached_in_a_guest", killed_then_detached),
    ("eight_disks_at_once", eight),
    ("the_device_grows_with_its_image", grown),
    ("a_snapshot_under_load_loses_nothing", snapshot_under_load),
    ("a_pause_ends_with_its_maker_in_a_guest", pauser_dies),
    ("a_pause_outlives_an_earlier_one_in_a_guest", pauser_dies_late),
    ("an_image_is_never_served_twice_in_a_guest", served_once),
    ("a_lock_is_not_free_while_a_server_starts_whose_caller_was_killed_in_a_guest", caller_killed),
    ("signals_and_limits_of_a_session_do_not_end_a_server", signalled),
    ("a_disk_whose_directory_was_moved_is_still_attached", moved),
    ("a_resume_that_fails_fails_io_and_can_be_mended", failed_resume),
    ("an_image_that_cannot_be_opened_is_told_at_attach", refused),
    ("discarded_space_is_given_back", discarded),
    ("a_server_killed_while_it_is_attached_harms_nobody_in_a_guest", |sr| {
        killed_anywhere(sr, "attach", Victim::Server)
    }),
    ("a_server_killed_while_it_is_detached_harms_nobody_in_a_guest", |sr| {
        killed_anywhere(sr, "detach", Victim::Server)
    }),
    ("a_server_killed_while_its_disk_grows_harms_nobody_in_a_guest", |sr| killed_anywhere(sr, "grow", Victim::Server)),
    ("a_server_killed_during_a_snapshot_harms_nobody_in_a_guest", |sr| killed_anywhere(sr, "snapshot", Victim::Server)),
    ("an_attach_that_is_killed_harms_nobody_in_a_guest", |sr| killed_anywhere(sr, "attach", Victim::Caller)),
    ("a_detach_that_is_killed_harms_nobody_in_a_guest", |sr| killed_anywhere(sr, "detach", Victim::Caller)),
    ("a_growth_that_is_killed_harms_nobody_in_a_guest", |sr| killed_anywhere(sr, "grow", Victim::Caller)),
];

fn main() -> ExitCode {
    if let Some(status) = datapath::main() {
        return status;
    }
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["--do", what, image] => {
            command(what, Path::new(image));
            return ExitCode::SUCCESS;
        }
        ["--kill", victim, n, server, what, image] => {
            let victim = if victim == "server" { killer::Victim::Server } else { killer::Victim::Caller };
            let mut command = Command::new(std::env::current_exe().unwrap());
            command.args(["--do", what, image]);
            killer::main(victim, n.parse().unwrap(), server.parse().ok(), command);
        }
        _ => {}
    }
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let unwanted: Vec<String> = std::env::args().filter_map(|a| Some(a.strip_prefix("--skip=")?.to_owned())).collect();
    if std::env::args().any(|a| a == "--list") {
        TESTS.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let chosen: Vec<_> = TESTS
        .iter()
        .filter(|(name, _)| wanted.is_empty() || wanted.iter().any(|w| name.contains(w.as_str())))
        .filter(|(name, _)| !unwanted.iter().any(|u| name.contains(u.as_str())))
        // A server that is killed, or stopped, may leave a disk that hangs, and with it everything else on the machine:
        // these are for a kernel of their own.
        .filter(|(name, _)| std::env::var_os("IN_A_GUEST").is_some() || !name.ends_with("in_a_guest"))
        .collect();
    println!("running {} tests", chosen.len());
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: block devices want root\ntest result: ok. 0 passed; 0 failed; {} ignored", chosen.len());
        return if std::env::var_os("SM_TESTS_SKIP_NOTHING").is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    }
    let (mut passed, mut failed) = (0, 0);
    for (name, test) in chosen {
        let scratch = tempfile::tempdir().unwrap();
        // SAFETY: no other thread runs between two tests.
        unsafe { std::env::set_var(xcp_sm::sys::run_dir::VARIABLE, scratch.path().join("run")) };
        let directory = scratch.path().join("sr");
        fs::create_dir(&directory).unwrap();
        let start = Instant::now();
        let result = std::panic::catch_unwind(|| {
            test(&directory);
            nothing_is_left(scratch.path());
        });
        match result {
            Ok(()) => passed += 1,
            Err(_) => {
                failed += 1;
                clean_up(&directory);
            }
        }
        let verdict = if result.is_ok() { "ok" } else { "FAILED" };
        println!("test {name} ... {verdict} ({:.1} s)", start.elapsed().as_secs_f32());
    }
    let verdict = if failed == 0 { "ok" } else { "FAILED" };
    println!("test result: {verdict}. {passed} passed; {failed} failed; 0 ignored; 0 measured; 0 filtered out");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn model(sr: &Path) {
    let image = chain(sr, 3);
    let device = attach(&image);
    let mut model = read_all(&device);
    assert!(model.iter().any(|b| *b != 0), "the parents' data shows through");
    let mut random = Random(1);
    for round in 0..4 {
        let file = File::options().read(true).write(true).open(&device).unwrap();
        for _ in 0..150 {
            let offset = random.below(SIZE / 4096) * 4096;
            let len = ((random.below(64) + 1) * 4096).min(SIZE - offset);
            let range = offset as usize..(offset + len) as usize;
            match random.below(10) {
                0 => {
                    fallocate(&file, FallocateFlags::FALLOC_FL_ZERO_RANGE, offset as i64, len as i64).unwrap();
                    model[range].fill(0);
                }
                1 => file.sync_all().unwrap(),
                2..5 => {
                    let mut got = vec![0; len as usize];
                    file.read_exact_at(&mut got, offset).unwrap();
                    assert!(got == model[range], "round {round}: {len} bytes at {offset} differ");
                }
                _ => {
                    let bytes = random.bytes(len as usize);
                    file.write_all_at(&bytes, offset).unwrap();
                    model[range].copy_from_slice(&bytes);
                }
            }
        }
        drop(file);
        // The last close emptied the device's cache: this comes from the server.
        assert!(read_all(&device) == model, "round {round}");
    }
    detach(&image);
    assert!(read_image(&image) == model, "in the image");
    let device = attach(&image);
    assert!(read_all(&device) == model, "after another attach");
    detach(&image);
}

fn filesystem(sr: &Path) {
    let image = chain(sr, 1);
    let device = attach(&image);
    run("mkfs.ext4", &["-q", "-F", device.to_str().unwrap()]);
    let mounted = sr.join("mnt");
    fs::create_dir(&mounted).unwrap();
    run("mount", &[device.to_str().unwrap(), mounted.to_str().unwrap()]);
    for n in 0..50 {
        fs::write(mounted.join(n.to_string()), Random(n + 1).bytes(100_000)).unwrap();
    }
    assert!(matches!(datapath::detach(&image, soon()).unwrap(), Detached::Busy(who) if who.contains("mount")));
    run("umount", &[mounted.to_str().unwrap()]);
    detach(&image);
    let device = attach(&image);
    run("fsck.ext4", &["-f", "-n", device.to_str().unwrap()]);
    run("mount", &["-o", "ro", device.to_str().unwrap(), mounted.to_str().unwrap()]);
    for n in 0..50 {
        assert!(fs::read(mounted.join(n.to_string())).unwrap() == Random(n + 1).bytes(100_000), "file {n}");
    }
    run("umount", &[mounted.to_str().unwrap()]);
    detach(&image);
}

fn idempotent(sr: &Path) {
    let image = chain(sr, 1);
    let device = attach(&image);
    assert_eq!(attach(&image), device);
    let link = sr.with_file_name("link");
    symlink(sr, &link).unwrap();
    assert_eq!(attach(&link.join("leaf.vhd")), device);
    let found = datapath::find(&link.join("leaf.vhd")).unwrap().unwrap();
    assert_eq!((found.device, found.healthy, found.read_only), (device, true, false));
    assert!(datapath::find(&sr.join("other.vhd")).unwrap().is_none());
    detach(&link.join("leaf.vhd"));
    assert!(matches!(datapath::detach(&image, soon()).unwrap(), Detached::Done(Done::Already)));
}

fn busy(sr: &Path) {
    let image = chain(sr, 1);
    let device = attach(&image);
    // It waits for us to read. Its first byte tells that it runs: a process has its name only some time after spawn().
    let mut holder = Command::new("cat").arg(&device).stdout(Stdio::piped()).spawn().unwrap();
    holder.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    match datapath::detach(&image, soon()).unwrap() {
        Detached::Busy(who) => assert!(who.contains(&format!("process {} (cat)", holder.id())), "{who}"),
        Detached::Done(_) => panic!("detached while in use"),
    }
    // It serves on.
    read_all(&device);
    holder.kill().unwrap();
    holder.wait().unwrap();
    detach(&image);
}

fn read_only(sr: &Path) {
    let image = chain(sr, 2);
    let before = fs::read(&image).unwrap();
    let source = Source { format: Format::Vhd, path: image.clone(), read_only: true, shared: false };
    let device = datapath::attach(&source, None, soon()).unwrap();
    assert!(datapath::find(&image).unwrap().unwrap().read_only);
    assert!(read_all(&device) == read_image(&image));
    let refused = File::options().write(true).open(&device).and_then(|f| {
        f.write_all_at(&[1; 4096], 0)?;
        f.sync_all()
    });
    assert!(refused.is_err());
    assert!(datapath::attach(&Source { read_only: false, ..source }, None, soon()).is_err());
    detach(&image);
    assert!(fs::read(&image).unwrap() == before, "the image was changed");
}

fn flushed(sr: &Path) {
    let image = chain(sr, 2);
    let device = attach(&image);
    let file = File::options().write(true).open(&device).unwrap();
    let mut random = Random(7);
    for _ in 0..20 {
        file.write_all_at(&random.bytes(8192), random.below(SIZE / 8192) * 8192).unwrap();
    }
    file.sync_all().unwrap();
    let copy = sr.join("copy.vhd");
    fs::copy(&image, &copy).unwrap();
    assert!(read_image(&copy) == read_all(&device), "a copy made after a flush lacks something");
    drop(file);
    detach(&image);
}

fn killed(sr: &Path) {
    let image = chain(sr, 2);
    let device = attach(&image);
    let file = File::options().read(true).write(true).open(&device).unwrap();
    file.write_all_at(&[0xAB; 8192], 4 << 20).unwrap();
    file.sync_all().unwrap();
    kill_server(&image);
    let error = (|| {
        file.write_all_at(&[1; 4096], 0)?;
        file.sync_all()
    })()
    .expect_err("a dead server took a write");
    assert_eq!(error.raw_os_error(), Some(nix::libc::EIO));
    let found = datapath::find(&image).unwrap().unwrap();
    assert!(!found.healthy);
    assert!(datapath::status(&found).unwrap_err().to_string().contains("is dead"));
    assert!(datapath::pause(&image, soon()).is_err());
    let error = attach_error(&image);
    assert!(error.contains("its server died") && error.contains("still holds"), "{error}");
    drop(file);
    let device = attach(&image);
    assert!(datapath::find(&image).unwrap().unwrap().healthy);
    let mut got = vec![0; 8192];
    File::open(&device).unwrap().read_exact_at(&mut got, 4 << 20).unwrap();
    assert!(got == [0xAB; 8192]);
    detach(&image);
}

fn killed_then_detached(sr: &Path) {
    let image = chain(sr, 1);
    attach(&image);
    kill_server(&image);
    detach(&image);
}

fn eight(sr: &Path) {
    let images: Vec<PathBuf> = (0..8)
        .map(|n| {
            let sr = sr.join(n.to_string());
            fs::create_dir(&sr).unwrap();
            chain(&sr, 2)
        })
        .collect();
    std::thread::scope(|scope| {
        for (n, image) in images.iter().enumerate() {
            scope.spawn(move || {
                let device = attach(image);
                let file = File::options().read(true).write(true).open(&device).unwrap();
                let bytes = Random(n as u64 + 1).bytes(8 << 20);
                file.write_all_at(&bytes, 1 << 20).unwrap();
                file.sync_all().unwrap();
                drop(file);
                assert!(read_all(&device)[1 << 20..9 << 20] == bytes);
            });
        }
    });
    assert_eq!(datapath::all().unwrap().iter().filter(|a| a.image.starts_with(sr)).count(), 8);
    std::thread::scope(|scope| images.iter().for_each(|image| drop(scope.spawn(|| detach(image)))));
}

fn grown(sr: &Path) {
    let image = chain(sr, 2);
    let device = attach(&image);
    let file = File::options().read(true).write(true).open(&device).unwrap();
    let before = read_all(&device);
    for size in [SIZE + (2 << 20), 4 * SIZE] {
        let paused = datapath::pause(&image, soon()).unwrap().unwrap();
        let place: Arc<dyn vhd::Storage> = Arc::new(vhd::FileStorage::open(&image, Mode::ReadWrite).unwrap());
        vhd::resize(&place, size).unwrap();
        drop(place);
        assert_eq!(paused.resume().unwrap(), size);
        assert_eq!((&file).seek(SeekFrom::End(0)).unwrap(), size, "open before");
        assert_eq!(File::open(&device).unwrap().seek(SeekFrom::End(0)).unwrap(), size, "open now");
    }
    file.write_all_at(&[9; 4096], 4 * SIZE - 4096).unwrap();
    file.sync_all().unwrap();
    drop(file);
    let now = read_all(&device);
    assert!(now[..SIZE as usize] == before && now[4 * SIZE as usize - 4096..] == [9; 4096]);
    detach(&image);
}

/// Writers go on while the leaf is replaced again and again.
fn snapshot_under_load(sr: &Path) {
    let image = chain(sr, 1);
    let device = attach(&image);
    let stop = AtomicBool::new(false);
    let written = AtomicU64::new(0);
    let model = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..4u64)
            .map(|n| {
                let (device, stop, written) = (&device, &stop, &written);
                scope.spawn(move || {
                    // Each has its quarter of the disk.
                    let part = SIZE / 4;
                    let file = File::options().read(true).write(true).open(device).unwrap();
                    let mut mine = vec![0; part as usize];
                    file.read_exact_at(&mut mine, n * part).unwrap();
                    let mut random = Random(n + 100);
                    while !stop.load(Relaxed) {
                        let at = random.below(part / 4096) * 4096;
                        let bytes = random.bytes(4096);
                        file.write_all_at(&bytes, n * part + at).unwrap();
                        mine[at as usize..at as usize + 4096].copy_from_slice(&bytes);
                        if random.below(16) == 0 {
                            file.sync_data().unwrap();
                        }
                        written.fetch_add(1, Relaxed);
                    }
                    mine
                })
            })
            .collect();
        for n in 0..5 {
            let before = written.load(Relaxed);
            while written.load(Relaxed) < before + 50 {
                std::thread::sleep(Duration::from_millis(5));
            }
            let paused = datapath::pause(&image, soon()).unwrap().unwrap();
            let base = sr.join(format!("snapshot{n}.vhd"));
            fs::rename(&image, &base).unwrap();
            child(&image, &base);
            let frozen = read_image(&base);
            paused.resume().unwrap();
            assert!(read_image(&base) == frozen, "a snapshot changed");
        }
        stop.store(true, Relaxed);
        writers.into_iter().flat_map(|w| w.join().unwrap()).collect::<Vec<u8>>()
    });
    assert!(read_all(&device) == model);
    let status = datapath::status(&datapath::find(&image).unwrap().unwrap()).unwrap();
    assert_eq!(status, format!("serving {SIZE} 6"));
    detach(&image);
    assert!(read_image(&image) == model);
}

fn pauser_dies(sr: &Path) {
    let image = chain(sr, 1);
    let device = attach(&image);
    let paused = datapath::pause(&image, soon()).unwrap().unwrap();
    let (tell, told) = std::sync::mpsc::channel();
    let of_reader = device.clone();
    std::thread::spawn(move || {
        read_all(&of_reader);
        tell.send(()).unwrap();
    });
    assert!(told.recv_timeout(Duration::from_millis(300)).is_err(), "a paused disk answered");
    // As the kernel does for a process that dies: nothing is said, the connection ends.
    paused.abandon();
    told.recv_timeout(Duration::from_secs(300)).expect("the disk goes on");
    detach(&image);
}

fn pauser_dies_late(sr: &Path) {
    let image = chain(sr, 1);
    attach(&image);
    let killed = datapath::pause(&image, soon()).unwrap().unwrap();
    let next = datapath::pause(&image, soon()).unwrap().unwrap();
    killed.abandon();
    std::thread::sleep(Duration::from_millis(200));
    let status = || datapath::status(&datapath::find(&image).unwrap().unwrap()).unwrap();
    assert_eq!(status(), "paused");
    next.resume().unwrap();
    assert!(status().starts_with("serving"));
    detach(&image);
}

/// A device that anybody detached is gone before its server has written everything.
fn served_once(sr: &Path) {
    let image = chain(sr, 1);
    let device = attach(&image);
    let server = datapath::find(&image).unwrap().unwrap().server;
    File::options().write(true).open(&device).unwrap().write_all(&[7; 4 << 20]).unwrap();
    let signal = move |signal| kill(Pid::from_raw(server as i32), signal).unwrap();
    signal(Signal::SIGSTOP);
    run("losetup", &["-d", device.to_str().unwrap()]);
    let slow = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        signal(Signal::SIGCONT);
    });
    let device = attach(&image);
    assert!(!fs::read(format!("/proc/{server}/cmdline")).is_ok_and(|line| !line.is_empty()), "two serve it");
    slow.join().unwrap();
    assert!(read_all(&device)[..4 << 20].iter().all(|byte| *byte == 7));
    detach(&image);
}

/// The lock that a call has on its disk.
fn lock_of_call() -> Result<lock::Lock, lock::Refused> {
    lock::take("98de866e-b035-4b1a-a571-613bff542b89", "vdi", lock::Kind::Exclusive, Instant::now())
}

/// The processes that serve an image of this path or below it, before anybody knows, each with its command line.
fn servers_of(path: &Path) -> Vec<(Pid, String)> {
    let server = |process: fs::DirEntry| {
        let pid = process.file_name().to_str()?.parse().ok()?;
        let line = fs::read(process.path().join("cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        (line.contains("serve-image") && line.contains(path.to_str()?)).then_some((Pid::from_raw(pid), line))
    };
    fs::read_dir("/proc").unwrap().flatten().filter_map(server).collect()
}

fn server_of(image: &Path) -> Option<Pid> {
    servers_of(image).first().map(|(pid, _)| *pid)
}

/// The letter of a process's or thread's state: proc_pid_stat(5). `None`: it is gone.
fn state_of(process: &Path) -> Option<char> {
    fs::read_to_string(process.join("stat")).ok()?.rsplit_once(") ")?.1.chars().next()
}

/// Whether no thread of the process gets on: stopped, dead, or waiting (D) for one that is.
fn stands_still(process: Pid) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{process}/task")) else { return true };
    threads.flatten().all(|thread| !matches!(state_of(&thread.path()), Some('R' | 'S')))
}

fn has_ended(child: &std::process::Child) -> bool {
    matches!(state_of(&Path::new("/proc").join(child.id().to_string())), None | Some('Z'))
}

fn caller_killed(sr: &Path) {
    let image = chain(sr, 1);
    let wait = |what: &dyn Fn() -> bool| {
        let until = Instant::now() + Duration::from_secs(300);
        while !what() {
            assert!(Instant::now() < until, "waited in vain");
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    let mut met = 0;
    for _ in 0..30 {
        let mut caller = start("attach", &image);
        wait(&|| server_of(&image).is_some() || has_ended(&caller));
        let server = server_of(&image).filter(|server| kill(*server, Signal::SIGSTOP).is_ok());
        if let Some(server) = server {
            // A signal takes effect when the system call that the server is in has ended.
            wait(&|| stands_still(server));
        }
        caller.kill().unwrap();
        // Where it waits in the kernel for the stopped server, it ends only after that went on, and the lock is its own.
        let until = Instant::now() + Duration::from_millis(200);
        while !has_ended(&caller) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
        if let Some(server) = server.filter(|_| has_ended(&caller)) {
            let started = || datapath::all().unwrap().iter().any(|attached| attached.image == image);
            let starts = server_of(&image) == Some(server) && !started();
            let free = lock_of_call().is_ok();
            // Before it leaves its caller's process group, SIGHUP may end what is stopped there.
            let unknown = starts && free && server_of(&image).is_some();
            let _ = kill(server, Signal::SIGCONT);
            assert!(!unknown, "a server starts and nobody knows");
            met += i32::from(starts && !free);
        } else if let Some(server) = server {
            let _ = kill(server, Signal::SIGCONT);
        }
        caller.wait().unwrap();
        wait(&|| lock_of_call().is_ok());
        // What is there now stays there.
        match datapath::find(&image).unwrap() {
            Some(_) => detach(&image),
            None => wait(&|| server_of(&image).is_none()),
        }
        if met == 3 {
            break;
        }
    }
    // On one processor the caller may always be further than its server.
    println!("met a starting server {met} times");
}

/// A call of its own process: `attach`, `detach`, `grow`, `snapshot`.
fn start(what: &str, image: &Path) -> std::process::Child {
    Command::new(std::env::current_exe().unwrap()).args(["--do", what]).arg(image).spawn().unwrap()
}

fn command(what: &str, image: &Path) {
    let lock = lock::take("98de866e-b035-4b1a-a571-613bff542b89", "vdi", lock::Kind::Exclusive, soon()).unwrap();
    match what {
        "attach" => drop(attach_under(Some(&lock), image)),
        "detach" => drop(datapath::detach(image, soon()).unwrap()),
        "grow" => {
            let paused = datapath::pause(image, soon()).unwrap();
            let place: Arc<dyn vhd::Storage> = Arc::new(vhd::FileStorage::open(image, Mode::ReadWrite).unwrap());
            let size = vhd::query(&*place).unwrap().virtual_size + (2 << 20);
            vhd::resize(&place, size).unwrap();
            drop(place);
            paused.unwrap().resume().unwrap();
        }
        "snapshot" => {
            datapath::prepare(image, soon()).unwrap();
            let paused = datapath::pause(image, soon()).unwrap();
            let base = (0..).map(|n| image.with_file_name(format!("base{n}.vhd"))).find(|path| !path.exists()).unwrap();
            let next = image.with_file_name("next.vhd");
            let _ = fs::remove_file(&next);
            fs::rename(image, &base).unwrap();
            child(&next, &base);
            fs::rename(&next, image).unwrap();
            paused.unwrap().resume().unwrap();
        }
        _ => panic!("{what} is no command"),
    }
}

/// A server, or a call, is killed at each of its system calls: no process hangs, other disks and other loop devices go
/// on, nothing that was flushed is lost, and the next attach works.
fn killed_anywhere(sr: &Path, what: &str, victim: Victim) {
    const SMALL: u64 = 4 << 20;
    let small = |path: &Path| drop(vhd::create(&place(path), &vhd::NewImage::new(SMALL)).unwrap());
    let other = sr.join("other.vhd");
    small(&other);
    let other_device = attach(&other);
    let plain = sr.join("plain");
    fs::write(&plain, vec![5; 1 << 20]).unwrap();
    let dir = sr.join("killed");
    fs::create_dir(&dir).unwrap();
    let image = dir.join("leaf.vhd");
    let fresh = || {
        for file in fs::read_dir(&dir).unwrap().flatten() {
            fs::remove_file(file.path()).unwrap();
        }
        small(&image);
    };
    fresh();
    let mut kills = 0;
    // Each takes a second in a guest. KILL_STEP=1 is for who changes the order of steps; with a larger step, another KILL_FIRST
    // takes other points.
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<usize>().ok());
    let step = number("KILL_STEP").unwrap_or(5);
    for (round, n) in (number("KILL_FIRST").unwrap_or(step)..).step_by(step).enumerate() {
        let is_twentieth = (round + 1) * step % 20 < step;
        // What the disk holds when the victim is killed.
        let page = [n as u8; 4096];
        let write = || {
            let file = File::options().write(true).open(attach(&image)).unwrap();
            file.write_all_at(&page, 4096).unwrap();
            file.sync_all().unwrap();
        };
        write();
        if what == "attach" {
            detach(&image);
        }
        let server = datapath::find(&image).unwrap().map_or(String::new(), |found| found.server.to_string());
        let name = if victim == Victim::Server { "server" } else { "caller" };
        let at = format!("{what}, {name}, call {n}");
        let mut tracer = Command::new(std::env::current_exe().unwrap());
        tracer.args(["--kill", name, &n.to_string(), &server, what]).arg(&image).stderr(Stdio::piped());
        let traced = tracer.stdout(Stdio::piped()).output().unwrap();
        let said = String::from_utf8_lossy(&traced.stdout).trim_end().to_owned();
        let at = format!("{at}, {said}");
        assert!(matches!(traced.status.code(), Some(0 | killer::KILLED)), "{at}: the call hangs: {}", traced.status);
        let acted = traced.status.code() == Some(killer::KILLED);
        kills += u32::from(acted);

        in_time(&at, "another disk", {
            let device = other_device.clone();
            move || {
                let file = File::options().write(true).open(device).unwrap();
                file.write_all_at(&page, 0).unwrap();
                file.sync_all().unwrap();
            }
        });
        in_time(&at, "a loop device", {
            let plain = plain.clone();
            move || {
                let file = File::open(&plain).unwrap();
                let device = loopdev::attach(&file, &plain, true).unwrap();
                assert_eq!(fs::read(&device).unwrap(), fs::read(&plain).unwrap());
                loopdev::detach(&device, Backing::Path(&plain)).unwrap();
            }
        });
        if what == "grow" && victim == Victim::Caller {
            // The device follows, whoever lives.
            if let Some(found) = datapath::find(&image).unwrap() {
                let wanted = vhd::query(&vhd::FileStorage::open(&image, Mode::ReadOnly).unwrap()).unwrap().virtual_size;
                let until = Instant::now() + Duration::from_secs(10);
                while File::open(&found.device).unwrap().seek(SeekFrom::End(0)).unwrap() != wanted {
                    assert!(Instant::now() < until, "{at}: the device has not the disk's size");
                    std::thread::sleep(Duration::from_millis(2));
                }
            }
        }
        // A snapshot of this test is not atomic.
        if what == "snapshot" && !image.exists() {
            let found = datapath::find(&image).unwrap();
            assert!(found.is_none_or(|found| !found.healthy), "{at}: it is served");
            in_time(&at, "a detach", of(&image, |image| drop(datapath::detach(image, soon()).unwrap())));
            fresh();
            write();
        }
        in_time(&at, "an attach", of(&image, |image| drop(attach(image))));
        let found = datapath::find(&image).unwrap().unwrap();
        assert!(found.healthy, "{at}");
        let mut got = [0; 4096];
        File::open(&found.device).unwrap().read_exact_at(&mut got, 4096).unwrap();
        assert!(got == page, "{at}: what was flushed is lost");
        let detached = !acted || is_twentieth || what == "attach";
        if detached {
            in_time(&at, "a detach", of(&image, detach));
        }
        let until = Instant::now() + Duration::from_secs(10);
        while !stuck().is_empty() || (detached && server_of(&image).is_some()) {
            assert!(Instant::now() < until, "{at}: left: {:?} {:?}", stuck(), server_of(&image));
            std::thread::sleep(Duration::from_millis(1));
        }
        if is_twentieth {
            fresh();
        }
        if !acted {
            break;
        }
    }
    println!("{kills} kills");
    assert!(kills as usize * step > 10, "{what}: only {kills} kills");
    detach(&other);
}

fn of(image: &Path, work: fn(&Path)) -> impl FnOnce() + Send + 'static {
    let image = image.to_owned();
    move || work(&image)
}

/// Does it in a thread, so that what hangs is seen to hang.
fn in_time(when: &str, what: &str, work: impl FnOnce() + Send + 'static) {
    let worker = std::thread::spawn(work);
    let until = Instant::now() + Duration::from_secs(20);
    while !worker.is_finished() {
        assert!(Instant::now() < until, "{when}: then {what} hangs; in the kernel: {:?}", stuck());
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(worker.join().is_ok(), "{when}: then {what} fails");
}

/// Processes that can't be killed: they wait in the kernel, or a thread of theirs does.
fn stuck() -> Vec<String> {
    let threads = fs::read_dir("/proc").unwrap().flatten().flat_map(|process| {
        let is_process = process.file_name().to_str().is_some_and(|name| name.parse::<u32>().is_ok());
        let tasks = is_process.then(|| fs::read_dir(process.path().join("task")).ok()).flatten();
        tasks.into_iter().flatten().flatten()
    });
    let stats = threads.filter_map(|thread| fs::read_to_string(thread.path().join("stat")).ok());
    // Threads of the kernel are children of process 2.
    let is_stuck = |stat: &String| {
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with("D ") && !rest.starts_with("D 2 "))
    };
    stats.filter(is_stuck).collect()
}

fn signalled(sr: &Path) {
    let image = chain(sr, 1);
    let device = attach(&image);
    let server = Pid::from_raw(datapath::find(&image).unwrap().unwrap().server as i32);
    for signal in [Signal::SIGTERM, Signal::SIGUSR1, Signal::SIGALRM, Signal::SIGXFSZ, Signal::SIGXCPU, Signal::SIGIO] {
        kill(server, signal).unwrap();
    }
    read_all(&device);
    detach(&image);
}

fn moved(sr: &Path) {
    let image = chain(sr, 1);
    let device = attach(&image);
    let elsewhere = sr.with_file_name("elsewhere");
    fs::rename(sr, &elsewhere).unwrap();
    let moved = elsewhere.join(image.file_name().unwrap());
    assert_eq!(attach(&moved), device);
    let refused = xcp_sm::error::one_line(&datapath::pause(&moved, soon()).err().unwrap());
    assert!(refused.contains("moved"), "{refused}");
    detach(&moved);
    assert!(datapath::find(&moved).unwrap().is_none());
    fs::rename(&elsewhere, sr).unwrap();
}

fn failed_resume(sr: &Path) {
    let image = chain(sr, 1);
    let device = attach(&image);
    let paused = datapath::pause(&image, soon()).unwrap().unwrap();
    let away = sr.join("away");
    fs::rename(&image, &away).unwrap();
    assert!(paused.resume().is_err());
    assert!(File::open(&device).and_then(|mut f| f.read_exact(&mut [0; 4096])).is_err());
    let found = datapath::find(&image).unwrap().unwrap();
    assert!(datapath::status(&found).unwrap().starts_with("failed cannot open"));
    fs::rename(&away, &image).unwrap();
    datapath::pause(&image, soon()).unwrap().unwrap().resume().unwrap();
    read_all(&device);
    detach(&image);
}

fn refused(sr: &Path) {
    let image = chain(sr, 2);
    fs::rename(sr.join("base0.vhd"), sr.join("elsewhere")).unwrap();
    let error = attach_error(&image);
    assert!(error.contains("base0.vhd") && error.contains("No such file"), "{error}");
    fs::write(sr.join("base0.vhd"), [0; 4096]).unwrap();
    let error = attach_error(&image);
    assert!(error.contains("base0.vhd"), "{error}");
    assert!(datapath::find(&image).unwrap().is_none());
}

fn discarded(sr: &Path) {
    use std::os::unix::fs::MetadataExt;
    let image = chain(sr, 1);
    let device = attach(&image);
    let file = File::options().read(true).write(true).open(&device).unwrap();
    file.write_all_at(&Random(3).bytes(16 << 20), 16 << 20).unwrap();
    file.sync_all().unwrap();
    let full = fs::metadata(&image).unwrap().blocks();
    drop(file);
    run("blkdiscard", &["-o", "16777216", "-l", "16777216", device.to_str().unwrap()]);
    assert!(read_all(&device)[16 << 20..32 << 20].iter().all(|b| *b == 0));
    let file = File::open(&device).unwrap();
    file.sync_all().unwrap();
    drop(file);
    let now = fs::metadata(&image).unwrap().blocks();
    assert!(now + (14 << 11) < full, "{full} sectors were {now} afterwards");
    detach(&image);
}

/// `leaf.vhd` of a chain of so many images, each but the leaf with some data.
fn chain(sr: &Path, depth: u64) -> PathBuf {
    let mut parent: Option<PathBuf> = None;
    for n in 0..depth {
        let leaf = n == depth - 1;
        let path = sr.join(if leaf { "leaf.vhd".to_owned() } else { format!("base{n}.vhd") });
        match &parent {
            None => drop(vhd::create(&place(&path), &vhd::NewImage::new(SIZE)).unwrap()),
            Some(parent) => child(&path, parent),
        }
        if !leaf {
            let chain = open(&path, Mode::ReadWrite);
            let mut random = Random(n + 50);
            for _ in 0..30 {
                chain.write_at(&random.bytes(40 << 10), random.below(SIZE / 512 - 80) * 512).unwrap();
            }
            chain.close().unwrap();
        }
        parent = Some(path);
    }
    parent.unwrap()
}

fn child(path: &Path, parent: &Path) {
    let info = vhd::query(&vhd::FileStorage::open(parent, Mode::ReadOnly).unwrap()).unwrap();
    let link = vhd::ParentLink::beside(
        parent.file_name().unwrap().to_str().unwrap(),
        Some(info.uuid),
        vhd::timestamp(std::time::SystemTime::now()),
    );
    vhd::create_child(&place(path), &vhd::NewImage::new(info.virtual_size), &link).unwrap();
}

fn place(path: &Path) -> vhd::FileStorage {
    vhd::FileStorage::new(File::options().read(true).write(true).create_new(true).open(path).unwrap(), path).unwrap()
}

fn open(path: &Path, mode: Mode) -> vhd::Chain {
    vhd::Chain::open(Arc::new(vhd::FileStorage::open(path, mode).unwrap()), mode, |link| {
        let parent = path.with_file_name(link.file_name().unwrap());
        Ok(vhd::Parent::Vhd(Arc::new(vhd::FileStorage::open(parent, Mode::ReadOnly)?)))
    })
    .unwrap()
}

/// What the image says without a server.
fn read_image(path: &Path) -> Vec<u8> {
    let chain = open(path, Mode::ReadOnly);
    let mut bytes = vec![0; chain.virtual_size() as usize];
    chain.read_at(&mut bytes, 0).unwrap();
    bytes
}

fn read_all(device: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    File::open(device).unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

fn attach(image: &Path) -> PathBuf {
    attach_under(None, image)
}

fn attach_under(lock: Option<&lock::Lock>, image: &Path) -> PathBuf {
    let source = Source { format: Format::Vhd, path: image.to_owned(), read_only: false, shared: false };
    let device = datapath::attach(&source, lock, soon()).unwrap();
    assert!(fs::metadata(&device).unwrap().file_type().is_block_device());
    device
}

fn attach_error(image: &Path) -> String {
    let source = Source { format: Format::Vhd, path: image.to_owned(), read_only: false, shared: false };
    xcp_sm::error::one_line(&datapath::attach(&source, None, soon()).unwrap_err())
}

fn detach(image: &Path) {
    match datapath::detach(image, soon()).unwrap() {
        Detached::Done(done) => assert_eq!(done, Done::Changed),
        Detached::Busy(who) => panic!("busy: {who}"),
    }
    assert!(datapath::find(image).unwrap().is_none());
}

fn kill_server(image: &Path) {
    let server = datapath::find(image).unwrap().unwrap().server;
    kill(Pid::from_raw(server as i32), Signal::SIGKILL).unwrap();
    let until = Instant::now() + Duration::from_secs(300);
    while fs::read(format!("/proc/{server}/cmdline")).is_ok_and(|line| !line.is_empty()) {
        assert!(Instant::now() < until);
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// No process, mount, device or file of a server.
fn nothing_is_left(scratch: &Path) {
    let marker = scratch.to_str().unwrap();
    // One that could not start has told so before it ends.
    let until = Instant::now() + Duration::from_secs(300);
    while let Some((_, line)) = servers_of(scratch).first() {
        assert!(Instant::now() < until, "left running: {line}");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(!fs::read_to_string("/proc/self/mountinfo").unwrap().contains(marker), "left mounted");
    for device in fs::read_dir("/sys/block").unwrap().flatten() {
        for file in ["loop/backing_file", "backend"] {
            let backing = fs::read_to_string(device.path().join(file)).unwrap_or_default();
            assert!(!backing.contains(marker), "left attached: {backing}");
        }
    }
    let left: Vec<_> = fs::read_dir(scratch.join("run/sm/datapath")).into_iter().flatten().flatten().collect();
    assert!(left.is_empty(), "left: {left:?}");
}

/// After a test that failed. A server that is stopped would stop whoever looks into its mount, us first.
fn clean_up(sr: &Path) {
    for (server, _) in servers_of(sr.parent().unwrap()) {
        let _ = kill(server, Signal::SIGKILL);
    }
    for attached in datapath::all().unwrap().iter().filter(|a| a.image.starts_with(sr)) {
        let _ = Command::new("umount").arg(&attached.device).stderr(Stdio::null()).status();
        let _ = datapath::detach(&attached.image, soon());
    }
}

fn run(program: &str, args: &[&str]) {
    let out = Command::new(program).args(args).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").output().unwrap();
    let _ = std::io::stderr().write_all(if out.status.success() { &[] } else { &out.stderr });
    assert!(out.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&out.stdout));
}

/// xorshift64
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..len.div_ceil(8)).flat_map(|_| self.next().to_ne_bytes()).collect();
        bytes.truncate(len);
        bytes
    }
}
