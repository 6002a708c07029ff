//! The lines of a model or of an installed layout, with their values read by type. Both have one form.

use std::collections::BTreeMap;

use super::keys::{self, Kind, Options};
use super::{Address, Attach, Gateway, LayoutName};
use crate::registry::candidate::Class;
use crate::registry::line::{self, Misfit, Relation};
use crate::types::{LayoutUuid, nearest};

/// Lines that a document may stand for when all ranges are expanded.
const MOST: usize = 200_000;

/// Bytes of the longest value in a list.
const LONGEST: usize = 4096;

/// A document as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    pub name: LayoutName,
    pub uuid: Option<LayoutUuid>,
    pub options: Options,
    /// The line of each option.
    pub option_lines: BTreeMap<&'static str, usize>,
    /// Each with its line; so are the next two.
    pub addresses: Vec<(usize, Address)>,
    /// The host is empty where the line says none.
    pub attaches: Vec<(usize, Attach)>,
    pub gateways: Vec<(usize, Gateway)>,
    /// The SR lines with their numbers, every range expanded.
    pub srs: Vec<(usize, Class, Fields)>,
}

/// The values of a list that nobody has read yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fields(BTreeMap<String, Vec<(Relation, String)>>);

impl Fields {
    fn of(text: &str) -> Result<Fields, String> {
        let mut found: BTreeMap<String, Vec<(Relation, String)>> = BTreeMap::new();
        for field in line::fields(text)? {
            if field.value.len() > LONGEST {
                return Err(format!("the value of {} is longer than {LONGEST} bytes", field.key));
            }
            found.entry(field.key).or_default().push((field.relation, field.value));
        }
        Ok(Fields(found))
    }

    /// The value of a key; `None` if it is not there.
    ///
    /// # Errors
    /// A clause, for `>=` and `<=` and for an empty value.
    pub fn take(&mut self, key: &str) -> Result<Option<String>, String> {
        let Some(mut given) = self.0.remove(key) else { return Ok(None) };
        match given.pop() {
            Some((Relation::Is, value)) if given.is_empty() && !value.is_empty() => Ok(Some(value)),
            Some((_, value)) if value.is_empty() => Err(format!("{key} has no value")),
            _ => Err(format!("{key} is compared by = alone")),
        }
    }

    /// The value of a key that has to be there.
    ///
    /// # Errors
    /// As [`take`](Fields::take), and if there is none.
    pub fn need(&mut self, key: &str) -> Result<String, String> {
        self.take(key)?.ok_or_else(|| format!("{key}= is missing"))
    }

    /// All comparisons of a key.
    pub fn take_compared(&mut self, key: &str) -> Vec<(Relation, String)> {
        self.0.remove(key).unwrap_or_default()
    }

    /// Refuses what nobody has read. `known`: the keys that there are.
    ///
    /// # Errors
    /// A clause with the key.
    pub fn finish(self, known: &[&str]) -> Result<(), String> {
        match self.0.keys().next() {
            None => Ok(()),
            Some(key) => Err(unknown(key, known)),
        }
    }
}

fn unknown(key: &str, known: &[&str]) -> String {
    match nearest(key, known.iter().copied()) {
        Some(meant) => format!("there is no key {key:?}; did you mean {meant}?"),
        None => format!("there is no key {key:?}; there are {}", known.join(" ")),
    }
}

/// The names of all keys that a line may begin with.
fn names() -> Vec<&'static str> {
    let classes = Class::ALL.iter().map(|class| class.word());
    let whole = keys::KEYS.iter().map(|key| key.name);
    ["layout", "uuid", "addr", "attach", "gateway"].into_iter().chain(classes).chain(whole).collect()
}

impl Document {
    /// Reads a document.
    ///
    /// # Errors
    /// The line, and what is wrong with it; line 0 for what concerns none.
    pub fn parse(text: &str) -> Result<Document, Misfit> {
        let mut name = None;
        let mut found = Lines::default();
        for line in line::lines(text)? {
            let bad = |what: String| Misfit::at(line.number, what);
            match line.key.as_str() {
                "layout" => {
                    let read = line.value.parse::<LayoutName>().map_err(|e| bad(e.to_string()))?;
                    if name.replace(read).is_some() {
                        return Err(bad("layout is there twice".to_owned()));
                    }
                }
                _ => found.add(&line).map_err(bad)?,
            }
            if found.count() > MOST {
                return Err(bad(format!("the lines up to this one stand for more than {MOST} lines")));
            }
        }
        let name = name.ok_or_else(|| Misfit::at(0, "it has no line `layout: NAME`"))?;
        let Lines { uuid, options, option_lines, addresses, attaches, gateways, srs, .. } = found;
        Ok(Document { name, uuid, options, option_lines, addresses, attaches, gateways, srs })
    }
}

#[derive(Default)]
struct Lines {
    uuid: Option<LayoutUuid>,
    options: Options,
    option_lines: BTreeMap<&'static str, usize>,
    addresses: Vec<(usize, Address)>,
    attaches: Vec<(usize, Attach)>,
    gateways: Vec<(usize, Gateway)>,
    srs: Vec<(usize, Class, Fields)>,
    /// The line of each address, attach line and gateway.
    seen: BTreeMap<(&'static str, [String; 3]), usize>,
}

impl Lines {
    fn count(&self) -> usize {
        self.addresses.len() + self.attaches.len() + self.gateways.len() + self.srs.len()
    }

    /// Refuses a line for what a line before is for.
    fn once(&mut self, key: &'static str, of: [&str; 3], line: usize) -> Result<(), String> {
        match self.seen.insert((key, of.map(str::to_owned)), line) {
            None => Ok(()),
            Some(at) => Err(format!("line {at} says this already, of {}", of.join(" ").trim_end())),
        }
    }

    fn add(&mut self, line: &line::Line) -> Result<(), String> {
        let list = || line::expanded(&line.value)?.iter().map(|text| Fields::of(text)).collect::<Result<Vec<_>, _>>();
        match line.key.as_str() {
            "uuid" => {
                let uuid = line.value.parse::<LayoutUuid>().map_err(|e| e.to_string())?;
                if self.uuid.replace(uuid).is_some() {
                    return Err("uuid is there twice".to_owned());
                }
            }
            "addr" => {
                for fields in list()? {
                    let it = address(fields)?;
                    self.once("addr", [&it.host, &it.address, ""], line.number)?;
                    self.addresses.push((line.number, it));
                }
            }
            "attach" => {
                for fields in list()? {
                    let it = attach(fields)?;
                    self.once("attach", [&it.host, it.class.word(), &it.path], line.number)?;
                    self.attaches.push((line.number, it));
                }
            }
            "gateway" => {
                for fields in list()? {
                    let it = gateway(fields)?;
                    self.once("gateway", [&it.host, "", ""], line.number)?;
                    self.gateways.push((line.number, it));
                }
            }
            word => match (word.parse::<Class>(), keys::find(word)) {
                (Ok(class), _) => self.srs.extend(list()?.into_iter().map(|fields| (line.number, class, fields))),
                (_, Some(key)) => {
                    let value = key.kind.normal(&line.value).map_err(|what| format!("{word}: {what}"))?;
                    if !self.options.put(key, value) {
                        return Err(format!("{word} is there twice"));
                    }
                    self.option_lines.insert(key.name, line.number);
                }
                _ => return Err(unknown(word, &names())),
            },
        }
        Ok(())
    }
}

/// The name of a host.
///
/// # Errors
/// A clause that says what is wrong.
pub fn host(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    match text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.chars().all(plain) {
        true => Ok(text.to_owned()),
        false => Err(format!("{text:?} is no name of a host")),
    }
}

fn address(mut fields: Fields) -> Result<Address, String> {
    let host = host(&fields.need("host")?)?;
    let address = fields.need("addr")?;
    fields.finish(&["host", "addr"])?;
    let plain = |c: char| c.is_ascii_alphanumeric() || ".:-_%".contains(c);
    match address.starts_with(|c: char| c.is_ascii_alphanumeric() || c == ':') && address.chars().all(plain) {
        true => Ok(Address { host, address }),
        false => Err(format!("{address:?} is no address; several have a line each")),
    }
}

fn attach(mut fields: Fields) -> Result<Attach, String> {
    let host = fields.take("host")?.map(|it| host(&it)).transpose()?.unwrap_or_default();
    let class = fields.need("class")?.parse()?;
    let path = fields.take("path")?.map(|path| Kind::Path.normal(&path)).transpose()?.unwrap_or_default();
    let options = fields.take("options")?.unwrap_or_default();
    fields.finish(&["host", "class", "path", "options"])?;
    Ok(Attach { host, class, path, options })
}

fn gateway(mut fields: Fields) -> Result<Gateway, String> {
    let host = host(&fields.need("host")?)?;
    let fabric = fields.need("fabric")?;
    fields.finish(&["host", "fabric"])?;
    Ok(Gateway { host, fabric })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_document_is_read_and_its_ranges_are_expanded() {
        let text = "layout: rack1 # x\ndescription: test rack\naddr: host=filer[1-2] addr=10.0.0.[11-12]\n\
                    nfs: host=filer1 dev=/export/sr[0-3] index=[4-7]\nattach: host=node[1-3] class=nfs options=ro\n\
                    gateway: host=node1 fabric=iscsi\nlimit: 0x10\n";
        let found = Document::parse(text).unwrap();
        assert_eq!((found.name.as_str(), found.uuid), ("rack1", None));
        assert_eq!((found.options.get("description"), found.options.get("limit")), (Some("test rack"), Some("16")));
        assert_eq!(found.addresses[1], (3, Address { host: "filer2".to_owned(), address: "10.0.0.12".to_owned() }));
        assert_eq!((found.srs.len(), found.attaches.len(), found.gateways.len()), (4, 3, 1));
        let (line, class, mut fields) = found.srs[2].clone();
        assert_eq!((line, class), (4, Class::Nfs));
        assert_eq!(
            (fields.need("index"), fields.take("dev")),
            (Ok("6".to_owned()), Ok(Some("/export/sr2".to_owned())))
        );
        assert_eq!(fields.clone().finish(&["host"]).unwrap_err(), "there is no key \"host\"; did you mean host?");
        assert_eq!(fields.take("size"), Ok(None));
    }

    #[test]
    fn each_fault_is_named_with_its_line() {
        for (bad, line, what) in [
            ("lvm: host=a dev=/b", 0, "no line `layout: NAME`"),
            ("layout: Rack", 1, "lower-case"),
            ("layout: a\nlayout: a", 2, "twice"),
            ("layout: a\ncolour: red", 2, "there is no key \"colour\""),
            ("layout: a\natach: host=a", 2, "did you mean attach?"),
            ("layout: a\nuuid: x", 2, "expected a UUID"),
            ("layout: a\nnonsense", 2, "expected KEY: VALUE"),
            ("layout: a\n\nlvm: dev", 3, "expected k=v"),
            ("layout: a\nlvm: host=a[0-1] dev=/b[0-2]", 2, "has 3 members"),
            ("layout: a\naddr: host=f addr=10.0.0.1,10.0.0.2", 2, "several have a line each"),
            ("layout: a\naddr: host=f addr=1\naddr: host=f addr=1", 3, "line 2 says this already"),
            ("layout: a\naddr: host=-f addr=1", 2, "no name of a host"),
            ("layout: a\nattach: host=a class=tape", 2, "no class"),
            ("layout: a\nattach: host=a", 2, "class= is missing"),
            ("layout: a\nattach: host=a class=nfs path=x", 2, "no absolute path"),
            (
                "layout: a\nattach: host=a class=nfs\nattach: host=a class=nfs options=ro",
                3,
                "line 2 says this already, of a nfs",
            ),
            ("layout: a\nattach: host=a class=nfs colour=red", 2, "there is no key \"colour\""),
            ("layout: a\ngateway: host=a", 2, "fabric= is missing"),
            ("layout: a\nlimit: many", 2, "limit: \"many\" is no whole number"),
            ("layout: a\nlimit: 1\nlimit: 1", 3, "limit is there twice"),
            (
                "layout: a\nlvm: dev=/d[0-65535]\nfile: dev=/d[0-65535]\nnfs: dev=/d[0-65535]\nlvm: dev=/e[0-65535]",
                5,
                "more than",
            ),
        ] {
            let misfit = Document::parse(bad).unwrap_err();
            assert_eq!(misfit.line, line, "{bad}: {misfit:?}");
            assert!(misfit.what.contains(what), "{bad}: {}", misfit.what);
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "(layout: a\n)?((lvm|addr|attach|uuid|limit)?:? ?[a-z=\\[\\]0-9\"#,>< ]{0,20}\n){0,4}") {
            let _ = Document::parse(&text);
        }
    }
}
