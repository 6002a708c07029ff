//! An error as one line of text.

use super::Error;
use crate::types::acts_on_terminal;

/// The whole chain of causes on one line: what failed, on what, the system's words.
///
/// Characters that act on a terminal are escaped and the line is cut at 4 KiB: hostile arguments and names can neither forge
/// a second line nor flood a log.
pub fn one_line(error: &Error) -> String {
    const LONGEST: usize = 4096;
    let mut text = error.to_string();
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    let text = without_numbers(&text);
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        if line.len() > LONGEST {
            line.push('…');
            break;
        }
        if acts_on_terminal(c) { line.extend(c.escape_default()) } else { line.push(c) }
    }
    line
}

/// Text without the numbers that the standard library puts behind the system's words: ` (os error 2)`.
fn without_numbers(text: &str) -> String {
    const NUMBER: &str = " (os error ";
    let mut parts = text.split(NUMBER);
    let mut clean = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.trim_start_matches(|c: char| c.is_ascii_digit()).strip_prefix(')') {
            Some(rest) => clean.push_str(rest),
            None => clean.extend([NUMBER, part]),
        }
    }
    clean
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn a_line_has_the_words_of_the_system_without_their_number() {
        let gone = || io::Error::from_raw_os_error(nix::libc::ENOENT);
        let said = one_line(&Error::NoDevice { device: format!("/a: {}", gone()), why: gone().to_string() });
        assert!(said.contains("No such file or directory") && !said.contains("os error"), "{said}");
        for kept in ["x (os error ", "x (os error 2", "x (os error two)", "x"] {
            assert_eq!(without_numbers(kept), kept);
        }
        assert_eq!(without_numbers("a (os error 2); b (os error 110)c"), "a; bc");
    }
}
