//! `/etc/sm/tuning.conf`: the settings of the kernel that a host with SRs of some class shall have, such as the read-ahead of its
//! disks.
//!
//! | line | is |
//! |---|---|
//! | `alias NAME=GLOB` | a name for files of the kernel, below `/sys` or `/proc/sys` |
//! | `"VALUE" NAME WHO,…` | what these files say on hosts that have SRs of a class, or that have one of these names |
//!
//! `#` begins a comment, and ranges stand for many names, as in models. A line that names the host counts before one that names a
//! class of its SRs, and of several of a kind the first.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use super::document;
use crate::error::{Error, Result};
use crate::registry::line;
use crate::sys::{run_dir, small};
use crate::types::Class;

/// The directories in which files may be tuned.
pub const ROOTS: [&str; 2] = ["/sys", "/proc/sys"];

/// Bytes of the longest file of this kind.
const LONGEST: u64 = 1 << 20;

/// Bytes of the longest value: a page is what the kernel reads of one.
const LONGEST_VALUE: usize = 4095;

/// A value that files of the kernel shall have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    pub line: usize,
    pub alias: String,
    /// An absolute path below one of [`ROOTS`], in which `*`, `?` and `[…]` stand for others within a name.
    pub glob: String,
    pub value: String,
    who: BTreeSet<Who>,
}

/// Hosts that a value is for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Who {
    Host(String),
    Class(Class),
}

/// The lines of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tuning(Vec<Setting>);

impl Tuning {
    /// Reads the file of this host; nothing where there is none.
    ///
    /// # Errors
    /// [`Error::BadLine`] with the line; [`Error::Io`] if the file cannot be read.
    pub fn read() -> Result<Tuning> {
        let path = run_dir::tuning();
        match small::read_text(&path, LONGEST) {
            Ok(text) => parse(&text, &path),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Tuning::default()),
            Err(e) => Err(Error::io("read", &path)(e)),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The settings that count on a host with SRs of these classes, in the order of the file.
    pub fn of(&self, host: &str, classes: &BTreeSet<Class>) -> Vec<&Setting> {
        let of_host = |setting: &&Setting| setting.who.contains(&Who::Host(host.to_owned()));
        let of_class = |setting: &&Setting| classes.iter().any(|class| setting.who.contains(&Who::Class(*class)));
        let mut chosen: BTreeMap<&str, &Setting> = BTreeMap::new();
        for setting in self.0.iter().filter(of_host).chain(self.0.iter().filter(of_class)) {
            chosen.entry(&setting.alias).or_insert(setting);
        }
        self.0.iter().filter(|it| chosen.get(it.alias.as_str()).is_some_and(|best| best.line == it.line)).collect()
    }
}

fn parse(text: &str, path: &Path) -> Result<Tuning> {
    let mut aliases: BTreeMap<String, (usize, String)> = BTreeMap::new();
    let mut settings: Vec<Setting> = Vec::new();
    for (line, text) in text.lines().map(str::trim).enumerate().map(|(at, text)| (at + 1, text)) {
        let bad = |what: String| Error::BadLine { path: path.to_owned(), line, what };
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        if let Some(alias) = text.strip_prefix("alias").filter(|rest| rest.starts_with([' ', '\t'])) {
            let (name, glob) = alias.split_once('=').ok_or_else(|| bad("expected alias NAME=GLOB".to_owned()))?;
            let (name, glob) = (name.trim(), glob.trim());
            is_name(name)
                .then_some(())
                .ok_or_else(|| bad(format!("{name:?} is no name of letters, digits, _ and -")))?;
            confined(glob).map_err(bad)?;
            if let Some((before, _)) = aliases.insert(name.to_owned(), (line, glob.to_owned())) {
                return Err(bad(format!("{name} is an alias already, line {before}")));
            }
            continue;
        }
        let setting = setting(line, text, &aliases).map_err(bad)?;
        let same = |it: &&Setting| it.alias == setting.alias && !it.who.is_disjoint(&setting.who);
        if let Some(before) = settings.iter().find(same) {
            return Err(bad(format!("{} has a value for this already, line {}", setting.alias, before.line)));
        }
        settings.push(setting);
    }
    Ok(Tuning(settings))
}

fn setting(line: usize, text: &str, aliases: &BTreeMap<String, (usize, String)>) -> Result<Setting, String> {
    const FORM: &str = "expected alias NAME=GLOB, or \"VALUE\" NAME and classes or hosts with commas between them";
    let (value, rest) = text.strip_prefix('"').and_then(|text| text.split_once('"')).ok_or(FORM)?;
    if value.len() > LONGEST_VALUE || value.chars().any(char::is_control) {
        return Err(format!("a value has no control characters and {LONGEST_VALUE} bytes at most"));
    }
    let mut words = rest.split_whitespace();
    let (alias, who) = words.next().zip(words.next()).ok_or(FORM)?;
    let rest: Vec<&str> = words.take_while(|word| !word.starts_with('#')).collect();
    if !rest.is_empty() {
        return Err(FORM.to_owned());
    }
    let (_, glob) = aliases.get(alias).ok_or_else(|| {
        let known: Vec<&str> = aliases.keys().map(String::as_str).collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        format!("no line before says what {alias:?} is; there are these aliases: {known}")
    })?;
    let mut of = BTreeSet::new();
    for word in who.split(',') {
        for name in line::expanded(word)? {
            let one = match name.parse() {
                Ok(class) => Who::Class(class),
                Err(_) => Who::Host(document::host(&name)?),
            };
            if !of.insert(one) {
                return Err(format!("{name} stands here twice"));
            }
        }
    }
    Ok(Setting { line, alias: alias.to_owned(), glob: glob.clone(), value: value.to_owned(), who: of })
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c))
}

/// Refuses a pattern of files that are none of the kernel's settings.
fn confined(glob: &str) -> Result<(), String> {
    let below = ROOTS.iter().any(|root| glob.strip_prefix(root).is_some_and(|rest| rest.starts_with('/')));
    let plain = Path::new(glob).components().collect::<PathBuf>().as_os_str() == glob;
    let climbs = glob.split('/').any(|part| part == ".." || part.contains("**"));
    match below && plain && !climbs {
        true => glob::Pattern::new(glob).map(drop).map_err(|e| format!("the pattern {glob} is not valid: {}", e.msg)),
        false => Err(format!("{glob:?} is no path below {} without .. and **", ROOTS.join(" or "))),
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn read(text: &str) -> Result<Tuning> {
        parse(text, Path::new("/etc/sm/tuning.conf"))
    }

    const TEXT: &str = "# read-ahead\nalias ra=/sys/block/sd*/queue/read_ahead_kb\nalias dirty=/proc/sys/vm/dirty_bytes\n\
                        \"4096\" ra lvm,file # KiB\n\"128\" ra nfs\n\"64\" ra node[1-2]\n\"1 2\" dirty node1\n";

    fn chosen(host: &str, classes: &[Class]) -> Vec<(String, String)> {
        let tuning = read(TEXT).unwrap();
        let of = tuning.of(host, &classes.iter().copied().collect());
        of.into_iter().map(|it| (it.glob.clone(), it.value.clone())).collect()
    }

    #[test]
    fn the_host_counts_before_its_classes_and_of_these_the_first_line() {
        let ra = |value: &str| ("/sys/block/sd*/queue/read_ahead_kb".to_owned(), value.to_owned());
        let dirty = ("/proc/sys/vm/dirty_bytes".to_owned(), "1 2".to_owned());
        assert_eq!(chosen("node1", &[Class::Lvm]), [ra("64"), dirty]);
        assert_eq!(chosen("node2", &[]), [ra("64")]);
        assert_eq!(chosen("node3", &[Class::Nfs, Class::File]), [ra("4096")]);
        assert_eq!(chosen("node3", &[Class::Nfs]), [ra("128")]);
        assert_eq!(chosen("node3", &[]), []);
    }

    #[test]
    fn each_fault_of_a_line_is_an_error_with_file_and_line() {
        let alias = "alias ra=/sys/block/sd*/queue/read_ahead_kb\n";
        for (bad, what) in [
            ("alias ra=/sys/a", "ra is an alias already, line 1"),
            ("alias r a=/sys/a", "no name of letters"),
            ("alias x", "expected alias NAME=GLOB"),
            ("alias x=/etc/passwd", "no path below /sys or /proc/sys"),
            ("alias x=/sys/../etc/passwd", "no path below"),
            ("alias x=/system/a", "no path below"),
            ("alias x=/sys/**/a", "no path below"),
            ("alias x=/sys//a", "no path below"),
            ("alias x=/sys", "no path below"),
            ("alias x=/sys/[a", "is not valid"),
            ("4096 ra lvm", "expected alias"),
            ("\"4096\" ra", "expected alias"),
            ("\"4096\" ra lvm file", "expected alias"),
            ("\"4096\" rb lvm", "there are these aliases: ra"),
            ("\"4096\" ra -x", "no name of a host"),
            ("\"4096\" ra lvm,lvm", "lvm stands here twice"),
            ("\"4096\" ra n[1-", "n[1-"),
            ("\"4\u{1}\" ra lvm", "no control characters"),
        ] {
            match read(&format!("{alias}{bad}\n")) {
                Err(Error::BadLine { line: 2, what: said, .. }) => assert!(said.contains(what), "{bad}: {said}"),
                other => panic!("{bad}: {other:?}"),
            }
        }
        let twice = read(&format!("{alias}\"1\" ra n[1-3]\n\"2\" ra lvm,n2\n")).unwrap_err().to_string();
        assert!(twice.contains("line 3: ra has a value for this already, line 2"), "{twice}");
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "(alias [a-z/=*.\\[]{0,20}\n)?\"[ -~]{0,8}\"? ?[a-z]{0,4} [a-z0-9,\\[\\]-]{0,12}") {
            let _ = read(&text);
        }
    }
}
