//! Answers for a person at a terminal. Labels and names of files come from others, so every line is written through
//! [`line()`].

use std::collections::{BTreeMap, BTreeSet};

use crate::door::size::human;
use crate::door::v1::answer::Reply;
use crate::door::v1::listing::Listed;
use crate::types::{Gain, Outcome, Space, SpaceUse, SrInfo, State, Utc, VdiInfo, VdiUuid, printable};

/// A reply as aligned text.
pub fn write(reply: &Reply) -> String {
    let mut out = String::new();
    match reply {
        Reply::Nothing => {}
        Reply::Device(path) => out.push_str(&path.display().to_string()),
        Reply::Text(text) | Reply::Made(text) => out.push_str(text),
        Reply::Plan(lines) => lines.iter().for_each(|it| line(&mut out, it)),
        Reply::Vdi(info) => vdi(&mut out, info),
        Reply::Sr(info) => sr(&mut out, info),
        Reply::Tree(info) => tree(&mut out, info),
        Reply::List(lines) => list(&mut out, lines),
        Reply::Space(of) => space(&mut out, of),
        Reply::Findings(_, found) if found.is_empty() => out.push_str("nothing is wrong"),
        Reply::Findings(_, found) => {
            for finding in found {
                let outcome = match finding.outcome {
                    Outcome::Note => "",
                    Outcome::Mended => " (mended)",
                    Outcome::Mendable => " (sr_check --repair mends it)",
                    Outcome::Lasting => " (cannot be mended)",
                };
                let label = match finding.label.as_str() {
                    "" => String::new(),
                    label => format!(" ({label})"),
                };
                line(&mut out, &format!("{}{label}: {}{outcome}", finding.object, finding.what));
            }
        }
        Reply::Srs(found) if found.is_empty() => out.push_str("no SR found"),
        Reply::Srs(found) => {
            for info in found {
                sr(&mut out, info);
                out.push('\n');
            }
        }
    }
    out
}

fn sr(out: &mut String, info: &SrInfo) {
    let mut rows = vec![
        ("SR", info.uuid.to_string()),
        ("type", info.sr_type.clone()),
        ("location", info.location.clone()),
        ("size", human(info.size)),
        ("free", human(info.free)),
        ("used by VDIs", human(info.physical_utilisation)),
        ("virtual", human(info.virtual_allocation)),
        ("VDIs", info.vdi_uuids.len().to_string()),
    ];
    if let Some(pool) = &info.pool {
        let part = |used: u64, size: u64| format!("{} of {}", human(used), human(size));
        rows.push(("pool data", part(pool.data_used, pool.data_size)));
        rows.push(("pool metadata", part(pool.metadata_used, pool.metadata_size)));
    }
    pairs(out, &rows);
    if info.vdis.is_empty() {
        for vdi in &info.vdi_uuids {
            line(out, &format!("  {vdi}"));
        }
        return;
    }
    let mut header = vec!["VDI", "type", "virtual", "used", "created", "state", "snapshot of", "label"];
    let has_snapshots = info.vdis.iter().any(|v| v.snapshot_of.is_some());
    header.retain(|name| has_snapshots || *name != "snapshot of");
    let mut rows: Vec<Vec<String>> = vec![header.into_iter().map(str::to_owned).collect()];
    for v in &info.vdis {
        let of = has_snapshots.then(|| v.snapshot_of.map_or_else(|| "-".to_owned(), |disk| called(disk, &info.vdis)));
        let row = [
            v.uuid.to_string(),
            v.format.to_string(),
            // Of a damaged image, nothing says it.
            if v.virtual_size == 0 { "-".to_owned() } else { human(v.virtual_size) },
            human(v.physical_utilisation),
            v.created.map_or_else(|| "-".to_owned(), |seconds| Utc(seconds).to_the_minute()),
            state(v),
        ];
        rows.push(row.into_iter().chain(of).chain([v.label.clone()]).collect());
    }
    out.push('\n');
    out.push_str(&aligned(&rows, &[2, 3]));
    for v in info.vdis.iter().filter(|v| !v.state.is_healthy()) {
        line(out, &format!("{}: {}", v.uuid, v.state));
    }
}

/// A disk of an SR in a word: the label, or the first digits of the UUID where it has none. A disk that is gone is said to be.
fn called(vdi: VdiUuid, vdis: &[VdiInfo]) -> String {
    let start: String = vdi.to_string().chars().take(8).collect();
    match vdis.iter().find(|it| it.uuid == vdi) {
        Some(it) if it.label.is_empty() => start,
        Some(it) => it.label.clone(),
        None => format!("{start} (deleted)"),
    }
}

fn space(out: &mut String, of: &SpaceUse) {
    let Gain { bytes, removed, merged } = of.collectable;
    pairs(
        out,
        &[
            ("SR", of.sr.uuid.to_string()),
            ("size", human(of.sr.size)),
            ("free", human(of.sr.free)),
            ("used by VDIs", human(of.sr.physical_utilisation)),
            ("virtual", human(of.sr.virtual_allocation)),
            ("longest chain", of.longest_chain().to_string()),
            (
                "sr_collect",
                match removed + merged {
                    0 => "frees nothing".to_owned(),
                    _ => format!("frees about {}: {removed} removed, {merged} merged", human(bytes)),
                },
            ),
        ],
    );
    if of.images.is_empty() {
        return;
    }
    let mut rows = vec![["VDI", "type", "holds", "frees", "merge frees", "state", "label"].map(str::to_owned)];
    for image in &of.images {
        // What is known to be no more than so much is marked.
        let limit = |bytes| if image.is_exact { human(bytes) } else { format!("≤ {}", human(bytes)) };
        let state = match (image.info.hidden, image.disks) {
            (false, _) => state(&image.info),
            (true, 0) => "base of nothing".to_owned(),
            (true, 1) => "base of 1 disk".to_owned(),
            (true, disks) => format!("base of {disks} disks"),
        };
        rows.push([
            image.info.uuid.to_string(),
            image.info.format.to_string(),
            limit(image.holds),
            image.frees.map_or_else(|| "-".to_owned(), limit),
            if image.merge_frees == 0 { "-".to_owned() } else { human(image.merge_frees) },
            state,
            image.info.label.clone(),
        ]);
    }
    out.push('\n');
    columns(out, &rows, &[2, 3, 4]);
}

/// Rows of the same columns, aligned; numbers to the right.
fn columns<const N: usize>(out: &mut String, rows: &[[String; N]], numbers: &[usize]) {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    for row in rows {
        let cells: Vec<String> = (0..N)
            .map(|column| match (&row[column], widths[column]) {
                (cell, width) if numbers.contains(&column) => format!("{cell:>width$}"),
                (cell, width) => format!("{cell:width$}"),
            })
            .collect();
        line(out, &cells.join("  "));
    }
}

/// Rows of the same columns as aligned lines; the columns `numbers` to the right.
pub fn aligned(rows: &[Vec<String>], numbers: &[usize]) -> String {
    let count = rows.first().map_or(0, Vec::len);
    // A character that is escaped takes more columns.
    let rows: Vec<Vec<String>> =
        rows.iter().map(|row| row.iter().map(|cell| printable(cell).into_owned()).collect()).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..count).map(width).collect();
    let mut out = String::new();
    for row in &rows {
        let cell = |column: usize| match (&row[column], widths[column]) {
            (cell, width) if numbers.contains(&column) => format!("{cell:>width$}"),
            (cell, width) => format!("{cell:width$}"),
        };
        line(&mut out, &(0..count).map(cell).collect::<Vec<_>>().join("  "));
    }
    out
}

fn list(out: &mut String, lines: &[Listed]) {
    if lines.is_empty() {
        out.push_str("no SR found");
        return;
    }
    let mut rows = vec![["name", "UUID", "type", "state", "size", "free", "location"].map(str::to_owned)];
    for line in lines {
        let bytes = |of: fn(Space) -> u64| line.space.map_or_else(|| "-".to_owned(), |space| human(of(space)));
        rows.push([
            if line.name.is_empty() { "-".to_owned() } else { line.name.clone() },
            line.uuid.map_or_else(|| "-".to_owned(), |uuid| uuid.to_string()),
            line.sr_type.clone(),
            line.state.to_owned(),
            bytes(|space| space.size),
            bytes(|space| space.free),
            line.location.clone(),
        ]);
    }
    columns(out, &rows, &[4, 5]);
    for it in lines.iter().filter(|line| !line.reason.is_empty()) {
        let name = it.uuid.filter(|_| it.name.is_empty()).map_or_else(|| it.name.clone(), |uuid| uuid.to_string());
        line(out, &format!("{name}: {}", it.reason));
    }
}

/// The trees of images: each below its parent, with what it takes of the SR.
fn tree(out: &mut String, info: &SrInfo) {
    let known: BTreeSet<VdiUuid> = info.vdis.iter().map(|v| v.uuid).collect();
    let mut children: BTreeMap<Option<VdiUuid>, Vec<&VdiInfo>> = BTreeMap::new();
    for vdi in &info.vdis {
        children.entry(vdi.parent.filter(|parent| known.contains(parent))).or_default().push(vdi);
    }
    let used = format!("{} of {} used", human(info.physical_utilisation), human(info.size));
    line(out, &format!("SR {} ({}, {used})", info.uuid, info.sr_type));
    // The images still to be drawn, the next one last. Of each: the image, the text left of it, whether it is its
    // parent's last.
    let roots = children.remove(&None).unwrap_or_default();
    let mut todo: Vec<(&VdiInfo, String, bool)> = with_last(roots, "").rev().collect();
    while let Some((vdi, indent, last)) = todo.pop() {
        let branch = if last { "└─ " } else { "├─ " };
        let name = match vdi.hidden {
            true if vdi.state.is_healthy() => "base".to_owned(),
            true => format!("base {}", vdi.state.word()),
            false => state(vdi),
        };
        let name = match &vdi.state {
            State::Broken(why) | State::ParentMissing(why) | State::Unsupported(why) => format!("{name}: {why}"),
            State::Healthy | State::ServerDied => name,
        };
        let sizes = format!("{}, {} used", human(vdi.virtual_size), human(vdi.physical_utilisation));
        let label = if vdi.label.is_empty() { String::new() } else { format!("  {}", vdi.label) };
        let of = vdi.snapshot_of.map(|of| format!("  snapshot of {}", called(of, &info.vdis))).unwrap_or_default();
        line(out, &format!("{indent}{branch}{} {} {sizes}  {name}{label}{of}", vdi.uuid, vdi.format));
        let below = format!("{indent}{}", if last { "   " } else { "│  " });
        todo.extend(with_last(children.remove(&Some(vdi.uuid)).unwrap_or_default(), &below).rev());
    }
}

fn with_last<'a>(vdis: Vec<&'a VdiInfo>, indent: &str) -> impl DoubleEndedIterator<Item = (&'a VdiInfo, String, bool)> {
    let count = vdis.len();
    vdis.into_iter()
        .enumerate()
        .map(move |(n, vdi)| (vdi, indent.to_owned(), n + 1 == count))
        .collect::<Vec<_>>()
        .into_iter()
}

fn vdi(out: &mut String, info: &VdiInfo) {
    let mut rows = vec![
        ("VDI", info.uuid.to_string()),
        ("SR", info.sr.to_string()),
        ("type", info.format.to_string()),
        ("virtual size", format!("{} ({} bytes)", human(info.virtual_size), info.virtual_size)),
        ("used", human(info.physical_utilisation)),
        ("state", state(info)),
    ];
    rows.extend(info.opened_by.clone().map(|who| ("opened by", who)));
    if !info.state.is_healthy() {
        rows.push(("reason", info.state.to_string()));
    }
    rows.extend(texts(&info.label, &info.description));
    if !info.vbds.is_empty() {
        rows.push(("locked by", info.vbds.join(", ")));
    }
    if let Some(parent) = info.parent {
        rows.push(("parent", parent.to_string()));
    }
    rows.extend(info.snapshot_of.map(|disk| ("snapshot of", disk.to_string())));
    rows.extend(info.created.map(|seconds| ("created", Utc(seconds).to_string())));
    rows.extend(info.cbt_enabled.then(|| ("changed blocks", "tracked".to_owned())));
    rows.extend(info.resets.then(|| ("at start of VM", "goes back to what its parent holds".to_owned())));
    rows.extend(info.children.iter().map(|child| ("child", child.to_string())));
    pairs(out, &rows);
}

fn texts(label: &str, description: &str) -> Vec<(&'static str, String)> {
    [("label", label), ("description", description)]
        .into_iter()
        .filter(|(_, text)| !text.is_empty())
        .map(|(name, text)| (name, text.to_owned()))
        .collect()
}

fn state(info: &VdiInfo) -> String {
    let device = info.device.as_ref().map(|device| format!(" {}", device.display())).unwrap_or_default();
    let attached = format!("attached{device}");
    let words = [
        (info.attached, attached.as_str()),
        (info.locked, "locked"),
        (info.read_only, "read-only"),
        (info.shareable, "shareable"),
    ];
    let mut set: Vec<String> = words.into_iter().filter(|(is, _)| *is).map(|(_, word)| word.to_owned()).collect();
    if !info.state.is_healthy() {
        set.push(info.state.word().to_owned());
    }
    if set.is_empty() { "-".to_owned() } else { set.join(" ") }
}

fn pairs(out: &mut String, rows: &[(&str, String)]) {
    for (name, value) in rows {
        line(out, &format!("{name:<13} {value}"));
    }
}

/// Writes one line, whatever is in its text.
fn line(out: &mut String, text: &str) {
    out.push_str(&printable(text.trim_end()));
    out.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::SrUuid;

    /// A VDI on which every text that others choose has this in it.
    fn vdi(planted: &str) -> VdiInfo {
        VdiInfo {
            label: planted.to_owned(),
            description: planted.to_owned(),
            vbds: vec![planted.to_owned()],
            physical_utilisation: 4096,
            state: State::Broken(planted.to_owned()),
            locked: true,
            created: Some(1_795_741_655),
            cbt_enabled: false,
            snapshot_of: Some(VdiUuid::random()),
            opened_by: Some(planted.to_owned()),
            ..VdiInfo::sample(VdiUuid::random())
        }
    }

    #[test]
    fn a_snapshot_is_shown_with_its_disk_where_there_is_one() {
        let web = VdiInfo { label: "web".to_owned(), ..VdiInfo::sample(VdiUuid::random()) };
        let db = VdiInfo::sample(VdiUuid::random());
        let gone = VdiUuid::random();
        let of = |disk| VdiInfo { snapshot_of: Some(disk), ..VdiInfo::sample(VdiUuid::random()) };
        let sr = |vdis: Vec<VdiInfo>| SrInfo {
            uuid: SrUuid::random(),
            vdi_uuids: Vec::new(),
            physical_utilisation: 0,
            virtual_allocation: 0,
            size: 1 << 30,
            free: 1 << 30,
            sr_type: "file".to_owned(),
            location: String::new(),
            slot: None,
            pool: None,
            vdis,
            logs: None,
            kept: None,
        };
        assert!(!write(&Reply::Sr(sr(vec![web.clone()]))).contains("snapshot of"));
        let shown = write(&Reply::Sr(sr(vec![web.clone(), db.clone(), of(web.uuid), of(db.uuid), of(gone)])));
        let start = |vdi: VdiUuid| vdi.to_string()[..8].to_owned();
        let cells = ["snapshot of", "web", &start(db.uuid), &format!("{} (deleted)", start(gone))];
        for (line, cell) in shown.lines().skip(9).zip([cells[0], "-", "-", cells[1], cells[2], cells[3]]) {
            assert!(line.contains(cell), "{cell}: {line}");
        }
        assert_eq!(shown.lines().count(), 15, "{shown}");
    }

    #[test]
    fn planted_text_neither_forges_rows_nor_acts_on_the_terminal() {
        let planted = "\u{1b}]0;x\u{7}\u{9b}31m\r\nrow\u{2028}two\u{202e}end";
        let sr = |text: &str| SrInfo {
            uuid: SrUuid::random(),
            vdi_uuids: Vec::new(),
            physical_utilisation: 0,
            virtual_allocation: 0,
            size: 1 << 30,
            free: 1 << 30,
            sr_type: "file".to_owned(),
            location: text.to_owned(),
            slot: None,
            pool: None,
            vdis: vec![vdi(text)],
            logs: None,
            kept: None,
        };
        let listed = |text: &str| {
            let [name, sr_type, reason, location] = [text; 4].map(str::to_owned);
            Listed { name, sr_type, reason, location, state: "failed", ..Listed::default() }
        };
        for (evil, plain) in [
            (Reply::List(vec![listed(planted)]), Reply::List(vec![listed("x")])),
            (Reply::Sr(sr(planted)), Reply::Sr(sr("x"))),
            (Reply::Tree(sr(planted)), Reply::Tree(sr("x"))),
            (Reply::Srs(vec![sr(planted)]), Reply::Srs(vec![sr("x")])),
            (Reply::Vdi(vdi(planted)), Reply::Vdi(vdi("x"))),
            (
                Reply::Space(SpaceUse::of_disks(sr(planted), true, false)),
                Reply::Space(SpaceUse::of_disks(sr("x"), true, false)),
            ),
        ] {
            let text = write(&evil);
            assert!(text.contains(r"\u{1b}]0;x\u{7}\u{9b}31m\r\nrow\u{2028}two\u{202e}end"), "{text}");
            assert!(!text.contains(|c: char| c != '\n' && crate::types::acts_on_terminal(c)), "{text:?}");
            assert_eq!(text.lines().count(), write(&plain).lines().count(), "{text}");
        }
    }
}
