//! What is free in a group, extent by extent: LVM alone knows what the parts of mirrors, pools and snapshots take.

use std::path::{Path, PathBuf};

use super::report::parsed;
use crate::error::{Error, Result};

/// Extents of a physical volume that lie together and belong to no volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Free {
    /// The UUID of the physical volume.
    pub pv: String,
    pub device: PathBuf,
    /// The first extent on the physical volume, and how many.
    pub first: u64,
    pub count: u64,
}

impl Free {
    /// The extent behind the last.
    pub fn end(&self) -> u64 {
        self.first + self.count
    }
}

/// What is free in the group `vg`, in the order of physical volumes and extents. What LVM gives to nobody (`pvchange -xn`) is left out.
///
/// # Errors
/// [`Error::Tool`] if LVM fails; [`Error::Damaged`] if its report cannot be read.
pub fn free(vg: &str) -> Result<Vec<Free>> {
    let options = ["--segments", "--noheadings", "--separator", "|", "-o", COLUMNS, "-S"];
    let out = parsed("pvs")?.args(options).arg(format!("vg_name={vg}")).run()?;
    parse(&out.stdout)
}

/// The device comes last: its name may have any sign.
const COLUMNS: &str = "pv_uuid,pv_allocatable,segtype,pvseg_start,pvseg_size,pv_name";

fn parse(out: &str) -> Result<Vec<Free>> {
    let mut all = Vec::new();
    for line in out.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let damaged =
            || Error::Damaged { path: PathBuf::from("pvs"), what: format!("it says of free extents: {line:?}") };
        let words: Vec<&str> = line.splitn(6, '|').collect();
        let [pv, allocatable, kind, first, count, device] = words[..] else { return Err(damaged()) };
        if kind != "free" || allocatable.is_empty() {
            continue;
        }
        let (Ok(first), Ok(count)) = (first.parse::<u32>(), count.parse::<u32>()) else { return Err(damaged()) };
        let (first, count) = (first.into(), count.into());
        all.push(Free { pv: pv.to_owned(), device: PathBuf::from(device), first, count });
    }
    all.sort_by(|a, b| (&a.pv, a.first).cmp(&(&b.pv, b.first)));
    Ok(all)
}

/// Extents of a device in the words that `lvcreate` takes: `/dev/sdb:0-2:7-7`.
pub fn ranges(device: &Path, extents: &[Free]) -> String {
    let ranges: String = extents.iter().map(|free| format!(":{}-{}", free.first, free.end() - 1)).collect();
    device.display().to_string().replace(':', "\\:") + &ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    /// LVM 2.03.16: a mirror, stripes, a thin pool, and a device from which nothing is given.
    const ROWS: &str = "
  j1cyEH-qz19-zE1e-hEJd-LM32-ZEiy-JZZ7GE|allocatable|striped|0|2|/dev/ubda
  j1cyEH-qz19-zE1e-hEJd-LM32-ZEiy-JZZ7GE|allocatable|free|2|1|/dev/ubda
  j1cyEH-qz19-zE1e-hEJd-LM32-ZEiy-JZZ7GE|allocatable|linear|3|3|/dev/ubda
  j1cyEH-qz19-zE1e-hEJd-LM32-ZEiy-JZZ7GE|allocatable|free|11|38|/dev/ubda
  1YIeIY-mvpc-fZ9N-ORvz-cfse-Pj6j-tuJWkd|allocatable|linear|13|1|/dev/mapper/a:1|b
  1YIeIY-mvpc-fZ9N-ORvz-cfse-Pj6j-tuJWkd|allocatable|free|14|35|/dev/mapper/a:1|b
  35jUFr-sNKl-3A1c-QWqT-JY6k-omm2-RuNkWr||free|0|49|/dev/ubdc
";

    #[test]
    fn what_is_free_is_what_lvm_calls_so() {
        let all = parse(ROWS).unwrap();
        let found: Vec<_> = all.iter().map(|free| (&free.pv[..1], free.first, free.count)).collect();
        assert_eq!(found, [("1", 14, 35), ("j", 2, 1), ("j", 11, 38)]);
        assert_eq!(ranges(&all[1].device, &all[1..]), "/dev/ubda:2-2:11-48");
        assert_eq!(ranges(&all[0].device, &all[..1]), "/dev/mapper/a\\:1|b:14-48");
        for odd in ["x", "a|b|free|1|2", "a|b|free|x|2|/dev/a", "a|b|free|1|-2|/dev/a", "a|b|free|1|99999999999|/dev/a"]
        {
            assert!(parse(odd).is_err(), "{odd}");
        }
    }
}
