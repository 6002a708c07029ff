//! Foreign bytes: an error or a result, in bounded time and memory. The fuzz target does the same without end.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that cannot go on ends here"
)]

#[path = "vhd_support/hostile.rs"]
mod hostile;

use std::sync::Arc;

use hostile::{small, try_everything};
use proptest::prelude::*;
use xcp_sm::image::vhd::{self, Chain, NewImage, Parent, ParentLink, Storage};
use xcp_sm::types::Mode;

/// A sound image of 10 MiB with two blocks of 2 MiB shifted right by `smaller`, dynamic or differencing.
fn image(differencing: bool, smaller: u32) -> Vec<u8> {
    let place = small(&[]);
    let new = NewImage::new(10 << 20);
    if differencing {
        let link = ParentLink { path: "./base.vhd".into(), uuid: None, timestamp: 0 };
        vhd::create_child(&*place, &new, &link).unwrap();
    } else {
        vhd::create(&*place, &new).unwrap();
    }
    if smaller > 0 {
        // The BAT that follows is longer, where batmap and locators were, which images of others do not have.
        let (mut made, entries) = (bytes(&place)[..1536].to_vec(), (10 << 20) / ((2 << 20) >> smaller));
        made[0x1c..0x24].copy_from_slice(b"win \0\x06\0\x01");
        made[0x200 + 0x1c..0x200 + 0x20].copy_from_slice(&u32::to_be_bytes(entries));
        made[0x200 + 0x20..0x200 + 0x24].copy_from_slice(&u32::to_be_bytes((2 << 20) >> smaller));
        made[0x440..0x500].fill(0);
        made.resize(1536 + (entries as usize * 4).next_multiple_of(512), 0xff);
        let footer = made[..512].to_vec();
        made.extend(footer);
        seal(&mut made);
        place.set_size(0).unwrap();
        place.write_at(&made, 0).unwrap();
    }
    let chain = Chain::open(place.clone(), Mode::ReadWrite, |_| Ok(Parent::Raw(small(&[])))).unwrap();
    chain.write_at(&[0x55; 4096], 4 << 20).unwrap();
    chain.write_at(&[0x66; 4096], 0).unwrap();
    chain.close().unwrap();
    bytes(&place)
}

fn bytes(place: &Arc<dyn Storage>) -> Vec<u8> {
    let mut all = vec![0; place.size().unwrap() as usize];
    for (i, part) in all.chunks_mut(1 << 20).enumerate() {
        place.read_at(part, (i as u64) << 20).unwrap();
    }
    all
}

/// Makes the checksums of footers and header right again, so that what lies behind them is reached.
fn seal(image: &mut [u8]) {
    let end = image.len();
    for (start, len, at) in [(0, 512, 0x40), (512, 1024, 0x24), (end.saturating_sub(512), 512, 0x40)] {
        if let Some(part) = image.get_mut(start..start + len) {
            part[at..at + 4].fill(0);
            let sum = part.iter().fold(0u32, |sum, b| sum.wrapping_add(u32::from(*b)));
            part[at..at + 4].copy_from_slice(&(!sum).to_be_bytes());
        }
    }
}

/// Values that tend to break sums.
fn value() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(0),
        Just(u64::MAX),
        Just(u64::from(u32::MAX)),
        Just(1 << 31),
        Just(1 << 41),
        Just(1 << 63),
        any::<u64>(),
        0u64..10_000,
        (0u64..64).prop_map(|n| n * 512)
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]

    #[test]
    fn a_field_may_hold_anything(
        differencing: bool,
        smaller in prop_oneof![Just(0u32), Just(2), Just(9)],
        fields in proptest::collection::vec((0usize..6000, prop_oneof![Just(1usize), Just(2), Just(4), Just(8)], value()), 1..6),
        cut in proptest::option::weighted(0.2, 0usize..5_000_000),
        sealed in proptest::bool::weighted(0.9),
    ) {
        let mut image = image(differencing, smaller);
        for (at, width, value) in fields {
            let at = at / width * width;
            image[at..at + width].copy_from_slice(&value.to_be_bytes()[8 - width..]);
        }
        image.truncate(cut.unwrap_or(usize::MAX));
        if sealed {
            seal(&mut image);
        }
        try_everything(&image);
    }

    /// The fields of footer and header proper, where the random ones above seldom hit.
    #[test]
    fn a_header_may_hold_anything(
        differencing: bool,
        smaller in prop_oneof![Just(0u32), Just(2)],
        field in 0usize..24,
        value in value(),
    ) {
        let fields = [
            (0x08, 4), (0x0c, 4), (0x10, 8), (0x1c, 8), (0x28, 8), (0x30, 8), (0x38, 8), (0x54, 4),
            (0x208, 8), (0x210, 8), (0x218, 4), (0x21c, 4), (0x220, 4), (0x228, 8), (0x440, 4), (0x444, 4), (0x448, 4),
            (0x450, 8), (0x600, 4), (0x604, 4), (0x608, 4), (0x808, 8), (0x810, 4), (0x814, 4),
        ];
        let (at, width) = fields[field];
        let mut image = image(differencing, smaller);
        image[at..at + width].copy_from_slice(&value.to_be_bytes()[8 - width..]);
        seal(&mut image);
        try_everything(&image);
    }

    #[test]
    fn noise_is_no_image(bytes in proptest::collection::vec(any::<u8>(), 0..5000)) {
        try_everything(&bytes);
    }
}

/// More with `PROPTEST_CASES`.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(64)
}

#[test]
fn a_chain_that_meets_itself_is_refused() {
    let place = small(&[]);
    let new = NewImage::new(4 << 20);
    let link = ParentLink { path: "./self.vhd".into(), uuid: Some(new.uuid), timestamp: 0 };
    vhd::create_child(&*place, &new, &link).unwrap();
    let error = Chain::open(place.clone(), Mode::ReadOnly, |_| Ok(Parent::Vhd(place.clone()))).unwrap_err();
    assert!(error.to_string().contains("meets itself"), "{error}");
}

/// A guest owns every byte of a fixed image but the last sector: it must not become its own choice of child.
#[test]
fn a_fixed_image_cannot_pose_as_a_differencing_one() {
    let place = small(&[]);
    vhd::create_fixed(&*place, &NewImage::new(4 << 20)).unwrap();
    let forged = image(true, 0);
    place.write_at(&forged[..6 << 10], 0).unwrap();
    let error = Chain::open(place, Mode::ReadOnly, |_| Ok(Parent::Raw(small(&[])))).unwrap_err();
    assert!(error.to_string().contains("fixed"), "{error}");
}

#[test]
fn only_plain_names_are_file_names() {
    let name = |name: &str| vhd::ParentInfo { uuid: None, name: name.into(), timestamp: 0 }.file_name().is_some();
    assert!(name("a.vhd"));
    for bad in ["", ".", "..", "../a.vhd", "/etc/passwd", "a\0b", "a\nb", "\u{fffd}"] {
        assert!(!name(bad), "{bad:?}");
    }
}
