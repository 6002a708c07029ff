//! Sizes as people and SR API v1.0 write them. The MB of that API is a MiB; numbers in it exist here and nowhere else.

use crate::error::{Error, Result};

const MIB: u64 = 1 << 20;

/// Bytes of a SIZE argument: a bare number is in MiB; `KiB`, `MiB`, `GiB`, `TiB` and `B`
/// say what they are.
pub fn parse(text: &str) -> Result<u64> {
    let bad = |expected: &str| Error::Invalid { what: "SIZE", value: text.to_owned(), expected: expected.to_owned() };
    let form = "expected MiB as a number, or a whole number with B, KiB, MiB, GiB or TiB: 512, 512MiB, 20GiB";
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit = match unit {
        "" | "MiB" => MIB,
        "B" => 1,
        "KiB" => 1 << 10,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        // Other programs mean 1,000 or 1,024 by these.
        "K" | "M" | "G" | "T" | "KB" | "MB" | "GB" | "TB" | "k" | "m" | "g" | "t" | "kb" | "mb" | "gb" | "tb"
            if !number.is_empty() =>
        {
            return Err(bad(&format!("for units of 1,024 write {number}{}iB", unit[..1].to_ascii_uppercase())));
        }
        _ => return Err(bad(form)),
    };
    if number.is_empty() {
        return Err(bad(form));
    }
    let bytes = number.parse::<u64>().ok().and_then(|n| n.checked_mul(unit)).filter(|b| *b <= i64::MAX as u64);
    match bytes {
        Some(0) => Err(bad("a disk has at least one byte")),
        Some(bytes) => Ok(bytes),
        None => {
            let unit = if digits == text.len() { "; a number without a unit is in MiB" } else { "" };
            let shown: String = text.chars().take(40).collect();
            Err(Error::Oversized { what: format!("SIZE {shown}"), limit: format!("8 EiB is the limit{unit}") })
        }
    }
}

/// The same where 0 stands for "whatever there is": agents send it.
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
    fn what_is_no_size_is_refused() {
        for bad in ["", "0", "-1", "+1", "1.5GiB", "1 GiB", "1GB", "1gib", "GiB", "0x10", "٣"] {
            assert!(matches!(parse(bad), Err(Error::Invalid { .. })), "{bad:?}");
        }
        for big in ["9223372036854775808B", "8796093022208", "99999999999999999999", "16777216TiB"] {
            assert!(matches!(parse(big), Err(Error::Oversized { .. })), "{big:?}");
        }
    }

    #[test]
    fn a_unit_that_may_mean_two_things_is_refused_with_the_right_one() {
        for (text, right) in [("20G", "20GiB"), ("20GB", "20GiB"), ("20g", "20GiB"), ("1T", "1TiB"), ("5kb", "5KiB")] {
            assert!(parse(text).unwrap_err().to_string().contains(&format!("write {right}")), "{text}");
        }
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
