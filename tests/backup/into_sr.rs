//! Runs through a pipe into an SR, without a store: whole, cut, changed and killed.

use std::fs;
use std::process::Output;

use super::scene::kill::{Act, End, Points, run_on};
use super::scene::{A, B, Scene, pattern, sampled};
use super::streams::{export, refused, stream, through};
use super::{MIB, backup, disk, exported, names, path, records, same, scene, sealed, sm, web, write};

fn receive(scene: &Scene, stream: &[u8], more: &[&str]) -> Output {
    through(scene, stream, &[&["--sr", "slow", "--format", "json"], more].concat())
}

/// The UUIDs of the disks that were made.
#[track_caller]
fn made(out: &Output) -> Vec<String> {
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let answer: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    answer["disks"].as_array().unwrap().iter().map(|disk| disk["uuid"].as_str().unwrap().to_owned()).collect()
}

/// The images of `slow`.
fn images(scene: &Scene) -> Vec<String> {
    let mut names = names(scene.root.path().join("slow"));
    names.retain(|name| !name.starts_with('.'));
    names
}

/// Makes disks of a stream, compares them, and deletes them.
#[track_caller]
fn comes(scene: &Scene, stream: &[u8], expected: &[&[u8]]) {
    let disks = made(&receive(scene, stream, &[]));
    assert_eq!(disks.len(), expected.len());
    for (disk, expected) in disks.iter().zip(expected) {
        same(&exported(scene, &format!("slow/{disk}")), expected);
        sm(scene, &["vdi_delete", "slow", disk]).done();
    }
    assert!(images(scene).is_empty() && records(scene).is_empty());
}

#[test]
fn disks_go_through_a_pipe_into_an_sr() {
    let scene = scene();
    let mut first = web(&scene, "qcow2");
    let second = disk(&scene, B, "data", "raw", 9 * MIB, &[(0, pattern(5 * MIB)), (9 * MIB - 512, pattern(512))]);
    fs::write(path(&scene, "note"), "of an agent").unwrap();
    let note = path(&scene, "note");
    backup(&scene, &["define", "web", "--disk", "fast/web", "--disk", "fast/data", "--metadata", &note]).done();
    let whole = ["export", "web", "--to", "nas", "--since", "last", "--keep", "9", "--compress"];
    for packed in ["none", "gzip", "zstd"] {
        backup(&scene, &["export", "web", "--to", "nas", "--since", "none", "--compress", packed]).done();
        comes(&scene, &stream(&scene, &[]), &[&first, &second]);
        comes(&scene, &stream(&scene, &["--whole"]), &[&first, &second]);
    }
    for (at, packed) in [(20, "zstd"), (5, "none"), (30, "gzip")] {
        write(&scene, "qcow2", at * MIB, &[at as u8; 4096]);
        first[(at * MIB) as usize..][..4096].fill(at as u8);
        backup(&scene, &[&whole[..], &[packed]].concat()).done();
    }
    // An increment is no disk, and the run before is not what was asked for.
    for more in [&[][..], &["--since", &super::current(&scene, "nas", "web").file_name().unwrap().to_string_lossy()]] {
        if let [_, run] = more {
            let (_, parent) = chain(&scene, run);
            let increment = stream(&scene, &["--since", &parent]);
            assert!(refused(&receive(&scene, &increment, &[]), "{").contains("send it with --whole"));
        } else {
            assert!(refused(&receive(&scene, &stream(&scene, &[]), &[]), "{").contains("send it with --whole"));
        }
        assert!(images(&scene).is_empty() && records(&scene).is_empty());
    }
    let whole = stream(&scene, &["--whole"]);
    comes(&scene, &whole, &[&first, &second]);
    // A store takes it as well, as a run of its own.
    assert!(through(&scene, &whole, &["--to", "old"]).status.success());
    backup(&scene, &["verify", "web", "--store", "old", "--deep"]).done();
    let note = super::current(&scene, "old", "web").join("metadata");
    assert_eq!(fs::read_to_string(note).unwrap(), "of an agent");
    let kept = made(&receive(&scene, &whole, &["--keep-uuids"]));
    assert_eq!(kept, [A, B]);
    let taken = refused(&receive(&scene, &whole, &["--keep-uuids"]), "{");
    assert!(taken.contains("EEXIST"), "{taken}");
    let said = sm(&scene, &["vdi_get_params", "slow", A, "--format", "json"]).done();
    assert!(said.contains(r#""label":"web""#), "{said}");
}

/// A run, and that which it is an increment on.
fn chain(scene: &Scene, run: &str) -> (String, String) {
    let text = fs::read(scene.root.path().join("nas/web").join(run).join("manifest.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&text).unwrap();
    (run.to_owned(), manifest["parent"]["run"].as_str().unwrap().to_owned())
}

#[test]
fn a_stream_that_was_cut_or_changed_leaves_no_disk() {
    let scene = scene();
    let bytes = disk(&scene, A, "web", "raw", 12 * MIB, &[(MIB, pattern(5 * MIB)), (11 * MIB, pattern(MIB))]);
    for packed in ["none", "zstd"] {
        export(&scene, &["--compress", packed]);
        let whole = stream(&scene, &[]);
        let cuts = (0..whole.len()).step_by(whole.len() / 9).chain([whole.len() - 6, whole.len() - 1]);
        for cut in cuts {
            refused(&receive(&scene, &whole[..cut], &[]), "{");
            assert!(images(&scene).is_empty() && records(&scene).is_empty(), "cut at {cut}");
        }
        for at in (0..whole.len()).step_by(whole.len() / 9).chain([whole.len() - 7, whole.len() - 3]) {
            let mut changed = whole.clone();
            changed[at] ^= 4;
            refused(&receive(&scene, &changed, &[]), "{");
            assert!(images(&scene).is_empty() && records(&scene).is_empty(), "byte {at}");
        }
        comes(&scene, &whole, &[&bytes]);
    }
    let run = super::current(&scene, "nas", "web").file_name().unwrap().to_string_lossy().into_owned();
    let later = stream(&scene, &["--from", &format!("{run}:3")]);
    assert!(refused(&receive(&scene, &later, &[]), "{").contains("first block"));
}

#[test]
fn an_encrypted_run_is_opened_as_it_comes() {
    let scene = scene();
    let (public, secret) = sealed::keys(&scene);
    // Noise, so that there are chunks of age in several pieces of the stream, and an image that no block ends.
    let noise: Vec<u8> =
        (0..5 * MIB / 8).flat_map(|n: u64| (n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()).collect();
    let first = disk(&scene, A, "web", "raw", 50 * MIB, &[(5 * MIB, noise), (30 * MIB, pattern(512))]);
    let second = disk(&scene, B, "data", "qcow2", 9 * MIB, &[(8 * MIB, pattern(MIB))]);
    backup(&scene, &["define", "web", "--disk", "fast/web", "--disk", "fast/data", "--recipient", &public]).done();
    for packed in ["zstd", "gzip"] {
        backup(&scene, &["export", "web", "--to", "nas", "--compress", packed, "--since", "none"]).done();
        let whole = stream(&scene, &[]);
        assert!(refused(&receive(&scene, &whole, &[]), "{").contains("--identity"));
        let disks = made(&receive(&scene, &whole, &["--identity", &secret]));
        for (disk, expected) in disks.iter().zip([&first, &second]) {
            same(&exported(&scene, &format!("slow/{disk}")), expected);
            sm(&scene, &["vdi_delete", "slow", disk]).done();
        }
        for cut in (0..whole.len()).step_by(whole.len() / 3).chain([whole.len() - 6]) {
            refused(&receive(&scene, &whole[..cut], &["--identity", &secret]), "{");
            assert!(images(&scene).is_empty() && records(&scene).is_empty(), "{packed}: cut at {cut}");
        }
    }
    // A stream whose own digests were made to fit: the last bytes of the image are no block of the map.
    let dir = super::current(&scene, "nas", "web");
    let image = dir.join("disk0.raw.gz.age");
    let good = fs::read(&image).unwrap();
    for (case, bad) in [
        ("a flipped bit", {
            let mut bad = good.clone();
            let at = bad.len() - 3;
            bad[at] ^= 1;
            bad
        }),
        ("a chunk less", good[..good.len() / 2].to_vec()),
        ("a byte more", [&good[..], b"x"].concat()),
    ] {
        fs::write(&image, bad).unwrap();
        let sent = backup(&scene, &["send", "web", "--store", "nas"]).output.stdout;
        refused(&receive(&scene, &sent, &["--identity", &secret]), "{");
        assert!(images(&scene).is_empty() && records(&scene).is_empty(), "{case}");
    }
    fs::write(&image, good).unwrap();
    write(&scene, "raw", 5 * MIB, &[1; 4096]);
    backup(&scene, &["export", "web", "--to", "nas", "--since", "last", "--keep", "9"]).done();
    let sent = receive(&scene, &stream(&scene, &[]), &["--identity", &secret]);
    let said = refused(&sent, "{");
    assert!(said.contains("--whole") || said.contains("consolidate"), "{said}");
    assert!(images(&scene).is_empty() && records(&scene).is_empty());
}

#[test]
fn a_killed_receive_into_an_sr_leaves_all_disks_or_the_next_call_none() {
    for n in sampled() {
        let scene = scene();
        disk(&scene, A, "web", "raw", 5 * MIB, &[(MIB, pattern(4096)), (4 * MIB, pattern(512))]);
        export(&scene, &[]);
        fs::write(path(&scene, "stream"), stream(&scene, &[])).unwrap();
        let args = ["backup", "receive", "--sr", "slow"].map(str::to_owned);
        let input = fs::File::open(path(&scene, "stream")).unwrap();
        let run_dir = scene.root.path().join("run");
        let killed = run_on(input.into(), n, Points::Changing, Act::Kill, &scene.executable(), &args, &run_dir);
        if killed.end != End::Killed {
            assert_eq!(killed.end, End::Status(0), "{}", String::from_utf8_lossy(&killed.stderr));
            assert!(n > 5, "only {n} points");
            break;
        }
        let records_left = records(&scene).len();
        backup(&scene, &["list"]).done();
        assert!(records(&scene).is_empty(), "killed at {n}");
        let left = images(&scene);
        assert!(left.is_empty() || records_left == 0, "killed at {n}: {left:?}");
    }
}
