//! Reading a header, and refusing one that no read can serve.

use super::super::{MAX_CLUSTER_BITS, MAX_REFCOUNT_TABLE, MAX_TABLE, MIN_CLUSTER_BITS, SECTOR, Storage, be32, be64};
use super::{
    BACKING_FORMAT, COMPRESSION, CORRUPT, DATA_FILE, DIRTY, END, EXTENDED_L2, FEATURE_NAMES, HIDDEN, Header, MAGIC,
    MIN_EXTENDED_BITS, V2, V3,
};
use crate::error::{Error, Result};
use crate::image::name::NamedParent;

/// "The file name must not be longer than 1023 bytes."
const LONGEST_NAME: usize = 1023;
/// Bytes that are read at first; all of most headers.
const FIRST_READ: usize = 4096;

enum Fault {
    /// There is more of it than these bytes.
    Short,
    Damaged(String),
    Unsupported(String),
}

impl From<String> for Fault {
    fn from(what: String) -> Fault {
        Fault::Damaged(what)
    }
}

impl Header {
    /// One read for an image of ours, two for a header of more than 4 KiB.
    ///
    /// # Errors
    /// [`Error::Damaged`] for what can't be, and for an image that its writer marked as corrupt;
    /// [`Error::Unsupported`] for encryption, external data files and features that came later; [`Error::Io`].
    pub fn read(place: &dyn Storage) -> Result<Header> {
        let mut bytes = vec![0; FIRST_READ];
        place.get(&mut bytes, 0)?;
        let mut parsed = Header::parse(&bytes);
        if let Err(Fault::Short) = parsed {
            bytes.resize(1 << be32(&bytes, 20), 0);
            place.get(&mut bytes, 0)?;
            parsed = Header::parse(&bytes);
        }
        parsed.map_err(|fault| match fault {
            Fault::Short => place.damaged("its header is longer than a cluster"),
            Fault::Damaged(what) => place.damaged(what),
            Fault::Unsupported(what) => {
                Error::Unsupported { op: "opening a qcow2", why: format!("{}: {what}", place.path().display()) }
            }
        })
    }

    fn parse(bytes: &[u8]) -> Result<Header, Fault> {
        let header = Header::parse_names(bytes)?;
        header.check(be32(bytes, 32))?;
        Ok(header)
    }

    /// Takes the fields as they are, of an image that cannot be used too, and the extensions with the parent's name.
    /// Fields and extensions that do not fit together are refused: no checksum guards a header, so a header that
    /// contradicts itself is not believed to have no parent.
    fn parse_names(bytes: &[u8]) -> Result<Header, Fault> {
        if be32(bytes, 0) != MAGIC {
            return Err("there is no qcow2 header".to_owned().into());
        }
        let (version, cluster_bits) = (be32(bytes, 4), be32(bytes, 20));
        if !(2..=3).contains(&version) {
            return Err(Fault::Unsupported(format!("it is of version {version}; 2 and 3 are known")));
        }
        if !(MIN_CLUSTER_BITS..=MAX_CLUSTER_BITS).contains(&cluster_bits) {
            return Err(format!("clusters of 2^{cluster_bits} bytes can't be").into());
        }
        let cluster = 1 << cluster_bits;
        let (mut features, mut refcount_order, mut length) = ([0; 3], 4, V2);
        if version == 3 {
            features = [72, 80, 88].map(|at| be64(bytes, at));
            refcount_order = be32(bytes, 96);
            length = be32(bytes, 100) as usize;
            if !(V3..=cluster).contains(&length) || !length.is_multiple_of(8) {
                return Err(format!("a header of {length} bytes can't be").into());
            }
        }
        let mut header = Header {
            version,
            cluster_bits,
            virtual_size: be64(bytes, 24),
            l1_size: be32(bytes, 36),
            l1_offset: be64(bytes, 40),
            refcounts_offset: be64(bytes, 48),
            refcounts_clusters: be32(bytes, 56),
            refcount_order,
            snapshots: (be32(bytes, 60), be64(bytes, 64)),
            incompatible: features[0],
            compatible: features[1],
            autoclear: features[2],
            further: Vec::new(),
            hidden: false,
            backing: None,
            backing_format: None,
            extensions: Vec::new(),
        };
        let part = |at: usize, len: usize| -> Result<&[u8], Fault> {
            match at.checked_add(len) {
                Some(end) if end <= cluster => bytes.get(at..end).ok_or(Fault::Short),
                _ => Err("its header does not end within the first cluster".to_owned().into()),
            }
        };
        header.further = part(length.min(V3), length.saturating_sub(V3))?.to_vec();
        // "Compression type": 0 deflate, 1 zstd; "the compression type bit must be set" if and only if it is not 0.
        let compression = header.further.first().copied().unwrap_or(0);
        if compression > 1 {
            return Err(Fault::Unsupported(format!(
                "its compression is of type {compression}; deflate and zstd are known"
            )));
        }
        if (compression != 0) != (header.incompatible & COMPRESSION != 0) {
            return Err("its compression type and the bit that announces it contradict each other".to_owned().into());
        }
        let (name, len) = (be64(bytes, 8) as usize, be32(bytes, 16) as usize);
        if (name == 0) != (len == 0) || len > LONGEST_NAME {
            return Err(format!("a parent's name of {len} bytes at {name} can't be").into());
        }
        if name != 0 {
            header.backing = Some(String::from_utf8_lossy(part(name, len)?).into_owned());
        }
        // "The header extensions … end at the latest where the backing file name begins."
        let mut at = length;
        while name == 0 || at + 8 <= name {
            let (kind, len) = {
                let head = part(at, 8)?;
                (be32(head, 0), be32(head, 4) as usize)
            };
            let data = match kind {
                END => break,
                _ => part(at + 8, len)?,
            };
            match kind {
                BACKING_FORMAT => header.backing_format = Some(String::from_utf8_lossy(data).into_owned()),
                HIDDEN => header.hidden = data.first().is_some_and(|byte| *byte != 0),
                FEATURE_NAMES => {}
                _ => header.extensions.push((kind, data.to_vec())),
            }
            at += 8 + len.next_multiple_of(8);
        }
        // No writer leaves it behind: qemu-img refuses to make such an image, and removes both when it rebases.
        if header.backing.is_none() && header.backing_format.as_ref().is_some_and(|format| !format.is_empty()) {
            return Err("it says of which format its parent is, but not which image that is".to_owned().into());
        }
        Ok(header)
    }

    fn check(&self, encryption: u32) -> Result<(), Fault> {
        match encryption {
            0 => {}
            1 => return Err(Fault::Unsupported("it is encrypted by AES".to_owned())),
            2 => return Err(Fault::Unsupported("it is encrypted by LUKS".to_owned())),
            other => return Err(Fault::Unsupported(format!("it is encrypted by method {other}"))),
        }
        if self.incompatible & DATA_FILE != 0 {
            return Err(Fault::Unsupported(
                "its data is in another file; qemu-img convert makes one image of both".to_owned(),
            ));
        }
        let unknown = self.incompatible & !(DIRTY | CORRUPT | COMPRESSION | EXTENDED_L2);
        if unknown != 0 {
            let bits = (0..64).filter(|bit| unknown >> bit & 1 == 1).map(|bit| bit.to_string()).collect::<Vec<_>>();
            return Err(Fault::Unsupported(format!(
                "it has a feature that came later (incompatible bit {}); qemu-img convert makes an image without it",
                bits.join(" and ")
            )));
        }
        if self.incompatible & CORRUPT != 0 {
            return Err("a writer found it corrupt and marked it; qemu-img check -r all mends it".to_owned().into());
        }
        if self.is_extended() && self.cluster_bits < MIN_EXTENDED_BITS {
            return Err(format!("clusters of 2^{} bytes have no subclusters", self.cluster_bits).into());
        }
        if !self.virtual_size.is_multiple_of(SECTOR) || self.virtual_size > 1 << 56 {
            return Err(format!("a disk of {} bytes can't be", self.virtual_size).into());
        }
        let l1_size = u64::from(self.l1_size);
        if l1_size * 8 > MAX_TABLE || l1_size < self.l1_entries(self.virtual_size) {
            return Err(format!("{l1_size} L1 entries are not what {} bytes need", self.virtual_size).into());
        }
        for table in [self.l1_offset, self.refcounts_offset] {
            if !table.is_multiple_of(self.cluster()) || table >= 1 << 56 || (table == 0 && l1_size > 0) {
                return Err(format!("a table cannot lie at {table}").into());
            }
        }
        if u64::from(self.refcounts_clusters) > MAX_REFCOUNT_TABLE.div_ceil(self.cluster()) {
            return Err("its table of reference counts is too big".to_owned().into());
        }
        if self.refcount_order > 6 {
            return Err(format!("reference counts of 2^{} bits can't be", self.refcount_order).into());
        }
        Ok(())
    }
}

/// The name of the file that an image names as its parent, without directories, of an image that [`Header::read`] refuses
/// too: only the magic number, the place of the name and the name itself have to be there.
///
/// No checksum guards a header. It is believed if all that it says of a parent fits together, and the name can be read.
pub fn named_parent(place: &dyn Storage) -> NamedParent {
    let mut bytes = vec![0; FIRST_READ];
    match place.read_at(&mut bytes, 0) {
        Ok(read) if read >= V2 && be32(&bytes, 0) == MAGIC => {}
        _ => return NamedParent::UNKNOWN,
    }
    let header = Header::parse_names(&bytes);
    if let Ok(Header { backing: None, .. }) = header {
        return NamedParent { name: None, is_certain: true };
    }
    let (at, len) = (be64(&bytes, 8), be32(&bytes, 16) as usize);
    if at == 0 || at > 1 << MAX_CLUSTER_BITS || len == 0 || len > LONGEST_NAME {
        return NamedParent::UNKNOWN;
    }
    let mut name = vec![0; len];
    if !matches!(place.read_at(&mut name, at), Ok(read) if read == len) {
        return NamedParent::UNKNOWN;
    }
    let is_text = |name: &str| !name.chars().any(char::is_control);
    NamedParent {
        is_certain: header.is_ok() && str::from_utf8(&name).is_ok_and(is_text),
        name: String::from_utf8_lossy(&name).rsplit('/').next().map(str::to_owned),
    }
}
