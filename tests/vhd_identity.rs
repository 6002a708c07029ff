//! Who the parent of an image is: its UUID says so, not its name. Nothing opens or merges another one for it.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that cannot go on ends here"
)]

mod vhd_support;

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use vhd_support::*;
use xcp_sm::image::vhd::{self, Chain, Image, NewImage, Parent, ParentLink, Target};
use xcp_sm::types::{Done, Mode};

fn merge(child: &Path, into: &Path) -> xcp_sm::Result<u64> {
    let child = Image::open(place(child), Mode::ReadOnly).unwrap();
    let base = Image::open(place(into), Mode::ReadWrite).unwrap();
    vhd::coalesce(&child, Target::Vhd(&base), &|_, _| ControlFlow::Continue(()))
}

fn read_only(path: &Path, parent: impl Fn() -> Parent) -> xcp_sm::Result<Chain> {
    Chain::open(place(path), Mode::ReadOnly, |_| Ok(parent()))
}

#[test]
fn an_image_of_another_uuid_is_neither_opened_nor_merged_into() {
    let dir = Dir::new();
    let (base, child, other) = (dir.at("base.vhd"), dir.at("child.vhd"), dir.at("other.vhd"));
    create(&base, 8 * MIB);
    create(&other, 8 * MIB);
    snapshot(&child, &base);
    let chain = open(&child, Mode::ReadWrite);
    chain.write_at(&pattern(1, 4096), MIB).unwrap();
    chain.close().unwrap();
    let before = fs::read(&other).unwrap();
    for (error, what) in [
        (read_only(&child, || Parent::Vhd(place(&other))).map(drop).unwrap_err(), "opened"),
        (vhd::check_parent(&*place(&child), &Parent::Vhd(place(&other))).unwrap_err(), "checked"),
        (merge(&child, &other).map(drop).unwrap_err(), "merged"),
    ] {
        let words = error.to_string();
        assert!(words.contains("child.vhd") && words.contains("other.vhd has the UUID"), "{what}: {words}");
    }
    assert!(fs::read(&other).unwrap() == before);
    vhd::check_parent(&*place(&child), &Parent::Vhd(place(&base))).unwrap();
    merge(&child, &base).unwrap();
    assert!(contents(&base)[1 << 20..][..4096] == pattern(1, 4096));
}

#[test]
fn a_raw_disk_is_no_vhd_and_a_vhd_no_raw_disk() {
    let dir = Dir::new();
    let (base, child, raw, above) = (dir.at("base.vhd"), dir.at("child.vhd"), dir.at("raw"), dir.at("above.vhd"));
    create(&base, 8 * MIB);
    snapshot(&child, &base);
    fs::write(&raw, pattern(3, 8 << 20)).unwrap();
    let link = ParentLink { path: "./raw".into(), uuid: None, timestamp: 0 };
    vhd::create_child(&*fresh(&above), &NewImage::new(8 * MIB), &link).unwrap();
    let go_on = |_, _| ControlFlow::Continue(());
    for (image, wrong, words) in [
        (&child, Parent::Raw(place(&raw)), "raw is a raw disk"),
        (&above, Parent::Vhd(place(&base)), "base.vhd is a VHD"),
        (&above, Parent::Raw(place(&above)), "meets itself"),
        (&base, Parent::Raw(place(&raw)), "it names no parent"),
    ] {
        let error = vhd::check_parent(&*place(image), &wrong).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
        let sparse = Image::open(place(image), Mode::ReadOnly).unwrap();
        let error = match &wrong {
            Parent::Raw(into) => vhd::coalesce(&sparse, Target::Raw(&**into), &go_on).unwrap_err(),
            Parent::Vhd(into) => {
                let into = Image::open(into.clone(), Mode::ReadWrite).unwrap();
                vhd::coalesce(&sparse, Target::Vhd(&into), &go_on).unwrap_err()
            }
        };
        assert!(error.to_string().contains(words), "{error}");
    }
    // Through another name of the same file, and through a child.
    let (again, top) = (dir.at("again"), dir.at("top.vhd"));
    fs::hard_link(&above, &again).unwrap();
    let error = read_only(&above, || Parent::Raw(place(&again))).unwrap_err();
    assert!(error.to_string().contains("meets itself"), "{error}");
    snapshot(&top, &above);
    let error = Chain::open(place(&top), Mode::ReadOnly, |link| match link.uuid {
        Some(_) => Ok(Parent::Vhd(place(&above))),
        None => Ok(Parent::Raw(place(&top))),
    });
    assert!(error.unwrap_err().to_string().contains("meets itself"));
    assert!(contents(&above) == pattern(3, 8 << 20));
}

/// The parent takes the place of its child, and would show more.
#[test]
fn a_child_is_not_merged_into_a_larger_parent() {
    let dir = Dir::new();
    let (base, child) = (dir.at("base.vhd"), dir.at("child.vhd"));
    create(&base, 8 * MIB);
    vhd::create_child(&*fresh(&child), &NewImage::new(6 * MIB), &link_to(&child, &base)).unwrap();
    let error = merge(&child, &base).unwrap_err();
    assert!(error.to_string().contains("show more than it has"), "{error}");
}

#[test]
fn a_child_is_merged_into_a_fixed_parent_beside_its_footer() {
    let dir = Dir::new();
    let (base, child) = (dir.at("base.vhd"), dir.at("child.vhd"));
    vhd::create_fixed(&*fresh(&base), &NewImage::new(8 * MIB)).unwrap();
    snapshot(&child, &base);
    let chain = open(&child, Mode::ReadWrite);
    for at in [0, 3 * MIB, 8 * MIB - 4096] {
        chain.write_at(&pattern(9, 4096), at).unwrap();
    }
    chain.close().unwrap();
    let (model, before) = (contents(&child), fs::read(&base).unwrap());
    let image = Image::open(place(&child), Mode::ReadOnly).unwrap();
    let go_on = |_, _| ControlFlow::Continue(());
    vhd::coalesce(&image, Target::Fixed(&*place(&base)), &go_on).unwrap();
    let after = fs::read(&base).unwrap();
    assert!(contents(&base) == model && after[8 << 20..] == before[8 << 20..]);
    // A raw disk would have its footer written over by a larger child.
    assert!(vhd::coalesce(&image, Target::Raw(&*place(&base)), &go_on).is_err());
}

#[test]
fn a_fixed_image_with_a_short_footer_is_hidden_and_shown() {
    let dir = Dir::new();
    let path = dir.at("a.vhd");
    vhd::create_fixed(&*fresh(&path), &NewImage::new(4 * MIB)).unwrap();
    for size in [4 * MIB + 511, 4 * MIB + 512] {
        fs::File::options().write(true).open(&path).unwrap().set_len(size).unwrap();
        for hidden in [true, false] {
            assert_eq!(vhd::set_hidden(&*place(&path), hidden).unwrap(), Done::Changed, "{size}");
            assert_eq!(vhd::query(&*place(&path)).unwrap().hidden, hidden, "{size}");
            assert_eq!(vhd::set_hidden(&*place(&path), hidden).unwrap(), Done::Already, "{size}");
            assert_eq!(fs::metadata(&path).unwrap().len(), size);
        }
    }
}
