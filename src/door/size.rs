//! Sizes as people and SR API v1.0 write them. The MB of that API is a MiB; numbers in it exist here and nowhere else.

use crate::error::{Error, Result};

const MIB: u64 = 1 << 20;

/// The remedy for a size that begins with a minus.
pub const NOT_NEGATIVE: &str = "a size cannot be negative: write the whole size that the disk is to have, as 20G";

/// Bytes of a SIZE argument: a bare number is in MiB; `K`, `M`, `G`, `T` and `P`, in either case and also as `KiB` and so on,
/// are powers of 1,024, and `B` is a byte. A fraction such as `1.5T` is rounded up to a byte.
///
/// # Errors
/// [`Error::Invalid`] for what is no size; [`Error::Oversized`] beyond 8 EiB.
pub fn parse(text: &str) -> Result<u64> {
    let bad = |expected: &str| Error::Invalid { what: "SIZE", value: text.to_owned(), expected: expected.to_owned() };
    let form = "expected MiB as a number, or a number with B, K, M, G, T or P: 512, 20G, 1.5TiB, 21474836480B";
    if text.starts_with('-') && text[1..].starts_with(|c: char| c.is_ascii_digit()) {
        return Err(bad(NOT_NEGATIVE));
    }
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let is_number = !whole.is_empty() && number.ends_with(|c: char| c.is_ascii_digit()) && !fraction.contains('.');
    let unit = match unit {
        "" | "M" | "m" | "MiB" => MIB,
        "B" => 1,
        "K" | "k" | "KiB" => 1 << 10,
        "G" | "g" | "GiB" => 1 << 30,
        "T" | "t" | "TiB" => 1 << 40,
        "P" | "p" | "PiB" => 1 << 50,
        // Other programs mean 1,000 or 1,024 by these.
        "KB" | "MB" | "GB" | "TB" | "PB" | "kb" | "mb" | "gb" | "tb" | "pb" if is_number => {
            return Err(bad(&format!("for units of 1,024 write {number}{}iB", unit[..1].to_ascii_uppercase())));
        }
        _ => return Err(bad(form)),
    };
    // A part of a byte is nothing that can be meant, and neither is a part of what has no unit.
    if !is_number || !fraction.is_empty() && (unit == 1 || end == text.len()) {
        return Err(bad(form));
    }
    if fraction.len() > 12 {
        return Err(bad("12 digits after the point are the limit"));
    }
    let scale = 10u128.pow(fraction.len() as u32);
    let digits = format!("{whole}{fraction}").parse::<u128>().ok().and_then(|digits| digits.checked_mul(unit.into()));
    let bytes = digits.map(|scaled| scaled.div_ceil(scale)).filter(|bytes| *bytes <= i64::MAX as u128);
    match bytes {
        Some(0) => Err(bad("a disk has at least one byte")),
        Some(bytes) => Ok(bytes as u64),
        None => {
            let unit = if end == text.len() { "; a number without a unit is in MiB" } else { "" };
            let shown: String = text.chars().take(40).collect();
            Err(Error::Oversized { what: format!("SIZE {shown}"), limit: format!("8 EiB is the limit{unit}") })
        }
    }
}

/// Bytes of the SIZE of a disk that has `now` bytes: `+10G` is that much more.
///
/// # Errors
/// As [`parse`]; [`Error::Oversized`] if the sum is beyond 8 EiB.
pub fn parse_change(text: &str, now: impl FnOnce() -> Result<u64>) -> Result<u64> {
    let Some(more) = text.strip_prefix('+') else { return parse(text) };
    let more = parse(more)?;
    now()?.checked_add(more).filter(|bytes| *bytes <= i64::MAX as u64).ok_or_else(|| Error::Oversized {
        what: format!("SIZE {text}, on top of what the disk has,"),
        limit: "8 EiB is the limit".to_owned(),
    })
}

/// Whether a SIZE is a number without a unit.
pub fn is_bare(text: &str) -> bool {
    let digits = text.strip_prefix('+').unwrap_or(text);
    !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())
}

/// Bytes of the SIZE of a disk, as [`parse`] reads it; `None` for 0, by which agents say "whatever there is".
///
/// # Errors
/// As [`parse`].
pub fn parse_or_zero(text: &str) -> Result<Option<u64>> {
    if !text.is_empty() && text.bytes().all(|b| b == b'0') { Ok(None) } else { parse(text).map(Some) }
}

/// Bytes for people: `20.0 GiB`.
pub fn human(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_number_is_mb() {
        assert_eq!(parse("512").unwrap(), 512 << 20);
        assert_eq!(parse("512MiB").unwrap(), 512 << 20);
        assert_eq!(parse("20GiB").unwrap(), 20 << 30);
        assert_eq!(parse("1TiB").unwrap(), 1 << 40);
        assert_eq!(parse("3B").unwrap(), 3);
    }

    #[test]
    fn a_letter_is_a_binary_unit_and_a_fraction_has_one() {
        for (text, bytes) in [
            ("20G", 20 << 30),
            ("20g", 20 << 30),
            ("20GiB", 20 << 30),
            ("1.5T", 3 << 39),
            ("0.5K", 512),
            ("1.25GiB", 5 << 28),
            ("512m", 512 << 20),
            ("21474836480B", 20 << 30),
            ("2P", 2 << 50),
            ("0.001K", 2),
        ] {
            assert_eq!(parse(text).unwrap(), bytes, "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for bad in [
            "",
            "0",
            "-1",
            "+1",
            "1 GiB",
            "1gib",
            "GiB",
            "G",
            "0x10",
            "٣",
            "1.5",
            "1.5B",
            ".5G",
            "1.G",
            "1..5G",
            "1.2.3G",
            "1.0000000000001G",
            "1e3G",
            "0.0G",
        ] {
            assert!(matches!(parse(bad), Err(Error::Invalid { .. })), "{bad:?}");
        }
        for big in
            ["9223372036854775808B", "8796093022208", "99999999999999999999", "16777216TiB", "9000.5P", &"9".repeat(50)]
        {
            assert!(matches!(parse(big), Err(Error::Oversized { .. })), "{big:?}");
        }
    }

    #[test]
    fn a_unit_that_may_mean_two_things_is_refused_with_the_right_one() {
        for (text, right) in [("20GB", "20GiB"), ("1.5TB", "1.5TiB"), ("5kb", "5KiB")] {
            assert!(parse(text).unwrap_err().to_string().ends_with(&format!("write {right}")), "{text}");
        }
    }

    #[test]
    fn a_negative_size_is_told_as_such() {
        for text in ["-1", "-5G"] {
            assert!(parse(text).unwrap_err().to_string().ends_with(NOT_NEGATIVE), "{text}");
        }
    }

    #[test]
    fn a_change_is_added_to_what_there_is() {
        assert_eq!(parse_change("+10G", || Ok(20 << 30)).unwrap(), 30 << 30);
        assert_eq!(parse_change("10G", || panic!("nobody asks")).unwrap(), 10 << 30);
        for bad in ["+", "++1G", "+-1G", "+0", "-1G"] {
            assert!(matches!(parse_change(bad, || Ok(1)), Err(Error::Invalid { .. })), "{bad}");
        }
        assert!(matches!(parse_change("+1P", || Ok(i64::MAX as u64)), Err(Error::Oversized { .. })));
        assert!(is_bare("+20") && is_bare("20") && !is_bare("20G") && !is_bare("+") && !is_bare(""));
    }

    #[test]
    fn people_read_binary_units() {
        for (bytes, text) in
            [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (20 << 30, "20.0 GiB"), ((1 << 20) - 1, "1.0 MiB")]
        {
            assert_eq!(human(bytes), text);
        }
    }
}
