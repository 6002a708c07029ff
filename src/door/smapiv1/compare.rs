//! How xapi's records of an SR differ from the disks that a scan found: a pure function of both ([`compare`]).

use std::collections::HashMap;

use super::sync::LOG_TYPE;
use crate::door::xapi::{Record, text};
use crate::door::xmlrpc::can_carry;
use crate::types::{LogAlone, State, VdiInfo, VdiUuid};

/// The news of one VDI that xapi may have to be told.
#[derive(Debug)]
pub enum Difference<'a> {
    /// xapi has a record of the VDI, which may say something else.
    Known { reference: &'a str, record: &'a Record, vdi: &'a VdiInfo },
    /// xapi has no record of the VDI.
    New(&'a VdiInfo),
    /// xapi has no record of the snapshot. `known`: the reference of xapi's record of its disk, which may be new as well.
    NewSnapshot { vdi: &'a VdiInfo, disk: VdiUuid, known: Option<&'a str> },
    /// Only the log of changed blocks is there, and xapi has a record.
    KnownLog { reference: &'a str, record: &'a Record, log: &'a LogAlone },
    /// Only the log of changed blocks is there, and xapi has no record.
    NewLog(&'a LogAlone),
    /// xapi has a record of a VDI that is not there.
    Gone { reference: &'a str, record: &'a Record },
    /// xapi is told nothing, for the reason that the log gets.
    Left(String),
}

/// Compares the records of an SR, by reference, with its VDIs. The order of the answer is that in which xapi is told: what is
/// known and what is new as it was found, then new snapshots, whose disks then have a record, then what is gone.
///
/// VDIs that cannot be used keep the record that they have, and get none.
/// `logs`: the logs of changed blocks that are there without a disk; `None` of a driver that reads none. Their records then stay.
pub fn compare<'a>(
    records: &'a [(String, Record)],
    found: &'a [VdiInfo],
    logs: Option<&'a [LogAlone]>,
) -> Vec<Difference<'a>> {
    let mut by_location: HashMap<&str, (&'a str, &'a Record, bool)> = HashMap::with_capacity(records.len());
    for (reference, record) in records {
        by_location.insert(text(record, "location"), (reference, record, false));
    }
    let mut differences = Vec::with_capacity(found.len());
    let mut snapshots = Vec::new();
    for vdi in found {
        let location = vdi.location();
        // Another name would be stored than the one that the next scan finds: a new record and a lost one each time.
        if !can_carry(&location) {
            differences.push(Difference::Left(format!(
                "{} on SR {}: xapi is not told of it; rename it without control characters",
                location.escape_debug(),
                vdi.sr
            )));
            continue;
        }
        let known = by_location.get_mut(location.as_str()).map(|(reference, record, is_there)| {
            *is_there = true;
            (*reference, *record)
        });
        // Its image is there, so its record stays; what the record says was true when the image could be read.
        if !matches!(vdi.state, State::Healthy | State::ServerDied) {
            let what = if known.is_some() { "its record stays as it is" } else { "xapi is not told of it" };
            differences.push(Difference::Left(format!("VDI {location} on SR {}: {}; {what}", vdi.sr, vdi.state)));
            continue;
        }
        match (known, vdi.snapshot_of) {
            (Some((reference, record)), _) => differences.push(Difference::Known { reference, record, vdi }),
            (None, Some(disk)) => snapshots.push((vdi, disk)),
            (None, None) => differences.push(Difference::New(vdi)),
        }
    }
    differences.extend(snapshots.into_iter().map(|(vdi, disk)| {
        let known = by_location.get(disk.to_string().as_str()).map(|(reference, ..)| *reference);
        Difference::NewSnapshot { vdi, disk, known }
    }));
    for log in logs.unwrap_or_default() {
        let known = by_location.get_mut(log.vdi.to_string().as_str()).map(|(reference, record, is_there)| {
            *is_there = true;
            (*reference, *record)
        });
        differences.push(match known {
            Some((reference, record)) => Difference::KnownLog { reference, record, log },
            None => Difference::NewLog(log),
        });
    }
    let is_gone = |reference: &str, record: &Record| {
        let row = by_location.get(text(record, "location"));
        row.is_some_and(|(last, _, is_there)| !is_there && *last == reference)
            && (logs.is_some() || text(record, "type") != LOG_TYPE)
    };
    let gone = records.iter().filter(|(reference, record)| is_gone(reference, record));
    differences.extend(gone.map(|(reference, record)| Difference::Gone { reference, record }));
    differences
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::door::xmlrpc::Value;
    use crate::types::Params;

    fn vdi(n: u32) -> VdiUuid {
        format!("00000000-0000-4000-8000-{n:012}").parse().unwrap()
    }

    fn disk(n: u32) -> VdiInfo {
        VdiInfo::sample(vdi(n))
    }

    fn record(n: u32) -> (String, Record) {
        let location = vdi(n).to_string();
        let members = [("uuid", location.as_str()), ("location", location.as_str()), ("type", "user")];
        let members = members.map(|(key, value)| (key.to_owned(), Value::text(value)));
        (format!("OpaqueRef:{n}"), Record::from(members))
    }

    /// Each difference as a word and the number of its VDI.
    fn told(records: &[(String, Record)], found: &[VdiInfo]) -> Vec<String> {
        told_with(records, found, None)
    }

    fn told_with(records: &[(String, Record)], found: &[VdiInfo], logs: Option<&[LogAlone]>) -> Vec<String> {
        let number = |text: &str| text.trim_start_matches(|c: char| !c.is_ascii_digit() || c == '0').to_owned();
        let last = |vdi: &VdiInfo| vdi.uuid.to_string()[24..].trim_start_matches('0').to_owned();
        let said = |difference| match difference {
            Difference::Known { reference, vdi, .. } => format!("known {} {}", number(reference), last(vdi)),
            Difference::New(vdi) => format!("new {}", last(vdi)),
            Difference::NewSnapshot { vdi, known, .. } => format!("snapshot {} {}", last(vdi), known.unwrap_or("-")),
            Difference::KnownLog { reference, .. } => format!("known log {}", number(reference)),
            Difference::NewLog(log) => format!("new log {}", log.vdi.to_string()[24..].trim_start_matches('0')),
            Difference::Gone { reference, .. } => format!("gone {}", number(reference)),
            Difference::Left(words) => words,
        };
        compare(records, found, logs).into_iter().map(said).collect()
    }

    #[test]
    fn what_is_there_is_known_or_new_and_the_rest_is_gone() {
        let records = [record(1), record(2), record(3)];
        assert_eq!(told(&records, &[disk(4), disk(2)]), ["new 4", "known 2 2", "gone 1", "gone 3"]);
        assert_eq!(told(&[], &[]), [""; 0]);
    }

    #[test]
    fn a_new_snapshot_comes_after_all_disks_with_the_reference_of_its_own() {
        let of = |n, disk| VdiInfo { snapshot_of: Some(vdi(disk)), ..self::disk(n) };
        let found = [of(5, 1), of(6, 7), of(2, 1), disk(7), disk(1)];
        let said = told(&[record(1), record(2)], &found);
        assert_eq!(said, ["known 2 2", "new 7", "known 1 1", "snapshot 5 OpaqueRef:1", "snapshot 6 -"]);
    }

    #[test]
    fn a_vdi_that_cannot_be_used_keeps_its_record_and_gets_none() {
        let broken = |n| VdiInfo { state: State::Broken("it is cut off".to_owned()), ..disk(n) };
        let said = told(&[record(1)], &[broken(1), broken(2)]);
        assert!(said[0].ends_with("it is cut off; its record stays as it is"), "{said:?}");
        assert!(said[1].ends_with("it is cut off; xapi is not told of it"), "{said:?}");
        assert_eq!(said.len(), 2, "{said:?}");
        let dead = VdiInfo { state: State::ServerDied, ..disk(1) };
        assert_eq!(told(&[record(1)], &[dead]), ["known 1 1"]);
    }

    #[test]
    fn the_record_of_a_changed_block_log_outlives_its_disk() {
        let mut log = record(1);
        log.1.insert("type".to_owned(), Value::text("cbt_metadata"));
        let records = [log, record(2)];
        assert_eq!(told(&records, &[]), ["gone 2"], "a driver that reads no logs");
        let logs = |numbers: &[u32]| -> Vec<LogAlone> {
            numbers.iter().map(|n| LogAlone { vdi: vdi(*n), bytes: 52, params: Params::default() }).collect()
        };
        assert_eq!(told_with(&records, &[], Some(&logs(&[1, 2, 3]))), ["known log 1", "known log 2", "new log 3"]);
        assert_eq!(told_with(&records, &[disk(2)], Some(&[])), ["known 2 2", "gone 1"]);
    }

    #[test]
    fn of_two_records_of_one_place_the_last_counts() {
        let twin = (record(9).0, record(1).1);
        assert_eq!(told(&[record(1), twin.clone()], &[disk(1)]), ["known 9 1"]);
        assert_eq!(told(&[record(1), twin], &[]), ["gone 9"]);
    }
}
