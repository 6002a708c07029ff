//! The methods of a volume; SMAPIv3, "Volume interface".

use std::collections::BTreeMap;

use base64ct::{Base64, Encoding};
use serde::Serialize;
use serde_json::{Value, json};

use super::call::{self, now};
use super::claim;
use super::fault::Fault;
use super::request::Request;
use super::state;
use super::uri::{Handle, Uri};
use crate::call::{Session, Unreadable};
use crate::door::host::device;
use crate::door::smapiv1::code::Code;
use crate::door::smapiv1::collector;
use crate::door::smapiv1::faults::Failure;
use crate::door::smapiv1::format;
use crate::error::Error;
use crate::types::{Format, LogAlone, NewVdi, Params, ParamsChange, Utc, VdiInfo, VdiUuid};
use crate::vdi::SnapshotSaid;

/// The keys that xapi's daemon keeps of a snapshot, and of the data that a disk throws away when it is started.
const IS_A_SNAPSHOT: &str = "is_a_snapshot";
const SNAPSHOT_OF: &str = "snapshot_of";
const SNAPSHOT_TIME: &str = "snapshot_time";
const VDI_TYPE: &str = "vdi-type";
const CLONE_ON_BOOT: &str = "clone-on-boot";
/// The type of a snapshot of which only the log of changed blocks is left.
const OF_A_LOG: &str = "cbt_metadata";

/// Bytes of a block of the log of changed blocks.
const GRANULARITY: u64 = 64 << 10;

/// The record of a volume.
#[derive(Serialize)]
pub struct Volume {
    key: String,
    uuid: String,
    name: String,
    description: String,
    read_write: bool,
    sharable: bool,
    virtual_size: u64,
    physical_utilisation: u64,
    uri: [String; 1],
    keys: BTreeMap<String, String>,
    /// A variant without a value, in the form that every reader takes: its name and null.
    #[serde(skip_serializing_if = "Option::is_none")]
    volume_type: Option<(&'static str, ())>,
    cbt_enabled: bool,
}

impl Volume {
    /// The record of a volume of an SR.
    pub fn of(handle: Handle, vdi: &VdiInfo) -> Volume {
        Volume {
            key: vdi.uuid.to_string(),
            uuid: vdi.uuid.to_string(),
            name: vdi.label.clone(),
            description: vdi.description.clone(),
            read_write: !vdi.read_only,
            sharable: vdi.shareable,
            virtual_size: vdi.virtual_size,
            physical_utilisation: vdi.physical_utilisation,
            uri: [Uri { handle, vdi: vdi.uuid }.to_string()],
            keys: keys_of(&vdi.keys, vdi.snapshot_of, vdi.created),
            volume_type: None,
            cbt_enabled: vdi.cbt_enabled,
        }
    }

    /// The record of a log of changed blocks whose volume was destroyed.
    pub fn of_log(handle: Handle, log: &LogAlone) -> Volume {
        let Params { label, description, keys, snapshot_of, created, .. } = &log.params;
        let mut keys = keys_of(keys, *snapshot_of, *created);
        keys.insert(VDI_TYPE.to_owned(), OF_A_LOG.to_owned());
        keys.insert(IS_A_SNAPSHOT.to_owned(), "true".to_owned());
        Volume {
            key: log.vdi.to_string(),
            uuid: log.vdi.to_string(),
            name: label.clone(),
            description: description.clone(),
            read_write: false,
            sharable: false,
            virtual_size: 0,
            physical_utilisation: log.bytes,
            uri: [Uri { handle, vdi: log.vdi }.to_string()],
            keys,
            volume_type: Some(("CBT_Metadata", ())),
            cbt_enabled: true,
        }
    }
}

/// The keys that are stored with a volume. A snapshot that was made behind another door has none of this one's callers, so what they
/// would have set is made of what is stored else.
fn keys_of(
    stored: &BTreeMap<String, String>,
    snapshot_of: Option<VdiUuid>,
    created: Option<u64>,
) -> BTreeMap<String, String> {
    let mut keys = stored.clone();
    if let (Some(disk), false) = (snapshot_of, keys.contains_key(SNAPSHOT_OF)) {
        keys.insert(SNAPSHOT_OF.to_owned(), disk.to_string());
        keys.entry(IS_A_SNAPSHOT.to_owned()).or_insert_with(|| "true".to_owned());
        if let Some(created) = created {
            keys.entry(SNAPSHOT_TIME.to_owned()).or_insert_with(|| Utc(created).to_xmlrpc());
        }
    }
    keys
}

/// One volume of an attached SR.
pub struct Call<'a> {
    handle: Handle,
    request: &'a Request,
    session: Session,
}

impl<'a> Call<'a> {
    /// Opens the SR of a request.
    ///
    /// # Errors
    /// Those of [`call::attached`].
    pub fn new(handle: Handle, request: &'a Request) -> Result<Call<'a>, Fault> {
        Ok(Call { handle, request, session: call::attached(handle)? })
    }

    fn vdi(&self) -> Result<VdiUuid, Fault> {
        call::volume(self.request.text("key"))
    }

    /// The facts about a volume, without its children, its locks and its attachment.
    fn brief(&self, vdi: VdiUuid) -> Result<VdiInfo, Fault> {
        Ok(self.session.vdi_get_brief(vdi, &now())?)
    }

    /// The facts with whether changed blocks are tracked, which is no part of a brief look.
    fn with_log(&self, info: VdiInfo) -> Result<VdiInfo, Fault> {
        let cbt_enabled = self.session.vdi_has_log(info.uuid, &now())?;
        Ok(VdiInfo { cbt_enabled, ..info })
    }

    fn answer(&self, vdi: &VdiInfo) -> Result<Value, Fault> {
        Ok(json!(Volume::of(self.handle, vdi)))
    }

    /// Volume.create. A volume that several hosts may write to at the same time is raw: no other format could bear it.
    ///
    /// # Errors
    /// [`Code::VDISize`]; those of [`Session::vdi_create`].
    pub fn create(&self) -> Result<Value, Fault> {
        let request = self.request;
        let shareable = request.flag("sharable");
        // A caller that wants no bytes gets the least that there is.
        let size = bytes(request.number("size"))?.max(1);
        let (label, description) = (request.text("name").to_owned(), request.text("description").to_owned());
        refuse_long(&label, &description)?;
        let config = state::recall(self.handle)?.unwrap_or_default();
        let format = match shareable {
            true => Some(Format::Raw),
            false => format::choose(self.handle.driver, &config, &BTreeMap::new(), size)?,
        };
        let params = Params { label, description, shareable, ..Params::default() };
        let new = NewVdi { vdi: VdiUuid::random(), virtual_size: size, format, params };
        self.answer(&self.session.vdi_create(new, &now())?)
    }

    /// Volume.snapshot.
    ///
    /// # Errors
    /// [`Fault::Elsewhere`]; those of [`Session::vdi_snapshot`].
    pub fn snapshot(&self) -> Result<Value, Fault> {
        let (vdi, context) = (self.vdi()?, now());
        match self.session.vdi_snapshot(vdi, VdiUuid::random(), ParamsChange::default(), &context) {
            Ok(info) => self.answer(&self.with_log(info)?),
            Err(error) => Err(claim::or_elsewhere(&self.session, vdi, error, &now())),
        }
    }

    /// Volume.clone.
    ///
    /// # Errors
    /// Those of [`Session::vdi_clone`].
    pub fn copy(&self) -> Result<Value, Fault> {
        let vdi = self.vdi()?;
        self.answer(&self.session.vdi_clone(vdi, VdiUuid::random(), ParamsChange::default(), &now())?)
    }

    /// Volume.destroy. Idempotent. The clone that a volume was started with, whose data is thrown away, goes first: after its
    /// owner no caller would know it.
    ///
    /// # Errors
    /// Those of [`Session::vdi_delete`].
    pub fn destroy(&self) -> Result<Value, Fault> {
        let vdi = self.vdi()?;
        let brief = self.session.vdi_get_brief(vdi, &now());
        let clone = brief.as_ref().ok().and_then(|info| info.keys.get(CLONE_ON_BOOT)?.parse::<VdiUuid>().ok());
        for doomed in [clone, Some(vdi)].into_iter().flatten() {
            // It gets the changed blocks of what is deleted, so its log must not be written meanwhile.
            let after = self.session.vdi_log_after(doomed, &now())?;
            let held = after.map(|after| claim::hold(&self.session, after, &now()));
            let _held = match held.transpose() {
                // Of a log alone there is no writer.
                Err(Error::NoVdi { .. }) => None,
                held => held?,
            };
            self.session.vdi_delete(doomed, Unreadable::Deleted, &now())?;
            device::forget_activation(doomed);
            device::disconnect(self.handle.sr, &doomed.to_string())?;
            state::set_domains(self.handle.sr, doomed, &state::Domains::new())?;
        }
        if brief.is_ok_and(|info| info.parent.is_some()) {
            collector::start(self.handle.sr);
        }
        Ok(Value::Null)
    }

    /// Volume.revert.
    ///
    /// # Errors
    /// Those of [`Session::vdi_revert`].
    pub fn revert(&self) -> Result<Value, Fault> {
        let (vdi, snapshot) = (self.vdi()?, call::volume(self.request.text("snapshot"))?);
        // The caller names the disk that its record has as the origin of the snapshot.
        self.session.vdi_revert(vdi, snapshot, SnapshotSaid::ByAgent, &now())?;
        collector::start(self.handle.sr);
        Ok(Value::Null)
    }

    /// Volume.resize.
    ///
    /// # Errors
    /// [`Code::VDISize`]; [`Code::VDIInUse`] while a tapdisk has it open that cannot follow; those of [`Session::vdi_resize`].
    pub fn resize(&self) -> Result<Value, Fault> {
        let (vdi, size) = (self.vdi()?, bytes(self.request.number("new_size"))?);
        let info = self.brief(vdi)?;
        format::check(info.format, size)?;
        if !device::can_grow(self.handle.sr, &vdi.to_string()) {
            let why = "a tapdisk has it open, and does not follow a disk that grows; deactivate it first";
            return Err(Failure::new(Code::VDIInUse, why).into());
        }
        let held = claim::hold(&self.session, vdi, &now());
        match held.and_then(|_held| self.session.vdi_resize(vdi, size, false, &now())) {
            Ok(_) => Ok(Value::Null),
            Err(error) => Err(claim::or_elsewhere(&self.session, vdi, error, &now())),
        }
    }

    /// Volume.stat.
    ///
    /// # Errors
    /// Those of [`Session::vdi_get_brief`].
    pub fn stat(&self) -> Result<Value, Fault> {
        let vdi = self.vdi()?;
        match self.session.vdi_get_brief(vdi, &now()) {
            Ok(info) => self.answer(&self.with_log(info)?),
            Err(gone @ Error::NoVdi { .. }) => match self.session.vdi_log_alone(vdi, &now()) {
                Ok(log) => Ok(json!(Volume::of_log(self.handle, &log))),
                Err(_) => Err(gone.into()),
            },
            Err(error) => Err(error.into()),
        }
    }

    /// Volume.set_name and Volume.set_description.
    ///
    /// # Errors
    /// Those of [`Session::vdi_set`].
    pub fn rename(&self, change: ParamsChange) -> Result<Value, Fault> {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        refuse_long(&text(&change.label), &text(&change.description))?;
        self.session.vdi_set(self.vdi()?, change, &now())?;
        Ok(Value::Null)
    }

    /// Volume.set and Volume.unset: `value` of the key `k`, or none.
    ///
    /// # Errors
    /// Those of [`Session::vdi_set`].
    pub fn set(&self, value: Option<&str>) -> Result<Value, Fault> {
        let (vdi, key) = (self.vdi()?, self.request.text("k").to_owned());
        let keys = BTreeMap::from([(key.clone(), value.map(str::to_owned))]);
        match self.session.vdi_set(vdi, ParamsChange { keys, ..ParamsChange::default() }, &now()) {
            Ok(_) => Ok(Value::Null),
            Err(gone @ Error::NoVdi { .. }) => match self.session.vdi_log_alone(vdi, &now()) {
                // Nothing is stored of it any more, but it may say so already.
                Ok(log) if Volume::of_log(self.handle, &log).keys.get(&key).map(String::as_str) == value => {
                    Ok(Value::Null)
                }
                _ => Err(gone.into()),
            },
            Err(error) => Err(error.into()),
        }
    }

    /// Volume.enable_cbt and Volume.disable_cbt.
    ///
    /// # Errors
    /// Those of [`Session::vdi_enable_cbt`].
    pub fn configure_cbt(&self, enable: bool) -> Result<Value, Fault> {
        let (vdi, context) = (self.vdi()?, now());
        let done = claim::hold(&self.session, vdi, &context).and_then(|_held| match enable {
            true => self.session.vdi_enable_cbt(vdi, &context),
            false => self.session.vdi_disable_cbt(vdi, &context),
        });
        done.map(|_| Value::Null).map_err(|error| claim::or_elsewhere(&self.session, vdi, error, &now()))
    }

    /// Volume.data_destroy.
    ///
    /// # Errors
    /// [`Code::VDIType`] for what is no snapshot; those of [`Session::vdi_data_destroy`].
    pub fn data_destroy(&self) -> Result<Value, Fault> {
        let vdi = self.vdi()?;
        match self.session.vdi_get_brief(vdi, &now()) {
            Ok(info) if !info.read_only => {
                return Err(Failure::new(Code::VDIType, "Only allowed for snapshot VDIs").into());
            }
            // The data of a killed call may be gone already.
            Ok(_) | Err(Error::NoVdi { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        self.session.vdi_data_destroy(vdi, &now())?;
        collector::start(self.handle.sr);
        Ok(Value::Null)
    }

    /// Volume.list_changed_blocks.
    ///
    /// # Errors
    /// [`Code::InvalidArg`] for a range that does not begin at a block; those of [`Session::vdi_list_changed_blocks`].
    pub fn list_changed_blocks(&self) -> Result<Value, Fault> {
        let (from, to) = (self.vdi()?, call::volume(self.request.text("key2"))?);
        let (offset, length) = (self.request.number("offset"), self.request.number("length"));
        let refused = |why: &str| Fault::from(Failure::new(Code::InvalidArg, why));
        let offset = u64::try_from(offset).ok().filter(|offset| offset % GRANULARITY == 0);
        let offset = offset.ok_or_else(|| refused("offset is no multiple of 65536"))?;
        let length = match length {
            -1 => None,
            length => Some(u64::try_from(length).map_err(|_| refused("length is negative, and not -1"))?),
        };
        // What another host has logged may still be in its cache.
        claim::refuse_elsewhere(&self.session, to, &now())?;
        let bitmap = self.session.vdi_list_changed_blocks(from, to, &now())?;
        let blocks = length.map(|length| length.div_ceil(GRANULARITY));
        let part = part_of(&bitmap, offset / GRANULARITY, blocks);
        Ok(json!({ "granularity": GRANULARITY, "bitmap": Base64::encode_string(&part) }))
    }
}

/// The bits of `blocks` blocks, or of all that follow, from block `first` on. The most significant bit of a byte comes first.
fn part_of(bitmap: &[u8], first: u64, blocks: Option<u64>) -> Vec<u8> {
    let all = bitmap.len() as u64 * 8;
    let end = blocks.map_or(all, |blocks| all.min(first.saturating_add(blocks)));
    let count = end.saturating_sub(first);
    let mut part = vec![0; usize::try_from(count.div_ceil(8)).expect("it is no longer than the bitmap")];
    for bit in 0..count {
        let from = first + bit;
        let is_set = bitmap[(from / 8) as usize] & (0x80 >> (from % 8)) != 0;
        part[(bit / 8) as usize] |= u8::from(is_set) << (7 - bit % 8);
    }
    part
}

fn bytes(size: i64) -> Result<u64, Fault> {
    u64::try_from(size).map_err(|_| Failure::new(Code::VDISize, "a size is not negative").into())
}

/// Refuses names for which there is no room.
///
/// # Errors
/// [`Code::InvalidArg`].
pub fn refuse_long(label: &str, description: &str) -> Result<(), Fault> {
    if label.len() <= Params::LONGEST_LABEL && description.len() <= Params::LONGEST_DESCRIPTION {
        return Ok(());
    }
    let why =
        format!("a name has {} bytes at most, a description {}", Params::LONGEST_LABEL, Params::LONGEST_DESCRIPTION);
    Err(Failure::new(Code::InvalidArg, why).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_bitmap_begins_at_any_block() {
        let bitmap = [0b1010_0001, 0b1100_0000];
        for (first, blocks, part) in [
            (0, None, vec![0b1010_0001, 0b1100_0000]),
            (8, None, vec![0b1100_0000]),
            (2, Some(7), vec![0b1000_0110]),
            (7, Some(1), vec![0b1000_0000]),
            (1, Some(0), vec![]),
            (16, None, vec![]),
            (99, Some(u64::MAX), vec![]),
        ] {
            assert_eq!(part_of(&bitmap, first, blocks), part, "{first} {blocks:?}");
        }
    }
}
