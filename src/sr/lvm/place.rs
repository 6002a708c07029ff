//! One disk of an [`LvmSr`]: a logical volume.

use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Instant;

use super::space::pool_use;
use super::{DATA_GONE, LvmSr, POOL, RAW, REVERTED, SHARED, UNFINISHED, tags};
use crate::error::{Error, Result, one_line};
use crate::image::storage::FileStorage;
use crate::sr::volume_group::trim;
use crate::sys::blockdev;
use crate::sys::copy::Progress;
use crate::sys::lvm::{self, Deactivated, Lv, UNREADABLE, Vg};
use crate::types::{Done, Format, Mode, Params, SrUuid, State, VdiInfo, VdiUuid};
use crate::vdi::tree::nodes::Node;
use crate::vdi::{self, Accept, Changed, Holders, Opened, Place, Usage, raw};

/// A disk as one report showed it; asked again only after a change.
pub struct LvmPlace<'a> {
    pub(super) sr: &'a LvmSr,
    pub(super) vdi: VdiUuid,
    pub(super) vg: Rc<Vg>,
    pool_used: Option<u64>,
    /// The tags of a `NEW-<vdi>`, if there is one.
    pub(super) unfinished: RefCell<Option<Vec<String>>>,
    /// There was a `REV-<vdi>` beside the disk.
    pub(super) has_reverted: Cell<bool>,
    pub(super) lv: RefCell<Lv>,
}

/// The data that all disks of a group share, so that a listing has it once.
#[derive(Clone)]
pub struct Group {
    /// The group without its volumes, except the pool and what a killed sr_trim left.
    vg: Rc<Vg>,
    /// Bytes that all disks of a thin pool use.
    pool_used: Option<u64>,
}

impl Group {
    pub fn of(vg: &Vg) -> Group {
        let pool_used = vg.lv(POOL).and_then(pool_use).map(|used| used.data_used);
        let own = Vg {
            name: vg.name.clone(),
            tags: vg.tags.clone(),
            system_id: vg.system_id.clone(),
            pvs: vg.pvs.clone(),
            lvs: vg.lvs.iter().filter(|lv| lv.name == POOL || trim::is_volume(&lv.name)).cloned().collect(),
            ..*vg
        };
        Group { vg: Rc::new(own), pool_used }
    }
}

impl<'a> LvmPlace<'a> {
    pub fn new(sr: &'a LvmSr, vg: &Vg, vdi: VdiUuid, lv: &Lv) -> Self {
        let unfinished = RefCell::new(vg.lv(&format!("{UNFINISHED}{vdi}")).map(|lv| lv.tags.clone()));
        let reverted = format!("{REVERTED}{vdi}");
        let has_reverted = Cell::new(lv.name != reverted && vg.lv(&reverted).is_some());
        LvmPlace { unfinished, has_reverted, ..LvmPlace::listed(sr, &Group::of(vg), vdi, lv) }
    }

    /// One of many, to be looked at only.
    pub fn listed(sr: &'a LvmSr, group: &Group, vdi: VdiUuid, lv: &Lv) -> Self {
        let Group { vg, pool_used } = group.clone();
        LvmPlace {
            sr,
            vdi,
            vg,
            pool_used,
            unfinished: RefCell::default(),
            has_reverted: Cell::new(false),
            lv: RefCell::new(lv.clone()),
        }
    }

    pub(super) fn name(&self) -> String {
        self.lv.borrow().name.clone()
    }

    /// `group/volume`, as LVM's commands take it.
    pub(super) fn full_name(&self) -> String {
        format!("{}/{}", self.vg.name, self.name())
    }

    pub(super) fn node(&self) -> PathBuf {
        lvm::node(&self.vg.name, &self.name())
    }

    pub(super) fn record(&self) -> tags::Record {
        tags::read(&self.lv.borrow().tags)
    }

    fn is_read_only(&self) -> bool {
        self.lv.borrow().read_only || self.record().params.read_only
    }

    /// The params from the disk's tags, and those that LVM itself keeps of the volume.
    pub(super) fn params_now(&self) -> Params {
        let params = self.record().params;
        let created = params.created.or(self.lv.borrow().created);
        Params { read_only: self.is_read_only(), created, ..params }
    }

    fn usage_now(&self) -> Usage {
        let lv = self.lv.borrow();
        // A cut that a kill left is completed before anybody has the disk.
        let length = lv.size.min(self.record().cut.unwrap_or(u64::MAX));
        let allocated = match (lv.is_thin(), lv.data_used) {
            (false, _) => lv.size,
            (true, Some(hundredths)) => (u128::from(lv.size) * u128::from(hundredths) / 10_000) as u64,
            // Only of an active volume does LVM know; it can't be more than this.
            (true, None) => lv.size.min(self.pool_used.unwrap_or(lv.size)),
        };
        Usage { length, allocated: allocated.min(length) }
    }

    pub fn info(&self) -> VdiInfo {
        let (usage, record) = (self.usage_now(), self.record());
        let device = (self.lv.borrow().active && !record.is_private()).then(|| self.node());
        let node = Node { state: self.state_now(), ..Node::alone(Format::Raw, usage.length) };
        let info = vdi::describe(self, &node, usage.allocated, self.params_now());
        info.with_users(record.holders.users).with_device(device)
    }

    fn state_now(&self) -> State {
        let broken = self.unhealthy().or_else(|| self.damaged().map(|e| one_line(&e)));
        broken.map_or(State::Healthy, State::Broken)
    }

    /// Whether a damaged tag keeps the disk from being served.
    pub fn is_damaged(&self) -> bool {
        self.damaged().is_some()
    }

    /// Removes the volume, whatever its tags say.
    pub fn remove_damaged(&self) -> Result<()> {
        if self.has_reverted.get() {
            self.end_revert()?;
        }
        self.change("lvremove", &["-y"], &[&self.full_name()])
    }

    pub(super) fn change<S: AsRef<str>>(&self, program: &str, options: &[S], names: &[&str]) -> Result<()> {
        self.sr.group.change(&self.vg, program, options, names)
    }

    /// Asks again what LVM knows of the volume.
    fn refresh(&self) -> Result<()> {
        let vg = self.sr.group.look()?;
        let lv = vg.lv(&self.name()).ok_or_else(|| self.gone())?;
        self.lv.replace(lv.clone());
        Ok(())
    }

    fn gone(&self) -> Error {
        self.sr.no_vdi(self.vdi, &self.vg)
    }

    pub(super) fn in_use(&self, holder: String) -> Error {
        Error::VdiInUse { vdi: self.vdi, sr: self.sr.group.sr, holder }
    }

    pub(super) fn activate(&self) -> Result<()> {
        lvm::activate(&self.vg.name, &self.name())?;
        self.lv.borrow_mut().active = true;
        let node = self.node();
        if let Some(why) = blockdev::missing(&node) {
            return Err(Error::NoDevice {
                device: node.display().to_string(),
                why: format!("{why}; LVM said that it activated it"),
            });
        }
        Ok(())
    }

    pub(super) fn deactivate(&self) -> Result<()> {
        match lvm::deactivate(&self.vg.name, &self.name())? {
            Deactivated::Done => {
                self.lv.borrow_mut().active = false;
                Ok(())
            }
            Deactivated::Busy(who) => Err(self.in_use(format!("{who}, through {}", self.node().display()))),
        }
    }

    pub(super) fn refuse_unhealthy(&self) -> Result<()> {
        self.unhealthy().map_or(Ok(()), |why| Err(Error::NoDevice { device: self.full_name(), why }))
    }

    /// Why the disk cannot be served as its tags are.
    pub(super) fn damaged(&self) -> Option<Error> {
        let record = self.record();
        let unfit = record.cut.filter(|bytes| !bytes.is_multiple_of(self.vg.extent_size)).map(tags::cut);
        record.damaged.or(unfit).map(|tag| Error::Damaged {
            path: self.node(),
            what: format!(
                "the tag {tag} of its volume is damaged, and a cut to an unknown size may be unfinished; if the size of \
                 the volume is right: lvchange --deltag {tag} {}",
                self.full_name()
            ),
        })
    }

    /// The reason that LVM gives if the volume's data can't be had.
    fn unhealthy(&self) -> Option<String> {
        match self.lv.borrow().health.as_str() {
            health @ ("partial" | "failed" | UNREADABLE) => Some(format!("LVM says that it is {health}: {DATA_GONE}")),
            _ => None,
        }
    }

    /// The end of zeroing changes the group. While the pool's master changes it as well, one of the changes would be lost;
    /// were it this one, the disk would be zeroed again after a guest wrote to it.
    fn refuse_slave(&self) -> Result<()> {
        if !self.sr.is_slave {
            return Ok(());
        }
        Err(Error::SrUnavailable {
            sr: self.sr.group.sr,
            why: format!(
                "its VDI {} was never attached, and the first attachment changes the volume group, which only the SR's \
                 master may do: attach it there once. An SR that is created with (shared . \"true\"), or whose group has the \
                 tag {SHARED}, needs no such thing for VDIs that are made from then on",
                self.vdi
            ),
        })
    }

    /// The bytes of the volume, which is active.
    fn storage(&self, mode: Mode) -> Result<FileStorage> {
        FileStorage::new(blockdev::open(&self.node(), mode == Mode::ReadWrite)?, self.node())
    }

    pub(super) fn tag(&self, tag: String) -> Result<()> {
        self.change("lvchange", &["--addtag", &tag], &[&self.full_name()])?;
        self.lv.borrow_mut().tags.push(tag);
        Ok(())
    }

    pub(super) fn untag(&self, tag: &str) -> Result<()> {
        self.change("lvchange", &["--deltag", tag], &[&self.full_name()])?;
        self.lv.borrow_mut().tags.retain(|other| other != tag);
        Ok(())
    }
}

impl Place for LvmPlace<'_> {
    fn sr(&self) -> SrUuid {
        self.sr.group.sr
    }

    fn vdi(&self) -> VdiUuid {
        self.vdi
    }

    fn format(&self) -> Format {
        Format::Raw
    }

    fn deadline(&self) -> Instant {
        self.sr.group.deadline.end()
    }

    fn path(&self) -> PathBuf {
        self.node()
    }

    /// A volume that is not active is tagged and activated until the answer is dropped.
    fn open(&self, mode: Mode) -> Result<Opened<'_>> {
        self.sweep(false)?;
        self.refuse_unhealthy()?;
        if self.record().zero {
            // The data on the disk's extents is not the disk's own.
            self.refuse_slave()?;
            self.sr.group.refuse_incomplete(&self.vg)?;
            self.zero_now()?;
        }
        if self.lv.borrow().active {
            return self.storage(mode).map(Opened::of);
        }
        self.tag(tags::LENT.to_owned())?;
        match self.activate().and_then(|()| self.storage(mode)) {
            Ok(storage) => Ok(Opened::until(storage, || self.end_lending())),
            Err(cause) => Err(cause.undone(self.end_lending())),
        }
    }

    fn usage(&self) -> Result<Usage> {
        Ok(self.usage_now())
    }

    /// A copy of a disk that another host writes would need to know. An SR that hosts can share, a thick one, makes none.
    fn is_shared(&self) -> bool {
        false
    }

    fn state(&self) -> State {
        self.state_now()
    }

    fn params(&self) -> Result<Params> {
        Ok(self.params_now())
    }

    fn holders(&self) -> Result<Holders> {
        Ok(self.record().holders)
    }

    fn set_holders(&self, seen: &Holders, users: Vec<String>) -> Result<bool> {
        let next = seen.state + 1;
        let wanted = tags::of_holders(next, &users);
        let mut options: Vec<String> = Vec::new();
        for tag in self.lv.borrow().tags.iter().filter(|tag| tags::is_lock(tag)) {
            options.extend(["--deltag".to_owned(), tag.clone()]);
        }
        for tag in &wanted {
            options.extend(["--addtag".to_owned(), tag.clone()]);
        }
        // Only if the record is still in the state that was seen: LVM looks while it holds the group.
        let (relation, state) = if seen.state == 0 { ("!=", next) } else { ("=", seen.state) };
        options.extend(["-S".to_owned(), format!("lv_tags{relation}{{\"{}\"}}", tags::lock_state(state))]);
        self.change("lvchange", &options, &[&self.full_name()])?;
        self.refresh()?;
        Ok(self.holders()? == Holders { state: next, users })
    }

    fn set_params(&self, params: &Params) -> Result<()> {
        let mut params = params.clone();
        if self.lv.borrow().read_only {
            if !params.read_only {
                let why = format!(
                    "LVM has its volume as read-only, which this driver does not do: lvchange -p rw {} makes it writable",
                    self.full_name()
                );
                return Err(Error::Unsupported { op: "vdi_set", why });
            }
            params.read_only = self.record().params.read_only;
        }
        let (go, come) = tags::to_change(&self.lv.borrow().tags, &params);
        if go.is_empty() && come.is_empty() {
            return self.sr.group.flush(&self.vg);
        }
        let with = |option: &str, tags: Vec<String>| -> Vec<String> {
            tags.into_iter().flat_map(|tag| [option.to_owned(), tag]).collect()
        };
        let mut options = with("--deltag", go);
        options.extend(with("--addtag", come));
        self.change("lvchange", &options, &[&self.full_name()])?;
        self.refresh()
    }

    fn settle(&self) -> Result<()> {
        self.sr.group.flush(&self.vg)
    }

    /// The records are tags: they stand in the group's metadata, as the size does.
    fn settle_records(&self) -> Result<()> {
        self.sr.group.flush(&self.vg)
    }

    fn device(&self) -> Result<Option<PathBuf>> {
        Ok((self.lv.borrow().active && !self.record().is_private()).then(|| self.node()))
    }

    fn attach(&self, mode: Mode) -> Result<PathBuf> {
        self.sr.group.refuse_duplicates(&self.vg)?;
        self.sweep(false)?;
        let node = self.node();
        let read_only = mode == Mode::ReadOnly;
        self.refuse_unhealthy()?;
        let (active, zero) = (self.lv.borrow().active, self.record().zero);
        if zero {
            self.refuse_slave()?;
            self.sr.group.refuse_incomplete(&self.vg)?;
        }
        if active && !zero {
            if self.is_read_only() && !blockdev::is_read_only(&node) {
                // A kill came between the activation and this.
                blockdev::set_read_only(&node, true)?;
            }
            return Ok(node);
        }
        match active {
            true => blockdev::set_read_only(&node, false)?,
            false => self.activate()?,
        }
        if zero {
            self.zero_active()?;
        }
        if read_only {
            blockdev::set_read_only(&node, true)?;
        }
        Ok(node)
    }

    fn detach(&self) -> Result<Done> {
        match self.sweep(false) {
            Err(Error::Damaged { .. }) => {}
            other => other?,
        }
        if !self.lv.borrow().active {
            return Ok(Done::Already);
        }
        self.deactivate()?;
        Ok(Done::Changed)
    }

    fn round_up(&self, bytes: u64) -> u64 {
        bytes.checked_next_multiple_of(self.vg.extent_size).unwrap_or(u64::MAX)
    }

    fn resize(&self, bytes: u64) -> Result<()> {
        let size = self.sr.checked_size(&self.vg, bytes, i64::MAX as u64)?;
        self.sr.group.refuse_incomplete(&self.vg)?;
        self.sweep(true)?;
        let now = self.usage_now().length;
        let (thin, zero) = (self.lv.borrow().is_thin(), self.record().zero);
        let more = size.saturating_sub(now);
        if more > 0 && thin {
            self.sr.room_in_pool(&self.vg)?;
        } else if more > self.sr.group.free(&self.vg) {
            return Err(Error::NoSpace { sr: self.sr.group.sr, free: self.sr.group.free(&self.vg), wanted: more });
        }
        let read_only = self.lv.borrow().active && blockdev::is_read_only(&self.node());
        let full = self.full_name();
        let to = format!("{size}b");
        match (more > 0, thin) {
            (true, false) if !zero => self.grow_zeroed(more)?,
            (true, _) => {
                self.change("lvextend", &["-y", "-L", &to], &[&full]).map_err(|e| self.sr.explain(e, None, more))?
            }
            (false, false) => self.reduce(size)?,
            // A cut that a sweep completed may have been this one.
            (false, true) if size == now => {}
            (false, true) => {
                self.refuse_without_discards()?;
                self.tag(tags::cut(size))?;
                self.cut(size)?;
            }
        }
        self.lv.borrow_mut().size = size;
        // Kernels before 5.11 forget the mark when they load a new table.
        if read_only { blockdev::set_read_only(&self.node(), true) } else { Ok(()) }
    }

    fn copy_to(&self, dest: VdiUuid, params: &Params, _progress: Progress) -> Result<VdiInfo> {
        if !self.lv.borrow().is_thin() {
            return Err(Error::Unsupported {
                op: "an instant copy of the VDI",
                why: format!(
                    "SR {} is thick: a volume of its own for every byte; sm vdi_copy copies all of the disk, and an SR created with \
                     (allocation . \"thin\") or (lvhd . \"true\") has clones and snapshots",
                    self.sr.group.sr
                ),
            });
        }
        self.sweep(true)?;
        let vg = self.sr.group.whole()?;
        if self.sr.volumes(&vg).any(|(vdi, ..)| vdi == dest) {
            self.sr.group.flush(&vg)?;
            return Err(Error::VdiExists { vdi: dest, sr: self.sr.group.sr });
        }
        self.sr.room_in_pool(&vg)?;
        if self.lv.borrow().active {
            blockdev::flush(&self.node())?;
        }
        let name = format!("{RAW}{dest}");
        let tags = tags::of_params(params);
        let mut options: Vec<String> = ["-y", "-s", "-an", "-ky", "-n", &name].map(str::to_owned).to_vec();
        options.extend(tags.iter().flat_map(|tag| ["--addtag".to_owned(), tag.clone()]));
        self.change("lvcreate", &options, &[&self.full_name()]).map_err(|e| self.sr.explain(e, Some(dest), 0))?;
        let lv = Lv { name, tags, active: false, created: params.created, ..self.lv.borrow().clone() };
        let target = LvmPlace::new(self.sr, &vg, dest, &lv);
        raw::open(target, None).info()
    }

    fn tells_changes(&self) -> bool {
        self.has_delta()
    }

    fn changed_since(&self, base: VdiUuid) -> Result<Changed> {
        self.delta_since(base)
    }

    fn mapped(&self) -> Result<Changed> {
        self.mapped_now()
    }

    fn take_over(&self, source: VdiUuid, accept: Accept, _progress: Progress) -> Result<()> {
        self.go_back(source, accept)
    }

    fn remove(&self) -> Result<()> {
        self.sweep(true)?;
        self.remove_damaged()
    }
}
