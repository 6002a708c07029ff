//! Layouts as text: the form of a model, with every line expanded and every value said. [`document`](super::document)
//! reads it.

use super::keys::KEYS;
use super::{Active, Layout, Medium, Mode, Slot, fold};
use crate::registry::line::{self, Field, Relation};

/// The first line of an installed layout.
const HEAD: &str = "# An installed layout. sm apply writes it; change the model instead.\n";

/// The text of a layout. Lines that follow each other by counting are folded into one.
pub fn of(layout: &Layout) -> String {
    let mut text = format!("{HEAD}layout: {}\nuuid: {}\n", layout.name, layout.uuid);
    for key in &KEYS {
        if let Some(value) = layout.options.get(key.name) {
            text.push_str(&format!("{}: {value}\n", key.name));
        }
    }
    let addresses = layout.addresses.iter().map(|it| line(&[("host", &it.host), ("addr", &it.address)]));
    add(&mut text, "addr", addresses.collect());
    let mut slots = layout.slots.iter().peekable();
    while let Some(first) = slots.peek().map(|slot| slot.id.class) {
        let mut of_class = Vec::new();
        while let Some(slot) = slots.next_if(|slot| slot.id.class == first) {
            of_class.push(of_slot(layout, slot));
        }
        add(&mut text, first.word(), of_class);
    }
    let attaches = layout.attaches.iter().map(|it| {
        let class = it.class.word();
        line(&[("host", &it.host), ("class", class), ("path", &it.path), ("options", &it.options)])
    });
    add(&mut text, "attach", attaches.collect());
    let gateways = layout.gateways.iter().map(|it| line(&[("host", &it.host), ("fabric", &it.fabric)]));
    add(&mut text, "gateway", gateways.collect());
    text
}

fn add(text: &mut String, key: &str, values: Vec<String>) {
    for value in fold::folded(&values) {
        text.push_str(&format!("{key}: {value}\n"));
    }
}

/// A list of those that have a value.
fn line(fields: &[(&str, &str)]) -> String {
    let field = |(key, value): &(&str, &str)| Field {
        key: (*key).to_owned(),
        relation: Relation::Is,
        value: (*value).to_owned(),
    };
    let given: Vec<Field> = fields.iter().filter(|(_, value)| !value.is_empty()).map(field).collect();
    line::written(&given)
}

fn of_slot(layout: &Layout, slot: &Slot) -> String {
    let listed = |one: fn(&Medium) -> String| slot.media.iter().map(one).collect::<Vec<_>>().join(",");
    let index = slot.id.index.to_string();
    let uuid = if slot.uuid == slot.id.sr(layout.uuid) { String::new() } else { slot.uuid.to_string() };
    let identities = listed(|medium| encoded(&medium.identity));
    let sizes = if slot.media.iter().all(|medium| medium.size.is_none()) {
        String::new()
    } else {
        listed(|medium| medium.size.map(|size| format!("{size}B")).unwrap_or_default())
    };
    line(&[
        ("index", &index),
        ("host", &slot.host),
        ("ha_host", &slot.ha_hosts.join(",")),
        ("dev", &slot.devs()),
        ("identity", &identities),
        ("size", &sizes),
        ("uuid", &uuid),
        ("mode", if slot.mode == Mode::External { "external" } else { "" }),
        ("active", if slot.active == Active::Yes { "" } else { slot.active.word() }),
        ("publish", if slot.publish { "yes" } else { "" }),
        ("tag", &slot.tag),
        ("group", &slot.group),
        ("network", &slot.network),
        ("jdev", &slot.jdev),
        ("prep", &slot.prep),
        ("fs", &slot.fs),
    ])
}

/// Characters that have a meaning in a line, and the one that begins an escape.
const ENCODED: &str = "%,\"[]#";

/// An identity without characters that have a meaning in a line: `%` and two hexadecimal digits a byte stand for each.
pub fn encoded(identity: &str) -> String {
    let mut text = String::new();
    for c in identity.chars() {
        if ENCODED.contains(c) || c.is_whitespace() || c.is_control() {
            let mut bytes = [0; 4];
            c.encode_utf8(&mut bytes).bytes().for_each(|byte| text.push_str(&format!("%{byte:02x}")));
        } else {
            text.push(c);
        }
    }
    text
}

/// The identity that [`encoded`] wrote.
///
/// # Errors
/// A clause that says what is wrong.
pub fn decoded(text: &str) -> Result<String, String> {
    let bad = || format!("{text:?} is no identity");
    let mut bytes = Vec::new();
    let mut rest = text;
    while let Some((plain, escaped)) = rest.split_once('%') {
        bytes.extend_from_slice(plain.as_bytes());
        let digits = escaped.get(..2).filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit())).ok_or_else(bad)?;
        bytes.push(u8::from_str_radix(digits, 16).map_err(|_| bad())?);
        rest = &escaped[2..];
    }
    bytes.extend_from_slice(rest.as_bytes());
    String::from_utf8(bytes).map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_identity_is_read_back_as_it_was_written(identity in ".{0,40}") {
            let text = encoded(&identity);
            prop_assert!(!text.contains([' ', ',', '"', '[', ']', '#']));
            prop_assert_eq!(decoded(&text).unwrap(), identity);
        }

        #[test]
        fn any_text_is_an_identity_or_refused(text in "[%a-f0-9ü]{0,12}") {
            let _ = decoded(&text);
        }
    }
}
