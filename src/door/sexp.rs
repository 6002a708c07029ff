//! dconf as a person writes it: a driver's short form, or an association list of device_config keys.

use std::collections::BTreeMap;

use serde_lexpr::Value;

use crate::error::{Error, Result};
use crate::sr::Driver;
use crate::types::DeviceConfig;

/// Reads dconf: `((server . "10.0.0.5") (serverpath . "/export"))` for any driver, else its short form.
///
/// # Errors
/// [`Error::Invalid`] if it is no such list or the driver does not know the short form. A text that may hold a password
/// is not shown.
pub fn device_config(driver: &Driver, text: &str) -> Result<DeviceConfig> {
    if text.trim_start().starts_with('(') { association_list(text) } else { (driver.parse_dconf)(text) }
}

fn association_list(text: &str) -> Result<DeviceConfig> {
    // A text that cannot be read may hold a password anywhere, so it is shown only if no word of it hints at one.
    let lower = text.to_ascii_lowercase();
    let is_harmless = !["pass", "secret", "cred", "user", "option", "%", "@"].iter().any(|hint| lower.contains(hint));
    let shown = if is_harmless { text } else { "(…)" };
    let bad = |expected: String| Error::Invalid { what: "dconf", value: shown.to_owned(), expected };
    // The parser recurses once per parenthesis, and per quote sign.
    const DEEPEST: usize = 64;
    if text.bytes().filter(|b| b"('`,".contains(b)).count() > DEEPEST * 4 {
        return Err(bad("it is nested too deeply".to_owned()));
    }
    let form = "expected ((key . \"value\") …)";
    let value = serde_lexpr::parse::from_str(text).map_err(|e| bad(format!("{form}: {e}")))?;
    let mut keys = BTreeMap::new();
    for pair in value.list_iter().ok_or_else(|| bad(form.to_owned()))? {
        let (key, value) = pair.as_pair().ok_or_else(|| bad(form.to_owned()))?;
        let key = key.as_symbol().or_else(|| key.as_str()).ok_or_else(|| bad("a key is a symbol".to_owned()))?;
        let value = match value {
            Value::String(text) => text.to_string(),
            Value::Symbol(text) => text.to_string(),
            Value::Number(number) => number.to_string(),
            _ => return Err(bad(format!("the value of {key} is not a string"))),
        };
        if keys.insert(key.to_owned(), value).is_some() {
            return Err(bad(format!("{key} is there twice")));
        }
    }
    Ok(DeviceConfig(keys))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sr::file;

    #[test]
    fn the_short_form_and_the_list_say_the_same() {
        let short = device_config(&file::DRIVER, "/srv/sr0").unwrap();
        assert_eq!(short, device_config(&file::DRIVER, r#"((location . "/srv/sr0"))"#).unwrap());
        assert_eq!(short, device_config(&file::DRIVER, " ( (location . \"/srv/sr0\") )").unwrap());
    }

    #[test]
    fn what_is_no_list_of_pairs_is_refused() {
        for bad in
            ["(", "()x", "(location)", "((location))", "((location . (a)))", "((a . 1) (a . 2))", "(1 2)", "((1 . 2))"]
        {
            assert!(device_config(&file::DRIVER, bad).is_err(), "{bad}");
        }
        for deep in ["(", "'", "`", ","] {
            assert!(device_config(&file::DRIVER, &format!("({}", deep.repeat(100_000))).is_err());
        }
        let refused = device_config(&file::DRIVER, r#"((cifspassword . "hunter2")"#).unwrap_err().to_string();
        assert!(!refused.contains("hunter2"), "{refused}");
        let refused = device_config(&file::DRIVER, r#"((location . "/srv/sr0")"#).unwrap_err().to_string();
        assert!(refused.contains("/srv/sr0"), "{refused}");
    }
}
