//! JSON as `sm` answers it: `docs/json.md` has the keys, and a test compares the two.
//!
//! The documents are flat, and have every key at all times, so a reader needs no rule for what is left out. The drivers answer
//! `--format json` in the form of SR API v1.0 ([`wire`](super::wire)).

use serde::Serialize;

use super::answer::Reply;
use super::listing::Listed;
use crate::types::{Finding, Format, ImageUse, LostRange, SpaceUse, SrInfo, SrUuid, State, Utc, VdiInfo, VdiUuid};

/// The number of this form. A key that is added leaves it as it is; one that is removed, or that changes its meaning, does not.
const SCHEMA: u32 = 1;

#[derive(Serialize)]
struct Document<T> {
    schema: u32,
    #[serde(flatten)]
    of: T,
}

/// An answer.
#[derive(Serialize)]
#[serde(rename_all = "lowercase", untagged)]
enum Body<'a> {
    Device { device: &'a std::path::Path },
    Text { text: &'a str },
    Made { uuid: &'a str },
    Plan { plan: &'a [String] },
    Sr(Box<Sr<'a>>),
    Srs { srs: Vec<Sr<'a>> },
    List { srs: Vec<Line<'a>> },
    Vdi(Box<Vdi<'a>>),
    Space(Box<Space<'a>>),
    Findings { sr: SrUuid, findings: Vec<Found<'a>> },
}

#[derive(Serialize)]
struct Left<'a> {
    vdi: VdiUuid,
    lost: &'a [LostRange],
}

#[derive(Serialize)]
struct Failure<'a> {
    error: &'a str,
    status: u8,
    message: &'a str,
}

#[derive(Serialize)]
struct Sr<'a> {
    uuid: SrUuid,
    #[serde(rename = "type")]
    sr_type: &'a str,
    location: &'a str,
    size: u64,
    free: u64,
    physical_utilisation: u64,
    virtual_allocation: u64,
    pool_data_size: Option<u64>,
    pool_data_used: Option<u64>,
    pool_metadata_size: Option<u64>,
    pool_metadata_used: Option<u64>,
    vdi_uuids: &'a [VdiUuid],
    vdis: Vec<Vdi<'a>>,
}

impl<'a> From<&'a SrInfo> for Sr<'a> {
    fn from(info: &'a SrInfo) -> Sr<'a> {
        let pool = info.pool.as_ref();
        Sr {
            uuid: info.uuid,
            sr_type: &info.sr_type,
            location: &info.location,
            size: info.size,
            free: info.free,
            physical_utilisation: info.physical_utilisation,
            virtual_allocation: info.virtual_allocation,
            pool_data_size: pool.map(|pool| pool.data_size),
            pool_data_used: pool.map(|pool| pool.data_used),
            pool_metadata_size: pool.map(|pool| pool.metadata_size),
            pool_metadata_used: pool.map(|pool| pool.metadata_used),
            vdi_uuids: &info.vdi_uuids,
            vdis: info.vdis.iter().map(Vdi::from).collect(),
        }
    }
}

#[derive(Serialize)]
struct Vdi<'a> {
    uuid: VdiUuid,
    sr: SrUuid,
    label: &'a str,
    description: &'a str,
    #[serde(rename = "type")]
    format: Format,
    virtual_size: u64,
    physical_utilisation: u64,
    sector_size: u32,
    parent: Option<VdiUuid>,
    children: &'a [VdiUuid],
    attached: bool,
    device: Option<&'a std::path::Path>,
    opened_by: Option<&'a str>,
    state: &'static str,
    reason: &'a str,
    locked: bool,
    users: &'a [String],
    read_only: bool,
    shareable: bool,
    hidden: bool,
    snapshot_of: Option<VdiUuid>,
    created: Option<String>,
    cbt_enabled: bool,
    resets: bool,
}

impl<'a> From<&'a VdiInfo> for Vdi<'a> {
    fn from(info: &'a VdiInfo) -> Vdi<'a> {
        let reason = match &info.state {
            State::Healthy | State::ServerDied => "",
            State::Broken(why) | State::ParentMissing(why) | State::Unsupported(why) => why,
        };
        Vdi {
            uuid: info.uuid,
            sr: info.sr,
            label: &info.label,
            description: &info.description,
            format: info.format,
            virtual_size: info.virtual_size,
            physical_utilisation: info.physical_utilisation,
            sector_size: info.sector_size,
            parent: info.parent,
            children: &info.children,
            attached: info.attached,
            device: info.device.as_deref(),
            opened_by: info.opened_by.as_deref(),
            state: if info.state.is_healthy() { "healthy" } else { info.state.word() },
            reason,
            locked: info.locked,
            users: &info.vbds,
            read_only: info.read_only,
            shareable: info.shareable,
            hidden: info.hidden,
            snapshot_of: info.snapshot_of,
            created: info.created.map(|seconds| Utc(seconds).to_string()),
            cbt_enabled: info.cbt_enabled,
            resets: info.resets,
        }
    }
}

/// A finding of sr_check as JSON shows it.
#[derive(Serialize)]
struct Found<'a> {
    vdi: Option<VdiUuid>,
    object: &'a str,
    label: &'a str,
    what: &'a str,
    outcome: &'static str,
}

impl<'a> From<&'a Finding> for Found<'a> {
    fn from(of: &'a Finding) -> Found<'a> {
        Found { vdi: of.vdi, object: &of.object, label: &of.label, what: &of.what, outcome: of.outcome.word() }
    }
}

/// The space of an SR.
#[derive(Serialize)]
struct Space<'a> {
    sr: SrUuid,
    size: u64,
    free: u64,
    physical_utilisation: u64,
    virtual_allocation: u64,
    longest_chain: usize,
    collectable: u64,
    to_remove: usize,
    to_merge: usize,
    images: Vec<ImageSpace<'a>>,
}

impl<'a> From<&'a SpaceUse> for Space<'a> {
    fn from(of: &'a SpaceUse) -> Space<'a> {
        Space {
            sr: of.sr.uuid,
            size: of.sr.size,
            free: of.sr.free,
            physical_utilisation: of.sr.physical_utilisation,
            virtual_allocation: of.sr.virtual_allocation,
            longest_chain: of.longest_chain(),
            collectable: of.collectable.bytes,
            to_remove: of.collectable.removed,
            to_merge: of.collectable.merged,
            images: of.images.iter().map(ImageSpace::from).collect(),
        }
    }
}

#[derive(Serialize)]
struct ImageSpace<'a> {
    uuid: VdiUuid,
    label: &'a str,
    #[serde(rename = "type")]
    format: Format,
    virtual_size: u64,
    physical_utilisation: u64,
    holds: u64,
    frees: Option<u64>,
    exact: bool,
    merge_frees: u64,
    hidden: bool,
    disks: usize,
}

impl<'a> From<&'a ImageUse> for ImageSpace<'a> {
    fn from(of: &'a ImageUse) -> ImageSpace<'a> {
        ImageSpace {
            uuid: of.info.uuid,
            label: &of.info.label,
            format: of.info.format,
            virtual_size: of.info.virtual_size,
            physical_utilisation: of.info.physical_utilisation,
            holds: of.holds,
            frees: of.frees,
            exact: of.is_exact,
            merge_frees: of.merge_frees,
            hidden: of.info.hidden,
            disks: of.disks,
        }
    }
}

/// An SR in the list of all.
#[derive(Serialize)]
struct Line<'a> {
    name: Option<&'a str>,
    uuid: Option<SrUuid>,
    #[serde(rename = "type")]
    sr_type: &'a str,
    state: &'static str,
    reason: &'a str,
    size: Option<u64>,
    free: Option<u64>,
    location: &'a str,
}

impl<'a> From<&'a Listed> for Line<'a> {
    fn from(line: &'a Listed) -> Line<'a> {
        Line {
            name: Some(line.name.as_str()).filter(|name| !name.is_empty()),
            uuid: line.uuid,
            sr_type: &line.sr_type,
            state: line.state,
            reason: &line.reason,
            size: line.space.map(|space| space.size),
            free: line.space.map(|space| space.free),
            location: &line.location,
        }
    }
}

/// An answer as one line; nothing for a command that answers nothing.
pub fn write(reply: &Reply) -> Vec<u8> {
    let of = match reply {
        Reply::Nothing => return Vec::new(),
        Reply::Device(device) => Body::Device { device },
        Reply::Text(text) => Body::Text { text },
        Reply::Made(uuid) => Body::Made { uuid },
        Reply::Plan(plan) => Body::Plan { plan },
        Reply::Sr(info) | Reply::Tree(info) => Body::Sr(Box::new(info.into())),
        Reply::Srs(found) => Body::Srs { srs: found.iter().map(Sr::from).collect() },
        Reply::List(lines) => Body::List { srs: lines.iter().map(Line::from).collect() },
        Reply::Vdi(info) => Body::Vdi(Box::new(info.into())),
        Reply::Space(of) => Body::Space(Box::new(of.into())),
        Reply::Findings(sr, found) => Body::Findings { sr: *sr, findings: found.iter().map(Found::from).collect() },
    };
    line(&Document { schema: SCHEMA, of })
}

/// A failure as one line. `error`: its name, of which `status` is the number.
pub fn failure(error: &str, status: u8, message: &str) -> Vec<u8> {
    line(&Document { schema: SCHEMA, of: Failure { error, status, message } })
}

/// The stretches of a VDI that an export left out, as one line.
pub fn lost(vdi: VdiUuid, lost: &[LostRange]) -> Vec<u8> {
    line(&Document { schema: SCHEMA, of: Left { vdi, lost } })
}

/// A document of another command as one line.
pub fn document<T: Serialize>(of: &T) -> Vec<u8> {
    line(&Document { schema: SCHEMA, of })
}

fn line<T: Serialize>(document: &T) -> Vec<u8> {
    let mut bytes = serde_json::to_vec(document).expect("a document is plain data");
    bytes.push(b'\n');
    bytes
}
