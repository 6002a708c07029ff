//! The form of answers: `(sr (uuid . "…") …)`; SR Driver API v1.0, "Results". JSON has the names of the same fields.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::answer::Reply;
use super::listing::Listed;
use crate::types::{Finding, Format, ImageUse, PoolUse, SpaceUse, SrInfo, SrUuid, State, VdiInfo, VdiUuid};

/// One datum, tagged with what it is. An SR or a VDI inside another datum is tagged as it is at top level.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Datum {
    Nothing,
    Device(PathBuf),
    Text(String),
    Sr(Sr),
    Srs(Vec<Datum>),
    /// Only sm answers it.
    #[serde(rename = "sr_list")]
    List(Vec<Line>),
    Tree(Sr),
    Vdi(Vdi),
    Space(Box<Space>),
    Image(ImageSpace),
    Findings(Vec<Datum>),
    Finding(Found),
}

/// A finding of sr_check as an answer shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    #[serde(default, skip_serializing_if = "Option::is_none", with = "bare")]
    pub vdi: Option<VdiUuid>,
    pub object: String,
    pub what: String,
    /// `note`, `mended`, `mendable` or `lasting`.
    pub outcome: String,
}

impl From<&Finding> for Found {
    fn from(found: &Finding) -> Found {
        let Finding { vdi, object, what, outcome, .. } = found.clone();
        Found { vdi, object, what, outcome: outcome.word().to_owned() }
    }
}

/// The space of an SR as an answer shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Space {
    #[serde(rename = "SR")]
    pub sr: SrUuid,
    pub size: u64,
    pub free: u64,
    pub physical_utilisation: u64,
    pub virtual_allocation: u64,
    pub longest_chain: u64,
    /// Bytes that sr_collect would free, about.
    pub collectable: u64,
    /// Bases that sr_collect would remove.
    pub to_remove: u64,
    /// Images that sr_collect would merge.
    pub to_merge: u64,
    /// Each is a [`Datum::Image`].
    pub images: Vec<Datum>,
}

impl From<&SpaceUse> for Space {
    fn from(of: &SpaceUse) -> Space {
        Space {
            sr: of.sr.uuid,
            size: of.sr.size,
            free: of.sr.free,
            physical_utilisation: of.sr.physical_utilisation,
            virtual_allocation: of.sr.virtual_allocation,
            longest_chain: of.longest_chain() as u64,
            collectable: of.collectable.bytes,
            to_remove: of.collectable.removed as u64,
            to_merge: of.collectable.merged as u64,
            images: of.images.iter().map(|image| Datum::Image(image.into())).collect(),
        }
    }
}

/// The space of one image as an answer shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageSpace {
    pub uuid: VdiUuid,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub label: String,
    #[serde(rename = "type")]
    pub format: Format,
    pub virtual_size: u64,
    pub physical_utilisation: u64,
    /// Bytes that no other image shares.
    pub holds: u64,
    /// Bytes that vdi_delete frees. Left out for an image that cannot be deleted by itself.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "bare")]
    pub frees: Option<u64>,
    /// `holds` and `frees` are exact, and no upper limits.
    pub exact: bool,
    /// Bytes that sr_collect could free after the deletion, about.
    pub merge_frees: u64,
    pub hidden: bool,
    /// The disks that read through a base.
    pub disks: u64,
}

impl From<&ImageUse> for ImageSpace {
    fn from(of: &ImageUse) -> ImageSpace {
        ImageSpace {
            uuid: of.info.uuid,
            label: of.info.label.clone(),
            format: of.info.format,
            virtual_size: of.info.virtual_size,
            physical_utilisation: of.info.physical_utilisation,
            holds: of.holds,
            frees: of.frees,
            exact: of.is_exact,
            merge_frees: of.merge_frees,
            hidden: of.info.hidden,
            disks: of.disks as u64,
        }
    }
}

impl From<&Reply> for Datum {
    fn from(reply: &Reply) -> Datum {
        match reply {
            Reply::Nothing => Datum::Nothing,
            Reply::Device(path) => Datum::Device(path.clone()),
            Reply::Text(text) | Reply::Made(text) => Datum::Text(text.clone()),
            Reply::Plan(lines) => Datum::Text(lines.join("\n")),
            Reply::Sr(info) => Datum::Sr(info.into()),
            Reply::Srs(found) => Datum::Srs(found.iter().map(|info| Datum::Sr(info.into())).collect()),
            Reply::List(lines) => Datum::List(lines.iter().map(|line| Line::Sr(line.into())).collect()),
            Reply::Tree(info) => Datum::Tree(info.into()),
            Reply::Vdi(info) => Datum::Vdi(info.into()),
            Reply::Space(of) => Datum::Space(Box::new(of.into())),
            Reply::Findings(_, found) => Datum::Findings(found.iter().map(|one| Datum::Finding(one.into())).collect()),
        }
    }
}

/// An SR.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sr {
    pub uuid: SrUuid,
    #[serde(rename = "VDIs")]
    pub vdi_uuids: Vec<VdiUuid>,
    pub physical_utilisation: u64,
    pub virtual_allocation: u64,
    pub size: u64,
    #[serde(rename = "type")]
    pub sr_type: String,
    pub location: String,
    /// Left out where there is no thin pool.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "bare")]
    pub pool: Option<Pool>,
    /// Each is a [`Datum::Vdi`]. Left out by all but sr_scan.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vdis: Vec<Datum>,
}

impl From<&SrInfo> for Sr {
    fn from(info: &SrInfo) -> Sr {
        Sr {
            uuid: info.uuid,
            vdi_uuids: info.vdi_uuids.clone(),
            physical_utilisation: info.physical_utilisation,
            virtual_allocation: info.virtual_allocation,
            size: info.size,
            sr_type: info.sr_type.clone(),
            location: info.location.clone(),
            pool: info.pool.as_ref().map(Pool::from),
            vdis: info.vdis.iter().map(|vdi| Datum::Vdi(vdi.into())).collect(),
        }
    }
}

/// One SR of `sm sr_list`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Line {
    Sr(ListedSr),
}

/// An SR as `sm sr_list` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedSr {
    /// Left out for an SR without a name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Left out for a file of the table that cannot be read.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "bare")]
    pub uuid: Option<SrUuid>,
    #[serde(rename = "type")]
    pub sr_type: String,
    pub state: String,
    /// Left out for an SR that is available.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Left out, like `free`, unless the SR is available.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "bare")]
    pub size: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none", with = "bare")]
    pub free: Option<u64>,
    pub location: String,
}

impl From<&Listed> for ListedSr {
    fn from(line: &Listed) -> ListedSr {
        ListedSr {
            name: line.name.clone(),
            uuid: line.uuid,
            sr_type: line.sr_type.clone(),
            state: line.state.to_owned(),
            reason: line.reason.clone(),
            size: line.space.map(|space| space.size),
            free: line.space.map(|space| space.free),
            location: line.location.clone(),
        }
    }
}

/// How full a thin pool is, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    pub data_size: u64,
    pub data_used: u64,
    pub metadata_size: u64,
    pub metadata_used: u64,
}

impl From<&PoolUse> for Pool {
    fn from(pool: &PoolUse) -> Pool {
        let PoolUse { data_size, data_used, metadata_size, metadata_used } = *pool;
        Pool { data_size, data_used, metadata_size, metadata_used }
    }
}

/// A VDI.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vdi {
    pub uuid: VdiUuid,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub label: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    #[serde(rename = "SR")]
    pub sr: SrUuid,
    /// The user strings of the current locks.
    #[serde(rename = "VBDs")]
    pub vbds: Vec<String>,
    pub virtual_size: u64,
    pub physical_utilisation: u64,
    pub sector_size: u32,
    #[serde(rename = "type")]
    pub format: Format,
    #[serde(default, skip_serializing_if = "Option::is_none", with = "bare")]
    pub parent: Option<VdiUuid>,
    #[serde(default)]
    pub children: Vec<VdiUuid>,
    #[serde(default)]
    pub shareable: bool,
    pub attached: bool,
    /// Left out while the VDI can be used.
    #[serde(default, skip_serializing_if = "State::is_healthy")]
    pub state: State,
    /// 1 locked, 0 not.
    #[serde(default)]
    pub lock: u8,
    /// 1 read-only, 0 writable.
    #[serde(default)]
    pub read_only: u8,
    /// Left out for all but the bases that only vdi_tree shows.
    #[serde(default, skip_serializing_if = "is_false")]
    pub hidden: bool,
}

impl From<&VdiInfo> for Vdi {
    fn from(info: &VdiInfo) -> Vdi {
        Vdi {
            uuid: info.uuid,
            label: info.label.clone(),
            description: info.description.clone(),
            sr: info.sr,
            vbds: info.vbds.clone(),
            virtual_size: info.virtual_size,
            physical_utilisation: info.physical_utilisation,
            sector_size: info.sector_size,
            format: info.format,
            parent: info.parent,
            children: info.children.clone(),
            shareable: info.shareable,
            attached: info.attached,
            state: info.state.clone(),
            lock: info.locked.into(),
            read_only: info.read_only.into(),
            hidden: info.hidden,
        }
    }
}

fn is_false(value: &bool) -> bool {
    !value
}

/// Writes `Some(x)` as `x`: serde-lexpr alone would write the list `(x)`.
mod bare {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<T: Serialize, S: Serializer>(value: &Option<T>, to: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => value.serialize(to),
            None => to.serialize_unit(),
        }
    }

    pub fn deserialize<'de, T: Deserialize<'de>, D: Deserializer<'de>>(from: D) -> Result<Option<T>, D::Error> {
        T::deserialize(from).map(Some)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::types::Space;

    pub fn vdi() -> VdiInfo {
        VdiInfo {
            label: "a \"b\" \\ ü λ".to_owned(),
            sr: "87b8646b-b800-9500-cb7b-af3b74e02f5c".parse().unwrap(),
            vbds: vec!["host1/vm7".to_owned()],
            physical_utilisation: 4096,
            parent: Some("98de866e-b035-4b1a-a571-000000000002".parse().unwrap()),
            shareable: true,
            state: State::Broken("x.vhd: it is empty".to_owned()),
            locked: true,
            created: Some(1_795_741_655),
            cbt_enabled: false,
            ..VdiInfo::sample("98de866e-b035-4b1a-a571-000000000001".parse().unwrap())
        }
    }

    fn sr(vdis: Vec<VdiInfo>) -> SrInfo {
        SrInfo {
            uuid: "87b8646b-b800-9500-cb7b-af3b74e02f5c".parse().unwrap(),
            vdi_uuids: vdis.iter().map(|vdi| vdi.uuid).collect(),
            physical_utilisation: 4096,
            virtual_allocation: 1 << 20,
            size: 1 << 30,
            free: 7,
            sr_type: "file".to_owned(),
            location: "/srv/sr0".to_owned(),
            slot: None,
            pool: Some(PoolUse { data_size: 4, data_used: 3, metadata_size: 2, metadata_used: 1 }),
            vdis,
            logs: None,
            kept: None,
        }
    }

    fn space() -> Reply {
        let base = VdiInfo { hidden: true, ..vdi() };
        let mut of = SpaceUse::of_disks(sr(vec![vdi(), base]), true, true);
        of.images[1].frees = None;
        Reply::Space(of)
    }

    fn listed() -> Reply {
        let space = Some(Space { size: 2, free: 1 });
        let line = Listed { name: "fast".to_owned(), uuid: Some(SrUuid::random()), space, ..Listed::default() };
        Reply::List(vec![line, Listed::default()])
    }

    #[test]
    fn a_datum_is_read_back_as_it_was_written() {
        for reply in [
            Reply::Vdi(vdi()),
            Reply::Sr(sr(vec![vdi()])),
            Reply::Sr(sr(vec![])),
            Reply::Srs(vec![sr(vec![])]),
            listed(),
            space(),
        ] {
            let datum = Datum::from(&reply);
            let text = serde_lexpr::to_vec(&datum).unwrap();
            assert!(!text.contains(&b'\n'), "one datum, one line");
            assert_eq!(serde_lexpr::from_slice::<Datum>(&text).unwrap(), datum);
            assert_eq!(serde_json::from_slice::<Datum>(&serde_json::to_vec(&datum).unwrap()).unwrap(), datum);
        }
    }

    #[test]
    fn the_bytes_of_an_sr_and_a_vdi_are_those_of_the_api() {
        let text = serde_lexpr::to_string(&Datum::from(&Reply::Sr(sr(vec![vdi()])))).unwrap();
        let vdi = "(vdi (uuid . \"98de866e-b035-4b1a-a571-000000000001\") (label . \"a \\\"b\\\" \\\\ ü λ\") \
                   (SR . \"87b8646b-b800-9500-cb7b-af3b74e02f5c\") (VBDs \"host1/vm7\") (virtual_size . 1048576) \
                   (physical_utilisation . 4096) (sector_size . 512) (type . \"vhd\") \
                   (parent . \"98de866e-b035-4b1a-a571-000000000002\") (children) (shareable . #t) (attached . #f) \
                   (state . \"broken: x.vhd: it is empty\") (lock . 1) (read_only . 0))";
        let sr = format!(
            "(sr (uuid . \"87b8646b-b800-9500-cb7b-af3b74e02f5c\") (VDIs \"98de866e-b035-4b1a-a571-000000000001\") \
             (physical_utilisation . 4096) (virtual_allocation . 1048576) (size . 1073741824) (type . \"file\") \
             (location . \"/srv/sr0\") (pool (data_size . 4) (data_used . 3) (metadata_size . 2) (metadata_used . 1)) \
             (vdis {vdi}))"
        );
        assert_eq!(text, sr);
    }
}
