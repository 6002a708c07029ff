//! The totals of an SR in xapi, by which xapi admits new disks.

use super::{Service, now};
use crate::door::smapiv1::faults::Failure;
use crate::door::xmlrpc::Value;
use crate::sys::lock::Kind;
use crate::sys::syslog;
use crate::types::Space;

/// The lock of a call that changes the totals.
pub(super) const FIGURES: &str = "figures";

impl Service<'_> {
    /// Updates the SR's totals in xapi. `grown`: by how many bytes the virtual sizes of its disks have grown; `None`: all
    /// disks are counted anew. sr_update corrects the totals, so a failure is only logged.
    pub(super) fn tell_figures(&mut self, sr_ref: &str, grown: Option<i128>) {
        let told = match grown {
            Some(by) => self.add_to_figures(sr_ref, by),
            None => self.recompute_figures(sr_ref),
        };
        if let Err(failure) = told {
            let why = self.reason(&failure, self.request.command);
            syslog::write(&format!("xapi was not told of the SR's figures: {why}"));
        }
    }

    /// Whether a change is added to the totals: where counting anew would look at every disk.
    pub(super) fn summed(&self) -> bool {
        self.driver.about.looks_at_every_disk
    }

    fn recompute_figures(&mut self, sr_ref: &str) -> Result<(), Failure> {
        // The lock keeps an older total from overwriting a newer one.
        let _alone = self.lock(FIGURES, Kind::Exclusive)?;
        let sr = self.session()?.sr_get_params(&now())?;
        self.set_figures(sr_ref, sr.virtual_allocation, sr.space())
    }

    fn add_to_figures(&mut self, sr_ref: &str, by: i128) -> Result<(), Failure> {
        let space = self.session()?.sr_get_space(&now())?;
        // Two calls that read the same total would lose what one of them adds.
        let _alone = self.lock(FIGURES, Kind::Exclusive)?;
        let had = self.xapi()?.call("SR.get_virtual_allocation", &[Value::text(sr_ref)])?;
        let Some(had) = had.as_str().and_then(|text| text.parse::<u64>().ok()) else {
            let sr = self.session()?.sr_get_params(&now())?;
            return self.set_figures(sr_ref, sr.virtual_allocation, sr.space());
        };
        self.set_figures(sr_ref, (i128::from(had) + by).max(0) as u64, space)
    }

    fn set_figures(&mut self, sr_ref: &str, allocation: u64, space: Space) -> Result<(), Failure> {
        let xapi = self.xapi()?;
        xapi.set_number("SR.set_virtual_allocation", sr_ref, allocation)?;
        Ok(xapi.set_number("SR.set_physical_utilisation", sr_ref, space.used())?)
    }
}
