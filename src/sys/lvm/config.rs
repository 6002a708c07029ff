//! The grammar of LVM's metadata, that of its configuration files (`libdm/config/libdm-config.c`): sections, and values under a name.
//!
//! Less is read than LVM reads: what is none of this is no metadata that [`metadata`](super::metadata) understands.

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value<'t> {
    Number(u64),
    /// Another number, which settings have and metadata has not.
    Other(&'t str),
    /// Without its quotes. It may have escapes.
    Text(&'t str),
    List(Vec<Value<'t>>),
}

/// Names with values, and sections, each in its order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Section<'t> {
    pub values: Vec<(&'t str, Value<'t>)>,
    pub sections: Vec<(&'t str, Section<'t>)>,
}

/// Sections within sections: metadata has four.
const DEEPEST: usize = 8;

impl<'t> Section<'t> {
    /// Reads metadata to its end. `None`: it is not of this grammar, or a name is there twice.
    pub fn parse(text: &'t str) -> Option<Section<'t>> {
        Section::parse_settings(text).filter(|section| !section.has_other())
    }

    /// As [`Section::parse`], of settings.
    pub fn parse_settings(text: &'t str) -> Option<Section<'t>> {
        let mut rest = text;
        let section = body(&mut rest, 0)?;
        section.is_unambiguous().then_some(section)
    }

    pub fn value(&self, name: &str) -> Option<&Value<'t>> {
        self.values.iter().find_map(|(found, value)| (*found == name).then_some(value))
    }

    pub fn number(&self, name: &str) -> Option<u64> {
        match self.value(name)? {
            Value::Number(number) => Some(*number),
            _ => None,
        }
    }

    /// A text without escapes.
    pub fn text(&self, name: &str) -> Option<&'t str> {
        plain(self.value(name)?)
    }

    /// A list of texts without escapes.
    pub fn texts(&self, name: &str) -> Option<Vec<&'t str>> {
        match self.value(name)? {
            Value::List(list) => list.iter().map(plain).collect(),
            _ => None,
        }
    }

    pub fn section(&self, name: &str) -> Option<&Section<'t>> {
        self.sections.iter().find_map(|(found, section)| (*found == name).then_some(section))
    }

    /// Whether it has no other values and sections than these.
    pub fn has_only(&self, values: &[&str], sections: &[&str]) -> bool {
        self.values.iter().all(|(name, _)| values.contains(name))
            && self.sections.iter().all(|(name, _)| sections.contains(name))
    }

    fn has_other(&self) -> bool {
        let is_other = |value: &Value| matches!(value, Value::Other(_));
        let has = |value: &Value| is_other(value) || matches!(value, Value::List(list) if list.iter().any(is_other));
        self.values.iter().any(|(_, value)| has(value)) || self.sections.iter().any(|(_, it)| it.has_other())
    }

    fn is_unambiguous(&self) -> bool {
        let mut names: Vec<&str> =
            self.values.iter().map(|(name, _)| *name).chain(self.sections.iter().map(|(name, _)| *name)).collect();
        names.sort_unstable();
        names.windows(2).all(|pair| pair[0] != pair[1]) && self.sections.iter().all(|(_, it)| it.is_unambiguous())
    }
}

fn plain<'t>(value: &Value<'t>) -> Option<&'t str> {
    match value {
        Value::Text(text) if !text.contains('\\') => Some(text),
        _ => None,
    }
}

/// What stands in a section, up to its end; in no section, up to the end of the text.
fn body<'t>(rest: &mut &'t str, depth: usize) -> Option<Section<'t>> {
    let mut section = Section::default();
    loop {
        skip(rest);
        match rest.chars().next() {
            None if depth == 0 => return Some(section),
            Some('}') if depth > 0 => {
                *rest = &rest[1..];
                return Some(section);
            }
            _ => {}
        }
        let name = word(rest)?;
        skip(rest);
        if take(rest, '{') && depth < DEEPEST {
            section.sections.push((name, body(rest, depth + 1)?));
        } else if take(rest, '=') {
            section.values.push((name, value(rest)?));
        } else {
            return None;
        }
    }
}

fn value<'t>(rest: &mut &'t str) -> Option<Value<'t>> {
    skip(rest);
    if !take(rest, '[') {
        return single(rest);
    }
    let mut list = Vec::new();
    skip(rest);
    if take(rest, ']') {
        return Some(Value::List(list));
    }
    loop {
        skip(rest);
        list.push(single(rest)?);
        skip(rest);
        if take(rest, ']') {
            return Some(Value::List(list));
        }
        if !take(rest, ',') {
            return None;
        }
    }
}

fn single<'t>(rest: &mut &'t str) -> Option<Value<'t>> {
    if take(rest, '"') {
        let mut is_escaped = false;
        let end = rest.bytes().position(|byte| {
            let is_end = byte == b'"' && !is_escaped;
            is_escaped = byte == b'\\' && !is_escaped;
            is_end
        })?;
        let text = &rest[..end];
        *rest = &rest[end + 1..];
        return Some(Value::Text(text));
    }
    let word = word(rest)?;
    let other = || word.parse::<f64>().ok().filter(|number| number.is_finite()).map(|_| Value::Other(word));
    word.parse().ok().map(Value::Number).or_else(other)
}

/// A name, or a number.
fn word<'t>(rest: &mut &'t str) -> Option<&'t str> {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b"_+.-".contains(&byte);
    let end = rest.bytes().position(|byte| !is_part(byte)).unwrap_or(rest.len());
    let (found, after) = rest.split_at(end);
    *rest = after;
    (end > 0).then_some(found)
}

fn take(rest: &mut &str, sign: char) -> bool {
    let after = rest.strip_prefix(sign);
    *rest = after.unwrap_or(rest);
    after.is_some()
}

/// White space, and comments up to the end of their lines.
fn skip(rest: &mut &str) {
    loop {
        *rest = rest.trim_start_matches([' ', '\t', '\n', '\r']);
        if !rest.starts_with('#') {
            return;
        }
        let end = rest.find('\n').unwrap_or(rest.len());
        *rest = &rest[end..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn values_and_sections_are_read() {
        let text = "a = 1 # one\nb{c=\"x # y\\\"\"\n d = [\"p\", 2,\n3] }\ne = []#end";
        let section = Section::parse(text).unwrap();
        assert_eq!((section.number("a"), section.texts("e")), (Some(1), Some(Vec::new())));
        let b = section.section("b").unwrap();
        assert_eq!((b.value("c"), b.text("c")), (Some(&Value::Text("x # y\\\"")), None));
        assert_eq!(b.value("d"), Some(&Value::List(vec![Value::Text("p"), Value::Number(2), Value::Number(3)])));
        assert!(section.has_only(&["a", "e"], &["b"]) && !section.has_only(&["a"], &["b"]));
    }

    #[test]
    fn settings_have_numbers_that_metadata_has_not() {
        let text = "a = -18 b { c = [1, 1.5] d = 077 }";
        assert_eq!(Section::parse(text), None);
        let settings = Section::parse_settings(text).unwrap();
        assert_eq!(settings.value("a"), Some(&Value::Other("-18")));
        assert_eq!(settings.section("b").unwrap().number("d"), Some(77));
    }

    #[test]
    fn what_is_not_of_the_grammar_is_nothing() {
        let deep = "a {".repeat(30) + &"}".repeat(30);
        for odd in [
            "a",
            "a = ",
            "a = x",
            "a = -1",
            "a {",
            "a }",
            "}",
            "a = [1",
            "a = [1,]",
            "a = [1 2]",
            "a = \"x",
            "a = 1.5",
            "= 1",
            "a = 99999999999999999999",
            "a = 1\na = 2",
            "a = 1 a { }",
            "a { } a { }",
            "é = 1",
            "a = 1\0",
            &deep,
        ] {
            assert_eq!(Section::parse(odd), None, "{odd:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_to_its_end(text in "[a-c0-9 =\\[\\]{},\"\\\\#\n]{0,200}") {
            let _ = Section::parse(&text);
            let _ = Section::parse_settings(&text);
        }
    }
}
