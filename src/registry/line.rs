//! Lines of inventories and models: `KEY: VALUE`, where a value may be a list `k=v k="v w"` with ranges.
//!
//! `[0-3]` and `[00-15]` make many lines of one: the first of each range, then the second of each. All ranges of a line have
//! the same length; leading zeroes are kept.

use std::fmt;

/// Lines that one line may stand for.
const MOST: usize = 65_536;

/// A fault of a file, and the line that has the fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misfit {
    /// The line, from 1; 0 for the file as a whole.
    pub line: usize,
    pub what: String,
}

impl Misfit {
    /// Says that `what` is wrong with a line.
    pub fn at(line: usize, what: impl Into<String>) -> Misfit {
        Misfit { line, what: what.into() }
    }
}

/// A line that says something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// From 1.
    pub number: usize,
    pub key: String,
    pub value: String,
}

/// How a field compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    Is,
    AtLeast,
    AtMost,
}

impl fmt::Display for Relation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Relation::Is => "=",
            Relation::AtLeast => ">=",
            Relation::AtMost => "<=",
        })
    }
}

/// A field of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    pub key: String,
    pub relation: Relation,
    pub value: String,
}

/// The lines of a text, without blank ones and comments: `#` begins a comment, where it begins a line or follows a blank
/// outside quotes.
///
/// # Errors
/// The line that has no key.
pub fn lines(text: &str) -> Result<Vec<Line>, Misfit> {
    let mut found = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let number = at + 1;
        let line = without_comment(line).trim();
        if line.is_empty() {
            continue;
        }
        if line.chars().any(|c| c.is_control() && c != '\t') {
            return Err(Misfit::at(number, "control characters are not allowed in it"));
        }
        let Some((key, value)) = line.split_once(':') else { return Err(Misfit::at(number, "expected KEY: VALUE")) };
        let key = key.trim_end();
        if key.is_empty() || !key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            return Err(Misfit::at(number, format!("a key has letters, digits and '_', not {key:?}")));
        }
        found.push(Line { number, key: key.to_owned(), value: value.trim().to_owned() });
    }
    Ok(found)
}

fn without_comment(line: &str) -> &str {
    let (mut quoted, mut before) = (false, ' ');
    for (at, c) in line.char_indices() {
        match c {
            '"' => quoted = !quoted,
            '#' if !quoted && before.is_whitespace() => return &line[..at],
            _ => {}
        }
        before = c;
    }
    line
}

/// The fields of a list: `k=v k="v w" size>=100G`.
///
/// # Errors
/// A clause that says what is wrong.
pub fn fields(text: &str) -> Result<Vec<Field>, String> {
    let mut found: Vec<Field> = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        // Keys of device_config have '-' too.
        let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || "_-".contains(c))).unwrap_or(rest.len());
        let (key, after) = rest.split_at(end);
        let relations = [("=", Relation::Is), (">=", Relation::AtLeast), ("<=", Relation::AtMost)];
        let relation = relations.iter().find_map(|(sign, relation)| Some((after.strip_prefix(sign)?, *relation)));
        let Some((after, relation)) = relation.filter(|_| !key.is_empty()) else {
            return Err(format!("expected k=v at {rest:?}"));
        };
        let (value, after) = word(after)?;
        if found.iter().any(|field| field.key == key && field.relation == relation) {
            return Err(format!("{key} is there twice"));
        }
        found.push(Field { key: key.to_owned(), relation, value });
        rest = after.trim_start();
    }
    Ok(found)
}

/// A word up to a blank, of which parts may be in double quotes, and what follows it.
fn word(text: &str) -> Result<(String, &str), String> {
    let (mut value, mut quoted) = (String::new(), false);
    for (at, c) in text.char_indices() {
        match c {
            '"' => quoted = !quoted,
            _ if c.is_whitespace() && !quoted => return Ok((value, &text[at..])),
            _ => value.push(c),
        }
    }
    if quoted { Err("a quote is not closed".to_owned()) } else { Ok((value, "")) }
}

/// A list as a line has it.
pub fn written(fields: &[Field]) -> String {
    let one = |field: &Field| {
        let quote = if field.value.is_empty() || field.value.contains(|c: char| c.is_whitespace() || c == '#') {
            "\""
        } else {
            ""
        };
        format!("{}{}{quote}{}{quote}", field.key, field.relation, field.value)
    };
    fields.iter().map(one).collect::<Vec<_>>().join(" ")
}

/// The texts that a text with ranges stands for; the text itself if it has none. A bracket that is no range, as in a regular
/// expression, stays.
///
/// # Errors
/// A clause about ranges of unequal length, or too many texts.
pub fn expanded(text: &str) -> Result<Vec<String>, String> {
    let parts = parts(text);
    let mut length = None;
    for part in &parts {
        if let Part::Range { from, to, text, .. } = part {
            let own = to.checked_sub(*from).ok_or_else(|| format!("the range [{text}] goes backwards"))? + 1;
            match length {
                None => length = Some(own),
                Some(length) if length == own => {}
                Some(length) => {
                    return Err(format!("the range [{text}] has {own} members, the one before it {length}"));
                }
            }
        }
    }
    let Some(length) = length else { return Ok(vec![text.to_owned()]) };
    if length > MOST as u64 {
        return Err(format!("it stands for {length} lines, and {MOST} are the most"));
    }
    let one = |n: u64| {
        let of_part = |part: &Part| match part {
            Part::Text(text) => (*text).to_owned(),
            Part::Range { from, width, .. } => format!("{:0width$}", from + n, width = width),
        };
        parts.iter().map(of_part).collect()
    };
    Ok((0..length).map(one).collect())
}

enum Part<'t> {
    Text(&'t str),
    Range { from: u64, to: u64, width: usize, text: &'t str },
}

fn parts(text: &str) -> Vec<Part<'_>> {
    let mut found = Vec::new();
    let (mut done, mut at) = (0, 0);
    while let Some(open) = text[at..].find('[').map(|found| at + found) {
        let inner = text[open + 1..].find(']').map(|close| &text[open + 1..open + 1 + close]);
        at = open + 1;
        let Some(inner) = inner else { break };
        // After `]` a quantifier makes a class of it: `[0-9]+`.
        let next = text[open + inner.len() + 2..].chars().next();
        let is_class = next.is_some_and(|c| "+*?{".contains(c));
        if let (Some(range), false) = (range(inner), is_class) {
            found.push(Part::Text(&text[done..open]));
            found.push(range);
            done = open + inner.len() + 2;
            at = done;
        }
    }
    found.push(Part::Text(&text[done..]));
    found
}

fn range(inner: &str) -> Option<Part<'_>> {
    let (from, to) = inner.split_once('-')?;
    let is_number = |text: &str| !text.is_empty() && text.len() < 10 && text.bytes().all(|b| b.is_ascii_digit());
    if !is_number(from) || !is_number(to) {
        return None;
    }
    let width = if from.starts_with('0') && from.len() > 1 { from.len() } else { 0 };
    Some(Part::Range { from: from.parse().ok()?, to: to.parse().ok()?, width, text: inner })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines_have_numbers_keys_and_values() {
        let text = "# a\n\nlayout: rack1   # b\nlvm: dev=/dev/a#b tag=\"x # y\"\n";
        let found = lines(text).unwrap();
        assert_eq!(found[0], Line { number: 3, key: "layout".to_owned(), value: "rack1".to_owned() });
        assert_eq!(found[1].value, "dev=/dev/a#b tag=\"x # y\"");
        for (bad, line) in [("a: b\nnonsense\n", 2), (": x", 1), ("a b: x", 1), ("a: \u{7}", 1)] {
            assert_eq!(lines(bad).unwrap_err().line, line, "{bad}");
        }
    }

    #[test]
    fn fields_are_quoted_and_compared() {
        let found = fields(" host=node1 a-b=c size>=100G  tag=\"a b\"c size<=1T x=\"\"").unwrap();
        let shown: Vec<String> = found.iter().map(|it| format!("{}{}{}", it.key, it.relation, it.value)).collect();
        assert_eq!(shown, ["host=node1", "a-b=c", "size>=100G", "tag=a bc", "size<=1T", "x="]);
        assert_eq!(fields(&written(&found)).unwrap(), found);
        for bad in ["host", "=x", "a=1 a=2", "a=\"b", "a>1", "a=1 b"] {
            assert!(fields(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ranges_are_expanded_together_and_zeroes_kept() {
        assert_eq!(expanded("filer[1-2] 10.0.0.[11-12]").unwrap(), ["filer1 10.0.0.11", "filer2 10.0.0.12"]);
        assert_eq!(expanded("d[08-10]").unwrap(), ["d08", "d09", "d10"]);
        assert_eq!(expanded("a[0-3").unwrap(), ["a[0-3"]);
        for class in ["wwn-0x[0-9a-f]+", "[0-9]+", "[a-z]", "[^0-9]", "x[0-9]*", "[0-9]{3}"] {
            assert_eq!(expanded(class).unwrap(), [class]);
        }
        assert!(expanded("[0-1][0-2]").unwrap_err().contains("has 3 members"));
        assert!(expanded("[3-1]").unwrap_err().contains("backwards"));
        assert!(expanded("[0-99999999]").is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in ".{0,60}") {
            let _ = (lines(&text), expanded(&text));
            if let Ok(found) = fields(&text) {
                let again = written(&found);
                if !found.iter().any(|field| field.value.contains('"')) {
                    prop_assert_eq!(fields(&again).unwrap(), found);
                }
            }
        }
    }
}
