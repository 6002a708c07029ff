//! Which name a mistyped word may have been meant to be.

/// The name that `word` is likely to stand for: one that differs by a letter or so, or of which the word is the last part.
/// `None` if no name is that near.
pub fn nearest<'n>(word: &str, names: impl IntoIterator<Item = &'n str>) -> Option<&'n str> {
    let word = plain(word);
    let near = names.into_iter().filter_map(|name| {
        let known = plain(name);
        let part = word.len() >= 4 && known.ends_with(&format!("_{word}"));
        let apart = if part { 0 } else { strsim::osa_distance(&word, &known) };
        (apart <= (known.chars().count() / 4).max(1)).then_some((apart, name))
    });
    near.min_by_key(|(apart, _)| *apart).map(|(_, name)| name)
}

/// Case and the kind of hyphen are no difference. A word of a hostile length is no name.
fn plain(word: &str) -> String {
    word.chars().take(64).map(|c| if c == '-' { '_' } else { c.to_ascii_lowercase() }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_stands_for_a_name_that_is_near_and_for_no_other() {
        let names = ["sr_create", "sr_scan", "vdi_create", "vdi_lock", "vdi_attach", "location", "device"];
        for (word, name) in [
            ("vdi_atach", Some("vdi_attach")),
            ("vdi-attach", Some("vdi_attach")),
            ("VDI_LOCK", Some("vdi_lock")),
            ("create", Some("sr_create")),
            ("locaiton", Some("location")),
            ("Device", Some("device")),
            ("vdi_fly", None),
            ("foo", None),
            ("", None),
        ] {
            assert_eq!(nearest(word, names), name, "{word}");
        }
        assert_eq!(nearest(&"x".repeat(1 << 20), names), None);
    }
}
