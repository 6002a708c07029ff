//! An image as it goes through a pipe: written from front to back.
//!
//! Header, table of reference counts, their blocks, L1 table, L2 tables, data. Where everything is, is known once
//! it is known which clusters hold something, before the first of them is read.

use std::io::Write;
use std::ops::Range;
use std::path::Path;

use super::header::Header;
use super::image::COPIED;
use super::{CLUSTER, CLUSTER_BITS, table_bytes};
use crate::error::{Error, Result};
use crate::image::disk::{Disk, PIECE};
use crate::sys::copy::Progress;
use crate::types::Size;

/// Counts in a block of them, of 16 bits.
const COUNTS: u64 = CLUSTER / 2;
/// L2 entries in a table, and entries of the table of reference counts in a cluster.
const ENTRIES: u64 = CLUSTER / 8;

/// Writes a disk as one image without a parent. The bytes that a chain shows are written, not its layers.
///
/// # Errors
/// [`Error::TooBig`]; [`Error::Io`].
pub fn write_stream(disk: &dyn Disk, out: &mut dyn Write, name: &Path, progress: Progress) -> Result<()> {
    let fail = |e| Error::io("write", name)(e);
    if disk.size() > super::MAX_SIZE {
        return Err(Error::TooBig {
            what: "a disk",
            bytes: disk.size(),
            limit: format!("a qcow2 holds {} at most", Size(super::MAX_SIZE)),
        });
    }
    let mut header = Header::new(CLUSTER_BITS, disk.size());
    let runs = clusters_of(disk)?;
    let data: u64 = runs.iter().map(|run| run.end - run.start).sum();
    let mut tables: Vec<u64> = runs.iter().flat_map(|run| run.start / ENTRIES..=(run.end - 1) / ENTRIES).collect();
    tables.dedup();
    let l1_clusters = (u64::from(header.l1_size) * 8).div_ceil(CLUSTER);
    let rest = 1 + l1_clusters + tables.len() as u64 + data;
    // The blocks count themselves and their table.
    let (mut blocks, mut table) = (1, 1);
    while rest + blocks + table > blocks * COUNTS || blocks > table * ENTRIES {
        blocks += 1;
        table = blocks.div_ceil(ENTRIES);
    }
    let used = rest + blocks + table;
    let l1 = 1 + table + blocks;
    let l2 = l1 + l1_clusters;
    header.refcounts_clusters = table as u32;
    header.l1_offset = l1 * CLUSTER;

    let mut put = |bytes: &[u8], clusters: u64| {
        out.write_all(bytes).map_err(fail)?;
        let pad = (clusters * CLUSTER) as usize - bytes.len();
        out.write_all(&vec![0; pad]).map_err(fail)
    };
    put(&header.to_sector(name)?, 1)?;
    put(&table_bytes(&(0..blocks).map(|n| (1 + table + n) * CLUSTER).collect::<Vec<_>>()), table)?;
    for block in 0..blocks {
        let counted = used.saturating_sub(block * COUNTS).min(COUNTS);
        put(&[0, 1].repeat(counted as usize), 1)?;
    }
    let mut entries = vec![0; header.l1_size as usize];
    for (n, region) in tables.iter().enumerate() {
        entries[*region as usize] = ((l2 + n as u64) * CLUSTER) | COPIED;
    }
    put(&table_bytes(&entries), l1_clusters)?;
    let mut next = l2 + tables.len() as u64;
    let mut entries = vec![0; ENTRIES as usize];
    let mut clusters = runs.iter().cloned().flatten().peekable();
    for region in &tables {
        entries.fill(0);
        while let Some(cluster) = clusters.next_if(|cluster| cluster / ENTRIES == *region) {
            entries[(cluster % ENTRIES) as usize] = (next * CLUSTER) | COPIED;
            next += 1;
        }
        put(&table_bytes(&entries), 1)?;
    }
    let mut buf = vec![0; PIECE];
    let mut done = 0;
    for run in runs {
        let mut at = run.start * CLUSTER;
        while at < run.end * CLUSTER {
            let len = PIECE.min((run.end * CLUSTER - at) as usize);
            let inside = len.min((disk.size() - at) as usize);
            buf[inside..len].fill(0);
            disk.read_at(&mut buf[..inside], at)?;
            put(&buf[..len], len as u64 / CLUSTER)?;
            at += len as u64;
            done += len as u64;
            progress(done, data * CLUSTER);
        }
    }
    Ok(())
}

/// The clusters that may hold something, in order.
fn clusters_of(disk: &dyn Disk) -> Result<Vec<Range<u64>>> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    let mut at = 0;
    while let Some((start, end)) = disk.next_data(at)? {
        let run = start / CLUSTER..end.div_ceil(CLUSTER);
        match runs.last_mut() {
            Some(last) if last.end >= run.start => last.end = last.end.max(run.end),
            _ => runs.push(run),
        }
        at = end;
    }
    Ok(runs)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Empty(u64);

    impl Disk for Empty {
        fn size(&self) -> u64 {
            self.0
        }

        fn next_data(&self, _from: u64) -> Result<Option<(u64, u64)>> {
            Ok(None)
        }

        fn read_at(&self, buf: &mut [u8], _offset: u64) -> Result<()> {
            buf.fill(0);
            Ok(())
        }
    }

    #[test]
    fn a_disk_that_no_qcow2_holds_is_refused_in_sizes_that_can_be_read() {
        let mut written = Vec::new();
        let refused = write_stream(&Empty(1 << 62), &mut written, Path::new("x"), &|_, _| {}).unwrap_err().to_string();
        assert!(written.is_empty());
        assert!(refused.contains(&format!("a qcow2 holds {} at most", Size(super::super::MAX_SIZE))), "{refused}");
    }
}
