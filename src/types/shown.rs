//! How values stand in messages, tables and logs: sizes with units, values of device_config without passwords, text of others
//! without what acts on a terminal.

use std::borrow::Cow;
use std::fmt;

/// Bytes in the words of a message: as a SIZE is typed, `20GiB`, where a unit says it exactly; else `1.5GiB (1610612737
/// bytes)`.
pub struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
        let exact = units.into_iter().find(|(_, unit)| self.0 >= *unit && self.0.is_multiple_of(*unit));
        let rough = units.into_iter().find(|(_, unit)| self.0 >= *unit);
        match (exact, rough) {
            // 20481MiB says more than 20.0GiB, and 99999999KiB nothing.
            (Some((name, unit)), _) if self.0 / unit < 100_000 => write!(f, "{}{name}", self.0 / unit),
            (_, Some((name, unit))) => {
                // Cut, not rounded: of a limit just below 16TiB nobody may read that it is 16.0TiB.
                let tenths = u128::from(self.0) * 10 / u128::from(unit);
                write!(f, "{}.{}{name} ({} bytes)", tenths / 10, tenths % 10, self.0)
            }
            (_, None) => write!(f, "{} bytes", self.0),
        }
    }
}

/// The part of a device_config value that no message and no log may show, if it has one.
///
/// All of it where the key says so, in whatever case: `password`, `cifspassword`, `chapPassword`, `x_secret`. All mount
/// options if a password may be among them. The part after `%` in a user name, and the part between `//user:` and `@`,
/// which mount.cifs takes for a password.
pub fn secret_part<'v>(key: &str, value: &'v str) -> Option<&'v str> {
    let (key, lower) = (key.to_ascii_lowercase(), value.to_ascii_lowercase());
    let whole = key.contains("passw") || key.contains("secret");
    let part = if whole || key == "options" && (lower.contains("pass") || lower.contains('%')) {
        Some(value)
    } else if key.contains("user") {
        value.split_once('%').map(|(_, password)| password)
    } else {
        let authority = value.split_once("//").and_then(|(_, rest)| rest.split('/').next());
        authority
            .and_then(|authority| authority.rsplit_once('@'))
            .and_then(|(user, _)| user.split_once(':'))
            .map(|(_, p)| p)
    };
    part.filter(|part| !part.is_empty())
}

/// A device_config value as messages and logs show it: asterisks stand where [`secret_part`] is.
pub fn shown(key: &str, value: &str) -> String {
    match secret_part(key, value) {
        None => value.to_owned(),
        Some(secret) => {
            // It is a slice of the value.
            let at = secret.as_ptr() as usize - value.as_ptr() as usize;
            format!("{}***{}", &value[..at], &value[at + secret.len()..])
        }
    }
}

/// Text without characters that act on a terminal: in labels, names of files and words of tools, which come from other hosts
/// and from guests, they could forge rows and hide what stands there. Each of these is written as its escape in Rust (`\u{1b}`, `\n`). All
/// other characters stay, backslashes too.
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(acts_on_terminal) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if acts_on_terminal(c) { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    Cow::Owned(shown)
}

/// Whether a character acts on a terminal: control characters, line and paragraph separators, and the characters that
/// reverse the order of others (Unicode Standard Annex 9, "Directional Formatting Characters"). Not the marks U+200E, U+200F
/// and U+061C: names in Hebrew and Arabic have these.
pub fn acts_on_terminal(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A command line for a shell: words that it would not take as they are, in quotes.
pub fn shell(words: &[&str]) -> String {
    let quoted = |word: &&str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:=@%,".contains(c);
        match !word.is_empty() && word.chars().all(plain) {
            true => (*word).to_owned(),
            false => format!("'{}'", word.replace('\'', "'\\''")),
        }
    };
    words.iter().map(quoted).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_reaches_the_program_as_it_is() {
        assert_eq!(shell(&["sm", "a b", "it's", "", "$(x)", "a=/b,c"]), "sm 'a b' 'it'\\''s' '' '$(x)' a=/b,c");
    }

    #[test]
    fn a_secret_is_masked_where_it_stands_and_nowhere_else() {
        for (key, value, seen) in [
            ("password", "x", "***"),
            ("PASSWORD", "x", "***"),
            ("chapPassword", "hunter2", "***"),
            ("incoming_chappassword", "p", "***"),
            ("cifspassword_secret", "uuid", "***"),
            ("username", "x", "x"),
            ("username", "dom\\u%x", "dom\\u%***"),
            ("options", "vers=3.0,PASSWORD=x", "***"),
            ("options", "username=u%x", "***"),
            ("options", "hard,vers=4.1", "hard,vers=4.1"),
            ("location", "//u:x@server/share", "//u:***@server/share"),
            ("location", "//server/share:x@y", "//server/share:x@y"),
            ("server", "[fe80::1%eth0]", "[fe80::1%eth0]"),
            ("password", "", ""),
        ] {
            assert_eq!(shown(key, value), seen, "{key}");
        }
    }

    #[test]
    fn what_acts_on_a_terminal_is_escaped_and_what_is_read_is_not() {
        for (text, shown) in [
            ("\u{1b}]0;x\u{7}\u{9b}31m", "\\u{1b}]0;x\\u{7}\\u{9b}31m"),
            ("a\nb\r\tc\u{7f}", "a\\nb\\r\\tc\\u{7f}"),
            ("\u{202e}gnp.exe\u{2066}\u{2028}", "\\u{202e}gnp.exe\\u{2066}\\u{2028}"),
        ] {
            assert_eq!(printable(text), shown);
        }
        for plain in ["", "root disk, ü λ 日本 😀", "C:\\new", "שלום\u{200f}!"] {
            assert!(matches!(printable(plain), Cow::Borrowed(shown) if shown == plain), "{plain}");
        }
    }
}
