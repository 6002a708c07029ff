//! Runs from one store into another by a pipe: whole, cut, killed, and from somebody who means harm.

use std::fs;
use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use super::scene::kill::{Act, End, Points, run_on};
use super::scene::{A, B, Scene, pattern};
use super::{MIB, backup, disk, exported, imported, names, path, same, scene, sealed, sums_of, web, write};

/// Runs of the set out of `nas`.
pub fn stream(scene: &Scene, more: &[&str]) -> Vec<u8> {
    let sent = scene.bare([&["backup", "send", "web", "--store", "nas"], more].concat());
    assert!(sent.succeeded(), "{sent}");
    sent.output.stdout
}

/// Receives a stream into `old`.
fn receive(scene: &Scene, stream: &[u8], more: &[&str]) -> Output {
    through(scene, stream, &[&["--to", "old", "--format", "table"], more].concat())
}

/// Hands a stream to `sm backup receive` with these words.
pub fn through(scene: &Scene, stream: &[u8], words: &[&str]) -> Output {
    let mut child = Command::new(scene.executable())
        .args(["backup", "receive"])
        .args(words)
        .env("XCP_SM_RUN_DIR", scene.root.path().join("run"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A stream may be refused before its end.
    let _ = child.stdin.take().unwrap().write_all(stream);
    child.wait_with_output().unwrap()
}

#[track_caller]
fn received(out: &Output) -> Vec<String> {
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).split_whitespace().map(str::to_owned).collect()
}

#[track_caller]
pub fn refused(out: &Output, status: &str) -> String {
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(!out.status.success() && status.split('|').any(|it| said.starts_with(it)), "{said}");
    assert!(!said.contains("panicked"), "{said}");
    said
}

fn have(scene: &Scene) -> String {
    backup(scene, &["receive", "--to", "old", "--resume", "web"]).done().trim().to_owned()
}

/// The runs that `old` has, as others see them.
fn there(scene: &Scene) -> Vec<String> {
    let dir = scene.root.path().join("old/web");
    let mut names = if dir.exists() { names(dir) } else { Vec::new() };
    names.retain(|name| !name.ends_with(".new") && name != "current" && !name.starts_with('.'));
    names
}

pub fn export(scene: &Scene, more: &[&str]) -> String {
    let line =
        ["export", "web", "--disk", "fast/web", "--to", "nas", "--keep", "9", "--keep-others", "--format", "table"];
    backup(scene, &[&line[..], more].concat()).done().trim().to_owned()
}

/// What an import of the newest run in `old` is.
fn newest(scene: &Scene) -> Vec<u8> {
    backup(scene, &["verify", "web", "--store", "old", "--deep"]).done();
    let new = imported(scene, "old", "web", "slow");
    let bytes = exported(scene, &format!("slow/{}", new[0]));
    super::sm(scene, &["vdi_delete", "slow", &new[0]]).done();
    bytes
}

#[test]
fn runs_go_through_a_pipe_with_what_they_need() {
    let scene = scene();
    let mut bytes = web(&scene, "qcow2");
    let first = export(&scene, &["--since", "last"]);
    write(&scene, "qcow2", 20 * MIB, &[7; 4096]);
    bytes[20 * MIB as usize..][..4096].fill(7);
    let second = export(&scene, &["--since", "last", "--compress", "zstd"]);
    let script = format!(
        "{exe} backup send web --store nas | {exe} backup receive --to old --format table",
        exe = format_args!("'{}'", scene.executable().display())
    );
    let piped = |script: &str| {
        let out = Command::new("sh")
            .args(["-euc", script])
            .env("XCP_SM_RUN_DIR", scene.root.path().join("run"))
            .output()
            .unwrap();
        received(&out)
    };
    assert_eq!(piped(&script), [first.clone(), second.clone()]);
    same(&newest(&scene), &bytes);
    // Holes stay holes.
    use std::os::unix::fs::MetadataExt as _;
    let image = fs::metadata(scene.root.path().join("old/web").join(&first).join("disk0.raw")).unwrap();
    assert!(image.blocks() * 512 < 9 * MIB, "{} bytes", image.blocks() * 512);
    // What is there already is passed over; what the receiver has need not be sent.
    assert!(piped(&script).is_empty());
    assert_eq!(have(&scene), second);
    write(&scene, "qcow2", 40 * MIB, &[9; 512]);
    bytes[40 * MIB as usize..][..512].fill(9);
    let third = export(&scene, &["--since", "last", "--compress", "zstd"]);
    for more in [["--since", &second], ["--from", &have(&scene)]] {
        let increment = stream(&scene, &more);
        assert!(increment.len() < MIB as usize, "{} bytes", increment.len());
    }
    let increment = stream(&scene, &["--since", &second]);
    assert_eq!(received(&receive(&scene, &increment, &["--keep", "1"])), std::slice::from_ref(&third));
    assert_eq!(there(&scene), [first.clone(), second.clone(), third.clone()], "what the newest needs stays");
    same(&newest(&scene), &bytes);
    // An increment without its parent is no run.
    backup(&scene, &["remove", "web", "--store", "old"]).done();
    let lonely = refused(&receive(&scene, &increment, &[]), "EVERIFY");
    assert!(lonely.contains(&second) && lonely.contains("without --since"), "{lonely}");
    assert_eq!(names(scene.root.path().join("old")), [".sm-store"]);
    let none =
        backup(&scene, &["send", "web", "--store", "nas", "--since", "20200101T000000Z-00000000"]).fails("EINVAL");
    assert!(none.contains(&third), "{none}");
    // Only a part of the chain: a run that is not the newest.
    let old = stream(&scene, &["--run", &second]);
    assert_eq!(received(&receive(&scene, &old, &[])), [first.clone(), second.clone()]);
}

#[test]
fn a_stream_that_was_cut_or_changed_is_gone_on_with() {
    stream_is_gone_on_with(|_| ["--compress", "none"].map(str::to_owned));
}

#[test]
fn an_encrypted_stream_that_was_cut_or_changed_is_gone_on_with() {
    stream_is_gone_on_with(|public| ["--recipient".to_owned(), public.to_owned()]);
}

/// `more`: options of the export, for a public key.
fn stream_is_gone_on_with(more: impl Fn(&str) -> [String; 2]) {
    let scene = scene();
    let (public, secret) = sealed::keys(&scene);
    let bytes = disk(&scene, A, "web", "raw", 12 * MIB, &[(MIB, pattern(5 * MIB)), (11 * MIB, pattern(MIB))]);
    backup(&scene, &["define", "web", "--disk", "fast/web", "--identity", &secret]).done();
    let more = more(&public);
    let run = export(&scene, &more.each_ref().map(String::as_str));
    let whole = stream(&scene, &[]);
    let head = whole.windows(4).position(|part| part == b"run ").unwrap();
    let cuts = [0, 5, head, head + 30, head + 200, whole.len() / 3, whole.len() / 2, whole.len() * 3 / 4];
    let cuts = cuts.into_iter().chain([whole.len() - 10, whole.len() - 6, whole.len() - 5, whole.len() - 1]);
    let before = there(&scene);
    for cut in cuts {
        refused(&receive(&scene, &whole[..cut], &[]), "EIO|EVERIFY");
        // A whole run is there from its end on, if the stream says so.
        let is_whole = cut >= whole.len() - 5;
        assert_eq!(there(&scene).len(), before.len() + usize::from(is_whole), "cut at {cut}");
        let have = have(&scene);
        let rest = stream(&scene, &["--from", &have]);
        if cut >= whole.len() * 3 / 4 && !is_whole {
            assert!(have.starts_with(&run) && rest.len() < whole.len() * 2 / 3, "cut at {cut}: {have}");
        }
        received(&receive(&scene, &rest, &[]));
        same(&newest(&scene), &bytes);
        backup(&scene, &["remove", "web", "--store", "old", "--run", &run]).done();
    }
    for at in (0..whole.len()).step_by(whole.len() / 12).chain([head + 5, head + 60, whole.len() - 7]) {
        let mut changed = whole.clone();
        changed[at] ^= 4;
        refused(&receive(&scene, &changed, &[]), "EVERIFY|EIO");
        assert!(!there(&scene).contains(&run) || at >= whole.len() - 5, "byte {at}");
        let rest = stream(&scene, &["--from", &have(&scene)]);
        received(&receive(&scene, &rest, &[]));
        backup(&scene, &["remove", "web", "--store", "old", "--run", &run]).done();
    }
    // A stream that begins with a block for which nothing is there.
    let later = stream(&scene, &["--from", &format!("{run}:3")]);
    let said = refused(&receive(&scene, &later, &[]), "EVERIFY");
    assert!(said.contains("--resume web"), "{said}");
}

#[test]
fn what_a_store_wrongly_tells_of_a_begun_run_is_not_believed() {
    let scene = scene();
    let bytes = disk(&scene, A, "web", "raw", 12 * MIB, &[(MIB, pattern(5 * MIB)), (11 * MIB, pattern(MIB))]);
    for packed in ["none", "zstd"] {
        let run = export(&scene, &["--compress", packed]);
        let whole = stream(&scene, &["--run", &run]);
        let cut = || refused(&receive(&scene, &whole[..whole.len() / 2], &[]), "EIO");
        let told = scene.root.path().join("old/web").join(format!("{run}.new/received.json"));
        cut();
        let before = fs::read_to_string(&told).unwrap();
        assert!(have(&scene).starts_with(&format!("{run}:")), "{before}");
        for (part, done) in [(3, 4u64), (3, u64::MAX), (99, 0), (0, u64::MAX), (2, 1 << 40)] {
            fs::write(&told, format!(r#"{{"block":3,"part":{part},"done":{done}}}"#)).unwrap();
            let lie = have(&scene);
            if (packed, done) != ("zstd", 4) {
                assert!(!lie.contains(':'), "{part} {done}: {lie}");
            }
            let rest = stream(&scene, &["--run", &run, "--from", &format!("{run}:3")]);
            refused(&receive(&scene, &rest, &[]), "EVERIFY");
            cut();
        }
        received(&receive(&scene, &stream(&scene, &["--run", &run, "--from", &have(&scene)]), &[]));
        same(&newest(&scene), &bytes);
    }
}

#[test]
fn a_killed_receive_is_completed_by_the_next_one() {
    for n in 1.. {
        let scene = scene();
        disk(&scene, A, "web", "raw", 5 * MIB, &[(MIB, pattern(4096)), (4 * MIB, pattern(512))]);
        let old = export(&scene, &[]);
        received(&receive(&scene, &stream(&scene, &[]), &[]));
        let new = export(&scene, &[]);
        fs::write(path(&scene, "stream"), stream(&scene, &[])).unwrap();
        let args = ["backup", "receive", "--to", "old"].map(str::to_owned);
        let input = fs::File::open(path(&scene, "stream")).unwrap();
        let run_dir = scene.root.path().join("run");
        let killed = run_on(input.into(), n, Points::Changing, Act::Kill, &scene.executable(), &args, &run_dir);
        if killed.end != End::Killed {
            assert_eq!(killed.end, End::Status(0), "{}", String::from_utf8_lossy(&killed.stderr));
            assert!(n > 10, "only {n} points");
            break;
        }
        let left = there(&scene);
        assert!(left == [old.clone()] || left == [old.clone(), new.clone()], "killed at {n}: {left:?}");
        backup(&scene, &["verify", "web", "--store", "old", "--deep"]).done();
        let rest = stream(&scene, &["--from", &have(&scene)]);
        received(&receive(&scene, &rest, &[]));
        assert_eq!(there(&scene), [old, new.clone()], "killed at {n}");
        assert!(super::current(&scene, "old", "web").ends_with(&new), "killed at {n}");
        backup(&scene, &["verify", "web", "--store", "old", "--deep"]).done();
        assert_eq!(names(scene.root.path().join("old")), [".sm-store", "web"], "killed at {n}");
        assert_eq!(names(scene.root.path().join("old/web")).len(), 3, "killed at {n}");
    }
}

#[test]
fn a_stream_that_means_harm_is_refused_before_anything_is_written() {
    let scene = scene();
    web(&scene, "raw");
    disk(&scene, B, "data", "raw", 50 * MIB, &[(0, pattern(5000))]);
    let line = ["export", "web", "--disk", "fast/web", "--disk", "fast/data", "--to", "nas", "--format", "table"];
    let run = backup(&scene, &line).done().trim().to_owned();
    let whole = stream(&scene, &[]);
    // Lines, and the bytes of blocks; the manifest is small and a text.
    let text = |from: &str, to: &str| {
        let at = whole.windows(from.len()).position(|part| part == from.as_bytes()).unwrap();
        [&whole[..at], to.as_bytes(), &whole[at + from.len()..]].concat()
    };
    let manifest = fs::read_to_string(super::current(&scene, "nas", "web").join("manifest.json")).unwrap();
    // Whoever makes a stream makes its digests.
    let resealed = |from: &str, to: &str| {
        let changed = manifest.replace(from, to);
        assert_ne!(changed, manifest, "{from}");
        let all = String::from_utf8_lossy(&whole[..600 + manifest.len()]).into_owned();
        let head = all.find(&manifest).unwrap();
        let lines = all[..head]
            .replace(&sums_of(manifest.as_bytes()), &sums_of(changed.as_bytes()))
            .replace(&format!("block {} ", manifest.len()), &format!("block {} ", changed.len()));
        [lines.as_bytes(), changed.as_bytes(), &whole[head + manifest.len()..]].concat()
    };
    let bytes = String::from_utf8_lossy(&whole[..200]).lines().nth(2).unwrap().rsplit(' ').next().unwrap().to_owned();
    let long = "x".repeat(5000);
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("nothing of ours", b"GET / HTTP/1.0\r\n\r\n".to_vec()),
        ("another version", text("sm-backup-stream 1", "sm-backup-stream 2")),
        ("a line without an end", [b"sm-backup-stream 1\nset ", long.as_bytes()].concat()),
        ("a path as a set", text("set web", "set ../web")),
        ("a set with a slash", text("set web", "set a/b")),
        ("a path as a run", text(&format!("run {run}"), &format!("run ../../{run}"))),
        ("a run that is none", text(&format!("run {run}"), "run current")),
        ("a number with a sign", text(&format!(" 0 {bytes}\n"), &format!(" +0 {bytes}\n"))),
        ("a number that is too long", text(&format!(" 0 {bytes}\n"), " 0 99999999999999999999999\n")),
        ("more room than there is", text(&format!(" 0 {bytes}\n"), " 0 9000000000000000000\n")),
        ("a manifest for another set", text("set web", "set wob")),
        ("a block that is too long", text(&format!("block {} ", manifest.len()), "block 4194305 ")),
        ("no manifest", text("block ", "end\nblock ")),
        ("a word that there is not", text("block ", "write ")),
        ("another version of the manifest", resealed("\"version\": 1", "\"version\": 2")),
        ("a manifest with a path", resealed("\"name\": \"web\"", "\"name\": \"../web\"")),
        ("no disk", resealed("\"index\": 1", "\"index\": 7")),
        ("a manifest of another set", resealed("\"name\": \"web\"", "\"name\": \"wob\"")),
    ];
    for (case, stream) in cases {
        let out = receive(&scene, &stream, &[]);
        refused(&out, "EVERIFY|ENOSPC");
        assert_eq!(names(scene.root.path().join("old")), [".sm-store"], "{case}");
    }
    // Blocks of two disks that were exchanged, with their digests: the map of each tells its own.
    let begin = whole.windows(6).enumerate().filter(|(_, part)| *part == b"block ").map(|(at, _)| at);
    let begin: Vec<usize> = begin.filter(|at| whole[at - 1] == b'\n' || whole[at - 1] == b'}').collect();
    let (last, end) = (*begin.last().unwrap(), whole.len() - "end\ndone\n".len());
    let first = begin[begin.len() - 2];
    let swapped = [&whole[..first], &whole[last..end], &whole[first..last], &whole[end..]].concat();
    refused(&receive(&scene, &swapped, &[]), "EVERIFY");
    assert!(there(&scene).is_empty());
    // More blocks than the run has, and fewer.
    let more = [&whole[..end], &whole[last..end], &whole[end..]].concat();
    refused(&receive(&scene, &more, &[]), "EVERIFY");
    let fewer = [&whole[..last], &whole[end..]].concat();
    refused(&receive(&scene, &fewer, &[]), "EVERIFY");
    assert!(there(&scene).is_empty());
    // The next export of the set removes what is left of it.
    backup(&scene, &["export", "web", "--disk", "fast/web", "--to", "old", "--keep-others"]).done();
    assert_eq!(names(scene.root.path().join("old/web")).len(), 2);
}
