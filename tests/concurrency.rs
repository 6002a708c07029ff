//! Calls of any mix at the same time: nothing is lost, doubled or torn, and no wait is for ever.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that cannot go on ends here"
)]

mod scene;

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use scene::{A, B, Door, FILE, OTHER_SR, Outcome, SR, Scene, has, is_root};

/// `n` threads that each make calls; what they returned.
fn together<T: Send>(n: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let barrier = std::sync::Barrier::new(n);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..n)
            .map(|i| {
                let (work, barrier) = (&work, &barrier);
                scope.spawn(move || {
                    barrier.wait();
                    work(i)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn vdi(i: usize) -> String {
    format!("98de866e-b035-4b1a-a571-{i:012}")
}

#[test]
fn many_that_create_clone_delete_and_list_lose_nothing_and_tear_nothing() {
    let scene = Scene::file_with_a();
    let kept = fs::read(scene.image(A)).unwrap();
    together(32, |i| {
        for round in 0..2 {
            let (mine, copy, snapshot) = (vdi(1000 + i), vdi(2000 + i), vdi(3000 + i));
            scene.call(["vdi_create", SR, &mine, "2", "--label", &mine]).done();
            scene.call(["vdi_clone", SR, &mine, &copy]).done();
            scene.call(["vdi_lock", SR, &mine, "FALSE", &copy]).done();
            let scan = scene.call(["sr_scan", SR]).done();
            for expected in [A, &mine, &copy] {
                assert_eq!(scan.matches(&format!("(vdi (uuid . \"{expected}\")")).count(), 1, "{expected} in {scan}");
            }
            assert!(scan.starts_with("(sr ") && scan.ends_with("))\n"), "{scan}");
            let list: xcp_sm::door::v1::wire::Datum = serde_lexpr::from_str(&scan).unwrap();
            let xcp_sm::door::v1::wire::Datum::Sr(list) = list else { panic!("{scan}") };
            assert_eq!(list.vdis.len(), list.vdi_uuids.len());
            scene.call(["vdi_unlock", SR, &mine, "FALSE", &copy]).done();
            scene.call(["vdi_snapshot", SR, &copy, &snapshot]).done();
            scene.call(["vdi_resize", SR, &copy, "3"]).done();
            for gone in [&mine, &snapshot] {
                scene.call(["vdi_delete", SR, gone]).done();
            }
            if round == 0 {
                scene.call(["vdi_delete", SR, &copy]).done();
            }
        }
    });
    let answer = scene.call(["sr_get_params", SR]).done();
    assert_eq!(answer.matches("98de866e-").count(), 33, "{answer}");
    assert!(fs::read(scene.image(A)).unwrap() == kept, "another disk's data changed");
    let strange: Vec<String> =
        scene.names().into_iter().filter(|n| !n.ends_with(".raw") && n != ".sm-sr" && !n.is_empty()).collect();
    // A clone has its source's label.
    assert!(strange.iter().all(|name| name.ends_with(".params")) && strange.len() == 32, "{strange:?}");
}

#[test]
fn of_many_that_create_one_thing_one_does() {
    let scene = Scene::empty(&FILE, Door::Driver);
    let made = together(16, |_| {
        let outcome = scene.call(["sr_create", SR]);
        let made = outcome.succeeded();
        if !made {
            outcome.fails("EEXIST");
        }
        made
    });
    assert_eq!(made.into_iter().filter(|made| *made).count(), 1);
    let made = together(16, |_| {
        let outcome = scene.call(["vdi_create", SR, A, "1", "--label", "a"]);
        let made = outcome.succeeded();
        if !made {
            outcome.fails("EEXIST");
        }
        made
    });
    assert_eq!(made.into_iter().filter(|made| *made).count(), 1);
}

#[test]
fn of_many_srs_that_want_one_directory_one_gets_it() {
    for _ in 0..4 {
        let scene = Scene::empty(&FILE, Door::Driver);
        let made = together(12, |i| {
            let outcome = scene.call(["sr_create", &vdi(i)]);
            let made = outcome.succeeded();
            if !made {
                outcome.fails("EBUSY");
            }
            made
        });
        assert_eq!(made.into_iter().filter(|made| *made).count(), 1);
        let holders = (0..12).filter(|i| scene.call(["sr_get_params", &vdi(*i)]).succeeded()).count();
        assert_eq!(holders, 1);
    }
}

#[test]
fn of_many_that_lock_one_vdi_one_does_and_holds_it() {
    let scene = Scene::file_with_a();
    for _ in 0..3 {
        let won = together(16, |i| {
            let user = format!("user-{i}");
            let outcome = scene.call(["vdi_lock", SR, A, "FALSE", &user]);
            if outcome.succeeded() {
                Some(user)
            } else {
                outcome.fails("ENOLCK");
                None
            }
        });
        let won: Vec<String> = won.into_iter().flatten().collect();
        assert_eq!(won.len(), 1, "{won:?}");
        scene.call(["vdi_unlock", SR, A, "FALSE", &won[0]]).done();
    }
}

#[test]
fn of_many_that_break_a_lock_one_holds_it_in_the_end() {
    let scene = Scene::file_with_a();
    scene.call(["vdi_lock", SR, A, "FALSE", "first"]).done();
    let won = together(16, |i| {
        let user = format!("user-{i}");
        let outcome = scene.call(["vdi_lock", SR, A, "TRUE", &user]);
        let won = outcome.succeeded();
        if !won {
            outcome.fails("ENOLCK");
        }
        (user, won)
    });
    let answer = scene.call(["vdi_get_params", SR, A]).done();
    let holders: Vec<_> = won.iter().filter(|(user, _)| answer.contains(&format!("\"{user}\""))).collect();
    assert_eq!(holders.len(), 1, "{answer}");
    assert!(holders[0].1, "{} holds it and was told that it failed", holders[0].0);
    // Every other that won was broken since, and hears so.
    for (user, _) in won.iter().filter(|(user, _)| *user != holders[0].0) {
        scene.call(["vdi_unlock", SR, A, "FALSE", user]).fails("ENOLCK");
    }
    scene.call(["vdi_unlock", SR, A, "FALSE", &holders[0].0]).done();
}

#[test]
fn many_that_attach_one_vdi_get_one_device() {
    if !is_root() {
        return;
    }
    let scene = Scene::file_with_a();
    for _ in 0..3 {
        let devices = together(16, |_| scene.call(["vdi_attach", SR, A]).done());
        assert!(devices.iter().all(|device| *device == devices[0]), "{devices:?}");
        assert_eq!(scene.loop_devices(), [PathBuf::from(devices[0].trim_end())]);
        together(16, |_| scene.call(["vdi_detach", SR, A]).done());
        assert_eq!(scene.loop_devices(), [] as [PathBuf; 0]);
    }
    // Many disks at once, each its own device.
    let names: Vec<String> = (0..8).map(vdi).collect();
    let devices = together(8, |i| {
        scene.call(["vdi_create", SR, &names[i], "1"]).done();
        scene.call(["vdi_attach", SR, &names[i]]).done()
    });
    let different: std::collections::HashSet<_> = devices.iter().collect();
    assert_eq!(different.len(), 8, "{devices:?}");
    together(8, |i| scene.call(["vdi_detach", SR, &names[i]]).done());
}

#[test]
fn sr_delete_among_other_calls_deletes_all_or_nothing() {
    for _ in 0..4 {
        let scene = Scene::file_with_a();
        together(8, |i| {
            let (mine, copy) = (vdi(i), vdi(100 + i));
            let outcome = match i {
                0 => scene.call(["sr_delete", SR]),
                1..4 => scene.call(["vdi_create", SR, &mine, "1", "--label", "x"]),
                4..6 => scene.call(["vdi_clone", SR, A, &copy]),
                _ => scene.call(["sr_scan", SR]),
            };
            if !outcome.succeeded() {
                outcome.fails("ENOSR|ENOVDI");
            }
        });
        scene.call(["sr_get_params", SR]).fails("ENOSR");
        assert_eq!(scene.names(), [] as [&str; 0]);
    }
}

/// Holds a lock file as the Python storage managers do, until it is dropped.
struct Python(std::process::Child);

#[expect(clippy::disallowed_types, reason = "a peer that lives on while others are called")]
impl Python {
    fn holding(path: &std::path::Path) -> Python {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let script = "import fcntl, sys\nf = open(sys.argv[1], 'w+')\nfcntl.lockf(f, fcntl.LOCK_EX)\nprint('held', flush=True)\nsys.stdin.read()";
        let mut child = std::process::Command::new("python3")
            .args(["-c", script])
            .arg(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "held\n");
        Python(child)
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn lock_file(scene: &Scene, namespace: &str, name: &str) -> PathBuf {
    scene.root.path().join("run/lock").join(namespace).join(name)
}

#[test]
fn a_lock_that_another_storage_manager_holds_is_waited_for_and_its_holder_named() {
    if !has("python3") {
        return;
    }
    let scene = Scene::file_with_a();
    let held = Python::holding(&lock_file(&scene, SR, "sr"));
    let start = Instant::now();
    for call in [&["vdi_create", SR, B, "1"][..], &["vdi_delete", SR, A], &["sr_attach", SR], &["sr_delete", SR]] {
        let message = scene.call([call, &["--wait", "0"]].concat()).fails("ESRBUSY");
        assert!(message.contains(&format!("process {} (python3", held.0.id())), "{message}");
    }
    scene.call(["vdi_create", SR, B, "1", "--wait", "1"]).fails("ESRBUSY");
    assert!(start.elapsed() > Duration::from_secs(1) && start.elapsed() < Duration::from_secs(60));
    // Who only looks does not wait.
    scene.call(["sr_scan", SR, "--wait", "0"]).done();
    scene.call(["vdi_get_params", SR, A, "--wait", "0"]).done();
    // It ends while we wait.
    let outcome = std::thread::scope(|scope| {
        let call = scope.spawn(|| scene.call(["vdi_create", SR, B, "1", "--wait", "30"]));
        std::thread::sleep(Duration::from_millis(300));
        drop(held);
        call.join().unwrap()
    });
    outcome.done();
    let held = Python::holding(&lock_file(&scene, A, "vdi"));
    let message = scene.call(["vdi_delete", SR, A, "--wait", "0"]).fails("ESRBUSY");
    assert!(message.contains(A) && message.contains(&format!("process {}", held.0.id())), "{message}");
    scene.call(["vdi_delete", SR, B, "--wait", "0"]).done();
}

#[test]
fn a_lock_that_we_hold_keeps_another_storage_manager_out() {
    if !has("python3") || !has("strace") {
        return;
    }
    let scene = Scene::file_with_a();
    let lock = lock_file(&scene, SR, "sr");
    std::thread::scope(|scope| {
        // A call that takes its time: its one fsync is delayed.
        let call = scope.spawn(|| -> Outcome {
            let strace = "strace -qq -o /dev/null -e trace=fsync -e inject=fsync:delay_enter=6000000:when=1";
            scene.under(strace, scene.line(["vdi_create", SR, B, "1"]))
        });
        let script = "import fcntl, sys\nf = open(sys.argv[1], 'r+')\nfcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB)";
        let python = || assert_cmd::Command::new("python3").args(["-c", script]).arg(&lock).output().unwrap();
        let until = Instant::now() + Duration::from_secs(60);
        while python().status.success() {
            assert!(Instant::now() < until, "it took no lock");
            std::thread::sleep(Duration::from_millis(20));
        }
        let refused = python();
        assert!(String::from_utf8_lossy(&refused.stderr).contains("BlockingIOError"), "{refused:?}");
        // Many may share the SR; what wants it alone waits.
        scene.call(["vdi_create", SR, &vdi(1), "1", "--wait", "0"]).done();
        let message = scene.call(["sr_attach", SR, "--wait", "0"]).fails("ESRBUSY");
        assert!(message.contains("process "), "{message}");
        call.join().unwrap().done();
        assert!(python().status.success());
    });
}

#[test]
fn a_lock_file_that_is_removed_under_a_waiter_is_not_a_lock() {
    let scene = Scene::file_with_a();
    let path = lock_file(&scene, A, "vdi");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let file = fs::File::create(&path).unwrap();
    let whole = nix::libc::flock { l_type: nix::libc::F_WRLCK as i16, l_whence: 0, l_start: 0, l_len: 0, l_pid: 0 };
    nix::fcntl::fcntl(file.as_fd(), nix::fcntl::FcntlArg::F_OFD_SETLK(&whole)).unwrap();
    let outcome = std::thread::scope(|scope| {
        let call = scope.spawn(|| scene.call(["vdi_resize", SR, A, "8", "--wait", "20"]));
        std::thread::sleep(Duration::from_millis(300));
        // As those do who delete a VDI.
        fs::remove_file(&path).unwrap();
        drop(file);
        call.join().unwrap()
    });
    outcome.done();
    assert!(path.exists(), "the lock was taken on the file that has the name");
}

#[test]
fn two_srs_do_not_wait_for_each_other() {
    if !has("python3") {
        return;
    }
    let (scene, other) = (Scene::file(), Scene::file());
    let _held = Python::holding(&lock_file(&scene, OTHER_SR, "sr"));
    scene.call(["vdi_create", SR, A, "1", "--wait", "0"]).done();
    other.call(["vdi_create", SR, A, "1", "--wait", "0"]).done();
}
