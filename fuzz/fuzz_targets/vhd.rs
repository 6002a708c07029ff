//! `cargo +nightly fuzz run vhd`: any bytes as an image. `tests/vhd_hostile.rs` is the bounded run of the same.

#![no_main]

#[path = "../../tests/vhd_support/hostile.rs"]
mod hostile;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hostile::try_everything(bytes));
