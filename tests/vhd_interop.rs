//! Images of ours in other tools, and theirs in ours: qemu-img for images without a parent, vhd-util for all.
//! A tool that is not on PATH skips its tests and says so.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that cannot go on ends here"
)]
#![allow(clippy::disallowed_types, reason = "tests start other programs directly")]

mod vhd_support;

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;

use vhd_support::*;
use xcp_sm::image::vhd::{self, Chain, CheckOptions, NewImage, ParentLink, Storage, Target};
use xcp_sm::types::Mode;

fn run(tool: &str, args: &[&str]) -> Option<Output> {
    match Command::new(tool).args(args).output() {
        Ok(out) => Some(out),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("SKIP: {tool} is not on PATH");
            // No package of Debian has vhd-util.
            let excused = tool == "vhd-util" || std::env::var_os("SM_TESTS_SKIP_NOTHING").is_none();
            assert!(excused, "skipped where nothing should be");
            None
        }
        Err(e) => panic!("{tool}: {e}"),
    }
}

/// Runs the tool and expects success; `None` if it is not there.
fn must(tool: &str, args: &[&str]) -> Option<String> {
    let out = run(tool, args)?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{tool} {args:?}: {:?}\n{text}", out.status);
    Some(text)
}

fn name(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Writes of awkward shapes; returns what the disk then holds, on top of `model`.
fn scribble(chain: &Chain, mut model: Vec<u8>, seed: u8) -> Vec<u8> {
    let end = model.len() as u64;
    let shapes = [
        (0, 512),
        (5 * 512, 4096),
        (2 * MIB - 1024, 2048),
        (4 * MIB, 2 * MIB),
        (7 * MIB + 512, 3 * MIB),
        (end - 512, 512),
    ];
    for (i, (at, len)) in shapes.into_iter().enumerate() {
        let bytes = pattern(seed + i as u8, len as usize);
        chain.write_at(&bytes, at).unwrap();
        model[at as usize..][..len as usize].copy_from_slice(&bytes);
    }
    model
}

#[test]
fn qemu_reads_and_converts_what_we_write() {
    let dir = Dir::new();
    let (ours, raw, theirs) = (dir.at("ours.vhd"), dir.at("raw"), dir.at("theirs.vhd"));
    create(&ours, 100 * MIB);
    let chain = open(&ours, Mode::ReadWrite);
    let model = scribble(&chain, vec![0; 100 << 20], 1);
    chain.close().unwrap();
    assert!(contents(&ours) == model);
    fs::write(&raw, &model).unwrap();
    if must("qemu-img", &["compare", "-f", "vpc", "-F", "raw", name(&ours), name(&raw)]).is_none() {
        return;
    }
    let said = must("qemu-img", &["info", name(&ours)]).unwrap();
    assert!(said.contains("file format: vpc") && said.contains("104857600 bytes"), "{said}");
    for options in ["subformat=dynamic", "subformat=dynamic,force_size=on", "subformat=fixed,force_size=on"] {
        must("qemu-img", &["convert", "-f", "raw", "-O", "vpc", "-o", options, name(&raw), name(&theirs)]).unwrap();
        let got = contents(&theirs);
        assert!(got[..100 << 20] == model[..] && got[100 << 20..].iter().all(|b| *b == 0), "{options}");
    }
}

#[test]
fn qemu_sees_what_we_write_into_its_image() {
    let dir = Dir::new();
    let (image, raw) = (dir.at("a.vhd"), dir.at("raw"));
    if must("qemu-img", &["create", "-f", "vpc", "-o", "force_size=on", name(&image), "64M"]).is_none() {
        return;
    }
    let chain = open(&image, Mode::ReadWrite);
    let model = scribble(&chain, vec![0; 64 << 20], 9);
    chain.close().unwrap();
    fs::write(&raw, &model).unwrap();
    must("qemu-img", &["compare", "-f", "vpc", "-F", "raw", name(&image), name(&raw)]).unwrap();
}

#[test]
fn qemu_sees_what_we_write_into_blocks_of_other_sizes() {
    for kib in [4, 64, 512, 1024] {
        let dir = Dir::new();
        let (image, child, raw) = (dir.at("a.vhd"), dir.at("child.vhd"), dir.at("raw"));
        fs::write(&image, with_blocks(64 * MIB, kib << 10)).unwrap();
        let chain = open(&image, Mode::ReadWrite);
        let model = scribble(&chain, vec![0; 64 << 20], 9);
        chain.close().unwrap();
        assert!(contents(&image) == model);
        fs::write(&raw, &model).unwrap();
        let compare = ["compare", "-f", "vpc", "-F", "raw", name(&image), name(&raw)];
        if must("qemu-img", &compare).is_none() {
            return;
        }
        // What a child of 2 MiB blocks holds goes into it.
        snapshot(&child, &image);
        let chain = open(&child, Mode::ReadWrite);
        let model = scribble(&chain, model, 77);
        chain.close().unwrap();
        assert!(contents(&child) == model);
        let base = vhd::Image::open(place(&image), Mode::ReadWrite).unwrap();
        let open_child = open(&child, Mode::ReadOnly);
        vhd::coalesce(open_child.leaf().unwrap(), Target::Vhd(&base), &|_, _| ControlFlow::Continue(())).unwrap();
        base.close().unwrap();
        fs::write(&raw, &model).unwrap();
        must("qemu-img", &compare).unwrap();
        // Grown, and what was there is where it was.
        let grown: Arc<dyn Storage> = place(&image);
        vhd::resize(&grown, 200 * MIB).unwrap();
        assert_eq!(vhd::check(&grown, CheckOptions { bitmaps: true, ..Default::default() }).unwrap(), []);
        fs::File::options().write(true).open(&raw).unwrap().set_len(200 * MIB).unwrap();
        must("qemu-img", &compare).unwrap();
    }
}

/// Blanks what may differ between two images of one content: timestamp, checksum and UUID of the footers; checksum,
/// parent UUID and parent time of the header.
fn mask(path: &Path) -> Vec<u8> {
    let mut bytes = fs::read(path).unwrap();
    for footer in [0, bytes.len() - 512] {
        bytes[footer + 0x18..footer + 0x1c].fill(0);
        bytes[footer + 0x40..footer + 0x54].fill(0);
    }
    bytes[512 + 0x24..512 + 0x3c].fill(0);
    bytes
}

/// Not compared: block counts that are 1 to 7 above a multiple of 4,096, such as 8,194 MiB. There libvhd writes one
/// sector less of the batmap than it sets aside and puts the footer into it.
#[test]
fn new_images_are_those_of_vhd_util_byte_for_byte() {
    let dir = Dir::new();
    let (parent, ours) = (dir.at("parent.vhd"), dir.at("ours.vhd"));
    let (their_child, our_child) = (dir.at("a.vhd"), dir.at("b.vhd"));
    for (mib, reserve) in [(2, 0), (100, 0), (100, 10_000), (8208, 0), (40_000, 2_097_152), (2_088_960, 0)] {
        let (size, most) = (mib.to_string(), reserve.to_string());
        let reserved: &[&str] = if reserve == 0 { &[] } else { &["-S", &most] };
        if must("vhd-util", &[&["create", "-n", name(&parent), "-s", &size], reserved].concat()).is_none() {
            return;
        }
        let new = NewImage { reserve: reserve * MIB, ..NewImage::new(mib * MIB) };
        vhd::create(&*fresh(&ours), &new).unwrap();
        assert!(mask(&parent) == mask(&ours), "dynamic, {mib} MiB");

        let args = ["snapshot", "-e", "-n", name(&their_child), "-p", name(&parent)];
        must("vhd-util", &[&args, reserved].concat()).unwrap();
        vhd::create_child(&*fresh(&our_child), &new, &link_to(&our_child, &parent)).unwrap();
        assert!(mask(&their_child) == mask(&our_child), "differencing, {mib} MiB");
        must("vhd-util", &["check", "-n", name(&our_child)]).unwrap();
    }
}

#[test]
fn vhd_util_reads_checks_and_coalesces_our_chain() {
    let dir = Dir::new();
    let (base, child) = (dir.at("base.vhd"), dir.at("child.vhd"));
    create(&base, 32 * MIB);
    let chain = open(&base, Mode::ReadWrite);
    let mut model = scribble(&chain, vec![0; 32 << 20], 1);
    chain.close().unwrap();
    snapshot(&child, &base);
    let chain = open(&child, Mode::ReadWrite);
    let bytes = pattern(77, 9 << 20);
    chain.write_at(&bytes, 3 * MIB + 512).unwrap();
    model[(3 << 20) + 512..][..9 << 20].copy_from_slice(&bytes);
    chain.close().unwrap();
    assert!(contents(&child) == model);

    if must("vhd-util", &["check", "-n", name(&child)]).is_none() {
        return;
    }
    must("vhd-util", &["check", "-n", name(&base)]).unwrap();
    let said = must("vhd-util", &["query", "-n", name(&child), "-vpfd"]).unwrap();
    assert_eq!(said, format!("32\n{}\nhidden: 0\nchain depth: 2\n", base.display()));
    let read = run("vhd-util", &["read", "-n", name(&child), "-r", "0", "-c", "65536"]).unwrap();
    assert!(read.status.success() && read.stdout == model);
    vhd::set_hidden(&*place(&base), true).unwrap();
    assert_eq!(must("vhd-util", &["query", "-n", name(&base), "-f"]).unwrap(), "hidden: 1\n");
    must("vhd-util", &["coalesce", "-n", name(&child)]).unwrap();
    assert!(contents(&base) == model);
    must("vhd-util", &["check", "-n", name(&base)]).unwrap();
}

#[test]
fn we_read_and_extend_a_chain_of_vhd_util() {
    let dir = Dir::new();
    let (raw, base, child, top) = (dir.at("raw"), dir.at("base.vhd"), dir.at("child.vhd"), dir.at("top.vhd"));
    let mut model = pattern(3, 16 << 20);
    fs::write(&raw, &model).unwrap();
    let make = |child: &Path, parent: &Path, raw: &[&str]| {
        must("vhd-util", &[&["snapshot", "-e", "-n", name(child), "-p", name(parent)], raw].concat())
    };
    if make(&base, &raw, &["-m"]).is_none() {
        return;
    }
    make(&child, &base, &[]).unwrap();
    let chain = open(&child, Mode::ReadWrite);
    assert_eq!(chain.depth(), 3);
    model = scribble(&chain, model, 5);
    chain.close().unwrap();
    make(&top, &child, &[]).unwrap();
    assert!(contents(&top) == model);
    must("vhd-util", &["check", "-n", name(&child)]).unwrap();
    let link = ParentLink { path: "./base.vhd".into(), ..link_to(&top, &base) };
    must("vhd-util", &["coalesce", "-n", name(&child)]).unwrap();
    vhd::set_parent(&*place(&top), &link).unwrap();
    fs::remove_file(&child).unwrap();
    assert!(contents(&top) == model);
    must("vhd-util", &["check", "-n", name(&top)]).unwrap();
    assert_eq!(must("vhd-util", &["query", "-n", name(&top), "-p"]).unwrap(), format!("{}\n", base.display()));
}

#[test]
fn vhd_util_checks_what_we_grew_coalesced_and_repaired() {
    let dir = Dir::new();
    let (base, child) = (dir.at("base.vhd"), dir.at("child.vhd"));
    create(&base, 100 * MIB);
    let chain = open(&base, Mode::ReadWrite);
    scribble(&chain, vec![0; 100 << 20], 1);
    chain.close().unwrap();
    snapshot(&child, &base);
    let chain = open(&child, Mode::ReadWrite);
    scribble(&chain, vec![0; 100 << 20], 2);
    chain.close().unwrap();
    for size in [256, 300, 600, 10_000, 2_088_960] {
        for path in [&base, &child] {
            let place: Arc<dyn Storage> = place(path);
            vhd::resize(&place, size * MIB).unwrap();
            if must("vhd-util", &["check", "-n", name(path)]).is_none() {
                return;
            }
            let said = must("vhd-util", &["query", "-n", name(path), "-v", "-S", "-s"]).unwrap();
            let bytes = fs::metadata(path).unwrap().len();
            assert_eq!(said, format!("{size}\n{bytes}\n{size}\n"));
        }
    }
    let before = must("vhd-util", &["query", "-n", name(&base), "-a"]).unwrap();
    let image = vhd::Image::open(place(&base), Mode::ReadWrite).unwrap();
    let open_child = open(&child, Mode::ReadOnly);
    vhd::coalesce(open_child.leaf().unwrap(), Target::Vhd(&image), &|_, _| ControlFlow::Continue(())).unwrap();
    image.close().unwrap();
    must("vhd-util", &["check", "-n", name(&base)]).unwrap();
    assert_eq!(must("vhd-util", &["query", "-n", name(&base), "-a"]).unwrap(), before);

    // A batmap that was cut by `set -f marker`, and a footer that is gone.
    must("vhd-util", &["set", "-n", name(&base), "-f", "marker", "-v", "1"]).unwrap();
    let end = fs::metadata(&base).unwrap().len();
    fs::File::options().write(true).open(&base).unwrap().set_len(end - 512).unwrap();
    assert!(!run("vhd-util", &["check", "-n", name(&base)]).unwrap().status.success());
    let place: Arc<dyn Storage> = place(&base);
    assert_eq!(vhd::check(&place, CheckOptions::default()).unwrap().len(), 2);
    vhd::repair(&place).unwrap();
    assert_eq!(vhd::check(&place, CheckOptions::default()).unwrap(), []);
    must("vhd-util", &["check", "-n", name(&base)]).unwrap();
    // The user's byte in the header of the batmap is kept.
    let bytes = fs::read(&base).unwrap();
    let batmap = bytes.chunks(512).find(|sector| sector.starts_with(b"tdbatmap")).unwrap();
    assert_eq!(batmap[28], 1);
}
