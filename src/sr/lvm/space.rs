//! Space: how full a thin pool is, and how large a disk may be.

use super::{LvmSr, MOST_PROMISED, POOL, POOL_DATA_FULL, POOL_METADATA_FULL};
use crate::error::{Error, Result};
use crate::sys::lvm::{self, Lv, Vg};
use crate::types::{PoolUse, Size};

impl LvmSr {
    /// Refuses work that would fill a thin pool's last reserve; else says how many bytes there are before it. Activates the
    /// pool to know. `None`: there is no pool.
    pub(super) fn room_in_pool(&self, vg: &Vg) -> Result<Option<u64>> {
        let Some(pool) = vg.lv(POOL).filter(|pool| pool.is_thin_pool()) else { return Ok(None) };
        let (data, metadata) = match (pool.data_used, pool.metadata_used) {
            (Some(data), Some(metadata)) => (data, metadata),
            _ => {
                lvm::activate(&vg.name, POOL)?;
                let vg = self.group.whole()?;
                let pool = vg.lv(POOL).ok_or_else(|| self.group.no_sr("its pool is gone".to_owned()))?;
                match (pool.data_used, pool.metadata_used) {
                    (Some(data), Some(metadata)) => (data, metadata),
                    _ => {
                        return Err(Error::SrUnavailable {
                            sr: self.group.sr,
                            why: format!("the use of its thin pool is unknown (health {:?})", pool.health),
                        });
                    }
                }
            }
        };
        if data >= POOL_DATA_FULL || metadata >= POOL_METADATA_FULL {
            let percent = |n: u64| format!("{}.{:02} %", n / 100, n % 100);
            return Err(Error::PoolFull {
                sr: self.group.sr,
                used: format!("{} of its data and {} of its metadata are in use", percent(data), percent(metadata)),
            });
        }
        Ok(Some((u128::from(pool.size) * u128::from(POOL_DATA_FULL - data) / 10_000) as u64))
    }

    /// Refuses a disk that is larger than its group can hold, or than its pool may promise. The size in whole extents.
    pub(super) fn checked_size(&self, vg: &Vg, bytes: u64, largest: u64) -> Result<u64> {
        let size = checked_size(bytes, vg.extent_size, largest)?;
        match vg.lv(POOL).filter(|pool| pool.is_thin_pool()) {
            Some(pool) if size > pool.size.saturating_mul(MOST_PROMISED) => Err(Error::TooBig {
                what: "a disk",
                bytes: size,
                limit: format!(
                    "the thin pool of SR {} has {}, and a disk may promise {MOST_PROMISED} times as much at most",
                    self.group.sr,
                    Size(pool.size)
                ),
            }),
            _ => Ok(size),
        }
    }
}

pub(super) fn pool_use(pool: &Lv) -> Option<PoolUse> {
    let part = |size: u64, hundredths: u64| (u128::from(size) * u128::from(hundredths) / 10_000) as u64;
    Some(PoolUse {
        data_size: pool.size,
        data_used: part(pool.size, pool.data_used?),
        metadata_size: pool.metadata_size,
        metadata_used: part(pool.metadata_size, pool.metadata_used?),
    })
}

/// `bytes` rounded up to extents, if a volume can have so many.
fn checked_size(bytes: u64, extent: u64, largest: u64) -> Result<u64> {
    let most = largest.min(extent.saturating_mul(lvm::MOST_EXTENTS));
    match bytes.checked_next_multiple_of(extent) {
        Some(size) if size <= most => Ok(size),
        _ => Err(Error::TooBig {
            what: "a disk",
            bytes,
            limit: format!("a volume of this group has {} at most", Size(most)),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sr::volume_group::EXTENT;

    #[test]
    fn sizes_are_whole_extents() {
        let largest = i64::MAX as u64;
        assert_eq!(checked_size(1, EXTENT, largest).unwrap(), EXTENT);
        assert_eq!(checked_size(EXTENT, EXTENT, largest).unwrap(), EXTENT);
        assert_eq!(checked_size(EXTENT + 1, EXTENT, largest).unwrap(), 2 * EXTENT);
        assert!(matches!(checked_size(largest, EXTENT, largest), Err(Error::TooBig { .. })));
        assert!(matches!(checked_size(u64::MAX, EXTENT, largest), Err(Error::TooBig { .. })));
    }

    #[test]
    fn a_pools_use_is_given_in_bytes() {
        let pool =
            Lv { size: 1000, data_used: Some(428), metadata_used: Some(10_000), metadata_size: 8, ..Lv::default() };
        let used = pool_use(&pool).unwrap();
        assert_eq!((used.data_used, used.metadata_used), (42, 8));
        assert_eq!(pool_use(&Lv { data_used: None, ..pool }), None);
    }
}
