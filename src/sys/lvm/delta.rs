//! What differs between two volumes of a thin pool, and what one of them has, told by the pool's own metadata.
//!
//! The program thin_delta compares the mappings of two volumes. Of a volume and itself it tells all that it has. It reads a snapshot of the metadata, of which a pool has one at most
//! (Linux, `Documentation/admin-guide/device-mapper/thin-provisioning.rst`, "reserve_metadata_snap").

use std::path::Path;
use std::time::Instant;

use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};

use super::report::parsed;
use super::{DEADLINE, dm_name};
use crate::error::{Error, Result, ended};
use crate::sys::lock::{self, Kind};
use crate::sys::tool::{self, Tool};

/// Bytes of a sector, in which the program counts chunks.
const SECTOR: u64 = 512;
const PROGRAM: &str = "thin_delta";

/// Whether this host has what tells the differences.
pub fn can_tell() -> bool {
    tool::is_there(PROGRAM)
}

/// The stretches in which two volumes of an active thin pool differ, from a byte to before another, in order. Neither volume may be
/// written to meanwhile.
///
/// # Errors
/// [`Error::Tool`] if a program fails, or another has a snapshot of the pool's metadata; [`Error::Damaged`] if its answer cannot be
/// read.
pub fn differences(vg: &str, pool: &str, [older, newer]: [&str; 2], deadline: Instant) -> Result<Vec<(u64, u64)>> {
    let ids = [thin_id(vg, older)?, thin_id(vg, newer)?];
    told(vg, pool, &ids, Wanted::Differences, deadline)
}

/// The stretches that its pool has given to an active volume, from a byte to before another, in order. All else of it reads as
/// zeroes. `None`: all else is that of another device. Nobody may write to the volume meanwhile.
///
/// # Errors
/// Those of [`differences`].
pub fn mapped(vg: &str, pool: &str, lv: &str, deadline: Instant) -> Result<Option<Vec<(u64, u64)>>> {
    let name = dm_name(vg, lv);
    let table = Tool::new("dmsetup").args(["table", "--", &name]).deadline(DEADLINE).run()?.stdout;
    match *table.split_whitespace().collect::<Vec<_>>() {
        [_, _, "thin", _, id] => {
            let ids = [id.to_owned(), id.to_owned()];
            told(vg, pool, &ids, Wanted::Mappings, deadline).map(Some)
        }
        // The sixth word is the origin (Linux, `thin-provisioning.rst`, "thin").
        [_, _, "thin", _, _, _] => Ok(None),
        _ => Err(Error::Damaged {
            path: Path::new("dmsetup").to_owned(),
            what: format!("its table of {name} is not that of a thin volume: {:?}", table.trim()),
        }),
    }
}

/// The mappings of two volumes that are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    Differences,
    /// Of either.
    Mappings,
}

fn told(vg: &str, pool: &str, ids: &[String; 2], wanted: Wanted, deadline: Instant) -> Result<Vec<(u64, u64)>> {
    // A pool has one snapshot of its metadata.
    let _alone = lock::take(vg, "metadata", Kind::Exclusive, deadline).map_err(|refused| {
        refused.or_timed_out(|holder| Error::Locked {
            what: format!("the metadata of the thin pool of {vg}"),
            holder: holder.to_owned(),
            remedy: String::new(),
        })
    })?;
    let device = format!("{}-tpool", dm_name(vg, pool));
    let message =
        |text: &str| Tool::new("dmsetup").args(["message", "--", &device, "0", text]).deadline(DEADLINE).run();
    // The kernel puts its own metadata on disk before it makes the snapshot.
    if message("reserve_metadata_snap").is_err() {
        // A killed call of ours has left one.
        message("release_metadata_snap")?;
        message("reserve_metadata_snap")?;
    }
    let metadata = format!("/dev/mapper/{}_tmeta", dm_name(vg, pool));
    let ids = ["--snap1", &ids[0], "--snap2", &ids[1]];
    let told = Tool::new(PROGRAM).args(["--metadata-snap"]).args(ids).args(["--", &metadata]).deadline(DEADLINE).run();
    let told = ended(told, message("release_metadata_snap").map(drop))?;
    parse(&told.stdout, wanted).map_err(|what| Error::Damaged { path: Path::new(PROGRAM).to_owned(), what })
}

/// The number of a volume in its pool.
fn thin_id(vg: &str, lv: &str) -> Result<String> {
    let out = parsed("lvs")?.args(["--noheadings", "-o", "thin_id", "--"]).arg(format!("{vg}/{lv}")).run()?;
    let id = out.stdout.trim();
    match id.parse::<u32>() {
        Ok(_) => Ok(id.to_owned()),
        Err(_) => Err(Error::Damaged {
            path: Path::new("lvs").to_owned(),
            what: format!("it says of the number of {vg}/{lv} in its pool: {id:?}"),
        }),
    }
}

/// The stretches in the answer of thin_delta. What it says and this does not know is an error: it may be a stretch.
fn parse(text: &str, wanted: Wanted) -> Result<Vec<(u64, u64)>, String> {
    let mut reader = Reader::from_str(text);
    let (mut chunk, mut found, mut is_whole) = (None, Vec::<(u64, u64)>::new(), false);
    loop {
        let event = reader.read_event().map_err(|e| format!("its answer is no XML: {e}"))?;
        let element = match &event {
            Event::Start(element) | Event::Empty(element) => element,
            Event::End(element) if element.name().as_ref() == "superblock" => {
                is_whole = true;
                continue;
            }
            Event::Eof => break,
            _ => continue,
        };
        match element.name().as_ref() {
            "superblock" => chunk = Some(number(element, "data_block_size")? * SECTOR),
            "diff" => {}
            "same" if wanted == Wanted::Differences => {}
            "same" | "different" | "left_only" | "right_only" => {
                let chunk = chunk.filter(|bytes| *bytes > 0).ok_or("its answer has no size of chunks")?;
                let (begin, length) = (number(element, "begin")?, number(element, "length")?);
                let end = begin.checked_add(length).and_then(|end| end.checked_mul(chunk));
                let (start, end) =
                    (begin.saturating_mul(chunk), end.ok_or("its answer has a number that is too large")?);
                match found.last_mut() {
                    Some((_, last)) if *last == start => *last = end,
                    Some((_, last)) if *last > start => return Err("its answer is not in order".to_owned()),
                    _ => found.push((start, end)),
                }
            }
            other => return Err(format!("its answer has an unknown word: {}", other)),
        }
    }
    match is_whole {
        true => Ok(found),
        false => Err("its answer has no end".to_owned()),
    }
}

fn number(element: &BytesStart, name: &str) -> Result<u64, String> {
    let found = element.try_get_attribute(name).ok().flatten();
    found.and_then(|attribute| attribute.value.parse().ok()).ok_or_else(|| format!("its answer has no number {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_stretches_of_bytes_and_nothing_unknown_is_passed_over() {
        let answer = |body: &str| {
            format!(
                "<superblock uuid=\"\" time=\"2\" transaction=\"3\" data_block_size=\"128\" nr_data_blocks=\"0\">\n  \
                 <diff left=\"1\" right=\"2\">\n{body}  </diff>\n</superblock>\n"
            )
        };
        let body = "    <same begin=\"0\" length=\"3\"/>\n    <different begin=\"3\" length=\"1\"/>\n    \
                    <right_only begin=\"4\" length=\"2\"/>\n    <left_only begin=\"9\" length=\"1\"/>\n";
        const CHUNK: u64 = 65536;
        let differences = |text: &str| parse(text, Wanted::Differences);
        assert_eq!(differences(&answer(body)).unwrap(), [(3 * CHUNK, 6 * CHUNK), (9 * CHUNK, 10 * CHUNK)]);
        assert_eq!(differences(&answer("")).unwrap(), []);
        let all = parse(&answer(body), Wanted::Mappings).unwrap();
        assert_eq!(all, [(0, 6 * CHUNK), (9 * CHUNK, 10 * CHUNK)]);
        for bad in [
            "",
            "thin_delta: bad metadata",
            &answer("<odd begin=\"0\" length=\"1\"/>"),
            &answer("<different begin=\"0\"/>"),
            &answer("<different begin=\"0\" length=\"18446744073709551615\"/>"),
            &answer("<different begin=\"5\" length=\"1\"/><different begin=\"3\" length=\"1\"/>"),
            &answer(body)[..200],
            &answer(body).replace("128", "0"),
        ] {
            assert!(differences(bad).is_err(), "{bad}");
        }
    }
}
