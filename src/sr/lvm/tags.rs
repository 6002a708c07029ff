//! The tags of a VDI and their meaning.
//!
//! | tag | meaning |
//! |---|---|
//! | `xcp.label.<k>=…`, `xcp.description.<k>=…` | part `k` of the text, escaped |
//! | `xcp.shareable`, `xcp.read_only` | as they say |
//! | `xcp.snapshot_of=<vdi>` | the disk that this one is a snapshot of |
//! | `xcp.created=<seconds>` | when the VDI was made, since 1970-01-01 UTC, where that is not when its volume was |
//! | `xcp.zero` | never attached; what the volume holds is not its own and is zeroed before anybody sees it |
//! | `xcp.cut=<bytes>` | being cut to this size; what makes it active meanwhile is no attachment |
//! | `xcp.maker=…` | of an unfinished volume: the host that fills it |
//! | `xcp.lent` | active for a call that reads it, which is no attachment |
//! | `xcp.lock=<n>` | the lock's record has been changed `n` times |
//! | `xcp.lock.<n>.<i>.<k>=…` | part `k` of the name of holder `i`, in state `n` of the record |

use std::collections::BTreeMap;

use crate::sys::lvm::{LONGEST_TAG, escape, unescape};
use crate::types::{Params, VdiUuid};
use crate::vdi::Holders;

pub const ZERO: &str = "xcp.zero";
const CUT: &str = "xcp.cut";
pub const LENT: &str = "xcp.lent";
const MAKER: &str = "xcp.maker";
const READ_ONLY: &str = "xcp.read_only";
const SHAREABLE: &str = "xcp.shareable";
const SNAPSHOT_OF: &str = "xcp.snapshot_of";
const CREATED: &str = "xcp.created";
const LOCK: &str = "xcp.lock";

/// The mark of this host on a volume that it fills.
pub fn of_maker() -> String {
    let host = nix::unistd::gethostname().unwrap_or_default();
    let mut tag = format!("{MAKER}={}", escape(&host.to_string_lossy()));
    tag.truncate(LONGEST_TAG - 1);
    tag
}

/// Whether an unfinished volume is one that another host may be filling.
pub fn is_elsewhere(tags: &[String]) -> bool {
    let mut makers = tags.iter().filter(|tag| tag.split_once('=').is_some_and(|(key, _)| key == MAKER)).peekable();
    let ours = of_maker();
    makers.peek().is_some() && makers.all(|tag| *tag != ours)
}

/// A VDI's tags, read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    pub params: Params,
    pub holders: Holders,
    pub zero: bool,
    /// Bytes that the disk is being cut to.
    pub cut: Option<u64>,
    pub lent: bool,
    /// The tag of a cut that says no size. How far the disk is to be cut, and whether that was done, nobody knows.
    pub damaged: Option<String>,
}

impl Record {
    /// Whether a call that did not end is all that can have made the volume active: its path was never given to anybody.
    pub fn is_private(&self) -> bool {
        self.zero || self.lent || self.cut.is_some()
    }
}

pub fn read(tags: &[String]) -> Record {
    let mut texts: BTreeMap<&str, BTreeMap<u64, &str>> = BTreeMap::new();
    let mut record = Record::default();
    for tag in tags {
        match tag.as_str() {
            ZERO => record.zero = true,
            LENT => record.lent = true,
            SHAREABLE => record.params.shareable = true,
            READ_ONLY => record.params.read_only = true,
            _ => {
                let Some((key, value)) = tag.split_once('=') else { continue };
                if key == CUT {
                    match value.parse() {
                        Ok(bytes) if bytes > 0 => record.cut = Some(bytes),
                        _ => record.damaged = Some(tag.clone()),
                    }
                } else if key == SNAPSHOT_OF {
                    record.params.snapshot_of = value.parse().ok();
                } else if key == CREATED {
                    record.params.created = value.parse().ok();
                } else if key == LOCK {
                    record.holders.state = record.holders.state.max(value.parse().unwrap_or(0));
                } else if let Some((name, part)) = key.rsplit_once('.')
                    && let Ok(part) = part.parse()
                {
                    texts.entry(name).or_default().insert(part, value);
                }
            }
        }
    }
    let text = |name: &str| {
        unescape(&texts.get(name).map(|parts| parts.values().copied().collect::<String>()).unwrap_or_default())
    };
    record.params.label = text("xcp.label");
    record.params.description = text("xcp.description");
    let mut users: Vec<(u64, String)> = texts
        .keys()
        .filter_map(|name| {
            let (state, user) = name.strip_prefix(LOCK)?.strip_prefix('.')?.split_once('.')?;
            // Of a state that was left behind: of no meaning.
            (state.parse() == Ok(record.holders.state)).then(|| Some((user.parse().ok()?, text(name))))?
        })
        .collect();
    users.sort_unstable();
    record.holders.users = users.into_iter().map(|(_, user)| user).collect();
    record
}

/// The tags that say `params`, but for the time, which the volume has itself.
pub fn of_params(params: &Params) -> Vec<String> {
    let mut tags = text("xcp.label", &params.label);
    tags.extend(text("xcp.description", &params.description));
    tags.extend(params.shareable.then(|| SHAREABLE.to_owned()));
    tags.extend(params.read_only.then(|| READ_ONLY.to_owned()));
    tags.extend(params.snapshot_of.map(|disk| format!("{SNAPSHOT_OF}={disk}")));
    tags
}

/// The tag that says when a VDI was made whose volume is younger.
pub fn of_time(seconds: u64) -> String {
    format!("{CREATED}={seconds}")
}

/// The tags that have to go and those that have to come, to make `params` of what `tags` say now. Tags that say something
/// else, the lock, the time or the state of the volume, are in neither.
pub fn to_change(tags: &[String], params: &Params) -> (Vec<String>, Vec<String>) {
    let is_of_params = |tag: &&String| {
        let key = tag.split_once('=').map_or(tag.as_str(), |(key, _)| key);
        [READ_ONLY, SHAREABLE, SNAPSHOT_OF].contains(&key)
            || tag.starts_with("xcp.label.")
            || tag.starts_with("xcp.description.")
    };
    let wanted = of_params(params);
    let go = tags.iter().filter(is_of_params).filter(|tag| !wanted.contains(tag)).cloned().collect();
    (go, wanted.into_iter().filter(|tag| !tags.contains(tag)).collect())
}

/// The tags that say who holds the lock in a state of its record.
pub fn of_holders(state: u64, users: &[String]) -> Vec<String> {
    let mut tags = vec![lock_state(state)];
    for (i, user) in users.iter().enumerate() {
        tags.extend(text(&format!("{LOCK}.{state}.{i}"), user));
    }
    tags
}

/// The tag of a disk that is being cut to `bytes`.
pub fn cut(bytes: u64) -> String {
    format!("{CUT}={bytes}")
}

pub fn lock_state(state: u64) -> String {
    format!("{LOCK}={state}")
}

/// The tags of the driver's kind that it does not understand: of another release, or damaged. They count for nothing. A cut
/// that says no size is not among them.
pub fn odd(tags: &[String]) -> impl Iterator<Item = &str> {
    tags.iter().map(String::as_str).filter(|tag| {
        let Some(rest) = tag.strip_prefix("xcp.") else { return false };
        let (key, value) = tag.split_once('=').map_or((*tag, None), |(key, value)| (key, Some(value)));
        match (key, value) {
            (ZERO | LENT | SHAREABLE | READ_ONLY, None) | (CUT | MAKER, Some(_)) => false,
            (SNAPSHOT_OF, Some(value)) => value.parse::<VdiUuid>().is_err(),
            (CREATED | LOCK, Some(value)) => value.parse::<u64>().is_err(),
            (_, Some(_)) => !["label.", "description.", "lock."].iter().any(|text| rest.starts_with(text)),
            _ => true,
        }
    })
}

/// Whether a tag is part of the lock's record.
pub fn is_lock(tag: &str) -> bool {
    tag.strip_prefix(LOCK).is_some_and(|rest| rest.starts_with(['=', '.']))
}

fn text(name: &str, value: &str) -> Vec<String> {
    let escaped = escape(value);
    let room = LONGEST_TAG - 1 - name.len() - ".999=".len();
    // Escaped text is ASCII: any byte is a boundary.
    let parts = escaped.as_bytes().chunks(room).enumerate();
    parts.map(|(k, part)| format!("{name}.{k}={}", String::from_utf8_lossy(part))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_text_survives(label in "\\PC{0,400}", description in "\\PC{0,2000}", users in prop::collection::vec("\\PC{1,40}", 0..4), state in 1..u64::MAX) {
            let snapshot_of = Some(crate::types::VdiUuid::random());
            let params = Params { label, description, shareable: true, snapshot_of, ..Params::default() };
            let mut tags = of_params(&params);
            tags.extend(of_holders(state, &users));
            for tag in &tags {
                prop_assert!(tag.len() < LONGEST_TAG && !tag.starts_with('-'));
                prop_assert!(tag.bytes().all(|b| b.is_ascii_alphanumeric() || b"_+.-/=!:&#".contains(&b)), "{tag}");
            }
            // LVM reports tags in an order of its own.
            tags.sort_unstable_by(|a, b| b.cmp(a));
            let record = read(&tags);
            prop_assert_eq!(record.params, params);
            prop_assert_eq!(record.holders, Holders { state, users });
            prop_assert_eq!(tags.iter().filter(|t| is_lock(t)).count() > 0, true);
        }
    }

    #[test]
    fn new_params_take_the_place_of_the_old_ones_and_leave_the_rest() {
        let params = |label: &str, read_only: bool| Params {
            label: label.to_owned(),
            description: "what it is".to_owned(),
            shareable: !read_only,
            read_only,
            snapshot_of: read_only.then(|| "98de866e-b035-4b1a-a571-613bff542b89".parse().unwrap()),
            created: Some(1_700_000_000),
            ..Params::default()
        };
        let long = "é".repeat(3000);
        for (old, new) in [("", "a b"), ("a b", ""), ("a b", "a b"), (&long, "x"), ("x", &long)] {
            for (was, is) in [(false, false), (false, true), (true, false)] {
                let mut tags = of_params(&params(old, was));
                tags.push(of_time(1_700_000_000));
                tags.extend(of_holders(3, &["me".to_owned()]));
                tags.push(ZERO.to_owned());
                let before = read(&tags);
                assert_eq!(before.params, params(old, was));
                let (go, come) = to_change(&tags, &params(new, is));
                assert_eq!((old, was) == (new, is), go.is_empty() && come.is_empty());
                tags.retain(|tag| !go.contains(tag));
                tags.extend(come);
                assert_eq!(read(&tags), Record { params: params(new, is), ..before });
            }
        }
    }

    #[test]
    fn tags_that_say_nothing_are_odd() {
        let mut known = of_params(&Params { label: "a b".to_owned(), shareable: true, ..Params::default() });
        known.push(format!("{SNAPSHOT_OF}={}", VdiUuid::random()));
        known.extend(
            [of_time(7), cut(4), lock_state(2), of_maker()].into_iter().chain(of_holders(3, &["x".to_owned()])),
        );
        known.extend([ZERO, LENT, "xcp.cut=x", "hidden", "a=b"].map(str::to_owned));
        assert_eq!(odd(&known).collect::<Vec<_>>(), [] as [&str; 0]);
        let strange =
            ["xcp.colour=red", "xcp.zero=1", "xcp.snapshot_of=x", "xcp.created=now", "xcp.lock=x", "xcp.label"];
        assert_eq!(odd(&strange.map(str::to_owned)).collect::<Vec<_>>(), strange);
    }

    #[test]
    fn a_cut_that_says_no_size_is_damage() {
        for tag in ["xcp.cut=", "xcp.cut=0", "xcp.cut=8M", "xcp.cut=-4194304", "xcp.cut=99999999999999999999"] {
            let record = read(&[tag.to_owned()]);
            assert_eq!((record.cut, record.damaged.as_deref()), (None, Some(tag)));
        }
        assert_eq!(read(&[cut(8 << 20)]), Record { cut: Some(8 << 20), ..Record::default() });
    }

    #[test]
    fn tags_of_others_and_of_past_states_mean_nothing() {
        let tags =
            ["hidden", "journaler", "xcp.lock=3", "xcp.lock=2", "xcp.lock.2.0.0=old", "xcp.lock.3.0.0=new", "a=b"]
                .map(str::to_owned);
        let record = read(&tags);
        assert_eq!(record.holders, Holders { state: 3, users: vec!["new".to_owned()] });
        assert_eq!(record.params, Params::default());
    }
}
