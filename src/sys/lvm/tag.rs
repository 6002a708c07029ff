//! Text in the tags of LVM.

/// The longest tag that LVM takes, bytes.
pub const LONGEST_TAG: usize = 1024;

/// Text as part of a tag, in the characters that LVM takes: the others become `&` and two hex digits.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'+' | b'.' | b'-' | b'/' | b'=' | b'!' | b':' | b'#' => {
                out.push(byte as char);
            }
            other => out.push_str(&format!("&{other:02x}")),
        }
    }
    out
}

/// The reverse of [`escape`]. Text that is no escape stands for itself: a tag is never lost.
pub fn unescape(tag: &str) -> String {
    let bytes = tag.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let digits = tag.get(at + 1..at + 3).filter(|_| bytes[at] == b'&');
        if let Some(byte) = digits.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            out.push(byte);
            at += 3;
        } else {
            out.push(bytes[at]);
            at += 1;
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_reversible_and_damage_is_shown() {
        assert_eq!(escape("a b,\"ü\"@"), "a&20b&2c&22&c3&bc&22&40");
        assert_eq!(unescape(&escape("100 % & \u{1F600}")), "100 % & \u{1F600}");
        assert_eq!(unescape("&zz&4"), "&zz&4");
    }
}
