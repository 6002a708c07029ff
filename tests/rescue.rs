//! vdi_export --rescue: what can be read of a damaged disk, and the list of what cannot.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that cannot go on ends here"
)]
#![allow(clippy::disallowed_types, reason = "the rule is for what we ship")]

mod scene;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use scene::{A, B, Door, FILE, SR, Scene, is_root, pattern};

const MIB: u64 = 1 << 20;
const CLUSTER: u64 = 64 << 10;

/// A disk of 9 MiB that holds the pattern, and what it holds.
fn disk(format: &str) -> (Scene, Vec<u8>) {
    disk_through(Door::Driver, format)
}

fn disk_through(door: Door, format: &str) -> (Scene, Vec<u8>) {
    let scene = Scene::empty(&FILE, door);
    scene.call(["sr_create", SR]).done();
    let data = scene.root.path().join("data");
    let mut bytes = pattern(9 * MIB);
    // Its third MiB is a hole.
    bytes[2 * MIB as usize..3 * MIB as usize].fill(0);
    fs::write(&data, &bytes).unwrap();
    scene.call(["vdi_import", SR, A, data.to_str().unwrap(), "--file-type", "raw", "--type", format]).done();
    let size = bytes.len().next_multiple_of(if format == "vhd" { 2 << 20 } else { 64 << 10 });
    bytes.resize(size, 0);
    (scene, bytes)
}

fn image(scene: &Scene, vdi: &str, format: &str) -> PathBuf {
    scene.place.join(format!("{vdi}.{format}"))
}

fn open(path: &Path) -> File {
    File::options().read(true).write(true).open(path).unwrap()
}

fn word(path: &Path, at: u64) -> u64 {
    let mut bytes = [0; 8];
    open(path).read_exact_at(&mut bytes, at).unwrap();
    u64::from_be_bytes(bytes)
}

/// Byte of a VHD where the entry of a block is.
fn bat(path: &Path, block: u64) -> u64 {
    // The header follows the copy of the footer; its table offset is at byte 16.
    word(path, 512 + 16) + block * 4
}

fn put(path: &Path, bytes: &[u8], at: u64) {
    open(path).write_all_at(bytes, at).unwrap();
}

/// Without --rescue the export of a damaged image fails, leaves no file, and names the option.
fn is_refused(scene: &Scene, vdi: &str) {
    let out = scene.root.path().join("out.raw");
    let _ = fs::remove_file(&out);
    let refused = scene.call(["vdi_export", SR, vdi, out.to_str().unwrap()]).fails("EIO");
    assert!(refused.contains("vdi_export --rescue exports what can be read"), "{refused}");
    assert!(!out.exists());
}

/// The lines of an export that leaves something out: the failure, and each stretch.
fn left_out(scene: &Scene, call: &[&str]) -> Vec<String> {
    let outcome = scene.call(call);
    assert_eq!((outcome.status(), outcome.stdout()), (5, String::new()), "{outcome}");
    outcome.stderr().lines().map(str::to_owned).collect()
}

/// With --rescue, all but `lost` is there, the lost bytes are zeroes, and the error lists them.
fn is_rescued(scene: &Scene, vdi: &str, whole: &[u8], lost: &[(u64, u64)]) {
    let out = scene.root.path().join("out.raw");
    let _ = fs::remove_file(&out);
    let said = left_out(scene, &["vdi_export", SR, vdi, out.to_str().unwrap(), "--type", "raw", "--rescue"]);
    let mut wanted = whole.to_vec();
    for (start, end) in lost {
        wanted[*start as usize..*end as usize].fill(0);
        let line = format!("bytes {start} to {}: ", end - 1);
        assert!(said.iter().any(|said| said.starts_with(&line)), "{line}: {said:?}");
    }
    assert_eq!(said.len(), lost.len() + 1, "{said:?}");
    let total: u64 = lost.iter().map(|(start, end)| end - start).sum();
    let first = format!("EIO: VDI {vdi} is exported, with zeroes in the place of {total} bytes that cannot be read");
    assert_eq!(said[0], first);
    let got = fs::read(&out).unwrap();
    assert_eq!(got.len(), wanted.len());
    let differs = got.iter().zip(&wanted).position(|(a, b)| a != b);
    assert_eq!(differs, None, "the rescued disk differs");
    // In the other formats.
    for format in ["vhd", "qcow2"] {
        let path = scene.root.path().join(format!("out.{format}"));
        let _ = fs::remove_file(&path);
        left_out(scene, &["vdi_export", SR, vdi, path.to_str().unwrap(), "--rescue"]);
        scene.call(["vdi_import", SR, B, path.to_str().unwrap()]).done();
        let back = scene.root.path().join("back.raw");
        let _ = fs::remove_file(&back);
        scene.call(["vdi_export", SR, B, back.to_str().unwrap()]).done();
        let back = fs::read(&back).unwrap();
        assert!(back.starts_with(&wanted) && back[wanted.len()..].iter().all(|byte| *byte == 0), "{format}");
        scene.call(["vdi_delete", SR, B]).done();
    }
}

#[test]
fn a_disk_without_a_fault_is_exported_as_ever() {
    for format in ["vhd", "qcow2", "raw"] {
        let (scene, mut bytes) = disk(format);
        if format == "raw" {
            bytes.truncate(9 * MIB as usize);
        }
        let out = scene.root.path().join("out.raw");
        scene.call(["vdi_export", SR, A, out.to_str().unwrap(), "--type", "raw", "--rescue"]).done();
        assert!(fs::read(&out).unwrap() == bytes, "{format}");
    }
}

#[test]
fn a_vhd_with_a_bad_entry_loses_that_block_alone() {
    // Into the headers, and past the end of the file.
    for entry in [1u32, 0x0fff_fff0] {
        let (scene, bytes) = disk("vhd");
        let path = image(&scene, A, "vhd");
        put(&path, &entry.to_be_bytes(), bat(&path, 2));
        is_refused(&scene, A);
        is_rescued(&scene, A, &bytes, &[(4 * MIB, 6 * MIB)]);
    }
}

#[test]
fn a_damaged_vhd_is_neither_copied_nor_attached_and_a_person_is_told_of_the_rescue() {
    let hint = "vdi_export --rescue exports what can be read";
    for door in [Door::Sm, Door::Driver] {
        let (scene, _) = disk_through(door, "vhd");
        let path = image(&scene, A, "vhd");
        let sound = fs::read(&path).unwrap();
        put(&path, &1u32.to_be_bytes(), bat(&path, 2));
        let damaged = fs::read(&path).unwrap();
        for line in [
            &["vdi_clone", SR, A, B][..],
            &["vdi_snapshot", SR, A, B],
            &["vdi_resize", SR, A, "64"],
            &["vdi_copy", SR, A, SR, B],
            &["vdi_attach", SR, A],
        ] {
            if line[0] == "vdi_attach" && !is_root() {
                continue;
            }
            let refused = scene.call(line).fails("EIO");
            assert!(refused.contains("block 2 lies at byte 512, outside the data"), "{line:?}: {refused}");
            assert_eq!(refused.contains(hint), door == Door::Sm, "{line:?}: {refused}");
        }
        assert!(fs::read(&path).unwrap() == damaged && !image(&scene, B, "vhd").exists());
        put(&path, &sound[..], 0);
        scene.call(["vdi_snapshot", SR, A, B]).done();
    }
}

#[test]
fn a_damaged_base_that_would_be_merged_counts_as_broken() {
    let (scene, _) = disk_through(Door::Sm, "vhd");
    scene.call(["vdi_snapshot", SR, A, B]).done();
    let known = scene.call(["vdi_get_params", SR, A]).done();
    let base = known.split_once("(parent . \"").unwrap().1[..36].to_owned();
    scene.call(["vdi_delete", SR, B, "--yes"]).done();
    let broken = || {
        let text = scene.call(["sr_metrics", SR]).done();
        text.lines().any(|line| line.starts_with("sm_sr_vdis_broken{") && line.ends_with(" 1"))
    };
    assert!(!broken());
    let path = image(&scene, &base, "vhd");
    put(&path, &1u32.to_be_bytes(), bat(&path, 2));
    assert!(broken());
}

#[test]
fn the_lost_bytes_are_told_in_json_as_well() {
    let (scene, _) = disk_through(Door::Sm, "vhd");
    let path = image(&scene, A, "vhd");
    put(&path, &1u32.to_be_bytes(), bat(&path, 2));
    let out = scene.root.path().join("out.raw");
    let dconf = scene.dconf();
    let line = ["--format", "json", "-t", "file", "-d", &dconf, "vdi_export", "--rescue", SR, A, out.to_str().unwrap()];
    let outcome = scene.bare(line);
    let said = outcome.stderr();
    let lines: Vec<&str> = said.lines().collect();
    assert!(lines.len() == 2 && lines[0].starts_with("{\"schema\":1,\"error\":\"EIO\",\"status\":5"), "{said}");
    let lost = format!("{{\"schema\":1,\"vdi\":\"{A}\",\"lost\":[{{\"start\":4194304,\"end\":6291456,\"why\":\"");
    assert!(lines[1].starts_with(&lost), "{said}");
}

#[test]
fn of_two_blocks_in_one_place_both_are_lost() {
    let (scene, bytes) = disk("vhd");
    let path = image(&scene, A, "vhd");
    let mut first = [0; 4];
    open(&path).read_exact_at(&mut first, bat(&path, 0)).unwrap();
    put(&path, &first, bat(&path, 3));
    is_refused(&scene, A);
    is_rescued(&scene, A, &bytes, &[(0, 2 * MIB), (6 * MIB, 8 * MIB)]);
}

#[test]
fn a_qcow2_with_a_bad_entry_loses_that_cluster_alone() {
    let (scene, bytes) = disk("qcow2");
    let path = image(&scene, A, "qcow2");
    let l2 = word(&path, word(&path, 40)) & 0x00ff_ffff_ffff_fe00;
    // Not at a cluster, and past the end of the file.
    for (n, entry) in [(3, (1u64 << 63) | 0x1_0200), (100, (1 << 63) | (1 << 40))] {
        put(&path, &entry.to_be_bytes(), l2 + n * 8);
    }
    is_refused(&scene, A);
    is_rescued(&scene, A, &bytes, &[(3 * CLUSTER, 4 * CLUSTER), (100 * CLUSTER, 101 * CLUSTER)]);
}

#[test]
fn a_qcow2_whose_l2_table_is_nowhere_loses_what_it_leads_to() {
    let (scene, bytes) = disk("qcow2");
    let path = image(&scene, A, "qcow2");
    put(&path, &((1u64 << 63) | (1 << 40)).to_be_bytes(), word(&path, 40));
    let end = bytes.len() as u64;
    is_refused(&scene, A);
    is_rescued(&scene, A, &vec![0; bytes.len()], &[(0, end)]);
}

#[test]
fn what_a_child_holds_is_there_without_its_parent() {
    for format in ["vhd", "qcow2"] {
        let (scene, bytes) = disk(format);
        scene.call(["vdi_snapshot", SR, A, "98de866e-b035-4b1a-a571-0000000000e5"]).done();
        let known = scene.call(["vdi_get_params", SR, A]).done();
        let base = known.split_once("(parent . \"").unwrap().1[..36].to_owned();
        let size = bytes.len() as u64;
        fs::rename(image(&scene, &base, format), scene.root.path().join("away")).unwrap();
        is_rescued(&scene, A, &vec![0; bytes.len()], &[(0, size)]);
        // A base with a fault of its own loses what it cannot show.
        fs::rename(scene.root.path().join("away"), image(&scene, &base, format)).unwrap();
        let path = image(&scene, &base, format);
        let lost = match format {
            "vhd" => {
                put(&path, &1u32.to_be_bytes(), bat(&path, 4));
                (8 * MIB, 10 * MIB)
            }
            _ => {
                let l2 = word(&path, word(&path, 40)) & 0x00ff_ffff_ffff_fe00;
                put(&path, &((1u64 << 63) | (1 << 40)).to_be_bytes(), l2);
                (0, CLUSTER)
            }
        };
        is_refused(&scene, A);
        is_rescued(&scene, A, &bytes, &[lost]);
    }
}

#[test]
fn a_vhd_that_has_lost_its_header_is_read_by_the_place_that_its_table_has_in_all_of_ours() {
    let (scene, bytes) = disk("vhd");
    put(&image(&scene, A, "vhd"), &[0x55; 1024], 512);
    is_refused(&scene, A);
    let out = scene.root.path().join("out.raw");
    scene.call(["vdi_export", SR, A, out.to_str().unwrap(), "--type", "raw", "--rescue"]).done();
    assert_eq!(fs::read(&out).unwrap(), bytes);
    fs::remove_file(&out).unwrap();
    // Another writer has its table elsewhere, and blocks of another size.
    let path = image(&scene, A, "vhd");
    let end = fs::metadata(&path).unwrap().len() - 512;
    for at in [0, end] {
        let mut footer = [0; 512];
        open(&path).read_exact_at(&mut footer, at).unwrap();
        footer[0x1c..0x20].copy_from_slice(b"vpc ");
        footer[0x40..0x44].fill(0);
        let sum = !footer.iter().map(|byte| u32::from(*byte)).sum::<u32>();
        footer[0x40..0x44].copy_from_slice(&sum.to_be_bytes());
        put(&path, &footer, at);
    }
    let refused = scene.call(["vdi_export", SR, A, out.to_str().unwrap(), "--type", "raw", "--rescue"]).fails("EIO");
    assert!(refused.contains("the header has no cookie; so nothing of it can be read, and a backup"), "{refused}");
}

#[test]
fn a_child_that_has_lost_its_header_keeps_what_it_holds_itself() {
    let (scene, bytes) = disk("vhd");
    scene.call(["vdi_snapshot", SR, A, "98de866e-b035-4b1a-a571-0000000000e5"]).done();
    put(&image(&scene, A, "vhd"), &[0x55; 1024], 512);
    is_rescued(&scene, A, &vec![0; bytes.len()], &[(0, bytes.len() as u64)]);
}

#[test]
fn without_a_header_nothing_can_be_rescued() {
    for format in ["vhd", "qcow2"] {
        let (scene, _) = disk(format);
        let path = image(&scene, A, format);
        let end = fs::metadata(&path).unwrap().len();
        put(&path, &[0x55; 2048], 0);
        put(&path, &[0x55; 512], end - 512);
        let out = scene.root.path().join("out.raw");
        scene.call(["vdi_export", SR, A, out.to_str().unwrap(), "--rescue"]).fails("EIO");
        assert!(!out.exists(), "{format}");
    }
}
