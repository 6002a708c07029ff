//! Room for one more image in a chain that is full.

use std::time::Instant;

use super::Session;
use super::locks::Locks;
use crate::context::Context;
use crate::error::{Error, Result, one_line};
use crate::sys::syslog;
use crate::types::{Done, VdiUuid};

impl Session {
    /// Makes a copy of a VDI, or another change for which its chain gets an image more. If its chain has as many images as it may have, one that can be merged is merged first.
    ///
    /// # Errors
    /// Those of `copy`, [`Error::ChainTooLong`] only if no image of the chain can be merged now.
    pub(super) fn with_room<T>(
        &self,
        source: VdiUuid,
        context: &Context,
        copy: &dyn Fn(&Context) -> Result<T>,
    ) -> Result<T> {
        let wait = context.deadline.saturating_duration_since(Instant::now());
        let full = match copy(context) {
            Err(full @ Error::ChainTooLong { .. }) => full,
            other => return other,
        };
        let shortened =
            self.carry_out(Locks::of_vdis(&[]), context, move |storage, context| storage.shorten(source, context));
        match shortened {
            // A long merge is no wait for others.
            Ok(Done::Changed) => {
                let (deadline, others) = (context.deadline.max(Instant::now() + wait), context.others.clone());
                copy(&Context { deadline, progress: context.progress, others })
            }
            Ok(Done::Already) => Err(full),
            Err(why) => {
                syslog::write(&format!("the chain of VDI {source} was not made shorter: {}", one_line(&why)));
                Err(full)
            }
        }
    }
}
