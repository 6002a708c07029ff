//! How large the volume of an image is (`lvhdutil.py`, `qcow2util.py` of the Python storage managers).
//!
//! A qcow2 has room for all its tables and, while its disk can be written to, for all clusters. Our images have one cluster more than the
//! least. Every VHD gets tables for 2 TiB when it is made, so that its disk can grow without moving anything. What differs is the room for
//! blocks: all that its disk may ever need while it can be written to, else as much as it holds.

use crate::image::qcow2;
use crate::image::vhd::BLOCK;
use crate::types::Format;

/// Bytes of a VHD with tables for 2 TiB and without a block: both footers, header, BAT, batmap, and 2 KiB for the names of a parent.
const EMPTY: u64 = 4_329_472;

/// Bytes that a block takes besides its data: the sector with its bitmap, and the sectors up to where the next one may begin.
const BITMAP: u64 = 4096;

/// Bytes that one more block takes.
pub const OF_BLOCK: u64 = BLOCK + BITMAP;

/// Bytes of a volume in which every block of a disk has room. The last block counts as far as the disk goes.
pub fn full(format: Format, virtual_size: u64) -> u64 {
    match format {
        Format::Raw => virtual_size,
        Format::Vhd => virtual_size + EMPTY + virtual_size.div_ceil(BLOCK) * BITMAP,
        Format::Qcow2 => virtual_size + least(format, virtual_size),
    }
}

/// Bytes of a volume for an image without a block.
pub fn least(format: Format, virtual_size: u64) -> u64 {
    match format {
        Format::Raw => virtual_size,
        Format::Vhd => EMPTY,
        Format::Qcow2 => qcow2::overhead(virtual_size) + qcow2::CLUSTER,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::map::Devices;
    use super::*;
    use crate::image::fault::Look;
    use crate::image::storage::Storage;
    use crate::image::vhd::Image;
    use crate::sys::lvm::{Lv, Pv, Segment, Vg, dm_name};
    use crate::types::{Format, Mode, VdiUuid};
    use crate::vdi::format::ParentImage;
    use crate::vdi::layout;
    use crate::vdi::place::Opened;

    #[test]
    fn sizes_are_those_of_the_python_drivers() {
        const EXTENT: u64 = 4 << 20;
        assert_eq!(least(Format::Vhd, 0).next_multiple_of(EXTENT), 8_388_608);
        for (virtual_size, volume) in [
            (2 << 20, 8_388_608),
            (1 << 30, 1_082_130_432),
            (8 << 30, 8_615_100_416),
            (10 << 30, 10_766_778_368),
            (100 << 30, 107_592_286_208),
            (1 << 40, 1_101_667_500_032_u64),
            (2040 << 30, 2_194_719_899_648),
        ] {
            let full = full(Format::Vhd, virtual_size);
            assert_eq!(full.next_multiple_of(EXTENT), volume, "{virtual_size}");
            assert_eq!(full, EMPTY + virtual_size / BLOCK * OF_BLOCK, "{virtual_size}");
        }
    }

    #[test]
    fn sizes_of_qcow2s_are_those_of_the_python_drivers() {
        const EXTENT: u64 = 4 << 20;
        for (virtual_size, volume, small) in [
            (64 << 20, 71_303_168, 4 << 20),
            (128 << 20, 138_412_032, 4 << 20),
            (1 << 30, 1_077_936_128_u64, 4 << 20),
            (100 << 30, 107_390_959_616, 16 << 20),
            (1 << 40, 1_099_683_594_240, 164 << 20),
            (17_589_500_641_280, 17_592_186_044_416, 2564 << 20),
        ] {
            let all = (full(Format::Qcow2, virtual_size), least(Format::Qcow2, virtual_size));
            assert_eq!(
                (all.0.next_multiple_of(EXTENT), all.1.next_multiple_of(EXTENT)),
                (volume, small),
                "{virtual_size}"
            );
        }
    }

    /// A group on one file, with a volume for each of these sizes.
    fn volumes(dir: &std::path::Path, sizes: &[u64]) -> Vec<Arc<dyn Storage>> {
        const EXTENT: u64 = 4096;
        let path = dir.join("pv");
        // Old bytes, as a disk has them that was used before.
        std::fs::write(&path, vec![b'x'; (EXTENT + sizes.iter().sum::<u64>()) as usize]).unwrap();
        let pv = Pv { name: path.clone(), first_extent: EXTENT, ..Pv::default() };
        let vg = Vg { name: "vg".to_owned(), extent_size: EXTENT, pvs: vec![pv], ..Vg::default() };
        let mut first = 0;
        let volume = |size: &u64| {
            let on = Some((path.clone(), first));
            let segment = Segment { kind: "linear".to_owned(), start: 0, count: size / EXTENT, on };
            first += size / EXTENT;
            let lv = Lv { name: "lv".to_owned(), size: *size, segments: vec![segment], ..Lv::default() };
            Arc::new(Devices::for_writing(&vg).volume(&vg, &lv).unwrap()) as Arc<dyn Storage>
        };
        sizes.iter().map(volume).collect()
    }

    #[test]
    fn every_block_of_a_disk_has_room_in_a_full_volume() {
        // On a filesystem that can be read past the page cache.
        let dir = tempfile::tempdir_in(std::env::current_exe().unwrap().parent().unwrap()).unwrap();
        let virtual_size = 3 * BLOCK;
        let rounded = |bytes: u64| bytes.next_multiple_of(4096);
        let all = volumes(dir.path(), &[rounded(least(Format::Vhd, 0)), rounded(full(Format::Vhd, virtual_size))]);
        let [base, leaf] = &all[..] else { panic!() };
        let layout = layout(Format::Vhd);
        layout.create(&**base, virtual_size).unwrap();
        layout.set_hidden(&**base, true).unwrap();
        // The longest name that a base has.
        let name = dm_name(&format!("VG_XenStorage-{}", VdiUuid::random()), &format!("VHD-{}", VdiUuid::random()));
        let parent = ParentImage { name, format: Format::Vhd, image: Opened::of_shared(base.clone()) };
        layout.child_of(&parent).unwrap()(&**leaf).unwrap();
        let image = Image::open(leaf.clone(), Mode::ReadWrite).unwrap();
        assert_eq!(image.info().max_blocks, 1 << 20);
        assert!(image.headers_end() <= EMPTY - 512, "{}", image.headers_end());
        for block in 0..3 {
            let at = image.data_for_write(block).unwrap();
            leaf.write_at(&vec![b'a' + block as u8; BLOCK as usize], at).unwrap();
        }
        image.flush().unwrap();
        assert!(image.physical_size() <= full(Format::Vhd, virtual_size), "{}", image.physical_size());
        image.close().unwrap();
        assert!(layout.check(leaf, Look { in_use: false, deep: true }).unwrap().is_empty());
    }
}
